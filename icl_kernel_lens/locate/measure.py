"""The numbers of one half of the prompts, and the classes that their intervals give: pure, on tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.evidence import Evidence
from icl_kernel_lens.kernels.regression import credit, hard_vote, kernel_regression
from icl_kernel_lens.locate import invariance, nulls
from icl_kernel_lens.locate.halves import FEWEST
from icl_kernel_lens.results.head_ranking import Criteria, HeadClass
from icl_kernel_lens.results.resample import cluster_mean, cluster_t, student_quantile, student_tail, wilson
from icl_kernel_lens.scores.controls import simple_votes, simple_weights

COVERED = 0.5
"""Least share of the logit difference in prompts where edges of equal mass could be cut, for these to be compared."""
PerHead = Float[Tensor, "layer head"]
PerPrompt = Float[Tensor, "prompt layer head"]


@dataclass(frozen=True)
class Fidelity:
    """What a half's two readings say of every head, per prompt."""

    agreement: PerPrompt
    controls: Mapping[str, Float[Tensor, "prompt #layer #head"]]
    moved: PerPrompt
    carried: PerPrompt
    within: PerPrompt
    words: PerPrompt
    preferred: PerPrompt
    echo: PerPrompt
    label_mass: PerPrompt
    p: Mapping[str, PerHead]
    """Of agreement by chance, one entry a test (`locate.nulls`)."""
    demo_set: Int[Tensor, " prompt"]

    @classmethod
    def of(cls, evidence: Evidence, reread: Evidence, numbers: Int[Tensor, " prompt"], seed: int) -> Fidelity:
        """The prompts `numbers` of a reading, and of the one with labels permuted."""
        prompts, again = evidence.prompts.select(numbers.tolist()), reread.prompts.select(numbers.tolist())
        weights, permuted = evidence.weights["label"][numbers], reread.weights["label"][numbers]
        answer, labels, count = evidence.answers[numbers], prompts.demo_labels, prompts.labels
        vote = hard_vote(kernel_regression(weights, labels, count))
        simple = simple_votes(labels, answer, count)
        kernel, kernel_again = invariance.normalised(weights), invariance.normalised(permuted)
        places = nulls.by_position(kernel.flatten(1, 2), prompts.demo_set).unflatten(1, weights.shape[1:3])
        placed = hard_vote(kernel_regression(places, labels, count))
        return cls(
            agreement=credit(vote, answer),
            controls={name: credit(v, answer) for name, v in (simple | {"positions": placed}).items()},
            moved=invariance.moved(kernel, kernel_again),
            carried=invariance.carried(kernel, labels, again.demo_labels),
            within=invariance.moved_within(kernel, labels),
            words=invariance.follows_words(kernel_again, again.demo_labels, count, seed=seed),
            preferred=invariance.prefers_word(
                kernel_again, again.demo_labels, prompts.label_tokens, prompts.demo_set
            ),
            echo=invariance.follows_answer(
                kernel_again,
                again.demo_labels,
                reread.answers[numbers],
                prompts.label_tokens,
                prompts.demo_set,
            ),
            label_mass=weights.sum(-1),
            p=_p_values(weights, permuted, labels, answer, prompts.demo_set, count, seed),
            demo_set=prompts.demo_set,
        )


def _p_values(
    weights: Float[Tensor, "prompt layer head demo"],
    permuted: Float[Tensor, "prompt layer head demo"],
    labels: Int[Tensor, "prompt demo"],
    answer: Int[Tensor, " prompt"],
    demo_set: Int[Tensor, " prompt"],
    count: int,
    seed: int,
) -> dict[str, PerHead]:
    shape = weights.shape[1:3]
    w, w_again = weights.flatten(1, 2).nan_to_num(), permuted.flatten(1, 2).nan_to_num()
    noise = nulls.tie_noise(len(w), count, torch.Generator().manual_seed(seed))
    vote = nulls.broken_ties(w, labels, noise)
    found = {
        "labels_permuted": nulls.p_labels_permuted(w, labels, answer, demo_set, noise, seed=seed),
        "labels_reread": nulls.p_labels_permuted(w_again, labels, answer, demo_set, noise, seed=seed + 1),
    }
    if nulls.shares_sets(demo_set):
        found["answers_permuted"] = nulls.p_answers_permuted(vote, answer, demo_set, seed=seed + 2)
    agree = vote == answer[:, None]
    for name, simple in simple_weights(labels).items():
        control = nulls.broken_ties(simple[:, None], labels, noise)[:, 0]
        found[name] = nulls.p_against(agree, (control == answer)[:, None], demo_set)
    commonest = answer.bincount(minlength=count).argmax()
    found["commonest_answer"] = nulls.p_against(agree, (answer == commonest)[:, None], demo_set)
    kernel = w / w.sum(-1, keepdim=True)
    placed = nulls.broken_ties(nulls.by_position(kernel, demo_set), labels, noise)
    found["positions"] = nulls.p_against(agree, placed == answer[:, None], demo_set)
    return {name: p.unflatten(0, shape) for name, p in found.items()}


