"""Sums over groups of prompts (those of one demonstration set, or that show one label token), and groups in two halves."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int, Num
from torch import Tensor

from icl_kernel_lens.numbers.draws import generator


def group_sums(
    values: Num[Tensor, "prompt *cell"], group: Int[Tensor, " prompt"]
) -> Num[Tensor, "group *cell"]:
    """Σ_{p in g} x_p for every group g, numbered from 0."""
    sums = torch.zeros(int(group.max()) + 1, *values.shape[1:], dtype=values.dtype)
    return sums.index_add(0, group, values)


def numbered(group: Int[Tensor, "*place"]) -> Int[Tensor, "*place"]:
    """The same groups, numbered from 0 without gaps, in ascending order."""
    return group.unique(return_inverse=True)[1]


def first_half(group: Int[Tensor, " prompt"], *, seed: int) -> Bool[Tensor, " prompt"]:
    """Which prompts are in the first of two halves: groups are dealt out whole, at random, about equal in prompts."""
    groups, sizes = group.unique(return_counts=True)
    order = torch.randperm(len(groups), generator=generator(seed))
    sides: tuple[list[int], list[int]] = ([], [])
    prompts = [0, 0]
    for at in sorted(order.tolist(), key=lambda i: -int(sizes[i])):
        # To the half with fewer groups, and of equally many groups to that with fewer prompts.
        to = min((0, 1), key=lambda side: (len(sides[side]), prompts[side]))
        sides[to].append(int(groups[at]))
        prompts[to] += int(sizes[at])
    return torch.isin(group, torch.tensor(sides[0]))
