"""Theorem 1 of Han et al. (TMLR 2025) measured: kernel regression against exact Bayesian prediction.

    ‖ŷ − P(Y | o_ICL, p_pre)‖_∞  =  η² ε_θ  +  O(√(ln(4m/δ) / n))           Eq. 7

    η = sup_x ‖v(x)‖_F        ε_θ = ρ(Σ_pre⁺ − Σ_θ⁺), the spectral radius

`measure_theorem` draws prompts and measures the left side; `theorem_terms` computes the right side's terms for
the world at hand, with 1 for the constant that O(…) leaves open. Two predictions are never further apart than 1
in L∞, so a term of 1 or more says nothing: it is *vacuous*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from icl_kernel_lens.results import store
from icl_kernel_lens.results.resample import cluster_bootstrap
from icl_kernel_lens.results.run_info import versions
from icl_kernel_lens.theory.bayes import bayesian_prediction, check_counts, task_prediction
from icl_kernel_lens.theory.checks import TheoryError, at_least
from icl_kernel_lens.theory.kernel import (
    GUARD,
    OperatorKernel,
    Regression,
    Variant,
    fit_kernel,
    kernel_regression,
    operator_features,
)
from icl_kernel_lens.theory.mixture import Prompts, TaskMixture
from icl_kernel_lens.theory.operators import enumerate_inputs

if TYPE_CHECKING:
    import pandas as pd

    from icl_kernel_lens.plots.figure import Figure

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
PAPER: Mapping[str, tuple[float, ...]] = {
    "distance": (1.322, 0.942, 0.519, 0.218, 0.163, 0.085, 0.093, 0.083),
    "accuracy": (0.337, 0.532, 0.745, 0.901, 0.926, 0.968, 0.961, 0.964),
}
"""The paper's Table 3, at the numbers of demonstrations of `COUNTS`; which distance it is, it does not say."""


