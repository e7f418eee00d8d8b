"""Kernel regression: on a prompt's demonstrations, and in expectation over infinitely many.

    ŷ(x) = Σ_i e(y_i) K(x, x_i) / Σ_i K(x, x_i)                    Han et al. (TMLR 2025), Eq. 6
    E_θ[e(y) K(x_test, x)] / E_θ[K(x_test, x)]                     its limit on demonstrations of task θ

Ratios that would be noise are refused: NaN, with the reason counted. `compare_variants` takes the limit with every
operator, moment and readout, and tells which of them make the identity behind Theorem 1 exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from icl_kernel_lens.charts.figure import Figure
from icl_kernel_lens.charts.theory import variants_figure
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.results.base import Result, broken
from icl_kernel_lens.results.run_info import versions
from icl_kernel_lens.theory.bayes import check_counts
from icl_kernel_lens.theory.checks import TheoryError, at_least, require, tokens_in_range
from icl_kernel_lens.theory.hmm import log_matmul
from icl_kernel_lens.theory.kernel import (
    EPS,
    VARIANTS,
    Inputs,
    OperatorKernel,
    Readout,
    Variant,
    enumerate_inputs,
    fit_kernel,
)
from icl_kernel_lens.theory.mixture import TaskMixture, WorldInfo

if TYPE_CHECKING:
    import pandas as pd

ACCURACY = 1e-10
"""Ratios of expectations whose estimated rounding error is larger than this are refused."""
GUARD = 1e-3
"""A denominator Σ_i K_i below this share of Σ_i |K_i| is refused."""
Negative = Literal["refuse", "keep"]
"""What becomes of a denominator below 0."""
READOUTS = {"ratio": "ratio (Eq. 6)", "sum": "(1/n) sum"}


@dataclass(frozen=True, eq=False)
class Regression:
    """Kernel regression after each number of demonstrations; refused where it would be noise."""

    counts: tuple[int, ...]
    prediction: Float64[Tensor, "prompt count symbol"]
    """ŷ. Sums to 1 as a ratio, but may leave [0, 1], for K may be negative. NaN where refused."""
    denominator: Float64[Tensor, "prompt count"]
    """(1/n) Σ_i K(x_test, x_i)."""
    amplification: Float64[Tensor, "prompt count"]
    """Σ_i |K_i| / |Σ_i K_i|: 1 when all agree in sign; errors of K grow by it."""
    negative_share: Float64[Tensor, "prompt count"]
    """The share of Σ_i |K_i| on demonstrations with K < 0."""
    reasons: Mapping[Reason, int]
    """Why (prompt, count) cells are NaN, and how many."""


def kernel_regression(
    weights: Float64[Tensor, "prompt demo"],
    answers: Int64[Tensor, "prompt demo"],
    symbols: int,
    counts: Sequence[int] | None = None,
    *,
    readout: Readout = "ratio",
    guard: float = GUARD,
    negative: Negative = "refuse",
) -> Regression:
    """ŷ(x) = Σ_i e(y_i) K_i / Σ_i K_i over the first n demonstrations (Han et al. 2025, Eq. 6).

    `weights` come from any kernel. A ratio is refused (NaN, and counted) where Σ K is not above `guard` ×
    Σ |K|; as n → ∞ the denominator is a ratio of probabilities, so a negative one is noise.
    `negative="keep"` takes Eq. 6 by its letter there, and refuses by |Σ K|. `readout="sum"` divides by n.
    """
    if answers.numel():
        tokens_in_range(answers, symbols, "answers")
    counts = check_counts(counts, weights.shape[1])
    at = torch.tensor(counts)
    unknown = weights.isnan()

    def first(values: Tensor) -> Tensor:
        """Sums over the first n demonstrations."""
        zero = torch.zeros_like(values[:, :1])
        return torch.cat([zero, values.cumsum(1)], 1)[:, at]

    known = weights.masked_fill(unknown, 0.0)
    votes = torch.zeros(len(weights), len(counts), symbols, dtype=torch.float64)
    for i, n in enumerate(counts):
        votes[:, i].scatter_add_(1, answers[:, :n], known[:, :n])
    total, size = first(known), first(known.abs())
    shown = at.clamp(min=1).double()
    refused: dict[Reason, Tensor] = {
        Reason.NO_DEMOS: (at == 0).expand_as(total),
        Reason.OUTSIDE: first(unknown.double()) > 0,
    }
    if readout == "ratio":
        refused[Reason.NO_WEIGHT] = size == 0
        if negative == "refuse":
            refused[Reason.NEGATIVE] = total < -guard * size
        refused[Reason.CANCELLED] = total.abs() <= guard * size
    prediction = votes / (total if readout == "ratio" else shown)[..., None]
    reasons: dict[Reason, int] = {}
    taken = torch.zeros_like(total, dtype=torch.bool)
    for why, cells in refused.items():
        reasons[why] = int((cells & ~taken).sum())
        taken = taken | cells
    return Regression(
        counts=counts,
        prediction=prediction.masked_fill(taken[..., None], float("nan")),
        denominator=(total / shown).masked_fill(
            refused[Reason.NO_DEMOS] | refused[Reason.OUTSIDE], float("nan")
        ),
        amplification=(size / total.abs()).masked_fill(refused[Reason.OUTSIDE], float("nan")),
        negative_share=(first(known.clamp(max=0).abs()) / size).masked_fill(
            refused[Reason.OUTSIDE], float("nan")
        ),
        reasons={why: count for why, count in reasons.items() if count},
    )


def prediction_from_all(
    weights: Float64[Tensor, "prompt demo"],
    answers: Int64[Tensor, "prompt demo"],
    symbols: int,
    *,
    guard: float = GUARD,
) -> Float64[Tensor, "prompt symbol"]:
    """ŷ from all demonstrations of each prompt (Eq. 6)."""
    return kernel_regression(weights, answers, symbols, [weights.shape[1]], guard=guard).prediction[:, 0]


@dataclass(frozen=True, eq=False)
class PopulationRegression:
    """Kernel regression on infinitely many demonstrations of one task, at every input of it."""

    task: int
    inputs: Int64[Tensor, "input position"]
    """Those with P(x | θ) > 0."""
    probability: Float64[Tensor, " input"]
    """P(x | θ)."""
    prediction: Float64[Tensor, "input symbol"]
    """NaN where the denominator is not above 0 or too small for its rounding, or the input outside the design."""
    denominator: Float64[Tensor, " input"]
    """E_θ[K(x_test, x)]; of the exact variant P(x_test | θ) / P(x_test | p_pre)."""
    rounding: Float64[Tensor, " input"]
    """Estimated relative rounding error of the ratio, ε ‖φ(x_test)‖ E‖φ(x)‖ / E[K]; +inf without a denominator.

    It takes φ to be right to ε; from a condition of some 1e9 on, rare inputs are worse than that."""
    truth: Float64[Tensor, "input symbol"]
    """P(Y | x_test, θ)."""
    unseen: float
    """P(x | θ) of demonstrations outside the design, which the expectation leaves out."""

    @property
    def distance(self) -> Float64[Tensor, " input"]:
        """L1 distance to the truth at each input."""
        return (self.prediction - self.truth).abs().sum(-1)

    @property
    def mean_distance(self) -> float:
        """Over P(x | θ), of the inputs with a prediction; NaN if none has."""
        scored = ~self.distance.isnan()
        weight = self.probability[scored]
        return float((weight * self.distance[scored]).sum() / weight.sum()) if scored.any() else math.nan

    @property
    def worst_distance(self) -> float:
        """Over all inputs with a prediction, however rare; NaN if none has."""
        found = self.distance[~self.distance.isnan()]
        return float(found.max()) if len(found) else math.nan

    @property
    def refused(self) -> float:
        """P(x | θ) of the test inputs without a prediction."""
        return float(self.probability[self.distance.isnan()].sum())


def population_regression(
    kernel: OperatorKernel, task: int, *, inputs: Inputs | None = None, accuracy: float = ACCURACY
) -> PopulationRegression:
    """Kernel regression as n → ∞, by exact expectation over (x, y) ~ θ.

        E_θ[e(y) K(x_test, x)] / E_θ[K(x_test, x)]

    With the default variant this is P(Y | x_test, θ); with others it need not be. Where θ gives an input
    far more rarely than pre-training does, the denominator is a small difference of large terms: ratios
    whose `rounding` exceeds `accuracy` are refused.

    Raises: TheoryError: a kernel whose moment was sampled (the expectation is over all inputs).
    """
    world = kernel.world
    require(
        kernel.enumerated,
        "the exact expectation is over all inputs; fit the kernel without samples=….",
        code="theory-kernel",
    )
    world.check_task(task)
    inputs = enumerate_inputs(world, at_most=len(kernel.table)) if inputs is None else inputs
    log_joint = log_matmul(inputs.log_rows[:, task], world.hmm.emission)
    log_probability = inputs.log_given_task[:, task]
    joint, probability = log_joint.exp(), log_probability.exp()
    inside = ~kernel.table.isnan().any(-1)
    phi = kernel.table.masked_fill(~inside[:, None], 0.0)
    can = probability > 0
    numerator = phi[can] @ (phi.T @ joint)
    denominator = (phi[can] @ (phi.T @ probability)).masked_fill(~inside[can], float("nan"))
    length = _length(phi)
    size = length[can] * (length @ probability)
    rounding = torch.where(denominator > 0, EPS * size / denominator, math.inf)
    if kernel.variant.readout == "ratio":
        prediction, fine = numerator / denominator[:, None], rounding <= accuracy
    else:
        prediction, fine = numerator, inside[can]
    return PopulationRegression(
        task=task,
        inputs=inputs.tokens[can],
        probability=probability[can],
        prediction=prediction.masked_fill(~fine[:, None], float("nan")),
        denominator=denominator,
        rounding=rounding,
        truth=(log_joint - log_probability[:, None]).exp()[can],
        unseen=float(probability[~inside].sum()),
    )


def _length(rows: Float64[Tensor, "row entry"]) -> Float64[Tensor, " row"]:
    """‖row‖ without squaring what is beyond 1e154."""
    largest = rows.abs().amax(-1)
    return largest * (rows / largest.masked_fill(largest == 0, 1.0)[:, None]).norm(dim=-1)


@dataclass(frozen=True, eq=False, repr=False)
class VariantTable(Result):
    """How far each variant is from P(Y | x, θ) with infinitely many demonstrations of task θ."""

    variants: tuple[Variant, ...]
    tasks: tuple[int, ...]
    rank: Int64[Tensor, "variant task"]
    """Of the design; 0 where there is no kernel, and NaN for what rests on it."""
    condition: Float64[Tensor, "variant task"]
    mean_distance: Float64[Tensor, "variant task"]
    """L1, over P(x | θ)."""
    worst_distance: Float64[Tensor, "variant task"]
    """L1, over all inputs that θ can give, however rarely."""
    refused: Float64[Tensor, "variant task"]
    """P(x | θ) of the inputs without a prediction; the distances leave them out."""
    why: tuple[tuple[str, ...], ...]
    """Why there is no kernel, of each variant and task; empty where there is one."""
    world: WorldInfo
    versions: Mapping[str, str] = field(default_factory=versions)

    def _problems(self) -> Iterator[str]:
        variants, tasks = shape = len(self.variants), len(self.tasks)
        return broken(
            {
                f"it must hold variants and tasks; its numbers are {tuple(self.rank.shape)} for {shape}": (
                    all(shape) and tuple(self.rank.shape) == shape
                ),
                "why must hold a text for each variant and task": (
                    [len(row) for row in self.why] == [tasks] * variants
                ),
                "variants and tasks must differ from each other": (
                    len(set(self.variants)) == variants and len(set(self.tasks)) == tasks
                ),
                "distances must not be below 0": not any(
                    (found < 0).any() for found in (self.mean_distance, self.worst_distance)
                ),
            }
        )

    def coords(self) -> dict[str, Sequence[Any]]:
        return {"variant": [str(variant) for variant in self.variants], "task": list(self.tasks)}

    def to_dataframe(self) -> pd.DataFrame:
        """One row a variant and task."""
        import pandas as pd

        choices = pd.DataFrame([asdict(variant) for variant in self.variants for _ in self.tasks])
        numbers = super().to_dataframe().drop(columns="variant")
        return choices.join(numbers).assign(why=[text for row in self.why for text in row])

    def table(self) -> pd.DataFrame:
        """One row a variant: means over tasks (of the distance, weighted alike), the worst input, the share refused."""
        frame = self.to_dataframe()
        frame["condition"] = frame["condition"].where(frame["rank"] > 0)
        return (
            frame.groupby(list(asdict(Variant())), sort=False)
            .agg(
                mean_distance=("mean_distance", "mean"),
                least=("mean_distance", "min"),
                most=("mean_distance", "max"),
                worst_input=("worst_distance", "max"),
                refused=("refused", "mean"),
                condition=("condition", "max"),
            )
            .reset_index()
        )

    def figure(self) -> Figure:
        """The distances on a logarithmic axis, one dot a task."""
        return variants_figure(
            [str(variant) for variant in self.variants],
            self.tasks,
            self.mean_distance,
            [READOUTS[variant.readout] for variant in self.variants],
            colours=list(READOUTS.values()),
            subtitle=f"{self.world.name}: {len(self.tasks)} of {self.world.tasks} tasks, one mark each; left of the "
            "dashed line (1e-9) is exact",
            name=f"variants of the kernel on {self.world.name}",
        )

    def __repr__(self) -> str:
        table = self.table().to_string(index=False, float_format=lambda x: f"{x:.2g}")
        return f"VariantTable({self.world.name}: L1 distance to P(Y | x, θ) as n → ∞)\n{table}"


def compare_variants(
    world: TaskMixture, variants: Sequence[Variant] = VARIANTS, *, tasks: Sequence[int] | None = None
) -> VariantTable:
    """Which choices make the identity behind Theorem 1 exact: every variant, for every task (or for `tasks`).

    With `[Variant()]` alone: the error of the exact one, beside the condition of its design.
    """
    tasks = range(world.tasks) if tasks is None else tasks
    at_least(min(len(variants), len(tasks)), 1, "the number of variants, and that of tasks,")
    inputs = enumerate_inputs(world)

    @cache
    def fit(variant: Variant, task: int | None) -> OperatorKernel | TheoryError:
        try:
            return fit_kernel(world, variant, task=task, inputs=inputs)
        except TheoryError as error:
            return error

    numbers, why = [], []
    for variant, task in product(variants, tasks):
        # The readout does not change the kernel, and one that needs no task serves all of them.
        kernel = fit(replace(variant, readout="ratio"), task if variant.needs_task else None)
        if isinstance(kernel, TheoryError):
            numbers.append((0, math.nan, math.nan, math.nan, 1.0))
            why.append(kernel.message)
        else:
            found = population_regression(replace(kernel, variant=variant), task, inputs=inputs)
            far = (found.mean_distance, found.worst_distance, found.refused)
            numbers.append((kernel.rank, kernel.condition, *far))
            why.append("")
    columns = torch.tensor(numbers, dtype=torch.float64).T
    rank, *others = columns.unflatten(1, (len(variants), len(tasks)))
    return VariantTable(
        tuple(variants),
        tuple(tasks),
        rank.long(),
        *others,
        why=tuple(tuple(why[i : i + len(tasks)]) for i in range(0, len(why), len(tasks))),
        world=world.describe(),
    )
