"""The layer profile shows a score over depth: every head a dot, the best of each layer, and what chance would reach."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.charts.figure import Figure, alt

READS, FAINT, CONTROL = "a head", "a head that hardly reads the labels", "its strongest control"
SERIES = {READS: ("#0072B2", "circle"), FAINT: ("#9a9a9a", "circle"), CONTROL: ("#E69F00", "cross")}
"""Colour and mark of a dot, told apart without colour, too."""
HEIGHT, WIDTH = 260, 620
NAMED = 5
"""Most heads that are named: the best of their layers, above chance where that is known."""


def layer_profile_figure(
    rows: Sequence[Mapping[Hashable, Any]],
    *,
    score: str,
    title: str,
    of: str,
    measured: str,
    null: float | None = None,
    least_attention: float = 0.0,
) -> Figure:
    """Draw a score over the layers: a dot a head, a line through the best of each layer, its strongest control as a cross.

    Args:
        rows: One a head: head, the score under its own name, low, high; with a control, control and strongest_control;
            label_attention, if it is known.
        score: The name of the score.
        title: What the score is.
        of: The model and the task.
        measured: How many prompts of which kind, and in what unit.
        null: What the best of all heads would exceed in 5 % of draws by chance; None: not known.
        least_attention: Heads with less label_attention are grey, and no best of their layer.
    """
    chance = -math.inf if null is None or math.isnan(null) else null
    layers = 1 + max(HeadRef.of(row["head"]).layer for row in rows)
    dots, crosses = _dots(rows, score, least_attention), _crosses(rows, score, min(0.22, 0.02 * layers))
    best: dict[int, dict[str, Any]] = {}
    for dot in dots:
        if dot["series"] == READS and dot["value"] > best.get(dot["layer"], {"value": -math.inf})["value"]:
            best[dot["layer"]] = dot
    says = "line: the best head of each layer"
    if chance > -math.inf:
        says += f"; dashed: {chance:.3f}, which the best of all heads exceeds by chance in 5 %"
    return Figure.styled(
        _drawn(dots, crosses, best, layers, chance, score.replace("_", " ")),
        f"{title[:1].upper()}{title[1:]}, by layer",
        [f"{of}: {measured}", f"{says}; layers and heads from 0"],
        f"{score} by layer: {of}",
    )


def _dots(rows: Sequence[Mapping[Hashable, Any]], score: str, least_attention: float) -> list[dict[str, Any]]:
    """One row a scored head; the grey ones first, so that the others lie on top."""
    found = []
    for row in rows:
        if math.isfinite(row[score]):
            ref, reads = HeadRef.of(row["head"]), not row.get("label_attention", 1.0) < least_attention
            numbers = {name: round(row[name], 5) for name in ("low", "high") if math.isfinite(row[name])}
            dot = {"layer": ref.layer, "name": str(ref), "value": round(row[score], 5)}
            found.append(dot | {"series": READS if reads else FAINT} | numbers)
    return sorted(found, key=lambda dot: dot["series"] == READS)


def _crosses(rows: Sequence[Mapping[Hashable, Any]], score: str, beside: float) -> list[dict[str, Any]]:
    """The strongest control of each scored head, a little to the right of its dot."""
    return [
        {
            "layer": HeadRef.of(row["head"]).layer + beside,
            "name": f"{row['head']}: {row['strongest_control'].replace('_', ' ')}",
            "value": round(row["control"], 5),
            "series": CONTROL,
        }
        for row in rows
        if math.isfinite(row[score]) and math.isfinite(row.get("control", math.nan))
    ]


def _drawn(
    dots: list[dict[str, Any]],
    crosses: list[dict[str, Any]],
    best: Mapping[int, Mapping[str, Any]],
    layers: int,
    chance: float,
    words: str,
) -> alt.LayerChart:
    """The dots, the crosses and the lines; `chance` is -inf where it is not known."""
    levels = [0.0, *([round(chance, 5)] if chance > -math.inf else [])]
    numbers = [*levels, *(row["value"] for row in (*dots, *crosses))]
    room = 0.08 * (max(numbers) - min(numbers)) or 0.5
    x = alt.X(
        "layer:Q",
        title="layer",
        scale=alt.Scale(domain=[-0.6, layers - 0.4], nice=False, zero=False),
        axis=alt.Axis(values=list(range(0, layers, max(1, layers // 16))), grid=False, format="d"),
    )
    heights = alt.Scale(domain=[min(numbers) - room, max(numbers) + room], nice=False, zero=False)
    y = alt.Y("value:Q", title=words, scale=heights)
    styles: list[dict[str, Any]] = [{"color": "#888"}, {"color": "#D55E00", "strokeDash": [5, 3]}]
    parts = [
        alt.Chart(alt.InlineData(values=[{"value": level}])).mark_rule(**style).encode(y=y)
        for level, style in zip(levels, styles, strict=False)
    ]
    if dots:
        # Broken where no head of a layer reads the labels.
        line = [
            {"layer": layer, "value": best.get(layer, {"value": None})["value"]} for layer in range(layers)
        ]
        parts.append(
            alt.Chart(alt.InlineData(values=line)).mark_line(strokeWidth=1.5, opacity=0.6).encode(x=x, y=y)
        )
    present = [name for name in SERIES if any(row["series"] == name for row in (*dots, *crosses))]
    seen: dict[str, Any] = {
        "title": None,
        "legend": alt.Legend(orient="top", labelLimit=300, symbolOpacity=1),
    }
    colour, shape = (
        channel(
            "series:N", scale=alt.Scale(domain=present, range=[SERIES[name][at] for name in present]), **seen
        )
        for at, channel in enumerate((alt.Color, alt.Shape))
    )
    tooltip = [
        alt.Tooltip("name:N", title="head"),
        alt.Tooltip("value:Q", title=words, format=".3f"),
        alt.Tooltip("low:Q", title="95 % interval from", format=".3f"),
        alt.Tooltip("high:Q", title="to", format=".3f"),
    ]
    for points, opacity, size in ((crosses, 0.45, 26), (dots, 0.85, 44)):
        if points:
            marks = alt.Chart(alt.InlineData(values=points)).mark_point(
                filled=True, opacity=opacity, size=size
            )
            told = tooltip if points is dots else tooltip[:2]
            parts.append(marks.encode(x=x, y=y, color=colour, shape=shape, tooltip=told))
    named = sorted((dot for dot in best.values() if dot["value"] > chance), key=lambda dot: -dot["value"])[
        :NAMED
    ]
    names = alt.Chart(alt.InlineData(values=named)).encode(x=x, y=y, text="name:N")
    if named:
        parts.append(names.mark_text(align="left", angle=300, dx=8, fontSize=11, color="#222"))
    return alt.layer(*parts).properties(width=WIDTH, height=HEIGHT)
