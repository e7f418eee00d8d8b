"""Changes of a run's own attention rows, over heads or sets of heads: what knock-outs, swaps and substitutions share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from icl_kernel_lens.axes import Head, HeadRef, Reference
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.evidence.read import check_finite
from icl_kernel_lens.evidence.runner import run_prompts
from icl_kernel_lens.interventions.measure import logit_difference, measures
from icl_kernel_lens.interventions.patch import check_heads, check_intervened, in_place, is_head, run_info
from icl_kernel_lens.interventions.routes import check_route
from icl_kernel_lens.interventions.variants import (
    Changes,
    Row,
    RowChange,
    editable,
    in_batches,
    keep,
    own_tokens,
    run_variants,
)
from icl_kernel_lens.models import memory, probe
from icl_kernel_lens.models.fast import Prefix
from icl_kernel_lens.models.lens import InterceptableLens
from icl_kernel_lens.prompts import PromptSet
from icl_kernel_lens.results.patch_effects import Parts, PatchEffects

LOST = {
    "random_keys": "too few other keys to cut as many",
    "equal_mass": "too little attention on other keys to cut as much",
    "uniform": "the row is not a number",
    "shuffled_kernel": "the row is not a number",
}
"""Why a control could not be run."""
Heads = Sequence[Head | Sequence[Head]]
Change = Callable[[Row, Int[Tensor, " row"]], Float[Tensor, "row key"]]
"""(rows, the option each of them takes) → what becomes of them."""


@dataclass(frozen=True)
class HeadSets:
    """What is changed at once: every head on its own, or sets of heads."""

    parts: Parts
    names: tuple[str, ...]
    masks: Bool[Tensor, "set layer head"]

    @property
    def cells(self) -> list[tuple[int, int]]:
        """Layer and part of each set in the result."""
        if self.parts == "set":
            return [(0, number) for number in range(len(self.masks))]
        return [(layer, head) for _, layer, head in self.masks.nonzero().tolist()]

    @classmethod
    def of(cls, lens: InterceptableLens, heads: Heads | None, layers: Sequence[int] | None) -> HeadSets:
        """Every head alone (neither given), those named, or all heads of some layers together."""
        shape, missing = lens.shape, probe(lens).missing
        there = [layer for layer in range(shape.layers) if layer not in missing]
        if heads is not None and layers is not None:
            raise ResultError("give heads or layers, not both; heads may hold sets of heads.")
        if layers is not None:
            if not isinstance(layers, Sequence) or not all(isinstance(layer, Integral) for layer in layers):
                raise ResultError(f"layers must name whole numbers, such as [1, 2]; got {layers!r}.")
            heads = [[HeadRef(layer, head) for layer in layers for head in range(shape.heads)]]
        if heads is None:
            heads = [HeadRef(layer, head) for layer in there for head in range(shape.heads)]
        if not isinstance(heads, Sequence) or isinstance(heads, str) or len(heads) == 0:
            raise ResultError(
                "heads must be a sequence of heads, as (layer, head), or of sets of them; None means every head alone. "
                f"Got {heads!r}."
            )
        single = all(is_head(entry) for entry in heads)
        sets: list[Any] = [[entry] if is_head(entry) else entry for entry in heads]
        masks = torch.zeros(len(sets), shape.layers, shape.heads, dtype=torch.bool)
        for number, members in enumerate(sets):
            check_heads(lens, members)
            for layer, head in members:
                masks[number, layer, head] = True
        if single:
            if len({tuple(h) for (h,) in sets}) < len(sets):
                raise ResultError("heads must be named once; one is there twice.")
            order = [i for _, i in sorted((tuple(h), i) for i, (h,) in enumerate(sets))]
            return cls("head", (), masks[order])
        return cls("set", tuple(_name(members, layers) for members in sets), masks)


def _name(members: Sequence[Head], layers: Sequence[int] | None) -> str:
    if layers is not None:
        return f"all heads of layers {', '.join(map(str, layers))}"
    shown = " ".join(str(HeadRef(*head)) for head in members[:6])
    return shown + (f" and {len(members) - 6} more" if len(members) > 6 else "")


@dataclass(frozen=True)
class Sweep:
    """One kind of change of attention rows, and its controls."""

    what: str
    title: str
    offsets: tuple[str, ...]
    """Options that are tried, one after the other."""
    kinds: Mapping[str, Change]
    """The change itself under `""`, and its controls by name; they share a prompt's variants."""
    begin: Callable[[list[int]], Int[Tensor, "prompt column"]]
    """Prepare for prompts; the query positions whose rows are changed."""
    alone: bool = True
    """Whether these are the answer position alone."""
    several: bool = False
    """Whether equally long prompts may be run together."""
    added: Callable[[Row], Float[Tensor, "row d_head"]] | None = None
    """What is added to z in the changed rows."""


