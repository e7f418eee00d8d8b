"""How far apart tasks are, and how the posterior closes in on one: against listing, and there and back."""

from __future__ import annotations

import math

import pytest
import torch
from theory import enumerate as oracle
from theory.test_hmm import f64

from icl_kernel_lens.theory.concentration import (
    Concentration,
    divergences_from,
    posterior_concentration,
    task_divergences,
)


@pytest.mark.parametrize("length", [1, 2])
def test_divergences_by_listing(world, length):
    found = task_divergences(world, length)
    for a, b in {(0, 1), (world.tasks - 1, 0)}:
        exact = f64(oracle.divergence(world, a, b, length))
        torch.testing.assert_close(found.values[a, b], exact, rtol=1e-10, atol=1e-12)
    assert found.values.diagonal().abs().max() < 1e-12
    apart = found.values[~torch.eye(world.tasks, dtype=torch.bool)]
    assert found.eps_kl == float(apart.min())
    assert found.threshold == -math.log(world.eps_r * world.eps_d) if world.eps_d else math.inf
    assert found.holds == (found.eps_kl > found.threshold)


def test_divergences_grow_with_length_and_may_be_infinite(world_of):
    grown = [task_divergences(world_of("long"), length).eps_kl for length in range(1, 7)]
    assert grown == sorted(grown)
    assert task_divergences(world_of("sparse")).values[0, 1] == math.inf


def test_sampled_divergences_agree_within_their_error(world_of):
    world = world_of("leaky")
    exact, drawn = task_divergences(world, 3), task_divergences(world, 3, samples=4000)
    apart = ~torch.eye(3, dtype=torch.bool)
    z = (drawn.values - exact.values)[apart] / drawn.standard_error[apart]
    assert z.abs().max() < 4
    assert (drawn.standard_error[apart] > 0).all()
    assert (drawn.values.diagonal() == 0).all()


def test_an_impossible_outcome_is_infinitely_far_however_rare():
    """P = e^-800 is 0 in float64, and 0 × ∞ is not a number."""
    assert float(divergences_from(f64([-800.0, 0.0]), f64([[-math.inf, 0.0]]))) == math.inf
    assert float(divergences_from(f64([-math.inf, 0.0]), f64([[-3.0, 0.0]]))) == 0


def test_the_standard_error_falls_with_the_samples(world_of):
    few, many = (
        task_divergences(world_of("block"), samples=n, seed=1).standard_error[0, 1] for n in (500, 8000)
    )
    assert 3 < float(few / many) < 5.3


def test_the_posterior_concentrates_at_least_as_the_bound_says(world_of):
    """Where tasks never mix, log-odds grow by the divergence per demonstration on average."""
    world = world_of("block")
    found = posterior_concentration(world, (0, 1, 4, 16), trials=400, seed=1)
    own = found.divergences.values[found.tasks, 1 - found.tasks]
    growth = (found.log_odds[:, 3] - found.log_odds[:, 0]) / 16
    error = growth.std() / 20
    assert abs(float(growth.mean() - own.mean())) < 4 * float(error)
    assert (found.bound <= found.log_odds.mean(0)).all()
    assert found.posterior.mean(0).diff().gt(0).all()
    torch.testing.assert_close(found.posterior, found.log_odds.sigmoid())


def test_concentration_there_and_back(world_of, tmp_path):
    found = posterior_concentration(world_of("sparse"), (0, 1, 8), trials=30)
    again = Concentration.load(found.save(tmp_path / "c.safetensors"))
    for name in ("posterior", "log_odds", "tasks", "bound"):
        assert torch.equal(getattr(again, name), getattr(found, name))
    assert repr(again) == repr(found)
    table = found.table()
    ordered = sorted(found.log_odds[:, 2].tolist())
    assert table["log_odds_10"].iloc[2] == ordered[3]
    assert table["log_odds_90"].iloc[2] == ordered[26]
    assert table["ruled_out"].tolist() == found.log_odds.isposinf().double().mean(0).tolist()
    frame = found.to_dataframe()
    assert frame[(frame.trial == 4) & (frame.n == 8)].posterior.item() == float(found.posterior[4, 2])


def test_the_bound_grows_by_what_divergence_exceeds_the_threshold(world_of):
    found = posterior_concentration(world_of("wide"), (0, 3), trials=5)
    slope = found.divergences.eps_kl - world_of("wide").kl_threshold
    assert found.bound.tolist() == pytest.approx([0, 3 * slope])
    assert 0 < slope < found.divergences.eps_kl - 1
