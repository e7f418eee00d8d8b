"""Similar and representative demonstrations: bias and variance by plain sums, what is kept, where inputs come from."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import spearmanr
from theory.test_hmm import f64

from icl_kernel_lens.theory.experiments.chosen_demos import (
    bias_and_variance,
    draw_inputs,
    moment_distance,
    rank_correlation,
    retrieve_similar,
)
from icl_kernel_lens.theory.kernel import enumerate_inputs, fit_kernel, operator_features


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


def test_inputs_come_from_their_source(world_of):
    world = world_of("sparse")
    inputs = enumerate_inputs(world)
    tasks = torch.tensor([0, 1])
    own = inputs.log_given_task.exp().T
    possible = own > 0
    laws = {
        "task": own,
        "pre-training": inputs.log_pre.exp() * possible,
        "flat": possible.double(),
    }
    laws = {name: law / law.sum(-1, keepdim=True) for name, law in laws.items()}
    laws |= {f"half {name}": (own + laws[name]) / 2 for name in ("pre-training", "flat")}
    for name, law in laws.items():
        drawn = draw_inputs(inputs, tasks, name, 20_000, torch.Generator().manual_seed(0))
        for t in range(2):
            share = drawn[t].bincount(minlength=len(inputs.tokens)).double() / 20_000
            assert (share - law[t]).abs().max() < 0.015, name
            assert (share[law[t] == 0] == 0).all()


def test_moment_distance_by_forming_the_moments(world_of):
    world = world_of("block")
    inputs, kernel = enumerate_inputs(world), fit_kernel(world)
    v = operator_features(inputs)
    demos = torch.randint(25, (3, 7), generator=torch.Generator().manual_seed(0))
    found = moment_distance(v @ kernel.directions, demos, torch.diag(kernel.singular_values.square()))
    whole = (inputs.log_pre.exp()[:, None] * v).T @ v
    for row, at in zip(found, demos, strict=True):
        own = v[at].T @ v[at] / 7
        assert float(row) == pytest.approx(float((own - whole).norm() / whole.norm()), rel=1e-9)


def test_rank_correlation_is_spearmans():
    generator = torch.Generator().manual_seed(0)
    one, two = torch.rand(2, 4, 8, generator=generator, dtype=torch.float64)
    two[1, 3] = math.nan
    two[2] = 1.0
    two[3, 2:] = math.nan
    found = rank_correlation(one, two)
    assert float(found[0]) == pytest.approx(float(spearmanr(one[0], two[0]).statistic))
    kept = ~two[1].isnan()
    assert float(found[1]) == pytest.approx(float(spearmanr(one[1][kept], two[1][kept]).statistic))
    assert found[2:].isnan().all()


def test_own_inputs_are_the_nearest_in_error(ran):
    found = ran["representative"]
    l1 = found.mean("l1")
    assert l1[0, 0] < l1[4, 0]
    assert found.values["moment"][:, :, 1:].isnan().all()
    assert set(found.facts) == {f"predicted, {source}" for source in found.settings}
