"""The one way a seed becomes a random generator: every seed and number gives the same draws on every machine."""

from __future__ import annotations

import torch


def generator(seed: int, number: int | None = None) -> torch.Generator:
    """The generator of a seed, or of one of the many things (prompts, by number) that are drawn under it."""
    whole = seed if number is None else seed * 1_000_003 + number
    return torch.Generator().manual_seed(whole if -(2**63) <= whole < 2**64 else whole % 2**64)
