"""Measures the six conditions of a kernel head, for some heads, on prompts whose influence is known.

    fit           its normalised weights follow I, the pair part of the model's own kernel
    within_labels they do so among demonstrations of the same label, where an echo of any answer is even
    with_input    its weights go with the inputs when those of two demonstrations of different classes are swapped
    looks         its weights change when the test input does
    ranks         and not in sharpness alone: what no one ranking of the demonstrations explains follows I, too
    transports    its values carry part of the label part: averaged over relabellings, weights fixed, it is gone
    carries_kernel  and part of I: of the influence of each label, what its values carry
    own           each label edge bringing its own demonstration's label, and not another's
    gives         of which the new label gains its half, and the old one does not only lose it
    alone         and which does not hang on what other demonstrations there are
    needed        zeroed, renormalised and mean-replaced label edges agree that part of the label part goes without them
    no_echo       with the label edges of all earlier layers cut, its weights keep half of their fit

Shares are of the label part t. Each is a column with its interval between demonstration sets; what could not be measured is NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from icl_kernel_lens.axes import HeadRef, Pooling
from icl_kernel_lens.evidence.reading import answer, read
from icl_kernel_lens.interventions.carried import LabelEdges, Part, carried_parts, moved_by_edges
from icl_kernel_lens.interventions.coverage import Relabelled
from icl_kernel_lens.interventions.cut_below import weights_cut_below
from icl_kernel_lens.interventions.label_routes import WAYS, Routes, Way, take_out
from icl_kernel_lens.interventions.validate import every_head
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.numbers.identification import (
    Ends,
    beyond_one_ranking,
    drop_share,
    interval,
    moved_apart,
    next_of_set,
    share_removed,
    share_within,
    swap_slope,
    total_variation,
)
from icl_kernel_lens.numbers.influence import Estimate, exchanged, fit, label_pull, tail, varying_part
from icl_kernel_lens.numbers.permutations import by_position
from icl_kernel_lens.numbers.votes import normalised
from icl_kernel_lens.prompts.company import change_company
from icl_kernel_lens.prompts.crossed import cross
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.prompts.relabel import interchangeable, relabelled
from icl_kernel_lens.prompts.swapped import swap_inputs
from icl_kernel_lens.results.carried_influence import CarriedInfluence
from icl_kernel_lens.results.evidence import Evidence
from icl_kernel_lens.results.label_influence import LabelInfluence
from icl_kernel_lens.run.variants import editable

PerHead = Float[Tensor, "layer head"]
ENDS = ("", "_low", "_high")
"""A number's column, and those of the ends of its interval."""
EACH = 4
"""Most test inputs of a set whose influence is measured: what the sets' number gives intervals, more of each costs more."""
SETS = 16
"""Sets a half that independent prompts are crossed into, where there are enough."""
FEWEST = 8
"""Demonstration sets a half must have: with fewer, intervals over sets say nothing."""
MOST = 32
"""Heads whose conditions are measured, at most."""


def _where(which: Bool[Tensor, "layer head"], one: Ends, other: Ends) -> Ends:
    """One's number with its interval for these heads, else the other's."""
    value, low, high = (torch.where(which, a, b) for a, b in zip(one, other, strict=True))
    return value, low, high


