"""One row of attention weights at a time, against loops over its keys."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from icl_kernel_lens.numbers.rows import cut, cut_mass, exchanged, substituted


def row(seed=0, keys=9) -> Float[Tensor, "row key"]:
    return torch.randn(3, keys, generator=torch.Generator().manual_seed(seed))


def test_cut_and_renormalised():
    scores = row()
    scores[1, 7:] = -torch.inf
    weights = scores.softmax(-1)
    keys = torch.zeros(3, 9, dtype=torch.bool)
    keys[0, [1, 4]], keys[1, 0], keys[2] = True, True, True
    kept = cut(weights, scores, keys, renormalise=False)
    new = cut(weights, scores, keys, renormalise=True)
    for r in range(3):
        left = sum(float(weights[r, k]) for k in range(9) if not keys[r, k])
        for k in range(9):
            assert float(kept[r, k]) == (0 if keys[r, k] else float(weights[r, k]))
            if left > 0:
                wanted = 0 if keys[r, k] else float(weights[r, k]) / left
                assert math.isclose(float(new[r, k]), wanted, abs_tol=1e-6)
    assert new[2].isnan().all(), "nothing is left: no number"


def test_renormalising_holds_where_hardly_anything_is_left():
    """1 − Σ A is rounding; the scores are not."""
    scores = torch.tensor([[200.0, 0.0, 1.0]])
    new = cut(scores.softmax(-1), scores, torch.tensor([[True, False, False]]), renormalise=True)
    torch.testing.assert_close(new, torch.tensor([[0.0, 1 / (1 + math.e), math.e / (1 + math.e)]]))


def test_a_cut_of_equal_mass():
    weights = torch.tensor([[0.1, 0.2, 0.3, 0.25, 0.15]] * 3)
    order = torch.tensor([[torch.inf, 3.0, 1.0, 2.0, torch.inf]] * 3)
    new = cut_mass(weights, torch.tensor([0.4, 0.3, 0.8]), order, renormalise=False)
    # In order: 0.3 (key 2), 0.25 (key 3), 0.2 (key 1); keys 0 and 4 are never taken.
    torch.testing.assert_close(new[0], torch.tensor([0.1, 0.2, 0.0, 0.15, 0.15]))
    torch.testing.assert_close(new[1], torch.tensor([0.1, 0.2, 0.0, 0.25, 0.15]))
    assert new[2].isnan().all(), "only 0.75 could be taken"
    renormalised = cut_mass(weights[:1], torch.tensor([0.4]), order[:1], renormalise=True)
    torch.testing.assert_close(renormalised, new[:1] / 0.6)


def test_substituted_and_exchanged():
    weights = row(2).softmax(-1)
    places = torch.tensor([[1, 3, 6], [2, 3, 8], [0, 4, 5]])
    kernel = torch.tensor([[1.0, 2.0, 1.0], [0.0, 5.0, 0.0], [3.0, 3.0, 3.0]])
    new = substituted(weights, places, kernel)
    for r in range(3):
        mass = sum(float(weights[r, p]) for p in places[r])
        for i, p in enumerate(places[r].tolist()):
            assert math.isclose(float(new[r, p]), mass * float(kernel[r, i] / kernel[r].sum()), abs_tol=1e-6)
        rest = [k for k in range(9) if k not in places[r].tolist()]
        assert torch.equal(new[r, rest], weights[r, rest])
    own = substituted(weights, places, weights.gather(1, places))
    torch.testing.assert_close(own, weights)
    swapped = exchanged(weights, torch.tensor([0, 1, 2]), torch.tensor([5, 4, 3]))
    for r in range(3):
        assert torch.equal(swapped[r, [r, 5 - r]], weights[r, [5 - r, r]])
        rest = [k for k in range(9) if k not in (r, 5 - r)]
        assert torch.equal(swapped[r, rest], weights[r, rest])
