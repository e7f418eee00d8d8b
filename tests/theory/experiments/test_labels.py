"""Labels renamed and labels wrong: exact predictions by plain products, and the laws they obey."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from icl_kernel_lens.theory.bayes import bayesian_prediction
from icl_kernel_lens.theory.checks import TheoryError
from icl_kernel_lens.theory.experiments.labels import derangement, label_noise, noisy_prediction
from icl_kernel_lens.theory.theorem import measure_theorem


def test_noisy_prediction_by_listing(world_of):
    """Without noise it is exact Bayes; with noise, each demonstration's matrix by plain products."""
    for name in ("leaky", "sparse"):
        world = world_of(name)
        prompts = world.sample_prompts(5, 2, seed=4)
        clean, posterior = noisy_prediction(world, prompts, 0.0)
        exact = bayesian_prediction(world, prompts, [2])
        torch.testing.assert_close(clean, exact.prediction[:, 0])
        torch.testing.assert_close(posterior, exact.posterior_with_input[:, 0])
        share, m = 0.3, world.symbols
        rows = world.start
        for p in range(5):
            weights = world.prior
            for x, y in zip(prompts.inputs[p], prompts.answers[p], strict=True):
                step = rows
                for token in x:
                    step = step * world.hmm.emission[:, token] @ world.hmm.transition
                with_y = step * world.hmm.emission[:, y] @ world.hmm.transition @ world.restart
                without = step @ world.hmm.transition @ world.restart
                weights = weights @ ((1 - share) * with_y + share / m * without)
            test = rows
            for token in prompts.test_inputs[p]:
                test = test * world.hmm.emission[:, token] @ world.hmm.transition
            answer = weights @ (test @ world.hmm.emission)
            found, posterior = noisy_prediction(world, prompts, share)
            torch.testing.assert_close(found[p], answer / answer.sum())
            seen = weights * test.sum(-1)
            torch.testing.assert_close(posterior[p], seen / seen.sum())


def test_labels_outside_the_world_are_noise(world_of):
    """They say of the task what their input says; it does not matter which they are."""
    world = world_of("leaky")
    prompts = world.sample_prompts(6, 4, seed=2)
    outside = replace(prompts, answers=prompts.answers + world.symbols)
    for one, two in zip(
        noisy_prediction(world, outside, 0.1, 2 * world.symbols),
        noisy_prediction(world, prompts, 1.0, 2 * world.symbols),
        strict=True,
    ):
        torch.testing.assert_close(one, two)


def test_noise_cannot_be_more_than_all(world_of):
    world = world_of("block")
    with pytest.raises(TheoryError, match="share of noise must be a probability; got 1.5"):
        noisy_prediction(world, world.sample_prompts(1, 1, seed=0), 1.5)


def test_renaming(ran):
    found = ran["output_format"]
    follows, keeps, mass = (found.values[name] for name in ("follows", "keeps", "mass"))
    # a regression follows any renaming as often as it was right; all it can give are labels shown
    for i in (1, 2):
        torch.testing.assert_close(follows[:, i, 0], follows[:, 0, 0], equal_nan=True)
    assert (mass[:, :, 0].nan_to_num(1) - 1).abs().max() < 1e-9
    torch.testing.assert_close(follows[:, 0], keeps[:, 0], equal_nan=True)
    # exact Bayes finds symbols that the world never emits impossible, and in doubt does not use them
    assert follows[:, 2, 1].isnan().all()
    assert not follows[:, 2, 2].isnan().any()
    assert float(mass[:, 2, 2].max()) < 0.02
    assert float(keeps[:, 2, 2].mean()) > float(keeps[:, 2, 0].nanmean())
    for count in (2, 5, 9):
        moved = derangement(count, torch.Generator().manual_seed(count))
        assert sorted(moved.tolist()) == list(range(count))
        assert (moved != torch.arange(count)).all()


def test_wrong_labels(ran, world_of):
    found = ran["label_noise"]
    same = measure_theorem(world_of("sparse"), (6,), trials=12, seed=1)
    torch.testing.assert_close(found.values["l1"][:, 0, 0], same.task_l1[:, 0], equal_nan=True)
    # with no noise, told Bayes is Bayes
    torch.testing.assert_close(found.values["l1"][:, 0, 1], found.values["l1"][:, 0, 2], equal_nan=True)
    l1 = found.mean("l1")
    assert l1[0, 0] < l1[1, 0] < l1[2, 0]
    assert found.values["posterior"][:, :, 0].isnan().all()
    with pytest.raises(TheoryError, match=r"shares must rise within 0 and 1; got \(0.5, 0.1\)"):
        label_noise(world_of("block"), (0.5, 0.1))


def test_told_bayes_gains_where_labels_matter(world_of):
    found = label_noise(world_of("sparse"), (0.0, 0.4), 24, trials=80)
    l1, made = found.mean("l1"), found.scored
    assert float(made[1, 2]) == 1
    assert float(made[1, 1]) < 1  # a wrong label can make the prompt impossible
    assert float(l1[1, 2]) < 0.1
    assert float(l1[1, 0]) > float(l1[0, 0]) + 0.1
