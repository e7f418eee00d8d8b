"""Intervals cover what they say: rates by Wilson's on the effective number, means by Student's between sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from icl_kernel_lens.numbers.intervals import cluster_mean, cluster_t, wilson

RATES = (0.1, 0.3, 0.5, 0.8, 0.9, 0.95)
REPEATS = 2000


def draws(rate, sets, per_set, correlation, seed):
    """0 or 1 a prompt, `REPEATS` columns; sets differ in their rates (beta-binomial)."""
    rng = np.random.default_rng(seed)
    if correlation:
        a, b = (share * (1 - correlation) / correlation for share in (rate, 1 - rate))
        rates = rng.beta(a, b, (sets, REPEATS)).repeat(per_set, 0)
    else:
        rates = np.full((sets * per_set, REPEATS), rate)
    values = torch.from_numpy(rng.random(rates.shape) < rates).float()
    return values, torch.arange(sets).repeat_interleave(per_set)


@pytest.mark.parametrize(
    ("sets", "per_set", "correlation", "low", "high"),
    [
        (100, 1, 0.0, 0.925, 0.975),
        (200, 1, 0.0, 0.925, 0.975),
        (64, 2, 0.3, 0.93, 0.975),
        (64, 6, 0.5, 0.93, 0.975),
        (16, 12, 0.2, 0.93, 1.0),
        (8, 25, 0.2, 0.93, 1.0),
    ],
)
def test_rates_are_covered(sets, per_set, correlation, low, high):
    """93–97 % at 95 % (± what 2,000 draws and whole numbers of prompts allow); with few sets, no less."""
    for at, rate in enumerate(RATES):
        values, clusters = draws(rate, sets, per_set, correlation, at)
        lower, upper = wilson(values, clusters)
        covered = float(((lower <= rate) & (rate <= upper)).double().mean())
        assert low <= covered <= high, f"rate {rate}: {covered}"


def test_wilson_is_statsmodels_or_scipys_where_prompts_are_independent():
    from scipy.stats import binomtest

    values = torch.zeros(120, 3)
    values[:7, 0], values[:60, 1] = 1, 1
    lower, upper = wilson(values, torch.arange(120), level=0.9)
    for column, hits in enumerate((7, 60, 0)):
        expected = binomtest(hits, 120).proportion_ci(0.9, method="wilson")
        assert float(lower[column]) == pytest.approx(expected.low, abs=1e-6)
        assert float(upper[column]) == pytest.approx(expected.high, abs=1e-6)


def test_means_are_covered_and_nothing_is_known_of_one_set():
    rng = np.random.default_rng(0)
    for sets, per_set in ((100, 1), (20, 5)):
        shared = rng.normal(size=(sets, REPEATS)).repeat(per_set, 0)
        values = torch.from_numpy(1 + shared + rng.normal(size=shared.shape))
        low, high = cluster_t(values, torch.arange(sets).repeat_interleave(per_set))
        covered = float(((low <= 1) & (high >= 1)).double().mean())
        assert 0.93 <= covered <= 0.97
    low, high = cluster_t(torch.rand(5, 2), torch.zeros(5, dtype=torch.long))
    assert low.isnan().all()
    assert high.isnan().all()


def test_standard_errors_are_those_of_ols_on_a_constant():
    """Against the textbook formula by hand, on sets of unequal size with values missing."""
    values = torch.tensor([[1.0], [2.0], [4.0], [float("nan")], [7.0], [3.0]])
    clusters = torch.tensor([0, 0, 1, 1, 2, 2])
    mean, error, used = cluster_mean(values, clusters)
    x = np.array([1, 2, 4, 7, 3.0])
    left = x - x.mean()
    sums = np.array([left[:2].sum(), left[2], left[3:].sum()])
    assert float(mean) == pytest.approx(x.mean())
    assert float(error) == pytest.approx(np.sqrt((sums**2).sum() * 3 / 2) / 5)
    assert int(used) == 3
