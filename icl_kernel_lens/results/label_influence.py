"""Holds the model's own kernel: how far each demonstration's label pulls the answer, and what can be said of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Literal, NamedTuple, get_args

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.axes import Head, HeadRef, Pooling, Reference, check_reference
from icl_kernel_lens.charts.figure import Figure
from icl_kernel_lens.charts.influence import additivity_figure, influence_figure, prompt_figure
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.fields import unit
from icl_kernel_lens.models.adapter import ModelAdapter
from icl_kernel_lens.numbers.groups import first_half, numbered
from icl_kernel_lens.numbers.influence import (
    Additivity,
    Estimate,
    additivity,
    centred_over_set,
    exchanged,
    exchanged_demos,
    label_gain,
    label_pull,
    negative_again,
    negative_share,
    pair_part,
    pair_products,
    ratio_estimate,
    tail,
    variance_whole,
)
from icl_kernel_lens.numbers.intervals import cluster_t
from icl_kernel_lens.numbers.logits import logit_difference
from icl_kernel_lens.numbers.votes import normalised
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.results.base import Result, broken
from icl_kernel_lens.results.evidence import Evidence, other_weights
from icl_kernel_lens.results.run_info import RunInfo
from icl_kernel_lens.results.task_accuracy import TaskAccuracy

Scale = Literal["log_odds", "probability"]
"""What label scores are compared on: log-odds (label scores as they are), or probabilities over the labels."""
SCALES: tuple[Scale, ...] = get_args(Scale)
UNITS: Mapping[Scale, str] = {"log_odds": "logits", "probability": "probability"}
Pattern = Literal["pair", "half", "all"]
"""Which labels are replaced together: those of two demonstrations, of half of them, or of all."""

ROUNDING = 1e-9
"""Of the square of G; a pair part below this share of it is rounding, in which exchanges see differences all the same."""
LEAST_KERNEL = 0.01
"""The smallest kernel part of interest: below it, heads carry next to nothing of the answer's dependence on labels."""
MUCH = 0.05
"""A kernel part whose interval reaches above this may be no small one."""
LEAST_LABELS = 0.01
"""The smallest share of the label scores' spread that is worth the name of a label part."""
LEAST_ADDITIVE = 0.5
"""If R² surely lies below this, what demonstrations do together is not the sum of what each does."""
LEAST_GAINED = 0.25
"""Half of the share that a replacement label gains in a kernel regression: surely below it, or above 1 minus it, labels do not
stand in for one another."""
MOST_AT_ONE_PLACE = 0.4
"""With more of the influence than this at the last (or first) place, and surely twice its even part, it is a habit."""
MOST_SHOWN = 12
"""Heads whose weights stand below one another in a figure."""


class KernelPart(NamedTuple):
    """How much of the influence's variance belongs to pairs of test input and demonstration."""

    within: Estimate
    """Σ I² / Σ (G − Ḡ)² in one order: it includes what the place does to the pair, and noise; never 0."""
    across: Estimate
    """Σ I · I′ / Σ (G − Ḡ)², I′ of another order of the same demonstrations; NaN with one order."""
    null: float
    """The 95 % point of `across` with I′ of other test inputs, or of other demonstrations, of the same set: the larger one."""
    p: float
    """P(across under such exchanges ≥ across), the larger of both: the test inputs', and the demonstrations'."""
    undefined: Reason | None = None

    @property
    def found(self) -> Literal["none", "tiny", "real", "undetermined"]:
        """none: the null is not rejected (p > 0.05). real: the interval lies above `LEAST_KERNEL`. Else tiny, as far as is known."""
        if self.undefined is not None:
            return "undetermined"
        if not (self.p <= 0.05 and self.across.value > 0):
            return "none"
        return "real" if self.across.low >= LEAST_KERNEL else "tiny"


