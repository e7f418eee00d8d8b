"""What an experiment on a world leaves: one number a trial, setting and series, for each thing measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64
from torch import Tensor

from icl_kernel_lens.results import store
from icl_kernel_lens.results.resample import cluster_bootstrap

if TYPE_CHECKING:
    import pandas as pd

    from icl_kernel_lens.plots.figure import Figure

KIND = "TheoryExperiment"


@dataclass(frozen=True, eq=False, repr=False)
class Experiment:
    """Measures of an experiment over its settings, one series a way to predict.

    NaN: there was no prediction. Means leave it out, so read `scored` beside them.
    """

    name: str
    question: str
    axis: str
    """What the settings are."""
    settings: tuple[float | str, ...]
    series: tuple[str, ...]
    measures: Mapping[str, str]
    """The axis title of each measure."""
    values: Mapping[str, Float64[Tensor, "trial setting series"]]
    findings: tuple[str, ...]
    """Sentences made from these numbers."""
    facts: Mapping[str, float]
    """Single numbers that findings rest on and `values` do not show."""
    options: Mapping[str, Any]
    """World, seed and sizes: what makes the same numbers again."""
    versions: Mapping[str, str]

    @property
    def trials(self) -> int:
        return len(next(iter(self.values.values())))

    @property
    def scored(self) -> Float64[Tensor, "setting series"]:
        """The share of trials with a value of the first measure."""
        return 1 - next(iter(self.values.values())).isnan().double().mean(0)

    def mean(self, measure: str) -> Float64[Tensor, "setting series"]:
        """Over scored trials."""
        return self.values[measure].nanmean(0)

    def interval(
        self, measure: str, *, level: float = 0.95, draws: int = 1000, seed: int = 0
    ) -> tuple[Float64[Tensor, "setting series"], Float64[Tensor, "setting series"]]:
        """Bootstrap interval of the mean, trials drawn with replacement. The world is the same in all."""
        values = self.values[measure]
        low, high = cluster_bootstrap(
            values.flatten(1), torch.arange(len(values)), level=level, draws=draws, seed=seed
        )
        shape = values.shape[1:]
        return low.reshape(shape), high.reshape(shape)

    def table(self) -> pd.DataFrame:
        """Long form: one row a setting, series and measure, with mean, interval and the share scored."""
        import pandas as pd

        rows = []
        for measure, values in self.values.items():
            mean = values.nanmean(0)
            low, high = self.interval(measure)
            scored = 1 - values.isnan().double().mean(0)
            for i, setting in enumerate(self.settings):
                for j, series in enumerate(self.series):
                    at = (i, j)
                    rows.append(
                        {
                            "setting": setting,
                            "series": series,
                            "measure": measure,
                            "mean": float(mean[at]),
                            "low": float(low[at]),
                            "high": float(high[at]),
                            "scored": float(scored[at]),
                        }
                    )
        return pd.DataFrame(rows)

    def to_dataframe(self) -> pd.DataFrame:
        """Long form: one row a trial, setting and series, one column a measure."""
        import pandas as pd

        trials, settings, series = next(iter(self.values.values())).shape
        columns: dict[str, Any] = {
            "trial": torch.arange(trials).repeat_interleave(settings * series).numpy(),
            "setting": [s for s in self.settings for _ in range(series)] * trials,
            "series": list(self.series) * (trials * settings),
        }
        return pd.DataFrame(columns | {name: v.flatten().numpy() for name, v in self.values.items()})

    def figure(self) -> Figure:
        """One panel a measure, with intervals over trials."""
        from icl_kernel_lens.plots.theory import experiment_figure

        return experiment_figure(self)

    def save(self, path: str | Path) -> Path:
        """Write the whole result; `load` reads it back."""
        meta = {
            name: getattr(self, name)
            for name in ("name", "question", "axis", "settings", "series", "findings")
        }
        meta |= {name: dict(getattr(self, name)) for name in ("measures", "facts", "options")}
        return store.write(path, KIND, self.values, meta | {"run": {"versions": dict(self.versions)}})

    @classmethod
    def load(cls, path: str | Path) -> Experiment:
        """Read what `save` wrote.

        Raises: LoadError: another kind of file, another format version, or a damaged one.
        """
        tensors, meta = store.read(path, KIND)
        try:
            return cls(
                values={name: tensors[name] for name in meta["measures"]},
                versions=meta["run"]["versions"],
                **{name: tuple(meta[name]) for name in ("settings", "series", "findings")},
                **{name: meta[name] for name in ("name", "question", "axis", "measures", "facts", "options")},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise store.missing_field(path, KIND, error) from error

    def __repr__(self) -> str:
        world, unit = self.options["world"]["name"], self.options.get("unit", "trials")
        lines = [f"{self.question} ({self.name}, world {world}, {self.trials} {unit})"]
        return "\n".join([*lines, *(f"  {finding}" for finding in self.findings)])


def change(
    values: Float64[Tensor, " trial"], before: Float64[Tensor, " trial"], *, seed: int = 0
) -> tuple[str, float, float, float]:
    """ "falls", "rises" or "shows no change" in paired trials, with the mean difference and its 95 % interval."""
    difference = (values - before)[:, None]
    low, high = cluster_bootstrap(difference, torch.arange(len(difference)), draws=1000, seed=seed)
    mean, low, high = float(difference.nanmean()), float(low), float(high)
    word = "falls" if high < 0 else "rises" if low > 0 else "shows no change"
    return word, mean, low, high
