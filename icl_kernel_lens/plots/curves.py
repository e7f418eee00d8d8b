"""Necessity and sufficiency over the number of heads, beside random sets of heads, the floor, the ceiling and chance."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, get_args

import altair as alt

from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.plots.figure import Figure
from icl_kernel_lens.plots.ranking import MARKS
from icl_kernel_lens.results.circuit_curves import Side

if TYPE_CHECKING:
    from icl_kernel_lens.results.circuit_curves import CircuitCurves, Cut

SERIES = {"the located heads": MARKS["kernel head"][0], "random sets: median, 95 % of them": "#777777"}
SIDES: dict[Side, tuple[str, str]] = {
    "necessity": ("Necessity: label edges of the first k heads cut", "none cut"),
    "sufficiency": ("Sufficiency: those of all other heads cut", "none kept"),
}
"""Title of a panel, and what k = 0 is in it."""
HEIGHT, APART = 230, 0.06
"""Pixels; least distance of two lines' names, as a share of the axis."""
MOST_TICKS = 24


def curves_figure(curves: CircuitCurves) -> Figure:
    """How often the answer is right as the located heads lose their label edges, and as they alone keep them.

    One row a kind of cut. Bars are intervals over prompts; the grey area holds 95 % of the random sets of as many
    heads. `ceiling`: nothing cut. `floor`: the label edges of every head cut. `chance`: always the commonest answer.
    """
    run, against = curves.run, curves.default_reference
    rows = curves.table().to_dict("records")
    panels = [
        alt.hconcat(*(_panel(curves, cut, side, rows) for side in get_args(Side)), spacing=30).properties(
            title=alt.TitleParams(_says(curves, cut), fontSize=12, fontWeight="normal", anchor="start")
        )
        for cut in curves.cuts
    ]
    what = "the true label" if against == "truth" else "the uncut answer"
    chart = (
        alt.vconcat(*panels, spacing=24)
        .properties(
            title=alt.TitleParams(
                "Are the located heads needed, and are they enough?",
                subtitle=[
                    f"{run.model} on {run.prompts.task}: {len(curves.base)} prompts; right means {what}; "
                    f"random sets for each k: {different_sets(curves)} different",
                ],
                anchor="start",
            )
        )
        .configure_view(stroke=None)
        .configure_axis(labelFontSize=11, titleFontSize=12, gridColor="#eee")
    )
    return Figure(chart, f"necessity and sufficiency: {run.model} on {run.prompts.task}")


def different_sets(curves: CircuitCurves) -> str:
    """How many random sets differ: a small model does not hold as many as are drawn."""
    different = [len(sets.flatten(1).unique(dim=0)) for sets in curves.sets]
    least, most = min(different, default=0), max(different, default=0)
    return f"{least}" if least == most else f"{least}–{most}"


def _says(curves: CircuitCurves, cut: Cut) -> str:
    """The cut, and how much of what labels bring the heads bring by themselves."""
    count = len(curves.heads)
    heads = f"the {count} heads alone restore" if count > 1 else "the head alone restores"
    try:
        value, low, high = curves.sufficiency(cut=cut, against=curves.default_reference)
    except ResultError:
        return f"cut edges {cut}: cutting every label edge takes away too little for a share of it to be said"
    return f"cut edges {cut}: {heads} {value[-1]:.0%} ({low[-1]:.0%} to {high[-1]:.0%}) of ceiling − floor"


