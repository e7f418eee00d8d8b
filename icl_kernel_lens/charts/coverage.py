"""Label coverage shows, offset by offset, what of the label part goes when edges are cut and comes when they alone are kept."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from icl_kernel_lens.charts.figure import Figure, alt, finite

SERIES = {"lost": ("lost when cut", "#D55E00", "circle"), "kept": ("kept alone", "#0072B2", "square")}
"""Column of a row: its name, colour and mark, told apart without colour, too."""
HEIGHT, STEP = 220, 62
"""Pixels: of a panel, and of an offset."""
ALL = "all"
Rows = Sequence[Mapping[Hashable, Any]]


def coverage_figure(
    tables: Mapping[str, Rows],
    *,
    offsets: Sequence[str],
    of: str,
    about: str,
    says: Sequence[str],
    asked: tuple[float, float],
) -> Figure:
    """Draw the shares of the label part lost and kept, over the offsets and for all of them together.

    Args:
        tables: Whose edges are cut, in words, and the rows of the table: one a cut and set of offsets.
        offsets: The single offsets by name, in ascending order.
        of: The model and the task.
        about: How many prompts, and how large the label part is.
        says: What is said of the smallest set of offsets.
        asked: What the smallest set must lose, and alone keep.
    """
    panels = [
        alt.hconcat(
            *(
                _panel([row for row in rows if row["cut"] == cut], offsets, f"{title}: {cut}", asked)
                for cut in dict.fromkeys(row["cut"] for row in rows)
            ),
            spacing=30,
        )
        for title, rows in tables.items()
    ]
    return Figure.styled(
        alt.vconcat(*panels, spacing=24),
        "Where do labels enter?",
        [f"{of}: {about}", *says],
        f"label coverage: {of}",
    )


def _panel(table: Rows, offsets: Sequence[str], title: str, asked: tuple[float, float]) -> alt.LayerChart:
    """One cut: both shares over the offsets."""
    names = {name: name for name in offsets} | {", ".join(offsets): ALL if len(offsets) > 1 else offsets[0]}
    rows = [
        {
            "offset": names[row["offsets"]],
            "series": series,
            "share": finite(row[column]),
            "low": finite(row[f"{column}_low"]),
            "high": finite(row[f"{column}_high"]),
        }
        for row in table
        if row["offsets"] in names
        for column, (series, _, _) in SERIES.items()
    ]
    marks = list(SERIES.values())
    domain = [name for name, _, _ in marks]
    order = list(dict.fromkeys(names.values()))
    x = alt.X(
        "offset:N",
        sort=order,
        scale=alt.Scale(domain=order),
        title="offset from the label (0)",
        axis=alt.Axis(labelAngle=0),
    )
    beside = alt.XOffset("series:N", scale=alt.Scale(domain=domain))
    y = alt.Y("share:Q", title="share of the label part", axis=alt.Axis(format="%", tickCount=6))
    legend = alt.Legend(orient="top", labelLimit=300)
    colour = alt.Color(
        "series:N", title=None, scale=alt.Scale(domain=domain, range=[c for _, c, _ in marks]), legend=legend
    )
    shape = alt.Shape(
        "series:N", title=None, scale=alt.Scale(domain=domain, range=[s for _, _, s in marks]), legend=legend
    )
    base = alt.Chart(alt.InlineData(values=rows)).encode(x=x, xOffset=beside, color=colour)
    lines = [{"at": 0, "series": ""}, {"at": 1, "series": ""}]
    lines += [{"at": share, "series": name} for share, name in zip(asked, domain, strict=True)]
    levels = alt.Chart(alt.InlineData(values=lines)).encode(y=alt.Y("at:Q"))
    return alt.layer(
        levels.transform_filter("datum.series === ''").mark_rule(strokeWidth=1, color="#888"),
        levels.transform_filter("datum.series !== ''")
        .mark_rule(strokeWidth=1, strokeDash=[4, 3])
        .encode(color=colour),
        base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q"), y2="high:Q"),
        base.mark_point(filled=True, opacity=1, size=70).encode(
            y=y,
            shape=shape,
            tooltip=[
                "offset:N",
                "series:N",
                alt.Tooltip("share:Q", format=".3f"),
                alt.Tooltip("low:Q", title="from", format=".3f"),
                alt.Tooltip("high:Q", title="to", format=".3f"),
            ],
        ),
    ).properties(
        width=STEP * len(order),
        height=HEIGHT,
        title=alt.TitleParams(title, fontSize=12, anchor="start"),
    )
