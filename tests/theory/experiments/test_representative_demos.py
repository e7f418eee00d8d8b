"""Representative demonstrations: where inputs come from, moments formed, and Spearman's correlation."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import spearmanr

from icl_kernel_lens.theory.experiments.representative_demos import (
    draw_inputs,
    moment_distance,
    rank_correlation,
)
from icl_kernel_lens.theory.kernel import fit_kernel, operator_features
from icl_kernel_lens.theory.operators import enumerate_inputs


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
