"""Intervals over prompts, by whole demonstration sets: bootstrap, Student's t, and Wilson's for rates."""

from __future__ import annotations

import numpy as np
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


def cluster_mean(
    values: Float[Tensor, "prompt cell"], clusters: Int[Tensor, " prompt"]
) -> tuple[Float[Tensor, " cell"], Float[Tensor, " cell"], Int[Tensor, " cell"]]:
    """Mean, its standard error, and the number of clusters it rests on; NaN left out.

        se² = S/(S − 1) Σ_s (Σ_{p in s} (x_p − x̄))² / n²

    Prompts of one cluster may depend on each other in any way. NaN for fewer than two clusters.
    """
    present = ~values.isnan()
    _, member = clusters.unique(return_inverse=True)
    count = int(member.max()) + 1
    cells = values.shape[1]
    number = present.double().sum(0)
    mean = values.nan_to_num().double().sum(0) / number
    left = (values.double() - mean).masked_fill(~present, 0)
    sums = torch.zeros(count, cells, dtype=torch.float64).index_add(0, member, left)
    sizes = torch.zeros(count, cells, dtype=torch.float64).index_add(0, member, present.double())
    used = (sizes > 0).sum(0)
    variance = sums.square().sum(0) / number.square() * used / (used - 1)
    return mean, variance.masked_fill(used < 2, float("nan")).sqrt(), used


def cluster_t(
    values: Float[Tensor, "prompt cell"], clusters: Int[Tensor, " prompt"], *, level: float = 0.95
) -> tuple[Float[Tensor, " cell"], Float[Tensor, " cell"]]:
    """Student's interval of the mean of each column, from the spread between clusters (`cluster_mean`)."""
    mean, error, used = cluster_mean(values, clusters)
    reach = error * student_quantile(level, used - 1)
    return mean - reach, mean + reach


def wilson(
    values: Float[Tensor, "prompt cell"], clusters: Int[Tensor, " prompt"], *, level: float = 0.95
) -> tuple[Float[Tensor, " cell"], Float[Tensor, " cell"]]:
    """Wilson's interval of a rate, on the number of independent prompts that clusters are worth.

        n_eff = p(1 − p) / (f se²),   f = (S − 1) / χ²_{1/4, S−1}        at most the prompts there are

    f, the upper quartile of how far a variance from S clusters may fall short, keeps intervals from being too short
    where clusters are few; with a cluster for each prompt n_eff is their number. Where all values agree, n_eff is S.
    `values` lie between 0 and 1 (credits of tied votes in between). Covers where Student's fails: near 0 and 1.
    """
    from scipy.stats import chi2

    mean, error, used = cluster_mean(values, clusters)
    prompts = (~values.isnan()).double().sum(0)
    spread, single = mean * (1 - mean), used == prompts
    freedom = (used - 1).clamp(min=1)
    short = freedom / torch.from_numpy(np.asarray(chi2.ppf(0.25, freedom.numpy())))
    number = torch.where(error > 0, spread / (short * error.square()), used.double()).minimum(prompts)
    number = torch.where(single, prompts, number)
    normal = torch.full_like(used, 10**9)
    z = torch.where(single, student_quantile(level, normal), student_quantile(level, freedom))
    middle = (mean + z.square() / (2 * number)) / (1 + z.square() / number)
    reach = z / (1 + z.square() / number) * (spread / number + z.square() / (4 * number.square())).sqrt()
    unknown = used < 2
    low, high = (middle - reach).clamp(min=0), (middle + reach).clamp(max=1)
    return low.masked_fill(unknown, float("nan")), high.masked_fill(unknown, float("nan"))


def student_quantile(level: float, freedom: Int[Tensor, " cell"]) -> Float[Tensor, " cell"]:
    """How many standard errors a two-sided interval of this level reaches, by degrees of freedom."""
    from scipy.stats import t

    return torch.from_numpy(np.asarray(t.ppf((1 + level) / 2, freedom.clamp(min=1).numpy())))


def student_tail(x: Float[Tensor, "*cell"], freedom: Int[Tensor, "*cell"]) -> Float[Tensor, "*cell"]:
    """P(t ≥ x), by degrees of freedom."""
    from scipy.stats import t

    return torch.from_numpy(np.asarray(t.sf(x.double().numpy(), freedom.clamp(min=1).numpy())))
