"""Runs every intervention: each change is one variant of a prompt, measured beside the same prompt unchanged.

An `Intervention` says which cells there are, and what becomes of q, k, v, z, attention rows or the residual stream in
each of them and in its controls. `run` enumerates the variants, runs them in batches behind the keys and values that
they share (`run/variants.py`), measures the answer (`numbers/logits.py`) and puts each number in its cell.

    total     everything above a change is computed anew
    direct    what the change adds at the answer position goes, with what all other heads and MLPs add unchanged,
              through the final norm (recomputed) and the unembedding

Knock-outs, swaps and substitutions change a run's own attention rows, in single heads or sets of heads (`change_rows`):

    z' = z + Σ_s (A'(s) − A(s)) v_s + added        A' in the heads of a cell
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from icl_kernel_lens import fields
from icl_kernel_lens.axes import HeadRef, Reference
from icl_kernel_lens.interventions.validate import Heads, head_sets
from icl_kernel_lens.interventions.verify import WHOLE, check_primitive, ends_wider, joins_late
from icl_kernel_lens.models.adapter import Edits, InterceptableAdapter
from icl_kernel_lens.models.attention_passes import Prefix
from icl_kernel_lens.models.unembedding import places_among
from icl_kernel_lens.numbers.logits import logit_difference, measures
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.results.patch_effects import PatchEffects, Places
from icl_kernel_lens.results.run_info import RunInfo
from icl_kernel_lens.run.facts import narrows
from icl_kernel_lens.run.forward import check_finite
from icl_kernel_lens.run.memory import in_batches, prompts_at_once
from icl_kernel_lens.run.progress import ROW
from icl_kernel_lens.run.runner import BatchSize, run_prompts
from icl_kernel_lens.run.variants import (
    Changes,
    Row,
    RowChange,
    Seen,
    bases,
    editable,
    keep,
    own_tokens,
    run_variants,
)

EffectPath = Literal["total", "direct"]
PerVariant = Int[Tensor, " variant"]
AHEAD = 4
"""Prompts that share leading tokens and whose own are read in one pass, before the variants of one after the other. An
interruption loses no more than these."""
OTHERS = ("probability", "kl")
"""The metrics beside the logit difference."""
RowEdit = Callable[[Row, Int[Tensor, " row"]], Float[Tensor, "row key"]]
"""(rows, where each of them stands on the axis `along`) → what becomes of them."""
Prepare = Callable[[list[int]], tuple[Int[Tensor, "prompt column"], Mapping[str, RowEdit]]]
"""Equally long prompts → the query positions whose rows are changed, the change (under "") and the controls' changes."""


@dataclass(frozen=True, kw_only=True)
class Intervention(ABC):
    """What is changed: the cells, the change in each of them, and its controls."""

    name: str
    title: str
    primitive: str
    """The kind of change, as `verify_interventions` lists it."""
    prompts: PromptSet
    """The run that is changed."""
    clean: PromptSet
    """Those whose label tokens, answers and true labels the metric is about."""
    source: PromptSet | None = None
    """The run that activations come from; None: they are the changed run's own."""
    against: Reference
    places: Places
    """Every place on each axis of the result."""
    cells: Int[Tensor, "cell axis"]
    """Where on these axes something is changed."""
    controls: tuple[str, ...] = ()
    settings: Mapping[str, str]
    alone: bool = True
    """Whether only the answer position is changed."""
    first: Int[Tensor, " prompt"] | None = None
    """The first position that is changed, where that is known; what stands before it is run once for all variants."""
    together: bool = False
    """Whether equally long prompts may be run together."""
    path: EffectPath = "total"

    @abstractmethod
    def changes(
        self, numbers: list[int], seen: Seen | None, prefix: Prefix | None
    ) -> Callable[[PerVariant, PerVariant], Changes]:
        """(cell of each variant, or −1 for none; number of its control, or 0 for the change itself) → the changes.

        For equally long prompts, the variants of one after those of the other; `seen` is the source run of a single
        one; tokens behind `prefix` are run.
        """

    def look(
        self, adapter: InterceptableAdapter, source: PromptSet, number: int, prefix: Prefix | None
    ) -> Seen:
        """What is needed of a prompt's run in `source`."""
        raise NotImplementedError

    def identity(self) -> dict[str, str]:
        """What the numbers depend on beside model and prompts."""
        source = {} if self.source is None else {"source": self.source.digest()}
        cells = fields.digest(dict(self.places), {"cells": self.cells})
        return {"intervention": self.name, "path": self.path, "cells": cells, **source, **self.settings}

    def column(self, axis: str, cells: PerVariant) -> PerVariant:
        """Where cells stand along an axis; 0 if there is no such axis, −1 for no cell."""
        axes = list(self.places)
        found = self.cells[cells, axes.index(axis)] if axis in axes else torch.zeros_like(cells)
        return found.masked_fill(cells < 0, -1)

    def placed(self, rows: Float[Tensor, "prompt changed *_"]) -> Float[Tensor, "prompt *cell"]:
        """The numbers of changed cells in their places, NaN elsewhere."""
        shape = (len(rows), *map(len, self.places.values()), *rows.shape[2:])
        whole = torch.full(shape, float("nan"), dtype=rows.dtype)
        whole[(slice(None), *self.cells.unbind(1))] = rows
        return whole


