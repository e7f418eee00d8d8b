"""The kernel of Theorem 1, and kernel regression with it.

    K(x, x') = vec(T_x)ᵀ Σ⁺ vec(T_x')           Han et al. (TMLR 2025), section 4.1
    ŷ(x) = Σ_i e(y_i) K(x, x_i) / Σ_i K(x, x_i)          Eq. 6

Σ = Σ_x P(x) v(x) v(x)ᵀ is never formed: with W the *design*, whose row x is √P(x) v(x), and W = U S Vᵀ,

    φ(x) = S⁻¹ Vᵀ v(x) = U_x / √P(x),     K(x, x') = φ(x) · φ(x')

so √P(x) K(x, x') √P(x') is the projection onto the column space of W: K is the hat kernel of the design. It
does not compare inputs by how near they are; it asks which inputs the operators' linear functions cannot tell
apart, and becomes a table look-up when there are as many such functions as inputs.

The identity behind Theorem 1 holds for v(x) = vec(T_x) / P(x | p_pre), the uncentred moment of pre-training
and the ratio of Eq. 6 (`Variant()`), and then for every task without bias:

    E_θ[e(y) φ(x)ᵀ] φ(x_test) = P(x_test, Y | θ) / P(x_test | p_pre),   so the ratio is P(Y | x_test, θ).

The other choices (`VARIANTS`) are here to be compared with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from icl_kernel_lens.results import store
from icl_kernel_lens.results.run_info import versions
from icl_kernel_lens.theory.bayes import check_counts
from icl_kernel_lens.theory.checks import TheoryError, at_least, tokens_in_range
from icl_kernel_lens.theory.hmm import make_generator
from icl_kernel_lens.theory.mixture import TaskMixture
from icl_kernel_lens.theory.operators import Inputs, enumerate_inputs, log_answers, sequence_index

if TYPE_CHECKING:
    import pandas as pd

    from icl_kernel_lens.plots.figure import Figure

EPS = torch.finfo(torch.float64).eps
SPAN_TOLERANCE = 1e-6
"""An input is outside the design when more than this share of its v(x) lies outside the design's span."""
ACCURACY = 1e-10
"""Ratios of expectations whose estimated rounding error is larger than this are refused."""
GUARD = 1e-3
"""A denominator Σ_i K_i below this share of Σ_i |K_i| is refused."""

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
        raise TheoryError("this variant divides by or averages over one task; pass task=….")
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
        if inputs.shape[1] != self.world.input_length:
            raise TheoryError(
                f"inputs must have {self.world.input_length} symbols, as those of the design; these have "
                f"{inputs.shape[1]}."
            )
        if self.enumerated:
            return self.table[sequence_index(self.world.symbols, inputs)]
        each, where = inputs.unique(dim=0, return_inverse=True)
        rows = operator_features(Inputs.of(self.world, each), self.variant.divide, self.task)
        return self._project(rows)[where]

    def _project(self, rows: Float64[Tensor, "input feature"]) -> Float64[Tensor, "input direction"]:
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
        return torch.where(found.abs() <= floor * size, torch.zeros((), dtype=torch.float64), found)


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
    if variant.needs_task:
        task = _needed(task)
    if task is not None and not 0 <= task < world.tasks:
        raise TheoryError(f"task must lie between 0 and {world.tasks - 1}; got {task}.")
    if samples is None:
        inputs = enumerate_inputs(world) if inputs is None else inputs
        weight = (
            inputs.log_pre if variant.moment == "pre" else inputs.log_given_task[:, _needed(task)]
        ).exp()
        halves = None
    else:
        at_least(samples, 2, "samples")
        inputs, weight, halves = _draw_design(world, variant, task, samples, make_generator(seed))
    rows = operator_features(inputs, variant.divide, task)
    weight = weight.masked_fill(rows.isnan().any(-1), 0.0)
    used = weight > 0
    root = weight[used].sqrt()
    values = rows[used]
    if variant.centred:
        values = values - (weight[used] / weight[used].sum()) @ values
    design = root[:, None] * values
    if not design.isfinite().all():
        raise TheoryError(
            "v(x) must be finite; some input's is beyond 1e308. It is likely under one task and all but impossible under the "
            'task that this variant divides by. Use divide="pre".'
        )
    filled = (design != 0).any(0)
    if not filled.any():
        raise TheoryError(
            "the moment must not be zero; every input's v(x) is the same or none has a probability above 0. "
            "A covariance of constant features has no inverse: use centred=False."
        )
    left, singular, right = torch.linalg.svd(design[:, filled], full_matrices=False)
    rcond = max(design.shape) * EPS if rcond is None else rcond
    kept = singular > rcond * singular[0]
    directions = torch.zeros(design.shape[1], int(kept.sum()), dtype=torch.float64)
    directions[filled] = right[kept].T
    table = torch.zeros(0, int(kept.sum()), dtype=torch.float64)
    kernel = OperatorKernel(
        world=world,
        variant=variant,
        task=task,
        singular_values=singular[kept],
        directions=directions,
        left_out=singular[~kept],
        rcond=rcond,
        enumerated=samples is None,
        sampling_error=0.0,
        table=table,
    )
    if halves is None:
        table = kernel._project(rows)
        if not variant.centred:
            _sharpen(table, used, root, design, left[:, kept], singular[kept])
        return replace(kernel, table=table)
    difference = []
    for half in halves.double():
        share = (half[used] / half.sum() / weight[used]).sqrt()
        whitened = share[:, None] * left[:, kept]
        difference.append(whitened.T @ whitened)
    error = float(torch.linalg.matrix_norm(difference[0] - difference[1], 2)) / 2
    return replace(kernel, sampling_error=error)


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
    each, where = drawn.unique(dim=0, return_inverse=True)
    halves = torch.stack([part.bincount(minlength=len(each)) for part in where.tensor_split(2)])
    return Inputs.of(world, each), halves.sum(0).double() / samples, halves


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
    reasons: Mapping[str, int]
    """Why (prompt, count) cells are NaN, and how many."""