def run_sweep(
    model: Any,
    prompts: PromptSet,
    make: Callable[[InterceptableLens, HeadSets], Sweep],
    *,
    heads: Heads | None,
    layers: Sequence[int] | None,
    against: Reference,
    settings: Mapping[str, Any],
    name: str,
    checkpoint: str | Path | None,
    progress: bool,
) -> PatchEffects:
    """Every set × option × kind of a sweep, one variant each, over all prompts."""
    lens = editable(model)
    check_intervened(prompts, against)
    route = check_route(lens, "attention_rows")
    sets = HeadSets.of(lens, heads, layers)
    plan = make(lens, sets)
    options, kinds = len(plan.offsets), list(plan.kinds)
    variants = [(s, o, k) for k in range(len(kinds)) for s in range(len(sets.masks)) for o in range(options)]
    run_settings = {"against": against, **{key: str(value) for key, value in settings.items()}}

    own = own_tokens(lens, int(prompts.lengths.max()))

    # The first variant of all is unchanged.
    every = [(-1, 0, 0), *variants]

    def together(numbers: list[int], shared: Prefix | None) -> list[dict[str, Tensor]]:
        """Equally long prompts."""
        at, tokens = int(prompts.answer_pos[numbers[0]]), prompts.tokens[numbers]
        queries = plan.begin(numbers)
        prefix = keep(lens, tokens, at, shared, own) if plan.alone else None

        def run(part: Sequence[tuple[int, int, int]]) -> Float[Tensor, "variant vocab"]:
            which, option, kind = torch.tensor(list(part)).repeat(len(numbers), 1).unbind(1)
            masks = sets.masks[which.clamp(min=0)] & (which >= 0)[:, None, None]
            change = _change(plan, kinds, option, kind)
            rows = RowChange(masks, queries.repeat_interleave(len(part), 0), change, plan.added)
            return run_variants(lens, tokens, at, len(part), Changes(rows=rows), prefix)

        if len(numbers) > 1:
            logits = run(every).unflatten(0, (len(numbers), len(every)))
            return [measured(number, [mine]) for number, mine in zip(numbers, logits, strict=True)]
        done = prefix.end if prefix else 0
        return [measured(numbers[0], list(in_batches(lens, every, at + 1, done, run)))]

    def measured(number: int, logits: list[Tensor]) -> dict[str, Tensor]:
        base, words = logits[0][0], prompts.label_tokens[number]
        check_finite(base[None].cpu(), torch.tensor([number]), lens)
        reference = _reference(prompts, number, against, base)
        found = [measures(out, base, words, reference) for out in logits]
        joined = {key: torch.cat([f[key] for f in found]) for key in found[0]}
        return (
            {key: values[1:] for key, values in joined.items()}
            | {f"base_{key}": values[0] for key, values in joined.items()}
            | {"reference": torch.tensor(reference)}
        )

    several = plan.several and plan.alone and own is not None
    longest = int(prompts.answer_pos.max())
    most = (
        max(1, memory.prompts_at_once(lens, longest + 1, longest, fast=True) // len(every)) if several else 1
    )

    def step(numbers: list[int], shared: Prefix | None) -> dict[str, Tensor]:
        rows: dict[int, dict[str, Tensor]] = {}
        for at in sorted({int(prompts.answer_pos[number]) for number in numbers}):
            alike = [number for number in numbers if int(prompts.answer_pos[number]) == at]
            for part in (alike[i : i + most] for i in range(0, len(alike), most)):
                rows |= zip(part, together(part, shared), strict=True)
        return {key: torch.stack([rows[number][key] for number in numbers]) for key in rows[numbers[0]]}

    results, how = run_prompts(
        prompts,
        lens,
        step,
        name=name,
        settings={"what": plan.what, "sets": _digest(sets), "offsets": plan.offsets, **run_settings},
        batch_size="auto" if several else 1,
        most=most,
        checkpoint=checkpoint,
        progress=progress,
        share=plan.alone,
    )
    return _result(lens, prompts, plan, sets, kinds, results, how, run_settings | {"route": str(route)})


def _change(
    plan: Sweep, kinds: Sequence[str], option: Int[Tensor, " variant"], kind: Int[Tensor, " variant"]
) -> Callable[[Row], Float[Tensor, "row key"]]:
    def change(row: Row) -> Float[Tensor, "row key"]:
        new = row.weights.clone()
        mine = kind.to(new.device)[row.variants]
        options = option.to(new.device)[row.variants]
        for number, name in enumerate(kinds):
            here = mine == number
            if here.any():
                some = Row(
                    row.layer,
                    row.prompts[here],
                    row.variants[here],
                    row.heads[here],
                    row.column,
                    row.weights[here],
                    row.scores[here],
                )
                new[here] = plan.kinds[name](some, options[here])
        return new

    return change


def _reference(prompts: PromptSet, number: int, against: Reference, base: Float[Tensor, " vocab"]) -> int:
    if against == "truth":
        assert prompts.test_labels is not None
        return int(prompts.test_labels[number])
    return int(base[prompts.label_tokens[number].to(base.device)].argmax())


def _digest(sets: HeadSets) -> str:
    return f"{len(sets.masks)} sets, " + hashlib.sha256(sets.masks.numpy().tobytes()).hexdigest()


def _result(
    lens: InterceptableLens,
    prompts: PromptSet,
    plan: Sweep,
    sets: HeadSets,
    kinds: Sequence[str],
    results: dict[str, Tensor],
    how: str,
    settings: Mapping[str, str],
) -> PatchEffects:
    options, reference = len(plan.offsets), results["reference"]
    cells = [(layer, part, o) for layer, part in sets.cells for o in range(options)]

    def place(kind: int, values: Tensor) -> Tensor:
        mine = values[:, kind * len(cells) : (kind + 1) * len(cells)]
        if sets.parts == "set":
            return mine.unflatten(1, (1, len(sets.masks), options))
        return in_place(lens, "head", cells, options, mine)

    difference = logit_difference(results["label_scores"], reference[:, None])
    own = difference[:, : len(cells)]
    reasons = {f"nothing is left of a row (of {own.numel()} cells)": int(own.isnan().sum())}
    for number, kind in enumerate(kinds[1:], start=1):
        lost = difference[:, number * len(cells) : (number + 1) * len(cells)].isnan().sum()
        reasons[f"{kind}: {LOST[kind]} (of {own.numel()} cells)"] = int(lost)
    return PatchEffects(
        what=plan.what,
        title=plan.title,
        parts=sets.parts,
        offsets=plan.offsets,
        values=place(0, difference),
        base=logit_difference(results["base_label_scores"], reference),
        source=None,
        reference=reference,
        label_scores=place(0, results["label_scores"]),
        base_label_scores=results["base_label_scores"],
        others={name: place(0, results[name]) for name in ("probability", "kl")},
        base_others={name: results[f"base_{name}"] for name in ("probability", "kl")},
        controls={kind: place(number, difference) for number, kind in enumerate(kinds) if number},
        demo_set=prompts.demo_set,
        run=run_info(lens, prompts, how),
        settings=dict(settings),
        reasons={why: count for why, count in reasons.items() if count},
        names=sets.names,
    )
