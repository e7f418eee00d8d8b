"""Confidence intervals of a mean over prompts that come in demonstration sets, of which each is one observation.

    cluster_bootstrap    percentiles of means over sets drawn with replacement
    cluster_t            mean ± t · standard error between sets
    wilson               for rates near 0 or 1, on the effective number of prompts

They cover the spread between sets of the prompts at hand, not that between tasks, templates or seeds.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.numbers.draws import generator
from icl_kernel_lens.numbers.groups import group_sums, numbered


def cluster_bootstrap(
    values: Float[Tensor, "prompt *cell"],
    clusters: Int[Tensor, " prompt"],
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[Float[Tensor, "*cell"], Float[Tensor, "*cell"]]:
    """The bootstrap's percentile interval of the mean over prompts, NaN left out.

    Clusters (prompts that share demonstrations) are drawn whole, with replacement, because prompts of
    one cluster are not independent. With fewer than about twenty clusters the interval is too narrow; of a
    single one, which tells nothing about others, it is NaN.
    """
    if not 0 < level < 1 or draws < 1:
        raise ResultError(
            f"level must lie between 0 and 1; got {level}. For 95 %, pass 0.95. draws must be at least 1; got {draws}.",
            code="number-range",
        )
    member = numbered(clusters)
    total, number = (group_sums(x.double(), member) for x in (values.nan_to_num(), ~values.isnan()))
    count = len(total)
    if count == 1:
        unknown = torch.full(values.shape[1:], float("nan"), dtype=values.dtype)
        return unknown, unknown.clone()
    times = bootstrap_counts(count, draws, seed)
    means = (times @ total.reshape(count, -1)) / (times @ number.reshape(count, -1))
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = means.nanquantile(edges, dim=0).reshape(2, *values.shape[1:]).to(values.dtype)
    return low, high


def bootstrap_counts(count: int, draws: int, seed: int) -> Float[Tensor, "draw cluster"]:
    """How often each of `count` clusters is drawn, in each of `draws` draws of as many with replacement."""
    picks = torch.randint(count, (draws, count), generator=generator(seed))
    times = torch.zeros(draws, count, dtype=torch.float64)
    return times.scatter_add_(1, picks, torch.ones_like(times))


def cluster_mean(
    values: Float[Tensor, "prompt *cell"], clusters: Int[Tensor, " prompt"]
) -> tuple[Float[Tensor, "*cell"], Float[Tensor, "*cell"], Int[Tensor, "*cell"]]:
    """The mean over prompts, its standard error, and the number of clusters it rests on; NaN left out.

        se² = S/(S − 1) Σ_s (Σ_{p in s} (x_p − x̄))² / n²

    Prompts of one cluster may depend on each other in any way. NaN for fewer than two clusters.
    """
    present = ~values.isnan()
    member = numbered(clusters)
    number = present.double().sum(0)
    mean = values.nan_to_num().double().sum(0) / number
    left = (values.double() - mean).masked_fill(~present, 0)
    used = (group_sums(present.double(), member) > 0).sum(0)
    variance = group_sums(left, member).square().sum(0) / number.square() * used / (used - 1)
    return mean, variance.masked_fill(used < 2, float("nan")).sqrt(), used


def cluster_t(
    values: Float[Tensor, "prompt *cell"], clusters: Int[Tensor, " prompt"], *, level: float = 0.95
) -> tuple[Float[Tensor, "*cell"], Float[Tensor, "*cell"]]:
    """Student's interval of the mean over prompts: x̄ ± t_{S−1} · se, from the spread between clusters (`cluster_mean`)."""
    mean, error, used = cluster_mean(values, clusters)
    reach = error * student_quantile(level, used - 1)
    return mean - reach, mean + reach


def wilson(
    values: Float[Tensor, "prompt *cell"], clusters: Int[Tensor, " prompt"], *, level: float = 0.95
) -> tuple[Float[Tensor, "*cell"], Float[Tensor, "*cell"]]:
    """Wilson's interval of a rate, taking the clusters for as many independent prompts as they are worth.

        n_eff = p(1 − p) / (f se²),   f = (S − 1) / χ²_{1/4, S−1}        at most the prompts there are

    A variance estimated from few clusters may fall short of the true one; f, its shortfall at the lower quartile,
    keeps the interval from being too short. Where every prompt is a cluster of its own, n_eff is the number of prompts;
    where all values agree, it is S. `values` lie between 0 and 1 (a tied vote's credit lies in between). It covers near
    0 and 1, where Student's interval does not.
    """
    from scipy.stats import chi2

    mean, error, used = cluster_mean(values, clusters)
    prompts = (~values.isnan()).double().sum(0)
    spread, single = mean * (1 - mean), used == prompts
    freedom = (used - 1).clamp(min=1)
    short = freedom / torch.as_tensor(chi2.ppf(0.25, freedom.numpy()))
    number = torch.where(error > 0, spread / (short * error.square()), used.double()).minimum(prompts)
    number = torch.where(single, prompts, number).masked_fill(used < 2, torch.nan)
    z = student_quantile(level, freedom.masked_fill(single, 10**9))  # so many that it is the normal quantile
    middle = (mean + z.square() / (2 * number)) / (1 + z.square() / number)
    reach = z / (1 + z.square() / number) * (spread / number + z.square() / (4 * number.square())).sqrt()
    return (middle - reach).clamp(min=0), (middle + reach).clamp(max=1)


def ratio_mean(
    part: Float[Tensor, "prompt *cell"], whole: Float[Tensor, " prompt"], clusters: Int[Tensor, " prompt"]
) -> tuple[Float[Tensor, "*cell"], Float[Tensor, "*cell"], Int[Tensor, "*cell"]]:
    """Σ part / Σ whole, its standard error between clusters (linearised), and the clusters it rests on; NaN left out."""
    part = part.double()
    whole = (
        whole.double()
        .reshape(-1, *[1] * (part.dim() - 1))
        .expand_as(part)
        .masked_fill(part.isnan(), torch.nan)
    )
    size = whole.nanmean(0)
    ratio = part.nanmean(0) / size
    _, error, used = cluster_mean((part - ratio * whole) / size, clusters)
    return ratio, error, used


def student_quantile(level: float, freedom: Int[Tensor, "*cell"]) -> Float[Tensor, "*cell"]:
    """How many standard errors a two-sided interval of this level reaches, by degrees of freedom."""
    from scipy.stats import t

    return torch.as_tensor(t.ppf((1 + level) / 2, freedom.clamp(min=1).numpy()))


def student_tail(x: Float[Tensor, "*cell"], freedom: Int[Tensor, "*cell"]) -> Float[Tensor, "*cell"]:
    """P(t ≥ x), by degrees of freedom."""
    from scipy.stats import t

    return torch.as_tensor(t.sf(x.double().numpy(), freedom.clamp(min=1).numpy()))
