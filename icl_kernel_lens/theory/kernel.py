"""The kernel of Theorem 1: inputs as features, so that K(x, x') = φ(x) · φ(x').

    K(x, x') = vec(T_x)ᵀ Σ⁺ vec(T_x')           Han et al. (TMLR 2025), section 4.1

Σ = Σ_x P(x) v(x) v(x)ᵀ is never formed: with W the *design*, whose row x is √P(x) v(x), and W = U S Vᵀ,

    φ(x) = S⁻¹ Vᵀ v(x) = U_x / √P(x),     K(x, x') = φ(x) · φ(x')

so √P(x) K(x, x') √P(x') is the projection onto the column space of W: K is the hat kernel of the design. It
does not compare inputs by how near they are; it asks which inputs the operators' linear functions cannot tell
apart, and becomes a table look-up when there are as many such functions as inputs.

The identity behind Theorem 1 holds for v(x) = vec(T_x) / P(x | p_pre), the uncentred moment of pre-training
and the ratio of Eq. 6 (`Variant()`), and then for every task without bias:

    E_θ[e(y) φ(x)ᵀ] φ(x_test) = P(x_test, Y | θ) / P(x_test | p_pre),   so the ratio is P(Y | x_test, θ).

The other choices (`VARIANTS`) are here to be compared with (`regression.compare_variants`). Regression with a kernel: `regression`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from icl_kernel_lens.theory.checks import TheoryError, at_least, require, tokens_in_range
from icl_kernel_lens.theory.hmm import (
    ENUMERATE_AT_MOST,
    all_sequences,
    distinct,
    make_generator,
    sequence_index,
)
from icl_kernel_lens.theory.mixture import TaskMixture

EPS = torch.finfo(torch.float64).eps
SPAN_TOLERANCE = 1e-6
"""An input is outside the design when more than this share of its v(x) lies outside the design's span."""

Divide = Literal["no", "pre", "task"]
Moment = Literal["pre", "task"]
Readout = Literal["ratio", "sum"]


@dataclass(frozen=True)
class Variant:
    """Which operator, moment and readout; the default is the one that is exact."""

    divide: Divide = "pre"
    """v(x) is vec(T_x) as in Eq. 4 ("no"), or divided by P(x | p_pre) or P(x | θ)."""
    moment: Moment = "pre"
    """Whose inputs the moment is over."""
    readout: Readout = "ratio"
    """Eq. 6's ratio, or the proof's (1/n) Σ_i e(y_i) K(x, x_i)."""
    centred: bool = False
    """Covariance instead of second moment. The features themselves stay uncentred, as in section 4.1."""

    @property
    def needs_task(self) -> bool:
        """Whether the kernel is another one for each task (and so is no kernel one could have beforehand)."""
        return "task" in (self.divide, self.moment)

    def __str__(self) -> str:
        over = {"no": "T_x", "pre": "T_x/P(x|pre)", "task": "T_x/P(x|task)"}[self.divide]
        return f"{over}, {'covariance' if self.centred else 'moment'} of {self.moment}, {self.readout}"


VARIANTS: tuple[Variant, ...] = tuple(
    Variant(divide, moment, readout)
    for divide in ("no", "pre", "task")
    for moment in ("task", "pre")
    for readout in ("sum", "ratio")
)
"""The twelve cells of the comparison: three operators, two moments, two readouts."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """Inputs with their operators' start rows: computed once, used by kernels of several variants and tasks."""

    tokens: Int64[Tensor, "input position"]
    log_rows: Float64[Tensor, "input task state"]
    log_given_task: Float64[Tensor, "input task"]
    """log P(x | θ) = log start_θᵀ T_x 1."""
    log_pre: Float64[Tensor, " input"]
    """log P(x | p_pre) = log Σ_θ p(θ) P(x | θ)."""

    @classmethod
    def of(cls, world: TaskMixture, tokens: Int64[Tensor, "input position"]) -> Inputs:
        rows = world.log_start_rows(tokens)
        given = torch.logsumexp(rows, -1)
        return cls(tokens, rows, given, torch.logsumexp(given + world.prior.log(), -1))


def enumerate_inputs(world: TaskMixture, *, at_most: int = ENUMERATE_AT_MOST) -> Inputs:
    """Every input of the world's length, in the order of `all_sequences`.

    Raises: TheoryError: more than `at_most` of them.
    """
    return Inputs.of(world, all_sequences(world.symbols, world.input_length, at_most=at_most))


def operator_features(
    inputs: Inputs, divide: Divide = "pre", task: int | None = None
) -> Float64[Tensor, "input feature"]:
    """v(x): the start rows of T_x, flattened (task, then state), divided as asked.

    NaN rows where the divisor is 0: an input that cannot occur has no v(x).
    """
    if divide == "no":
        return inputs.log_rows.exp().flatten(1)
    log_divisor = inputs.log_pre if divide == "pre" else inputs.log_given_task[:, _needed(task)]
    possible = ~log_divisor.isneginf()
    rows = (inputs.log_rows - log_divisor.masked_fill(~possible, 0.0)[:, None, None]).exp().flatten(1)
    return rows.masked_fill(~possible[:, None], float("nan"))


