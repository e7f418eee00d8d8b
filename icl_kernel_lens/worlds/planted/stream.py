"""Named subspaces of the residual stream, as coordinates that norms leave alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from icl_kernel_lens.models.planted_build import EPS
from icl_kernel_lens.worlds.planted.roles import BALLAST, FEATURES, ROTARY, SCRATCH, VOTE_UNIT


@dataclass(frozen=True)
class Stream:
    """Named subspaces of the residual stream, and their coordinates in it."""

    labels: int
    paired: bool
    more: tuple[str, ...] = ()
    """Subspaces that only some plans need."""

    @cached_property
    def subspaces(self) -> Mapping[str, slice]:
        """Where each subspace stands, one after another."""
        sizes = {
            "const": 1,
            "is_label": 1,
            "is_bos": 1,
            "feature": FEATURES,
            "previous": FEATURES,
            "label": self.labels,
            "vote": self.labels,
            "taken": self.labels,
            "position": ROTARY,
            "scratch": SCRATCH,
            "spill": SCRATCH,
        }
        needed = {
            "before": FEATURES,
            "told_input": FEATURES,
            "told_label": self.labels,
            "moved": self.labels,
            "hint": self.labels,
            "is_separator": 1,
            "is_input": 1,
        }
        sizes |= {name: needed[name] for name in self.more}
        ends = accumulate(sizes.values())
        return {name: slice(end - sizes[name], end) for name, end in zip(sizes, ends, strict=True)}

    def __getitem__(self, name: str) -> slice:
        return self.subspaces[name]

    @property
    def size(self) -> int:
        return max(place.stop for place in self.subspaces.values())

    @property
    def coordinates(self) -> int:
        return self.size * (2 if self.paired else 1)

    def units(self) -> Tensor:
        """How large a 1 of each dimension stands in the stream."""
        units = torch.ones(self.size, dtype=torch.float64)
        units[self["const"]] = BALLAST if self.paired else 1.0
        for name in {"vote", "taken", "moved", "hint"} & self.subspaces.keys():
            units[self[name]] = VOTE_UNIT if self.paired else 1.0
        return units

    def write(self, meaning: Tensor, width: int) -> Tensor:
        """`(…, dimension)` as what is added to the stream, `(…, width)`."""
        values = meaning * self.units()
        if self.paired:
            values = torch.stack([values, -values], -1).flatten(-2)
        return torch.nn.functional.pad(values, (0, width - values.shape[-1])).float()

    def read(self, wanted: Tensor, width: int) -> Tensor:
        """`(…, dimension, out)` as weights on the normalised stream, `(…, width, out)`."""
        values = wanted / self.units()[:, None]
        if self.paired:
            values = torch.stack([values, -values], -2).flatten(-3, -2) / 2
            values = values * math.sqrt(2 * BALLAST**2 / width + EPS)
        return torch.nn.functional.pad(values, (0, 0, 0, width - values.shape[-2])).float()
