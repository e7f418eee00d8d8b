"""What must hold before anything is computed: probabilities, token ranges, sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from icl_kernel_lens.errors import LensError

SUM_TOLERANCE = 1e-9
"""How far from 1 a row of probabilities may sum."""


class TheoryError(LensError, ValueError):
    """A world, a prompt or a kernel is not one the theory speaks of."""


def require(holds: bool, message: str, *, code: str) -> None:
    """Raises: TheoryError: what the message says must hold does not."""
    if not holds:
        raise TheoryError(message, code=code)


def probabilities(values: object, name: str, dims: int) -> Tensor:
    """A float64 copy whose last axis is checked to hold probabilities.

    Raises: TheoryError: wrong number of axes, empty, not finite, negative, or a sum other than 1.
    """
    found = torch.as_tensor(values, dtype=torch.float64).detach().clone()
    require(
        found.ndim == dims and 0 not in found.shape,
        f"{name} must be a {'vector' if dims == 1 else 'matrix'} with at least one entry; its shape is "
        f"{tuple(found.shape)}. Pass one probability per state (and a row per state for a matrix).",
        code="theory-numbers",
    )
    bad = ~found.isfinite()
    require(
        not bad.any(),
        f"{name} must be finite; {int(bad.sum())} entries are not, the first at {_first(bad)}. "
        "A logarithm of probabilities or a division by zero may have been passed.",
        code="theory-numbers",
    )
    if (found < 0).any():
        at = _first(found < 0)
        raise TheoryError(
            f"{name} must not be negative; at {at} it is {float(found[at]):.6g}.", code="theory-numbers"
        )
    sums = found.sum(-1)
    off = (sums - 1).abs() > SUM_TOLERANCE
    if off.any():
        if dims == 1:
            raise TheoryError(
                f"{name} must sum to 1; it sums to {float(sums):.12g}. Was it rounded to float32? Else divide it by its sum, if that is what you mean.",
                code="theory-numbers",
            )
        row = _first(off)[0]
        raise TheoryError(
            f"rows of {name} must sum to 1; row {row} sums to {float(sums[row]):.12g} ({int(off.sum())} of "
            f"{len(sums)} rows are off). Is it transposed (row s holds what follows state s), or rounded to float32?",
            code="theory-numbers",
        )
    return found


def tokens_in_range(tokens: Tensor, symbols: int, name: str = "tokens") -> None:
    """Raises: TheoryError: nothing to read, or a token that is no symbol."""
    require(
        tokens.numel() > 0,
        f"{name} must hold at least one sequence of at least one token; their shape is {tuple(tokens.shape)}. "
        "The empty sequence has probability 1 under every world and says nothing.",
        code="theory-prompts",
    )
    bad = (tokens < 0) | (tokens >= symbols)
    if bad.any():
        at = _first(bad)
        raise TheoryError(
            f"{name} must lie between 0 and {symbols - 1}; at {at} stands {int(tokens[at])}. The delimiter is not "
            "one of the symbols of an input or an answer.",
            code="theory-numbers",
        )


def at_least(value: int, least: int, name: str) -> None:
    """Refuse a number below the least there may be."""
    require(value >= least, f"{name} must be at least {least}; got {value}.", code="number-range")


def rising(numbers: Sequence[Any]) -> bool:
    """Whether each number is larger than the one before."""
    return sorted(set(numbers)) == list(numbers)


def _first(mask: Tensor) -> tuple[int, ...]:
    """Where it is first true; () if nowhere."""
    return tuple(mask.nonzero()[:1].flatten().tolist())
