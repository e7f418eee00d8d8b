"""A head's scores: mixtures, the share that stands on labels, and how it swings."""

from __future__ import annotations

import pytest
import torch
from worlds.planted.plans import one

from icl_kernel_lens.worlds.planted.roles import PlantedHead


def test_scores_of_a_mixture_are_the_kernels_and_the_echos():
    """log w = (1 − d) · log w of the kernel + d · log w of the echo, up to what all labels have in common."""
    heads = [PlantedHead(1, 0, "kernel", gain=0.0), PlantedHead(1, 1, "echo", share=0.8)]
    heads += [PlantedHead(1, 2 + i, "kernel", gain=0.0, echo_share=d) for i, d in enumerate((0.3, 1.0))]
    plan = one(*heads, heads_per_layer=4)
    logs = plan.weights(plan.prompts(count=20))[:, 1].log()
    kernel, echo, some, whole = (logs - logs.mean(-1, keepdim=True)).unbind(1)
    torch.testing.assert_close(some, 0.7 * kernel + 0.3 * echo)
    torch.testing.assert_close(whole, echo)
    assert echo.abs().mean() > 0.1


@pytest.mark.parametrize("share", [1e-4, 0.03, 0.999, 1.0])
def test_a_heads_share_stands_on_labels(share):
    plan = one(PlantedHead(1, 0, "kernel", share=share), PlantedHead(1, 1, "kernel"))
    mass = plan.weights(plan.prompts(count=200))[:, 1].sum(-1).median(0).values
    assert float(mass[0]) == pytest.approx(share, rel=0.2)
    assert float(mass[1]) == pytest.approx(0.8, rel=0.2)


def test_a_gain_of_salience_goes_with_the_test_input():
    for swing in (0.0, 4.0):
        prompts = (plan := one(PlantedHead(1, 0, "salience", swing=swing))).prompts(
            count=200, tests_per_set=4
        )
        mass = plan.weights(prompts)[:, 1, 0].sum(-1).unflatten(0, (-1, 4))
        assert (mass.std(1).mean() > 0.1) == (swing > 0)
