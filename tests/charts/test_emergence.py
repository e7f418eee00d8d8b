"""The emergence curve holds the record's numbers, one line a number of demonstrations, and chance."""

from __future__ import annotations

from charts.hostile import texts

from icl_kernel_lens.charts.emergence import emergence_curve

RECORD = {
    "parameters": 12345,
    "curve": [
        {"step": 0, "loss": 3.0, "accuracy_0": 0.5, "accuracy_16": 0.51},
        {"step": 200, "loss": 1.0, "accuracy_0": 0.49, "accuracy_16": 0.97},
    ],
}


def test_the_curve_is_the_record():
    figure = emergence_curve(RECORD)
    spec = figure.spec()
    chance, lines = (spec["datasets"][layer["data"]["name"]] for layer in spec["layer"])
    assert chance == [{"chance": 0.5}]
    assert [(r["step"], r["demonstrations"], r["accuracy"]) for r in lines] == [
        (0, 0, 0.5),
        (0, 16, 0.51),
        (200, 0, 0.49),
        (200, 16, 0.97),
    ]
    words = texts(figure.svg())
    assert {"In-context learning emerges", "training step", "held-out label accuracy"} <= set(words)
    assert any(word.startswith("12,345 parameters") for word in words)
