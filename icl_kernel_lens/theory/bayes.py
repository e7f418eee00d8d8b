"""Exact Bayesian prediction on prompts of any number of demonstrations, and how the posterior finds the task.

    P(Y | x_1, y_1, …, x_n, y_n, x_test)  ∝  Σ_θ w_n(θ) P(x_test, Y | θ)
    w_n(θ') = Σ_θ w_{n-1}(θ) M_n[θ, θ'],     M_i[θ, θ'] = (1 − ε_r)^{l+1} ε_r · start_θᵀ T_{x_i y_i} R[:, θ']

with w_0 the prior and R the restart matrix: the forward pass of the world's HMM, kept only at the
delimiters. With tasks that never mix M is diagonal and this is Π_i P(x_i, y_i | θ). Answers are symbols: the
prediction is conditional on the answer not being the delimiter.

    ε_KL = inf_{θ ≠ θ'} KL(P(o[0:l] | θ') ‖ P(o[0:l] | θ))  >  ln(1 / (ε_r ε_d))       A2 of Han et al. (2025)

A2 is what the proof of Theorem 1 needs. With this delimiter, whose rate is the same in all states, any divergence
above 0 suffices in the end, unless the delimiter switches tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from icl_kernel_lens.charts.figure import Figure
from icl_kernel_lens.charts.theory import Series, concentration_figure
from icl_kernel_lens.results.base import Result, broken, long_form
from icl_kernel_lens.results.run_info import versions
from icl_kernel_lens.theory.checks import at_least, require, rising
from icl_kernel_lens.theory.hmm import all_sequences, distinct, log_matmul, of_each, shares
from icl_kernel_lens.theory.mixture import Prompts, TaskMixture, WorldInfo

if TYPE_CHECKING:
    import pandas as pd


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
    require(
        len(found) > 0 and min(found) >= 0 and max(found) <= demos and rising(found),
        f"numbers of demonstrations must rise from 0 or more to at most the {demos} of the prompts; got {found}.",
        code="number-range",
    )
    return found


def count_problems(counts: Sequence[int], shape: torch.Size, least: int) -> Iterator[str]:
    """What is wrong with a result of one row a trial and one column a number of demonstrations."""
    trials, columns = shape
    return broken(
        {
            f"it must hold trials, one column a number of demonstrations; {counts} are {columns} columns of {trials}": (
                trials > 0 and columns == len(counts) > 0
            ),
            f"numbers of demonstrations must rise from {least} or more; they are {counts}": (
                rising(counts) and min(counts, default=least) >= least
            ),
        }
    )


def log_examples(
    world: TaskMixture,
    inputs: Int64[Tensor, "example position"],
    answers: Int64[Tensor, " example"],
) -> Float64[Tensor, "example task task"]:
    """log M[θ, θ'] of each demonstration and its delimiter: from a start in θ to the next start in θ'."""
    each, where = distinct(torch.cat([inputs, answers[:, None]], 1))
    found = log_matmul(world.log_start_rows(each), world.restart)
    return (found + each.shape[1] * math.log1p(-world.delimiter_rate) + math.log(world.delimiter_rate))[where]


def log_carried(
    world: TaskMixture, prompts: Prompts, log_steps: Callable[[TaskMixture, Tensor, Tensor], Tensor]
) -> Float64[Tensor, "prompt given task"]:
    """The prior carried through the first n demonstrations, n = 0 … all.

    `log_steps` makes of the world, and of demonstrations' inputs and answers, log M[θ, θ'] of each.
    """
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
    joint = of_each(world.log_joint, test_inputs)
    given_task = torch.logsumexp(joint, -1)
    seen = log_weights + given_task[:, None]
    posterior = shares(seen)
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
        posterior=shares(weights),
        posterior_with_input=posterior,
        log_marginal=log_marginal + world.input_length * math.log1p(-world.delimiter_rate),
    )


def task_prediction(
    world: TaskMixture, inputs: Int64[Tensor, "input position"]
) -> Float64[Tensor, "task input symbol"]:
    """P(Y | x, θ), what a predictor that knows the task says. NaN where P(x | θ) = 0."""
    return shares(world.log_joint(inputs)).transpose(0, 1)


def true_prediction(world: TaskMixture, prompts: Prompts) -> Float64[Tensor, "prompt symbol"]:
    """P(Y | x_test, θ*) of each prompt."""
    each, where = distinct(prompts.test_inputs)
    return task_prediction(world, each)[prompts.true_tasks, where]


def same_first_answer(
    guess: Float64[Tensor, "*row symbol"], truth: Float64[Tensor, "*row symbol"]
) -> Float64[Tensor, "*row"]:
    """1 where both have the same first answer (ties go to the lower symbol), NaN where one has none."""
    same = (guess.nan_to_num(0.0).argmax(-1) == truth.argmax(-1)).double()
    return same.masked_fill((guess + truth).isnan().any(-1), float("nan"))


@dataclass(frozen=True, eq=False)
class TaskDivergences(Result):
    """KL(P(o[0:length] | θ) ‖ P(o[0:length] | θ')) in nats, against what A2 asks."""

    length: int
    values: Float64[Tensor, "task rival"]
    """Row θ, column θ'; +inf where θ emits what θ' never does."""
    standard_error: Float64[Tensor, "task rival"]
    """0 when exact."""
    threshold: float
    """ln(1 / (ε_r ε_d))."""

    def _problems(self) -> Iterator[str]:
        tasks, rivals = self.values.shape
        return broken(
            {f"divergences are of each task from each; their shape is {(tasks, rivals)}": 0 < tasks == rivals}
        )

    @property
    def eps_kl(self) -> float:
        """The least divergence of two distinct tasks; +inf for a single task."""
        apart = ~torch.eye(len(self.values), dtype=torch.bool)
        return float(self.values[apart].min()) if apart.any() else math.inf

    @property
    def holds(self) -> bool:
        """Whether A2 holds: ε_KL above the threshold."""
        return self.eps_kl > self.threshold

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "does not hold"
        return f"ε_KL = {self.eps_kl:.3g}, threshold {self.threshold:.3g} nats: A2 {verdict}"


def task_divergences(
    world: TaskMixture, length: int | None = None, *, samples: int | None = None, seed: int = 0
) -> TaskDivergences:
    """How far apart the tasks are, on sequences of `length` symbols (None: one input and answer).

    Exact by enumeration; with `samples`, the mean of log-ratios over that many sequences a task.
    Does not show: that tasks below the threshold of A2 cannot be told apart; it is what the proof needs.
    """
    length = world.input_length + 1 if length is None else length
    at_least(length, 1, "length")
    if samples is not None:
        return _sampled_divergences(world, length, samples, seed)
    joint = (
        log_matmul(world.start.log()[None], world.hmm.emission)
        if length == 1
        else world.log_joint(all_sequences(world.symbols, length - 1))
    )
    laws = joint.transpose(0, 1).flatten(1)
    values = torch.stack([divergences_from(law, laws) for law in laws])
    return TaskDivergences(length, values, torch.zeros_like(values), world.kl_threshold)


def divergences_from(
    log_p: Float64[Tensor, " outcome"], log_q: Float64[Tensor, "law outcome"]
) -> Float64[Tensor, " law"]:
    """Σ p (log p − log q) for each q, with 0 log 0 = 0; +inf where p is possible and q is not."""
    terms = log_p.exp() * (log_p - log_q)
    return terms.masked_fill(log_q.isneginf(), math.inf).masked_fill(log_p.isneginf(), 0.0).sum(-1)


def _sampled_divergences(world: TaskMixture, length: int, samples: int, seed: int) -> TaskDivergences:
    at_least(samples, 2, "samples")
    generator = torch.Generator().manual_seed(seed)
    means, errors = [], []
    for task, start in enumerate(world.start):
        drawn, _ = world.hmm.sample_with_states(
            samples, length, seed=generator, initial=start.expand(samples, -1)
        )
        each, where = distinct(drawn)
        logs = torch.stack(
            [world.hmm.log_probability(each, other.expand(len(each), -1))[where] for other in world.start]
        )
        ratio = logs[task] - logs
        means.append(ratio.mean(-1))
        error = ratio.nan_to_num().std(-1) / math.sqrt(samples)
        errors.append(error.masked_fill(ratio.isinf().any(-1), 0.0))
    return TaskDivergences(length, torch.stack(means), torch.stack(errors), world.kl_threshold)


@dataclass(frozen=True, eq=False, repr=False)
class Concentration(Result):
    """How the posterior closes in on the task that demonstrations are drawn from."""

    main = "posterior"
    counts: tuple[int, ...]
    tasks: Int64[Tensor, " trial"]
    """θ* of each trial."""
    posterior: Float64[Tensor, "trial n"]
    """P(θ* | n demonstrations)."""
    log_odds: Float64[Tensor, "trial n"]
    """log P(θ*) / P(any other), given n demonstrations; +inf where the others are impossible."""
    divergences: TaskDivergences
    world: WorldInfo
    seed: int
    versions: Mapping[str, str] = field(default_factory=versions)

    def _problems(self) -> Iterator[str]:
        last = len(self.divergences.values) - 1
        yield from count_problems(self.counts, self.posterior.shape, 0)
        yield from broken(
            {
                f"tasks lie in 0…{last}; they are {self.tasks.unique().tolist()}": bool(
                    ((self.tasks >= 0) & (self.tasks <= last)).all()
                )
            }
        )

    def coords(self) -> dict[str, Sequence[Any]]:
        return {"n": list(self.counts)}

    @property
    def bound(self) -> Float64[Tensor, " n"]:
        """n (ε_KL − ln 1/(ε_r ε_d)): the growth of the log-odds that the proof's bound allows.

        Vacuous where it is not above 0: then the bound does not say that the task is found.
        """
        eps_kl, threshold = self.divergences.eps_kl, self.divergences.threshold
        # ε_KL = ∞ says that a rival will be ruled out at some time, a threshold of ∞ that the task can be lost.
        slope = -math.inf if threshold == math.inf else eps_kl - threshold
        return torch.tensor([n * slope if n else 0.0 for n in self.counts], dtype=torch.float64)

    def table(self) -> pd.DataFrame:
        """One row per number of demonstrations."""
        # Order statistics, so that +inf is one of the values and not arithmetic.
        rank = (torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64) * (len(self.log_odds) - 1)).round().long()
        low, middle, high = self.log_odds.sort(0).values[rank]
        columns = {
            "posterior": self.posterior.mean(0),
            "posterior_least": self.posterior.min(0).values,
            "log_odds_10": low,
            "log_odds_50": middle,
            "log_odds_90": high,
            "ruled_out": self.log_odds.isposinf().double().mean(0),
            "bound": self.bound,
        }
        return long_form(["n"], columns, coords=self.coords())

    def to_dataframe(self) -> pd.DataFrame:
        """Long form: one row a trial and number of demonstrations."""
        return super().to_dataframe().rename(columns={"tasks": "task"})

    def figure(self) -> Figure:
        """The log-odds beside the bound, and the divergences beside the threshold."""
        table, bound, apart = self.table(), self.bound, self.divergences
        odds, low, high = (
            torch.tensor(table[f"log_odds_{at}"].tolist(), dtype=torch.float64) for at in (50, 10, 90)
        )
        lines = [Series("median; 10 to 90 % of trials", self.counts, odds, low, high)]
        if int(bound.isfinite().sum()) > 1:
            lines.append(Series("bound: n (ε_KL − threshold)", self.counts, bound))
            why = "" if apart.eps_kl > apart.threshold else "; the bound does not rise: it says nothing"
        elif apart.threshold == math.inf:
            why = "; the threshold is infinite, a task can be lost at a delimiter: no bound"
        else:
            why = ", for every task gives examples that the others cannot; the bound, infinite with it, is not drawn"
        return concentration_figure(
            lines,
            apart.values,
            apart.threshold,
            subtitle=f"{self.world.name}: {len(self.posterior)} trials; {apart}{why}",
            name=f"posterior concentration on {self.world.name}",
        )

    def __repr__(self) -> str:
        return (
            f"Concentration({self.world.name}: {len(self.posterior)} trials; {self.divergences})\n"
            + self.table().to_string(index=False, float_format=lambda x: f"{x:.4g}")
        )


def posterior_concentration(
    world: TaskMixture, counts: Sequence[int] = (0, 1, 2, 4, 8, 16), *, trials: int = 300, seed: int = 0
) -> Concentration:
    """The posterior of the true task against the number of demonstrations, over `trials` prompts."""
    prompts = world.sample_prompts(trials, max(counts), seed=seed)
    weights = log_task_weights(world, prompts)[:, list(check_counts(counts, prompts.demos))]
    index = prompts.true_tasks[:, None, None].expand(-1, weights.shape[1], 1)
    own = weights.gather(-1, index).squeeze(-1)
    others = torch.logsumexp(weights.scatter(-1, index, -math.inf), -1)
    return Concentration(
        counts=tuple(counts),
        tasks=prompts.true_tasks,
        posterior=(own - torch.logsumexp(weights, -1)).exp(),
        log_odds=own - others,
        divergences=task_divergences(world),
        world=world.describe(),
        seed=seed,
    )
