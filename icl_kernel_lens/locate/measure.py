"""Turns one half's numbers into columns, verdicts and the band, by their intervals: pure, on tensors.

The band is the smallest run of layers that holds a share of the effect of the confirmed heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.axes import Pooling
from icl_kernel_lens.locate.conditions import FEWEST
from icl_kernel_lens.numbers import permutations, shifts
from icl_kernel_lens.numbers.control_votes import simple_votes, simple_weights
from icl_kernel_lens.numbers.draws import generator
from icl_kernel_lens.numbers.groups import group_sums, numbered
from icl_kernel_lens.numbers.intervals import (
    RATE,
    bootstrap_counts,
    cluster_t,
    interval_of,
    ratio_mean,
    student_quantile,
    student_tail,
)
from icl_kernel_lens.numbers.votes import credit, hard_vote, kernel_regression, normalised
from icl_kernel_lens.results.criteria import Band, Criteria
from icl_kernel_lens.results.evidence import Evidence
from icl_kernel_lens.results.head_ranking import COLUMNS, MEASURED_AGAIN

COVERED = 0.5
"""Least share of the logit difference in prompts where edges of equal mass could be cut, for these to be compared."""
PerHead = Float[Tensor, "layer head"]
PerPrompt = Float[Tensor, "prompt layer head"]


@dataclass(frozen=True)
class Fidelity:
    """What a half's two readings say of every head, per prompt."""

    agreement: PerPrompt
    controls: Mapping[str, Float[Tensor, "prompt #layer #head"]]
    label_shift: PerPrompt
    word_bound_shift: PerPrompt
    within_class_shift: PerPrompt
    words: PerPrompt
    preferred: PerPrompt
    echo: PerPrompt
    label_attention: PerPrompt
    p: Mapping[str, PerHead]
    """Of agreement by chance, one entry a test (`numbers.permutations`)."""
    demo_set: Int[Tensor, " prompt"]

    @classmethod
    def of(
        cls,
        evidence: Evidence,
        reread: Evidence,
        numbers: Int[Tensor, " prompt"],
        seed: int,
        pooling: Pooling = "label",
    ) -> Fidelity:
        """The prompts `numbers` of a reading, and of the one with labels permuted."""
        prompts, again = evidence.prompts.select(numbers.tolist()), reread.prompts.select(numbers.tolist())
        weights, permuted = (one.pooled(pooling)[numbers] for one in (evidence, reread))
        answer, labels, count = evidence.answers[numbers], prompts.demo_labels, prompts.labels
        kernel, kernel_again = normalised(weights), normalised(permuted)
        places = permutations.by_position(kernel.flatten(1, 2), prompts.demo_set).unflatten(
            1, weights.shape[1:3]
        )
        votes = simple_votes(labels, answer, count)
        votes |= {"positions": hard_vote(kernel_regression(places, labels, count))}
        return cls(
            agreement=credit(hard_vote(kernel_regression(weights, labels, count)), answer),
            controls={name: credit(vote, answer) for name, vote in votes.items()},
            label_shift=shifts.label_shift(kernel, kernel_again),
            word_bound_shift=shifts.word_bound_shift(kernel, labels, again.demo_labels),
            within_class_shift=shifts.within_class_shift(kernel, labels),
            words=shifts.follows_words(kernel_again, again.demo_labels, count, seed=seed),
            preferred=shifts.prefers_word(
                kernel_again, again.demo_labels, prompts.label_tokens, prompts.demo_set
            ),
            echo=shifts.follows_answer(
                kernel_again,
                again.demo_labels,
                reread.answers[numbers],
                prompts.label_tokens,
                prompts.demo_set,
            ),
            label_attention=weights.sum(-1),
            p=p_values(weights, permuted, labels, answer, prompts.demo_set, count, seed),
            demo_set=prompts.demo_set,
        )

    def beyond_words(self, criteria: Criteria) -> PerPrompt:
        """How much more the weights shift than the share of `word_bound_shift` that is allowed."""
        return self.label_shift - criteria.label_shift * self.word_bound_shift


