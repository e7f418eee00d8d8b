"""Rank correlation of numbers over heads."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def spearman(x: Float[Tensor, "*head"], y: Float[Tensor, "*head"]) -> float:
    """Spearman's rank correlation over what is a number in both; NaN for fewer than three, or where one is constant."""
    from scipy.stats import spearmanr

    kept = ~(x.isnan() | y.isnan())
    x, y = x[kept], y[kept]
    if len(x) < 3 or x.unique().numel() < 2 or y.unique().numel() < 2:
        return float("nan")
    correlation, _ = spearmanr(x.numpy(), y.numpy())
    return float(correlation)  # pyright: ignore[reportArgumentType]