@dataclass(frozen=True, eq=False, repr=False)
class LabelInfluence(Result):
    """Label scores of prompts with their own labels and with replaced ones, and what these say of the model's own kernel.

    The first order is that of the prompts; further orders show the same demonstrations at other places. Demonstrations are
    numbered as in the first.
    """

    main = "replaced"
    made_by = "Measure it: label_influence(model, prompts)."

    prompts: PromptSet
    scores: Float[Tensor, "order prompt label"] = field(metadata=unit("logits"))
    """With the labels as they are."""
    replaced: Float[Tensor, "order prompt demo replacement label"] = field(metadata=unit("logits"))
    """With one demonstration's label replaced; NaN where it is its own, has another length, or was not drawn."""
    places: Int[Tensor, "order prompt demo"]
    """Where each demonstration stands, from 0."""
    shifted: Float[Tensor, "prompt shift label"] = field(metadata=unit("logits"))
    """With the classes of all demonstrations shifted by 0, 1, …: the relabellings that the label part is taken over."""
    patterns: tuple[Pattern, ...]
    pattern_labels: Int[Tensor, "pattern prompt demo"]
    """The labels under each joint replacement."""
    joint: Float[Tensor, "pattern prompt label"] = field(metadata=unit("logits"))
    """Scores under them; NaN for prompts that were not run so."""
    accuracy: TaskAccuracy
    """Whether there is anything to explain: what is said first."""
    run: RunInfo
    seed: int = 0
    settings: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What must be said beside the numbers."""

    def _problems(self) -> Iterator[str]:
        prompts, labels = self.prompts, self.prompts.labels
        orders, _, demos = self.places.shape
        own = torch.nn.functional.one_hot(prompts.demo_labels, labels).bool()
        return broken(
            {
                f"there must be scores of {len(prompts)} prompts and {labels} labels": (
                    self.scores.shape[1:] == (len(prompts), labels)
                    and self.replaced.shape[3:] == (labels, labels)
                    and self.shifted.shape[1:] == (labels, labels)
                ),
                f"there are {prompts.demos} demonstrations, and places of {demos}": demos == prompts.demos,
                "every demonstration must stand at one place": bool(
                    (self.places.sort(-1).values == torch.arange(demos)).all()
                ),
                "the first order must be the prompts' own": bool(
                    (self.places[0] == torch.arange(demos)).all()
                ),
                "scores of the prompts as they are must be finite": bool(
                    self.scores.isfinite().all() and self.shifted.isfinite().all()
                ),
                "no demonstration's label can be replaced by itself": bool(
                    self.replaced[:, own].isnan().all()
                ),
                "one demonstration at least must have a label that was replaced": not bool(
                    self.replaced.isnan().all()
                ),
                f"patterns must be named, one each; there are {len(self.patterns)} names": (
                    len(self.patterns) == len(self.joint)
                ),
                "labels of joint replacements must be classes": bool(
                    ((self.pattern_labels >= 0) & (self.pattern_labels < labels)).all()
                ),
                "orders must be some": orders > 0,
            }
        )

    # --- the kernel -------------------------------------------------------------------------------------------------

    @property
    def demo_set(self) -> Int[Tensor, " prompt"]:
        """Prompts with the same number show the same demonstrations."""
        return self.prompts.demo_set

    @property
    def values(self) -> Float[Tensor, "prompt demo"]:
        """G in log-odds in the prompts' own order, the mean over replacement labels; NaN where none could be put."""
        return self.influence()

    @checked
    def influence(self, scale: Scale = "log_odds", order: int = 0) -> Float[Tensor, "prompt demo"]:
        """G, the mean over replacement labels, demonstrations numbered as in the prompts whatever the order."""
        return self.by_label(scale, order).nanmean(-1)

    @checked
    def by_label(self, scale: Scale = "log_odds", order: int = 0) -> Float[Tensor, "prompt demo replacement"]:
        """G of each replacement label; NaN for a demonstration's own.

        Raises: ResultError: there is no such order.
        """
        if not 0 <= order < len(self.places):
            raise ResultError(
                f"demonstrations were shown in orders 0 to {len(self.places) - 1}; got order {order}. Measure more of them: "
                "label_influence(model, prompts, orders=3).",
                code="number-range",
            )
        on = _on(scale)
        return label_pull(on(self.scores[order]), on(self.replaced[order]), self.prompts.demo_labels)

    @checked
    def gained(self) -> Estimate:
        """Σ G⁺ G / Σ G², G⁺ what of G the replacement label gains (`numbers.influence.label_gain`); in log-odds.

        ½ in a kernel regression: what a label that goes takes away, the one that comes brings. 0 where a demonstration counts
        only with the label that the model expects of its input: other labels silence it, and no label is learned. Always ½ with
        two labels, where such an answer is half a kernel regression beside what the inputs alone say.
        """
        pull = self.influence().double()
        gain = label_gain(self.scores[0], self.replaced[0], self.prompts.demo_labels).double().nanmean(-1)
        return ratio_estimate((pull * gain).nansum(-1), pull.square().nansum(-1), self.demo_set)

    @checked
    def pair(self, scale: Scale = "log_odds", order: int = 0) -> Float[Tensor, "prompt demo"]:
        """I, what of G belongs to the pair of test input and demonstration (`numbers.influence.pair_part`)."""
        return pair_part(self.influence(scale, order), self.demo_set)

    @property
    def shares_sets(self) -> bool:
        """Whether any prompts share their demonstrations, so that the test input alone varies."""
        return bool((numbered(self.demo_set).bincount() > 1).any())

    def check_of(self, adapter: ModelAdapter) -> None:
        """Refuse to stand for another model.

        Raises: ResultError.
        """
        theirs = (adapter.name, adapter.kind, adapter.shape.layers, adapter.shape.heads)
        if (self.run.model, self.run.kind, self.run.layers, self.run.heads) != theirs:
            raise ResultError(
                f"influence must be of this model, {adapter.name} ({adapter.kind}); it is of {self.run.model} "
                f"({self.run.kind}). Measure it: label_influence(model, prompts).",
                code="influence-of-others",
            )

    def check_scores(self, numbers: Int[Tensor, " some"], found: Float[Tensor, "some label"]) -> None:
        """Refuse to stand for other weights under the same name, which give other label scores.

        Raises: ResultError.
        """
        if (off := other_weights(self.scores[0], numbers, found, self.run)) is not None:
            raise ResultError(
                f"influence must be of this model; its label scores differ from the model's by {off:.0%} of their spread. Is it "
                "of another checkpoint? Measure it anew: label_influence(model, prompts).",
                code="influence-of-others",
            )

    def check_evidence(self, evidence: Evidence) -> None:
        """Refuse evidence of other prompts, another model or other weights, or that shares its sets otherwise.

        Raises: ResultError.
        """
        mine, theirs = ((r.model, r.kind, r.revision, r.layers, r.heads) for r in (self.run, evidence.run))
        if not self.prompts.same_as(evidence.prompts) or mine != theirs:
            raise ResultError(
                f"influence and evidence must be of the same prompts and the same model; they are of {len(self.prompts)} "
                f"prompts of {self.run.model} and {len(evidence.prompts)} of {evidence.run.model}. Read these prompts: "
                "read(model, influence.prompts).",
                code="evidence-of-others",
            )
        if not torch.equal(numbered(self.demo_set), numbered(evidence.prompts.demo_set)):
            raise ResultError(
                "influence and evidence must agree in which prompts share demonstrations; their demo_set differ. Read "
                "influence.prompts.",
                code="evidence-of-others",
            )
        evidence.check_scores(torch.arange(len(evidence.prompts)), self.scores[0])

    @cached_property
    def has_label_part(self) -> bool:
        """Whether there is a label part to take shares of."""
        return not self.label_share().high < LEAST_LABELS

    @cached_property
    def has_kernel_part(self) -> bool:
        """Whether heads could be part of a kernel: labels matter to the answer, and the null of the kernel part is rejected."""
        return self.has_label_part and self.kernel_part().found in ("real", "tiny")

    # --- what is measured of it ---------------------------------------------------------------------------------------

    @cached_property
    def scale(self) -> Scale:
        """The scale on which replacements add up better, on the choosing half of the demonstration sets."""
        half = first_half(self.demo_set, seed=self.seed) if len(self.demo_set.unique()) > 1 else None
        r2 = {scale: self._additivity(scale, range(len(self.patterns)), half).r2.value for scale in SCALES}
        return max(SCALES, key=lambda scale: r2[scale] if r2[scale] == r2[scale] else -torch.inf)

    @checked
    def label_part(self, against: Reference = "model") -> Estimate:
        """The mean of t = s(own labels) − mean over Π of s, in logits, as the reference class minus the mean of the others.

        The model's own answer leans towards what t says, so that `against="model"` is 0 only where labels do nothing.
        """
        part, _ = self._parts()
        values = logit_difference(part, self._reference(against))
        low, high = cluster_t(values, self.demo_set)
        return Estimate(float(values.double().mean()), float(low), float(high))

    def label_share(self) -> Estimate:
        """Σ |t|² / Σ |s − s̄|²: how much of the label scores' spread within prompts the labels make (above 1: against the rest)."""
        part, _ = self._parts()
        whole = self.scores[0].double()
        whole = whole - whole.mean(-1, keepdim=True)
        return ratio_estimate(part.double().square().sum(-1), whole.square().sum(-1), self.demo_set)

    @checked
    def prior(self, against: Reference = "model") -> Estimate:
        """The mean over Π of the label scores, as the reference class minus the mean of the others: what labels do not touch."""
        _, prior = self._parts()
        values = logit_difference(prior, self._reference(against))
        low, high = cluster_t(values, self.demo_set)
        return Estimate(float(values.double().mean()), float(low), float(high))

    def _parts(self) -> tuple[Float[Tensor, "prompt label"], Float[Tensor, "prompt label"]]:
        prior = self.shifted.mean(1)
        return self.shifted[:, 0] - prior, prior

    def _reference(self, against: Reference) -> Int[Tensor, " prompt"]:
        check_reference(against)
        truth = self.prompts.test_labels
        if against == "truth" and truth is None:
            raise ResultError(
                'against="truth" needs true labels; these prompts have none. Pass test_labels to PromptSet.from_tokens, or '
                'against="model".',
                code="no-truth",
            )
        return self.scores[0].argmax(-1) if against == "model" or truth is None else truth

    @checked
    def additivity(self, scale: Scale = "log_odds", pattern: Pattern | None = None) -> Additivity:
        """How well the effect of replacing several labels is the sum of the single effects, over all label scores.

        R² = 1 − Σ |observed − sum|² / Σ |observed|², about 0; slope of observed on sum. Vectors of label scores centred over
        labels; of one kind of pattern, or of all.
        """
        which = [at for at, name in enumerate(self.patterns) if pattern in (None, name)]
        return self._additivity(scale, which)

    def _additivity(self, scale: Scale, which: Sequence[int], half: Tensor | None = None) -> Additivity:
        observed, summed = self.joint_effects(scale)
        which = list(which)
        some = slice(None) if half is None or observed[which][:, half].isnan().all() else half
        return additivity(observed[which][:, some], summed[which][:, some], self.demo_set[some])

    @checked
    def joint_effects(
        self, scale: Scale = "log_odds"
    ) -> tuple[Float[Tensor, "pattern prompt label"], Float[Tensor, "pattern prompt label"]]:
        """Effects of joint replacements on the label scores, observed, and as the sum of single ones; NaN where not run."""
        on = _on(scale)
        before = on(self.scores[0])
        single = on(self.replaced[0]) - before[:, None, None]
        index = self.pattern_labels[..., None, None].expand(-1, -1, -1, 1, self.prompts.labels)
        chosen = single.expand(len(self.patterns), *single.shape).gather(3, index)[..., 0, :]
        same = (self.pattern_labels == self.prompts.demo_labels)[..., None]
        summed = chosen.masked_fill(same, 0).sum(2)
        return on(self.joint) - before, summed

    @checked
    def negative(self, scale: Scale = "log_odds") -> tuple[Estimate, Estimate]:
        """The share of |G| that is negative in the first order, and what of it another order confirms (NaN with one order)."""
        one = self.influence(scale)
        if len(self.places) < 2:
            nan = float("nan")
            return negative_share(one, self.demo_set), Estimate(nan, nan, nan)
        return negative_share(one, self.demo_set), negative_again(
            one, self.influence(scale, 1), self.demo_set
        )

    @checked
    def kernel_part(self, scale: Scale = "log_odds") -> KernelPart:
        """How much of the variance of G belongs to pairs of test input and demonstration, within an order and across orders.

            within    Σ I² / Σ (G − Ḡ)²,      across    Σ I · I′ / Σ (G − Ḡ)²

        sums over prompts and demonstrations, Ḡ the mean of all; I′ of another order, matched by demonstration, so that place
        and noise drop out and it can be below 0. With several orders the mean over them, and over pairs of them. p is the larger of
        two: the test inputs of I′ exchanged within sets, and its demonstrations, the same way for all test inputs of a set, which
        alone is exact for what hangs on place and test input without the pair. The null has the larger 95 % point.
        """
        nan = Estimate(*[float("nan")] * 3)
        if not self.shares_sets:
            return KernelPart(nan, nan, float("nan"), float("nan"), Reason.NO_SHARED_SETS)
        orders = range(len(self.places))
        pairs = [self.pair(scale, order) for order in orders]
        wholes = torch.stack([variance_whole(self.influence(scale, order)) for order in orders])
        whole = wholes.mean(0)
        own = torch.stack([pair_products(one, one) for one in pairs]).mean(0)
        within = ratio_estimate(own, whole.masked_fill(own.isnan(), torch.nan), self.demo_set)
        if len(pairs) < 2:
            return KernelPart(within, nan, float("nan"), float("nan"), Reason.ONE_ORDER)
        both = list(combinations(range(len(pairs)), 2))
        other = torch.stack([pair_products(pairs[a], pairs[b]) for a, b in both]).mean(0)
        across = ratio_estimate(other, whole.masked_fill(other.isnan(), torch.nan), self.demo_set)
        size = whole.masked_fill(other.isnan(), torch.nan).nansum()
        nulls = [
            torch.stack(
                [way(pairs[a], pairs[b], self.demo_set, seed=self.seed + n) for n, (a, b) in enumerate(both)]
            ).mean(0)
            for way in (exchanged, exchanged_demos)
        ]
        size_of_all = sum(float(self.influence(scale, order).double().square().nansum()) for order in orders)
        if not own.nansum() > ROUNDING * size_of_all / len(pairs):
            return KernelPart(within, across, 0.0, 1.0)
        point = max(float((draws[1:] / size).quantile(0.95)) for draws in nulls)
        return KernelPart(within, across, point, max(float(tail(draws)) for draws in nulls))

    @checked
    def profile(self, scale: Scale = "log_odds") -> pd.DataFrame:
        """The mean of G at each place, with its interval, in every order."""
        rows = []
        for order, places in enumerate(self.places):
            at_place = self._by_place(scale, order, places)
            low, high = cluster_t(at_place, self.demo_set)
            mean = at_place.double().nanmean(0)
            rows += [
                {"order": order, "place": place, "influence": m, "low": a, "high": b}
                for place, (m, a, b) in enumerate(
                    zip(mean.tolist(), low.tolist(), high.tolist(), strict=True)
                )
            ]
        return pd.DataFrame(rows)

    @checked
    def at_place(self, place: int, scale: Scale = "log_odds") -> Estimate:
        """The share Σ G at a place / Σ_i ± G at place i, ± the sign of its mean, in the first order; −1 is the last place.

        Demonstrations without a replacement count as the mean at their place.

        Raises: ResultError: there is no such place.
        """
        demos = self.prompts.demos
        if not -demos <= place < demos:
            raise ResultError(
                f"a place is counted from 0 to {demos - 1}, or from the last, −1, to −{demos}; got {place}.",
                code="number-range",
            )
        values = self._by_place(scale, 0, self.places[0]).double()
        # Missing ones are as those at their place are in the mean, so that no place gains or loses by them.
        values = torch.where(values.isnan(), values.nanmean(0), values).nan_to_num()
        whole = (values * values.mean(0).sign()).sum(1)
        return ratio_estimate(values[:, place], whole, self.demo_set)

    def _by_place(self, scale: Scale, order: int, places: Int[Tensor, "prompt demo"]) -> Tensor:
        return torch.zeros_like(places, dtype=torch.float32).scatter(
            1, places, self.influence(scale, order).float()
        )

    @checked
    def compares(
        self, kernels: Mapping[str, Float[Tensor, "prompt demo"]], scale: Scale = "log_odds"
    ) -> pd.DataFrame:
        """How much of I given kernels explain, each alone and all together, on demonstration sets held out.

        I (the mean over orders) is regressed on each kernel's own pair part; fitted on one half of the sets and measured on the
        other, both ways: R² = 1 − Σ (I − fitted)² / Σ I², about 0, with its interval between sets. It can be below 0.
        Does not show: that the model computes the kernel; kernels that are alike explain alike.

        Raises: ResultError: no two prompts share their demonstrations, or there is one set alone; no kernel, or one of
                another shape.
        """
        if not self.shares_sets:
            raise ResultError(
                "kernels are compared within demonstration sets, and no two of these prompts share one. Draw prompts with "
                "task.prompts(..., sets=32).",
                code="not-comparable",
            )
        if not kernels:
            raise ResultError(
                'kernels must name at least one, such as {"same class": similarity}; got none.',
                code="not-comparable",
            )
        if len(self.demo_set.unique()) < 2:
            raise ResultError(
                "kernels are fitted on one half of the demonstration sets and measured on the other; all of these prompts are "
                "of one set. Draw prompts with task.prompts(..., sets=32).",
                code="not-comparable",
            )
        shape = (len(self.prompts), self.prompts.demos)
        for name, kernel in kernels.items():
            if kernel.shape != shape:
                raise ResultError(
                    f"a kernel must have a weight for each of {shape[0]} prompts and {shape[1]} demonstrations; {name!r} has "
                    f"shape {tuple(kernel.shape)}.",
                    code="not-comparable",
                )
        target = torch.stack([self.pair(scale, order) for order in range(len(self.places))]).mean(0)
        parts = {name: pair_part(kernel.double(), self.demo_set) for name, kernel in kernels.items()}
        half = first_half(self.demo_set, seed=self.seed)
        alone = {name: [part] for name, part in parts.items()}
        asked = alone | ({"together": list(parts.values())} if len(parts) > 1 else {})
        rows = []
        for name, xs in asked.items():
            r2 = _held_out(torch.stack(xs, -1), target, half, self.demo_set)
            rows.append({"kernel": name, "r2": r2.value, "low": r2.low, "high": r2.high})
        return pd.DataFrame(rows)

    # --- what is shown ------------------------------------------------------------------------------------------------

    @checked
    def figure(self, demo_set: int | None = None) -> Figure:
        """G within one demonstration set, demonstrations × test inputs, beside its mean at each place over all prompts.

        Without `demo_set`, the set in which G varies most with the test input: the clearest of them, not a typical one.

        Raises: ResultError: no prompt is of this set.
        """
        chosen = self._varies_most() if demo_set is None else demo_set
        members = (self.demo_set == chosen).nonzero()[:, 0].tolist()
        if not members:
            raise ResultError(
                f"a demonstration set has a number from {int(self.demo_set.min())} to {int(self.demo_set.max())} that some "
                f"prompt bears (.demo_set); no prompt is of set {chosen}.",
                code="number-range",
            )
        prompts, answers = self.prompts, self.scores[0].argmax(-1).tolist()
        truth = None if prompts.test_labels is None else prompts.test_labels.tolist()
        shown = f"set {chosen} of {len(self.demo_set.unique())}"
        if demo_set is None:
            shown += ", in which G varies most" + " with the test input" * self.shares_sets
        return influence_figure(
            self._shown_demos(members),
            [
                {
                    "prompt": p,
                    "answer": self._word(p, answers[p]),
                    "rank": answers[p],
                    "truth": "not known" if truth is None else self._word(p, truth[p]),
                }
                for p in members
            ],
            self.values[members].tolist(),
            [row for row in self.profile().to_dict("records") if row["order"] == 0],
            classes=prompts.labels,
            of=self.run.about,
            about=f"{len(prompts)} prompts of {prompts.demos} demonstrations; G in logits",
            shown=shown,
        )

    def _varies_most(self) -> int:
        """The set in which G varies most: with the test input, or where no two prompts share one, over demonstrations."""
        moved = centred_over_set(self.values, self.demo_set)[0] if self.shares_sets else self.values
        spread = moved.square().nanmean(-1).nan_to_num(nan=-torch.inf)
        groups = self.demo_set.unique()
        means = torch.stack([spread[self.demo_set == group].mean() for group in groups])
        return int(groups[means.argmax()])

    def _word(self, prompt: int, label: int) -> str:
        """A class's label word in a prompt, as it is shown."""
        words = self.prompts.label_words
        return (words[prompt][label].strip() if words else "") or f"class {label}"

    def _shown_demos(self, members: Sequence[int]) -> list[dict[str, str | int]]:
        """The demonstrations of prompts that share them, in reading order: label word, class, and text where it is kept."""
        prompts, first = self.prompts, members[0]
        kept = [p for p in members if p < len(prompts.strings)]
        texts = prompts.demo_texts(kept[0]) if kept else ("not kept",) * prompts.demos
        return [
            {
                "word": self._word(first, label),
                "rank": label,
                "text": text if len(text) <= 200 else f"{text[:199]}…",
            }
            for label, text in zip(prompts.demo_labels[first].tolist(), texts, strict=True)
        ]

    @checked
    def prompt_figure(
        self,
        evidence: Evidence,
        heads: Sequence[Head | str],
        prompt: int = 0,
        *,
        pooling: Pooling = "label",
        scale: Scale = "log_odds",
    ) -> Figure:
        """G in one prompt, and heads' kernel weights on the same demonstrations, each over its own scale.

        A head that does what the model does shows G's profile. What all test inputs of a set have in common shows, too, and
        is no sign of a kernel: `influence_fidelity` leaves it out.

        Raises: ResultError: the evidence is of other prompts or another model; no such prompt or head, too many heads.
                EvidenceMissing: it was read without this pooling.
        """
        refs = HeadRef.each(heads)
        self.check_evidence(evidence)
        if not 0 <= prompt < len(self.prompts):
            raise ResultError(
                f"there are prompts 0 to {len(self.prompts) - 1}; got prompt {prompt}.", code="number-range"
            )
        if not 0 < len(refs) <= MOST_SHOWN:
            raise ResultError(
                f"the figure shows 1 to {MOST_SHOWN} heads; got {len(refs)}.", code="number-range"
            )
        weights = evidence.pooled(pooling)[prompt]
        layers, total = weights.shape[:2]
        for ref in refs:
            if not (0 <= ref.layer < layers and 0 <= ref.head < total):
                raise ResultError(
                    f"there is no head {ref}; layers run to {layers - 1}, heads to {total - 1}.",
                    code="head-outside",
                )
        truth = self.prompts.test_labels
        says = (
            f"prompt {prompt}: the model answers {self._word(prompt, int(self.scores[0, prompt].argmax()))}"
        )
        if truth is not None:
            says += f", the true label is {self._word(prompt, int(truth[prompt]))}"
        return prompt_figure(
            self._shown_demos([prompt]),
            self.influence(scale)[prompt].tolist(),
            {
                f"{ref}: kernel weights; attention on the demonstrations {float(weights[ref].sum()):.2f}": (
                    normalised(weights[ref].double()).tolist()
                )
                for ref in refs
            },
            classes=self.prompts.labels,
            of=self.run.about,
            about=[says],
            unit=UNITS[scale],
            short=f"label influence and heads: {self.run.about}, prompt {prompt}",
        )

    @checked
    def additivity_figure(self, scale: Scale | None = None) -> Figure:
        """The effect of joint replacements on the model's own answer against the sum of the single effects.

        One point a prompt and replacement: the score of the answer that the model gives with its own labels, minus the mean of
        the others'. Without `scale`, that on which replacements add up better. R² is of all label scores (`.additivity`).
        """
        scale = self.scale if scale is None else scale
        observed, summed = (
            logit_difference(effect, self._reference("model")) for effect in self.joint_effects(scale)
        )
        known = ~(observed + summed).isnan()
        points = [
            {
                "pattern": self.patterns[at],
                "prompt": p,
                "summed": float(summed[at, p]),
                "observed": float(observed[at, p]),
            }
            for at, p in known.nonzero().tolist()
        ]
        found = self.additivity(scale)
        return additivity_figure(
            points,
            {
                name: f"{self.additivity(scale, name).r2.value:.2f}"
                for name in get_args(Pattern)
                if any(point["pattern"] == name for point in points)
            },
            title=f"Do single effects add up? R² {found.r2}, slope {found.slope}",
            of=self.run.about,
            about=f"{int(known.any(0).sum())} prompts; effects on the model's answer minus the mean of the others",
            unit=UNITS[scale],
        )

    # --- what is said -------------------------------------------------------------------------------------------------

    def verdict(self) -> str:
        """One sentence: what kind of answer this is."""
        kernel, best = self.kernel_part(), self.additivity(self.scale).r2
        if not self.has_label_part:
            return (
                f"No dependence on labels: they make {self.label_share()} of the spread of the label scores."
            )
        if best.high < LEAST_ADDITIVE:
            said = f"Not additive: sums of single effects give R² {best} of joint ones"
        else:
            said = self._weighted(kernel, best)
        return f"{said}; {self._kernel_words(kernel)}."

    def _weighted(self, kernel: KernelPart, additivity: Estimate) -> str:
        """What labels are weighted by, and whether they add up."""
        adds = additivity.low >= LEAST_ADDITIVE
        open_ = "" if adds else f"; whether they add up is not known (R² {additivity})"
        gained = self.gained()
        if gained.high < LEAST_GAINED or gained.low > 1 - LEAST_GAINED:
            return (
                f"Labels do not stand in for one another: one put in another's place gains {gained} of its influence "
                "(½ in a kernel regression)"
            )
        if kernel.found == "real":
            what = "weighted by pairs of test input and demonstration"
            return f"Kernel regression: labels add up, {what}" if adds else f"Labels {what}{open_}"
        for place, name in ((-1, "last"), (0, "first")):
            share = self.at_place(place)
            if share.value > MOST_AT_ONE_PLACE and share.low > 2 / self.prompts.demos:
                return f"Habit of the {name} label: its place has {share} of the influence"
        if kernel.found == "none" or (kernel.found == "tiny" and kernel.across.high < MUCH):
            what = "hardly by what the test input is"
            return f"Even vote: labels add up, and {what}" if adds else f"Labels weighted {what}{open_}"
        return "Labels add up" if adds else f"Labels matter{open_}"

    def _kernel_words(self, kernel: KernelPart) -> str:
        match kernel.found:
            case "undetermined":
                return f"the kernel part is undetermined, as {kernel.undefined}"
            case "none":
                return (
                    f"no kernel part was found ({kernel.across} across orders, p = {kernel.p:.3g}), so that there is no kernel "
                    "regression to locate on this task"
                )
            case "tiny":
                what = "real and tiny" if kernel.across.high < MUCH else "real, and its size is not known"
                return f"the kernel part is {what}, {kernel.across} of the variance (p = {kernel.p:.2g})"
        return f"the kernel part is {kernel.across} of the variance (p = {kernel.p:.2g})"

    @checked
    def summary(self) -> pd.DataFrame:
        """One row a number that describes the model's kernel, with its interval between demonstration sets."""
        rows: list[tuple[str, str, Estimate | float]] = [
            ("label part, towards the model's answer", "logits", self.label_part()),
        ]
        if self.prompts.test_labels is not None:
            rows.append(("label part, towards the truth", "logits", self.label_part("truth")))
        rows += [
            ("prior, towards the model's answer", "logits", self.prior()),
            ("label part's share of the spread", "share", self.label_share()),
        ]
        for scale in SCALES:
            of = f"{UNITS[scale]}" + (", the better on one half" if scale == self.scale else "")
            found = self.additivity(scale)
            rows += [("additivity R²", of, found.r2), ("additivity slope", of, found.slope)]
        rows += [("gained by the label put in", "share", self.gained())]
        negative, again = self.negative()
        rows += [("negative share of |G|", "share", negative), ("negative in both orders", "share", again)]
        for scale in SCALES:
            kernel = self.kernel_part(scale)
            rows += [
                ("kernel part within an order", UNITS[scale], kernel.within),
                ("kernel part across orders", UNITS[scale], kernel.across),
                ("null of the latter, 95 %", UNITS[scale], kernel.null),
                ("p of the latter", UNITS[scale], kernel.p),
            ]
        rows += [("influence at the last place", "share", self.at_place(-1))]
        rows += [("influence at the first place", "share", self.at_place(0))]
        nan = float("nan")
        return pd.DataFrame(
            [(name, of, *(x if isinstance(x, Estimate) else (x, nan, nan))) for name, of, x in rows],
            columns=["what", "on", "value", "low", "high"],
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Long form: order, prompt, demo, its place and label, and the influence on both scales."""
        frames = []
        for order in range(len(self.places)):
            values = {scale: self.influence(scale, order) for scale in SCALES}
            prompt, demo = torch.meshgrid(*map(torch.arange, self.places[order].shape), indexing="ij")
            frames.append(
                pd.DataFrame(
                    {
                        "order": order,
                        "prompt": prompt.flatten().numpy(),
                        "demo": demo.flatten().numpy(),
                        "place": self.places[order].flatten().numpy(),
                        "label": self.prompts.demo_labels.flatten().numpy(),
                    }
                    | {scale: value.flatten().numpy() for scale, value in values.items()}
                )
            )
        return pd.concat(frames, ignore_index=True)

    def describe(self) -> str:
        """The verdict, the numbers behind it, and what must be said beside them."""
        orders, count, demos = self.places.shape
        sets = len(self.demo_set.unique())
        lines = [
            f"LabelInfluence({self.run.about}: {count} prompts of {demos} demonstrations in {sets} sets, "
            f"{orders} order{'s' * (orders > 1)})",
            f"  {self.verdict()}",
            self.summary().to_string(index=False, float_format=lambda x: f"{x:.4f}", na_rep="–"),
        ]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    def __repr__(self) -> str:
        return f"{self.accuracy.opening()}\n{self.describe()}"


def _on(scale: Scale) -> Callable[[Tensor], Tensor]:
    """Label scores → what they are compared on."""
    return (lambda x: x) if scale == "log_odds" else (lambda x: x.softmax(-1))


def _held_out(
    x: Float[Tensor, "prompt demo kernel"],
    y: Float[Tensor, "prompt demo"],
    half: Tensor,
    demo_set: Int[Tensor, " prompt"],
) -> Estimate:
    """R² about 0 of y on x, fitted on one half of the sets and measured on the other, both ways."""
    known = ~(x.isnan().any(-1) | y.isnan())
    x, y = x.double().nan_to_num() * known[..., None], y.double().nan_to_num() * known
    left = torch.zeros_like(y)
    for there in (half, ~half):
        fitted = torch.linalg.lstsq(
            x[there].flatten(0, 1), y[there].flatten()[:, None], driver="gelsd"
        ).solution
        left[~there] = y[~there] - (x[~there] @ fitted)[..., 0]
    share = ratio_estimate(left.square().sum(-1), y.square().sum(-1), demo_set)
    return Estimate(1 - share.value, 1 - share.high, 1 - share.low)
