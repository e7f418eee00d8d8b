"""The figure of necessity and sufficiency: the table's numbers, the lines, and what is written beside them."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from charts.hostile import HOSTILE, SNEAKY, has_live_markup, texts
from charts.located import curves

from icl_kernel_lens.charts.curves import APART


def rows(figure, key):
    return [row for data in figure.spec()["datasets"].values() for row in data if key in row]


def test_the_figure_holds_the_table():
    found = curves(3, cuts=("renormalised", "mean"))
    drawn = rows(found.figure(), "series")
    table = found.table()
    assert len(drawn) <= 2 * len(table)
    for row in table.to_dict("records"):
        own = [r for r in drawn if r["series"] == "the located heads" and r["k"] == row["k"]]
        assert {"right", "low", "high"} <= set(own[0])
        assert any(
            all(r[name] == pytest.approx(row[name]) for name in ("right", "low", "high")) for r in own
        ), row
        if row["k"]:
            others = [r for r in drawn if r["series"].startswith("random sets") and r["k"] == row["k"]]
            assert any(
                (r["low"], r["right"], r["high"])
                == pytest.approx((row["random_low"], row["random"], row["random_high"]))
                for r in others
            ), row
    none = [r for r in drawn if r["k"] == 0 and r["series"].startswith("random sets")]
    assert {r["right"] for r in none} == {1.0, 0.5}, "no head is where both begin"
    assert all(r["low"] == r["right"] == r["high"] for r in none)


def test_one_row_a_cut_and_two_panels_each():
    found = curves(2, cuts=("renormalised", "zeroed", "mean"))
    spec = found.figure().spec()
    assert [len(row["hconcat"]) for row in spec["vconcat"]] == [2, 2, 2]
    words = texts(found.figure().svg())
    for cut in found.cuts:
        assert any(w.startswith(f"cut edges {cut}: the 2 heads alone restore 80% (") for w in words)
    assert words.count("Necessity: label edges of the first k heads cut") == 3
    assert words.count("Sufficiency: those of all other heads cut") == 3
    assert words.count("answers right") == 6
    assert any(
        "40 prompts; right means the true label; random sets for each k: 4 different" in w for w in words
    )


def test_heads_are_named_on_the_axis():
    words = texts(curves(3).figure().svg())
    for name in ("+ L0H0", "+ L1H0", "+ L2H0"):
        assert words.count(name) == 2
    assert words.count("none cut") == words.count("none kept") == 1
    many = texts(curves(40).figure().svg())
    names = [w for w in many if re.fullmatch(r"\+ L\d+H\d+", w)]
    assert 20 <= len(names) <= 48, "not every one of many heads, and from none to the last in even steps"


def test_the_levels_are_named_apart():
    figure = curves(2, floor=0.5).figure()
    levels = {r["name"]: r for r in rows(figure, "written")}
    assert {n: r["value"] for n, r in levels.items()} == {
        "ceiling 100%": 1.0,
        "floor 50%": 0.5,
        "chance 50%": 0.5,
    }
    written = sorted(r["written"] for r in levels.values())
    assert all(b - a >= APART - 1e-9 for a, b in pairwise(written))
    high = {r["name"]: r for r in rows(curves(2, floor=0.975).figure(), "written")}
    written = sorted(r["written"] for r in high.values())
    assert written[-1] <= 1
    assert all(b - a >= APART - 1e-9 for a, b in pairwise(written))
    assert high["floor 98%"]["value"] == pytest.approx(0.975), "the line stays, only its name moves"


def test_without_truth_and_without_anything_to_restore():
    words = texts(curves(1, truth=False).figure().svg())
    assert words.count("answers as uncut") == 2
    assert any("right means the uncut answer" in w for w in words)
    flat = texts(curves(2, floor=1.0).figure().svg())
    assert any("takes away too little for a share of it to be said" in w for w in flat)
    assert curves(1).figure().png().startswith(b"\x89PNG")


def test_random_sets_are_counted_once():
    found = curves(2, draws=20)
    assert found.different_sets() == "4"
    sets = found.sets.clone()
    sets[0] = sets[0, :1]
    assert replace(found, sets=sets).different_sets() == "1–4"
    assert torch.equal(found.sets[1], sets[1])


def test_names_are_text(tmp_path):
    found = curves(model=SNEAKY, task=HOSTILE)
    for suffix in (".html", ".svg"):
        written = found.figure().save(tmp_path / f"x{suffix}").read_text()
        assert not has_live_markup(written)
        assert "onerror" in written
    assert not has_live_markup(found._repr_html_())
