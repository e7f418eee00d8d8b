"""Identifies heads by the model's own kernel: measures it, picks the heads to look at, and asks them the six conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.evidence.reading import answer
from icl_kernel_lens.influence.measure import label_influence
from icl_kernel_lens.interventions.coverage import LOSE
from icl_kernel_lens.interventions.label_routes import WAYS
from icl_kernel_lens.locate.classes import answered
from icl_kernel_lens.locate.conditions import (
    EACH,
    MOST,
    SETS,
    Conditions,
    Measurement,
    Sample,
    pooling_of,
    read_edges,
)
from icl_kernel_lens.numbers.intervals import ratio_mean, student_tail
from icl_kernel_lens.numbers.permutations import benjamini_hochberg
from icl_kernel_lens.prompts.corrupt_labels import shift_labels
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.prompts.swapped import MOST_PAIRS
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.results.criteria import Criteria
from icl_kernel_lens.results.evidence import Evidence
from icl_kernel_lens.results.head_ranking import IDENTIFYING
from icl_kernel_lens.results.joint_effects import JointEffect
from icl_kernel_lens.results.label_influence import LabelInfluence
from icl_kernel_lens.results.task_accuracy import TaskAccuracy
from icl_kernel_lens.run.progress import ROW, work

PerHead = Float[Tensor, "layer head"]
ORDERS = 2
FOLLOWING = 4
"""Heads that are expected to follow the kernel, for the estimate of time."""
MOST_TOGETHER = 8
"""Located heads of which every subset is measured together."""


@dataclass(frozen=True)
class Identified:
    """What is known of the heads beside votes and drops."""

    columns: Mapping[str, PerHead]
    """The columns `IDENTIFYING` of a ranking."""
    slope_of_model: float
    cancelling: frozenset[HeadRef]
    """Heads of which another undoes what they carry."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Identification:
    """The model's own kernel on a sample of the prompts, and how heads are held against it."""

    measurement: Measurement
    sample: Sample
    criteria: Criteria

    @classmethod
    def of(
        cls,
        model: Any,
        prompts: PromptSet,
        halves: tuple[Int[Tensor, " c"], Int[Tensor, " r"]],
        evidence: Evidence,
        accuracy: TaskAccuracy,
        *,
        offsets: tuple[int, ...],
        criteria: Criteria,
        seed: int,
        checkpoint: Path | None,
        progress: bool,
    ) -> Identification:
        """Measure label influence on some of the prompts, or on prompts crossed from them (`Sample.of`)."""
        sample = Sample.of(model, prompts, *halves)
        pooling = pooling_of(offsets)
        with work("the model's own kernel", [expected_kernel(sample.prompts)], progress):
            influence = label_influence(
                model,
                sample.prompts,
                orders=ORDERS,
                accuracy=None if sample.rows is None else accuracy.of_some(sample.rows, sample.prompts),
                seed=seed,
                checkpoint=checkpoint and checkpoint / "influence",
                progress=progress,
            )
            if sample.rows is None:
                place = checkpoint and checkpoint / "crossed"
                weights = read_edges(model, sample.prompts, offsets, place, progress).pooled(pooling)
            else:
                weights = evidence.pooled(pooling)[sample.rows]
        measurement = Measurement(
            model, influence, weights, offsets, seed, criteria.level, checkpoint, progress
        )
        return cls(measurement, sample, criteria)

    @property
    def influence(self) -> LabelInfluence:
        return self.measurement.influence

    def fitting(self) -> tuple[Bool[Tensor, "layer head"], dict[str, PerHead]]:
        """Heads whose weights follow the model's own kernel in the choosing half, and the numbers that say so."""
        r, p = self.measurement.fits_of_all(self.sample.choosing)
        return (p <= self.criteria.candidates) & (r > 0), {"fit": r, "fit_p": p}

    def carrying(
        self,
        prompts: PromptSet,
        choosing: Int[Tensor, " some"],
        cut: Float[Tensor, "some layer head label"],
        uncut: Float[Tensor, "some label"],
    ) -> tuple[Bool[Tensor, "layer head"], dict[str, PerHead]]:
        """Heads whose cut takes part of the label part with it in the choosing half, by share and p-value.

            Σ ⟨s − s', t⟩ / Σ ⟨t, t⟩        s' without the label edges of the head, under the prompts' own labels alone

        What else the edges bring does not go with t, and drops out on average. A head can carry labels to the answer without
        raising the model's own answer: its vote and that answer need not agree.
        """
        where, part = self._label_part(prompts, choosing)
        moved = uncut[where, None, None].double() - cut[where].double()
        shares = (moved * part[:, None, None].double()).sum(-1), part.double().square().sum(-1)
        share, error, used = ratio_mean(*shares, prompts.demo_set[choosing[where]])
        p = student_tail((share.abs() / error).nan_to_num(), used - 1) * 2
        p = benjamini_hochberg(p.clamp(max=1).masked_fill(share.isnan(), torch.nan).flatten())
        p = p.reshape(share.shape)
        chosen = (p <= self.criteria.candidates) & (share.abs() >= self.criteria.effect / 2)
        return chosen, {"label_part": share, "label_part_p_adjusted": p}

    def _label_part(
        self, prompts: PromptSet, choosing: Int[Tensor, " some"]
    ) -> tuple[Int[Tensor, " few"], Float[Tensor, "few label"]]:
        """Which of the choosing half's prompts, and their label parts: those of the sample, where it is of these prompts."""
        if self.sample.rows is not None:
            shifted = self.influence.shifted[self.sample.choosing]
            where = torch.searchsorted(choosing, self.sample.rows[self.sample.choosing])
            return where, shifted[:, 0] - shifted.mean(1)
        where = torch.arange(min(len(choosing), EACH * SETS))
        few, made = prompts.select(choosing[where].tolist()), self.measurement
        runs = [few, *(shift_labels(few, by, made.model) for by in range(1, few.labels))]
        scores = [
            answer(made.model, run, checkpoint=made.place(f"shifted by {by}"), progress=made.progress)
            for by, run in enumerate(runs)
        ]
        return where, scores[0] - torch.stack(scores).mean(0)

    def of_heads(self, heads: Sequence[HeadRef]) -> Identified:
        """The six conditions of these heads in the reporting half; and which of them undo one another."""
        shape = tuple(self.measurement.weights.shape[1:3])
        empty = {name: torch.full(shape, torch.nan, dtype=torch.float64) for name in IDENTIFYING}
        labels = self.influence.has_label_part
        if not heads or not labels:
            lacks = "the model's answer does not depend on labels, so that no head is held against its kernel"
            return Identified(empty, float("nan"), frozenset(), () if labels else (lacks,))
        few = self.sample.prompts.select(self.sample.reporting.tolist())
        with work("conditions", expected_conditions(few, len(heads)), self.measurement.progress):
            found = self.measurement.of(heads, self.sample.reporting)
            columns = empty | dict(found.columns)
            answers = answered(columns, found.slope_of_model, self.criteria)
            columns |= self.measurement.kernel_shares(
                self._may_carry(heads, answers), self.sample.reporting, self.criteria.effect
            )
        columns |= answered(columns, found.slope_of_model, self.criteria)
        notes = [*found.notes, *self._not_believed(columns, found)]
        return Identified(columns, found.slope_of_model, self._undone(columns), tuple(notes))

    def _may_carry(self, heads: Sequence[HeadRef], answers: Mapping[str, PerHead]) -> list[HeadRef]:
        """Heads whose share of the kernel part can decide what they are: they may follow it and carry labels, and there is one."""
        if not self.influence.has_kernel_part:
            return []
        may = torch.stack(
            [answers[name] != 0 for name in ("fits", "looks", "ranks", "transports", "no_echo")]
        ).all(0)
        return [head for head in heads if may[head]]

    def _not_believed(self, columns: dict[str, PerHead], found: Conditions) -> list[str]:
        """Takes back answers, in place, that rest on what cannot be told here; returns why."""
        notes: list[str] = []
        if not found.labels_read.value >= LOSE:
            notes.append(
                f"the label edges of all heads hold {found.labels_read} of the label part: labels enter elsewhere, too, so that "
                "an echo of what enters there is not told from a kernel"
            )
        if not self.influence.prompts.repeat_labels:
            notes.append(Reason.LABELS_ONCE.message)
        if notes:
            columns["no_echo"] = columns["no_echo"].masked_fill(columns["no_echo"] == 1, torch.nan)
        more = columns["transport_low"] > 1 + self.criteria.effect
        if not (columns["transports"] == -1).any():
            columns["transports"] = columns["transports"].masked_fill(more, torch.nan)
            notes += [f"{HeadRef(*at)}: {Reason.MORE_THAN_ALL.message}" for at in more.nonzero().tolist()]
        return notes

    def _undone(self, columns: Mapping[str, PerHead]) -> frozenset[HeadRef]:
        """Heads that follow the kernel and carry opposite parts, two of which together carry next to nothing."""
        follows, effect = columns["fits"] == 1, self.criteria.effect
        sides = [
            [HeadRef(*h) for h in (follows & (columns["transports"] == sign)).nonzero().tolist()]
            for sign in (1, -1)
        ]
        if not (pairs := list(product(*sides))):
            return frozenset()
        shares = self.measurement.together(pairs, self.sample.reporting, "opposed")
        undone = [
            pair
            for pair, share in zip(pairs, shares, strict=True)
            if share.low > -effect and share.high < effect
        ]
        return frozenset(head for pair in undone for head in pair)

    def together(self, heads: Sequence[HeadRef]) -> tuple[JointEffect, ...]:
        """What the located heads carry together: of every subset of up to eight of them, else of each alone and of all."""
        heads = list(heads)
        sizes = range(1, len(heads) + 1) if len(heads) <= MOST_TOGETHER else sorted({1, len(heads)})
        sets = [one for size in sizes for one in combinations(heads, size)]
        if not sets:
            return ()
        shares = self.measurement.together(sets, self.sample.reporting, "together")
        return tuple(JointEffect(one, *share) for one, share in zip(sets, shares, strict=True))


