"""Several rankings side by side: does another seed, order, task, template or model tell the same?"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.errors import LoadError, ResultError
from icl_kernel_lens.results.head_ranking import Band, HeadRanking

if TYPE_CHECKING:
    import pandas as pd

    from icl_kernel_lens.plots.figure import Figure

By = Literal["margin", "loss"]
"""What heads are ranked by: agreement above the strongest control (reporting half), or the logit difference that cutting
their label edges costs (choosing half, where every head's is measured)."""


@dataclass(frozen=True)
class Comparison:
    """What two rankings have in common."""

    both: tuple[HeadRef, ...]
    """Kernel heads of both."""
    only_first: tuple[HeadRef, ...]
    only_second: tuple[HeadRef, ...]
    correlation: Mapping[By, float]
    """Spearman's rank correlation over all heads; NaN where the models have not the same layers and heads, or all heads
    are tied."""
    same_shape: bool
    bands: tuple[Band | None, Band | None]

    @property
    def overlap(self) -> float:
        """Kernel heads of both over those of either (Jaccard); NaN where neither has any, or the shapes differ."""
        either = len(self.both) + len(self.only_first) + len(self.only_second)
        return len(self.both) / either if either and self.same_shape else float("nan")

    @property
    def depth_overlap(self) -> float:
        """Of the depth that either band covers, the share that both do; NaN where a band is missing.

        A layer covers 1/layers of the depth, so that bands of models of different shape can be compared.
        """
        first, second = self.bands
        if first is None or second is None:
            return float("nan")
        (a, b), (c, d) = (
            (band.first / band.layers, (band.last + 1) / band.layers) for band in (first, second)
        )
        shared = max(0.0, min(b, d) - max(a, c))
        return shared / (b - a + d - c - shared)

    def __str__(self) -> str:
        named = {"both": self.both, "first only": self.only_first, "second only": self.only_second}
        heads = "; ".join(f"{name}: {' '.join(map(str, h)) or 'none'}" for name, h in named.items())
        if not self.same_shape:
            return (
                "heads of models of different shape do not correspond; bands, in relative depth: "
                + " and ".join(
                    "none" if b is None else f"{b.depth[0]:.2f}–{b.depth[1]:.2f}" for b in self.bands
                )
                + f", overlap {self.depth_overlap:.2f}"
            )
        by = ", ".join(f"{name} {value:.2f}" for name, value in self.correlation.items())
        return f"kernel heads of {heads}; rank correlation by {by}"


def compare(first: HeadRanking, second: HeadRanking) -> Comparison:
    """Two rankings: of one model on two sets of prompts, of two checkpoints, or of two models.

    Heads are matched by layer and number, which means something within one model and its checkpoints; models of
    different shape are compared by their bands' relative depth alone. Equal shapes of different models are matched
    all the same, and agree no better than by chance.
    """
    shapes = [ranking.agreement.shape[1:] for ranking in (first, second)]
    same = shapes[0] == shapes[1]
    a, b = set(first.heads), set(second.heads)
    correlation: dict[By, float] = {}
    pairs: dict[By, list[torch.Tensor]] = {
        "margin": [r.columns["margin"].flatten() for r in (first, second)],
        "loss": [r.choosing["loss"].flatten() for r in (first, second)],
    }
    for name, (x, y) in pairs.items():
        correlation[name] = _spearman(x, y) if same else float("nan")
    return Comparison(
        both=tuple(sorted(a & b)) if same else (),
        only_first=tuple(sorted(a - b if same else a)),
        only_second=tuple(sorted(b - a if same else b)),
        correlation=correlation,
        same_shape=same,
        bands=(first.band, second.band),
    )


def _spearman(x: torch.Tensor, y: torch.Tensor) -> float:
    import pandas as pd

    kept = ~(x.isnan() | y.isnan())
    x, y = x[kept], y[kept]
    if len(x) < 3 or x.unique().numel() < 2 or y.unique().numel() < 2:
        return float("nan")
    return float(pd.Series(x.numpy()).corr(pd.Series(y.numpy()), method="spearman"))


@dataclass(frozen=True, eq=False, repr=False)
class Stability:
    """Rankings by name, compared each with each."""

    rankings: Mapping[str, HeadRanking]

    def __post_init__(self) -> None:
        if len(self.rankings) < 2:
            raise ResultError(f"at least two rankings can be compared; got {len(self.rankings)}.")

    def table(self) -> pd.DataFrame:
        """One row a head that is more than neither in some ranking: in how many it is a kernel head, and its class in each.

        Of models of different shape there is no such table.
        """
        import pandas as pd

        if len({r.agreement.shape[1:] for r in self.rankings.values()}) > 1:
            raise ResultError("these rankings are of models of different shape; use pairs() for their bands.")
        count = Counter(head for ranking in self.rankings.values() for head in ranking.heads)
        some = {head for r in self.rankings.values() for head, name in r.classes.items() if name != "neither"}
        rows = [
            {"head": str(head), "kernel_head_in": count[head]}
            | {name: ranking.classes[head] for name, ranking in self.rankings.items()}
            for head in sorted(some, key=lambda head: (-count[head], head))
        ]
        return pd.DataFrame(rows, columns=["head", "kernel_head_in", *self.rankings])

    def pairs(self) -> pd.DataFrame:
        """One row a pair of rankings: overlap of the kernel heads, rank correlations, overlap of the bands."""
        import pandas as pd

        names, rows = list(self.rankings), []
        for at, first in enumerate(names):
            for second in names[at + 1 :]:
                found = compare(self.rankings[first], self.rankings[second])
                rows.append(
                    {
                        "first": first,
                        "second": second,
                        "overlap": found.overlap,
                        "margin_rank_correlation": found.correlation["margin"],
                        "loss_rank_correlation": found.correlation["loss"],
                        "depth_overlap": found.depth_overlap,
                    }
                )
        return pd.DataFrame(rows)

    def figure(self) -> Figure:
        """Every pair's rank correlations, as two squares."""
        from icl_kernel_lens.plots.stability import stability_figure

        return stability_figure(self)

    def save(self, folder: str | Path) -> Path:
        """Write one file a ranking, and their names, into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for at, ranking in enumerate(self.rankings.values()):
            ranking.save(folder / f"ranking-{at}.safetensors")
        (folder / "stability.json").write_text(json.dumps(list(self.rankings)), encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Stability:
        """Read what `save` wrote.

        Raises: LoadError: not such a folder, or a damaged one.
        """
        folder = Path(folder)
        try:
            names = json.loads((folder / "stability.json").read_text(encoding="utf-8"))
            if (
                not isinstance(names, list)
                or not all(isinstance(n, str) for n in names)
                or len(set(names)) < 2
            ):
                raise ValueError(f"its names are {names!r}")
        except (OSError, ValueError) as error:
            raise LoadError(
                f"a saved comparison is a folder with stability.json; {folder} is not, or is damaged ({error})."
            ) from error
        return cls(
            {name: HeadRanking.load(folder / f"ranking-{at}.safetensors") for at, name in enumerate(names)}
        )

    def __repr__(self) -> str:
        lines = [f"Stability({len(self.rankings)} rankings: {', '.join(self.rankings)})"]
        if len({r.agreement.shape[1:] for r in self.rankings.values()}) == 1:
            table = self.table()
            lines.append(table.to_string(index=False) if len(table) else "  nothing located in any")
        lines.append(self.pairs().to_string(index=False, float_format=lambda x: f"{x:.2f}"))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>{self.figure()._repr_html_()}"
