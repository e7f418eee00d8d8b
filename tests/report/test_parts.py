"""The parts of pages: numbers as they are read, what was not measured, tables of heads."""

from __future__ import annotations

from results.examples import task_accuracy

from icl_kernel_lens.charts.page import Page
from icl_kernel_lens.evidence.small import small_evidence
from icl_kernel_lens.report.parts import capital, in_context, score_table, settings_of, words
from icl_kernel_lens.scores.vote import head_vote


def test_accuracies_and_what_was_not_measured():
    page = Page("x")
    in_context(page, task_accuracy())
    text = page.html()
    assert "<td>accuracy, with demonstrations</td><td>100.0%</td>" in text
    assert "<p>Accuracy with permuted labels: not measured (permuting changes no label" in text


def test_a_table_of_heads():
    page, vote = Page("x"), head_vote(small_evidence())
    score_table(page, vote, k=2)
    text = page.html()
    assert text.count("<td>L") == 2
    assert "The 2 heads most surely above their controls" in text
    assert "Not scored: no attention on the demonstrations (4 cells)." in text


def test_names_and_settings():
    assert (words("p_family"), capital("a note")) == ("p family", "A note")
    settings = dict(settings_of(small_evidence()))
    assert settings["model"] == "by hand (2 layers × 2 heads)"
    assert settings["template"] == "token ids"
