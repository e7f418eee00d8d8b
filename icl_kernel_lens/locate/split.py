"""This module splits prompts in two halves, demonstration sets whole: one to choose heads on, the other to measure them."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Int
from torch import Tensor

from icl_kernel_lens.errors import PromptError

FEWEST = 8
"""Demonstration sets a half must have: with fewer, intervals over sets say nothing."""
ENOUGH = 32
"""Sets a half should have."""


def split_in_halves(
    demo_set: Int[Tensor, " prompt"], *, seed: int
) -> tuple[Int[Tensor, " choosing"], Int[Tensor, " reporting"]]:
    """Split prompts into a choosing and a reporting half, by number; sets are dealt out at random, about equal in prompts.

    Raises: PromptError: fewer than 8 demonstration sets a half. Warns: fewer than 32.
    """
    groups, sizes = demo_set.unique(return_counts=True)
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))
    sides: tuple[list[int], list[int]] = ([], [])
    prompts = [0, 0]
    for at in sorted(order.tolist(), key=lambda i: -int(sizes[i])):
        # To the half with fewer sets, and of equally many sets to that with fewer prompts.
        to = min((0, 1), key=lambda side: (len(sides[side]), prompts[side]))
        sides[to].append(int(groups[at]))
        prompts[to] += int(sizes[at])
    chosen = torch.isin(demo_set, torch.tensor(sides[0]))
    few = min(int(_effective(demo_set[side])) for side in (chosen, ~chosen)) if len(groups) > 1 else 0
    if few < FEWEST:
        raise PromptError(
            f"each half needs at least {FEWEST} demonstration sets, because prompts of one set are not independent; "
            f"there are {len(groups)} sets in all, worth {few} of equal size a half. Draw {2 * FEWEST} prompts or more "
            f"with demonstrations of their own, or sets={2 * FEWEST} or more; {2 * ENOUGH} are better.",
            code="too-few-sets",
        )
    if few < ENOUGH:
        warnings.warn(
            f"{few} demonstration sets a half are few: intervals are wide, and heads may stay undetermined. "
            f"{ENOUGH} or more are better.",
            stacklevel=3,
        )
    return chosen.nonzero()[:, 0], (~chosen).nonzero()[:, 0]


def _effective(demo_set: Int[Tensor, " prompt"]) -> float:
    """How many sets of equal size these are worth: (Σ n)² / Σ n²."""
    _, sizes = demo_set.unique(return_counts=True)
    return float(sizes.sum()) ** 2 / float(sizes.square().sum()) + 1e-9
