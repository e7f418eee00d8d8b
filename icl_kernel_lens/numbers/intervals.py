"""Confidence intervals of a mean over prompts that come in demonstration sets, of which each is one observation.

    rate_interval          of values in [0, 1]: Clopper–Pearson's, on as many prompts as the sets are worth
    difference_interval    of differences of two such values: limits of gains and losses, combined
    cluster_t              mean ± t · standard error between sets
    cluster_bootstrap      percentiles of means over sets drawn with replacement
    ratio_interval         of ratios of sums: jackknife, a set left out at a time

`interval_of` says which of them numbers of a unit get. They cover the spread between sets of the prompts at hand, not
that between tasks, templates or seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log, log10

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.numbers.draws import generator
from icl_kernel_lens.numbers.groups import group_sums, numbered

RATE = "fraction of prompts"
"""The unit of values in [0, 1] whose mean is a rate."""
FEW = 32
"""With fewer clusters, of which none differs from another, nothing is known of their spread."""
WIDEST = 7.0
"""An interval that reaches by more than this factor's logarithm (e⁷, a thousand) says nothing."""
Ends = tuple[Float[Tensor, "*cell"], Float[Tensor, "*cell"]]


def interval_of(
    unit: str,
    values: Float[Tensor, "prompt *cell"],
    clusters: Int[Tensor, " prompt"],
    *,
    difference: bool = False,
    level: float = 0.95,
    otherwise: Callable[..., Ends] | None = None,
) -> Ends:
    """The interval of the mean of numbers of this unit, or of `difference`s of two such; NaN left out.

    Rates and their differences get `rate_interval` and `difference_interval`, whatever else `otherwise` (`cluster_t`).
    """
    kinds = {RATE: difference_interval if difference else rate_interval}
    return kinds.get(unit, otherwise or cluster_t)(values, clusters, level=level)


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
    one cluster are not independent. With fewer than about twenty clusters the interval is too narrow. It is NaN where a
    cell rests on a single one, which tells nothing about others, and where fewer than 32 all agree.
    """
    _check(level, draws)
    member = numbered(clusters)
    missing = values.isnan()
    total, number = (group_sums(x.double(), member) for x in (values.masked_fill(missing, 0), ~missing))
    count, used = len(total), (number > 0).sum(0)
    times = bootstrap_counts(count, draws, seed)
    means = (times @ total.reshape(count, -1)) / (times @ number.reshape(count, -1))
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    ends = means.nanquantile(edges, dim=0).reshape(2, *values.shape[1:])
    agree = ends[1] - ends[0] <= 1e-9 * ends[1].abs()
    unknown = (used < 2) | agree & (used < FEW)
    low, high = ends.masked_fill(unknown, torch.nan).to(values.dtype)
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

    Prompts of one cluster may depend on each other in any way. The error is NaN for fewer than two clusters, and where
    there are fewer than 32 that all agree: no spread seen is not no spread.
    """
    present = ~values.isnan()
    member = numbered(clusters)
    number = present.double().sum(0)
    mean = values.double().masked_fill(~present, 0).sum(0) / number
    left = (values.double() - mean).masked_fill(~present, 0)
    used = (group_sums(present.double(), member) > 0).sum(0)
    variance = group_sums(left, member).square().sum(0) / number.square() * used / (used - 1)
    error = variance.sqrt()
    agree = error <= 1e-9 * mean.abs()
    return mean, error.masked_fill(agree, 0).masked_fill((used < 2) | agree & (used < FEW), torch.nan), used


def cluster_t(
    values: Float[Tensor, "prompt *cell"], clusters: Int[Tensor, " prompt"], *, level: float = 0.95
) -> Ends:
    """Student's interval of the mean over prompts: x̄ ± t_{S−1} · se, from the spread between clusters (`cluster_mean`)."""
    mean, error, used = cluster_mean(values, clusters)
    reach = error * student_quantile(level, used - 1)
    return mean - reach, mean + reach


