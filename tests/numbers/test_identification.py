"""What tells a kernel head from its impostors: slopes of weights made by construction, shares by hand, intervals that cover."""

from __future__ import annotations

import math

import pytest
import torch

from icl_kernel_lens.numbers.identification import (
    beyond_one_ranking,
    drop_share,
    interval,
    moved_apart,
    next_of_set,
    one_ranking,
    share_interval,
    share_removed,
    share_within,
    swap_slope,
    total_variation,
    within_labels,
)
from icl_kernel_lens.numbers.influence import fit, pair_part
from icl_kernel_lens.numbers.intervals import cluster_t, ratio_interval

PROMPTS, DEMOS = 12, 8
SETS = torch.arange(PROMPTS) // 2
PAIRS = torch.tensor([[0, 2], [6, 4], [-1, -1]]).expand(PROMPTS, -1, -1)
"""The same in all prompts, so that what the place does is taken off wholly."""


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def swapped(x, pairs):
    """Values at the demonstrations with those of each pair exchanged."""
    found = x.clone()
    for number, mine in enumerate(pairs.tolist()):
        for a, b in mine:
            if a >= 0:
                found[number, ..., a], found[number, ..., b] = x[number, ..., b], x[number, ..., a]
    return found


def test_a_kernel_goes_with_the_input_and_an_address_stays():
    kernel, profile, address = draw(PROMPTS, DEMOS), draw(DEMOS, seed=1), draw(PROMPTS, DEMOS, seed=2)
    before = torch.stack([kernel, kernel + profile, address + profile], 1)
    after = torch.stack([swapped(kernel, PAIRS), swapped(kernel, PAIRS) + profile, address + profile], 1)
    slope, low, high = swap_slope(before, after, PAIRS, SETS)
    torch.testing.assert_close(slope, torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))
    assert low.shape == high.shape == (3,)
    alone, _, _ = swap_slope(before[:, 1], after[:, 1], PAIRS, SETS)
    assert float(alone) == pytest.approx(-1), "without an axis of heads"


def test_a_pair_kernel_lies_between_by_what_inputs_and_labels_bring():
    """log w = k(x, xᵢ) + b(yᵢ): (Vb − Vk) / (Vb + Vk), V the variances of the differences within pairs."""
    count, spread = 4000, (0.5, 1.0, 2.0)
    kernel = draw(count, DEMOS)
    word = torch.stack([s * draw(count, DEMOS, seed=1) for s in spread], 1)
    pairs = torch.tensor([[0, 2], [6, 4]]).expand(count, -1, -1)
    found = swap_slope(
        kernel[:, None] + word, swapped(kernel, pairs)[:, None] + word, pairs, torch.arange(count)
    )
    for at, s in enumerate(spread):
        k, b = (x[:, [0, 6]] - x[:, [2, 4]] for x in (kernel, word[:, at]))
        b = b - b.mean(0)
        exact = float((b.square() - k.square()).sum() / (k + b).square().sum())
        assert float(found[0][at]) == pytest.approx(exact, rel=1e-9)
        expected = (s**2 - 1) / (s**2 + 1)
        assert float(found[0][at]) == pytest.approx(expected, abs=0.03)
        assert found[1][at] < expected < found[2][at]


def test_what_is_bound_to_the_input_before_moves_behind_the_pair():
    """Weights on i go with the input of i − 1."""
    pairs = torch.tensor([[0, 2], [6, 4]]).expand(PROMPTS, -1, -1)
    kernel = draw(PROMPTS, DEMOS)

    def behind(x):
        return torch.nn.functional.pad(x[:, :-1], (1, 0))

    before, after = behind(kernel), behind(swapped(kernel, pairs))
    assert float(swap_slope(before, after, pairs, SETS, behind=1)[0]) == pytest.approx(-1)
    assert float(swap_slope(before, after, pairs, SETS)[0]) == pytest.approx(1)
    own = swap_slope(kernel, swapped(kernel, pairs), pairs, SETS, behind=1)
    assert float(own[0]) == pytest.approx(1), "a kernel's weights behind a pair stay"