def _needed(task: int | None) -> int:
    if task is None:
        raise TheoryError(
            "this variant divides by or averages over one task; pass task=….", code="theory-kernel"
        )
    return task


@dataclass(frozen=True, eq=False)
class OperatorKernel:
    """K as features φ with K(x, x') = φ(x) · φ(x'), and how well determined they are."""

    world: TaskMixture
    variant: Variant
    task: int | None
    singular_values: Float64[Tensor, " direction"]
    """Of the design, those kept, largest first; their squares are the moment's eigenvalues."""
    directions: Float64[Tensor, "feature direction"]
    """V: the right singular vectors that go with them."""
    left_out: Float64[Tensor, " discarded"]
    """Singular values taken as zero (below `rcond` times the largest)."""
    rcond: float
    enumerated: bool
    """Whether the moment is over all inputs; if not, `sampling_error` says how far off it may be."""
    sampling_error: float
    """Estimated relative error of the moment, ‖Σ^(-1/2)(Σ̂ − Σ)Σ^(-1/2)‖: from its two halves; 0 if enumerated.

    It does not see directions that were never drawn."""
    table: Float64[Tensor, "design direction"]
    """φ of every input where `enumerated`, NaN for those outside the design; else empty."""

    @property
    def rank(self) -> int:
        return len(self.singular_values)

    @property
    def condition(self) -> float:
        """Of the design, largest over smallest singular value kept; the moment's is its square."""
        return float(self.singular_values[0] / self.singular_values[-1])

    def features(self, inputs: Int64[Tensor, "input position"]) -> Float64[Tensor, "input direction"]:
        """φ(x). NaN for an input that cannot occur, or whose v(x) the design's span does not hold."""
        tokens_in_range(inputs, self.world.symbols, "inputs")
        require(
            inputs.shape[1] == self.world.input_length,
            f"inputs must have {self.world.input_length} symbols, as those of the design; these have "
            f"{inputs.shape[1]}.",
            code="theory-prompts",
        )
        if self.enumerated:
            return self.table[sequence_index(self.world.symbols, inputs)]
        each, where = distinct(inputs)
        rows = operator_features(Inputs.of(self.world, each), self.variant.divide, self.task)
        return self.project(rows)[where]

    def project(self, rows: Float64[Tensor, "input feature"]) -> Float64[Tensor, "input direction"]:
        """φ of v(x); NaN where the design's span does not hold v(x)."""
        # Most features are 0 in every input and every direction: states that no task's start leads to.
        used = ((rows != 0) & ~rows.isnan()).any(0) | (self.directions != 0).any(1)
        rows, directions = rows[:, used], self.directions[used]
        seen = rows @ directions
        if not self.variant.centred:
            outside = (rows - seen @ directions.T).norm(dim=-1)
            seen = seen.masked_fill((outside > SPAN_TOLERANCE * rows.norm(dim=-1))[:, None], float("nan"))
        return seen / self.singular_values

    def weights(
        self,
        test_inputs: Int64[Tensor, "prompt position"],
        inputs: Int64[Tensor, "prompt demo position"],
        *,
        floor: float | None = None,
    ) -> Float64[Tensor, "prompt demo"]:
        """K(x_test, x_i), and 0 where |K| ≤ `floor` × ‖φ(x_test)‖ ‖φ(x_i)‖.

        The default floor, max(1e-12, ε·condition), is what rounding leaves of a kernel that is 0. Without
        it, a prompt none of whose inputs is related to the test input would be answered by rounding errors.
        """
        test = self.features(test_inputs)
        demos = self.features(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])
        found = torch.einsum("pd,pnd->pn", test, demos)
        size = test.norm(dim=-1)[:, None] * demos.norm(dim=-1)
        floor = max(1e-12, EPS * self.condition) if floor is None else floor
        return found.masked_fill(found.abs() <= floor * size, 0.0)


