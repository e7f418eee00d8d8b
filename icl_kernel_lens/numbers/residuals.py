"""How far one computation is from another, such that an undefined number is never overlooked."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def largest(values: Iterable[float]) -> float:
    """The largest of some numbers; NaN if one of them is, wherever it stands, or if there are none.

    Python's `max` drops every NaN that does not come first.
    """
    found = torch.tensor([*values], dtype=torch.float64)
    return float(found.max()) if len(found) else float("nan")


def gap(found: Tensor, expected: Tensor) -> float:
    """The largest difference of two tensors, relative to the largest number expected."""
    expected = expected.to(found)
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