def test_behind_a_pair_must_stand_two_that_are_in_none():
    kernel = draw(PROMPTS, DEMOS)
    for pair in ([0, 1], [3, DEMOS - 1], [2, 1]):
        pairs = torch.tensor([pair, [-1, -1]]).expand(PROMPTS, -1, -1)
        slope, low, high = swap_slope(kernel, swapped(kernel, pairs), pairs, SETS, behind=1)
        assert slope.isnan()
        assert low.isnan()
        assert high.isnan()
    across = torch.tensor([[0, 3], [4, 6]]).expand(PROMPTS, -1, -1)
    only = torch.tensor([[4, 6], [-1, -1]]).expand(PROMPTS, -1, -1)
    first = swap_slope(kernel, kernel + draw(PROMPTS, DEMOS, seed=4), across, SETS, behind=1)[0]
    second = swap_slope(kernel, kernel + draw(PROMPTS, DEMOS, seed=4), only, SETS, behind=1)[0]
    assert float(first) == pytest.approx(float(second)), "4 stands behind 3 and is one of a pair"


@pytest.mark.parametrize("behind", [0, 1])
def test_slopes_are_the_sums_written_out(behind):
    """Pairs that differ between prompts, missing ones and values that are NaN among them."""
    before, after = draw(PROMPTS, 2, DEMOS), draw(PROMPTS, 2, DEMOS, seed=1)
    before[3, :, 5] = torch.nan
    g = torch.Generator().manual_seed(3)
    pairs = torch.stack([torch.randperm(DEMOS, generator=g)[:6].reshape(3, 2) for _ in range(PROMPTS)])
    pairs[::3, 1:] = -1
    pairs[1] = -1
    usual = (before.nanmean(0) + after.nanmean(0)) / 2
    products, squares = torch.zeros(PROMPTS, 2), torch.zeros(PROMPTS, 2)
    for number in range(PROMPTS):
        mine = [pair for pair in pairs[number].tolist() if pair != [-1, -1]]
        for head in range(2):
            for a, b in mine:
                a, b = a + behind, b + behind
                if behind and (max(a, b) >= DEMOS or {a, b} & {x for pair in mine for x in pair}):
                    continue
                was, now = (x[number, head] - usual[head] for x in (before, after))
                d, again = float(was[a] - was[b]), float(now[a] - now[b])
                if not math.isnan(d):
                    products[number, head] += d * again
                    squares[number, head] += d * d
    assert (squares > 0).any(0).all()
    found, _, _ = swap_slope(before, after, pairs, SETS, behind=behind)
    torch.testing.assert_close(found.float(), products.sum(0) / squares.sum(0), atol=1e-5, rtol=1e-5)


def test_weights_that_do_not_differ_have_no_slope():
    profile = draw(DEMOS, seed=1)
    rounding = 1e-4 * draw(2, PROMPTS, DEMOS)
    flat = profile + rounding
    kernel = draw(PROMPTS, DEMOS, seed=2)
    before = torch.stack([flat[0], kernel], 1)
    after = torch.stack([flat[1], swapped(kernel, PAIRS)], 1)
    slope, low, high = swap_slope(before, after, PAIRS, SETS)
    assert [x[0].isnan().item() for x in (slope, low, high)] == [True] * 3
    assert float(slope[1]) == pytest.approx(-1)
    wider = swap_slope(profile + 1e2 * rounding[0], profile + 1e2 * rounding[1], PAIRS, SETS)
    assert not wider[0].isnan()


def test_shares_removed_by_hand():
    part = torch.tensor([[2.0, -2.0, 0.0], [1.0, 0.0, -1.0], [0.0, 3.0, -3.0]])
    left = torch.stack([part / 2, torch.zeros(3, 3), -part, part * torch.tensor([1.0, 0.5, 0.0])[:, None]], 1)
    share, _, _ = share_removed(left[:, :, None], part, torch.arange(3))
    torch.testing.assert_close(share[:, 0], torch.tensor([0.5, 1.0, 2.0, 1 - 9 / 28], dtype=torch.float64))
    along = share_removed(left[:, :1] + torch.tensor([1.0, 1.0, 1.0]), part, torch.arange(3))[0]
    assert float(along[0]) == pytest.approx(0.5), "what all labels have in common is no label part"
    part = draw(PROMPTS, 3) + 2
    left = 0.3 * part + 0.1 * draw(PROMPTS, 3, seed=1)
    share, low, high = share_removed(left, part, SETS)
    products, squares = ((x * part).sum(-1) for x in (left, part))
    kept, least, most = ratio_interval(products, squares, SETS)
    torch.testing.assert_close(torch.stack([share, low, high]), 1 - torch.stack([kept, most, least]))
    assert low < share < high


