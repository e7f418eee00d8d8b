"""A whole study: saved, read again, written out; and only what was computed is said."""

from __future__ import annotations

import pytest
import torch

from icl_kernel_lens.errors import LoadError
from icl_kernel_lens.theory import study
from icl_kernel_lens.theory.presets import preset, random_world
from icl_kernel_lens.theory.study import Study, run_study
from icl_kernel_lens.theory.theorem import measure_theorem


@pytest.fixture(scope="module")
def done():
    return run_study(preset("sparse"), trials=12, experiments=False)


def test_there_and_back(done, tmp_path):
    saved = {name: found.save(tmp_path / name) for name, found in done.results().items()}
    results = {name: type(done.results()[name]).load(path) for name, path in saved.items()}
    assert Study.of(results).describe() == done.describe()
    with pytest.raises(LoadError, match="holds a TheoremTerms called terms; here it is a VariantTable"):
        Study.of(results | {"terms": results["variants"]})
    with pytest.raises(LoadError, match="holds a TheoremResult called letter; here there is none"):
        Study.of({name: found for name, found in results.items() if name != "letter"})
    without = Study.of({name: found for name, found in results.items() if name != "variants_small"})
    assert "VariantTable(wide" not in without.describe()
    assert "variants_small" not in without.figures()


def test_only_its_own_world_is_compared_with_the_paper(done):
    said = done.describe()
    assert "the paper's" not in said
    assert "sparse: 2 tasks" in said
    assert "VariantTable(wide" in said


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


def test_a_trial_is_a_world(monkeypatch):
    def small(seed):
        return random_world("small", 2, 3, 6, 2, seed=seed)

    monkeypatch.setattr(study, "han2025", small)
    found = study.worlds_of_the_paper((3, 4), (1, 8), trials=12)
    assert found.trials == 2
    for j, options in enumerate(({}, study.LETTER)):
        same = measure_theorem(small(4), (1, 8), trials=12, **options)
        torch.testing.assert_close(found.values["l1"][1, :, j], same.mean("l1"))
        torch.testing.assert_close(found.values["agree"][1, :, j], same.agreement())
    assert "the paper's 1.322 lies" in found.findings[0]
    assert "2 worlds" in repr(found)