NO_WEIGHT = "no demonstration has kernel weight"
NEGATIVE = "denominator negative"
CANCELLED = "denominator cancelled to below the guard"
OUTSIDE = "an input is impossible or outside the design"
NO_DEMOS = "no demonstrations"


def kernel_regression(
    weights: Float64[Tensor, "prompt demo"],
    answers: Int64[Tensor, "prompt demo"],
    symbols: int,
    counts: Sequence[int] | None = None,
    *,
    readout: Readout = "ratio",
    guard: float = GUARD,
    negative: Literal["refuse", "keep"] = "refuse",
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
    refused: dict[str, Tensor] = {
        NO_DEMOS: (at == 0).expand_as(total),
        OUTSIDE: first(unknown.double()) > 0,
    }
    if readout == "ratio":
        refused[NO_WEIGHT] = size == 0
        if negative == "refuse":
            refused[NEGATIVE] = total < -guard * size
        refused[CANCELLED] = total.abs() <= guard * size
    prediction = votes / (total if readout == "ratio" else shown)[..., None]
    reasons: dict[str, int] = {}
    taken = torch.zeros_like(total, dtype=torch.bool)
    for why, cells in refused.items():
        if (cells & ~taken).any():
            reasons[why] = int((cells & ~taken).sum())
        taken = taken | cells
    return Regression(
        counts=counts,
        prediction=prediction.masked_fill(taken[..., None], float("nan")),
        denominator=(total / shown).masked_fill(refused[NO_DEMOS] | refused[OUTSIDE], float("nan")),
        amplification=(size / total.abs()).masked_fill(refused[OUTSIDE], float("nan")),
        negative_share=(first(known.clamp(max=0).abs()) / size).masked_fill(refused[OUTSIDE], float("nan")),
        reasons=reasons,
    )


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
        raise TheoryError("the exact expectation is over all inputs; fit the kernel without samples=….")
    if not 0 <= task < world.tasks:
        raise TheoryError(f"task must lie between 0 and {world.tasks - 1}; got {task}.")
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


@dataclass(frozen=True)
class VariantScore:
    """How far one variant is from P(Y | x, θ) with infinitely many demonstrations of θ."""

    variant: Variant
    task: int
    rank: int
    condition: float
    mean_distance: float
    """L1, over P(x | θ)."""
    worst_distance: float
    """L1, over all inputs that θ can give, however rarely."""
    refused: float
    """P(x | θ) of the inputs without a prediction; the distances leave them out."""
    why: str = ""
    """Why there is no kernel, where there is none: rank 0, NaN for what rests on it."""


@dataclass(frozen=True, eq=False, repr=False)
class VariantTable:
    """Which operator, moment and readout give P(Y | x, θ) as n → ∞: one score a variant and task."""

    scores: tuple[VariantScore, ...]
    world: Mapping[str, Any]
    versions: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[VariantScore]:
        return iter(self.scores)

    def to_dataframe(self) -> pd.DataFrame:
        """One row a variant and task."""
        import pandas as pd

        return pd.DataFrame([asdict(s.variant) | _plain(s) for s in self.scores])

    def table(self) -> pd.DataFrame:
        """One row a variant: means over tasks (of the distance, weighted alike), the worst input, the share refused."""
        import pandas as pd

        rows = []
        for variant in dict.fromkeys(s.variant for s in self.scores):
            own = [s for s in self.scores if s.variant == variant]
            scored = [s for s in own if not math.isnan(s.mean_distance)]
            rows.append(
                asdict(variant)
                | {
                    "mean_distance": _mean([s.mean_distance for s in scored]),
                    "least": min((s.mean_distance for s in scored), default=math.nan),
                    "most": max((s.mean_distance for s in scored), default=math.nan),
                    "worst_input": max((s.worst_distance for s in scored), default=math.nan),
                    "refused": _mean([s.refused for s in own]),
                    "condition": max((s.condition for s in own if s.rank), default=math.nan),
                }
            )
        return pd.DataFrame(rows)

    def figure(self) -> Figure:
        """The distances on a logarithmic axis, one dot a task."""
        from icl_kernel_lens.plots.theory import variants_figure

        return variants_figure(self)

    def save(self, path: str | Path) -> Path:
        """Write the whole result; `load` reads it back."""
        numbers = {
            name: torch.tensor([getattr(s, name) for s in self.scores], dtype=torch.float64)
            for name in ("condition", "mean_distance", "worst_distance", "refused")
        }
        meta = {
            "scores": [[asdict(s.variant), s.task, s.rank, s.why] for s in self.scores],
            "world": dict(self.world),
            "run": {"versions": dict(self.versions)},
        }
        return store.write(path, "VariantTable", numbers, meta)

    @classmethod
    def load(cls, path: str | Path) -> VariantTable:
        """Read what `save` wrote.

        Raises: LoadError: another kind of file, another format version, or a damaged one.
        """
        numbers, meta = store.read(path, "VariantTable")
        try:
            scores = tuple(
                VariantScore(
                    Variant(**variant),
                    task,
                    rank,
                    why=why,
                    **{name: float(values[i]) for name, values in numbers.items()},
                )
                for i, (variant, task, rank, why) in enumerate(meta["scores"])
            )
            return cls(scores, meta["world"], meta["run"]["versions"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise store.missing_field(path, "VariantTable", error) from error

    def __repr__(self) -> str:
        table = self.table().to_string(index=False, float_format=lambda x: f"{x:.2g}")
        return f"VariantTable({self.world['name']}: L1 distance to P(Y | x, θ) as n → ∞)\n{table}"


def _plain(score: VariantScore) -> dict[str, Any]:
    return {name: value for name, value in asdict(score).items() if name != "variant"}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def compare_variants(
    world: TaskMixture, variants: Sequence[Variant] = VARIANTS, *, tasks: Sequence[int] | None = None
) -> VariantTable:
    """Which choices make the identity behind Theorem 1 exact: every variant, for every task (or for `tasks`).

    With `[Variant()]` alone: the error of the exact one, beside the condition of its design.
    """
    inputs = enumerate_inputs(world)
    found = []
    fitted: dict[tuple[Divide, Moment, bool, int | None], OperatorKernel | TheoryError] = {}
    for variant in variants:
        for task in range(world.tasks) if tasks is None else tasks:
            # The readout does not change the kernel, and one that needs no task serves all of them.
            at = (variant.divide, variant.moment, variant.centred, task if variant.needs_task else None)
            if at not in fitted:
                try:
                    fitted[at] = fit_kernel(world, variant, task=task, inputs=inputs)
                except TheoryError as error:
                    fitted[at] = error
            kernel = fitted[at]
            if isinstance(kernel, TheoryError):
                found.append(VariantScore(variant, task, 0, math.nan, math.nan, math.nan, 1.0, str(kernel)))
                continue
            result = population_regression(replace(kernel, variant=variant), task, inputs=inputs)
            distance = result.distance
            found.append(
                VariantScore(
                    variant=variant,
                    task=task,
                    rank=kernel.rank,
                    condition=kernel.condition,
                    mean_distance=result.mean_distance,
                    worst_distance=float(distance[~distance.isnan()].max())
                    if result.refused < 1
                    else math.nan,
                    refused=result.refused,
                )
            )
    return VariantTable(tuple(found), world.describe(), versions())