def rate_interval(
    values: Float[Tensor, "prompt *cell"], clusters: Int[Tensor, " prompt"], *, level: float = 0.95
) -> Ends:
    """Clopper and Pearson's interval of a rate, on the prompts that the clusters are worth (`prompts_worth`).

    `values` lie between 0 and 1 (a tied vote's credit lies in between). It covers at 0, at 1 and with few clusters.
    Does not show: more than clusters that all agree can. They may be one prompt each or as many as they hold, and count as
    one. Few clusters of many independent prompts get an interval that is wider than need be, by half for eight.
    """
    return _clopper_pearson(cluster_mean(values, clusters)[0], prompts_worth(values, clusters, level), level)


def difference_interval(
    values: Float[Tensor, "prompt *cell"], clusters: Int[Tensor, " prompt"], *, level: float = 0.95
) -> Ends:
    """The interval of the mean of differences of two rates' values, prompt by prompt, in [−1, 1].

        d = p − q,   p, q = mean of max(±d, 0)                                  gains and losses
        low  = d − √((p − l_p)² + (u_q − q)² − 2r (p − l_p)(u_q − q))           high alike, with u_p and l_q
        r = −√(p q / ((1 − p)(1 − q)))                                          no prompt gains and loses

    l and u are Clopper and Pearson's limits on the prompts that the clusters are worth to d (Zou & Donner 2008). Where all
    prompts agree it is as wide as a rate's.
    """
    number = prompts_worth(values, clusters, level)
    p, q = (cluster_mean(part.clamp(min=0), clusters)[0] for part in (values, -values))
    (low_p, high_p), (low_q, high_q) = (_clopper_pearson(part, number, level) for part in (p, q))
    r = -(p * q / ((1 - p) * (1 - q))).nan_to_num(posinf=0).sqrt()

    def reach(a: Tensor, b: Tensor) -> Tensor:
        return (a.square() + b.square() - 2 * r * a * b).sqrt()

    low, high = p - q - reach(p - low_p, high_q - q), p - q + reach(high_p - p, q - low_q)
    return low.clamp(min=-1), high.clamp(max=1)


def prompts_worth(
    values: Float[Tensor, "prompt *cell"], clusters: Int[Tensor, " prompt"], level: float
) -> Float[Tensor, "*cell"]:
    """How many independent prompts the clusters are worth to values in [−1, 1]; NaN for fewer than two clusters.

        n = v / (f se²)   between (Σ n_s)² / Σ n_s² and Σ n_s,    v = mean |x| − x̄²
        f = g(S − 1) / g(Σ n_s − 1),   g(k) = t_k² k / χ²_{1/4, k}

    t makes up for a variance that few clusters estimate (Korn & Graubard 1998), χ² for one that is estimated too small, at
    its lower quartile. Prompts that are all alike within their clusters are worth the lower bound (Kish), and so are
    values that all agree.
    """
    mean, error, used = cluster_mean(values, clusters)
    sizes = group_sums((~values.isnan()).double(), numbered(clusters))
    prompts = sizes.sum(0)
    short = _allowance(level, used - 1) / _allowance(level, prompts.long() - 1)
    number = (values.double().abs().nanmean(0) - mean.square()) / (short * error.square())
    least = prompts.square() / sizes.square().sum(0)
    number = torch.where(error > 0, number, least).maximum(least).minimum(prompts)
    return number.masked_fill(used < 2, torch.nan)


def _allowance(level: float, freedom: Int[Tensor, "*cell"]) -> Float[Tensor, "*cell"]:
    """What a squared reach needs more than its variance, where this many degrees of freedom estimate that."""
    from scipy.stats import chi2

    k = freedom.clamp(min=1).double()
    return student_quantile(level, freedom).square() * k / torch.as_tensor(chi2.ppf(0.25, k.numpy()))


def _clopper_pearson(rate: Float[Tensor, "*cell"], number: Float[Tensor, "*cell"], level: float) -> Ends:
    from scipy.stats import beta

    hits, misses = (rate * number).numpy(), ((1 - rate) * number).numpy()
    low = torch.as_tensor(beta.ppf((1 - level) / 2, hits, misses + 1))
    high = torch.as_tensor(beta.ppf((1 + level) / 2, hits + 1, misses))
    unknown = number.isnan()
    return (
        low.masked_fill((rate <= 0) & ~unknown, 0.0),
        high.masked_fill((rate >= 1) & ~unknown, 1.0),
    )


