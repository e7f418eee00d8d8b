"""Bootstrap intervals over prompts, by whole demonstration sets."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def cluster_bootstrap(
    values: Float[Tensor, "prompt cell"],
    clusters: Int[Tensor, " prompt"],
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[Float[Tensor, " cell"], Float[Tensor, " cell"]]:
    """Percentile interval of the mean of each column, NaN left out.

    Clusters (prompts that share demonstrations) are drawn whole, with replacement, because prompts of
    one cluster are not independent. Does not show: more than the clusters there are can tell; with
    fewer than about twenty, percentile intervals are too narrow. NaN for a single cluster, which tells
    nothing about others.
    """
    present = ~values.isnan()
    _, member = clusters.unique(return_inverse=True)
    count = int(member.max()) + 1
    cells = values.shape[1]
    if count == 1:
        unknown = torch.full((cells,), float("nan"), dtype=values.dtype)
        return unknown, unknown.clone()
    total = torch.zeros(count, cells, dtype=torch.float64).index_add(0, member, values.nan_to_num().double())
    number = torch.zeros(count, cells, dtype=torch.float64).index_add(0, member, present.double())
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(count, (draws, count), generator=generator)
    times = torch.zeros(draws, count, dtype=torch.float64)
    times.scatter_add_(1, picks, torch.ones_like(times))
    means = (times @ total) / (times @ number)
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = means.nanquantile(edges, dim=0).to(values.dtype)
    return low, high
