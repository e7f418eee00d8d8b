"""Which part of the label influence goes through which heads: label edges of the answer row, taken from the replaced run.

For a demonstration i and a replaced label, k* and v* are what the label's tokens bring in the run with that label. A head's
answer row reads them in place of its own, with its own query:

    values    z' = z + Σ_p A_p (v*_p − v_p)                       p over the tokens of demonstration i's label edges
    keys      z' = Σ_s A'_s v_s,   A' the softmax with the scores ⟨q, k*_p⟩ at p
    both      z' = Σ_s A'_s v_s + Σ_p A'_p (v*_p − v_p)

and everything above is recomputed, or frozen but for the final norm. What this moves of s_{y_i} − s_c, as for G_i, is what
the head carries. A replaced label's tokens are run behind kept keys and values, once for all prompts that share them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from icl_kernel_lens import fields
from icl_kernel_lens.arguments import checked
from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.interventions.engine import EffectPath, Intervention, PerVariant, run_cells
from icl_kernel_lens.interventions.validate import HeadList, check_heads, check_intervened, every_head
from icl_kernel_lens.models.adapter import InterceptableAdapter, attention_layers
from icl_kernel_lens.models.attention_passes import Prefix
from icl_kernel_lens.numbers.attention import scores_of_keys
from icl_kernel_lens.numbers.influence import label_gain, label_pull
from icl_kernel_lens.prompts.label_edges import check_offsets, label_keys
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.prompts.relabel import relabelled
from icl_kernel_lens.results.carried_influence import CarriedInfluence, Carrier
from icl_kernel_lens.results.label_influence import LabelInfluence
from icl_kernel_lens.run.memory import prefix_tokens
from icl_kernel_lens.run.runner import BatchSize, cost_of_pass
from icl_kernel_lens.run.variants import (
    Changes,
    Row,
    RowChange,
    Seen,
    editable,
    kept_at,
    own_tokens,
    run_on,
)

ALL = "all label edges"


@checked
def carried_influence(
    model: Any,
    influence: LabelInfluence,
    *,
    heads: HeadList | None = None,
    carrier: Carrier = "both",
    path: EffectPath = "total",
    offsets: Sequence[int] = (0,),
    later: bool = False,
    prompts: Sequence[int] | None = None,
    batch_size: BatchSize = "auto",
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> CarriedInfluence:
    """Measure the part of each demonstration's influence that goes through single heads' label edges, and through all of them.

        carried_i = (s_{y_i} − s_c)(P) − (s_{y_i} − s_c)(P, the head's edge to i read from P with y_i → c)

    the mean over the replacement labels that `influence` has, in logits; equations for `carrier` at the head of this module.
    `offsets` say which tokens are a label's edges (0: all tokens of the label; see `label_coverage`); what stands before a
    label is the same in both runs and carries nothing. With `later`, the label edges of all later demonstrations are read from
    the run with that label, too: in a kernel regression they bring their own labels and nothing of it
    (`CarriedInfluence.others_share`). `prompts` picks some of the influence's prompts. With `path="total"`
    everything above the head is recomputed, so that a kernel and what echoes it are counted in both: such parts must not be
    summed. With `path="direct"` everything above but the final norm is frozen, and parts may be summed. The edges of all
    heads patched together are in the result, too: that, over G, is their *coverage*.

    Cost: per prompt one forward pass, and a token for each head, demonstration that has replacements, and replacement. The tokens of replaced labels
    are run once for all prompts that share their demonstrations (`later`: and what stands between them and the last label).
    `checkpoint` names a folder in which finished prompts are kept.

    Does not show: that the head makes the kernel: what it carries may have been decided below it (a key that another
    head wrote). Labels that are read elsewhere than at the answer's own edges are not in it.
    Source: ours; path patching as in Wang et al. (2023), from a run with one label replaced.

    Raises: PromptError: whole labels are scored; an offset holds no token; no label of these prompts was replaced. ModelError:
                attention cannot be changed exactly.
            ResultError: no such head; the influence is of another model.
    """
    return carried_parts(
        model,
        influence,
        (Part(path, later),),
        heads=heads,
        carrier=carrier,
        offsets=offsets,
        prompts=prompts,
        batch_size=batch_size,
        checkpoint=checkpoint,
        progress=progress,
    )[0]


class Part(NamedTuple):
    """What of carried influence is measured."""

    path: EffectPath = "total"
    later: bool = False
    """Whether the edges of later demonstrations count, too."""


def carried_parts(
    model: Any,
    influence: LabelInfluence,
    parts: Sequence[Part],
    *,
    heads: HeadList | None,
    carrier: Carrier,
    offsets: Sequence[int],
    prompts: Sequence[int] | None,
    batch_size: BatchSize = "auto",
    checkpoint: str | Path | None,
    progress: bool,
) -> tuple[CarriedInfluence, ...]:
    """Several parts of carried influence from one run of the prompts and of their replaced labels.

    Raises: see `carried_influence`.
    """
    adapter = editable(model)
    some = influence.prompts if prompts is None else influence.prompts.select(prompts)
    numbers = torch.arange(len(influence.prompts)) if prompts is None else torch.tensor(list(prompts))
    influence.check_of(adapter)
    refs = every_head(adapter) if heads is None else sorted(check_heads(adapter, heads))
    put = ~influence.replaced[0, numbers].isnan().any(-1)
    if not put.any():
        raise PromptError(
            f"some label must have been replaced; in the {len(some)} prompts picked none could be, as no other label has as many "
            "tokens. Pick other prompts.",
            code="label-lengths",
        )
    edges = LabelEdges(adapter, some, put, tuple(sorted(offsets)), any(part.later for part in parts))
    found = moved_by_edges(
        edges,
        refs,
        carrier,
        parts,
        batch_size=batch_size,
        checkpoint=checkpoint,
        progress=progress,
    )
    influence.check_scores(numbers, found.base)
    layer, head = [r.layer for r in refs], [r.head for r in refs]
    unknown = torch.full((len(some), adapter.shape.layers, adapter.shape.heads, some.demos), torch.nan)

    def result(part: Part, pull: Tensor, gain: Tensor) -> CarriedInfluence:
        values, gained = unknown.clone(), unknown.clone()
        values[:, layer, head], gained[:, layer, head] = pull[:, :-1], gain[:, :-1]
        return CarriedInfluence(
            values=values,
            gained=gained,
            together=pull[:, -1],
            influence=influence.values[numbers],
            numbers=numbers,
            demo_labels=some.demo_labels,
            demo_set=some.demo_set,
            carrier=carrier,
            path=part.path,
            offsets=edges.offsets,
            later=part.later,
            run=replace(found.run, prompts=some.info),
        )

    return tuple(map(result, parts, found.pull.unbind(1), found.gain.unbind(1)))


class Moved(NamedTuple):
    """What the label edges of heads, each alone and at last all of them, move of the label scores."""

    base: Float[Tensor, "prompt label"]
    """The label scores with nothing replaced."""
    pull: Float[Tensor, "prompt part set demo"]
    gain: Float[Tensor, "prompt part set demo"]
    """What of it the labels put in gain."""
    run: RunInfo


def moved_by_edges(
    edges: LabelEdges,
    refs: Sequence[HeadRef],
    carrier: Carrier,
    parts: Sequence[Part],
    *,
    batch_size: BatchSize = "auto",
    checkpoint: str | Path | None,
    progress: bool,
) -> Moved:
    """Patch the label edges of these heads and of all, in every part, demonstration and replacement; NaN where there is none.

    Raises: PromptError: whole labels are scored; an offset holds no token. ModelError: attention cannot be changed exactly.
    """
    check_intervened(edges.prompts, "model")
    check_offsets(edges.prompts, edges.offsets)
    found = run_cells(
        edges.adapter,
        EdgesFrom.of(edges, refs, carrier, parts),
        batch_size=batch_size,
        checkpoint=checkpoint,
        progress=progress,
    )
    base, changed = found.numbers["base_label_scores"], found.numbers["label_scores"]
    shape = len(parts) * (len(refs) + 1), edges.slots, edges.others
    pull, gain = (x.unflatten(1, (len(parts), -1)) for x in edges.pulled(base, changed.unflatten(1, shape)))
    return Moved(base, pull, gain, found.run)


@dataclass(frozen=True)
class Sources:
    """What the label edges of one prompt bring under each replacement, beside what they bring as they are."""

    keys: Float[Tensor, "slot other layer kv_head edge d_head"]
    moved: Float[Tensor, "slot other layer kv_head edge d_value"]
    """v* − v."""


@dataclass(frozen=True)
class LabelEdges:
    """The label edges of prompts, and how replacements are numbered: `slot` is the n-th demonstration that has any, `other` its
    r-th replacement label."""

    adapter: InterceptableAdapter
    prompts: PromptSet
    put: Bool[Tensor, "prompt demo label"]
    """Which replacements there are."""
    offsets: tuple[int, ...]
    later: bool = False
    """Whether those of later demonstrations are among a demonstration's edges, too."""
    _kept: dict[bytes, Sources] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def others(self) -> int:
        """Replacement labels of a demonstration, at most."""
        return int(self.put.sum(-1).max())

    @cached_property
    def slots(self) -> int:
        """Demonstrations of a prompt that have replacements, at most."""
        return int(self.put.any(-1).sum(-1).max())

    def demos(self, number: int) -> Int[Tensor, " slot"]:
        """The demonstrations that have replacements (then others, where a prompt has fewer of them)."""
        return _first(self.put[number].any(-1)[None], self.slots)[0]

    def replacements(self, number: int) -> tuple[Int[Tensor, "slot other"], Bool[Tensor, "slot other"]]:
        """The replacement labels of each of `demos` (its own where there are fewer), and which of them there are."""
        demos = self.demos(number)
        put = self.put[number, demos]
        order = _first(put, self.others)
        there = put.gather(-1, order)
        return torch.where(there, order, self.prompts.demo_labels[number, demos][:, None]), there

    @cached_property
    def most(self) -> int:
        """Edges of a demonstration's own, at most."""
        return max(1, *(int(self._keys(number).sum(-1).max()) for number in range(len(self.prompts))))

    def _keys(self, number: int) -> Bool[Tensor, "demo key"]:
        """Which tokens are label edges, none of them before the label."""
        keys = label_keys(self.prompts, number, self.offsets).any(0)
        return keys & (torch.arange(keys.shape[1]) >= self.prompts.label_pos[number][:, None])

    def positions(self, number: int) -> tuple[Int[Tensor, "slot edge"], Bool[Tensor, "later slot edge"]]:
        """Where the edges of each of `demos` stand (its label's first token where it has fewer), and which there are: its own,
        and with those of later demonstrations."""
        keys, mine = self._keys(number), self.demos(number)
        order = _first(keys, self.most)
        there = keys.gather(-1, order)
        at = torch.where(there, order, self.prompts.label_pos[number][:, None])
        if not self.later:
            return at[mine], there[None, mine]
        of = torch.arange(len(at)).repeat_interleave(self.most)
        own, behind = of == mine[:, None], of >= mine[:, None]
        return at.flatten().expand(len(mine), -1), there.flatten() & torch.stack([own, behind])

    def sources(self, number: int, prefix: Prefix | None) -> Sources:
        """Keys and changes of values of every replaced label, kept for prompts that begin alike and have the same label words."""
        positions, _ = self.positions(number)
        last = int(positions.max()) + 1
        # Prompts may begin alike and still have other label words: those of classes that no demonstration shows.
        words, labels = self.prompts.label_sequences[number], self.prompts.demo_labels[number]
        parts = (self.prompts.tokens[number, :last], positions, labels, self.put[number], words)
        begun = b"".join(part.numpy().tobytes() for part in parts)
        if begun not in self._kept:
            self._kept.clear()
            self._kept[begun] = self._run(number, prefix, positions, last)
        return self._kept[begun]

    def _run(
        self, number: int, prefix: Prefix | None, positions: Int[Tensor, "slot edge"], last: int
    ) -> Sources:
        adapter, tokens, mine = self.adapter, self.prompts.tokens[number], self.demos(number)
        kept = prefix if prefix is not None and prefix.end >= last else run_on(adapter, tokens[:last])
        whole = kept.until(last)
        own = own_tokens(adapter, int(self.prompts.lengths.max())) if prefix is not None else None
        ends = positions.amax(-1) + 1
        starts = torch.zeros_like(ends)
        if own is not None:
            starts = torch.minimum(self.prompts.label_pos[number, mine], ends - own).clamp(min=0)
        labels, _ = self.replacements(number)
        keys, values = [], []
        for slots in self._passes(starts, ends, labels.shape[1]):
            start, end = int(starts[slots].min()), int(ends[slots].max())
            changed = self.prompts.demo_labels[number].repeat(len(slots), labels.shape[1], 1)
            changed[torch.arange(len(slots)), :, mine[slots]] = labels[slots]
            changed = changed.flatten(0, 1)
            replaced = relabelled(self.prompts, torch.full((len(changed),), number), changed)
            run = run_on(adapter, replaced.tokens[:, start:end], whole.until(start) if start else None)
            found = kept_at(run, positions[slots].repeat_interleave(labels.shape[1], 0))
            for kind, into in zip(found, (keys, values), strict=True):
                into.append(kind.unflatten(0, (len(slots), -1)))
        before = kept_at(whole, positions)[1]
        return Sources(torch.cat(keys), torch.cat(values) - before[:, None])

    def _passes(
        self, starts: Int[Tensor, " slot"], ends: Int[Tensor, " slot"], others: int
    ) -> Int[Tensor, "pass together"]:
        """Slots whose replaced labels are run in one pass, all of one length: all, or each for itself."""
        slots = torch.arange(len(starts))
        together = others * len(slots) * int(ends.max() - starts.min())
        saved = cost_of_pass(self.adapter) * (len(slots) - 1)
        apart = others * int((ends - starts).sum())
        if together - apart < saved and together <= prefix_tokens(self.adapter):
            return slots[None]
        return slots[:, None]

    def pulled(
        self, base: Float[Tensor, "prompt label"], changed: Float[Tensor, "prompt set slot other label"]
    ) -> tuple[Float[Tensor, "prompt set demo"], Float[Tensor, "prompt set demo"]]:
        """(s_y − s_c)(base) − (s_y − s_c)(changed), and what of it c gains: means over the replacements there are."""
        labels = self.prompts.labels
        shape = (*changed.shape[:2], self.prompts.demos, labels, labels)
        by_label = torch.full(shape, torch.nan)
        for number in range(len(changed)):
            which, there = self.replacements(number)
            slot, other = there.nonzero(as_tuple=True)
            demo = self.demos(number)[slot]
            by_label[number, :, demo, which[slot, other]] = changed[number][:, slot, other]
        sets = changed.shape[1]
        own = self.prompts.demo_labels[:, None].expand(-1, sets, -1)
        before = base[:, None].expand(-1, sets, -1)
        pull, gain = (of(before, by_label, own).nanmean(-1) for of in (label_pull, label_gain))
        return pull, gain


def _first(chosen: Bool[Tensor, "row place"], most: int) -> Int[Tensor, "row first"]:
    """The first chosen places of each row, then others."""
    return (~chosen).int().sort(dim=-1, stable=True).indices[:, :most]


@dataclass(frozen=True, kw_only=True)
class EdgesFrom(Intervention):
    """Label edges of single heads, and of all of them, read from runs with one label replaced."""

    edges: LabelEdges
    carrier: Carrier
    parts: tuple[Part, ...]
    masks: Bool[Tensor, "set layer head"]

    @classmethod
    def of(
        cls, edges: LabelEdges, refs: Sequence[HeadRef], carrier: Carrier, parts: Sequence[Part]
    ) -> EdgesFrom:
        """Every part, head (and at last all of them), slot and replacement are a cell."""
        shape, prompts = edges.adapter.shape, edges.prompts
        masks = torch.zeros(len(refs) + 1, shape.layers, shape.heads, dtype=torch.bool)
        every = every_head(edges.adapter)
        for at, members in ((torch.arange(len(refs)), refs), (-1, every)):
            masks[at, [h.layer for h in members], [h.head for h in members]] = True
        names = (*map(str, refs), ALL)
        counts = (len(parts), len(masks), edges.slots, edges.others)
        slots, others = map(range, counts[2:])
        return cls(
            name="carried influence",
            title=f"label edges ({carrier}) from runs with one label replaced",
            primitive="attention_rows",
            prompts=prompts,
            clean=prompts,
            against="model",
            places={
                "part": tuple(map(str, parts)),
                "set": names,
                "slot": tuple(slots),
                "other": tuple(others),
            },
            cells=torch.cartesian_prod(*map(torch.arange, counts)).reshape(-1, 4),
            settings={
                "carrier": carrier,
                "offsets": str(edges.offsets),
                "replacements": fields.digest({}, {"put": edges.put}),
            },
            path="direct" if any(part.path == "direct" for part in parts) else "total",
            edges=edges,
            carrier=carrier,
            parts=tuple(parts),
            masks=masks,
            together=prod(counts) < cost_of_pass(edges.adapter),
        )

    def column(self, axis: str, cells: PerVariant) -> PerVariant:
        """The layer of a head whose direct part is wanted counts as an axis; −1 where the whole effect is, as it is of all heads."""
        if axis != "layer":
            return super().column(axis, cells)
        sets, parts = (self.column(name, cells).clamp(min=0) for name in ("set", "part"))
        total = torch.tensor([part.path == "total" for part in self.parts])[parts] | (
            sets == len(self.masks) - 1
        )
        return self.masks.any(-1).int().argmax(-1)[sets].masked_fill(total | (cells < 0), -1)

    def changes(
        self, numbers: list[int], seen: Seen | None, prefix: Prefix | None
    ) -> Callable[[PerVariant, PerVariant], Changes]:
        edges, count = self.edges, len(numbers)
        rows = [prefix if prefix is None else prefix.row(at) for at in range(count)]
        sources = [edges.sources(number, mine) for number, mine in zip(numbers, rows, strict=True)]
        keys, moved = (torch.stack([getattr(one, name) for one in sources]) for name in ("keys", "moved"))
        positions, there = map(torch.stack, zip(*map(edges.positions, numbers), strict=True))
        later = torch.tensor([int(part.later) for part in self.parts])
        layer_at = {layer: at for at, layer in enumerate(attention_layers(edges.adapter))}
        group = edges.adapter.shape.heads // keys.shape[4]

        def of(cells: PerVariant, _kinds: PerVariant) -> Changes:
            slots, others = (self.column(axis, cells) for axis in ("slot", "other"))
            reach = later[self.column("part", cells)]
            masks = self.masks[self.column("set", cells)] & (cells >= 0)[:, None, None]
            answer = self.prompts.answer_pos[numbers].repeat_interleave(len(cells) // count)[:, None]

            def here(row: Row, x: Tensor) -> Tensor:
                """Each row's entries of a source, one an edge."""
                at, variants = row.prompts.cpu(), row.variants.cpu()
                heads = row.heads.cpu() // group
                return x[at, slots[variants], others[variants], layer_at[row.layer], heads].to(row.weights)

            def edge(row: Row) -> tuple[Tensor, Tensor]:
                prompts, variants = row.prompts.cpu(), row.variants.cpu()
                at, real = (
                    positions[prompts, slots[variants]],
                    there[prompts, reach[variants], slots[variants]],
                )
                return at.to(row.weights.device), real.to(row.weights.device)

            def change(row: Row) -> Float[Tensor, "row key"]:
                if self.carrier == "values":
                    return row.weights
                at, real = edge(row)
                scores = scores_of_keys(row.queries, here(row, keys), row.heads, at, row.rule)
                old = row.scores.gather(1, at)
                # Added, as places without an edge stand for another one; a key that is not seen stays so.
                moved = torch.where(real & old.isfinite(), scores - old, 0)
                return row.scores.scatter_add(1, at, moved).softmax(-1)

            def added(row: Row) -> Float[Tensor, "row d_value"]:
                at, real = edge(row)
                weights = change(row).gather(1, at) * real
                return (weights[..., None] * here(row, moved)).sum(1)

            return Changes(rows=RowChange(masks, answer, change, None if self.carrier == "keys" else added))

        return of
