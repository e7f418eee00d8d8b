"""Theorem 1 of Han et al. (TMLR 2025) measured: kernel regression against exact Bayesian prediction.

    ‖ŷ − P(Y | o_ICL, p_pre)‖_∞  =  η² ε_θ  +  O(√(ln(4m/δ) / n))           Eq. 7

    η = sup_x ‖v(x)‖_F        ε_θ = ρ(Σ_pre⁺ − Σ_θ⁺), the spectral radius

`measure_theorem` draws prompts and measures the left side; `theorem_terms` computes the right side's terms for
the world at hand, with 1 for the constant that O(…) leaves open. Two predictions are never further apart than 1
in L∞, so a term of 1 or more says nothing: it is *vacuous*.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from icl_kernel_lens.charts.figure import Figure
from icl_kernel_lens.charts.theory import Series, theorem_figure
from icl_kernel_lens.numbers.intervals import RATE, bootstrap_counts, cluster_bootstrap, interval_of
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.results.base import Result, broken, long_form
from icl_kernel_lens.results.run_info import versions
from icl_kernel_lens.theory.bayes import (
    bayesian_prediction,
    check_counts,
    count_problems,
    same_first_answer,
    true_prediction,
)
from icl_kernel_lens.theory.checks import TheoryError, at_least, require
from icl_kernel_lens.theory.kernel import (
    OperatorKernel,
    Variant,
    enumerate_inputs,
    fit_kernel,
    operator_features,
)
from icl_kernel_lens.theory.mixture import Prompts, TaskMixture, WorldInfo
from icl_kernel_lens.theory.regression import GUARD, Negative, kernel_regression

if TYPE_CHECKING:
    import pandas as pd

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
PAPER: Mapping[str, tuple[float, ...]] = {
    "distance": (1.322, 0.942, 0.519, 0.218, 0.163, 0.085, 0.093, 0.083),
    "accuracy": (0.337, 0.532, 0.745, 0.901, 0.926, 0.968, 0.961, 0.964),
}
"""The paper's Table 3, at the numbers of demonstrations of `COUNTS`; which distance it is, it does not say."""


@dataclass(frozen=True, eq=False)
class TheoremTerms(Result):
    """The right side of Eq. 7 for one world and kernel."""

    variant: Variant
    eta: float
    """η: the largest ‖v(x)‖ over inputs that can occur (rows at the start states, as the kernel uses)."""
    eps_theta: Float64[Tensor, " task"]
    """ε_θ of each task, at the world's input length (the paper takes the infimum over lengths)."""
    symbols: int
    delta: float
    """δ: the chance that the bound fails."""
    versions: Mapping[str, str] = field(default_factory=versions)

    def _problems(self) -> Iterator[str]:
        return broken(
            {
                "η, and ε_θ of at least one task, must be 0 or more": (
                    len(self.eps_theta) > 0 and not (self.eps_theta < 0).any() and self.eta >= 0
                ),
                f"delta lies between 0 and 1 and symbols from 1 on; they are {self.delta} and {self.symbols}": (
                    0 < self.delta < 1 and self.symbols >= 1
                ),
            }
        )

    @property
    def bias(self) -> Float64[Tensor, " task"]:
        """η² ε_θ: the term that does not fall with n."""
        return self.eta * self.eta * self.eps_theta

    def sampling(self, n: int) -> float:
        """√(ln(4m/δ) / n), the term that does; its constant is taken as 1."""
        at_least(n, 1, "n")
        return math.sqrt(math.log(4 * self.symbols / self.delta) / n)

    def bound(self, n: int) -> Float64[Tensor, " task"]:
        """Their sum, for each task."""
        return self.bias + self.sampling(n)

    def vacuous(self, n: int) -> bool:
        """Whether the bound is 1 or more for every task: no two predictions are further apart."""
        return bool((self.bound(n) >= 1).all())

    def __str__(self) -> str:
        always = int((self.bias >= 1).sum())
        return (
            f"η = {self.eta:.4g}, ε_θ from {float(self.eps_theta.min()):.4g} to {float(self.eps_theta.max()):.4g}; "
            f"η²ε_θ is 1 or more, so that the bound says nothing whatever n is, for {always} of "
            f"{len(self.eps_theta)} tasks"
        )


