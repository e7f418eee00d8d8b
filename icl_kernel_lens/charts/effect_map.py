"""Draws mean effects: layer × head or layer × offset, each beside its controls; bars for sets of heads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.charts.figure import Figure
from icl_kernel_lens.charts.head_map import SIDE

SCHEME = "blueorange"
"""Diverging around 0, and told apart by the colour-blind."""
TITLES = {
    "head": "head",
    "kv_head": "key-value head",
    "offset": "offset from the label",
    "demo": "demonstration",
}
MANY, MOST = 6, 12
"""Above so many offsets, only so many heads are drawn, against the offset."""
COLOURS = ("#0072B2", "#999999", "#E69F00")
Row = Mapping[str, Any]
"""One cell: its place on each axis, `effect` with `low` and `high`, and the effect of each control by name."""


def effect_map_figure(
    rows: Sequence[Row],
    places: Mapping[str, Sequence[int | str]],
    controls: Sequence[str],
    *,
    title: str,
    subtitle: Sequence[str],
    short: str,
) -> Figure:
    """Draw effects on the label logit difference, one map an offset, and the same of each control.

    `rows` holds every cell of the axes that `places` names: `layer` with a head, an offset or both, or `set`. All maps
    share one colour scale, symmetric around 0; cells that were not run, or could not be, are crossed out. Whole layers
    are drawn against the offset from the label; sets of heads as bars with their intervals.
    """
    chart = _bars(rows, controls) if "set" in places else _maps(rows, places, controls)
    chart = (
        chart.properties(title=alt.TitleParams(title, subtitle=list(subtitle), anchor="start"))
        .configure_view(stroke=None)
        .configure_axis(labelFontSize=11, titleFontSize=12)
    )
    return Figure(chart, short)


def cell_name(place: Row) -> str:
    """What a cell is called: "L2H1, offset 0"."""
    if "set" in place:
        name = place["set"]
    elif "head" in place:
        name = str(HeadRef(place["layer"], place["head"]))
    else:
        name = f"L{place['layer']}" + (f"KV{place['kv_head']}" if "kv_head" in place else "")
    return ", ".join([name, *(f"{axis} {place[axis]}" for axis in ("offset", "demo") if axis in place)])


def _maps(
    rows: Sequence[Row], places: Mapping[str, Sequence[int | str]], controls: Sequence[str]
) -> alt.HConcatChart | alt.VConcatChart:
    head = next((axis for axis in ("head", "kv_head") if axis in places), "")
    along = next((axis for axis in ("offset", "demo") if axis in places), "")
    several = bool(head) and len(places.get(along, ())) > 1
    largest = max(
        [abs(row[name]) for row in rows for name in ("effect", *controls) if math.isfinite(row[name])]
        + [1e-6]
    )
    many = several and len(places[along]) > MANY
    if many:
        rows = _largest_heads(rows, head)
    drawn: list[Any] = []
    for name in ("", *controls):
        role = f"its control: {name.replace('_', ' ')}" if name else "the intervention" * bool(controls)
        if many:
            cells = _cells(rows, name, x=along, y="head's name")
            drawn.append(_map(cells, role or "largest effects", largest, TITLES[along], TITLES[head]))
        elif several:
            maps = []
            for place in places[along]:
                cells = _cells([row for row in rows if row[along] == place], name, x=head, y="layer")
                words = f"{along} {place}" + (f", {role}" if name else "")
                maps.append(_map(cells, words, largest, TITLES[head], "layer"))
            drawn.append(alt.concat(*maps, columns=6))
        else:
            axis = head or along
            drawn.append(
                _map(_cells(rows, name, x=axis, y="layer"), role, largest, TITLES.get(axis), "layer")
            )
    return alt.vconcat(*drawn) if several and not many else alt.hconcat(*drawn)


def _largest_heads(rows: Sequence[Row], head: str) -> list[Row]:
    """The cells of the heads with the largest effects anywhere, largest first, under the name of the head."""
    by_head: dict[str, list[Row]] = {}
    for row in rows:
        by_head.setdefault(cell_name({axis: row[axis] for axis in ("layer", head)}), []).append(row)

    def size(cells: list[Row]) -> float:
        return max(abs(row["effect"]) if math.isfinite(row["effect"]) else 0 for row in cells)

    chosen = sorted(by_head.items(), key=lambda item: -size(item[1]))[:MOST]
    return [{**row, "head's name": name} for name, cells in chosen for row in cells]


def _cells(rows: Sequence[Row], control: str, *, x: str, y: str) -> list[dict[str, Any]]:
    """What a map draws of each row; nothing stands along an axis that there is not."""
    return [
        {
            "x": row.get(x, ""),
            "y": row[y],
            "name": cell_name(row),
            "effect": _finite(row[control or "effect"]),
            **({} if control else {edge: _finite(row[edge]) for edge in ("low", "high")}),
        }
        for row in rows
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _map(
    cells: list[dict[str, Any]], title: str, largest: float, x_title: str | None, y_title: str
) -> alt.LayerChart:
    columns, lines = (list(dict.fromkeys(cell[axis] for cell in cells)) for axis in "xy")
    size = max(9, min(42, SIDE // max(len(columns), len(lines))))

    def axis(places: list[Any]) -> dict[str, Any]:
        ticks = places[:: max(1, len(places) // 14)]
        return {"sort": places, "axis": alt.Axis(values=ticks, labelAngle=0)}

    base = alt.Chart(alt.Data(values=cells)).encode(
        x=alt.X("x:O", title=x_title, **axis(columns)),
        y=alt.Y("y:O", title=y_title, **axis(lines)),
        tooltip=[
            alt.Tooltip("name:N", title="cell"),
            alt.Tooltip("effect:Q", format=".3~g"),
            alt.Tooltip("low:Q", title="95 % interval from", format=".3~g"),
            alt.Tooltip("high:Q", title="to", format=".3~g"),
        ],
    )
    colour = alt.Color(
        "effect:Q",
        title="effect",
        scale=alt.Scale(scheme=SCHEME, domain=[-largest, largest], domainMid=0),
        legend=alt.Legend(format=".2~g", gradientLength=120),
    )
    filled = base.mark_rect(invalid=None).encode(
        color=alt.condition("isValid(datum.effect)", colour, alt.value("#ffffff"))
    )
    absent = base.transform_filter("!isValid(datum.effect)").mark_text(text="×", color="#999")
    return alt.layer(filled, absent).properties(
        width=size * len(columns), height=size * len(lines), title=alt.TitleParams(title, fontSize=12)
    )


def _bars(rows: Sequence[Row], controls: Sequence[str]) -> alt.LayerChart:
    bars = [
        {
            "set": cell_name(row),
            "change": name.replace("_", " ") or "the intervention",
            "effect": _finite(row[name or "effect"]),
            **({} if name else {edge: _finite(row[edge]) for edge in ("low", "high")}),
        }
        for name in ("", *controls)
        for row in rows
    ]
    changes = list(dict.fromkeys(bar["change"] for bar in bars))
    base = alt.Chart(alt.Data(values=bars)).encode(
        y=alt.Y("set:N", title=None, sort=None, axis=alt.Axis(labelLimit=300)),
        yOffset=alt.YOffset("change:N", sort=changes),
    )
    scale = alt.Scale(domain=changes, range=list(COLOURS[: len(changes)]))
    drawn = base.mark_bar().encode(
        x=alt.X("effect:Q", title="change of the label logit difference"),
        color=alt.Color("change:N", sort=changes, title=None, scale=scale),
        tooltip=["set:N", "change:N", alt.Tooltip("effect:Q", format=".3~g")],
    )
    edges = base.mark_rule(color="#222").encode(x=alt.X("low:Q"), x2="high:Q")
    return alt.layer(drawn, edges).properties(width=2 * SIDE)
