"""What two numbers have to do with each other: rank correlation, and a line by least squares."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Line(NamedTuple):
    """y ≈ intercept + slope · x, of each cell; NaN where x or y does not vary."""

    slope: Float[Tensor, "*cell"]
    r2: Float[Tensor, "*cell"]
    """The share of variance that the line explains."""


def line_through(x: Float[Tensor, "place *cell"], y: Float[Tensor, "place *cell"]) -> Line:
    """The line by least squares over the first axis, in float64; NaN left out."""
    missing = x.isnan() | y.isnan()
    x, y = (z.double().masked_fill(missing, torch.nan) for z in (x, y))
    x, y = ((z - z.nanmean(0)).masked_fill(missing, 0) for z in (x, y))
    xx, yy, xy = x.square().sum(0), y.square().sum(0), (x * y).sum(0)
    flat = (xx == 0) | (yy == 0)
    return Line((xy / xx).masked_fill(flat, torch.nan), (xy**2 / (xx * yy)).masked_fill(flat, torch.nan))


def spearman(x: Float[Tensor, "*head"], y: Float[Tensor, "*head"]) -> float:
    """Spearman's rank correlation over what is a number in both; NaN for fewer than three, or where one is constant."""
    from scipy.stats import spearmanr

    kept = ~(x.isnan() | y.isnan())
    x, y = x[kept], y[kept]
    if len(x) < 3 or x.unique().numel() < 2 or y.unique().numel() < 2:
        return float("nan")
    correlation, _ = spearmanr(x.numpy(), y.numpy())
    return float(correlation)  # pyright: ignore[reportArgumentType]
