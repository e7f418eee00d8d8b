"""Intervals cover what they say: rates and their differences at the ends too, means by Student's."""

from __future__ import annotations

from itertools import combinations_with_replacement

import numpy as np
import pytest
import torch

from icl_kernel_lens.numbers.intervals import (
    RATE,
    cluster_mean,
    cluster_t,
    difference_interval,
    interval_of,
    rate_interval,
    sets_for,
)

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
        (100, 1, 0.0, 0.945, 0.98),
        (200, 1, 0.0, 0.945, 0.98),
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
        lower, upper = rate_interval(values, clusters)
        covered = float(((lower <= rate) & (rate <= upper)).double().mean())
        assert low <= covered <= high, f"rate {rate}: {covered}"


ENDS = (0.0, 0.02, 0.5, 0.98, 1.0)
ALL_OR_NONE = [(sets, alike) for sets in (8, 16, 64) for alike in (False, True)]


def at_the_ends(rate, sets, alike, seed, per_set=6, repeats=400):
    """0 or 1 a prompt: independent, or the same in all prompts of a set."""
    rng = np.random.default_rng(seed)
    values = rng.random((sets if alike else sets * per_set, repeats)) < rate
    return torch.from_numpy(values.repeat(per_set if alike else 1, 0)).double()


def covers_and_is_no_wider(values, interval, truth, sets, alike, exact):
    """At least 93 % at 95 %. Mean width at most 1.25 × that of the exact interval on the true effective number (sets where
    they are alike, prompts where these are independent), over the draws in which not all prompts agree: where they do, the
    two cannot be told apart. Few sets estimate badly how alike they are: what covers then is wider, by the table."""
    clusters = torch.arange(sets).repeat_interleave(len(values) // sets)
    low, high = interval(values, clusters)
    covered = float(((low <= truth + 1e-9) & (truth - 1e-9 <= high)).double().mean())
    assert covered >= 0.93, covered
    differ = (values != values[:1]).any(0)
    if differ.any():
        own = values[:: len(values) // sets] if alike else values
        low_exact, high_exact = exact(own, torch.arange(len(own)))
        ratio = float((high - low)[differ].mean() / (high_exact - low_exact)[differ].mean())
        assert ratio <= (1.25 if alike else {8: 1.85, 16: 1.4, 64: 1.25}[sets]), ratio


@pytest.mark.parametrize(("sets", "alike"), ALL_OR_NONE)
def test_rates_at_the_ends(sets, alike):
    for at, rate in enumerate(ENDS):
        values = at_the_ends(rate, sets, alike, at)
        covers_and_is_no_wider(values, rate_interval, rate, sets, alike, rate_interval)


@pytest.mark.parametrize(("sets", "alike"), ALL_OR_NONE)
def test_differences_at_the_ends(sets, alike):
    for at, (less, more) in enumerate(combinations_with_replacement(ENDS, 2)):
        values = at_the_ends(more, sets, alike, at) - at_the_ends(less, sets, alike, 100 + at)
        covers_and_is_no_wider(values, difference_interval, more - less, sets, alike, difference_interval)


def test_rates_of_independent_prompts_are_scipys_exact_ones():
    from scipy.stats import binomtest

    values = torch.zeros(120, 4)
    values[:7, 0], values[:60, 1], values[:, 3] = 1, 1, 1
    lower, upper = rate_interval(values, torch.arange(120), level=0.9)
    for column, hits in enumerate((7, 60, 0, 120)):
        expected = binomtest(hits, 120).proportion_ci(0.9, method="exact")
        assert float(lower[column]) == pytest.approx(expected.low, abs=1e-6)
        assert float(upper[column]) == pytest.approx(expected.high, abs=1e-6)


def test_differences_are_even_and_those_of_rates_where_nothing_is_lost():
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.integers(-1, 2, (40, 20)).astype(float))
    sets = torch.arange(40) // 2
    low, high = difference_interval(values, sets)
    mirrored = difference_interval(-values, sets)
    torch.testing.assert_close((-high, -low), mirrored)
    assert ((low <= values.mean(0)) & (values.mean(0) <= high)).all()
    low, high = difference_interval(values.clamp(min=0), sets)
    gain_low, gain_high = rate_interval(values.clamp(min=0), sets)
    torch.testing.assert_close(high, gain_high)
    assert (low < gain_low).all(), "a loss that was not seen is not excluded"


@pytest.mark.parametrize("value", [0.0, 0.1, 0.5, 1.0])
def test_what_all_agree_on_is_not_certain(value):
    """Of any unit; copies of a prompt in its set add nothing."""
    values = torch.full((24, 2), value)
    sets = torch.arange(24) // 3
    for difference in (False, True):
        low, high = interval_of(RATE, values, sets, difference=difference)
        assert ((high - low) > 0.3).all()
        alone = interval_of(RATE, values[::3], sets[::3], difference=difference)
        torch.testing.assert_close((low, high), alone)
    low, high = interval_of("logits", values, sets)
    assert torch.stack([low, high]).isnan().all(), "no spread seen in few sets"
    low, high = interval_of("logits", values.repeat(5, 1), torch.arange(120))
    torch.testing.assert_close(high, low)
    assert all(end.isnan().all() for end in interval_of(RATE, values, sets * 0))


def test_how_many_sets_would_do():
    """Checked on the intervals themselves: all agree; a share of 0.3."""
    for hits, sets, within in ((0, 32, 0.05), (12, 40, 0.05), (3, 10, 0.1)):
        low, high = rate_interval((torch.arange(sets) < hits).float(), torch.arange(sets))
        reach = float(high - low) / (1 if hits == 0 else 2)
        wanted = sets_for(reach, sets, within)
        more = (torch.arange(wanted) < round(hits / sets * wanted)).float()
        low, high = rate_interval(more, torch.arange(wanted))
        assert float(high - low) / (1 if hits == 0 else 2) == pytest.approx(within, rel=0.1)


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
