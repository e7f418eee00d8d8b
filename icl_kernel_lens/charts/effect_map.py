"""Draws mean effects: layer × head or layer × offset, each beside its controls; bars for sets of heads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.charts.figure import Figure, alt, finite
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
    if "set" in places:
        return Figure.styled(_bars(rows, controls), title, list(subtitle), short)
    missing = any(not math.isfinite(row[name]) for row in rows for name in ("effect", *controls))
    crosses = ["×: not run, or could not be (the result's reasons say why)"] * missing
    return Figure.styled(_maps(rows, places, controls), title, [*subtitle, *crosses], short)


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
    """The maps of the intervention and of each control, on one colour scale."""
    head = next((axis for axis in ("head", "kv_head") if axis in places), "")
    along = next((axis for axis in ("offset", "demo") if axis in places), "")
    numbers = [abs(row[name]) for row in rows for name in ("effect", *controls)]
    largest = max([1e-6, *filter(math.isfinite, numbers)])
    roles = {"": "the intervention" * bool(controls)}
    roles |= {name: f"its control: {name.replace('_', ' ')}" for name in controls}
    apart = places.get(along, ()) if head else ()
    if len(apart) > MANY:
        some = _largest_heads(rows, head)
        return alt.hconcat(
            *(
                _map(
                    some,
                    name,
                    role or "largest effects",
                    largest,
                    x=along,
                    y="head's name",
                    y_title=TITLES[head],
                )
                for name, role in roles.items()
            )
        )
    if len(apart) > 1:
        by_place = {place: [row for row in rows if row[along] == place] for place in apart}
        return alt.vconcat(
            *(
                alt.concat(
                    *(
                        _map(some, name, f"{along} {place}" + f", {role}" * bool(name), largest, x=head)
                        for place, some in by_place.items()
                    ),
                    columns=6,
                )
                for name, role in roles.items()
            )
        )
    return alt.hconcat(*(_map(rows, name, role, largest, x=head or along) for name, role in roles.items()))


def _largest_heads(rows: Sequence[Row], head: str) -> list[Row]:
    """The cells of the heads with the largest effects anywhere, largest first, under the name of the head."""
    by_head: dict[str, list[Row]] = {}
    for row in rows:
        by_head.setdefault(cell_name({axis: row[axis] for axis in ("layer", head)}), []).append(row)

    def size(name: str) -> float:
        return max(abs(finite(row["effect"]) or 0) for row in by_head[name])

    chosen = sorted(by_head, key=size, reverse=True)[:MOST]
    return [{**row, "head's name": name} for name in chosen for row in by_head[name]]


def _cell(row: Row, control: str) -> dict[str, Any]:
    """A row's name, and its effect with the interval, or the effect of a control."""
    numbers = {"effect": control} if control else {"effect": "effect", "low": "low", "high": "high"}
    return {"name": cell_name(row)} | {name: finite(row[column]) for name, column in numbers.items()}


def _map(
    rows: Sequence[Row],
    control: str,
    title: str,
    largest: float,
    *,
    x: str,
    y: str = "layer",
    y_title: str = "layer",
) -> alt.LayerChart:
    # Nothing stands along an axis that there is not.
    cells = [{"x": row.get(x, ""), "y": row[y]} | _cell(row, control) for row in rows]
    columns, lines = (list(dict.fromkeys(cell[axis] for cell in cells)) for axis in "xy")
    size = max(9, min(42, SIDE // max(len(columns), len(lines))))

    def axis(places: list[Any]) -> dict[str, Any]:
        return {"sort": places, "axis": alt.Axis(values=places[:: max(1, len(places) // 14)], labelAngle=0)}

    base = alt.Chart(alt.Data(values=cells)).encode(
        x=alt.X("x:O", title=TITLES.get(x), **axis(columns)),
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
        title="effect (logits)",
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
        {"change": name.replace("_", " ") or "the intervention"} | _cell(row, name)
        for name in ("", *controls)
        for row in rows
    ]
    changes = list(dict.fromkeys(bar["change"] for bar in bars))
    base = alt.Chart(alt.Data(values=bars)).encode(
        y=alt.Y("name:N", title=None, sort=None, axis=alt.Axis(labelLimit=300)),
        yOffset=alt.YOffset("change:N", sort=changes),
    )
    scale = alt.Scale(domain=changes, range=list(COLOURS[: len(changes)]))
    drawn = base.mark_bar().encode(
        x=alt.X("effect:Q", title="change of the label logit difference (logits)"),
        color=alt.Color("change:N", sort=changes, title=None, scale=scale),
        tooltip=[alt.Tooltip("name:N", title="set"), "change:N", alt.Tooltip("effect:Q", format=".3~g")],
    )
    edges = base.mark_rule(color="#222").encode(x=alt.X("low:Q"), x2="high:Q")
    return alt.layer(drawn, edges).properties(width=2 * SIDE)
