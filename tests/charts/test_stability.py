"""The stability figure: each pair's correlations and shared heads, in words of the figure."""

from __future__ import annotations

from charts.hostile import texts

from icl_kernel_lens.charts.stability import stability_figure


def test_every_pair_has_its_numbers_and_nan_is_grey():
    rows = [
        {"first": a, "second": b, "by": by, "correlation": value, "shared": "1/2"}
        for a, b, value in (("x", "x", 1.0), ("x", "y", 0.25), ("y", "x", 0.25), ("y", "y", float("nan")))
        for by in ("margin", "logit_diff_drop")
    ]
    figure = stability_figure(rows, ["x", "y"])
    (drawn,) = figure.spec()["datasets"].values()
    assert [(r["correlation"], r["shown"]) for r in drawn[::2]] == [
        (1.0, "1.00"), (0.25, "0.25"), (0.25, "0.25"), (None, "")
    ]  # fmt: skip
    words = texts(figure.svg())
    assert {"by agreement above control", "by causal effect", "1/2", "0.25"} <= set(words)
    assert "correlation" in rows[0], "what was handed over is as it was"
    assert rows[0]["by"] == "margin"