def test_the_answers_lead_by_hand():
    """Leads of 3 − (1 + 0)/2 = 2.5 and 2 − (0 − 1)/2 = 2.5, and 4 − (0 + 1)/2 = 3.5 of another answer."""
    uncut = torch.tensor([[3.0, 1.0, 0.0], [2.0, 0.0, -1.0], [0.0, 1.0, 4.0]])
    scores = torch.tensor([[1.0, 2.0, 0.0], [2.0, 0.0, -1.0], [0.0, 2.0, 3.0]])
    after = [1 - 1.0, 2.5, 3 - 1.0]
    share, _, _ = drop_share(torch.stack([scores, uncut, 2 * uncut], 1), uncut, torch.arange(3))
    expected = [1 - sum(after) / 8.5, 0.0, -1.0]
    torch.testing.assert_close(share, torch.tensor(expected, dtype=torch.float64))
    two = drop_share(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 5.0]]), torch.arange(1))[0]
    assert float(two) == pytest.approx(0.75)


def test_means_distances_and_neighbours():
    values = draw(PROMPTS, 3)
    values[2, 1] = torch.nan
    mean, low, high = interval(values, SETS, 0.9)
    torch.testing.assert_close(mean, values.nanmean(0))
    for found, expected in zip((low, high), cluster_t(values, SETS, level=0.9), strict=True):
        torch.testing.assert_close(found, expected)
    one, two = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0, 0]]), torch.tensor([[0.2, 0.3, 0.5], [0, 0.5, 0.5]])
    torch.testing.assert_close(total_variation(one, two), torch.tensor([0.3, 1.0], dtype=torch.float64))
    torch.testing.assert_close(total_variation(one, two[:1]), torch.tensor([0.3, 0.8], dtype=torch.float64))
    sets = torch.tensor([7, 3, 7, 7, 5, 3])
    assert next_of_set(sets).tolist() == [2, 5, 3, 0, 4, 1]


DRAWS = 150


def test_the_interval_of_a_slope_covers():
    """Sets of two prompts with a kernel and words of their own; pairs drawn anew in each set."""
    sets, covered = 24, 0
    demo_set = torch.arange(sets).repeat_interleave(2)
    for seed in range(DRAWS):
        g = torch.Generator().manual_seed(seed)
        kernel = torch.randn(2 * sets, DEMOS, generator=g) + 0.5 * torch.randn(
            sets, DEMOS, generator=g
        ).repeat_interleave(2, 0)
        word = 0.7 * torch.randn(sets, DEMOS, generator=g).repeat_interleave(2, 0)
        pairs = torch.stack([torch.randperm(DEMOS, generator=g)[:6].reshape(3, 2) for _ in range(sets)])
        pairs = pairs.repeat_interleave(2, 0)
        _, low, high = swap_slope(kernel + word, swapped(kernel, pairs) + word, pairs, demo_set)
        covered += bool(low <= (0.49 - 1.25) / (0.49 + 1.25) <= high)
    assert 0.89 <= covered / DRAWS <= 0.995


def test_the_interval_of_a_share_covers():
    """What is left is 0.6 of the label part, more in some sets than in others, beside noise."""
    sets, covered = 24, 0
    demo_set = torch.arange(sets).repeat_interleave(2)
    for seed in range(DRAWS):
        part = draw(2 * sets, 3, seed=seed)
        part -= part.mean(-1, keepdim=True)
        keeps = 0.6 + 0.3 * draw(sets, 1, seed=1000 + seed).repeat_interleave(2, 0)
        left = keeps * part + 0.3 * draw(2 * sets, 3, seed=2000 + seed)
        _, low, high = share_removed(left, part, demo_set)
        covered += bool(low <= 0.4 <= high)
    assert 0.89 <= covered / DRAWS <= 0.995


