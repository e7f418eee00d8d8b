"""What sets of located heads carry together, and how that is shared out among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial

from icl_kernel_lens.axes import HeadRef


@dataclass(frozen=True)
class JointEffect:
    """The share of the label part that is gone with the values of some heads averaged over relabellings, weights fixed.

    v(H) = 1 − Σ ⟨t_H, t⟩ / Σ ⟨t, t⟩       t: the label part; t_H: what is left of it without the labels that heads H carry
    """

    heads: tuple[HeadRef, ...]
    value: float
    low: float
    high: float


def shapley(joint: Sequence[JointEffect]) -> Mapping[HeadRef, float]:
    """Each head's mean part over all orders in which heads are taken out; they sum to what all carry together.

    Empty where not every subset was measured.
    """
    value = {frozenset(one.heads): one.value for one in joint} | {frozenset[HeadRef](): 0.0}
    heads = sorted({h for one in joint for h in one.heads})
    count = len(heads)
    if len(value) < 2**count:
        return {}
    found = {}
    for head in heads:
        others = [h for h in heads if h != head]
        found[head] = sum(
            factorial(size)
            * factorial(count - size - 1)
            / factorial(count)
            * (value[frozenset((*some, head))] - value[frozenset(some)])
            for size in range(count)
            for some in combinations(others, size)
        )
    return found


def interactions(joint: Sequence[JointEffect]) -> Mapping[tuple[HeadRef, HeadRef], float]:
    """Of two heads, what both carry beyond the sum of what each does; below 0 where one makes up for the other."""
    value = {one.heads: one.value for one in joint}
    return {
        (a, b): together - value[(a,)] - value[(b,)]
        for (a, b), together in ((h, v) for h, v in value.items() if len(h) == 2)
        if (a,) in value and (b,) in value
    }