class Runs:
    """The two runs of a prompt, each behind the keys and values of its beginning."""

    def __init__(self, adapter: InterceptableAdapter, what: Intervention, others: bool) -> None:
        self.adapter, self.what, self.others = adapter, what, others
        self.own = own_tokens(adapter, int(what.prompts.lengths.max()))
        self.beginning: Tensor | None = None
        self.prefix: Prefix | None = None
        self.columns: Int[Tensor, " column"] | None = None
        if not others and narrows(adapter):
            self.columns = what.clean.label_tokens.unique()

    def bases(self, numbers: list[int], shared: Prefix | None) -> Callable[[list[int]], Prefix | None]:
        """Equally long prompts among these → keys and values of the run that is changed; None where it is run whole."""
        if self.what.alone:
            return bases(self.adapter, self.what.prompts, numbers, shared, self.own)
        return lambda some: self._base(some, shared)

    def _base(self, numbers: list[int], shared: Prefix | None) -> Prefix | None:
        """The same where tokens before the answer are changed, too."""
        if self.what.first is None or self.own is None:
            return None
        at = int(self.what.prompts.answer_pos[numbers[0]])
        own = max(self.own, at + 1 - int(self.what.first[numbers[0]]))
        return keep(self.adapter, self.what.prompts.tokens[numbers], at, shared, own)

    def source(self, number: int, shared: Prefix | None) -> Seen | None:
        """What is needed of the other run, whose shared beginning is run once for all prompts that have it."""
        source = self.what.source
        if source is None:
            return None
        tokens, at = source.tokens[number], int(source.answer_pos[number])
        mine = None
        if shared is not None:
            beginning = tokens[: shared.end]
            if self.beginning is None or not torch.equal(self.beginning, beginning):
                self.prefix = None  # before the next one is made
                self.beginning, self.prefix = (
                    beginning,
                    keep(self.adapter, beginning, shared.end - 1, None, 0),
                )
            mine = self.prefix
        kept = keep(self.adapter, tokens, at, mine, self.own) if self.what.alone else None
        return self.what.look(self.adapter, source, number, kept)

    def reference(self, number: int, base: Float[Tensor, " vocab"], seen: Seen | None) -> int:
        """The class that the metric is about: the true one, or the clean run's answer; from finite logits."""
        for unchanged in (base, *(() if seen is None else (seen.logits,))):
            check_finite(unchanged[None].cpu(), torch.tensor([number]), self.adapter)
        clean = self.what.clean
        if self.what.against == "truth":
            assert clean.test_labels is not None
            return int(clean.test_labels[number])
        if seen is not None and self.what.prompts is not clean:
            return int(seen.logits[clean.label_tokens[number].to(seen.logits.device)].argmax())
        return int(base[self.labels(number).to(base.device)].argmax())

    def labels(self, number: int) -> Int[Tensor, " label"]:
        """Where the label tokens of a prompt stand in the logits of a run."""
        return places_among(self.what.clean.label_tokens[number], self.columns)


def run(
    adapter: InterceptableAdapter,
    what: Intervention,
    *,
    batch_size: BatchSize = "auto",
    checkpoint: str | Path | None,
    progress: bool,
) -> PatchEffects:
    """Every cell of an intervention and of its controls, over all prompts, as a result.

    Raises: see `run_cells`.
    """
    measured = run_cells(
        adapter, what, others=True, batch_size=batch_size, checkpoint=checkpoint, progress=progress
    )
    return _result(what, measured.numbers, measured.run, {**what.settings, "route": measured.route})