def inverse_moment_gap(first: OperatorKernel, second: OperatorKernel) -> float:
    """ρ(Σ₁⁺ − Σ₂⁺) from the two designs' singular value decompositions, neither moment formed.

    Both inverses are Q Qᵀ with Q = V S⁻¹; with [Q₁ Q₂] = O R the difference has the eigenvalues of R diag(1, −1) Rᵀ.
    """
    both = [kernel.directions / kernel.singular_values for kernel in (first, second)]
    sign = torch.cat([torch.ones(first.rank), -torch.ones(second.rank)]).double()
    upper = torch.linalg.qr(torch.cat(both, 1), mode="r")[1]
    return float(torch.linalg.eigvalsh((upper * sign) @ upper.T).abs().max())


def theorem_terms(world: TaskMixture, variant: Variant | None = None, *, delta: float = 0.05) -> TheoremTerms:
    """η, ε_θ and what they make of Eq. 7, over all inputs of the world.

    The variant says what v(x) is; the two moments compared are those of pre-training and of each task.

    Raises: TheoryError: δ outside (0, 1), or more inputs than are enumerated.
    """
    variant = variant or Variant()
    require(
        0 < delta < 1,
        f"delta must lie between 0 and 1; got {delta}. For 95 % certainty, pass 0.05.",
        code="number-range",
    )
    inputs = enumerate_inputs(world)
    eta, gaps, pre = 0.0, [], None
    for task in range(world.tasks):
        if pre is None or variant.divide == "task":
            rows = operator_features(inputs, variant.divide, task)
            eta = max(eta, float(rows.norm(dim=-1).nan_to_num().max()))
            pre = fit_kernel(world, replace(variant, moment="pre"), task=task, inputs=inputs)
        own = fit_kernel(world, replace(variant, moment="task"), task=task, inputs=inputs)
        gaps.append(inverse_moment_gap(pre, own))
    return TheoremTerms(variant, eta, torch.tensor(gaps, dtype=torch.float64), world.symbols, delta)


@dataclass(frozen=True)
class Rate:
    """The slope of log distance against log n, and its bootstrap interval over trials."""

    slope: float
    low: float
    high: float
    level: float

    def __str__(self) -> str:
        return f"{self.slope:.2f} [{self.low:.2f}, {self.high:.2f}]"


def slope(x: Float64[Tensor, " point"], y: Float64[Tensor, "*row point"]) -> Float64[Tensor, "*row"]:
    """Of y against x, by least squares."""
    centred = x - x.mean()
    return y @ centred / centred.square().sum()


Distance = Literal["l1", "linf"]


@dataclass(frozen=True)
class TheoremSettings:
    """What makes the numbers of a `TheoremResult` again, beside its world and numbers of demonstrations."""

    variant: Variant
    trials: int
    seed: int
    guard: float
    negative: Negative
    floor: float | None
    samples: int | None
    sampling_error: float


