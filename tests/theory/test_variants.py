"""Which variants make the identity behind Theorem 1 exact, and their table."""

from __future__ import annotations

import pytest
import torch
from theory.test_hmm import f64

from icl_kernel_lens.theory.checks import TheoryError
from icl_kernel_lens.theory.hmm import HMM
from icl_kernel_lens.theory.kernel import Variant
from icl_kernel_lens.theory.mixture import TaskMixture
from icl_kernel_lens.theory.presets import random_world
from icl_kernel_lens.theory.variants import VariantTable, compare_variants


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