@dataclass(frozen=True)
class Cells:
    """What was measured of every prompt and cell."""

    numbers: dict[str, Tensor]
    """By name: those of `numbers.logits.measures` (prompt, cell, …), and of the unchanged run (`base_…`)."""
    run: RunInfo
    route: str


def run_cells(
    adapter: InterceptableAdapter,
    what: Intervention,
    *,
    others: bool = False,
    batch_size: BatchSize = "auto",
    checkpoint: str | Path | None,
    progress: bool,
) -> Cells:
    """Every cell of an intervention and of its controls, over all prompts: its label scores, and where asked for the `OTHERS`.

    Label scores alone need the logits of label tokens alone, where the model gives these as it gives all.

    Prompts that cannot be run together are run one at a time, whatever `batch_size`.

    Raises: ModelError: the change is not exact on this model, or logits are not finite. RunError: see `read`.
    """
    route = check_primitive(adapter, what.primitive)
    if what.path == "direct":
        # What is added must reach the last residual as it is: no norm may stand behind the sum.
        check_primitive(adapter, "attention_output")
    runs, prompts = Runs(adapter, what, others), what.prompts
    if runs.own is None:
        route = replace(route, route=WHOLE)
    # The first variant of all is unchanged.
    kinds, cells = range(1 + len(what.controls)), range(len(what.cells))
    variants = [(-1, 0), *((cell, kind) for kind in kinds for cell in cells)]
    most = 1
    together = what.together and what.alone and runs.own is not None
    if together:
        longest = int(prompts.answer_pos.max())
        most = max(1, prompts_at_once(adapter, longest + 1, longest, fast=True) // len(variants))
        most = most if batch_size == "auto" else batch_size

    def step(numbers: list[int], shared: Prefix | None) -> dict[str, Tensor]:
        rows: dict[int, dict[str, Tensor]] = {}
        base = runs.bases(numbers, shared)
        for at in sorted({int(prompts.answer_pos[number]) for number in numbers}):
            alike = [number for number in numbers if int(prompts.answer_pos[number]) == at]
            for some in (alike[i : i + most] for i in range(0, len(alike), most)):
                rows |= zip(some, _measured(runs, some, shared, base(some), variants), strict=True)
        return {key: torch.stack([rows[number][key] for number in numbers]) for key in rows[numbers[0]]}

    results, how = run_prompts(
        prompts,
        adapter,
        step,
        name=what.name,
        settings=what.identity() | {"others": str(others)},
        batch_size=batch_size if together else 1,
        most=most,
        most_shared=max(most, AHEAD),
        checkpoint=checkpoint,
        progress=progress,
        share=what.alone,
        extra=ROW * len(variants) * _rows(what, runs.own),
    )
    return Cells(results, RunInfo.of(adapter, prompts.info, prompts.score_on, reading=how), str(route))


def _rows(what: Intervention, own: int | None) -> float:
    """How many tokens a variant runs, on average."""
    if what.alone and own is not None:
        return float(own)
    start = torch.zeros(()) if what.first is None or own is None else what.first
    return float((what.prompts.answer_pos + 1 - start).float().mean())


def _measured(
    runs: Runs,
    numbers: list[int],
    shared: Prefix | None,
    prefix: Prefix | None,
    variants: Sequence[tuple[int, int]],
) -> list[dict[str, Tensor]]:
    """Equally long prompts, each with every variant, run behind what is kept of them."""
    adapter, what = runs.adapter, runs.what
    at, tokens = int(what.prompts.answer_pos[numbers[0]]), what.prompts.tokens[numbers]
    tokens = tokens if len(numbers) > 1 else tokens[0]
    seen = runs.source(numbers[0], shared)
    start = prefix.end if prefix else 0
    change = what.changes(numbers, seen, prefix)
    late = what.path == "total" and what.alone and prefix is not None and joins_late(adapter)

    def once(some: Sequence[tuple[int, int]]) -> Float[Tensor, "variant vocab"]:
        direct = what.path == "direct"
        # What is direct is told against an unchanged variant of the same pass, as passes of other sizes round otherwise.
        rows = [(-1, 0)] * direct + list(some)
        cells, kinds = torch.tensor(rows).repeat(len(numbers), 1).unbind(1)

        def forward(changes: Changes, count: int) -> Float[Tensor, "variant vocab"]:
            return run_variants(adapter, tokens, at, count, changes, prefix, late=late, columns=runs.columns)

        changes = change(cells, kinds)
        if not direct:
            return forward(changes, len(rows))
        found = _direct(adapter, what.column("layer", cells), len(rows), changes, forward, at - start)
        return found.unflatten(0, (len(numbers), -1))[:, 1:].flatten(0, 1)

    if len(numbers) > 1:
        found = [[mine] for mine in once(variants).unflatten(0, (len(numbers), len(variants)))]
    else:
        found = [list(in_batches(adapter, variants, at + 1, start, once))]
    return [_answer(runs, number, logits, seen) for number, logits in zip(numbers, found, strict=True)]


def _answer(
    runs: Runs, number: int, logits: list[Float[Tensor, "_ vocab"]], seen: Seen | None
) -> dict[str, Tensor]:
    """What is measured of one prompt's variants, the first of them unchanged."""
    base, labels = logits[0][0], runs.labels(number)
    reference = runs.reference(number, base, seen)
    found = [
        measures(out, base, labels, reference)
        if runs.others
        else {"label_scores": out[:, labels.to(out.device)].cpu()}
        for out in logits
    ]
    joined = {key: torch.cat([f[key] for f in found]) for key in found[0]}
    source = {}
    if seen is not None:
        words = runs.what.clean.label_tokens[number].to(seen.logits.device)
        source = {"source_scores": seen.logits[words].cpu()}
    return (
        {key: values[1:] for key, values in joined.items()}
        | {f"base_{key}": values[0] for key, values in joined.items()}
        | {"reference": torch.tensor(reference)}
        | source
    )


def _result(
    what: Intervention, results: dict[str, Tensor], run_info: RunInfo, settings: Mapping[str, str]
) -> PatchEffects:
    reference, count = results["reference"], len(what.cells)
    difference = logit_difference(results["label_scores"], reference[:, None])
    # One block of cells for the change itself and for each control.
    changed, *controls = difference.split(count, 1)
    lost = {Reason(name): values for name, values in zip(what.controls, controls, strict=True)}
    if what.primitive == "attention_rows":
        lost = {Reason.NOTHING_LEFT: changed} | lost
    counts = {reason: int(values.isnan().sum()) for reason, values in lost.items()}
    source = results.get("source_scores")
    return PatchEffects(
        intervention=what.name,
        title=what.title,
        places=what.places,
        values=what.placed(changed),
        base=logit_difference(results["base_label_scores"], reference),
        source=None if source is None else logit_difference(source, reference),
        reference=reference,
        label_scores=what.placed(results["label_scores"][:, :count]),
        base_label_scores=results["base_label_scores"],
        others={name: what.placed(results[name][:, :count]) for name in OTHERS},
        base_others={name: results[f"base_{name}"] for name in OTHERS},
        controls={name: what.placed(x) for name, x in zip(what.controls, controls, strict=True)},
        demo_set=what.prompts.demo_set,
        run=run_info,
        settings=settings,
        reasons={reason: number for reason, number in counts.items() if number},
    )


def _direct(
    adapter: InterceptableAdapter,
    layers: PerVariant,
    each: int,
    changes: Changes,
    forward: Callable[[Changes, int], Float[Tensor, "variant vocab"]],
    answer: int,
) -> Float[Tensor, "variant vocab"]:
    """Logits with each variant's change of its layer's attention output added to the unchanged final residual.

    There are `each` variants a prompt, the first of them unchanged. Variants of no single layer have their whole effect.
    `forward(changes, count)` runs `count` variants a prompt; where rows may be added behind the last layer, the unchanged run has one.
    """
    unchanged = torch.arange(0, len(layers), each).repeat_interleave(each)
    moved: dict[int, Tensor] = {}

    def here(layer: int) -> Int[Tensor, " changed"]:
        return (layers == layer).nonzero()[:, 0]

    def see(layer: int, x: Tensor) -> Tensor:
        at = here(layer)
        moved[layer] = x[at.to(x.device), answer] - x[unchanged[at].to(x.device), answer]
        return x

    def final(x: Tensor) -> Tensor:
        x = x.repeat_interleave(len(layers) // len(x), 0)
        for layer, change in moved.items():
            x[here(layer).to(x.device), answer] += change.to(x)
        return x

    whole = forward(replace(changes, streams={"attention_output": see}), each)
    last: Edits = {(adapter.shape.layers - 1, "hook_resid_post"): final}
    direct = forward(Changes(edits=last), 1 if ends_wider(adapter) else each)
    first = unchanged.to(whole.device)
    return torch.where((layers < 0)[:, None].to(whole.device), whole, whole[first] + direct - direct[first])


def _set_name(members: Sequence[HeadRef], layers: Sequence[int] | None) -> str:
    if layers is not None:
        return f"all heads of layers {', '.join(map(str, layers))}"
    more = f" and {len(members) - 6} more" if len(members) > 6 else ""
    return " ".join(map(str, members[:6])) + more


@dataclass(frozen=True, kw_only=True)
class RowEdits(Intervention):
    """Changes of a run's own attention rows."""

    primitive: str = "attention_rows"
    masks: Bool[Tensor, "cell layer head"]
    prepare: Prepare
    added: Callable[[Row], Float[Tensor, "row d_head"]] | None = None
    """What is added to z in the changed rows."""
    along: str = "demo"
    """The axis whose places `prepare` makes changes for."""

    def identity(self) -> dict[str, str]:
        return super().identity() | {"heads": fields.digest(None, {"masks": self.masks})}

    def changes(
        self, numbers: list[int], seen: Seen | None, prefix: Prefix | None
    ) -> Callable[[PerVariant, PerVariant], Changes]:
        queries, edits = self.prepare(numbers)

        def of(cells: PerVariant, kinds: PerVariant) -> Changes:
            places = self.column(self.along, cells)

            def change(row: Row) -> Float[Tensor, "row key"]:
                mine, place = (x.to(row.weights.device)[row.variants] for x in (kinds, places))
                if not self.controls:
                    return edits[""](row, place)
                new = row.weights.clone()
                for number, name in enumerate(("", *self.controls)):
                    here = mine == number
                    if here.any():
                        new[here] = edits[name](_some(row, here), place[here])
                return new

            masks = self.masks[cells] & (cells >= 0)[:, None, None]
            positions = queries.repeat_interleave(len(cells) // len(numbers), 0)
            return Changes(rows=RowChange(masks, positions, change, self.added))

        return of


def _some(row: Row, which: Bool[Tensor, " row"]) -> Row:
    return replace(row, **{name: x[which] for name, x in vars(row).items() if isinstance(x, Tensor)})


def change_rows(
    model: Any,
    prompts: PromptSet,
    prepare: Prepare,
    *,
    name: str,
    title: str,
    controls: tuple[str, ...] = (),
    heads: Heads | None = None,
    layers: Sequence[int] | None = None,
    demos: tuple[int, ...] | None = None,
    against: Reference = "model",
    settings: Mapping[str, Any],
    checkpoint: str | Path | None,
    progress: bool,
    **more: Any,
) -> PatchEffects:
    """The effects of changing attention rows of single heads or sets of heads, for each of `demos` if there are any.

    `more` are further fields of `RowEdits`.
    """
    adapter = editable(model)
    sets, single = head_sets(adapter, heads, layers)
    shape, repeats = adapter.shape, 1 if demos is None else len(demos)
    masks = torch.zeros(len(sets), shape.layers, shape.heads, dtype=torch.bool)
    for number, members in enumerate(sets):
        masks[number, [head.layer for head in members], [head.head for head in members]] = True
    names = [_set_name(members, layers) for members in sets]
    if len(set(names)) < len(names):  # some differ only beyond what a short name tells
        names = [" ".join(map(str, members)) for members in sets]
    places: Places = {"set": tuple(names)}
    cells = torch.arange(len(sets))[:, None]
    if single:
        places = {"layer": tuple(range(shape.layers)), "head": tuple(range(shape.heads))}
        cells = torch.tensor([tuple(head) for (head,) in sets])
    cells = cells.repeat_interleave(repeats, 0)
    if demos is not None:
        places = {**places, "demo": demos}
        cells = torch.cat([cells, torch.arange(repeats).repeat(len(sets))[:, None]], 1)
    edits = RowEdits(
        name=name,
        title=title,
        prompts=prompts,
        clean=prompts,
        against=against,
        places=places,
        cells=cells,
        controls=controls,
        settings={"against": against, **{key: str(value) for key, value in settings.items()}},
        masks=masks.repeat_interleave(repeats, 0),
        prepare=prepare,
        **more,
    )
    return run(adapter, edits, checkpoint=checkpoint, progress=progress)
