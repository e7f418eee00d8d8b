"""The stability figure shows how far rankings agree: rank correlations as squares, shared kernel heads in the cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from icl_kernel_lens.charts.effect_map import SCHEME
from icl_kernel_lens.charts.figure import Figure, alt, finite

WORDS = {"margin": "by agreement above control", "logit_diff_drop": "by causal effect"}


def stability_figure(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> Figure:
    """Draw Spearman's correlation between rankings, by margin and by effect; in each cell, kernel heads shared / in either.

    `rows`: one a pair of rankings and what heads are ranked by: first, second, by, correlation (NaN: grey), shared.
    """
    drawn = [
        row
        | {
            "by": WORDS[row["by"]],
            "correlation": finite(row["correlation"]),
            "shown": f"{row['correlation']:.2f}".replace("nan", ""),
        }
        for row in rows
    ]
    base = alt.Chart(alt.InlineData(values=drawn)).encode(
        x=alt.X("second:N", sort=names, title=None, axis=alt.Axis(labelAngle=-30, labelLimit=120)),
        y=alt.Y("first:N", sort=names, title=None, axis=alt.Axis(labelLimit=160)),
    )
    cells = base.mark_rect(invalid=None).encode(
        color=alt.condition(
            "isValid(datum.correlation)",
            alt.Color(
                "correlation:Q", scale=alt.Scale(scheme=SCHEME, domain=[-1, 1]), title="rank correlation"
            ),
            alt.value("#ddd"),
        ),
        tooltip=["first:N", "second:N", alt.Tooltip("correlation:Q", format=".3f"), "shared:N"],
    )
    dark = alt.condition("abs(datum.correlation) > 0.7", alt.value("white"), alt.value("black"))
    text = base.mark_text(fontSize=12, dy=-6).encode(text="shown:N", color=dark)
    shared = base.mark_text(fontSize=10, dy=9).encode(text="shared:N", color=dark)
    side = max(90, 46 * len(names))
    return Figure.styled(
        alt.layer(cells, text, shared)
        .properties(width=side, height=side)
        .facet(column=alt.Column("by:N", title=None, sort=list(WORDS.values()))),
        "Rankings compared",
        "Spearman's correlation over all heads (most of them idle); below, kernel heads of both / of either",
        "stability of rankings",
    )
