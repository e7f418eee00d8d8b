"""What heads carry together, by hand: Shapley values as means over orders, and what pairs carry beyond the sum."""

from __future__ import annotations

from itertools import combinations, permutations

import pytest

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.results.joint_effects import JointEffect, interactions, shapley

A, B, C = HeadRef(1, 0), HeadRef(2, 1), HeadRef(2, 3)
SHARES = {(A,): 0.5, (B,): 0.3, (C,): -0.1, (A, B): 0.6, (A, C): 0.45, (B, C): 0.3, (A, B, C): 0.7}
"""Unequal, one against the rest, and no sum of its parts."""


def joint(shares=SHARES):
    return [JointEffect(heads, value, value - 0.1, value + 0.1) for heads, value in shares.items()]


def test_shapley_is_the_mean_over_all_orders_of_taking_out():
    share = {frozenset(heads): value for heads, value in SHARES.items()} | {frozenset(): 0.0}
    expected = dict.fromkeys((A, B, C), 0.0)
    for order in permutations((A, B, C)):
        for at, head in enumerate(order):
            expected[head] += (share[frozenset(order[: at + 1])] - share[frozenset(order[:at])]) / 6
    found = shapley(joint())
    assert found == pytest.approx(expected)
    assert found[A] == pytest.approx((2 * 0.5 + 0.3 + 0.55 + 2 * 0.4) / 6)
    assert sum(found.values()) == pytest.approx(0.7), "together, what all carry"


def test_heads_that_add_up_have_their_own_share():
    own = {A: 0.4, B: 0.25, C: -0.05}
    shares = {
        some: sum(own[head] for head in some) for size in (1, 2, 3) for some in combinations((A, B, C), size)
    }
    assert shapley(joint(shares)) == pytest.approx(own)
    assert interactions(joint(shares)) == pytest.approx({(A, B): 0.0, (A, C): 0.0, (B, C): 0.0}, abs=1e-12)


def test_the_order_of_sets_and_of_their_heads_is_nothing():
    turned = [JointEffect(one.heads[::-1], one.value, one.low, one.high) for one in reversed(joint())]
    assert shapley(turned) == pytest.approx(shapley(joint()))


def test_interactions_are_what_pairs_carry_beyond_the_sum():
    assert interactions(joint()) == pytest.approx({(A, B): -0.2, (A, C): 0.05, (B, C): 0.1})


@pytest.mark.parametrize("missing", SHARES)
def test_where_a_subset_was_not_measured_there_are_no_shapley_values(missing):
    some = joint({heads: value for heads, value in SHARES.items() if heads != missing})
    assert shapley(some) == {}
    pairs = {pair for pair in SHARES if len(pair) == 2 and pair != missing and not set(missing) < set(pair)}
    if len(missing) == 1:
        assert set(interactions(some)) == pairs
    else:
        assert set(interactions(some)) == {pair for pair in SHARES if len(pair) == 2 and pair != missing}


def test_none_carry_nothing():
    assert shapley([]) == {}
    assert interactions([]) == {}
