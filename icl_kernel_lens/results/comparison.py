"""What two rankings of heads have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.results.criteria import Band

By = Literal["margin", "logit_diff_drop"]
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