def p_values(
    weights: Float[Tensor, "prompt layer head demo"],
    permuted: Float[Tensor, "prompt layer head demo"],
    labels: Int[Tensor, "prompt demo"],
    answer: Int[Tensor, " prompt"],
    demo_set: Int[Tensor, " prompt"],
    count: int,
    seed: int,
) -> dict[str, PerHead]:
    """Every p-value of the agreement of each head with the answers, by name."""
    w, w_again = weights.flatten(1, 2).nan_to_num(), permuted.flatten(1, 2).nan_to_num()
    noise = permutations.tie_noise(len(w), count, generator(seed))
    vote = permutations.broken_ties(w, labels, noise)
    found = {
        "labels_permuted": permutations.p_labels_permuted(w, labels, answer, demo_set, noise, seed=seed),
        "labels_reread": permutations.p_labels_permuted(
            w_again, labels, answer, demo_set, noise, seed=seed + 1
        ),
    }
    if permutations.shares_sets(demo_set):
        found["answers_permuted"] = permutations.p_answers_permuted(vote, answer, demo_set, seed=seed + 2)
    agree = vote == answer[:, None]
    placed = permutations.by_position(w / w.sum(-1, keepdim=True), demo_set)
    controls = {
        name: permutations.broken_ties(simple[:, None], labels, noise)
        for name, simple in simple_weights(labels).items()
    } | {
        "commonest_answer": answer.bincount(minlength=count).argmax().expand(len(w), 1),
        "positions": permutations.broken_ties(placed, labels, noise),
    }
    found |= {
        name: permutations.p_against(agree, control == answer[:, None], demo_set)
        for name, control in controls.items()
    }
    return {name: p.unflatten(0, weights.shape[1:3]) for name, p in found.items()}


def select(
    fidelity: Fidelity, drop: PerPrompt, base: Float[Tensor, " prompt"], criteria: Criteria
) -> tuple[dict[str, Tensor], dict[str, PerHead]]:
    """Single out what the choosing half gives reason to measure again, by the reason; with the p-values it goes by."""
    p = permutations.hardest(fidelity.p)
    adjusted = _adjusted(p)
    reads = fidelity.label_attention.nanmean(0).nan_to_num() >= criteria.label_attention
    ratio, error, used = ratio_mean(drop, base, fidelity.demo_set)
    # A drop of exactly 0 in every prompt has no spread; it is no drop.
    p_drop = student_tail((ratio.abs() / error).nan_to_num(), used - 1) * 2
    drop_adjusted = _adjusted(p_drop.clamp(max=1).masked_fill(ratio.isnan(), float("nan")))
    low, _ = _interval(fidelity.label_shift, fidelity.demo_set, criteria)
    over, _ = _interval(fidelity.beyond_words(criteria), fidelity.demo_set, criteria)
    selected = {
        "votes": reads & (adjusted <= criteria.candidates),
        "label_shift": reads & (low > criteria.least_label_shift) & (over > 0),
        "matters": (drop_adjusted <= criteria.candidates) & (ratio.abs() >= criteria.effect / 2),
    }
    return selected, dict(fidelity.p) | {
        "p": p,
        "p_adjusted": adjusted,
        "logit_diff_drop": ratio.float(),
        "logit_diff_drop_p_adjusted": drop_adjusted,
    }


def report(
    fidelity: Fidelity,
    selected: Mapping[str, Tensor],
    drop: PerPrompt,
    equal_mass: PerPrompt,
    base: Float[Tensor, " prompt"],
    identified: Mapping[str, PerHead],
    criteria: Criteria,
) -> tuple[dict[str, PerHead], tuple[str, ...]]:
    """Compute the columns of a ranking (`results.head_ranking.COLUMNS`), and each head's strongest control.

    `identified` are those that hold heads against the model's own kernel (`identify.py`).
    """
    sets = fidelity.demo_set
    votes, strongest = _vote_columns(
        fidelity, torch.stack([selected[name] for name in MEASURED_AGAIN]).any(0), criteria
    )
    drops = _drop_columns(drop, equal_mass, base, sets, criteria)
    found = votes | _weight_columns(fidelity, criteria) | drops | dict(identified)
    found |= _verdicts(found, _interval(fidelity.beyond_words(criteria), sets, criteria), criteria)
    wide = ("p", "logit_diff_drop_p", "fit_p")
    return {n: found[n].double() if n.startswith(wide) else found[n].float() for n in COLUMNS}, strongest