def candidates(
    selected: Mapping[str, Bool[Tensor, "layer head"]], fit: PerHead, drop: PerHead, part: PerHead
) -> list[HeadRef]:
    """At most `MOST` heads, in turns: those that fit best, those that carry most of the labels, those whose cuts cost most."""
    turns = (("fit", fit), ("carries", part.abs()), ("cut", drop.abs()))
    chosen = {name: selected[name] for name in ("fit", "carries")}
    chosen["cut"] = selected["votes"] | selected["matters"]
    ranked = []
    for name, size in turns:
        at = chosen[name].nonzero().tolist()
        ranked.append(sorted(map(tuple, at), key=lambda h, of=size: -float(of[h].nan_to_num(-1.0))))
    mixed: dict[tuple[int, int], None] = {}
    for place in range(max(map(len, ranked), default=0)):
        for one in ranked:
            if place < len(one):
                mixed[one[place]] = None
    return sorted(HeadRef(*h) for h in list(mixed)[:MOST])


def expected_kernel(prompts: PromptSet, each: int = EACH) -> float:
    """About how many tokens measuring the model's own kernel runs, with so many test inputs of each set."""
    demos, others = prompts.demos, prompts.labels - 1
    start = float(prompts.demo_spans[:, -1, 1].double().mean())
    tail = float((prompts.answer_pos + 1).double().mean()) - start
    few = min(len(prompts), each * len(prompts.demo_set.unique()))
    # Of a set, what stands behind a replaced label is run again once, and each test input behind each replacement.
    return ORDERS * demos * others * few * (tail + start / 2 / each)


def expected_conditions(prompts: PromptSet, heads: int = MOST) -> list[float]:
    """About how many tokens the six conditions of so many heads run, one after the other."""
    demos, others = prompts.demos, prompts.labels - 1
    length = float(prompts.lengths.double().mean())
    once = len(prompts) * length / min(EACH, 2)
    routes = once + ROW * len(WAYS) * (heads + 1) * len(prompts)
    swapped = once * min(demos, 2 * MOST_PAIRS) * others / 4
    # What is carried, and behind replaced labels the demonstrations, once for each set; then in other company.
    carried = once + 9 * ROW * FOLLOWING * demos * others * len(prompts)
    carried += demos * others * length / 2 * len(prompts.demo_set.unique())
    elsewhere = once + 6 * ROW * FOLLOWING * demos * others * len(prompts)
    return [once, swapped, once, *[routes] * prompts.labels, carried, elsewhere]
