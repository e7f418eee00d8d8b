"""Effect maps hold every cell with its name, on one scale with their controls; what was not run is crossed out."""

from __future__ import annotations

from itertools import product

import pytest

from icl_kernel_lens.charts.effect_map import MOST, cell_name, effect_map_figure

NAN = float("nan")


def drawn(places, effects, controls=()):
    cells = [dict(zip(places, cell, strict=True)) for cell in product(*places.values())]
    rows = [
        cell | {"effect": effect, "low": effect - 1, "high": effect + 1} | dict.fromkeys(controls, -9.0)
        for cell, effect in zip(cells, effects, strict=True)
    ]
    return effect_map_figure(rows, places, controls, title="edges cut", subtitle=["a", "b"], short="cut")


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ({"layer": 2, "head": 1}, "L2H1"),
        ({"layer": 2, "head": 1, "offset": -1}, "L2H1, offset -1"),
        ({"layer": 2, "kv_head": 0, "demo": 3}, "L2KV0, demo 3"),
        ({"layer": 2, "offset": 0}, "L2, offset 0"),
        ({"set": "L2H1 L2H3"}, "L2H1 L2H3"),
    ],
)
def test_a_cell_has_its_name(place, name):
    assert cell_name(place) == name


def test_heads_and_their_control_share_one_scale():
    figure = drawn({"layer": (0, 1), "head": (0, 1)}, [1.0, 2.0, NAN, 4.0], ["random_keys"])
    first, second = figure.spec()["hconcat"]
    assert [(c["name"], c["effect"]) for c in first["data"]["values"]] == [
        ("L0H0", 1.0), ("L0H1", 2.0), ("L1H0", None), ("L1H1", 4.0)
    ]  # fmt: skip
    assert [c["low"] for c in first["data"]["values"]] == [0.0, 1.0, None, 3.0]
    assert {c["effect"] for c in second["data"]["values"]} == {-9.0}
    assert second["title"]["text"] == "its control: random keys"
    for chart in (first, second):
        colour = chart["layer"][0]["encoding"]["color"]["condition"]
        assert colour["scale"]["domain"] == [-9, 9]
        assert chart["layer"][1]["mark"]["text"] == "×"
        assert chart["layer"][1]["transform"] == [{"filter": "!isValid(datum.effect)"}]


def test_above_many_offsets_the_largest_heads_are_drawn():
    heads, offsets = tuple(range(MOST + 2)), tuple(range(7))
    effects = [-1.0 - head if offset == 3 else 0.0 for head in heads for offset in offsets]
    figure = drawn({"layer": (0,), "head": heads, "offset": offsets}, effects)
    cells = figure.spec()["data"]["values"]
    named = list(dict.fromkeys(cell["y"] for cell in cells))
    assert named == [f"L0H{head}" for head in reversed(heads)][:MOST]


def test_sets_are_bars_with_their_intervals():
    figure = drawn({"set": ("L0H0 L1H1", "L0H1")}, [3.0, -2.0], ["random_keys"])
    bars = figure.spec()["data"]["values"]
    assert [(b["name"], b["change"], b["effect"], b.get("low")) for b in bars] == [
        ("L0H0 L1H1", "the intervention", 3.0, 2.0),
        ("L0H1", "the intervention", -2.0, -3.0),
        ("L0H0 L1H1", "random keys", -9.0, None),
        ("L0H1", "random keys", -9.0, None),
    ]