def fit_kernel(
    world: TaskMixture,
    variant: Variant | None = None,
    *,
    task: int | None = None,
    samples: int | None = None,
    seed: int | torch.Generator = 0,
    rcond: float | None = None,
    inputs: Inputs | None = None,
) -> OperatorKernel:
    """The kernel of a world, by the singular value decomposition of its design.

    All inputs are enumerated (pass `inputs=enumerate_inputs(world)` to do that once for several kernels, or
    for more of them than the usual limit), or `samples` are drawn. Singular values below `rcond` (None: the larger
    side of the design × 2.2e-16) times the largest count as zero: the inverse is the pseudo-inverse, and
    `rank`, `condition` and `left_out` say of what. A rank below the features' number is the rule here.

    Raises: TheoryError: too many inputs to enumerate, a variant that needs a task and got none,
            a moment that is zero.
    """
    variant = variant or Variant()
    world.check_task(_needed(task) if variant.needs_task else task)
    halves = None
    if samples is None:
        inputs = enumerate_inputs(world) if inputs is None else inputs
        weight = (
            inputs.log_pre if variant.moment == "pre" else inputs.log_given_task[:, _needed(task)]
        ).exp()
    else:
        at_least(samples, 2, "samples")
        inputs, weight, halves = _draw_design(world, variant, task, samples, make_generator(seed))
    rows = operator_features(inputs, variant.divide, task)
    weight = weight.masked_fill(rows.isnan().any(-1), 0.0)
    used = weight > 0
    design, filled = _design(rows[used], weight[used], variant.centred)
    left, singular, right = torch.linalg.svd(design[:, filled], full_matrices=False)
    rcond = max(design.shape) * EPS if rcond is None else rcond
    kept = singular > rcond * singular[0]
    left, directions = left[:, kept], torch.zeros(design.shape[1], int(kept.sum()), dtype=torch.float64)
    directions[filled] = right[kept].T
    kernel = OperatorKernel(
        world=world,
        variant=variant,
        task=task,
        singular_values=singular[kept],
        directions=directions,
        left_out=singular[~kept],
        rcond=rcond,
        enumerated=halves is None,
        sampling_error=0.0 if halves is None else _sampling_error(halves.double(), used, weight, left),
        table=torch.zeros(0, int(kept.sum()), dtype=torch.float64),
    )
    if halves is not None:
        return kernel
    table = kernel.project(rows)
    if not variant.centred:
        _sharpen(table, used, weight[used].sqrt(), design, left, singular[kept])
    return replace(kernel, table=table)


def _design(
    rows: Float64[Tensor, "used feature"], weight: Float64[Tensor, " used"], centred: bool
) -> tuple[Float64[Tensor, "used feature"], Bool[Tensor, " feature"]]:
    """The design, whose row x is √P(x) v(x), and which of its columns are not 0 throughout."""
    if centred:
        rows = rows - (weight / weight.sum()) @ rows
    design = weight.sqrt()[:, None] * rows
    require(
        bool(design.isfinite().all()),
        "v(x) must be finite; some input's is beyond 1e308. It is likely under one task and all but impossible under the "
        'task that this variant divides by. Use divide="pre".',
        code="theory-kernel",
    )
    filled = (design != 0).any(0)
    require(
        bool(filled.any()),
        "the moment must not be zero; every input's v(x) is the same or none has a probability above 0. "
        "A covariance of constant features has no inverse: use centred=False.",
        code="theory-kernel",
    )
    return design, filled


def _sampling_error(
    halves: Float64[Tensor, "half input"],
    used: Bool[Tensor, " input"],
    weight: Float64[Tensor, " input"],
    left: Float64[Tensor, "used direction"],
) -> float:
    """Half of how far the moments of the two halves of the sample are apart, in units of the whole's."""
    first, second = halves[:, used] / halves.sum(1, keepdim=True)
    gap = (left * ((first - second) / weight[used])[:, None]).T @ left
    return float(torch.linalg.matrix_norm(gap, 2)) / 2


def _sharpen(
    table: Float64[Tensor, "input direction"],
    used: Bool[Tensor, " input"],
    root: Float64[Tensor, " used"],
    design: Float64[Tensor, "used feature"],
    left: Float64[Tensor, "used direction"],
    singular: Float64[Tensor, " direction"],
) -> None:
    """Where U_x / √P(x) is the more exact way to φ(x), take it.

    U carries rounding errors of ε/√P(x), S⁻¹Vᵀv(x) of ε‖v(x)‖/s_min: the smaller bound decides, input by input.
    """
    better = (design.norm(dim=-1) > singular[-1]) & ~table[used].isnan().any(-1)
    where = used.nonzero().flatten()[better]
    table[where] = left[better] / root[better][:, None]


def _draw_design(
    world: TaskMixture, variant: Variant, task: int | None, samples: int, generator: torch.Generator
) -> tuple[Inputs, Float64[Tensor, " input"], Int64[Tensor, "half input"]]:
    """Inputs drawn from the moment's law, each once, with their share; and their counts in either half."""
    start = world.hmm.initial if variant.moment == "pre" else world.start[_needed(task)]
    drawn, _ = world.hmm.sample_with_states(
        samples, world.input_length, seed=generator, initial=start.expand(samples, -1)
    )
    each, where = distinct(drawn)
    halves = torch.stack([part.bincount(minlength=len(each)) for part in where.tensor_split(2)])
    return Inputs.of(world, each), halves.sum(0).double() / samples, halves
