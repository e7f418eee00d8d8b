"""Figures of the theory: the numbers of the results, the paper's beside them, and what is said of the bound."""

from __future__ import annotations

import html
import math
import re
from dataclasses import replace

import pytest

from icl_kernel_lens.theory.bayes import posterior_concentration
from icl_kernel_lens.theory.experiments.labels import label_noise, output_format
from icl_kernel_lens.theory.presets import preset
from icl_kernel_lens.theory.regression import compare_variants
from icl_kernel_lens.theory.theorem import LETTER, PAPER, measure_theorem, theorem_terms


def rows(figure):
    """Every row of data, in whichever part of the figure."""

    def walk(part):
        if isinstance(part, dict):
            if isinstance(part.get("data"), dict):
                yield from part["data"].get("values", [])
            for value in part.values():
                yield from walk(value)
        elif isinstance(part, list):
            for value in part:
                yield from walk(value)

    spec = figure.spec()
    return [*walk(spec), *(row for data in spec.get("datasets", {}).values() for row in data)]


def texts(figure) -> str:
    return " ".join(html.unescape(t) for t in re.findall(r"<(?:text|tspan)[^>]*>([^<]+)<", figure.svg()))


@pytest.fixture(scope="module")
def small():
    world = preset("sparse")
    counts = (1, 8, 16)
    return (
        measure_theorem(world, counts, trials=20),
        measure_theorem(world, counts, trials=20, **LETTER),
        theorem_terms(world),
    )


def test_the_theorem(small):
    result, letter, terms = small
    figure = result.figure(letter=letter, terms=terms)
    drawn = [r for r in rows(figure) if r.get("series") == "ours" and r["x"] == 8]
    assert {r["y"] for r in drawn} == {
        float(result.mean("l1")[1]),
        float(result.mean("linf")[1]),
        float(result.agreement()[1]),
    }
    low, high = result.interval("l1")
    assert any((r["low"], r["high"]) == (float(low[1]), float(high[1])) for r in drawn)
    term = [r["y"] for r in rows(figure) if r.get("series") == "√(ln(4m/δ)/n)"]
    assert term == [terms.sampling(n) for n in (1, 8, 16)]
    words = texts(figure)
    assert "says nothing here" in words
    assert "the bound is vacuous for every task and n" in words
    assert "the paper's Table 3" not in words
    rate = result.rate("l1")
    assert f"L1 {rate.slope:.2f} [{rate.low:.2f}, {rate.high:.2f}]" in words
    assert "√(ln" not in texts(result.figure())


def test_the_papers_numbers_stand_beside_its_own_world_only(small):
    result = small[0]
    named = replace(result, world=replace(result.world, name="han2025"))
    drawn = [r["y"] for r in rows(named.figure()) if r.get("series") == "the paper's Table 3"]
    assert drawn == [*(PAPER["distance"][i] for i in (0, 3, 4)), *(PAPER["accuracy"][i] for i in (0, 3, 4))]
    table = named.beside_paper()
    assert table["paper_distance"].tolist() == [1.322, 0.218, 0.163]
    assert table["paper_accuracy"].tolist() == [0.337, 0.901, 0.926]
    assert table["l1"].tolist() == result.mean("l1").tolist()
    assert table["agreement"].tolist() == result.agreement().tolist()


def test_variants():
    table = compare_variants(preset("block"))
    figure = table.figure()
    marks = [r for r in rows(figure) if "readout" in r]
    assert len(marks) == 24
    for variant, row in zip(table.variants, table.mean_distance.tolist(), strict=True):
        for task, distance in enumerate(row):
            wanted = {"variant": str(variant), "task": task, "y": max(distance, 1e-17)}
            assert any(wanted.items() <= r.items() for r in marks)
    assert "no number in float64" not in texts(figure)
    lost = table.mean_distance.clone()
    lost[0, 0] = math.nan
    assert "no number in float64" in texts(replace(table, mean_distance=lost).figure())


def test_concentration():
    block = posterior_concentration(preset("block"), (0, 2, 4), trials=20)
    drawn = [r for r in rows(block.figure()) if r.get("x") == 4 and "series" in r]
    assert [r["y"] for r in drawn if r["series"].startswith("median")] == [
        block.table()["log_odds_50"].iloc[-1]
    ]
    assert [r["y"] for r in drawn if r["series"].startswith("bound")] == [float(block.bound[-1])]
    assert "A2 does not hold; the bound does not rise: it says nothing" in texts(block.figure())
    sparse = posterior_concentration(preset("sparse"), (0, 2), trials=20)
    words = texts(sparse.figure())
    assert "infinite" in words
    assert "is not drawn" in words


def test_experiments():
    noise = label_noise(preset("block"), (0.0, 1.0), 4, trials=8)
    table = noise.table()
    drawn = [r["y"] for r in rows(noise.figure()) if "series" in r]
    assert sorted(drawn) == pytest.approx(sorted(table["mean"].dropna()))
    assert "L1 distance to P(Y | x, θ*)" in texts(noise.figure())
    renamed = output_format(preset("block"), 4, trials=8)
    words = texts(renamed.figure())
    assert all(label in words for label in renamed.settings)
    assert "block: 8 trials" in words
