"""Retrieval of similar demonstrations: bias and variance by plain sums, and what is kept."""

from __future__ import annotations

import math

import pytest
import torch
from theory.test_hmm import f64

from icl_kernel_lens.theory.experiments.similar_demos import bias_and_variance, retrieve_similar


def test_bias_and_variance_are_the_error():
    generator = torch.Generator().manual_seed(0)
    guess = torch.rand(3, 7, 4, generator=generator, dtype=torch.float64)
    guess[1, 2] = math.nan
    guess[2, 1:] = math.nan
    truth = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    bias, variance = bias_and_variance(guess, truth)
    for t in range(2):
        made = [g for g in guess[t] if not g.isnan().any()]
        mean = sum(made) / len(made)
        spread = sum(float((g - mean).square().sum()) for g in made) / (len(made) - 1)
        assert float(variance[t]) == pytest.approx(spread)
        assert float(bias[t]) == pytest.approx(float((mean - truth[t]).square().sum()) - spread / len(made))
        assert float(bias[t] + variance[t]) == pytest.approx(
            sum(float((g - truth[t]).square().sum()) for g in made) / len(made)
        )
    assert bias[2].isnan()


def test_bias_is_unbiased():
    """Draws whose mean is the truth: bias² is 0 on average, however few the draws."""
    generator = torch.Generator().manual_seed(1)
    guess = torch.randn(4000, 3, 2, generator=generator, dtype=torch.float64)
    bias, variance = bias_and_variance(guess, torch.zeros(4000, 2).double())
    assert abs(float(bias.mean())) < 0.05
    assert float(variance.mean()) == pytest.approx(2, abs=0.1)


def test_retrieval_keeps_the_most_similar(world_of):
    """The whole pool is the same however it is chosen; fewer have a smaller bandwidth when chosen, and chance leaves it."""
    world = world_of("wide")
    for by in ("likelihood", "kernel"):
        found = retrieve_similar(world, (24, 6, 2), trials=12, draws=12, by=by)
        bandwidth = found.mean("bandwidth")
        for measure in found.measures:
            values = found.values[measure]
            torch.testing.assert_close(values[:, 0, 0], values[:, 0, 1], equal_nan=True)
            torch.testing.assert_close(values[:, 0, 2], values[:, 0, 3], equal_nan=True)
        assert bandwidth[:, 3].diff().lt(0).all()
        assert float(bandwidth[2, 3]) < 0.6 * float(bandwidth[2, 2])
        assert found.values["effective"][:, :, 2:] == pytest.approx(
            f64([24, 6, 2]).expand(12, -1)[..., None].expand(-1, -1, 2)
        )
        assert found.mean("variance")[:, 3].diff().gt(0).all()
        assert float(found.values["effective"][:, 1, 0].nanmean()) < 6
