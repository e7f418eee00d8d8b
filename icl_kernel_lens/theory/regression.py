"""Kernel regression: on a prompt's demonstrations, and in expectation over infinitely many.

    ŷ(x) = Σ_i e(y_i) K(x, x_i) / Σ_i K(x, x_i)                    Han et al. (TMLR 2025), Eq. 6
    E_θ[e(y) K(x_test, x)] / E_θ[K(x_test, x)]                     its limit on demonstrations of task θ

Ratios that would be noise are refused: NaN, with the reason counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.theory.bayes import check_counts
from icl_kernel_lens.theory.checks import TheoryError, tokens_in_range
from icl_kernel_lens.theory.kernel import EPS, OperatorKernel, Readout
from icl_kernel_lens.theory.operators import Inputs, enumerate_inputs, log_answers

ACCURACY = 1e-10
"""Ratios of expectations whose estimated rounding error is larger than this are refused."""
GUARD = 1e-3
"""A denominator Σ_i K_i below this share of Σ_i |K_i| is refused."""
Negative = Literal["refuse", "keep"]
"""What becomes of a denominator below 0."""


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
        if (cells & ~taken).any():
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
        reasons=reasons,
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
    if not kernel.enumerated:
        raise TheoryError(
            "the exact expectation is over all inputs; fit the kernel without samples=….",
            code="theory-kernel",
        )
    if not 0 <= task < world.tasks:
        raise TheoryError(f"task must lie between 0 and {world.tasks - 1}; got {task}.", code="number-range")
    inputs = enumerate_inputs(world, at_most=len(kernel.table)) if inputs is None else inputs
    log_joint = log_answers(world, inputs.log_rows[:, [task]])[:, 0]
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
