"""Which operator, moment and readout make the identity behind Theorem 1 exact, by kernel regression as n → ∞."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from icl_kernel_lens.charts.figure import Figure
from icl_kernel_lens.charts.theory import variants_figure
from icl_kernel_lens.results.base import Result
from icl_kernel_lens.results.run_info import versions
from icl_kernel_lens.theory.checks import TheoryError, at_least
from icl_kernel_lens.theory.kernel import VARIANTS, OperatorKernel, Variant, fit_kernel
from icl_kernel_lens.theory.mixture import TaskMixture, WorldInfo
from icl_kernel_lens.theory.operators import enumerate_inputs
from icl_kernel_lens.theory.regression import population_regression

if TYPE_CHECKING:
    import pandas as pd

READOUTS = {"ratio": "ratio (Eq. 6)", "sum": "(1/n) sum"}


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
        shape = len(self.variants), len(self.tasks)
        if not all(shape) or tuple(self.rank.shape) != shape:
            yield f"it must hold variants and tasks; its numbers are {tuple(self.rank.shape)} for {shape}"
        if len(self.why) != shape[0] or any(len(row) != shape[1] for row in self.why):
            yield "why must hold a text for each variant and task"
        if len(set(self.variants)) < shape[0] or len(set(self.tasks)) < shape[1]:
            yield "variants and tasks must differ from each other"
        if any((found < 0).any() for found in (self.mean_distance, self.worst_distance)):
            yield "distances must not be below 0"

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
    fitted: dict[Any, OperatorKernel | TheoryError] = {}

    def fit(variant: Variant, task: int) -> OperatorKernel | TheoryError:
        # The readout does not change the kernel, and one that needs no task serves all of them.
        at = (replace(variant, readout="ratio"), task if variant.needs_task else None)
        if at not in fitted:
            try:
                fitted[at] = fit_kernel(world, variant, task=task, inputs=inputs)
            except TheoryError as error:
                fitted[at] = error
        return fitted[at]

    numbers, why = [], []
    for variant in variants:
        for task in tasks:
            kernel = fit(variant, task)
            if isinstance(kernel, TheoryError):
                numbers.append((0, math.nan, math.nan, math.nan, 1.0))
                why.append(kernel.message)
                continue
            found = population_regression(replace(kernel, variant=variant), task, inputs=inputs)
            numbers.append(
                (kernel.rank, kernel.condition, found.mean_distance, found.worst_distance, found.refused)
            )
            why.append("")
    columns = torch.tensor(numbers, dtype=torch.float64).T.unflatten(1, (len(variants), len(tasks)))
    rank, *others = columns
    return VariantTable(
        tuple(variants),
        tuple(tasks),
        rank.long(),
        *others,
        why=tuple(tuple(why[i : i + len(tasks)]) for i in range(0, len(why), len(tasks))),
        world=world.describe(),
    )
