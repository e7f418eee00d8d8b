"""Exponential kernels, by plain loops; the temperature is chosen on other trials."""

from __future__ import annotations

import pytest
import torch

from icl_kernel_lens.theory.bayes import bayesian_prediction
from icl_kernel_lens.theory.experiments.attention_kernels import softmax_kernels
from icl_kernel_lens.theory.kernel import Inputs, enumerate_inputs, fit_kernel, operator_features
from icl_kernel_lens.theory.theorem import measure_theorem


def test_softmax_kernels_by_plain_loops(ran, world_of):
    found, world = ran["softmax_kernels"], world_of("sparse")
    prompts = world.sample_prompts(12, 6, seed=1)
    exact = bayesian_prediction(world, prompts, [6]).prediction[:, 0]
    every = enumerate_inputs(world)
    rows = operator_features(every)
    chance = every.log_pre.exp()
    size = float((chance[chance > 0] * rows[chance > 0].square().sum(-1)).sum())
    kernel = fit_kernel(world)
    for p in range(12):
        tokens = torch.cat([prompts.test_inputs[p : p + 1], prompts.inputs[p]])
        v = operator_features(Inputs.of(world, tokens))
        unit = v / v.norm(dim=-1, keepdim=True)
        phi = kernel.features(tokens)
        weights = {
            1: v[1:] @ v[0],
            2: (v[1:] @ v[0] / size / 0.1).exp(),
            3: (unit[1:] @ unit[0] / 0.1).exp(),
            4: (phi[1:] @ phi[0] / kernel.rank / 0.1).exp(),
            5: torch.ones(6).double(),
        }
        for j, w in weights.items():
            guess = torch.zeros(world.symbols).double()
            for share, y in zip(w / w.sum(), prompts.answers[p], strict=True):
                guess[y] += share
            assert float(found.values["l1_6"][p, 0, j]) == pytest.approx(
                float((guess - exact[p]).abs().sum()), rel=1e-9
            ), j
    # hot: all alike; the dot products do not have a temperature
    for j in (2, 3, 4):
        torch.testing.assert_close(
            found.values["l1_2"][:, 2, j], found.values["l1_2"][:, 2, 5], atol=1e-4, rtol=0
        )
    assert torch.equal(
        found.values["l1_2"][:, 0, 0].nan_to_num(-1), found.values["l1_2"][:, 2, 0].nan_to_num(-1)
    )


def test_the_best_temperature_is_chosen_on_other_trials(world_of):
    differs = 0
    for seed in range(4):
        found = softmax_kernels(
            world_of("sparse"), (6,), temperatures=(0.03, 0.1, 0.3, 1.0, 3.0), trials=10, seed=seed
        )
        values = found.values["l1_6"]
        best = int(values[::2, :, 2].nanmean(0).argmin())
        differs += best != int(values[:, :, 2].nanmean(0).argmin())
        assert found.facts["best τ, n = 6, exp(v·v' / τ)"] == found.settings[best]
        assert found.facts["l1, n = 6, exp(v·v' / τ)"] == float(values[1::2, best, 2].nanmean())
    assert differs, "or the test could not tell"


def test_the_theorems_kernel_is_measured_the_same_way(ran, world_of):
    same = measure_theorem(world_of("sparse"), (2, 6), trials=12, seed=1)
    found = ran["softmax_kernels"]
    torch.testing.assert_close(found.values["l1_6"][:, 0, 0], same.l1[:, 1], equal_nan=True)
    torch.testing.assert_close(found.values["agree_2"][:, 0, 0], same.agree[:, 0], equal_nan=True)