@dataclass(frozen=True, eq=False)
class TheoremTerms:
    """The right side of Eq. 7 for one world and kernel."""

    variant: Variant
    eta: float
    """η: the largest ‖v(x)‖ over inputs that can occur (rows at the start states, as the kernel uses)."""
    eps_theta: Float64[Tensor, " task"]
    """ε_θ of each task, at the world's input length (the paper takes the infimum over lengths)."""
    symbols: int
    delta: float

    @property
    def bias(self) -> Float64[Tensor, " task"]:
        """η² ε_θ: the term that does not fall with n."""
        return self.eta**2 * self.eps_theta

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

    def save(self, path: str | Path) -> Path:
        """Write the whole result; `load` reads it back."""
        meta = {name: getattr(self, name) for name in ("eta", "symbols", "delta")}
        meta |= {"variant": asdict(self.variant), "run": {"versions": versions()}}
        return store.write(path, "TheoremTerms", {"eps_theta": self.eps_theta}, meta)

    @classmethod
    def load(cls, path: str | Path) -> TheoremTerms:
        """Read what `save` wrote.

        Raises: LoadError: another kind of file, another format version, or a damaged one.
        """
        tensors, meta = store.read(path, "TheoremTerms")
        try:
            return cls(
                variant=Variant(**meta["variant"]),
                eps_theta=tensors["eps_theta"],
                **{name: meta[name] for name in ("eta", "symbols", "delta")},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise store.missing_field(path, "TheoremTerms", error) from error

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
    if not 0 < delta < 1:
        raise TheoryError(f"delta must lie between 0 and 1; got {delta}. For 95 % certainty, pass 0.05.")
    inputs = enumerate_inputs(world)
    divide = variant.divide
    eta, gaps, pre = 0.0, [], None
    for task in range(world.tasks):
        if pre is None or divide == "task":
            rows = operator_features(inputs, divide, task)
            eta = max(eta, float(rows.norm(dim=-1).nan_to_num().max()))
            pre = fit_kernel(world, Variant(divide, "pre", centred=variant.centred), task=task, inputs=inputs)
        own = fit_kernel(world, Variant(divide, "task", centred=variant.centred), task=task, inputs=inputs)
        gaps.append(inverse_moment_gap(pre, own))
    return TheoremTerms(variant, eta, torch.tensor(gaps, dtype=torch.float64), world.symbols, delta)


@dataclass(frozen=True)
class Rate:
    """The slope of log distance against log n, and its bootstrap interval over trials."""

    slope: float
    low: float
    high: float
    level: float


Distance = Literal["l1", "linf"]


@dataclass(frozen=True, eq=False, repr=False)
class TheoremResult:
    """Kernel regression beside exact Bayesian prediction, one row a prompt, one column a number of demonstrations.

    NaN: kernel regression was refused there; `reasons` says why. Means are over what was scored, so read
    `scored` beside them: where few are, they are the easy ones.
    """

    counts: tuple[int, ...]
    l1: Float64[Tensor, "trial count"]
    """Σ_y |ŷ_y − P(y | prompt)|, between 0 and 2 while ŷ lies in [0, 1]."""
    linf: Float64[Tensor, "trial count"]
    """max_y |ŷ_y − P(y | prompt)|: the distance that Eq. 7 is about."""
    agree: Float64[Tensor, "trial count"]
    """1 where both have the same first answer, else 0."""
    task_l1: Float64[Tensor, "trial count"]
    """Σ_y |ŷ_y − P(y | x_test, θ*)|: the same against one who knows the task."""
    posterior: Float64[Tensor, "trial count"]
    """P(θ* | prompt), test input included."""
    denominator: Float64[Tensor, "trial count"]
    """(1/n) Σ_i K(x_test, x_i); 1 on average over x_test of pre-training as n → ∞."""
    amplification: Float64[Tensor, "trial count"]
    """Σ|K| / |ΣK|."""
    negative_share: Float64[Tensor, "trial count"]
    """The share of Σ|K| that is negative."""
    tasks: Int64[Tensor, " trial"]
    """θ* of each trial."""
    reasons: Mapping[str, int]
    condition: float
    """Of the design (the worst, if tasks have designs of their own)."""
    rank: int
    """Of the design (the smallest, if tasks have designs of their own)."""
    settings: Mapping[str, Any]
    """World, variant, seed, guard: what makes the same numbers again."""
    versions: Mapping[str, str]

    @property
    def scored(self) -> Float64[Tensor, " count"]:
        """The share of trials in which kernel regression gave a prediction."""
        return 1 - self.l1.isnan().double().mean(0)

    def mean(self, name: Distance | Literal["agree", "task_l1"] = "l1") -> Float64[Tensor, " count"]:
        """The mean over scored trials."""
        return getattr(self, name).nanmean(0)

    def agreement(self) -> Float64[Tensor, " count"]:
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
        if not 0 < level < 1:
            raise TheoryError(f"level must lie between 0 and 1; got {level}. For 95 %, pass 0.95.")
        at = torch.tensor(self.counts, dtype=torch.float64)
        values = getattr(self, name)
        use = (at >= max(1, least)) & (values.nanmean(0).nan_to_num() > 0)
        if int(use.sum()) < 2:
            raise TheoryError(
                f"a rate needs distances above 0 at two numbers of demonstrations; there are {int(use.sum())} "
                f"from n = {least} on. Measure at more of them."
            )
        values, log_n = values[:, use], at[use].log()
        trials = len(values)
        generator = torch.Generator().manual_seed(seed)
        picks = torch.randint(trials, (draws, trials), generator=generator)
        times = torch.zeros(draws + 1, trials, dtype=torch.float64)
        times[1:].scatter_add_(1, picks, torch.ones(1, dtype=torch.float64).expand(draws, trials))
        times[0] = 1
        means = (times @ values.nan_to_num(0.0)) / (times @ (~values.isnan()).double())
        centred = log_n - log_n.mean()
        slopes = means.log() @ centred / centred.square().sum()
        edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        low, high = slopes[1:].nanquantile(edges).tolist()
        return Rate(float(slopes[0]), low, high, level)

    def table(self) -> pd.DataFrame:
        """One row per number of demonstrations: the paper's Table 3, and what it leaves unsaid."""
        import pandas as pd

        return pd.DataFrame(
            {
                "n": self.counts,
                "l1": self.mean("l1").numpy(),
                "l1_median": self.l1.nanmedian(0).values.numpy(),
                "linf": self.mean("linf").numpy(),
                "task_l1": self.mean("task_l1").numpy(),
                "agree": self.mean("agree").numpy(),
                "agree_of_all": self.agreement().numpy(),
                "scored": self.scored.numpy(),
                "posterior": self.posterior.mean(0).numpy(),
                "negative_share": self.negative_share.nanmean(0).numpy(),
            }
        )

    def interval(
        self,
        name: Distance | Literal["agree"] = "l1",
        *,
        level: float = 0.95,
        draws: int = 1000,
        seed: int = 0,
    ) -> tuple[Float64[Tensor, " count"], Float64[Tensor, " count"]]:
        """Bootstrap interval over trials, of `mean`, or for "agree" of `agreement`. The world is the same in all."""
        values = getattr(self, name)
        values = values.nan_to_num(0.0) if name == "agree" else values
        return cluster_bootstrap(values, torch.arange(len(values)), level=level, draws=draws, seed=seed)

    def beside_paper(self) -> pd.DataFrame:
        """Ours beside the paper's Table 3, for the numbers of demonstrations that both have."""
        import pandas as pd

        rows = []
        columns = self.mean("l1"), self.mean("linf"), self.agreement()
        for i, n in enumerate(self.counts):
            if n in COUNTS:
                at = COUNTS.index(n)
                l1, linf, agreement = (float(column[i]) for column in columns)
                rows.append([n, l1, linf, PAPER["distance"][at], agreement, PAPER["accuracy"][at]])
        return pd.DataFrame(
            rows, columns=["n", "l1", "linf", "paper_distance", "agreement", "paper_accuracy"]
        )

    def figure(self, *, letter: TheoremResult | None = None, terms: TheoremTerms | None = None) -> Figure:
        """Distance and agreement against n; beside them the paper's, Eq. 6 by its letter, and the bound's terms."""
        from icl_kernel_lens.plots.theory import theorem_figure

        return theorem_figure(self, letter, terms)

    def to_dataframe(self) -> pd.DataFrame:
        """Long form: one row a trial and number of demonstrations."""
        import pandas as pd

        trials = len(self.l1)
        columns: dict[str, Any] = {
            "trial": torch.arange(trials).repeat_interleave(len(self.counts)).numpy(),
            "task": self.tasks.repeat_interleave(len(self.counts)).numpy(),
            "n": self.counts * trials,
        }
        return pd.DataFrame(columns | {name: getattr(self, name).flatten().numpy() for name in _ARRAYS})

    def save(self, path: str | Path) -> Path:
        """Write the whole result; `load` reads it back."""
        tensors = {name: getattr(self, name) for name in (*_ARRAYS, "tasks")}
        meta = {name: getattr(self, name) for name in ("condition", "rank")}
        meta |= {
            "counts": list(self.counts),
            "reasons": dict(self.reasons),
            "settings": dict(self.settings),
            "run": {"versions": dict(self.versions)},
        }
        return store.write(path, "TheoremResult", tensors, meta)

    @classmethod
    def load(cls, path: str | Path) -> TheoremResult:
        """Read what `save` wrote.

        Raises: LoadError: another kind of file, another format version, or a damaged one.
        """
        tensors, meta = store.read(path, "TheoremResult")
        try:
            return cls(
                **{name: tensors[name] for name in (*_ARRAYS, "tasks")},
                counts=tuple(meta["counts"]),
                reasons=meta["reasons"],
                condition=meta["condition"],
                rank=meta["rank"],
                settings=meta["settings"],
                versions=meta["run"]["versions"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise store.missing_field(path, "TheoremResult", error) from error

    def __repr__(self) -> str:
        world = self.settings["world"]
        lines = [
            f"TheoremResult({world['name']}: {world['tasks']} tasks, {world['states']} states, {world['symbols']} "
            f"symbols; {len(self.l1)} trials; design of rank {self.rank}, condition {self.condition:.3g})",
            self.table().to_string(index=False, float_format=lambda x: f"{x:.3f}"),
        ]
        lines += [f"  NaN: {why} ({count} cells)" for why, count in self.reasons.items()]
        return "\n".join(lines)


_ARRAYS = (
    "l1",
    "linf",
    "agree",
    "task_l1",
    "posterior",
    "denominator",
    "amplification",
    "negative_share",
)


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
    negative: Literal["refuse", "keep"] = "refuse",
    floor: float | None = None,
    samples: int | None = None,
    kernel: OperatorKernel | None = None,
) -> TheoremResult:
    """Distance and argmax agreement of kernel regression and exact Bayes, against n.

    Each trial draws θ* from the prior and one prompt of max(n) demonstrations, which is cut to every n. The
    moment is over all inputs, or over `samples` of them; a `kernel` fitted before, to this world, saves doing it again. A variant that needs the task is fitted to each
    trial's own. `guard` and `negative` are those of `kernel_regression`, `floor` that of
    `OperatorKernel.weights`; `**LETTER` (guard=0, negative="keep", floor=0) is Eq. 6 by its letter. Ties of the argmax go to the lower symbol, in both.

    Raises: TheoryError: numbers that do not rise or are below 1, no trials, too many inputs to enumerate.
    """
    variant = variant or (Variant() if kernel is None else kernel.variant)
    if kernel is not None and (kernel.world is not world or kernel.variant != variant or variant.needs_task):
        raise TheoryError(
            "a kernel fitted before must be of this very world and variant, and of one that needs no task; fit it with "
            "fit_kernel(world, variant), or leave it out."
        )
    at_least(trials, 1, "trials")
    if not n or min(n) < 1:
        raise TheoryError(f"n must be numbers of at least one demonstration; got {tuple(n)}.")
    counts = check_counts(n, max(n))
    prompts = world.sample_prompts(trials, max(counts), seed=seed)
    tasks = prompts.tasks
    assert tasks is not None
    weights = torch.zeros(trials, max(counts), dtype=torch.float64)
    kernels = []
    if variant.needs_task:
        inputs = enumerate_inputs(world) if samples is None else None
        for task in tasks.unique().tolist():
            kernels.append(fit_kernel(world, variant, task=task, samples=samples, seed=seed, inputs=inputs))
            mine = tasks == task
            weights[mine] = kernels[-1].weights(prompts.test_inputs[mine], prompts.inputs[mine], floor=floor)
    else:
        kernels.append(kernel or fit_kernel(world, variant, samples=samples, seed=seed))
        weights = kernels[0].weights(prompts.test_inputs, prompts.inputs, floor=floor)
    regression = kernel_regression(
        weights,
        prompts.answers,
        world.symbols,
        counts,
        readout=variant.readout,
        guard=guard,
        negative=negative,
    )
    settings = {
        "world": world.describe(),
        "variant": asdict(variant),
        "trials": trials,
        "seed": seed,
        "guard": guard,
        "negative": negative,
        "floor": floor,
        "samples": samples,
        "sampling_error": max(kernel.sampling_error for kernel in kernels),
    }
    return _compare(world, prompts, regression, kernels, settings)


def _compare(
    world: TaskMixture,
    prompts: Prompts,
    regression: Regression,
    kernels: Sequence[OperatorKernel],
    settings: Mapping[str, Any],
) -> TheoremResult:
    """Distances of a regression to the exact prediction on the same prompts."""
    tasks = prompts.tasks
    assert tasks is not None
    bayes = bayesian_prediction(world, prompts, regression.counts)
    each, where = prompts.test_inputs.unique(dim=0, return_inverse=True)
    known = task_prediction(world, each)[tasks, where]
    guess = regression.prediction
    gap = (guess - bayes.prediction).abs()
    refused = gap.isnan().any(-1)
    agree = (guess.nan_to_num(0.0).argmax(-1) == bayes.prediction.argmax(-1)).double()
    index = tasks[:, None, None].expand(-1, len(regression.counts), 1)
    return TheoremResult(
        counts=regression.counts,
        l1=gap.sum(-1),
        linf=gap.max(-1).values,
        agree=agree.masked_fill(refused, float("nan")),
        task_l1=(guess - known[:, None]).abs().sum(-1),
        posterior=bayes.posterior_with_input.gather(-1, index).squeeze(-1),
        denominator=regression.denominator,
        amplification=regression.amplification,
        negative_share=regression.negative_share,
        tasks=tasks,
        reasons=regression.reasons,
        condition=max(kernel.condition for kernel in kernels),
        rank=min(kernel.rank for kernel in kernels),
        settings=settings,
        versions=versions(),
    )