def select(
    fidelity: Fidelity, loss: PerPrompt, base: Float[Tensor, " prompt"], criteria: Criteria
) -> tuple[dict[str, Tensor], dict[str, PerHead]]:
    """What the choosing half gives reason to measure again, by the reason; and the p-values it went by."""
    p = nulls.hardest(fidelity.p)
    adjusted = nulls.benjamini_hochberg(p.flatten()).reshape(p.shape)
    mass = fidelity.label_mass.nanmean(0).nan_to_num()
    reads = mass >= criteria.label_mass
    ratio, error, used = ratio_mean(loss, base, fidelity.demo_set)
    # A loss of exactly 0 in every prompt has no spread; it is no loss.
    p_loss = student_tail((ratio.abs() / error).nan_to_num(), used - 1) * 2
    p_loss = p_loss.clamp(max=1).masked_fill(ratio.isnan(), float("nan"))
    loss_adjusted = nulls.benjamini_hochberg(p_loss.flatten()).reshape(p.shape)
    low, _ = _interval(fidelity.moved, fidelity.demo_set, criteria)
    over, _ = _interval(fidelity.moved - criteria.moved * fidelity.carried, fidelity.demo_set, criteria)
    selected = {
        "votes": reads & (adjusted <= criteria.candidates),
        "moved": reads & (low > criteria.least_moved) & (over > 0),
        "matters": (loss_adjusted <= criteria.candidates) & (ratio.abs() >= criteria.effect / 2),
    }
    numbers = dict(fidelity.p) | {
        "p": p,
        "p_adjusted": adjusted,
        "loss": ratio,
        "loss_p_adjusted": loss_adjusted,
    }
    return selected, {name: values.float() if name == "loss" else values for name, values in numbers.items()}


def report(
    fidelity: Fidelity,
    selected: Mapping[str, Tensor],
    loss: PerPrompt,
    equal_mass: PerPrompt,
    base: Float[Tensor, " prompt"],
    criteria: Criteria,
) -> tuple[dict[str, PerHead], tuple[str, ...]]:
    """The columns of a ranking (`results.head_ranking.COLUMNS`), and each head's strongest control."""
    sets, level = fidelity.demo_set, criteria.level
    shape = fidelity.agreement.shape[1:]
    agreement = fidelity.agreement
    names = list(fidelity.controls)
    scored = ~agreement.isnan()
    controls = torch.stack(
        [c.expand_as(agreement).masked_fill(~scored, torch.nan) for c in fidelity.controls.values()]
    )
    means = controls.nanmean(1)
    control, which = means.nan_to_num(nan=-torch.inf).max(0)
    margins = [_interval(agreement - c, sets, criteria) for c in controls]
    margin_low = torch.stack([low for low, _ in margins]).amin(0)
    margin_high = torch.stack([high for _, high in margins]).amin(0)
    candidate = selected["votes"] | selected["matters"]
    p = nulls.hardest(fidelity.p).masked_fill(~candidate, torch.nan)
    adjusted = nulls.benjamini_hochberg(p.flatten()).reshape(shape)
    low, high = (x.reshape(shape) for x in wilson(agreement.flatten(1), sets, level=level))
    moved_low, moved_high = _interval(fidelity.moved, sets, criteria)
    over_low, over_high = _interval(fidelity.moved - criteria.moved * fidelity.carried, sets, criteria)
    words_low, _ = _interval(fidelity.words, sets, criteria)
    preferred_low, _ = _interval(fidelity.preferred, sets, criteria)
    echo_low, _ = _interval(fidelity.echo, sets, criteria)
    ratio, error, used = ratio_mean(loss, base, sets)
    reach = error * _student(level, used)
    p_loss = student_tail((ratio.abs() - criteria.effect) / error.clamp(min=1e-12), used - 1)
    loss_adjusted = nulls.benjamini_hochberg(p_loss.masked_fill(ratio.isnan(), torch.nan).flatten()).reshape(
        shape
    )
    side = torch.where(ratio < 0, -1.0, 1.0)
    # Edges of equal mass can be cut in some prompts only; in few of them, they are no comparison.
    there = ~equal_mass.isnan()
    covered = (base[:, None, None] * there).sum(0) / base.sum()
    beyond, beyond_error, beyond_used = ratio_mean((loss - equal_mass) * side, base, sets)
    beyond_low = beyond - beyond_error * _student(level, beyond_used)
    beyond_low = beyond_low.masked_fill((covered < COVERED) | (beyond_used < FEWEST), torch.nan)
    found = {
        "agreement": agreement.nanmean(0),
        "agreement_low": low,
        "agreement_high": high,
        "control": control.masked_fill(~scored.any(0), torch.nan),
        "margin": agreement.nanmean(0) - control,
        "margin_low": margin_low,
        "margin_high": margin_high,
        "p": p,
        "p_adjusted": adjusted,
        "moved": fidelity.moved.nanmean(0),
        "moved_low": moved_low,
        "moved_high": moved_high,
        "carried": fidelity.carried.nanmean(0),
        "within": fidelity.within.nanmean(0),
        "words": fidelity.words.nanmean(0),
        "words_low": words_low,
        "preferred": fidelity.preferred.nanmean(0),
        "preferred_low": preferred_low,
        "echo": fidelity.echo.nanmean(0),
        "echo_low": echo_low,
        "label_mass": fidelity.label_mass.nanmean(0),
        "loss": ratio,
        "loss_low": ratio - reach,
        "loss_high": ratio + reach,
        "loss_p_adjusted": loss_adjusted,
        "equal_mass_loss": ratio_mean(equal_mass, base, sets)[0],
        "equal_mass_covers": covered.masked_fill(ratio.isnan(), torch.nan),
        "beyond_equal_mass_low": beyond_low,
    }
    q = criteria.false_discovery
    votes = _verdict(
        yes=(margin_low > criteria.margin) & (adjusted <= q),
        no=(margin_high < criteria.margin) | (found["label_mass"] < criteria.label_mass),
    )
    invariant = _verdict(
        yes=(moved_high < criteria.least_moved) | (over_high < 0),
        no=(moved_low > criteria.least_moved) & (over_low > 0),
    )
    # Where no edges of equal mass could be cut, there is nothing to be beyond.
    beyond_it = (beyond_low > 0) | beyond_low.isnan()
    sure = (loss_adjusted <= q) & beyond_it
    matters = _verdict(
        yes=sure & (found["loss_low"] > criteria.effect),
        no=(found["loss_low"] > -criteria.effect) & (found["loss_high"] < criteria.effect),
    )
    matters = torch.where(sure & (found["loss_high"] < -criteria.effect), -1.0, matters)
    found |= {"votes": votes, "invariant": invariant, "matters": matters}
    found = {n: v.double() if n.startswith(("p", "loss_p")) else v.float() for n, v in found.items()}
    return found, tuple(names[i] for i in which.flatten().tolist())


