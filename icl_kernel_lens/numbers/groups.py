"""Sums over groups of prompts: those of one demonstration set, or those that show one label token."""

from __future__ import annotations

import torch
from jaxtyping import Int, Num
from torch import Tensor


def group_sums(
    values: Num[Tensor, "prompt *cell"], group: Int[Tensor, " prompt"]
) -> Num[Tensor, "group *cell"]:
    """Σ_{p in g} x_p for every group g, numbered from 0."""
    sums = torch.zeros(int(group.max()) + 1, *values.shape[1:], dtype=values.dtype)
    return sums.index_add(0, group, values)


def numbered(group: Int[Tensor, "*place"]) -> Int[Tensor, "*place"]:
    """The same groups, numbered from 0 without gaps, in ascending order."""
    return group.unique(return_inverse=True)[1]