def _vote_columns(
    fidelity: Fidelity, candidate: Tensor, criteria: Criteria
) -> tuple[dict[str, PerHead], tuple[str, ...]]:
    """Agreement beside the controls, tested over the candidates; and the name of each head's strongest control."""
    agreement, sets = fidelity.agreement, fidelity.demo_set
    names, scored = list(fidelity.controls), ~agreement.isnan()
    controls = torch.stack(
        [c.expand_as(agreement).masked_fill(~scored, torch.nan) for c in fidelity.controls.values()]
    )
    control, which = controls.nanmean(1).nan_to_num(nan=-torch.inf).max(0)
    level = criteria.level
    margins = [interval_of(RATE, agreement - c, sets, difference=True, level=level) for c in controls]
    low, high = interval_of(RATE, agreement, sets, level=level)
    p = permutations.hardest(fidelity.p).masked_fill(~candidate, torch.nan)
    columns = {
        "agreement": agreement.nanmean(0),
        "agreement_low": low,
        "agreement_high": high,
        "control": control.masked_fill(~scored.any(0), torch.nan),
        "margin": agreement.nanmean(0) - control,
        "margin_low": torch.stack([low for low, _ in margins]).amin(0),
        "margin_high": torch.stack([high for _, high in margins]).amin(0),
        "p": p,
        "p_adjusted": _adjusted(p),
    }
    return columns, tuple(names[i] for i in which.flatten().tolist())


def _weight_columns(fidelity: Fidelity, criteria: Criteria) -> dict[str, PerHead]:
    """What the weights follow."""
    names = ("label_shift", "word_bound_shift", "within_class_shift", "words", "preferred", "echo")
    columns = {name: getattr(fidelity, name).nanmean(0) for name in (*names, "label_attention")}
    for name in ("label_shift", "words", "preferred", "echo"):
        low, high = _interval(getattr(fidelity, name), fidelity.demo_set, criteria)
        columns |= {f"{name}_low": low, f"{name}_high": high}
    return columns


def _drop_columns(
    drop: PerPrompt,
    equal_mass: PerPrompt,
    base: Float[Tensor, " prompt"],
    sets: Int[Tensor, " prompt"],
    criteria: Criteria,
) -> dict[str, PerHead]:
    """What the answer loses without the label edges, and without others of equal mass."""
    ratio, error, used = ratio_mean(drop, base, sets)
    reach = error * student_quantile(criteria.level, used - 1)
    p_drop = student_tail((ratio.abs() - criteria.effect) / error.clamp(min=1e-12), used - 1)
    side = torch.where(ratio < 0, -1.0, 1.0)
    # Edges of equal mass can be cut in some prompts only; in few of them, they are no comparison.
    there = ~equal_mass.isnan()
    covered = (base[:, None, None] * there).sum(0) / base.sum()
    beyond, beyond_error, beyond_used = ratio_mean((drop - equal_mass) * side, base, sets)
    beyond_low = beyond - beyond_error * student_quantile(criteria.level, beyond_used - 1)
    # Of too few sets that all agree nothing is known, which is less than being beyond.
    beyond_low = beyond_low.nan_to_num(nan=-torch.inf)
    return {
        "logit_diff_drop": ratio,
        "logit_diff_drop_low": ratio - reach,
        "logit_diff_drop_high": ratio + reach,
        "logit_diff_drop_p_adjusted": _adjusted(p_drop.masked_fill(ratio.isnan(), torch.nan)),
        "equal_mass_drop": ratio_mean(equal_mass, base, sets)[0],
        "equal_mass_covers": covered.masked_fill(ratio.isnan(), torch.nan),
        "beyond_equal_mass_low": beyond_low.masked_fill(
            (covered < COVERED) | (beyond_used < FEWEST), torch.nan
        ),
    }