@dataclass(frozen=True, eq=False, repr=False)
class TheoremResult(Result):
    """Kernel regression beside exact Bayesian prediction, one row a prompt, one column a number of demonstrations.

    NaN: kernel regression was refused there; `reasons` says why. Means are over what was scored, so read
    `scored` beside them: where few are, they are the easy ones.
    """

    counts: tuple[int, ...]
    l1: Float64[Tensor, "trial n"]
    """Σ_y |ŷ_y − P(y | prompt)|, between 0 and 2 while ŷ lies in [0, 1]."""
    linf: Float64[Tensor, "trial n"]
    """max_y |ŷ_y − P(y | prompt)|: the distance that Eq. 7 is about."""
    agree: Float64[Tensor, "trial n"]
    """1 where both have the same first answer, else 0."""
    task_l1: Float64[Tensor, "trial n"]
    """Σ_y |ŷ_y − P(y | x_test, θ*)|: the same against one who knows the task."""
    posterior: Float64[Tensor, "trial n"]
    """P(θ* | prompt), test input included."""
    denominator: Float64[Tensor, "trial n"]
    """(1/n) Σ_i K(x_test, x_i); 1 on average over x_test of pre-training as n → ∞."""
    amplification: Float64[Tensor, "trial n"]
    """Σ|K| / |ΣK|."""
    negative_share: Float64[Tensor, "trial n"]
    """The share of Σ|K| that is negative."""
    tasks: Int64[Tensor, " trial"]
    """θ* of each trial."""
    reasons: Mapping[Reason, int]
    """Why (trial, n) cells are NaN, and how many."""
    condition: float
    """Of the design (the worst, if tasks have designs of their own)."""
    rank: int
    """Of the design (the smallest, if tasks have designs of their own)."""
    world: WorldInfo
    settings: TheoremSettings
    versions: Mapping[str, str] = field(default_factory=versions)

    def _problems(self) -> Iterator[str]:
        yield from count_problems(self.counts, self.l1.shape, 1)
        yield from broken(
            {
                "distances must be finite and not below 0": not any(
                    ((found < 0) | found.isinf()).any() for found in (self.l1, self.linf, self.task_l1)
                ),
                "agreement must be 0, 1 or NaN": bool(
                    (self.agree.isnan() | (self.agree == 0) | (self.agree == 1)).all()
                ),
            }
        )

    def coords(self) -> dict[str, Sequence[Any]]:
        return {"n": list(self.counts)}

    @property
    def scored(self) -> Float64[Tensor, " n"]:
        """The share of trials in which kernel regression gave a prediction."""
        return 1 - self.l1.isnan().double().mean(0)

    def mean(self, name: Distance | Literal["agree", "task_l1"] = "l1") -> Float64[Tensor, " n"]:
        """The mean over scored trials."""
        return getattr(self, name).nanmean(0)

    def agreement(self) -> Float64[Tensor, " n"]:
        """Argmax agreement over all trials, a refusal counting as a disagreement."""
        return self.agree.nan_to_num(0.0).mean(0)

    def rate(
        self,
        name: Distance = "l1",
        *,
        least: int = 1,
        level: float = 0.95,
        draws: int = 1000,
        seed: int = 0,
    ) -> Rate:
        """Slope of log mean distance on log n for n ≥ `least`, by least squares; the theorem's is −1/2.

        Does not show: a law. Where refusals thin out the small n, the slope starts from the wrong place.

        Raises: TheoryError: fewer than two numbers of demonstrations with a distance.
        """
        require(
            0 < level < 1,
            f"level must lie between 0 and 1; got {level}. For 95 %, pass 0.95.",
            code="number-range",
        )
        at = torch.tensor(self.counts, dtype=torch.float64)
        values = getattr(self, name)
        use = (at >= max(1, least)) & (values.nanmean(0).nan_to_num() > 0)
        require(
            int(use.sum()) >= 2,
            f"a rate needs distances above 0 at two numbers of demonstrations; there are {int(use.sum())} "
            f"from n = {least} on. Measure at more of them.",
            code="nothing-scored",
        )
        values, log_n = values[:, use], at[use].log()
        times = torch.cat([torch.ones(1, len(values)).double(), bootstrap_counts(len(values), draws, seed)])
        means = (times @ values.nan_to_num(0.0)) / (times @ (~values.isnan()).double())
        slopes = slope(log_n, means.log())
        edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        low, high = slopes[1:].nanquantile(edges).tolist()
        return Rate(float(slopes[0]), low, high, level)

    def table(self) -> pd.DataFrame:
        """One row per number of demonstrations: the paper's Table 3, and what it leaves unsaid."""
        columns = {
            "l1": self.mean("l1"),
            "l1_median": self.l1.nanmedian(0).values,
            "linf": self.mean("linf"),
            "task_l1": self.mean("task_l1"),
            "agree": self.mean("agree"),
            "agree_of_all": self.agreement(),
            "scored": self.scored,
            "posterior": self.posterior.mean(0),
            "negative_share": self.negative_share.nanmean(0),
        }
        return long_form(["n"], columns, coords=self.coords())

    def interval(
        self,
        name: Distance | Literal["agree"] = "l1",
        *,
        level: float = 0.95,
        draws: int = 1000,
        seed: int = 0,
    ) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
        """Bootstrap interval over trials, of `mean`; for "agree" Clopper–Pearson's, of `agreement`.

        The world is the same in all.
        """
        values = getattr(self, name)
        trials = torch.arange(len(values))
        if name == "agree":
            return interval_of(RATE, values.nan_to_num(0.0), trials, level=level)
        return cluster_bootstrap(values, trials, level=level, draws=draws, seed=seed)

    def beside_paper(self) -> pd.DataFrame:
        """Ours beside the paper's Table 3, for the numbers of demonstrations that both have."""
        printed = {f"paper_{name}": torch.tensor(row, dtype=torch.float64) for name, row in PAPER.items()}
        both = self.table().merge(long_form(["n"], printed, coords={"n": COUNTS}), on="n")
        columns = ["n", "l1", "linf", "paper_distance", "agreement", "paper_accuracy"]
        return both.rename(columns={"agree_of_all": "agreement"}).reindex(columns=columns)

    def figure(self, *, letter: TheoremResult | None = None, terms: TheoremTerms | None = None) -> Figure:
        """Distance and agreement against n; beside them the paper's, Eq. 6 by its letter, and the bound's terms.

        Bars are 95 % intervals over trials of one world. In the middle, the sampling term of the bound, its constant
        taken as 1; above 1 (the grey area) a bound says nothing, for two predictions are never further apart.
        """
        runs = {OURS: self} | ({BY_LETTER: letter} if letter is not None else {})
        lines = {
            name: [
                Series(
                    label,
                    run.counts,
                    run.agreement() if name == "agree" else run.mean(name),
                    *run.interval(name),
                )
                for label, run in runs.items()
            ]
            for name in ("l1", "linf", "agree")
        }
        if self.world.name == "han2025":
            paper = self.beside_paper()
            for name, column in (("l1", "paper_distance"), ("agree", "paper_accuracy")):
                printed = torch.tensor(paper[column].tolist(), dtype=torch.float64)
                lines[name].append(Series("the paper's Table 3", paper["n"].tolist(), printed))
        share = self.scored
        said = [
            f"{self.world.name}: {self.world.sizes}, inputs of {self.world.input_length}; {len(self.l1)} trials; bars: "
            "95 % over trials",
            f"slope of log distance on log n: L1 {self._rate('l1')}, L∞ {self._rate('linf')}; the theorem's is −0.5",
            f"share of prompts with a prediction ({OURS}): {float(share.min()):.0%} to {float(share.max()):.0%}; "
            "a refusal counts as a disagreement",
        ]
        if terms is not None:
            term = torch.tensor([terms.sampling(n) for n in self.counts], dtype=torch.float64)
            lines["linf"].append(Series("√(ln(4m/δ)/n)", self.counts, term))
            low, high = float(terms.bias.min()), float(terms.bias.max())
            verdict = "above 1, so that the bound is vacuous for every task and n; off the scale, not drawn"
            said.append(
                f"the bound's other term, η²ε_θ, is {low:.2g} to {high:.2g}: {verdict if low >= 1 else 'not drawn'}"
            )
        return theorem_figure(
            lines["l1"],
            lines["linf"],
            lines["agree"],
            vacuous=None if terms is None else terms.sampling(min(self.counts)),
            subtitle=said,
            name=f"Theorem 1 measured on {self.world.name}",
        )

    def _rate(self, name: Distance) -> str:
        try:
            return str(self.rate(name))
        except TheoryError:
            return "not told"

    def to_dataframe(self) -> pd.DataFrame:
        """Long form: one row a trial and number of demonstrations."""
        return super().to_dataframe().rename(columns={"tasks": "task"})

    def __repr__(self) -> str:
        lines = [
            f"TheoremResult({self.world.name}: {self.world.sizes}; {len(self.l1)} trials; design of rank {self.rank}, "
            f"condition {self.condition:.3g})",
            self.table().to_string(index=False, float_format=lambda x: f"{x:.3f}"),
        ]
        lines += [f"  NaN: {why.message} ({count} cells)" for why, count in self.reasons.items()]
        return "\n".join(lines)