def _panel(curves: CircuitCurves, cut: Cut, side: Side, table: list[dict[str, Any]]) -> alt.LayerChart:
    title, nothing = SIDES[side]
    found, drawn = SERIES
    rows = []
    for row in table:
        if row["cut"] != cut or row["side"] != side:
            continue
        # A random set of no head is what the first of the curve is.
        low, middle, high = (
            row[name] if row["k"] else row["right"] for name in ("random_low", "random", "random_high")
        )
        shared = {"k": row["k"], "head": row["head"] or nothing}
        rows += [
            shared | {"series": drawn, "right": middle, "low": low, "high": high},
            shared | {"series": found} | {name: row[name] for name in ("right", "low", "high")},
        ]
    count = max(1, len(curves.heads))
    every = -(-(count + 1) // MOST_TICKS)
    names = json.dumps([nothing, *(f"+ {head}" for head in curves.heads)])
    angle = 0 if count <= 4 else -90
    scale = alt.Scale(domain=[0, 1])
    x = alt.X(
        "k:Q",
        title="heads, one more at each step",
        scale=alt.Scale(domain=[-0.04 * count, 1.04 * count], nice=False, zero=False),
        axis=alt.Axis(
            values=list(range(0, count + 1, every)),
            labelExpr=f"({names})[datum.value]",
            labelAngle=angle,
            grid=False,
        ),
    )
    label = "answers right" if curves.default_reference == "truth" else "answers as uncut"
    y = alt.Y("right:Q", title=label, scale=scale, axis=alt.Axis(format="%", tickCount=6))
    colour = alt.Color(
        "series:N",
        title=None,
        scale=alt.Scale(domain=list(SERIES), range=list(SERIES.values())),
        legend=alt.Legend(orient="top", symbolType="square", symbolOpacity=1, labelLimit=300),
    )
    base = alt.Chart(alt.InlineData(values=rows)).encode(x=x, color=colour)
    random, own = (base.transform_filter(f"datum.series === {json.dumps(name)}") for name in (drawn, found))
    tooltip = [
        alt.Tooltip("k:Q", title="heads"),
        alt.Tooltip("head:N", title="the last of them"),
        "series:N",
        alt.Tooltip("right:Q", format=".3f"),
        alt.Tooltip("low:Q", title="from", format=".3f"),
        alt.Tooltip("high:Q", title="to", format=".3f"),
    ]
    ends = {"y": alt.Y("low:Q", scale=scale), "y2": "high:Q"}
    return alt.layer(
        random.mark_area(opacity=0.22).encode(**ends),
        *_levels(curves, cut),
        random.mark_line(strokeDash=[5, 3], strokeWidth=1.5).encode(y=y),
        own.mark_line(strokeWidth=2).encode(y=y),
        own.mark_rule(strokeWidth=1.5).encode(**ends),
        base.mark_point(filled=True, opacity=1).encode(
            y=y,
            size=alt.condition(f"datum.series === {json.dumps(found)}", alt.value(60), alt.value(14)),
            tooltip=tooltip,
        ),
    ).properties(
        width=max(230, min(460, 44 * (count + 1))),
        height=HEIGHT,
        title=alt.TitleParams(title, fontSize=12, anchor="start"),
    )


def _levels(curves: CircuitCurves, cut: Cut) -> list[alt.Chart]:
    """Floor, ceiling and chance as lines, their names moved apart where the lines lie together."""
    against = curves.default_reference
    values = {
        "chance": curves.chance(against),
        "floor": curves.floor(cut=cut, against=against),
        "ceiling": curves.ceiling(against=against),
    }
    rows: list[dict[str, Any]] = []
    for name, value in sorted(values.items(), key=lambda item: item[1]):
        written = max(value, rows[-1]["written"] + APART) if rows else value
        rows.append(
            {"name": f"{name} {value:.0%}", "value": value, "written": written, "dash": name == "chance"}
        )
    over = rows[-1]["written"] - 1
    if over > 0:  # the names must not run out of the figure
        for i, row in enumerate(reversed(rows)):
            row["written"] = min(row["written"], 1 - APART * i)
    base = alt.Chart(alt.InlineData(values=rows))
    scale = alt.Scale(domain=[0, 1])
    return [
        base.mark_rule(strokeWidth=1, color="#333").encode(
            y=alt.Y("value:Q", scale=scale),
            strokeDash=alt.condition("datum.dash", alt.value([1, 3]), alt.value([1, 0])),
        ),
        base.mark_text(align="left", dx=6, fontSize=11, color="#333").encode(
            x=alt.value("width"), y=alt.Y("written:Q", scale=scale), text="name:N"
        ),
    ]
