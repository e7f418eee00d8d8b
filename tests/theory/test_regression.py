"""Kernel regression on prompts and in expectation: by plain loops, by listing, where it is refused, and its variants."""

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
from icl_kernel_lens.theory.checks import TheoryError
from icl_kernel_lens.theory.hmm import HMM
from icl_kernel_lens.theory.kernel import Inputs, Variant, fit_kernel
from icl_kernel_lens.theory.mixture import TaskMixture
from icl_kernel_lens.theory.presets import random_world
from icl_kernel_lens.theory.regression import (
    VariantTable,
    compare_variants,
    kernel_regression,
    population_regression,
)


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


def test_the_identity_is_exact_for_every_task(world):
    found = compare_variants(world, [Variant()])
    assert found.condition.shape == (1, world.tasks)
    assert (found.condition <= 1e5).all()
    assert (found.mean_distance < 1e-12).all()
    assert (found.worst_distance < 1e-9).all()
    assert (found.refused < 1e-6).all()


def test_the_identity_on_the_papers_world(han):
    """Condition 1e11: exact on average, and inputs of probability 1e-10 are off by no more than 1e-4."""
    found = compare_variants(han, [Variant()])
    assert found.tasks == tuple(range(8))
    assert (found.condition > 1e5).all()
    assert (found.mean_distance < 1e-9).all()
    assert (found.worst_distance < 1e-4).all()
    assert (found.refused < 1e-4).all()


@pytest.mark.parametrize("leak", [0.0, 0.1])
def test_the_identity_on_random_worlds(leak):
    for seed in range(10):
        world = random_world("random", 2, 3, 8, 2, seed=seed, leak=leak, concentration=0.5)
        found = compare_variants(world, [Variant()])
        assert (found.mean_distance < 1e-9).all()
        assert (found.worst_distance < torch.where(found.condition <= 1e5, 1e-9, 1e-6)).all()
        assert (found.refused < 1e-4).all()


def test_peaked_worlds_keep_their_digits():
    """Condition 1e13: S⁻¹Vᵀv(x) alone is off by 2 at rare inputs, and by 1e-5 on average."""
    world = random_world("peaked", 2, 3, 8, 2, seed=0, concentration=0.1)
    found = compare_variants(world, [Variant()])
    assert (found.condition > 1e12).all()
    assert (found.mean_distance < 1e-12).all()
    assert (found.worst_distance < 1e-8).all()


def test_the_table_of_variants_in_kind(world_of):
    """More symbols than states, tasks that never mix: which cells are exact, and which are not."""
    world = world_of("wide")
    table = compare_variants(world)
    found = {
        (variant.divide, variant.moment, variant.readout): row
        for variant, row in zip(table.variants, table.mean_distance.tolist(), strict=True)
    }
    assert len(found) == 12
    exact = {("pre", "pre", "ratio"), ("task", "task", "sum"), ("task", "task", "ratio")}
    for cell, distances in found.items():
        if cell in exact:
            assert max(distances) < 1e-9, cell
        else:
            assert min(distances) > 1e-3, cell
    for task in range(2):  # the ratio repairs most, but not all, of what the raw sum gets wrong
        assert found["no", "pre", "sum"][task] > 10 * found["no", "pre", "ratio"][task]
        assert found["pre", "pre", "sum"][task] > 0.4


def test_variant_tables(world_of, tmp_path):
    found = compare_variants(world_of("block"), tasks=[1])
    assert found.rank.shape == (12, 1)
    assert found.tasks == (1,)
    again = VariantTable.load(found.save(tmp_path / "v.safetensors"))
    assert again.variants == found.variants
    assert again.to_dataframe().equals(found.to_dataframe())
    row = found.table().iloc[7]
    assert (row["divide"], row["moment"], row["readout"]) == ("pre", "pre", "ratio")
    assert str(found.variants[7]) == "T_x/P(x|pre), moment of pre, ratio"
    assert row["mean_distance"] == float(found.mean_distance[7, 0])
    with pytest.raises(TheoryError, match="the number of variants, and that of tasks, must be at least 1"):
        compare_variants(world_of("block"), [])


def test_a_variant_beyond_float64_is_no_number():
    def task(rare):
        return HMM(f64([1.0]), f64([[1.0]]), f64([[1 - rare, rare]]))

    world = TaskMixture.merge("far", [task(1e-200), task(0.5)], input_length=2)
    table = compare_variants(world, [Variant("task", "pre"), Variant()], tasks=[0])
    (lost,), (exact,) = table.mean_distance
    assert (int(table.rank[0]), float(table.refused[0])) == (0, 1.0)
    assert "v(x) must be finite" in table.why[0][0]
    assert table.why[1] == ("",)
    assert exact < 1e-12
    assert table.table()["mean_distance"].isna().tolist() == [True, False]
    assert lost.isnan()
