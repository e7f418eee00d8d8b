"""Exact Bayesian prediction on prompts of any number of demonstrations, and how it finds the task.

    P(Y | x_1, y_1, …, x_n, y_n, x_test)  ∝  Σ_θ w_n(θ) P(x_test, Y | θ)
    w_n(θ') = Σ_θ w_{n-1}(θ) M_n[θ, θ'],     M_i[θ, θ'] = (1 − ε_r)^{l+1} ε_r · start_θᵀ T_{x_i y_i} R[:, θ']

with w_0 the prior and R the restart matrix: the forward pass of the world's HMM, kept only at the
delimiters. With tasks that never mix M is diagonal and this is Π_i P(x_i, y_i | θ). Answers are symbols: the
prediction is conditional on the answer not being the delimiter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from icl_kernel_lens.results import store
from icl_kernel_lens.results.run_info import versions
from icl_kernel_lens.theory.checks import TheoryError, at_least
from icl_kernel_lens.theory.hmm import log_matmul
from icl_kernel_lens.theory.mixture import Prompts, TaskMixture
from icl_kernel_lens.theory.operators import all_sequences, log_answers, log_start_rows

if TYPE_CHECKING:
    import pandas as pd

    from icl_kernel_lens.plots.figure import Figure


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
    if not found or min(found) < 0 or max(found) > demos or sorted(set(found)) != list(found):
        raise TheoryError(
            f"numbers of demonstrations must rise from 0 or more to at most the {demos} of the prompts; got {found}."
        )
    return found


def log_examples(
    world: TaskMixture,
    inputs: Int64[Tensor, "example position"],
    answers: Int64[Tensor, " example"],
) -> Float64[Tensor, "example task task"]:
    """log M[θ, θ'] of each demonstration and its delimiter: from a start in θ to the next start in θ'."""
    both = torch.cat([inputs, answers[:, None]], 1)
    each, where = both.unique(dim=0, return_inverse=True)
    found = log_matmul(log_start_rows(world, each), world.restart)
    return (found + both.shape[1] * math.log1p(-world.delimiter_rate) + math.log(world.delimiter_rate))[where]


def log_task_weights(world: TaskMixture, prompts: Prompts) -> Float64[Tensor, "prompt given task"]:
    """log P(first n demonstrations, next task), n = 0 … all: the prior carried through the demonstrations."""
    world.check_prompts(prompts)
    count, demos = len(prompts), prompts.demos
    weights = [world.prior.log().expand(count, -1)]
    if demos:
        steps = log_examples(world, prompts.inputs.flatten(0, 1), prompts.answers.flatten())
        for step in steps.unflatten(0, (count, demos)).unbind(1):
            weights.append(torch.logsumexp(weights[-1][:, :, None] + step, 1))
    return torch.stack(weights, 1)


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
    each, where = prompts.test_inputs.unique(dim=0, return_inverse=True)
    joint = log_answers(world, log_start_rows(world, each))
    given_task = torch.logsumexp(joint, -1)[where]
    seen = weights + given_task[:, None]
    log_marginal = torch.logsumexp(seen, -1)
    posterior_with_input = _normalised(seen)
    log_given = (joint - torch.logsumexp(joint, -1, keepdim=True)).nan_to_num(nan=-math.inf)[where]
    prediction = torch.einsum("pnt,pty->pny", posterior_with_input, log_given.exp())
    return BayesPrediction(
        counts=counts,
        prediction=prediction,
        posterior=_normalised(weights),
        posterior_with_input=posterior_with_input,
        log_marginal=log_marginal + world.input_length * math.log1p(-world.delimiter_rate),
    )


def _normalised(log_weights: Float64[Tensor, "prompt count task"]) -> Float64[Tensor, "prompt count task"]:
    total = torch.logsumexp(log_weights, -1, keepdim=True)
    return (log_weights - total).exp().masked_fill(total.isneginf(), float("nan"))


def task_prediction(
    world: TaskMixture, inputs: Int64[Tensor, "input position"]
) -> Float64[Tensor, "task input symbol"]:
    """P(Y | x, θ), what a predictor that knows the task says. NaN where P(x | θ) = 0."""
    joint = log_answers(world, log_start_rows(world, inputs))
    total = torch.logsumexp(joint, -1, keepdim=True)
    return (joint - total).exp().masked_fill(total.isneginf(), float("nan")).transpose(0, 1)


@dataclass(frozen=True, eq=False)
class TaskDivergences:
    """KL(P(o[0:length] | θ) ‖ P(o[0:length] | θ')) in nats, against what A2 asks."""

    length: int
    values: Float64[Tensor, "task task"]
    """Row θ, column θ'; +inf where θ emits what θ' never does."""
    standard_error: Float64[Tensor, "task task"]
    """0 when exact."""
    threshold: float
    """ln(1 / (ε_r ε_d))."""

    @property
    def eps_kl(self) -> float:
        """The least divergence of two distinct tasks; +inf for a single task."""
        apart = ~torch.eye(len(self.values), dtype=torch.bool)
        return float(self.values[apart].min()) if apart.any() else math.inf

    @property
    def holds(self) -> bool:
        """Whether A2 holds: ε_KL above the threshold."""
        return self.eps_kl > self.threshold


def task_divergences(
    world: TaskMixture, length: int | None = None, *, samples: int | None = None, seed: int = 0
) -> TaskDivergences:
    """How far apart the tasks are, on sequences of `length` symbols (None: one input and answer).

        ε_KL = inf_{θ ≠ θ'} KL(P(o[0:l] | θ') ‖ P(o[0:l] | θ))  >  ln(1 / (ε_r ε_d))       A2

    Exact by enumeration; with `samples`, the mean of log-ratios over that many sequences a task.
    Does not show: that tasks below the threshold cannot be told apart. The threshold is what the proof needs;
    with this delimiter, whose rate is the same in all states, any divergence above 0 suffices in the end, unless it
    switches tasks.
    """
    length = world.input_length + 1 if length is None else length
    at_least(length, 1, "length")
    if samples is not None:
        return _sampled_divergences(world, length, samples, seed)
    if length == 1:
        joint = log_matmul(world.start.log()[None], world.hmm.emission)
    else:
        joint = log_answers(world, log_start_rows(world, all_sequences(world.symbols, length - 1)))
    flat = joint.transpose(0, 1).flatten(1)
    values = torch.stack([torch.stack([_divergence(p, q) for q in flat]) for p in flat])
    return TaskDivergences(length, values, torch.zeros_like(values), world.kl_threshold)


def _divergence(log_p: Float64[Tensor, " outcome"], log_q: Float64[Tensor, " outcome"]) -> Tensor:
    """Σ p (log p − log q), with 0 log 0 = 0; +inf where p is possible and q is not."""
    possible = ~log_p.isneginf()
    log_p, log_q = log_p[possible], log_q[possible]
    if log_q.isneginf().any():
        return torch.tensor(math.inf, dtype=torch.float64)
    return (log_p.exp() * (log_p - log_q)).sum()


def _sampled_divergences(world: TaskMixture, length: int, samples: int, seed: int) -> TaskDivergences:
    at_least(samples, 2, "samples")
    generator = torch.Generator().manual_seed(seed)
    means, errors = [], []
    for start in world.start:
        drawn, _ = world.hmm.sample_with_states(
            samples, length, seed=generator, initial=start.expand(samples, -1)
        )
        each, where = drawn.unique(dim=0, return_inverse=True)
        logs = torch.stack(
            [world.hmm.log_probability(each, other.expand(len(each), -1))[where] for other in world.start]
        )
        own = logs[len(means)]
        ratio = own - logs
        means.append(ratio.mean(-1))
        errors.append(
            torch.where(ratio.isinf().any(-1), 0.0, ratio.nan_to_num().std(-1) / math.sqrt(samples))
        )
    return TaskDivergences(length, torch.stack(means), torch.stack(errors), world.kl_threshold)


@dataclass(frozen=True, eq=False, repr=False)
class Concentration:
    """How the posterior closes in on the task that demonstrations are drawn from."""

    counts: tuple[int, ...]
    tasks: Int64[Tensor, " trial"]
    posterior: Float64[Tensor, "trial count"]
    """P(θ* | n demonstrations)."""
    log_odds: Float64[Tensor, "trial count"]
    """log P(θ*) / P(any other), given n demonstrations; +inf where the others are impossible."""
    divergences: TaskDivergences
    world: Mapping[str, Any]
    seed: int
    versions: Mapping[str, str]

    @property
    def bound(self) -> Float64[Tensor, " count"]:
        """n (ε_KL − ln 1/(ε_r ε_d)): the growth of the log-odds that the proof's bound allows.

        Vacuous where it is not above 0: then the bound does not say that the task is found.
        """
        eps_kl, threshold = self.divergences.eps_kl, self.divergences.threshold
        # ε_KL = ∞ says that a rival will be ruled out at some time, a threshold of ∞ that the task can be lost.
        slope = -math.inf if threshold == math.inf else eps_kl - threshold
        return torch.tensor([n * slope if n else 0.0 for n in self.counts], dtype=torch.float64)

    def table(self) -> pd.DataFrame:
        """One row per number of demonstrations."""
        import pandas as pd

        edges = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        low, middle, high = _quantiles(self.log_odds, edges)
        return pd.DataFrame(
            {
                "n": self.counts,
                "posterior": self.posterior.mean(0).numpy(),
                "posterior_least": self.posterior.min(0).values.numpy(),
                "log_odds_10": low.numpy(),
                "log_odds_50": middle.numpy(),
                "log_odds_90": high.numpy(),
                "ruled_out": self.log_odds.isposinf().double().mean(0).numpy(),
                "bound": self.bound.numpy(),
            }
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Long form: one row a trial and number of demonstrations."""
        import pandas as pd

        trials, counts = self.posterior.shape
        return pd.DataFrame(
            {
                "trial": torch.arange(trials).repeat_interleave(counts).numpy(),
                "task": self.tasks.repeat_interleave(counts).numpy(),
                "n": self.counts * trials,
                "posterior": self.posterior.flatten().numpy(),
                "log_odds": self.log_odds.flatten().numpy(),
            }
        )

    def figure(self) -> Figure:
        """The log-odds beside the bound, and the divergences beside the threshold."""
        from icl_kernel_lens.plots.theory import concentration_figure

        return concentration_figure(self)

    def save(self, path: str | Path) -> Path:
        """Write the whole result; `load` reads it back."""
        tensors = {
            "tasks": self.tasks,
            "posterior": self.posterior,
            "log_odds": self.log_odds,
            "divergences": self.divergences.values,
            "divergences_error": self.divergences.standard_error,
            "threshold": torch.tensor([self.divergences.threshold], dtype=torch.float64),
        }
        meta = {
            "counts": list(self.counts),
            "length": self.divergences.length,
            "world": dict(self.world),
            "seed": self.seed,
            "run": {"versions": dict(self.versions)},
        }
        return store.write(path, "Concentration", tensors, meta)

    @classmethod
    def load(cls, path: str | Path) -> Concentration:
        """Read what `save` wrote.

        Raises: LoadError: another kind of file, another format version, or a damaged one.
        """
        tensors, meta = store.read(path, "Concentration")
        try:
            return cls(
                counts=tuple(meta["counts"]),
                tasks=tensors["tasks"],
                posterior=tensors["posterior"],
                log_odds=tensors["log_odds"],
                divergences=TaskDivergences(
                    meta["length"],
                    tensors["divergences"],
                    tensors["divergences_error"],
                    float(tensors["threshold"]),
                ),
                world=meta["world"],
                seed=meta["seed"],
                versions=meta["run"]["versions"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise store.missing_field(path, "Concentration", error) from error

    def __repr__(self) -> str:
        found = self.divergences
        return (
            f"Concentration({self.world['name']}: {len(self.posterior)} trials; ε_KL = {found.eps_kl:.3g}, threshold "
            f"{found.threshold:.3g}: A2 {'holds' if found.holds else 'does not hold'})\n"
            + self.table().to_string(index=False, float_format=lambda x: f"{x:.4g}")
        )


def _quantiles(
    values: Float64[Tensor, "trial count"], edges: Float64[Tensor, " edge"]
) -> Float64[Tensor, "edge count"]:
    """Order statistics, so that +inf is one of the values and not arithmetic."""
    rank = (edges * (len(values) - 1)).round().long()
    return values.sort(0).values[rank]


def posterior_concentration(
    world: TaskMixture, counts: Sequence[int] = (0, 1, 2, 4, 8, 16), *, trials: int = 300, seed: int = 0
) -> Concentration:
    """The posterior of the true task against the number of demonstrations, over `trials` prompts."""
    prompts = world.sample_prompts(trials, max(counts), seed=seed)
    assert prompts.tasks is not None
    weights = log_task_weights(world, prompts)[:, list(check_counts(counts, prompts.demos))]
    index = prompts.tasks[:, None, None].expand(-1, weights.shape[1], 1)
    own = weights.gather(-1, index).squeeze(-1)
    others = torch.logsumexp(weights.scatter(-1, index, -math.inf), -1)
    return Concentration(
        counts=tuple(counts),
        tasks=prompts.tasks,
        posterior=(own - torch.logsumexp(weights, -1)).exp(),
        log_odds=own - others,
        divergences=task_divergences(world),
        world=world.describe(),
        seed=seed,
        versions=versions(),
    )
