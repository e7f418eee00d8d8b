"""What an experiment on a world leaves: one number a trial, setting and series, for each thing measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64
from torch import Tensor

from icl_kernel_lens.charts.figure import Figure
from icl_kernel_lens.charts.theory import Series, experiment_figure
from icl_kernel_lens.numbers.intervals import RATE, cluster_bootstrap, interval_of
from icl_kernel_lens.results.base import Result, broken, long_form
from icl_kernel_lens.results.run_info import versions
from icl_kernel_lens.theory.mixture import WorldInfo

if TYPE_CHECKING:
    import pandas as pd

KERNEL, VOTE, BAYES = "kernel regression", "plain vote", "Bayes"
"""Ways to predict, as series are called."""
Option = int | float | str | tuple[int, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Experiment(Result):
    """Measures of an experiment over its settings, one series a way to predict.

    NaN: there was no prediction. Means leave it out, so read `scored` beside them.
    """

    name: str
    question: str
    axis: str
    """What the settings are."""
    settings: tuple[float, ...] | tuple[str, ...]
    series: tuple[str, ...]
    measures: Mapping[str, str]
    """The axis title of each measure."""
    values: Mapping[str, Float64[Tensor, "trial setting series"]]
    findings: tuple[str, ...]
    """Sentences made from these numbers."""
    world: WorldInfo
    options: Mapping[str, Option]
    """Seed and sizes: what makes the same numbers again."""
    facts: Mapping[str, float] = field(default_factory=dict)
    """Single numbers that findings rest on and `values` do not show."""
    unit: str = "trials"
    """What trials are."""
    versions: Mapping[str, str] = field(default_factory=versions)

    def _problems(self) -> Iterator[str]:
        if not self.values or list(self.values) != list(self.measures):
            yield f"there must be values of each measure; they are of {list(self.values)} and {list(self.measures)}"
            return
        trials, *shape = self._first.shape
        settings, series = len(self.settings), len(self.series)
        yield from broken(
            {
                f"values must be trials × {settings} settings × {series} series; they are {trials} × {shape}": (
                    shape == [settings, series] and trials * settings * series > 0
                ),
                "values must be finite, or NaN where there was no prediction": not any(
                    values.isinf().any() for values in self.values.values()
                ),
                f"settings must be finite; they are {self.settings}": all(
                    isinstance(setting, str) or math.isfinite(setting) for setting in self.settings
                ),
                "settings and series must differ from each other": (
                    len(set(self.settings)) == settings and len(set(self.series)) == series
                ),
            }
        )

    def coords(self) -> dict[str, Sequence[Any]]:
        return {"setting": list(self.settings), "series": list(self.series)}

    @property
    def _first(self) -> Float64[Tensor, "trial setting series"]:
        return next(iter(self.values.values()))

    @property
    def trials(self) -> int:
        return len(self._first)

    @property
    def scored(self) -> Float64[Tensor, "setting series"]:
        """The share of trials with a value of the first measure."""
        return scored(self._first)

    def mean(self, measure: str) -> Float64[Tensor, "setting series"]:
        """Over scored trials."""
        return self.values[measure].nanmean(0)

    def interval(
        self, measure: str, *, level: float = 0.95, draws: int = 1000, seed: int = 0
    ) -> tuple[Float64[Tensor, "setting series"], Float64[Tensor, "setting series"]]:
        """Interval of the mean over trials: of agreement (`agree_…`) Clopper–Pearson's, else a bootstrap.

        The world is the same in all.
        """
        values = self.values[measure]
        bootstrap = partial(cluster_bootstrap, draws=draws, seed=seed)
        unit = RATE if measure.startswith("agree_") else self.unit
        return interval_of(unit, values, torch.arange(len(values)), level=level, otherwise=bootstrap)

    def table(self) -> pd.DataFrame:
        """Long form: one row a setting, series and measure, with mean, interval and the share scored."""
        values = torch.stack(list(self.values.values()), 1)
        low, high = cluster_bootstrap(values, torch.arange(self.trials), draws=1000)
        columns = {"mean": values.nanmean(0), "low": low, "high": high, "scored": scored(values)}
        names = {"measure": list(self.measures), **self.coords()}
        return long_form(list(names), columns, coords=names).reindex(
            columns=["setting", "series", "measure", *columns]
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Long form: one row a trial, setting and series, one column a measure."""
        return super().to_dataframe().rename(columns=lambda name: name.removeprefix("values."))

    def figure(self) -> Figure:
        """One panel a measure, with intervals over trials."""
        panels = {}
        for measure, title in self.measures.items():
            mean, (low, high) = self.mean(measure), self.interval(measure)
            columns = zip(self.series, mean.T, low.T, high.T, strict=True)
            panels[measure] = title, [Series(name, self.settings, *numbers) for name, *numbers in columns]
        least, most = 100 * float(self.scored.min()), 100 * float(self.scored.max())
        share = f"; predictions for {least:.0f} to {most:.0f} % of them" if least < 100 else ""
        return experiment_figure(
            self.axis,
            self.settings,
            list(panels.values()),
            near=[measure.startswith(("l1_", "agree_")) for measure in panels],
            title=self.question,
            subtitle=f"{self.world.name}: {self.trials} {self.unit}; bars: 95 % over {self.unit}{share}",
            name=f"{self.name} on {self.world.name}",
        )

    def __repr__(self) -> str:
        lines = [f"{self.question} ({self.name}, world {self.world.name}, {self.trials} {self.unit})"]
        return "\n".join([*lines, *(f"  {finding}" for finding in self.findings)])


def scored(values: Float64[Tensor, "trial *cell"]) -> Float64[Tensor, "*cell"]:
    """The share of trials with a number."""
    return 1 - values.isnan().double().mean(0)


def collect(
    measures: Mapping[str, str], cells: Sequence[Sequence[Mapping[str, Tensor]]]
) -> dict[str, Float64[Tensor, "trial setting series"]]:
    """Each measure's numbers a trial, from one mapping a setting and series; what it lacks is NaN."""
    unknown = torch.full_like(next(iter(cells[0][0].values())), math.nan)
    return {
        name: torch.stack([torch.stack([cell.get(name, unknown) for cell in row], -1) for row in cells], 1)
        for name in measures
    }


def change(
    values: Float64[Tensor, " trial"], before: Float64[Tensor, " trial"], *, seed: int = 0
) -> tuple[str, float, float, float]:
    """ "falls", "rises" or "shows no change" in paired trials, with the mean difference and its 95 % interval.

    "is undetermined" where there is no interval: few trials, which all agree.
    """
    difference = (values - before)[:, None]
    low, high = cluster_bootstrap(difference, torch.arange(len(difference)), draws=1000, seed=seed)
    mean, low, high = float(difference.nanmean()), float(low), float(high)
    word = "falls" if high < 0 else "rises" if low > 0 else "shows no change"
    word = "is undetermined" if low != low else word
    return word, mean, low, high
