"""The model's own kernel in numbers: closed forms, loops written out, and nulls that reject as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from icl_kernel_lens.numbers.influence import (
    Estimate,
    additivity,
    exchanged,
    exchanged_demos,
    fit,
    label_gain,
    label_pull,
    negative_again,
    negative_share,
    pair_part,
    pair_products,
    ratio_estimate,
    tail,
    variance_whole,
)

PROMPTS, DEMOS, LABELS = 12, 5, 3
SETS = torch.tensor([0, 0, 0, 0, 4, 4, 4, 2, 2, 2, 2, 2])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def regression(weights, labels, prior, beta):
    """Label scores s_c = s⁰_c + β Σ_i w_i [y_i = c], with own labels and with each replaced."""
    one_hot = torch.nn.functional.one_hot(labels, LABELS).double()
    scores = prior + beta * torch.einsum("pi,pic->pc", weights, one_hot)
    replaced = torch.zeros(*labels.shape, LABELS, LABELS, dtype=torch.float64)
    for c in range(LABELS):
        replaced[:, :, c] = scores[:, None] - beta * weights[..., None] * one_hot
        replaced[:, :, c, c] += beta * weights
    return scores, replaced


def test_influence_of_a_kernel_regression_is_twice_beta_times_its_weights():
    weights, labels = draw(PROMPTS, DEMOS).abs(), torch.randint(0, LABELS, (PROMPTS, DEMOS))
    scores, replaced = regression(weights, labels, draw(PROMPTS, LABELS, seed=1), beta=1.7)
    found = label_pull(scores, replaced, labels)
    own = torch.nn.functional.one_hot(labels, LABELS).bool()
    assert found[own].isnan().all()
    assert not found[~own].isnan().any()
    torch.testing.assert_close(found.nanmean(-1), 2 * 1.7 * weights)


def test_influence_is_the_difference_of_margins_written_out():
    labels = torch.tensor([[2, 0]])
    scores, replaced = draw(1, LABELS), draw(1, 2, LABELS, LABELS, seed=3)
    found = label_pull(scores, replaced, labels)
    for demo, y in enumerate((2, 0)):
        for c in range(LABELS):
            if c != y:
                expected = (scores[0, y] - scores[0, c]) - (replaced[0, demo, c, y] - replaced[0, demo, c, c])
                assert float(found[0, demo, c]) == pytest.approx(float(expected))


def test_of_a_kernel_regressions_influence_the_new_label_gains_half():
    weights, labels = draw(PROMPTS, DEMOS).abs(), torch.randint(0, LABELS, (PROMPTS, DEMOS))
    scores, replaced = regression(weights, labels, draw(PROMPTS, LABELS, seed=1), beta=1.7)
    found, pull = label_gain(scores, replaced, labels), label_pull(scores, replaced, labels)
    torch.testing.assert_close(found, pull / 2, equal_nan=True)
    # Labels that count where they stand now and bring nothing anywhere else; all scores may move together.
    one_hot = torch.nn.functional.one_hot(labels, LABELS)
    silenced = scores[:, None, None] - (weights[..., None] * one_hot)[:, :, None] + 7.0
    silenced = silenced.expand_as(replaced)
    found, pull = label_gain(scores, silenced, labels), label_pull(scores, silenced, labels)
    torch.testing.assert_close(found.nanmean(-1), torch.zeros_like(weights), atol=1e-9, rtol=0)
    torch.testing.assert_close(pull.nanmean(-1), weights)
    two = label_gain(scores[:, :2], silenced[:, :, :2, :2], labels.clamp(max=1))
    pull = label_pull(scores[:, :2], silenced[:, :, :2, :2], labels.clamp(max=1))
    torch.testing.assert_close(two, pull / 2, equal_nan=True)  # no third label to measure from


def pair_by_hand(values, sets):
    """Loops, in numpy."""
    values, found = values.numpy(), np.zeros(values.shape)
    for group in set(sets.tolist()):
        members = [p for p in range(len(values)) if sets[p] == group]
        mean = sum(values[p] for p in members) / len(members)
        for p in members:
            moved = values[p] - mean
            gain = float(moved @ mean) / float(mean @ mean)
            left = moved - gain * mean
            found[p] = left - left.mean()
    return torch.tensor(found)


def test_pair_part_is_what_loops_give():
    values = draw(PROMPTS, DEMOS)
    torch.testing.assert_close(pair_part(values, SETS), pair_by_hand(values, SETS))
    several = draw(PROMPTS, 2, 3, DEMOS, seed=4)
    found = pair_part(several, SETS)
    torch.testing.assert_close(found[:, 1, 2], pair_by_hand(several[:, 1, 2], SETS))


def test_place_demonstration_and_gain_are_no_pair_part():
    by_demo = draw(10, DEMOS)[SETS]  # the same in a set
    gain = draw(PROMPTS, seed=2).exp()[:, None]
    assert pair_part(by_demo, SETS).abs().max() < 1e-12
    assert pair_part(gain * by_demo, SETS).abs().max() < 1e-12
    offset = draw(PROMPTS, seed=5)[:, None]  # all demonstrations of a prompt alike
    torch.testing.assert_close(
        pair_part(torch.ones(PROMPTS, DEMOS, dtype=torch.float64) + offset, SETS),
        torch.zeros(PROMPTS, DEMOS, dtype=torch.float64),
    )


def test_prompts_alone_in_their_set_have_no_pair_part_and_missing_demonstrations_are_left_out():
    alone = torch.tensor([0, 0, 1, 2, 2])
    values = draw(5, DEMOS)
    found = pair_part(values, alone)
    assert found[2].isnan().all()
    assert not found[[0, 1, 3, 4]].isnan().any()
    some = values.clone()
    some[:, 1] = torch.nan
    kept = [0, 2, 3, 4]
    torch.testing.assert_close(
        pair_part(some, alone)[:, kept], pair_part(values[:, kept], alone), equal_nan=True
    )
    assert pair_products(found, found)[2].isnan()


def test_exchanged_sums_are_those_of_permutations_within_sets():
    one, two = draw(PROMPTS, 2, DEMOS), draw(PROMPTS, DEMOS, seed=1)
    found = exchanged(one, two, SETS, draws=400, seed=3)
    torch.testing.assert_close(found[0], torch.einsum("phi,pi->h", one, two))
    # Every other draw is the sum under some exchange within sets: of a set of two, one of two values.
    pair = torch.tensor([0, 0])
    few = exchanged(one[:2], two[:2], pair, draws=50, seed=3)
    as_is, swapped = (torch.einsum("phi,pi->h", one[:2], two[:2][order]) for order in ([0, 1], [1, 0]))
    kinds = {bool(torch.allclose(row, as_is)) for row in few}
    assert kinds == {True, False}
    assert all(torch.allclose(row, as_is) or torch.allclose(row, swapped) for row in few)


def test_exchanged_demonstrations_are_exchanged_alike_for_all_inputs_of_a_set():
    one, two = draw(PROMPTS, DEMOS), draw(PROMPTS, DEMOS, seed=1)
    found = exchanged_demos(one, two, SETS, draws=600, seed=2)
    assert float(found[0]) == pytest.approx(float((one * two).sum()))
    few, both = torch.tensor([0, 0, 0]), slice(0, 3)
    sums = exchanged_demos(one[both, :2], two[both, :2], few, draws=40, seed=2)
    as_is, swapped = (float((one[both, :2] * two[both, :2][:, order]).sum()) for order in ([0, 1], [1, 0]))
    assert {round(float(x), 6) for x in sums} == {round(as_is, 6), round(swapped, 6)}
    blank = one.clone()
    blank[:, 1] = torch.nan
    kept = [0, 2, 3, 4]
    torch.testing.assert_close(
        exchanged_demos(blank, blank, SETS, draws=9, seed=1),
        exchanged_demos(one[:, kept], one[:, kept], SETS, draws=9, seed=1),
    )


def test_tails_count_the_observed_draw_and_the_best_of_all_cells():
    draws = torch.tensor([[3.0, 0.0], [1.0, 2.0], [4.0, 1.0], [0.0, 5.0]])
    assert tail(draws).tolist() == [0.5, 1.0]
    assert tail(draws, together=True).tolist() == [0.75, 1.0]  # best of each draw: 3, 2, 4, 5


@pytest.mark.parametrize("heads", [1, 20])
def test_p_values_of_exchanged_inputs_are_honest(heads):
    """Weights and influence that have place, demonstration and gain in common, and no pair: P(p ≤ α) ≤ α."""
    sets, each, demos, trials = 8, 4, 6, 200
    member = torch.arange(sets).repeat_interleave(each)
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    p = []
    for trial in range(trials):
        common = noise(sets, demos)[member]
        influence = common * noise(sets * each, 1).exp() + 0.3 * noise(sets * each, demos)
        weights = common[:, None] * noise(sets * each, heads, 1).exp() + 0.3 * noise(
            sets * each, heads, demos
        )
        mine, theirs = pair_part(weights, member), pair_part(influence, member)
        null = exchanged(mine, theirs, member, draws=200, seed=trial)
        share = null / mine.square().sum((0, -1)).sqrt()
        p.append(float(tail(share, together=True).min()))
    rejected = sum(x <= 0.1 for x in p) / trials
    assert rejected <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / trials)
    assert rejected >= 0.02, "a null that never rejects has no power"


def test_a_true_correlation_within_sets_is_found():
    member = torch.arange(32).repeat_interleave(8)
    generator = torch.Generator().manual_seed(1)
    found = []
    for trial in range(20):
        influence = torch.randn(256, 8, generator=generator, dtype=torch.float64)
        noise = torch.randn(256, 8, generator=generator, dtype=torch.float64)
        weights = 0.3 * influence + math.sqrt(1 - 0.09) * noise
        mine, theirs = pair_part(weights, member), pair_part(influence, member)
        found.append(float(tail(exchanged(mine, theirs, member, draws=200, seed=trial))))
    assert sum(p <= 0.05 for p in found) >= 18


def test_fit_is_the_correlation_and_its_parts_average_to_it():
    weights, influence = draw(PROMPTS, 2, DEMOS), draw(PROMPTS, DEMOS, seed=1)
    mine, theirs = pair_part(weights, SETS), pair_part(influence, SETS)
    found = fit(mine, theirs)
    for head in range(2):
        x, y = mine[:, head].flatten().numpy(), theirs.flatten().numpy()
        r = float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))
        assert float(found.correlation[head]) == pytest.approx(r)
        assert float(found.slope[head]) == pytest.approx(float((x * y).sum() / (x * x).sum()))
    torch.testing.assert_close(found.by_prompt.mean(0), found.correlation)
    assert fit(torch.zeros_like(mine), theirs).correlation.isnan().all()


def test_fit_is_linearised_as_its_spread_over_new_draws_says():
    """The error between sets of the linearised values is the spread of r over simulated samples."""
    from icl_kernel_lens.numbers.intervals import cluster_mean

    sets, each = 40, 3
    member = torch.arange(sets).repeat_interleave(each)
    generator = torch.Generator().manual_seed(3)
    found, errors = [], []
    for _ in range(120):
        y = torch.randn(sets * each, 4, generator=generator, dtype=torch.float64)
        x = 0.6 * y + 0.8 * torch.randn(sets * each, 4, generator=generator, dtype=torch.float64)
        one = fit(x, y)
        found.append(float(one.correlation))
        errors.append(float(cluster_mean(one.by_prompt, member)[1]))
    assert np.std(found) == pytest.approx(float(np.mean(errors)), rel=0.25)


def test_additivity_is_one_for_sums_and_less_for_what_saturates():
    summed = draw(3, PROMPTS, LABELS)
    observed = summed.clone()
    observed[2, 4:] = torch.nan
    found = additivity(observed, summed, SETS)
    assert found.r2.value == pytest.approx(1)
    assert found.slope.value == pytest.approx(1)
    half = additivity(0.5 * summed, summed, SETS)
    # 1 − Σ (0.5 s − s)² / Σ (0.5 s)² = 0: the sum predicts no better than nothing at all.
    assert half.r2.value == pytest.approx(0)
    assert half.slope.value == pytest.approx(0.5)
    shifted = additivity(summed + draw(3, PROMPTS, 1, seed=8), summed, SETS)
    assert shifted.r2.value == pytest.approx(1), "what all labels have in common does not count"
    noisy = additivity(summed + 0.01 * draw(3, PROMPTS, LABELS, seed=9), summed, SETS).r2
    assert noisy.low < noisy.value < noisy.high <= 1


def test_negative_shares():
    sets = torch.arange(40)
    values = draw(40, 6).abs()
    assert negative_share(values, sets).value == 0
    values[:, 0] *= -1
    expected = float(values[:, 0].abs().sum() / values.abs().sum())
    assert negative_share(values, sets).value == pytest.approx(expected)
    assert negative_again(values, values, sets).value == pytest.approx(expected)
    # Noise about 0 is negative half of the time, and no other order confirms it.
    one, two = draw(4000, 4, seed=1), draw(4000, 4, seed=2)
    assert negative_share(one, torch.arange(4000)).value == pytest.approx(0.5, abs=0.02)
    assert abs(negative_again(one, two, torch.arange(4000)).value) < 0.02


def test_variance_is_about_the_mean_of_all():
    values = draw(PROMPTS, DEMOS)
    whole = float(((values - values.mean()) ** 2).sum())
    assert float(variance_whole(values).sum()) == pytest.approx(whole)


def test_ratios_cover_and_print():
    generator = torch.Generator().manual_seed(5)
    sets, hits = torch.arange(32), 0
    for _ in range(300):
        whole = torch.rand(32, generator=generator).double() + 0.5
        part = 0.3 * whole + 0.1 * torch.randn(32, generator=generator).double()
        found = ratio_estimate(part, whole, sets)
        hits += found.low <= 0.3 <= found.high
    assert 0.91 <= hits / 300 <= 0.985
    assert str(Estimate(0.0023, 0.0007, 0.0046)) == "0.0023 [0.0007, 0.0046]"
    assert str(Estimate(1.5, float("nan"), float("nan"))) == "1.50"
