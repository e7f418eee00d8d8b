"""How far rankings agree: each pair's rank correlations as two squares, the number of shared kernel heads in the cells."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import altair as alt

from icl_kernel_lens.plots.effect_map import SCHEME
from icl_kernel_lens.plots.figure import Figure
from icl_kernel_lens.results.stability import compare

if TYPE_CHECKING:
    from icl_kernel_lens.results.stability import Stability

WORDS = {"margin": "by agreement above control", "loss": "by causal effect"}


def stability_figure(stability: Stability) -> Figure:
    """Spearman's correlation between rankings, by margin and by loss; in each cell, kernel heads shared / in either."""
    names = list(stability.rankings)
    rows: list[dict[str, Any]] = []
    for first, a in stability.rankings.items():
        for second, b in stability.rankings.items():
            found = compare(a, b)
            either = len(found.both) + len(found.only_first) + len(found.only_second)
            for by, value in found.correlation.items():
                rows.append(
                    {
                        "first": first,
                        "second": second,
                        "by": WORDS[by],
                        "correlation": None if math.isnan(value) else value,
                        "shared": f"{len(found.both)}/{either}" if found.same_shape else "–",
                        "shown": "" if math.isnan(value) else f"{value:.2f}",
                    }
                )
    base = alt.Chart(alt.InlineData(values=rows)).encode(
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
    chart = (
        alt.layer(cells, text, shared)
        .properties(width=side, height=side)
        .facet(column=alt.Column("by:N", title=None, sort=list(WORDS.values())))
        .properties(
            title=alt.TitleParams(
                "Rankings compared",
                subtitle="Spearman's correlation over all heads (most of them idle); below, kernel heads of both / of either",
                anchor="start",
            )
        )
        .configure_view(stroke=None)
    )
    return Figure(chart, "stability of rankings")
