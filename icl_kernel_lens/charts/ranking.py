"""The ranking figure shows the located heads: fidelity against causal effect, and the effect over the layers."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.charts.figure import Figure, alt, finite

KERNEL_HEAD = "kernel head"
MARKS = {
    KERNEL_HEAD: ("#D55E00", "circle"),
    "shadow": ("#56B4E9", "square"),
    "driver": ("#0072B2", "triangle-up"),
    "echo": ("#CC79A7", "diamond"),
    "word preference": ("#009E73", "cross"),
    "neither": ("#999999", "triangle-down"),
    "undetermined": ("#E69F00", "triangle-right"),
}
"""Colour (Okabe and Ito's, told apart by the colour-blind) and shape of a class, the same in every figure."""
WIDTH, HEIGHT, STRIP = 440, 360, 54
NAMED = 24
"""Most kernel heads that are named; more names would hide the points."""
LETTER, LINE = 6.6, 12
"""Pixels of a label's letter and line."""
RINGS, DEGREES = (16, 26, 38, 52, 70, 90, 115), (30, 150, -30, -150, 60, 120, -60, -120)
"""Where a name can stand: pixels from its point, and in which direction; the first of either are liked best."""
AWAY = np.repeat(RINGS, len(DEGREES))[:, None]
TOWARD = np.tile([(math.cos(a), -math.sin(a)) for a in map(math.radians, DEGREES)], (len(RINGS), 1))
DETOUR = np.add.outer(np.arange(len(RINGS)), 0.1 * np.arange(len(DEGREES))).ravel()
FAINT = 0.12
"""Opacity of the classes that a click in the legend has not chosen."""
MEASURED = {
    "agreement": "agreement with the answer",
    "control": "its strongest control",
    "control_name": "which",
    "margin": "above it",
    "label_shift": "weights moved by permuted labels",
    "word_bound_shift": "had they gone with the words",
    "label_attention": "attention on labels",
}
"""Numbers that every head can have, and what a tooltip calls them."""
CAUSAL = {
    "logit_diff_drop": "drop of the logit difference without its label edges",
    "logit_diff_drop_low": "interval from",
    "logit_diff_drop_high": "to",
    "equal_mass_drop": "drop without other edges of equal mass",
}
"""Those of heads that were cut in the reporting half."""
Place = tuple[float, float]


def ranking_figure(
    rows: Sequence[Mapping[Hashable, Any]],
    *,
    of: str,
    prompts: int,
    margin: float,
    effect: float,
    level: float,
    band: Mapping[str, Any] | None,
) -> Figure:
    """Draw how far each head's vote is above its strongest control, against what the answer loses without it.

    Colour and shape tell the class; a click in the legend sets one class off. Thin lines are intervals, dashed lines
    the smallest effects of interest. Heads that were not cut in the reporting half have no effect to be drawn at: they
    lie in the strip below, by layer. On the right, the confirmed heads' effect summed over each layer, and the band.

    Args:
        rows: One a head: head, class, strongest_control, and the columns of a ranking; NaN where not measured.
        of: The model and the task.
        prompts: How many there are in the reporting half.
        margin: The smallest margin of interest.
        effect: The smallest causal effect of interest.
        level: Of the intervals.
        band: The fields of a `Band`, where it is and its depth in words; None: there is none.
    """
    every = _rows(rows)
    drawn = [row for row in every if "margin" in row]
    present = [name for name in MARKS if any(row["class"] == name for row in drawn)]
    beside = sum("logit_diff_drop" not in row for row in drawn)
    layers = 1 + max(row["layer"] for row in every)
    across = _span(drawn, "margin", 0.0, 2 * margin)
    up = _span(drawn, "logit_diff_drop", -1.5 * effect, 2 * effect)
    strip = [_strip(len(drawn), beside, layers, across)] if beside else []
    left = alt.vconcat(_points(drawn, present, across, up, margin, effect), *strip, spacing=8)
    confirmed = [row for row in every if row["class"] == KERNEL_HEAD]
    right = _band(band, level, confirmed) if band is not None else _no_band(layers, len(confirmed))
    dropped = len(every) - len(drawn)
    subtitle = [
        f"{of}: {prompts} prompts that no head was chosen on; layers and heads from 0",
        f"thin lines: {level:.0%} intervals; dashed: smallest effects of interest "
        f"(vote {margin:g}, effect {effect:g})"
        + (f"; {dropped} heads whose vote could not be scored are left out" if dropped else "")
        + (f"; named: the {NAMED} kernel heads of the largest effect" if len(confirmed) > NAMED else ""),
    ]
    return Figure.styled(
        alt.hconcat(
            left.resolve_scale(color="independent", shape="independent"),
            right,
            spacing=30,
            datasets={"heads": drawn},
        ),
        "Which heads vote, and which matter",
        subtitle,
        f"located heads: {of}",
    )


def _rows(rows: Sequence[Mapping[Hashable, Any]]) -> list[dict[str, Any]]:
    """One row a head, without the numbers it does not have; the kernel heads last, so that they lie on top."""
    numbers = [name for name in (*MEASURED, "margin_low", "margin_high", *CAUSAL) if name != "control_name"]
    classes = list(MARKS)
    by_head = {HeadRef.of(row["head"]): row for row in rows}
    return [
        {"head": str(ref), "layer": ref.layer, "class": row["class"]}
        | {"control_name": row["strongest_control"].replace("_", " ")}
        | {name: round(row[name], 4) for name in numbers if math.isfinite(row[name])}
        for ref, row in sorted(by_head.items(), key=lambda it: (-classes.index(it[1]["class"]), it[0]))
    ]


def _span(rows: list[dict[str, Any]], name: str, *also: float) -> Place:
    """An axis that holds a number of all rows with its interval, and what is named `also`; with a margin."""
    values = [row[of] for row in rows for of in (name, f"{name}_low", f"{name}_high") if of in row]
    low, high = min(*values, *also), max(*values, *also)
    pad = 0.06 * ((high - low) or 1.0)
    return low - pad, high + pad


def _by_class(legend: alt.Legend | None) -> dict[str, alt.Color | alt.Shape]:
    """Colour and shape, with one legend."""
    names = list(MARKS)
    colours, shapes = (alt.Scale(domain=names, range=list(of)) for of in zip(*MARKS.values(), strict=True))
    return {
        "color": alt.Color("class:N", title="class", scale=colours, legend=legend),
        "shape": alt.Shape("class:N", title="class", scale=shapes, legend=legend),
    }


def _tooltip(names: Mapping[str, str]) -> list[alt.Tooltip]:
    numbers = [
        alt.Tooltip("control_name:N", title=title)
        if name == "control_name"
        else alt.Tooltip(f"{name}:Q", title=title, format=".3f")
        for name, title in names.items()
    ]
    return [alt.Tooltip("head:N"), alt.Tooltip("class:N"), *numbers]


def _points(
    rows: list[dict[str, Any]],
    present: list[str],
    across: Place,
    up: Place,
    margin: float,
    effect: float,
) -> alt.LayerChart:
    """The heads with a measured effect, their intervals, the smallest effects of interest, and some names."""
    fidelity = alt.Scale(domain=list(across), nice=False, zero=False)
    lost = alt.Scale(domain=list(up), nice=False, zero=False)
    x = alt.X("margin:Q", title="fidelity: agreement above the strongest control", scale=fidelity)
    y = alt.Y("logit_diff_drop:Q", title="causal effect: share of the logit difference lost", scale=lost)
    pick = alt.selection_point(name="chosen", fields=["class"], bind="legend")
    legend = alt.Legend(
        values=present, orient="top", direction="horizontal", columns=4, symbolSize=80, symbolOpacity=1
    )
    measured = alt.Chart(alt.NamedData("heads")).transform_filter("isValid(datum.logit_diff_drop)")
    points = (
        measured.mark_point(filled=True, size=70 if len(rows) <= 200 else 40)
        .encode(
            x=x,
            y=y,
            **_by_class(legend),
            opacity=alt.condition(pick, alt.value(0.9), alt.value(FAINT)),
            tooltip=_tooltip(MEASURED | CAUSAL),
        )
        .add_params(pick)
    )
    ends = measured.mark_rule().encode(
        color=_by_class(legend)["color"], opacity=alt.condition(pick, alt.value(0.45), alt.value(FAINT / 2))
    )
    # The kernel heads, and whatever else the answer needs.
    named = sorted(
        (
            row
            for row in rows
            if "logit_diff_drop" in row
            and (row["class"] == KERNEL_HEAD or abs(row["logit_diff_drop"]) > effect)
        ),
        key=lambda row: (row["class"] != KERNEL_HEAD, -abs(row["logit_diff_drop"])),
    )
    names = alt.Chart(alt.InlineData(values=name_places(named[:NAMED], rows, across, up))).encode(
        x=alt.X("x:Q", scale=fidelity), y=alt.Y("y:Q", scale=lost)
    )
    written = names.encode(text="head:N")
    return alt.layer(
        *_lines(alt.X("at:Q", scale=fidelity), [margin]),
        *_lines(alt.Y("at:Q", scale=lost), [-effect, effect]),
        ends.encode(x=alt.X("margin_low:Q", scale=fidelity), x2="margin_high:Q", y=y),
        ends.encode(x=x, y=alt.Y("logit_diff_drop_low:Q", scale=lost), y2="logit_diff_drop_high:Q"),
        points,
        names.mark_rule(color="#888", strokeWidth=0.6).encode(x2="margin:Q", y2="logit_diff_drop:Q"),
        written.mark_text(fontSize=11, fontWeight="bold", stroke="#fff", strokeWidth=3),
        written.mark_text(fontSize=11, fontWeight="bold", color="#222"),
    ).properties(width=WIDTH, height=HEIGHT)


def _lines(along: alt.X | alt.Y, thresholds: list[float]) -> list[alt.Chart]:
    """Zero and the smallest effects of interest."""
    zero = alt.Chart(alt.InlineData(values=[{"at": 0}])).mark_rule(color="#bbb", strokeWidth=1)
    least = alt.Chart(alt.InlineData(values=[{"at": value} for value in thresholds]))
    return [
        zero.encode(along),
        least.mark_rule(color="#888", strokeWidth=0.8, strokeDash=[4, 3]).encode(along),
    ]


def name_places(
    named: list[dict[str, Any]], rows: list[dict[str, Any]], across: Place, up: Place
) -> list[dict[str, Any]]:
    """Where the names of the heads `named` are written: near their points, over no other name and few of the points of `rows`.

    `across` and `up` are the axes' ends. Greedy, in the order given.
    """
    size = np.array([WIDTH, HEIGHT])
    start, end = np.array([across, up[::-1]]).T

    def pixels(heads: list[dict[str, Any]]) -> np.ndarray:
        at = np.array([(head["margin"], head["logit_diff_drop"]) for head in heads]).reshape(-1, 2)
        return (at - start) / (end - start) * size

    points = pixels([row for row in rows if "logit_diff_drop" in row])
    written: list[tuple[np.ndarray, np.ndarray]] = []
    found = []
    for row, point in zip(named, pixels(named), strict=True):
        half = np.array([LETTER * len(row["head"]), LINE]) / 2
        places = point + (AWAY + half * (0.5, 0)) * TOWARD
        cost = DETOUR + 6 * (abs(places[:, None] - points) < half + 5).all(-1).sum(1)
        cost += 60 * ((places <= half) | (places >= size - half)).sum(1)
        for other, its_half in written:
            cost += 60 * (abs(places - other) < half + its_half + (3, 0)).all(1)
        best = places[cost.argmin()]
        written.append((best, half))
        x, y = (start + best / size * (end - start)).tolist()
        found.append({name: row[name] for name in ("head", "margin", "logit_diff_drop")} | {"x": x, "y": y})
    return found


def _strip(drawn: int, count: int, layers: int, across: Place) -> alt.Chart:
    """The `count` heads that were not cut in the reporting half, at their fidelity; their height is their layer."""
    marked = list(range(layers)) if layers * 12 <= STRIP else [0, layers - 1]
    return (
        alt.Chart(alt.NamedData("heads"))
        .transform_filter("!isValid(datum.logit_diff_drop)")
        .mark_point(filled=True, size=30 if drawn <= 200 else 14)
        .encode(
            x=alt.X("margin:Q", title=None, scale=alt.Scale(domain=list(across), nice=False, zero=False)),
            y=alt.Y(
                "layer:Q",
                title="layer",
                scale=alt.Scale(domain=[layers - 0.5, -0.5], nice=False, zero=False),
                axis=alt.Axis(values=marked, format="d", grid=False),
            ),
            **_by_class(None),
            opacity=alt.condition({"param": "chosen"}, alt.value(0.8), alt.value(FAINT)),
            tooltip=_tooltip(MEASURED),
        )
        .properties(
            width=WIDTH,
            height=STRIP,
            title=alt.TitleParams(
                f"effect not measured in the reporting half: {count} {'head' if count == 1 else 'heads'}",
                fontSize=11,
                fontWeight="normal",
                anchor="start",
            ),
            view=alt.ViewConfig(fill="#f4f4f4"),
        )
    )


def _no_band(layers: int, confirmed: int) -> alt.LayerChart:
    text = "no band: nothing is lost without them" if confirmed else "no kernel head confirmed"
    nothing = alt.Chart(alt.InlineData(values=[{"text": text}]))
    return alt.layer(nothing.mark_text(fontSize=13, color="#555").encode(text="text:N")).properties(
        width=230,
        height=HEIGHT,
        view=alt.ViewConfig(fill="#f4f4f4"),
        title=alt.TitleParams(f"The band: none of the {layers} layers", fontSize=12, anchor="start"),
    )


def _band(band: Mapping[str, Any], level: float, confirmed: list[dict[str, Any]]) -> alt.HConcatChart:
    """Effect of the confirmed heads, layer by layer; the band shaded, the intervals of its ends beside it."""
    count = band["layers"]
    (a, b), (c, d) = band["first_interval"], band["last_interval"]
    scale = alt.Scale(domain=list(range(count)), padding=0)
    return alt.hconcat(
        _effects(band, confirmed, scale).properties(width=190, height=HEIGHT),
        _ends(band, scale).properties(width=56, height=HEIGHT),
        spacing=4,
    ).properties(
        title=alt.TitleParams(
            f"The band: {band['where']}, counted from 0",
            subtitle=[
                f"relative depth {band['depth']}; {band['share']:.0%} of the effect (asked: {band['wanted']:.0%})",
                f"{level:.0%} intervals: first {a}–{b}, last {c}–{d}",
            ],
            fontSize=12,
            subtitleFontSize=11,
            anchor="start",
        )
    )


def _effects(
    band: Mapping[str, Any], confirmed: list[dict[str, Any]], scale: alt.Scale
) -> alt.LayerChart | alt.FacetChart:
    """A bar a layer; the band shaded."""
    rows = [
        {
            "layer": layer,
            "effect": finite(round(effect, 4)),
            "inside": band["first"] <= layer <= band["last"],
            "heads": ", ".join(row["head"] for row in confirmed if row["layer"] == layer),
        }
        for layer, effect in enumerate(band["by_layer"])
    ]
    step = HEIGHT / band["layers"]
    every = max(1, math.ceil(14 / step))
    axis = alt.Axis(values=list(range(0, band["layers"], every)), grid=False, ticks=False)
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        y=alt.Y("layer:O", title="layer", scale=scale, axis=axis)
    )
    shade = base.transform_filter("datum.inside").mark_rect(color="#D55E00", opacity=0.14)
    bars = base.mark_bar(size=max(1.0, min(22.0, 0.7 * step))).encode(
        x=alt.X("effect:Q", title="effect of the confirmed heads", axis=alt.Axis(tickCount=4)),
        color=alt.condition("datum.inside", alt.value(MARKS[KERNEL_HEAD][0]), alt.value("#999")),
        tooltip=[
            "layer:O",
            alt.Tooltip("effect:Q", title="share of the logit difference", format=".3f"),
            alt.Tooltip("heads:N", title="confirmed heads"),
        ],
    )
    return alt.layer(shade, bars)


def _ends(band: Mapping[str, Any], scale: alt.Scale) -> alt.LayerChart | alt.FacetChart:
    """The band's first and last layer with their intervals."""
    ends = [
        {"end": end, "at": band[end], **dict(zip(("low", "high"), band[f"{end}_interval"], strict=True))}
        for end in ("first", "last")
    ]
    interval = alt.Chart(alt.InlineData(values=ends)).encode(
        x=alt.X("end:N", title=None, sort=["first", "last"], axis=alt.Axis(labelAngle=0, ticks=False)),
        tooltip=[
            "end:N",
            "at:O",
            alt.Tooltip("low:O", title="interval from"),
            alt.Tooltip("high:O", title="to"),
        ],
    )
    return alt.layer(
        interval.mark_rule(color="#222", strokeWidth=1.5).encode(
            y=alt.Y("low:O", title=None, scale=scale, axis=None), y2="high:O"
        ),
        interval.mark_point(filled=True, color="#222", size=45, opacity=1).encode(
            y=alt.Y("at:O", title=None, scale=scale, axis=None)
        ),
    )