OURS, BY_LETTER = "ours", "ours, nothing refused"


LETTER: Mapping[str, Any] = {"guard": 0.0, "negative": "keep", "floor": 0.0}
"""Options of `measure_theorem` with which nothing is refused that can be divided."""


def measure_theorem(
    world: TaskMixture,
    n: Sequence[int] = COUNTS,
    trials: int = 300,
    seed: int = 0,
    *,
    variant: Variant | None = None,
    guard: float = GUARD,
    negative: Negative = "refuse",
    floor: float | None = None,
    samples: int | None = None,
    kernel: OperatorKernel | None = None,
) -> TheoremResult:
    """Distance and argmax agreement of kernel regression and exact Bayes, against n.

    Each trial draws θ* from the prior and one prompt of max(n) demonstrations, which is cut to every n. The moment is
    over all inputs, or over `samples` of them; a `kernel` fitted before, to this world, saves doing it again. A variant
    that needs the task is fitted to each trial's own. `guard` and `negative` are those of `kernel_regression`, `floor`
    that of `OperatorKernel.weights`; `**LETTER` (guard=0, negative="keep", floor=0) is Eq. 6 by its letter.

    Raises: TheoryError: numbers that do not rise or are below 1, no trials, too many inputs to enumerate.
    """
    variant = variant or (Variant() if kernel is None else kernel.variant)
    require(
        kernel is None or (kernel.world is world and kernel.variant == variant and not variant.needs_task),
        "a kernel fitted before must be of this very world and variant, and of one that needs no task; fit it with "
        "fit_kernel(world, variant), or leave it out.",
        code="theory-kernel",
    )
    at_least(trials, 1, "trials")
    require(
        len(n) > 0 and min(n) >= 1,
        f"n must be numbers of at least one demonstration; got {tuple(n)}.",
        code="number-range",
    )
    counts = check_counts(n, max(n))
    prompts = world.sample_prompts(trials, max(counts), seed=seed)
    tasks = prompts.true_tasks
    if kernel is None and not variant.needs_task:
        kernel = fit_kernel(world, variant, samples=samples, seed=seed)
    if kernel is None:
        kernels, weights = _fitted_by_task(world, prompts, variant, samples, seed, floor)
    else:
        kernels, weights = [kernel], kernel.weights(prompts.test_inputs, prompts.inputs, floor=floor)
    found = kernel_regression(
        weights,
        prompts.answers,
        world.symbols,
        counts,
        readout=variant.readout,
        guard=guard,
        negative=negative,
    )
    bayes = bayesian_prediction(world, prompts, counts)
    gap = (found.prediction - bayes.prediction).abs()
    sampling_error = max(kernel.sampling_error for kernel in kernels)
    return TheoremResult(
        counts=counts,
        l1=gap.sum(-1),
        linf=gap.max(-1).values,
        agree=same_first_answer(found.prediction, bayes.prediction),
        task_l1=(found.prediction - true_prediction(world, prompts)[:, None]).abs().sum(-1),
        posterior=bayes.posterior_with_input[torch.arange(trials), :, tasks],
        denominator=found.denominator,
        amplification=found.amplification,
        negative_share=found.negative_share,
        tasks=tasks,
        reasons=found.reasons,
        condition=max(kernel.condition for kernel in kernels),
        rank=min(kernel.rank for kernel in kernels),
        world=world.describe(),
        settings=TheoremSettings(variant, trials, seed, guard, negative, floor, samples, sampling_error),
    )


def _fitted_by_task(
    world: TaskMixture,
    prompts: Prompts,
    variant: Variant,
    samples: int | None,
    seed: int,
    floor: float | None,
) -> tuple[list[OperatorKernel], Float64[Tensor, "prompt demo"]]:
    """The kernels of a variant that needs the task, one a task, and the demonstrations' weights."""
    inputs = enumerate_inputs(world) if samples is None else None
    kernels, weights = [], torch.zeros(prompts.answers.shape, dtype=torch.float64)
    for task in prompts.true_tasks.unique().tolist():
        kernels.append(fit_kernel(world, variant, task=task, samples=samples, seed=seed, inputs=inputs))
        mine = prompts.true_tasks == task
        weights[mine] = kernels[-1].weights(prompts.test_inputs[mine], prompts.inputs[mine], floor=floor)
    return kernels, weights
