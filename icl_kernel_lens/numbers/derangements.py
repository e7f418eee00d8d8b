"""Uniform draws among the derangements of labels: the assignments that give every place another label.

    #derangements = Σ_k (−1)^k r_k (n − k)!     Riordan (1958), chapter 7: permutations with forbidden positions

where Σ r_k x^k, the rook polynomial, is the product of the classes' own.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections import Counter
from functools import lru_cache
from itertools import accumulate
from math import comb, factorial

import numpy as np

TRIES = 100
"""Permutations drawn in the hope of a derangement, before one is built by counting."""


def draw_derangement(labels: list[int], rng: random.Random) -> list[int]:
    """A uniform draw among the assignments of these labels in which no place keeps its label."""
    for _ in range(TRIES):
        drawn = rng.sample(labels, len(labels))
        if all(new != old for new, old in zip(drawn, labels, strict=True)):
            return drawn
    return derangement_by_counting(labels, rng)


def derangement_by_counting(labels: list[int], rng: random.Random) -> list[int]:
    """The same draw, label by label, each with probability proportional to the ways of placing the labels left.

    Balanced labels of two classes have one derangement among thousands of permutations: waiting for it is no use.
    """
    places, left = Counter(labels), Counter(labels)
    drawn = []
    for old in labels:
        places[old] -= 1
        options = [new for new in left if new != old and left[new]]
        ways = []
        for new in options:
            after = ((places[c], left[c] - (c == new)) for c in left)
            ways.append(left[new] * count_derangements(tuple(sorted(after))))
        chosen = options[bisect(list(accumulate(ways)), rng.randrange(sum(ways)))]
        drawn.append(chosen)
        left[chosen] -= 1
    return drawn


@lru_cache(maxsize=1 << 16)
def count_derangements(classes: tuple[tuple[int, int], ...]) -> int:
    """The number of ways to place labels, none where its class was; (free places, free labels) of each class."""
    rooks = np.ones(1, dtype=object)
    for places, labels in classes:
        own = [comb(places, k) * comb(labels, k) * factorial(k) for k in range(min(places, labels) + 1)]
        rooks = np.convolve(rooks, np.array(own, dtype=object))
    free = sum(places for places, _ in classes)
    return sum((-1) ** k * r * factorial(free - k) for k, r in enumerate(rooks))