@dataclass(frozen=True)
class Sample:
    """The prompts whose influence is measured, test inputs sharing demonstrations; and which of them are of each half."""

    prompts: PromptSet
    choosing: Int[Tensor, " c"]
    reporting: Int[Tensor, " r"]
    rows: Int[Tensor, " prompt"] | None
    """Their numbers among the prompts given; None where these were crossed."""

    @classmethod
    def of(
        cls, model: Any, prompts: PromptSet, choosing: Int[Tensor, " c"], reporting: Int[Tensor, " r"]
    ) -> Sample:
        """Up to `EACH` test inputs of each set; where no sets are shared, prompts of each half crossed with one another.

        Raises: PromptError: see `cross`.
        """
        halves = choosing, reporting
        if shares_sets(prompts, halves):
            kept = [_few_of_each(prompts.demo_set, half) for half in halves]
            rows = torch.cat(kept)
            few, first = prompts.select(rows.tolist()), len(kept[0])
        else:
            each = min(EACH, max(2, min(map(len, halves)) // SETS))
            blocks = [half[: len(half) // each * each] for half in halves]
            few, rows = cross(prompts.select(torch.cat(blocks).tolist()), each, model=model), None
            first = int((few.demo_set < len(blocks[0]) // each).sum())
        numbers = torch.arange(len(few))
        return cls(few, numbers[:first], numbers[first:], rows)


@dataclass(frozen=True)
class Conditions:
    """What was measured of the heads looked at: a column a number, NaN for all other heads."""

    columns: Mapping[str, PerHead]
    slope_of_model: float
    """Of G itself: what `swap_slope` of a head is held against."""
    labels_read: Estimate
    """The share of the label part that is gone with the label edges of all heads cut."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """Prompts whose influence is known, how heads attend on them, and how they are run."""

    model: Any
    influence: LabelInfluence
    weights: Float[Tensor, "prompt layer head demo"]
    """Attention on the label edges, of the prompts of the influence."""
    offsets: tuple[int, ...]
    seed: int
    level: float
    checkpoint: Path | None
    progress: bool

    def place(self, name: str) -> Path | None:
        """Where one step's finished prompts are kept."""
        return self.checkpoint and self.checkpoint / name

    def fits_of_all(self, numbers: Int[Tensor, " some"]) -> tuple[PerHead, PerHead]:
        """Of every head: the fit of its weights to the model's own kernel, and the probability that the best of all fits so well."""
        prompts = self.influence.prompts.select(numbers.tolist())
        shape = self.weights.shape[1:3]
        mine = normalised(self.weights[numbers].double().flatten(1, 2))
        found = self._fits(mine, numbers, prompts)
        return found["fit"][0].reshape(shape), found["fit_p"][0].reshape(shape)

    def of(self, heads: Sequence[HeadRef], numbers: Int[Tensor, " some"]) -> Conditions:
        """Every condition of these heads, on some of the prompts."""
        prompts, weights = self.influence.prompts.select(numbers.tolist()), self.weights[numbers]
        layer, head = torch.tensor([tuple(h) for h in heads]).unbind(1)
        mine = normalised(weights.double())[:, layer, head]
        found = self._fits(mine, numbers, prompts)
        found |= self._looks(mine, prompts)
        swap, model_slope, notes = self._swapped(numbers, prompts, layer, head)
        found |= swap
        found |= self._cut_below(numbers, prompts, mine, layer, head)
        routed, read = self._routes(prompts, heads)
        found |= routed
        whole = torch.full(weights.shape[1:3], torch.nan, dtype=torch.float64)
        columns = {}
        for name, ends in found.items():
            for end, values in zip(ENDS, ends, strict=False):
                columns[name + end] = whole.clone()
                columns[name + end][layer, head] = values.double()
        return Conditions(columns, model_slope, read, notes)

    def kernel_shares(
        self, heads: Sequence[HeadRef], numbers: Int[Tensor, " some"], effect: float
    ) -> dict[str, PerHead]:
        """What the values of these heads carry of the model's own kernel, Σ I_h I / Σ I² (I_h: its pair part), in all and directly;
        what of it new labels gain; what other demonstrations' edges bring of a label; and what hangs on which others there are.

        What is gained, and what hangs on others, is told of the direct part where that is surely above `effect`: what heads above
        make of a label is theirs.
        """
        if not heads:
            return {}
        found, wider, direct = carried_parts(
            self.model,
            self.influence,
            (Part(), Part(later=True), Part("direct")),
            heads=heads,
            carrier="values",
            offsets=self.offsets,
            prompts=numbers.tolist(),
            checkpoint=self.place("carried"),
            progress=self.progress,
        )
        shares = {"kernel_share": found.share("pair", level=self.level)}
        shares["direct_share"] = direct.share("pair", level=self.level)
        shares["others"] = found.others_share(wider, level=self.level)
        enough = shares["direct_share"][1] > effect
        in_all, directly = (one.gained_share(level=self.level) for one in (found, direct))
        shares["gained"] = _where(enough, directly, in_all)
        in_all, directly = self._in_other_company(heads, numbers, (found, direct))
        shares["company"] = _where(enough, directly, in_all)
        return {name + end: x for name, ends in shares.items() for end, x in zip(ENDS, ends, strict=True)}

    def _in_other_company(
        self, heads: Sequence[HeadRef], numbers: Int[Tensor, " some"], carried: Sequence[CarriedInfluence]
    ) -> list[Ends]:
        """How far the shares of demonstrations in each part that heads carry shift with half of the demonstrations changed, among
        those that stay."""
        prompts = self.influence.prompts.select(numbers.tolist())
        changed, stays = change_company(prompts, self.seed)
        put = ~self.influence.replaced[0, numbers].isnan().any(-1) & stays[..., None]
        if not put.any():
            unknown = torch.full_like(carried[0].values[0, ..., 0], torch.nan)
            return [(unknown, unknown, unknown)] * len(carried)
        moved = moved_by_edges(
            LabelEdges(editable(self.model), changed, put, tuple(sorted(self.offsets))),
            sorted(heads),
            "values",
            [Part(one.path) for one in carried],
            checkpoint=self.place("carried in other company"),
            progress=self.progress,
        )
        layer, head = torch.tensor([tuple(h) for h in sorted(heads)]).unbind(1)
        found: list[Ends] = []
        for one, after in zip(carried, moved.pull.unbind(1), strict=True):
            whole = torch.full_like(one.values, torch.nan)
            whole[:, layer, head] = after[:, :-1]
            found.append(self._mean(moved_apart(one.values, whole), prompts))
        return found

    def _fits(
        self, mine: Float[Tensor, "prompt head demo"], numbers: Int[Tensor, " prompt"], prompts: PromptSet
    ) -> dict[str, Any]:
        """Fit to I, its p-value with test inputs exchanged (the best of these heads), and the fit to another order's I."""
        w, target = varying_part(mine, prompts.demo_set), self.influence.pair()[numbers]
        r = fit(w, target)
        size = w.square().nansum((0, -1)).sqrt()
        null = exchanged(w, target, prompts.demo_set, seed=self.seed) / size
        p = tail(null.nan_to_num(nan=-torch.inf), together=True).masked_fill(r.correlation.isnan(), torch.nan)
        other = torch.full_like(r.by_prompt, torch.nan)
        if len(self.influence.places) > 1:
            other = fit(w, self.influence.pair(order=1)[numbers]).by_prompt
        ranked = fit(beyond_one_ranking(mine, prompts.demo_set), target)
        # Weights that are the same for all test inputs follow nothing.
        followed, ranked = (one.by_prompt.masked_fill(one.correlation.isnan(), 0.0) for one in (r, ranked))
        return {
            "fit": self._mean(followed, prompts),
            "within_labels": share_within(w, target, prompts.demo_labels, prompts.demo_set, self.level),
            "fit_p": (p,),
            "other_order": self._mean(other, prompts),
            "ranking_fit": self._mean(ranked, prompts),
        }

    def _looks(self, mine: Float[Tensor, "prompt head demo"], prompts: PromptSet) -> dict[str, Ends]:
        """How far weights change with the test input, and from what they are at each place on average."""
        other = next_of_set(prompts.demo_set)
        alone = (other == torch.arange(len(other)))[:, None]
        moved = total_variation(mine, mine[other]).masked_fill(alone, torch.nan)
        usual = by_position(mine, prompts.demo_set)
        even = torch.full_like(mine[:1], 1 / mine.shape[-1])
        return {
            "input_shift": self._mean(moved, prompts),
            "place_shift": self._mean(total_variation(mine, usual), prompts),
            "uneven": self._mean(total_variation(mine, even), prompts),
        }

    def _swapped(
        self, numbers: Int[Tensor, " prompt"], prompts: PromptSet, layer: Tensor, head: Tensor
    ) -> tuple[dict[str, Ends], float, tuple[str, ...]]:
        """Slopes of log weights, and of G, after the inputs of pairs were swapped."""
        swapped, pairs = swap_inputs(prompts, self.seed)
        some = (pairs >= 0).all(-1).any(-1)
        missing = torch.full((len(layer),), torch.nan)
        nothing: Ends = (missing, missing, missing)
        if not some.any():
            note = (
                "no two demonstrations of different classes have inputs of equally many tokens, so that whether weights go with "
                "inputs was not measured; draw prompts with task.prompts(..., match_lengths=True)"
            )
            return {"swap_slope": nothing, "behind_slope": nothing}, float("nan"), (note,)
        which = some.nonzero()[:, 0]
        few, changed, pairs = prompts.select(which.tolist()), swapped.select(which.tolist()), pairs[which]
        numbers = numbers[which]
        again = read_edges(self.model, changed, self.offsets, self.place("swapped"), self.progress)
        before, after = (
            w[:, layer, head].double().clamp(min=1e-12).log()
            for w in (self.weights[numbers], again.pooled(pooling_of(self.offsets)))
        )
        g_before = self.influence.values[numbers].double()
        g_after = self._pull_of_pairs(changed, pairs, again.label_scores)
        model = swap_slope(g_before, g_after, pairs, few.demo_set, level=self.level)
        made = {
            "swap_slope": swap_slope(before, after, pairs, few.demo_set, level=self.level),
            "behind_slope": swap_slope(before, after, pairs, few.demo_set, behind=1, level=self.level),
        }
        lost = len(prompts) - len(few)
        note = f"inputs could be swapped in {len(few)} of {len(prompts)} prompts" if lost else ""
        return made, float(model[0]), (note,) if note else ()

    def _pull_of_pairs(
        self, swapped: PromptSet, pairs: Int[Tensor, "prompt pair 2"], scores: Float[Tensor, "prompt label"]
    ) -> Float[Tensor, "prompt demo"]:
        """G of the demonstrations of the pairs in swapped prompts; NaN for all others."""
        chosen = torch.zeros(len(swapped), swapped.demos, dtype=torch.bool)
        flat = pairs.flatten(1)
        for number, demos in enumerate(flat.tolist()):
            chosen[number, [d for d in demos if d >= 0]] = True
        put = chosen[..., None] & interchangeable(swapped)
        prompt, demo, label = put.nonzero(as_tuple=True)
        labels = swapped.demo_labels[prompt].scatter(1, demo[:, None], label[:, None])
        found = answer(
            self.model,
            relabelled(swapped, prompt, labels),
            checkpoint=self.place("swapped and relabelled"),
            progress=self.progress,
        )
        replaced = torch.full((*put.shape, swapped.labels), torch.nan)
        replaced[put] = found
        return label_pull(scores, replaced, swapped.demo_labels).nanmean(-1).double()

    def _cut_below(
        self,
        numbers: Int[Tensor, " prompt"],
        prompts: PromptSet,
        mine: Float[Tensor, "prompt head demo"],
        layer: Tensor,
        head: Tensor,
    ) -> dict[str, Ends]:
        """What of the fit is left with the label edges of earlier layers cut, and how far that is above half of it."""
        cut = weights_cut_below(
            self.model, prompts, self.offsets, checkpoint=self.place("cut below"), progress=self.progress
        )
        target = self.influence.pair()[numbers]
        theirs = normalised(cut.double())[:, layer, head]
        whole, left = (fit(varying_part(x, prompts.demo_set), target) for x in (mine, theirs))
        # Weights that do not vary follow nothing.
        uncut, kept = (one.by_prompt.masked_fill(one.correlation.isnan(), 0.0) for one in (whole, left))
        return {
            "fit_cut_below": self._mean(kept, prompts),
            "beyond_half_fit": self._mean(kept - uncut / 2, prompts),
        }

    def _routes(self, prompts: PromptSet, heads: Sequence[HeadRef]) -> tuple[dict[str, Ends], Estimate]:
        """What of the label part goes with each head's label edges, by the way they are taken out; and with those of all heads."""
        every = every_head(as_adapter(self.model))
        routes = self._runs(prompts, [*([h] for h in heads), every], WAYS, "routes")
        sets = prompts.demo_set
        gone = share_removed(routes.left, routes.part, sets, self.level)
        lead = drop_share(routes.scores[0], routes.uncut[0], sets, self.level)
        found: dict[str, Ends] = {}
        for at, way in enumerate(WAYS):
            value, low, high = (x[:-1, at] for x in gone)
            found[way] = value, low, high
        for way in ("zeroed", "renormalised"):
            value, low, high = (x[:-1, WAYS.index(way)] for x in lead)
            found[f"lead_{way}"] = value, low, high
        return found, Estimate(*(float(x[-1, WAYS.index("zeroed")]) for x in gone))

    def together(
        self, sets: Sequence[Sequence[HeadRef]], numbers: Int[Tensor, " some"], name: str
    ) -> list[Estimate]:
        """The share of the label part that is gone with the values of each set of heads averaged over relabellings (transport)."""
        prompts = self.influence.prompts.select(numbers.tolist())
        routes = self._runs(prompts, sets, ("transport",), name)
        ends = share_removed(routes.left, routes.part, prompts.demo_set, self.level)
        return [Estimate(*(float(x[at, 0]) for x in ends)) for at in range(len(sets))]

    def _runs(
        self, prompts: PromptSet, sets: Sequence[Sequence[HeadRef]], ways: Sequence[Way], name: str
    ) -> Routes:
        runs = Relabelled.of(self.model, prompts, self.offsets, "model", progress=self.progress)
        return take_out(runs, sets, ways, checkpoint=self.place(name))

    def _mean(self, values: Tensor, prompts: PromptSet) -> Ends:
        return interval(values, prompts.demo_set, self.level)


def shares_sets(prompts: PromptSet, halves: Sequence[Int[Tensor, " _"]]) -> bool:
    """Whether at least `FEWEST` demonstration sets of each half have several test inputs."""
    several = [prompts.demo_set[half].unique(return_counts=True)[1] > 1 for half in halves]
    return all(int(sets.sum()) >= FEWEST for sets in several)


def _few_of_each(demo_set: Int[Tensor, " prompt"], half: Int[Tensor, " some"]) -> Int[Tensor, " few"]:
    """The first `EACH` prompts of each set of a half, in their own order; sets of one are left out."""
    kept: list[int] = []
    for group in demo_set[half].unique():
        members = half[demo_set[half] == group]
        kept += members[:EACH].tolist() if len(members) > 1 else []
    return torch.tensor(sorted(kept))


def pooling_of(offsets: tuple[int, ...]) -> Pooling:
    """The weights that go with these edges."""
    return "label" if offsets == (0,) else "edges"


def read_edges(
    model: Any, prompts: PromptSet, offsets: tuple[int, ...], checkpoint: Path | None, progress: bool
) -> Evidence:
    """A reading whose weights are of these edges."""
    keep: dict[str, Any] = {"keep": ("label",)} if offsets == (0,) else {"keep": (), "offsets": offsets}
    return read(model, prompts, **keep, checkpoint=checkpoint, progress=progress)
