"""Does retrieving similar demonstrations trade bias for variance?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from icl_kernel_lens.theory.bayes import task_prediction
from icl_kernel_lens.theory.checks import TheoryError, at_least, rising
from icl_kernel_lens.theory.experiment import KERNEL, VOTE, Experiment, change, collect
from icl_kernel_lens.theory.hmm import distinct, make_generator
from icl_kernel_lens.theory.kernel import OperatorKernel, fit_kernel
from icl_kernel_lens.theory.mixture import TaskMixture
from icl_kernel_lens.theory.operators import log_joint
from icl_kernel_lens.theory.regression import prediction_from_all

Similarity = Literal["likelihood", "kernel"]
MEASURES = {
    "bandwidth": "bandwidth (L1)",
    "bias": "bias² (L2²)",
    "variance": "variance (L2²)",
    "error": "mean squared error (L2²)",
    "effective": "demonstrations with a say",
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
    if not rising(sizes[::-1]):
        raise TheoryError(
            f"sizes must fall, the first being the whole pool; got {tuple(sizes)}.", code="number-range"
        )
    generator = make_generator(seed)
    asked = world.sample_prompts(trials, 0, seed=generator)
    assert asked.tasks is not None
    inputs, answers = world.sample_demos(asked.tasks.repeat_interleave(draws), sizes[0], seed=generator)
    kernel = fit_kernel(world)
    weights = kernel.weights(asked.test_inputs.repeat_interleave(draws, 0), inputs)
    truth, far, like = _compare(world, kernel, asked.test_inputs, inputs, asked.tasks, by)
    order = like.nan_to_num(-math.inf).argsort(dim=1, descending=True, stable=True)
    series = [(reader, choice) for reader in (KERNEL, VOTE) for choice in ("random", "similar")]
    cells = []
    for size in sizes:
        cells.append([])
        for reader, choice in series:
            picks = order[:, :size] if choice == "similar" else torch.arange(size).expand(len(order), -1)
            w = weights.gather(1, picks) if reader == KERNEL else torch.ones(picks.shape).double()
            guess = prediction_from_all(w, answers.gather(1, picks), world.symbols, guard=guard)
            cells[-1].append(_cell(guess.unflatten(0, (trials, draws)), truth, w, far.gather(1, picks)))
    values = collect(MEASURES, cells)
    findings = []
    for j, (reader, choice) in enumerate(series):
        if choice == "similar":
            said = [_said(name, values[name][:, 0, j], values[name][:, -1, j]) for name in MEASURES][:-1]
            findings.append(f"{reader}, {sizes[0]} to {sizes[-1]} most similar by {by}: {', '.join(said)}.")
    return Experiment(
        name="retrieve_similar",
        question="Does retrieving similar demonstrations trade bias for variance?",
        axis=f"demonstrations kept, out of {sizes[0]}",
        settings=tuple(float(size) for size in sizes),
        series=tuple(f"{reader}, {choice}" for reader, choice in series),
        measures=MEASURES,
        values=values,
        findings=tuple(findings),
        world=world.describe(),
        options={"trials": trials, "draws": draws, "by": by, "seed": seed, "guard": guard},
    )


def _compare(
    world: TaskMixture,
    kernel: OperatorKernel,
    tests: Int64[Tensor, "trial position"],
    inputs: Int64[Tensor, "row demo position"],
    tasks: Int64[Tensor, " trial"],
    by: Similarity,
) -> tuple[Float64[Tensor, "trial symbol"], Float64[Tensor, "row demo"], Float64[Tensor, "row demo"]]:
    """P(Y | x_test, θ*), how far P(Y | x_i, θ*) is from it (L1), and how similar x_i is to x_test."""
    each, where = distinct(torch.cat([tests, inputs.flatten(0, 1)]))
    at_test, at_demo = where[: len(tests)], where[len(tests) :].unflatten(0, (len(tests), -1))
    known = task_prediction(world, each)
    if by == "likelihood":
        features = torch.logsumexp(log_joint(world, each) + world.prior.log()[:, None], 1).softmax(-1)
    else:
        features = kernel.features(each)
    features = features / features.norm(dim=-1, keepdim=True)
    far, like = [], []
    for task, test, demos in zip(tasks, at_test, at_demo, strict=True):
        far.append((known[task] - known[task, test]).abs().sum(-1)[demos])
        like.append((features @ features[test])[demos])
    far, like = (torch.stack(found).reshape(inputs.shape[:2]) for found in (far, like))
    return known[tasks, at_test], far, like


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
    made = (~guess.isnan().any(-1)).double()
    count = made.sum(1)
    count = count.masked_fill(count < 2, math.nan)
    known = guess.nan_to_num(0.0) * made[..., None]
    mean = known.sum(1) / count[:, None]
    variance = ((known - mean[:, None]).square().sum(-1) * made).sum(1) / (count - 1)
    return (mean - truth).square().sum(-1) - variance / count, variance
