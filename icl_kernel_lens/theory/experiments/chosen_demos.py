"""Which demonstrations help: those similar to the test input, or those that look like pre-training?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Literal

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from icl_kernel_lens.numbers.correlation import spearman
from icl_kernel_lens.theory.bayes import bayesian_prediction, task_prediction, true_prediction
from icl_kernel_lens.theory.checks import at_least, require, rising
from icl_kernel_lens.theory.experiment import BAYES, KERNEL, VOTE, Experiment, change, collect
from icl_kernel_lens.theory.hmm import distinct, draw, make_generator
from icl_kernel_lens.theory.kernel import (
    Inputs,
    OperatorKernel,
    enumerate_inputs,
    fit_kernel,
    operator_features,
)
from icl_kernel_lens.theory.mixture import Prompts, TaskMixture
from icl_kernel_lens.theory.regression import prediction_from_all

Similarity = Literal["likelihood", "kernel"]
SIMILAR_MEASURES = {
    "bandwidth": "bandwidth (L1)",
    "bias": "bias² (L2²)",
    "variance": "variance (L2²)",
    "error": "mean squared error (L2²)",
    "effective": "demonstrations with a say",
}
SOURCES = ("task", "half pre-training", "pre-training", "half flat", "flat")
SOURCE_SERIES = (KERNEL, VOTE, BAYES)
SOURCE_MEASURES = {
    "l1": "L1 distance to P(Y | x, θ*)",
    "moment": "distance of the moment (same for all)",
    "rank_correlation": "rank correlation",
}


def retrieve_similar(
    world: TaskMixture,
    sizes: Sequence[int] = (64, 32, 16, 8, 4),
    *,
    trials: int = 60,
    draws: int = 40,
    by: Similarity = "likelihood",
    seed: int = 0,
    guard: float = 0.1,
) -> Experiment:
    """Keep the k demonstrations most like the test input, out of a pool: bandwidth, bias and variance.

    A trial is a task and a test input; `draws` pools of max(sizes) demonstrations are drawn for it, and

        mean ‖ŷ − p‖² = bias² + variance,    bias² = ‖mean ŷ − p‖² − variance / draws,    p = P(Y | x_test, θ*)

    over draws. *Similar* is the cosine of P(Y | x, p_pre) and P(Y | x', p_pre) (Eq. 9's similarity, which without the
    norms favours inputs with sure answers), or, by "kernel", of φ(x) and φ(x'). Random choices of as many
    demonstrations are the control. `bandwidth` is the weighted mean L1 distance of P(Y | x_i, θ*) from p;
    `effective`, (Σ|K|)² / ΣK², how many demonstrations have a say. `guard` is that of `kernel_regression`, wider than
    its default, because squares make much of single spikes.
    Does not show: retrieval in a world where similar inputs do not have similar answers.
    """
    at_least(min(sizes, default=0), 1, "sizes")
    at_least(trials, 1, "trials")
    at_least(draws, 2, "draws")
    require(
        rising(sizes[::-1]),
        f"sizes must fall, the first being the whole pool; got {tuple(sizes)}.",
        code="number-range",
    )
    generator = make_generator(seed)
    asked = world.sample_prompts(trials, 0, seed=generator)
    inputs, answers = world.sample_demos(asked.true_tasks.repeat_interleave(draws), sizes[0], seed=generator)
    kernel = fit_kernel(world)
    weights = kernel.weights(asked.test_inputs.repeat_interleave(draws, 0), inputs)
    truth, far, like = _compare(world, kernel, asked, inputs, by)
    order = like.nan_to_num(-math.inf).argsort(dim=1, descending=True, stable=True)

    def cell(size: int, reader: str, choice: str) -> dict[str, Tensor]:
        picks = order[:, :size] if choice == "similar" else torch.arange(size).expand(len(order), -1)
        w = weights.gather(1, picks) if reader == KERNEL else torch.ones(picks.shape).double()
        guess = prediction_from_all(w, answers.gather(1, picks), world.symbols, guard=guard)
        return _cell(guess.unflatten(0, (trials, draws)), truth, w, far.gather(1, picks))

    series = list(product((KERNEL, VOTE), ("random", "similar")))
    values = collect(SIMILAR_MEASURES, [[cell(size, *one) for one in series] for size in sizes])
    told = [name for name in SIMILAR_MEASURES if name != "effective"]
    findings = [
        f"{reader}, {sizes[0]} to {sizes[-1]} most similar by {by}: "
        + ", ".join(_said(name, values[name][:, 0, j], values[name][:, -1, j]) for name in told)
        + "."
        for j, (reader, choice) in enumerate(series)
        if choice == "similar"
    ]
    return Experiment(
        name="retrieve_similar",
        question="Does retrieving similar demonstrations trade bias for variance?",
        axis=f"demonstrations kept, out of {sizes[0]}",
        settings=tuple(float(size) for size in sizes),
        series=tuple(f"{reader}, {choice}" for reader, choice in series),
        measures=SIMILAR_MEASURES,
        values=values,
        findings=tuple(findings),
        world=world.describe(),
        options={"trials": trials, "draws": draws, "by": by, "seed": seed, "guard": guard},
    )


def _compare(
    world: TaskMixture,
    kernel: OperatorKernel,
    asked: Prompts,
    inputs: Int64[Tensor, "row demo position"],
    by: Similarity,
) -> tuple[Float64[Tensor, "trial symbol"], Float64[Tensor, "row demo"], Float64[Tensor, "row demo"]]:
    """P(Y | x_test, θ*), how far P(Y | x_i, θ*) is from it (L1), and how similar x_i is to x_test."""
    each, where = distinct(torch.cat([asked.test_inputs, inputs.flatten(0, 1)]))
    at_test, at_demo = where[: len(asked)], where[len(asked) :].unflatten(0, (len(asked), -1))
    known = task_prediction(world, each)
    if by == "likelihood":
        features = torch.logsumexp(world.log_joint(each) + world.prior.log()[:, None], 1).softmax(-1)
    else:
        features = kernel.features(each)
    features = features / features.norm(dim=-1, keepdim=True)
    like = [(features @ features[test])[demos] for test, demos in zip(at_test, at_demo, strict=True)]
    truth = known[asked.true_tasks, at_test]
    far = [
        (known[task] - answer).abs().sum(-1)[demos]
        for task, answer, demos in zip(asked.true_tasks, truth, at_demo, strict=True)
    ]
    return truth, torch.cat(far).reshape(inputs.shape[:2]), torch.cat(like).reshape(inputs.shape[:2])


def _cell(
    guess: Float64[Tensor, "trial draw symbol"],
    truth: Float64[Tensor, "trial symbol"],
    weights: Float64[Tensor, "row demo"],
    far: Float64[Tensor, "row demo"],
) -> dict[str, Float64[Tensor, " trial"]]:
    """The measures of one choice of demonstrations and one way to predict."""
    bias, variance = bias_and_variance(guess, truth)
    share = weights.abs() / weights.abs().sum(-1, keepdim=True)
    over_draws = {"bandwidth": (share * far).sum(-1), "effective": 1 / share.square().sum(-1)}
    unmade = guess.isnan().any(-1)
    means = {
        name: found.reshape(unmade.shape).masked_fill(unmade, math.nan).nanmean(1)
        for name, found in over_draws.items()
    }
    return {"bias": bias, "variance": variance, "error": bias + variance, **means}


def _said(name: str, of_all: Float64[Tensor, " trial"], of_few: Float64[Tensor, " trial"]) -> str:
    """How a measure changes from the whole pool to the fewest."""
    both = ~(of_all + of_few).isnan()
    word, *_ = change(of_few, of_all)
    return f"{name} {word} ({float(of_all[both].mean()):.3f} to {float(of_few[both].mean()):.3f})"


def bias_and_variance(
    guess: Float64[Tensor, "trial draw symbol"], truth: Float64[Tensor, "trial symbol"]
) -> tuple[Float64[Tensor, " trial"], Float64[Tensor, " trial"]]:
    """bias², corrected for the finite number of draws, so that it may be below 0; and variance."""
    count = (~guess.isnan().any(-1)).double().sum(1)
    count = count.masked_fill(count < 2, math.nan)
    mean = guess.nanmean(1)
    variance = (guess - mean[:, None]).square().sum(-1).nansum(1) / (count - 1)
    return (mean - truth).square().sum(-1) - variance / count, variance


def representative(
    world: TaskMixture, n: int = 32, *, trials: int = 60, sets: int = 12, seed: int = 0
) -> Experiment:
    """Does it help when demonstrations look like pre-training? Moment distance against error.

    A trial is a task and a test input; `sets` prompts of n demonstrations are drawn for it, their inputs from
    P(x | θ*) ("task"), from P(x | p_pre), or evenly from all inputs ("flat"), or half so; answers are always from
    P(Y | x, θ*).

        moment = ‖(1/n) Σ v(x_i) v(x_i)ᵀ − Σ_pre‖_F / ‖Σ_pre‖_F

    and `rank_correlation`, within a trial, is Spearman's of moment with error over its sets: above 0, nearer sets do
    better. Sources that draw inputs impossible under θ* leave these out: they have no answer.
    """
    at_least(sets, 3, "sets")
    at_least(n, 1, "n")
    inputs = enumerate_inputs(world)
    kernel = fit_kernel(world, inputs=inputs)
    generator = make_generator(seed)
    asked = world.sample_prompts(trials, 0, seed=generator)
    rows = asked.true_tasks.repeat_interleave(sets)
    truth = true_prediction(world, asked).repeat_interleave(sets, 0)
    known = task_prediction(world, inputs.tokens)
    seen = operator_features(inputs) @ kernel.directions
    whole = torch.diag(kernel.singular_values.square())
    tests = asked.test_inputs.repeat_interleave(sets, 0)
    cells, made = [], {}
    for source in SOURCES:
        demos = draw_inputs(inputs, asked.true_tasks, source, sets * n, generator).reshape(trials * sets, n)
        answers = draw(known[rows.repeat_interleave(n), demos.flatten()], generator).reshape(-1, n)
        prompts = Prompts(inputs.tokens[demos], answers, tests, tasks=rows)
        weights = kernel.weights(prompts.test_inputs, prompts.inputs)
        moment = moment_distance(seen, demos, whole).unflatten(0, (trials, sets))
        guesses = (
            prediction_from_all(weights, answers, world.symbols),
            prediction_from_all(torch.ones_like(weights), answers, world.symbols),
            bayesian_prediction(world, prompts, [n]).prediction[:, 0],
        )
        made[source] = float((~guesses[0].isnan().any(-1)).double().mean())
        errors = [(guess - truth).abs().sum(-1).unflatten(0, (trials, sets)) for guess in guesses]
        cells.append(
            [
                {"l1": error.nanmean(1), "rank_correlation": rank_correlation(moment, error)}
                for error in errors
            ]
        )
        cells[-1][0]["moment"] = moment.mean(1)
    values = collect(SOURCE_MEASURES, cells)
    return Experiment(
        name="representative",
        question="Are demonstrations better for looking like pre-training?",
        axis="where inputs of demonstrations come from",
        settings=SOURCES,
        series=SOURCE_SERIES,
        measures=SOURCE_MEASURES,
        values=values,
        findings=_source_findings(values, made),
        facts={f"predicted, {source}": share for source, share in made.items()},
        world=world.describe(),
        options={"n": n, "trials": trials, "sets": sets, "seed": seed},
    )


def _source_findings(
    values: dict[str, Float64[Tensor, "trial setting series"]], made: dict[str, float]
) -> tuple[str, ...]:
    l1, moment = values["l1"].nanmean(0), values["moment"].nanmean(0)[:, 0]
    said = [
        f"{source}: moment distance {float(moment[i]):.2f}; L1 error "
        + ", ".join(f"{name} {float(l1[i, j]):.3f}" for j, name in enumerate(SOURCE_SERIES))
        + (f" ({KERNEL} predicted {made[source]:.0%})." if made[source] < 0.99 else ".")
        for i, source in enumerate(SOURCES)
    ]
    own = values["rank_correlation"][:, 0, 0]
    _, mean, low, high = change(own, torch.zeros_like(own))
    verdict = (
        ": nearer sets do better."
        if low > 0
        else ": nearer sets do worse."
        if high < 0
        else ", not told from 0."
    )
    said.append(
        "within trials, the task's own inputs: rank correlation of moment distance with the kernel's error "
        f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]{verdict}"
    )
    return tuple(said)


def draw_inputs(
    inputs: Inputs,
    tasks: Int64[Tensor, " trial"],
    source: str,
    count: int,
    generator: torch.Generator,
) -> Int64[Tensor, "trial draw"]:
    """Rows of `inputs`, of which those from another source than the task are possible under it."""
    found = torch.empty(len(tasks), count, dtype=torch.int64)
    for task in tasks.unique().tolist():
        mine = (tasks == task).nonzero().flatten()
        given = inputs.log_given_task[:, task]
        own = given.exp()
        other = inputs.log_pre.exp() if "pre-training" in source else torch.ones_like(own)
        other = other.masked_fill(given.isneginf(), 0.0)
        law = own if source == "task" else other / other.sum()
        if source.startswith("half"):
            law = (own / own.sum() + law) / 2
        total = law.cumsum(0)
        uniform = torch.rand(len(mine) * count, generator=generator, dtype=torch.float64) * total[-1]
        last = int(law.nonzero()[-1])
        found[mine] = torch.searchsorted(total, uniform, right=True).clamp(max=last).reshape(len(mine), count)
    return found


def moment_distance(
    seen: Float64[Tensor, "input direction"],
    demos: Int64[Tensor, "row demo"],
    moment: Float64[Tensor, "direction direction"],
) -> Float64[Tensor, " row"]:
    """‖(1/n) Σ v vᵀ − Σ_pre‖_F / ‖Σ_pre‖_F, in the directions of the design."""
    shown = (seen[rows] for rows in demos.split(64))
    gaps = [torch.linalg.matrix_norm(v.transpose(1, 2) @ v / demos.shape[1] - moment) for v in shown]
    return torch.cat(gaps) / torch.linalg.matrix_norm(moment)


def rank_correlation(
    left: Float64[Tensor, "trial set"], right: Float64[Tensor, "trial set"]
) -> Float64[Tensor, " trial"]:
    """Spearman's, row by row, over sets where both are numbers; NaN with less than half of them, or without differences."""
    least = max(6, left.shape[1]) / 2
    both = ~(left.isnan() | right.isnan())
    found = [
        spearman(one, two) if int(known.sum()) >= least else math.nan
        for one, two, known in zip(left, right, both, strict=True)
    ]
    return torch.tensor(found, dtype=torch.float64)
