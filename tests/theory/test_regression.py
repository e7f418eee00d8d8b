"""Kernel regression on prompts and in expectation: by plain loops, by listing, and where it is refused."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from theory import enumerate as oracle
from theory.test_hmm import f64
from theory.test_kernel import exact_kernel

from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.theory.kernel import Variant, fit_kernel
from icl_kernel_lens.theory.operators import Inputs
from icl_kernel_lens.theory.regression import kernel_regression, population_regression


def test_the_denominator_is_a_ratio_of_probabilities(world):
    for task in range(world.tasks):
        found = population_regression(fit_kernel(world), task)
        inputs = Inputs.of(world, found.inputs)
        exact = (inputs.log_given_task[:, task] - inputs.log_pre).exp()
        fine = found.rounding <= 1e-10
        torch.testing.assert_close(found.denominator[fine], exact[fine], rtol=1e-9, atol=0)
        torch.testing.assert_close(found.probability, inputs.log_given_task[:, task].exp())
        assert found.unseen < 1e-12


def test_population_regression_by_listing(world_of):
    """A variant that is not exact, so that a mistake cannot hide behind the identity."""
    for name, readout in (("block", "ratio"), ("short", "sum"), ("sparse", "ratio")):
        world = world_of(name)
        variant = Variant("no", "pre", readout)
        inputs, kernel, _ = exact_kernel(world, variant, 0)
        joint = f64([oracle.answers(world, x, 0) for x in inputs.tolist()])
        votes, total = kernel @ joint, kernel @ joint.sum(-1)
        found = population_regression(fit_kernel(world, variant), 0)
        can = joint.sum(-1) > 0
        expected = (votes / total[:, None] if readout == "ratio" else votes)[can]
        scored = ~found.prediction.isnan().any(-1)
        assert scored.sum() >= 4
        torch.testing.assert_close(found.prediction[scored], expected[scored], rtol=1e-8, atol=1e-10)
        assert torch.equal(found.inputs, inputs[can])
        truth = joint[can] / joint[can].sum(-1, keepdim=True)
        distance = (expected - truth).abs().sum(-1)
        mean = (distance * joint[can].sum(-1))[scored].sum() / joint[can].sum(-1)[scored].sum()
        assert found.mean_distance == pytest.approx(float(mean), rel=1e-8)


def test_finite_regression_tends_to_the_population(world_of):
    world = world_of("sparse")
    kernel = fit_kernel(world)
    population = population_regression(kernel, 1)
    prompts = world.sample_prompts(1, 20_000, seed=3, task=1)
    weights = kernel.weights(prompts.test_inputs, prompts.inputs)
    found = kernel_regression(weights, prompts.answers, world.symbols, [20_000])
    at = (population.inputs == prompts.test_inputs).all(-1)
    torch.testing.assert_close(found.prediction[0], population.prediction[at], rtol=0, atol=0.03)


def test_regression_by_plain_loops():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(9, 8, generator=generator, dtype=torch.float64)
    answers = torch.randint(4, (9, 8), generator=generator)
    ratio = kernel_regression(weights, answers, 4, (1, 3, 8), guard=0.0, negative="keep")
    raw = kernel_regression(weights, answers, 4, (1, 3, 8), readout="sum")
    assert ratio.reasons == raw.reasons == {}
    for p, (i, n) in itertools.product(range(9), enumerate((1, 3, 8))):
        w, y = weights[p, :n].tolist(), answers[p, :n].tolist()
        exact = f64(oracle.regression(w, y, 4))
        torch.testing.assert_close(ratio.prediction[p, i], exact, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(raw.prediction[p, i], exact * sum(w) / n, rtol=1e-10, atol=1e-12)
        size = sum(map(abs, w))
        assert float(ratio.denominator[p, i]) == pytest.approx(sum(w) / n)
        assert float(ratio.amplification[p, i]) == pytest.approx(size / abs(sum(w)))
        assert float(ratio.negative_share[p, i]) == pytest.approx(-sum(x for x in w if x < 0) / size)


def test_refusals_are_nan_and_counted_once():
    nan = math.nan
    weights = f64([[1.0, 1.0], [-1.0, 0.5], [0.0, 0.0], [nan, 1.0], [1.0, -1.0], [1.0, -0.99999]])
    answers = torch.tensor([[0, 1]] * 6)
    found = kernel_regression(weights, answers, 2)
    kept = ~found.prediction.isnan().any(-1)
    assert kept.tolist() == [
        [False, True, True],
        [False, False, False],
        [False, False, False],
        [False, False, False],
        [False, True, False],
        [False, True, False],
    ]
    assert found.reasons == {
        Reason.NO_DEMOS: 6,
        Reason.OUTSIDE: 2,
        Reason.NO_WEIGHT: 2,
        Reason.NEGATIVE: 2,
        Reason.CANCELLED: 2,
    }
    barely = kernel_regression(f64([[1.0, -1.0001]]), answers[:1], 2, [2])
    assert barely.reasons == {Reason.CANCELLED: 1}, "below 0 by less than the guard: noise, not a sign"
    letter = kernel_regression(weights, answers, 2, negative="keep", guard=0.0)
    assert letter.prediction[1, 1].tolist() == [1.0, 0.0]
    assert letter.prediction[1, 2].tolist() == [2.0, -1.0]
    assert letter.prediction[4, 2].isnan().all()
    assert Reason.NEGATIVE not in letter.reasons


def test_the_order_of_demonstrations_changes_nothing(world):
    kernel = fit_kernel(world)
    prompts = world.sample_prompts(10, 6, seed=5)
    turned = replace(prompts, inputs=prompts.inputs.flip(1), answers=prompts.answers.flip(1))
    one, two = (
        kernel_regression(kernel.weights(p.test_inputs, p.inputs), p.answers, world.symbols, [6])
        for p in (prompts, turned)
    )
    torch.testing.assert_close(one.prediction, two.prediction, equal_nan=True, rtol=1e-9, atol=1e-9)
