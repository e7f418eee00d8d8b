"""Derangements: drawn uniformly, and counted as listing them counts."""

from __future__ import annotations

import random
from collections import Counter
from itertools import permutations

import pytest

from icl_kernel_lens.numbers.derangements import count_derangements, derangement_by_counting


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2], [0, 0, 1, 2], [0, 0, 0, 1, 1, 2, 2]])
def test_labels_deranged_by_counting_are_uniform_among_all_that_exist(labels):
    possible = {row for row in permutations(labels) if all(a != b for a, b in zip(row, labels, strict=True))}
    draws = 400 * len(possible)
    rng = random.Random(0)
    seen = Counter(tuple(derangement_by_counting(labels, rng)) for _ in range(draws))
    assert set(seen) == possible
    for times in seen.values():
        assert abs(times - 400) < 5 * 400**0.5


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2], [0, 0, 1, 2], [0, 0, 0, 1, 1, 2, 2], [0, 0, 1]])
def test_ways_of_deranging_are_counted_as_listing_them_counts(labels):
    listed = sum(
        all(labels[i] != label for i, label in zip(row, labels, strict=True))
        for row in permutations(range(len(labels)))
    )
    assert count_derangements(tuple((n, n) for n in Counter(labels).values())) == listed
