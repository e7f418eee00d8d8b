"""The figure of label coverage: the table's shares, and what is written beside them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from charts.hostile import HOSTILE, SNEAKY, has_live_markup, texts
from charts.located import run_info
from results.examples import label_coverage


def rows(figure, key):
    return [row for data in figure.spec()["datasets"].values() for row in data if key in row]


def test_the_figure_holds_the_single_offsets_and_all_of_them():
    found = label_coverage()
    spec, table = found.figure().spec(), found.table()
    assert [len(row["hconcat"]) for row in spec["vconcat"]] == [2, 2], "the answer's rows, the test input's"
    drawn = rows(found.figure(), "share")
    assert {row["offset"] for row in drawn} == {"-1", "0", "+1", "all"}
    for row in table.to_dict("records"):
        name = {"-1, 0, +1": "all"}.get(row["offsets"], row["offsets"])
        if name in ("-1, 0", "0, +1"):
            continue
        for column, series in (("lost", "lost when cut"), ("kept", "kept alone")):
            mine = [r for r in drawn if (r["offset"], r["series"]) == (name, series)]
            expected = (row[column], row[f"{column}_low"], row[f"{column}_high"])
            assert any((r["share"], r["low"], r["high"]) == pytest.approx(expected) for r in mine), (
                name,
                series,
            )
    assert {row["at"] for row in rows(found.figure(), "at")} == {0, 1, 0.8, 0.5}


def test_what_is_written():
    words = texts(label_coverage().figure().svg())
    for panel in ("the answer's edges: zeroed", "the edges of all test-input tokens: renormalised"):
        assert panel in words
    assert any("a-model on a-task: 12 prompts" in word for word in words)
    assert any("offset 0, +1 loses at least 80% when cut" in word for word in words)
    undefined = label_coverage()
    undefined = replace(undefined, part=undefined.part - undefined.part.mean(), test_input=None)
    assert any("shares are undefined" in word for word in texts(undefined.figure().svg()))
    assert all(row["share"] is None for row in rows(undefined.figure(), "share"))


def test_names_are_text(tmp_path):
    found = replace(label_coverage(), run=run_info(2, 2, SNEAKY, HOSTILE))
    for suffix in (".html", ".svg"):
        written = found.figure().save(tmp_path / f"x{suffix}").read_text()
        assert not has_live_markup(written)
    assert not has_live_markup(found._repr_html_())
