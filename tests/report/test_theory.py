"""The page on a study holds the study's own sentences, numbers and figures, and of what was computed alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from results.examples import theory

from icl_kernel_lens.report.theory import study_page
from icl_kernel_lens.theory.study import Study


@pytest.fixture(scope="module")
def study():
    made = theory()
    return Study(
        theorem=made["TheoremResult"],
        letter=made["TheoremResult"],
        terms=made["TheoremTerms"],
        variants=made["VariantTable"],
        variants_small=None,
        concentration=made["Concentration"],
        experiments={"label_noise": made["Experiment"]},
    )


def test_the_page_says_what_was_measured(study):
    page = study_page(study)
    assert page.title == "The theory on sparse"
    parts = page._parts
    said = [part["text"] for part in parts if part["kind"] == "text"]
    for text in (*study.differences(), *study.experiments["label_noise"].findings):
        assert text in said
    (table,) = (part for part in parts if part["kind"] == "table")
    assert table["columns"] == list(study.theorem.table())
    assert [row[0] for row in table["rows"]] == ["1", "4", "8"]
    assert table["rows"][2][1] == f"{study.theorem.table().iloc[2, 1]:.3f}"
    assert sum(part["kind"] == "chart" for part in parts) == 4
    headings = [part["text"] for part in parts if part["kind"] == "heading"]
    assert headings[-1] == study.experiments["label_noise"].question


def test_what_was_not_computed_has_no_place(study):
    parts = study_page(replace(study, experiments={}))._parts
    assert sum(part["kind"] == "chart" for part in parts) == 3
    assert sum(part["kind"] == "heading" for part in parts) == 3