def sets_for(reach: float, sets: int, within: float, level: float = 0.95) -> int:
    """About how many clusters bring an interval of half the width `reach`, from `sets` of them, down to `within`.

        S (reach / within)²;   where all agree (or `reach` is 0)   ln((1 − level)/2) / ln(1 − within)

    Rounded up to two digits. Does not show: that they decide, if the truth lies at the limit itself.
    """
    rare = (1 - level) / 2
    agree = reach == 0 or abs(reach - (1 - rare ** (1 / sets))) < 1e-4
    found = log(rare) / log(1 - within) if agree else sets * (reach / within) ** 2
    step = 10 ** max(0, int(log10(found)) - 1)
    return ceil(found / step) * step


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


def ratio_interval(
    part: Float[Tensor, "prompt *cell"],
    whole: Float[Tensor, "prompt *#cell"],
    clusters: Int[Tensor, " prompt"],
    *,
    level: float = 0.95,
) -> tuple[Float[Tensor, "*cell"], Float[Tensor, "*cell"], Float[Tensor, "*cell"]]:
    """Σ part / Σ whole and its jackknife interval, a cluster left out at a time: r ± t · se.

        se² = (S − 1)/S Σ_s (r_(s) − r̄)²,      t of  3 (Σ d²)² / Σ d⁴ − 1  degrees of freedom,  d = r_(s) − r̄

    Where no part is negative, of log r. Heavy tails, where few clusters make the sum, lower the degrees of freedom (S − 1 for
    normal ones). NaN counts as 0 in both sums; the ends are NaN for fewer than two clusters, for fewer than 32 of which
    all agree, and where they would lie a thousandfold apart.
    """
    from scipy.stats import t

    _check(level)
    member = numbered(clusters)
    sums = (group_sums(x.double().nan_to_num(), member) for x in torch.broadcast_tensors(part, whole))
    parts, wholes = sums
    ratio = parts.sum(0) / wholes.sum(0)
    without = (parts.sum(0) - parts) / (wholes.sum(0) - wholes)
    log = (parts >= 0).all(0) & (without > 0).all(0) & (ratio > 0)
    left = torch.where(log, without.clamp(min=1e-300).log(), without)
    off = left - left.mean(0)
    count, squares = len(parts), off.square().sum(0)
    freedom = (3 * squares.square() / off.pow(4).sum(0)).clamp(max=count).nan_to_num(1.0) - 1
    quantile = torch.as_tensor(t.ppf((1 + level) / 2, freedom.clamp(min=1).numpy()))
    reach = quantile * ((count - 1) / count * squares).sqrt()
    agree = reach <= 1e-9 * torch.where(log, torch.ones_like(ratio), ratio.abs())
    unknown = (count < 2) | agree & (count < FEW) | log & (reach > WIDEST)
    low, high = (
        torch.where(log, ratio * (sign * reach).exp(), ratio + sign * reach).masked_fill(unknown, torch.nan)
        for sign in (-1, 1)
    )
    return ratio, low, high


def _check(level: float, draws: int = 1) -> None:
    if not 0 < level < 1 or draws < 1:
        raise ResultError(
            f"level must lie between 0 and 1; got {level}. For 95 %, pass 0.95. draws must be at least 1; got {draws}.",
            code="number-range",
        )


def student_quantile(level: float, freedom: Int[Tensor, "*cell"]) -> Float[Tensor, "*cell"]:
    """How many standard errors a two-sided interval of this level reaches, by degrees of freedom."""
    from scipy.stats import t

    _check(level)
    return torch.as_tensor(t.ppf((1 + level) / 2, freedom.clamp(min=1).numpy()))


def student_tail(x: Float[Tensor, "*cell"], freedom: Int[Tensor, "*cell"]) -> Float[Tensor, "*cell"]:
    """P(t ≥ x), by degrees of freedom."""
    from scipy.stats import t

    return torch.as_tensor(t.sf(x.double().numpy(), freedom.clamp(min=1).numpy()))