def drawn(sets=12, each=4, demos=8):
    g = torch.Generator().manual_seed(0)
    kernel = torch.rand(sets * each, demos, generator=g, dtype=torch.float64)
    labels = torch.arange(2).repeat(demos // 2)[torch.rand(sets, demos, generator=g).argsort(1)]
    labels, demo_set = labels.repeat_interleave(each, 0), torch.arange(sets).repeat_interleave(each)
    answer = torch.randint(2, (sets * each, 1), generator=g)
    return kernel, labels, demo_set, (labels == answer).double()


def test_an_echo_has_nothing_among_demonstrations_of_one_label_and_a_kernel_all():
    kernel, labels, demo_set, echo = drawn()
    target = pair_part(kernel + echo, demo_set)
    whole = [pair_part(x, demo_set) for x in (kernel + echo, echo)]
    value, low, high = share_within(torch.stack(whole, 1), target, labels, demo_set)
    assert value.tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    assert 0.5 < low[0] < 1 < high[0]
    assert (low[1], high[1]) == (0.0, 0.0), "certain, though all sets agree"
    part = share_within(pair_part(kernel + 3 * echo, demo_set)[:, None], target, labels, demo_set)
    assert 0 < float(part[1]) < float(part[0]) < float(part[2]) < 1
    nothing = share_within(whole[0][:, None], whole[1], labels, demo_set)
    assert all(bool(x.isnan().all()) for x in nothing), "nothing to compare with"
    echoed = share_within(whole[1][:, None], whole[1], labels, demo_set)
    assert [float(x) for x in echoed] == [0.0, 0.0, 0.0], "an echo of an echo goes by labels"


def test_shares_that_shift_by_hand():
    """½ (|¾ − ½| + |¼ − ½|); a common factor does not count, a turned sign and a missing vector do."""
    nan = float("nan")
    before = torch.tensor(
        [[3.0, 1.0, nan], [3.0, 1.0, 2.0], [1.0, -1.0, 0.0], [1.0, 1.0, 0.0], [2.0, nan, nan]]
    )
    after = torch.tensor(
        [[5.0, 5.0, 5.0], [6.0, 2.0, 4.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, nan]]
    )
    found = moved_apart(before, after)
    torch.testing.assert_close(found[:4], torch.tensor([0.25, 0.0, 1.0, 1.0], dtype=torch.float64))
    assert found[4].isnan(), "one demonstration alone"
    tiny = torch.tensor([[1.0, 1.0], [1e-5, 2e-5]])
    assert moved_apart(tiny, tiny.flip(1))[1].isnan(), "hardly anything is there"
    heads = torch.stack([before, after], 1)
    torch.testing.assert_close(moved_apart(heads, heads.flip(1))[:, 0], found, equal_nan=True)


def test_one_ranking_sharpened_is_told_from_a_kernel():
    """Log weights β(x) s_i leave nothing; a kernel of one feature, which turns the ranking round, leaves what follows it."""
    sets, each, demos = 12, 4, 8
    demo_set = torch.arange(sets).repeat_interleave(each)
    taste = draw(sets, demos).repeat_interleave(each, 0)
    sharp = draw(sets * each, 1, seed=1).abs() + 0.2
    x = draw(sets * each, 1, seed=2)
    offset = draw(sets * each, 1, seed=3)
    weights = torch.stack([(sharp * taste + offset), x * taste, 1e-3 * taste], 1).softmax(-1)
    torch.testing.assert_close(one_ranking(weights, demo_set)[:, ::2], weights[:, ::2])
    left = beyond_one_ranking(weights, demo_set)
    assert left[:, 0].isnan().all()
    assert left[:, 2].isnan().all(), "rounding"
    target = pair_part(weights[:, 1], demo_set)
    assert float(fit(left[:, 1:2], target).correlation) > 0.6
    alone = torch.arange(sets * each)
    assert beyond_one_ranking(weights, alone).isnan().all(), "no second test input to rank them otherwise"


def test_means_are_of_the_same_label_and_leave_out_what_is_unknown():
    values = torch.tensor([[1.0, 3.0, 5.0, float("nan")]])
    found = within_labels(values, torch.tensor([[0, 0, 1, 1]]))
    assert found[0, :3].tolist() == [-1.0, 1.0, 0.0]
    assert found[0, 3].isnan()


def test_what_every_prompt_shows_alike_is_certain_in_few_sets():
    part, demo_set = torch.tensor([[1.0, -1.0], [2.0, -2.0], [0.5, -0.5]]), torch.arange(3)
    left = torch.stack([part, part / 4, part * torch.tensor([[0.5], [0.1], [0.9]])], 1)
    value, low, high = share_removed(left, part, demo_set)
    assert value[:2].tolist() == low[:2].tolist() == high[:2].tolist() == [0.0, 0.75]
    assert low[2] < value[2] < high[2]
    assert interval(torch.zeros(3, 1), demo_set) == (0.0, 0.0, 0.0)
    whole = torch.tensor([2.0, -0.5, 1.0])
    half = share_interval(whole / 2, whole, demo_set)
    assert [float(x) for x in half] == [0.5, 0.5, 0.5], "of what is below 0 in some prompts, too"
    assert share_interval(torch.zeros(3), torch.rand(3), demo_set) == (0.0, 0.0, 0.0)
    unmoved = draw(3, DEMOS)
    pairs = torch.tensor([[[0, 1]]] * 3)
    assert swap_slope(unmoved, unmoved, pairs, demo_set) == (1.0, 1.0, 1.0)
    mean, low, high = interval(torch.tensor([[0.1], [0.2], [0.3]]), demo_set)
    assert low < mean < high
