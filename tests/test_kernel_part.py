"""The study of the kernel part: its cells, a cell from end to end, and that its page shows the results that are kept."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from icl_kernel_lens import load_model, load_task
from studies.influence import page, run
from studies.influence.run import RESULTS, Cell, cells


def test_one_task_is_varied_on_every_model():
    every = list(cells())
    assert len({cell.name for cell in every}) == len(every) == 3 + 7 + 7 + 6
    varied = [cell for cell in every if cell.task == "sst2"]
    assert {(cell.template, cell.seed) for cell in varied if cell.model == "qwen"} == {
        *(("usual", seed) for seed in range(3)),
        ("other", 0),
    }


def test_the_page_shows_the_results_that_are_kept():
    text = page.PAGE.read_text()
    assert page.drawn(text, RESULTS, page.TABLES) == text, "run python -m studies.influence.page"
    assert text.count("<!-- table: ") == len(page.TABLES)


def test_every_kept_cell_says_where_it_comes_from():
    found = page.finished(RESULTS)
    assert found
    for cell, row in found:
        assert row["date"]
        assert cell.model == "mini" or row["quantisation"]
        folder = "heads" if cell.locates else "numbers"
        assert {*pd.read_csv(RESULTS / folder / f"{cell.name}.csv")["cell"]} == {cell.name}
    assert len(pd.read_csv(RESULTS / "summary.csv")) == len(found)


def test_a_cell_from_end_to_end(tmp_path, monkeypatch):
    """On the bundled model and few prompts: its row, and the tables that the page is drawn from."""
    monkeypatch.setattr(run, "DEMOS", 4)
    cell, model = Cell("mini", "topics"), load_model("mini")
    few = load_task("topics").prompts(model, demos=4, count=32, sets=16, seed=0)
    monkeypatch.setattr(run, "prompts_of", lambda *_: few)
    for folder in ("cells", "heads", "numbers", "places", "joint", "layers"):
        (tmp_path / folder).mkdir()
    with pytest.warns(UserWarning, match="demonstration sets a half are few"):
        row = run.measured(cell, model, None, tmp_path / "work", tmp_path)
    (tmp_path / "cells" / f"{cell.name}.json").write_text(json.dumps(row, default=float))
    assert row["across_low"] <= row["across"] <= row["across_high"]
    shown = {name: table(tmp_path) for name, table in page.TABLES.items()}
    assert f"{row['across']:.4f} [" in shown["kernel"].markdown()
    assert row["verdict"] in shown["verdicts"].markdown()
    assert "L2H1" in shown["heads"].markdown()


def test_cells_that_vary_template_or_seed_measure_influence_alone(tmp_path, monkeypatch):
    """Of pretrained models; no heads are looked at, on as many test inputs as where they are."""
    monkeypatch.setattr(run, "DEMOS", 4)
    monkeypatch.setattr(run, "SETS", 8)
    cells_ = [Cell("gemma3", "sst2", seed=1), Cell("qwen", "sst2", template="other")]
    assert [(cell.locates, cell.each) for cell in cells_] == [(False, 4), (False, 4)]
    usual = [Cell("gemma3", "sst2"), Cell("qwen", "sst2"), Cell("mini", "topics", seed=2)]
    assert [(cell.locates, cell.each) for cell in usual] == [(True, 8), (True, 4), (True, 4)]
    task = load_task("topics")
    monkeypatch.setattr(run, "find_task", lambda *_: task)
    for folder in ("cells", "numbers", "places"):
        (tmp_path / folder).mkdir()
    row = run.measured(cells_[0], load_model("mini"), None, tmp_path / "work", tmp_path)
    assert row["across_low"] <= row["across"] <= row["across_high"]
    assert row["gained"] == pytest.approx(0.5, abs=0.3)
    assert row["verdict"].endswith(".")
    assert not {"kernel_heads", "pair_kernels"} & set(row)
    (tmp_path / "cells" / f"{cells_[0].name}.json").write_text(json.dumps(row, default=float))
    assert row["verdict"] in page.verdicts(tmp_path).markdown()
    assert page.heads(tmp_path).rows == []