def classify(
    columns: Mapping[str, PerHead], selected: Mapping[str, Tensor], criteria: Criteria
) -> list[HeadClass]:
    """Every head's class, in order of layer and head (see `HeadClass`)."""
    looked_at = torch.stack(list(selected.values())).any(0).flatten().tolist()
    flat = {name: values.flatten().tolist() for name, values in columns.items()}
    return [
        _class({name: values[at] for name, values in flat.items()}, criteria) if seen else "neither"
        for at, seen in enumerate(looked_at)
    ]


def _class(head: Mapping[str, float], criteria: Criteria) -> HeadClass:
    votes, invariant, matters = head["votes"], head["invariant"], head["matters"]
    reads = head["label_mass"] >= criteria.label_mass
    if reads and invariant == 0 and head["echo_low"] > criteria.follows:
        return "echo"
    if reads and invariant == 0 and max(head["words_low"], head["preferred_low"]) > criteria.follows:
        return "word preference"
    if votes == 1 and invariant == 1 and matters == 1:
        return "kernel head"
    if votes == 1 and invariant == 1 and matters == 0:
        return "shadow"
    if abs(matters) == 1 and (votes == 0 or invariant == 0 or matters == -1):
        return "driver"
    if votes == 0 and (matters == 0 or head["loss"] != head["loss"]):
        return "neither"  # not measured: in the choosing half the answer did not need it
    return "undetermined"


def ratio_mean(
    part: PerPrompt, whole: Float[Tensor, " prompt"], sets: Int[Tensor, " prompt"]
) -> tuple[PerHead, PerHead, Int[Tensor, "layer head"]]:
    """Σ part / Σ whole, its standard error between sets (linearised), and the sets it rests on; NaN left out."""
    shape = part.shape[1:]
    flat = part.flatten(1).double()
    whole = whole.double()[:, None].expand_as(flat).masked_fill(flat.isnan(), torch.nan)
    size = whole.nanmean(0)
    ratio = flat.nanmean(0) / size
    _, error, used = cluster_mean((flat - ratio * whole) / size, sets)
    return ratio.reshape(shape), error.reshape(shape), used.reshape(shape)


def _interval(values: PerPrompt, sets: Int[Tensor, " prompt"], criteria: Criteria) -> tuple[PerHead, PerHead]:
    low, high = cluster_t(values.flatten(1), sets, level=criteria.level)
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


def _student(level: float, used: Int[Tensor, "layer head"]) -> PerHead:
    return student_quantile(level, (used - 1).flatten()).reshape(used.shape)


def _verdict(*, yes: Tensor, no: Tensor) -> PerHead:
    unknown = torch.full(yes.shape, float("nan"))
    return torch.where(yes, 1.0, torch.where(no, 0.0, unknown))
