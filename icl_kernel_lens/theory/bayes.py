"""Exact Bayesian prediction on prompts of any number of demonstrations.

    P(Y | x_1, y_1, …, x_n, y_n, x_test)  ∝  Σ_θ w_n(θ) P(x_test, Y | θ)
    w_n(θ') = Σ_θ w_{n-1}(θ) M_n[θ, θ'],     M_i[θ, θ'] = (1 − ε_r)^{l+1} ε_r · start_θᵀ T_{x_i y_i} R[:, θ']

with w_0 the prior and R the restart matrix: the forward pass of the world's HMM, kept only at the
delimiters. With tasks that never mix M is diagonal and this is Π_i P(x_i, y_i | θ). Answers are symbols: the
prediction is conditional on the answer not being the delimiter. How the posterior finds the task: `concentration`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from icl_kernel_lens.theory.checks import TheoryError, rising
from icl_kernel_lens.theory.hmm import distinct, log_matmul, of_each
from icl_kernel_lens.theory.mixture import Prompts, TaskMixture
from icl_kernel_lens.theory.operators import log_joint, log_start_rows

LogSteps = Callable[[TaskMixture, Tensor, Tensor], Tensor]
"""World, inputs and answers of demonstrations → log M of each (demonstration × task × task)."""


@dataclass(frozen=True, eq=False)
class BayesPrediction:
    """What exact Bayesian inference over the tasks says after each number of demonstrations.

    An impossible prompt has log_marginal −inf, and NaN for everything conditional on it.
    """

    counts: tuple[int, ...]
    """Numbers of demonstrations; the prompt is cut to its first n and keeps its test input."""
    prediction: Float64[Tensor, "prompt count symbol"]
    """P(Y | prompt), Y a symbol."""
    posterior: Float64[Tensor, "prompt count task"]
    """P(task of the test input | demonstrations), before the test input is seen."""
    posterior_with_input: Float64[Tensor, "prompt count task"]
    """The same after the test input is seen."""
    log_marginal: Float64[Tensor, "prompt count"]
    """log P(prompt) of the whole token sequence, delimiters included."""


def check_counts(counts: Sequence[int] | None, demos: int) -> tuple[int, ...]:
    """The numbers of demonstrations asked for; None asks for 0 … all."""
    found = tuple(range(demos + 1)) if counts is None else tuple(int(n) for n in counts)
    if not found or min(found) < 0 or max(found) > demos or not rising(found):
        raise TheoryError(
            f"numbers of demonstrations must rise from 0 or more to at most the {demos} of the prompts; got {found}.",
            code="number-range",
        )
    return found


def log_examples(
    world: TaskMixture,
    inputs: Int64[Tensor, "example position"],
    answers: Int64[Tensor, " example"],
) -> Float64[Tensor, "example task task"]:
    """log M[θ, θ'] of each demonstration and its delimiter: from a start in θ to the next start in θ'."""
    each, where = distinct(torch.cat([inputs, answers[:, None]], 1))
    found = log_matmul(log_start_rows(world, each), world.restart)
    return (found + each.shape[1] * math.log1p(-world.delimiter_rate) + math.log(world.delimiter_rate))[where]


def log_carried(
    world: TaskMixture, prompts: Prompts, log_steps: LogSteps
) -> Float64[Tensor, "prompt given task"]:
    """The prior carried through the first n demonstrations, n = 0 … all, each a step log M[θ, θ']."""
    weights = [world.prior.log().expand(len(prompts), -1)]
    if prompts.demos:
        steps = log_steps(world, prompts.inputs.flatten(0, 1), prompts.answers.flatten())
        for step in steps.unflatten(0, (len(prompts), -1)).unbind(1):
            weights.append(torch.logsumexp(weights[-1][:, :, None] + step, 1))
    return torch.stack(weights, 1)


def log_task_weights(world: TaskMixture, prompts: Prompts) -> Float64[Tensor, "prompt given task"]:
    """log P(first n demonstrations, next task), n = 0 … all."""
    world.check_prompts(prompts)
    return log_carried(world, prompts, log_examples)


def answered(
    world: TaskMixture,
    log_weights: Float64[Tensor, "prompt given task"],
    test_inputs: Int64[Tensor, "prompt position"],
) -> tuple[
    Float64[Tensor, "prompt given symbol"],
    Float64[Tensor, "prompt given task"],
    Float64[Tensor, "prompt given"],
]:
    """P(Y | task weights, x_test), the posterior over tasks once x_test is seen, and log Σ_θ w(θ) P(x_test | θ)."""
    joint = of_each(lambda inputs: log_joint(world, inputs), test_inputs)
    given_task = torch.logsumexp(joint, -1)
    seen = log_weights + given_task[:, None]
    posterior = normalised(seen)
    log_given = (joint - given_task[..., None]).nan_to_num(nan=-math.inf)
    prediction = torch.einsum("pnt,pty->pny", posterior, log_given.exp())
    return prediction, posterior, torch.logsumexp(seen, -1)


def bayesian_prediction(
    world: TaskMixture, prompts: Prompts, counts: Sequence[int] | None = None
) -> BayesPrediction:
    """P(Y | prompt) over the task mixture, exactly, for every prompt and number of demonstrations.

        P(Y | o_ICL, p_pre)             Han et al. (2025), Theorem 1, left side of Eq. 7

    Does not show: what a prompt drawn from one task *would* be worth to a predictor that knows so;
    a world whose delimiter can switch tasks keeps some doubt for ever.

    Raises: TheoryError: prompts that are empty, of another input length, or with tokens out of range.
    """
    counts = check_counts(counts, prompts.demos)
    weights = log_task_weights(world, prompts)[:, list(counts)]
    prediction, posterior, log_marginal = answered(world, weights, prompts.test_inputs)
    return BayesPrediction(
        counts=counts,
        prediction=prediction,
        posterior=normalised(weights),
        posterior_with_input=posterior,
        log_marginal=log_marginal + world.input_length * math.log1p(-world.delimiter_rate),
    )


def normalised(log_weights: Float64[Tensor, "*row outcome"]) -> Float64[Tensor, "*row outcome"]:
    """Logarithms of weights as shares of their sum; NaN where all weights are 0."""
    total = torch.logsumexp(log_weights, -1, keepdim=True)
    return (log_weights - total).exp().masked_fill(total.isneginf(), float("nan"))


def task_prediction(
    world: TaskMixture, inputs: Int64[Tensor, "input position"]
) -> Float64[Tensor, "task input symbol"]:
    """P(Y | x, θ), what a predictor that knows the task says. NaN where P(x | θ) = 0."""
    return normalised(log_joint(world, inputs)).transpose(0, 1)


def true_prediction(world: TaskMixture, prompts: Prompts) -> Float64[Tensor, "prompt symbol"]:
    """P(Y | x_test, θ*) of each prompt."""
    assert prompts.tasks is not None
    each, where = distinct(prompts.test_inputs)
    return task_prediction(world, each)[prompts.tasks, where]


def same_first_answer(
    guess: Float64[Tensor, "*row symbol"], truth: Float64[Tensor, "*row symbol"]
) -> Float64[Tensor, "*row"]:
    """1 where both have the same first answer (ties go to the lower symbol), NaN where one has none."""
    same = (guess.nan_to_num(0.0).argmax(-1) == truth.argmax(-1)).double()
    return same.masked_fill((guess + truth).isnan().any(-1), float("nan"))