def _verdicts(
    columns: Mapping[str, PerHead], over: tuple[PerHead, PerHead], criteria: Criteria
) -> dict[str, PerHead]:
    """The three questions: 1 yes, 0 no, NaN undetermined; `over` is the interval of `Fidelity.beyond_words`."""
    q, effect, least = criteria.false_discovery, criteria.effect, criteria.least_label_shift
    low, high = columns["logit_diff_drop_low"], columns["logit_diff_drop_high"]
    beyond = columns["beyond_equal_mass_low"]
    # Where no edges of equal mass could be cut, the comparison was not made, and is not passed.
    sure = (columns["logit_diff_drop_p_adjusted"] <= q) & (beyond > 0)
    matters = _verdict(yes=sure & (low > effect), no=(low > -effect) & (high < effect))
    return {
        "votes": _verdict(
            yes=(columns["margin_low"] > criteria.margin) & (columns["p_adjusted"] <= q),
            no=(columns["margin_high"] < criteria.margin)
            | (columns["label_attention"] < criteria.label_attention),
        ),
        "invariant": _verdict(
            yes=(columns["label_shift_high"] < least) | (over[1] < 0),
            no=(columns["label_shift_low"] > least) & (over[0] > 0),
        ),
        "matters": torch.where(sure & (high < -effect), -1.0, matters),
    }


def _interval(values: PerPrompt, sets: Int[Tensor, " prompt"], criteria: Criteria) -> tuple[PerHead, PerHead]:
    return cluster_t(values, sets, level=criteria.level)


def _adjusted(p: PerHead) -> PerHead:
    return permutations.benjamini_hochberg(p.flatten()).reshape(p.shape)


def _verdict(*, yes: Tensor, no: Tensor) -> PerHead:
    return torch.where(yes, 1.0, torch.where(no, 0.0, torch.nan))


def smallest_run(effect: Float[Tensor, "draw layer"], share: float) -> Int[Tensor, "draw 2"]:
    """First and last layer of the shortest run with Σ effect ≥ share × the whole; of equally short ones, the fullest.

    Negative layers (draws may have them) count against the run. −1 where the whole is not above 0.
    """
    layers = effect.shape[1]
    whole = effect.sum(1)
    total = torch.nn.functional.pad(effect.cumsum(1), (1, 0))
    found = torch.full((len(effect), 2), -1, dtype=torch.long)
    for length in range(layers, 0, -1):
        held = total[:, length:] - total[:, : layers + 1 - length]
        best, first = held.max(1)
        enough = (best >= share * whole - 1e-9 * whole.abs()) & (whole > 0)
        found = torch.where(enough[:, None], torch.stack([first, first + length - 1], 1), found)
    return found


def find_band(
    drop: Float[Tensor, "prompt layer"],
    base: Float[Tensor, " prompt"],
    demo_set: Int[Tensor, " prompt"],
    share: float,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Band | None:
    """Find the band of the confirmed heads' drops, summed over each layer, and its ends' intervals by demonstration sets.

    Prompts with a missing drop are left out. None where nothing drops, or every prompt is left out.
    Does not show: that layers between the band's ends hold a head each.
    """
    known = ~drop.isnan().any(1)
    if not known.any():
        return None
    drop, base, demo_set = drop[known], base[known], demo_set[known]
    sums = group_sums(drop.double(), numbered(demo_set))
    first, last = smallest_run(sums.sum(0, keepdim=True), share)[0].tolist()
    if first < 0:
        return None
    runs = smallest_run(bootstrap_counts(len(sums), draws, seed) @ sums, share)
    runs = runs[runs[:, 0] >= 0].double()
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    ends = runs.quantile(edges, dim=0).round().long().tolist()
    by_layer = drop.double().mean(0) / base.double().mean()
    return Band(
        first=first,
        last=last,
        share=float(by_layer[first : last + 1].sum() / by_layer.sum()),
        wanted=share,
        first_interval=(ends[0][0], ends[1][0]),
        last_interval=(ends[0][1], ends[1][1]),
        layers=drop.shape[1],
        by_layer=tuple(by_layer.tolist()),
    )
