"""A whole study: saved, read again, written out; and only what was computed is said."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def done():
    from icl_kernel_lens.theory import preset, study

    return study(preset("sparse"), trials=12, experiments=False)


def test_there_and_back(done, tmp_path):
    from icl_kernel_lens.errors import LoadError
    from icl_kernel_lens.theory import Study
    from icl_kernel_lens.theory.study import FILES

    again = Study.load(done.save(tmp_path))
    assert again.describe() == done.describe()
    assert {p.name for p in tmp_path.iterdir()} < set(FILES)
    (tmp_path / "theorem.safetensors").unlink()
    with pytest.raises(LoadError, match=r"a study of the theory holds theorem\.safetensors"):
        Study.load(tmp_path)


def test_only_its_own_world_is_compared_with_the_paper(done):
    said = done.describe()
    assert "the paper's" not in said
    assert "sparse: 2 tasks" in said
    assert "VariantTable(wide" in said


def test_variant_tables(world_of, tmp_path):
    from icl_kernel_lens.errors import LoadError
    from icl_kernel_lens.results import store
    from icl_kernel_lens.theory import VariantTable, compare_variants

    found = compare_variants(world_of("block"), tasks=[1])
    assert len(found) == 12
    assert {s.task for s in found} == {1}
    again = VariantTable.load(found.save(tmp_path / "v.safetensors"))
    assert again.scores == found.scores
    assert again.to_dataframe().equals(found.to_dataframe())
    row = found.table().iloc[7]
    assert (row["divide"], row["moment"], row["readout"]) == ("pre", "pre", "ratio")
    assert (
        row["mean_distance"]
        == next(s for s in found if str(s.variant) == "T_x/P(x|pre), moment of pre, ratio").mean_distance
    )
    tensors, meta = store.read(tmp_path / "v.safetensors", "VariantTable")
    store.write(tmp_path / "cut", "VariantTable", tensors, meta | {"scores": [["no"]]})
    with pytest.raises(LoadError, match="whole VariantTable"):
        VariantTable.load(tmp_path / "cut")


def test_a_variant_beyond_float64_is_no_number():
    import torch
    from theory.test_hmm import f64

    from icl_kernel_lens.theory import HMM, TaskMixture, Variant, compare_variants

    def task(rare):
        return HMM(f64([1.0]), f64([[1.0]]), f64([[1 - rare, rare]]))

    world = TaskMixture.merge("far", [task(1e-200), task(0.5)], input_length=2)
    table = compare_variants(world, [Variant("task", "pre"), Variant()], tasks=[0])
    lost, exact = table.scores
    assert (lost.rank, lost.refused) == (0, 1.0)
    assert "v(x) must be finite" in lost.why
    assert exact.mean_distance < 1e-12
    assert table.table()["mean_distance"].isna().tolist() == [True, False]
    assert torch.isnan(torch.tensor(lost.mean_distance))


def test_concentration_there_and_back(world_of, tmp_path):
    import torch

    from icl_kernel_lens.theory import Concentration, posterior_concentration

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
    from icl_kernel_lens.theory import posterior_concentration

    found = posterior_concentration(world_of("wide"), (0, 3), trials=5)
    slope = found.divergences.eps_kl - world_of("wide").kl_threshold
    assert found.bound.tolist() == pytest.approx([0, 3 * slope])
    assert 0 < slope < found.divergences.eps_kl - 1


def test_terms_there_and_back(world_of, tmp_path):
    import torch

    from icl_kernel_lens.theory import TheoremTerms, Variant, theorem_terms

    found = theorem_terms(world_of("block"), Variant("no"))
    again = TheoremTerms.load(found.save(tmp_path / "t.safetensors"))
    assert torch.equal(again.bound(5), found.bound(5))
    assert again.variant == found.variant


def test_intervals_are_of_the_means(done):
    result = done.theorem
    for name, mean in (
        ("l1", result.mean("l1")),
        ("linf", result.mean("linf")),
        ("agree", result.agreement()),
    ):
        low, high = result.interval(name)
        assert (low <= mean + 1e-12).all()
        assert (mean <= high + 1e-12).all()
    wide = result.interval("l1")
    tight = result.interval("l1", level=0.5)
    assert (tight[1] - tight[0] <= wide[1] - wide[0]).all()


def test_a_kernel_fitted_before(world_of):
    import torch

    from icl_kernel_lens.theory import TheoryError, Variant, fit_kernel, measure_theorem

    world = world_of("block")
    kernel = fit_kernel(world)
    one, two = (measure_theorem(world, (4,), trials=9, kernel=k) for k in (kernel, None))
    assert torch.equal(one.l1.nan_to_num(-1), two.l1.nan_to_num(-1))
    with pytest.raises(TheoryError, match="of this very world and variant"):
        measure_theorem(world, (4,), trials=9, kernel=kernel, variant=Variant("no"))
    with pytest.raises(TheoryError, match="of this very world and variant"):
        measure_theorem(world_of("leaky"), (4,), trials=9, kernel=kernel)
