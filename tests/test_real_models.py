"""The study of two pretrained models: its cells, and that its page shows the results that are kept."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from studies.real_models import page
from studies.real_models.run import RESULTS, Cell, cells, chosen


def test_there_are_24_cells_and_8_that_vary_template_and_seed():
    every = list(cells())
    assert len({cell.name for cell in every}) == len(every) == 32
    assert sum((cell.template, cell.seed) == ("usual", 0) for cell in every) == 24
    assert [cell.name for cell in every if cell.chosen] == [
        f"{model}-{task}-8" for model in ("smollm2", "gemma3") for task in ("sst2", "ag_news")
    ]


def test_cells_are_picked_by_name_or_by_its_beginning():
    assert [cell.name for cell in chosen(["smollm2-sst2-8"])] == ["smollm2-sst2-8"]
    assert [cell.name for cell in chosen(["gemma3-sst2-8-"])] == [
        "gemma3-sst2-8-other",
        "gemma3-sst2-8-seed1",
    ]
    assert len(list(chosen(["gemma3"]))) == 16
    assert len(list(chosen([]))) == 32


def test_the_page_shows_the_results_that_are_kept():
    text = page.PAGE.read_text()
    assert page.drawn(text, RESULTS) == text, "run python -m studies.real_models.page"
    assert text.count("<!-- table: ") == len(page.TABLES)


def test_every_kept_cell_says_where_it_comes_from():
    found = page.finished(RESULTS)
    assert found
    for cell, row in found:
        assert row["date"]
        assert {"smollm2": "Q4_1", "gemma3": "Q4_K"}[cell.model] in row["quantisation"]
        assert (RESULTS / "coverage" / f"{cell.name}.csv").exists()
    summary = pd.read_csv(RESULTS / "summary.csv")
    assert len(summary) == len(found)


@pytest.fixture
def results(tmp_path):
    """Three sets of offsets and three layers of one cell, and a second cell."""
    for folder in ("cells", "coverage", "layers"):
        (tmp_path / folder).mkdir()
    for number, cell in enumerate((Cell("smollm2", "sst2", 8), Cell("gemma3", "trec", 16))):
        row = {"best_head": "L1H2", "head_vote": 0.5, "strongest_control": "last_label", "control": 0.75}
        row |= {"above_control_low": -0.3, "label_part": 1.0, "label_part_low": 0.5, "label_part_high": 1.5}
        names = (
            "demonstrations",
            "permuted_labels",
            "no_demonstrations",
            "majority",
            "last_label",
            "commonest_answer",
        )
        row |= {
            f"{name}{end}": 0.1 * number + x
            for name in names
            for end, x in (("", 0.6), ("_low", 0.55), ("_high", 0.7))
        }
        (tmp_path / "cells" / f"{cell.name}.json").write_text(json.dumps(row))
        shares = {
            f"{word}{end}": [0.1, 0.9, 0.95] for word in ("lost", "kept") for end in ("", "_low", "_high")
        }
        pd.DataFrame({"cut": "zeroed", "offsets": ["-1", "0", "-1, 0"], **shares}).to_csv(
            tmp_path / "coverage" / f"{cell.name}.csv"
        )
        pd.DataFrame({"layer": range(3), "label_attention": [0.1, 0.3, 0.2]}).to_csv(
            tmp_path / "layers" / f"{cell.name}.csv"
        )
        by_layer = {"cut": "zeroed", "offset": 0, "layer": range(3), "lost": [0.0, 0.5, 0.6]}
        pd.DataFrame(by_layer).to_csv(tmp_path / "coverage" / f"{cell.name}-layers.csv")
    return tmp_path


def test_tables_are_of_the_numbers_of_each_cell(results):
    assert [row[:2] for row in page.accuracy(results).rows] == [
        ["SmolLM2-135M-Instruct, sst2, 8 demonstrations", "60.0 [55.0, 70.0]"],
        ["Gemma 3 270M, trec, 16 demonstrations", "70.0 [65.0, 80.0]"],
    ]
    assert page.votes(results).rows[0][1:] == ["L1H2", "50.0%", "last label", "75.0%", "-30.0 points"]
    assert [list(row[2:]) for row in page.coverage(results).rows] == [
        ["-1", "0.10 [0.10, 0.10]", "0.10 [0.10, 0.10]"],
        ["0", "0.90 [0.90, 0.90]", "0.90 [0.90, 0.90]"],
        ["all", "0.95 [0.95, 0.95]", "0.95 [0.95, 0.95]"],
    ], "of the tasks that are varied alone"
    assert [list(row[1:]) for row in page.layers(results).rows] == [
        ["1: 0.30, 2: 0.20, 0: 0.10", "2: 0.60, 1: 0.50, 0: 0.00"],
        ["1: 0.30, 2: 0.20, 0: 0.10", ""],
    ]


def test_what_stands_between_the_marks_gives_way(results):
    text = "before\n<!-- table: votes -->\nold\n<!-- end -->\nafter\n"
    new = page.drawn(text, results)
    assert "old" not in new
    assert new.startswith("before\n<!-- table: votes -->\n### The surest head")
    assert new.endswith("<!-- end -->\nafter\n")
    assert page.drawn(new, results) == new
