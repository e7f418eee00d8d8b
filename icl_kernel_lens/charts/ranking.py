"""The ranking figure shows the located heads: fit to the model's own kernel against what their values carry of the label part;
and the effect over the layers."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.charts.figure import Figure, alt, finite

KERNEL_HEAD, PAIR_KERNEL = "kernel head", "pair kernel"
LOCATED = (KERNEL_HEAD, PAIR_KERNEL)
MARKS = {
    KERNEL_HEAD: ("#D55E00", "circle"),
    PAIR_KERNEL: ("#E69F00", "diamond"),
    "cancelling": ("#F0E442", "square"),
    "shadow": ("#56B4E9", "square"),
    "echo": ("#CC79A7", "diamond"),
    "salience": ("#00563F", "triangle-left"),
    "addressing": ("#8FD9C0", "triangle-right"),
    "misbound": ("#8A3F6E", "triangle-right"),
    "recency": ("#8F6200", "triangle-down"),
    "label-blind": ("#7A3000", "cross"),
    "sink": ("#003B5E", "square"),
    "word preference": ("#009E73", "cross"),
    "driver": ("#0072B2", "triangle-up"),
    "reads labels": ("#000000", "circle"),
    "neither": ("#AAAAAA", "triangle-down"),
    "undetermined": ("#858585", "triangle-left"),
}
"""Colour and shape of a class, the same in every figure: Okabe and Ito's eight, told apart by the colour-blind, and darker and
lighter ones of other shapes."""
WIDTH, HEIGHT, STRIP = 440, 360, 54
NAMED = 24
"""Most heads that are named; more names would hide the points."""
LETTER, LINE = 6.6, 12
"""Pixels of a label's letter and line."""
RINGS, DEGREES = (16, 26, 38, 52, 70, 90, 115), (30, 150, -30, -150, 60, 120, -60, -120)
"""Where a name can stand: pixels from its point, and in which direction; the first of either are liked best."""
AWAY = np.repeat(RINGS, len(DEGREES))[:, None]
TOWARD = np.tile([(math.cos(a), -math.sin(a)) for a in map(math.radians, DEGREES)], (len(RINGS), 1))
DETOUR = np.add.outer(np.arange(len(RINGS)), 0.1 * np.arange(len(DEGREES))).ravel()
RIM: dict[str, Any] = {"stroke": "#333", "strokeWidth": 0.4}
"""Of every point, so that the light ones are seen."""
FAINT = 0.12
"""Opacity of the classes that a click in the legend has not chosen."""
CHEAP = {
    "label_shift": "weights moved by permuted labels",
    "agreement": "agreement of its vote with the answer",
    "control": "its strongest control",
    "control_name": "which",
    "label_attention": "attention on labels",
}
"""Numbers that every head can have, and what a tooltip calls them."""
CHOSEN = {"choosing_fit": "fit to the model's own kernel, choosing half"} | CHEAP
"""Those of heads whose part was not measured."""
MEASURED = {
    "fit": "fit to the model's own kernel",
    "fit_low": "interval from",
    "fit_high": "to",
    "other_order": "fit to that of another order",
    "swap_slope": "slope of swapped inputs (-1: with the input)",
    "input_shift": "weights moved by another test input",
    "transport": "share of the label part in its values",
    "transport_low": "interval from",
    "transport_high": "to",
    "kernel_share": "share of the model's own kernel in its values",
    "zeroed": "share gone without its label edges",
    "fit_cut_below": "fit, label edges below it cut",
    "logit_diff_drop": "drop of the logit difference without its label edges",
} | CHEAP
"""Those of heads that were held against the model's own kernel in the reporting half."""
FIT, CARRIED = "fit of its weights to the model's own kernel", "share of the label part that its values carry"
Place = tuple[float, float]


def ranking_figure(
    rows: Sequence[Mapping[Hashable, Any]],
    *,
    of: str,
    prompts: int,
    fit: float,
    effect: float,
    level: float,
    band: Mapping[str, Any] | None,
) -> Figure:
    """Draw how well each head's weights follow the model's own kernel, against the share of the label part in its values.

    Colour and shape tell the class; a click in the legend sets one class off. Thin lines are intervals, dashed lines
    the smallest effects of interest. Heads whose part was not measured in the reporting half are at no height: they lie in
    the strip below, by layer, at their fit in the choosing half. On the right, what the logit difference loses without the
    label edges of the located heads, summed over each layer, and the band.

    Args:
        rows: One a head: head, class, strongest_control, the columns of a ranking, and `choosing_fit`; NaN where not measured.
        of: The model and the task.
        prompts: How many there are in the reporting half.
        fit: The smallest fit of interest.
        effect: The smallest share of interest.
        level: Of the intervals.
        band: The fields of a `Band`, where it is and its depth in words; None: there is none.
    """
    every = _rows(rows)
    drawn = [row for row in every if "x" in row]
    present = [name for name in MARKS if any(row["class"] == name for row in drawn)]
    beside = sum("transport" not in row for row in drawn)
    layers = 1 + max(row["layer"] for row in every)
    across = _span(drawn, ("x", "fit_low", "fit_high"), 0.0, 2 * fit)
    up = _span(drawn, ("transport", "transport_low", "transport_high"), -1.5 * effect, 2 * effect)
    strip = [_strip(len(drawn), beside, layers, across)] if beside else []
    left = alt.vconcat(_points(drawn, present, across, up, fit, effect), *strip, spacing=8)
    located = [row for row in every if row["class"] in LOCATED]
    right = _band(band, level, located) if band is not None else _no_band(layers, len(located))
    dropped = len(every) - len(drawn)
    subtitle = [
        f"{of}: conditions on the prompts that no head was chosen on ({prompts}); layers and heads from 0",
        f"thin lines: {level:.0%} intervals; dashed: smallest effects of interest (fit {fit:g}, share {effect:g})"
        + (f"; {dropped} heads whose fit was not measured are left out" if dropped else "")
        + (f"; named: the {NAMED} located heads that carry most" if len(located) > NAMED else ""),
    ]
    return Figure.styled(
        alt.hconcat(
            left.resolve_scale(color="independent", shape="independent"),
            right,
            spacing=30,
            datasets={"heads": drawn},
        ),
        "Which heads follow the model's own kernel, and which carry it",
        subtitle,
        f"located heads: {of}",
    )


def _rows(rows: Sequence[Mapping[Hashable, Any]]) -> list[dict[str, Any]]:
    """One row a head, without the numbers it does not have; the located heads last, so that they lie on top.

    `x` is the fit that it is drawn at: of the reporting half where its part was measured there, else of the choosing half.
    """
    numbers = [name for name in {**CHOSEN, **MEASURED} if name != "control_name"]
    classes = list(MARKS)
    found = []
    by_head = {HeadRef.of(row["head"]): row for row in rows}
    for ref, row in sorted(by_head.items(), key=lambda it: (-classes.index(it[1]["class"]), it[0])):
        known = {name: round(row[name], 4) for name in numbers if math.isfinite(row[name])}
        fits = [known[name] for name in ("fit", "choosing_fit") if name in known]
        if "transport" in known:
            fits = fits if "fit" in known else []
        else:
            # Intervals are drawn of what has a height.
            known = {name: value for name, value in known.items() if name not in ("fit_low", "fit_high")}
        about = {"head": str(ref), "layer": ref.layer, "class": row["class"]}
        about["control_name"] = row["strongest_control"].replace("_", " ")
        found.append(about | known | ({"x": fits[0]} if fits else {}))
    return found


def _span(rows: list[dict[str, Any]], names: Sequence[str], *also: float) -> Place:
    """An axis that holds these numbers of all rows, and what is named `also`; with a margin."""
    values = [row[of] for row in rows for of in names if of in row]
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
    fit: float,
    effect: float,
) -> alt.LayerChart:
    """The heads whose part was measured, their intervals, the smallest effects of interest, and some names."""
    follows = alt.Scale(domain=list(across), nice=False, zero=False)
    carries = alt.Scale(domain=list(up), nice=False, zero=False)
    x = alt.X("x:Q", title=FIT, scale=follows)
    y = alt.Y("transport:Q", title=CARRIED, scale=carries)
    pick = alt.selection_point(name="chosen", fields=["class"], bind="legend")
    legend = alt.Legend(
        values=present, orient="top", direction="horizontal", columns=4, symbolSize=80, symbolOpacity=1
    )
    measured = alt.Chart(alt.NamedData("heads")).transform_filter("isValid(datum.transport)")
    points = (
        measured.mark_point(filled=True, size=70 if len(rows) <= 200 else 40, **RIM)
        .encode(
            x=x,
            y=y,
            **_by_class(legend),
            opacity=alt.condition(pick, alt.value(0.9), alt.value(FAINT)),
            tooltip=_tooltip(MEASURED),
        )
        .add_params(pick)
    )
    ends = measured.mark_rule().encode(
        color=_by_class(legend)["color"], opacity=alt.condition(pick, alt.value(0.45), alt.value(FAINT / 2))
    )
    # The located heads, and whatever else carries labels.
    named = sorted(
        (
            row
            for row in rows
            if "transport" in row and (row["class"] in LOCATED or abs(row["transport"]) > effect)
        ),
        key=lambda row: (row["class"] not in LOCATED, -abs(row["transport"])),
    )
    names = alt.Chart(alt.InlineData(values=name_places(named[:NAMED], rows, across, up))).encode(
        x=alt.X("written_x:Q", scale=follows), y=alt.Y("written_y:Q", scale=carries)
    )
    written = names.encode(text="head:N")
    return alt.layer(
        *_lines(alt.X("at:Q", scale=follows), [fit]),
        *_lines(alt.Y("at:Q", scale=carries), [-effect, effect]),
        ends.encode(x=alt.X("fit_low:Q", scale=follows), x2="fit_high:Q", y=y),
        ends.encode(x=x, y=alt.Y("transport_low:Q", scale=carries), y2="transport_high:Q"),
        points,
        names.mark_rule(color="#888", strokeWidth=0.6).encode(x2="x:Q", y2="transport:Q"),
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
        at = np.array([(head["x"], head["transport"]) for head in heads]).reshape(-1, 2)
        return (at - start) / (end - start) * size

    points = pixels([row for row in rows if "transport" in row])
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
        found.append(
            {name: row[name] for name in ("head", "x", "transport")} | {"written_x": x, "written_y": y}
        )
    return found


def _strip(drawn: int, count: int, layers: int, across: Place) -> alt.Chart:
    """The `count` heads whose part was not measured in the reporting half, at their fit; their height is their layer."""
    marked = list(range(layers)) if layers * 12 <= STRIP else [0, layers - 1]
    return (
        alt.Chart(alt.NamedData("heads"))
        .transform_filter("!isValid(datum.transport)")
        .mark_point(filled=True, size=30 if drawn <= 200 else 14, **RIM)
        .encode(
            x=alt.X("x:Q", title=None, scale=alt.Scale(domain=list(across), nice=False, zero=False)),
            y=alt.Y(
                "layer:Q",
                title="layer",
                scale=alt.Scale(domain=[layers - 0.5, -0.5], nice=False, zero=False),
                axis=alt.Axis(values=marked, format="d", grid=False),
            ),
            **_by_class(None),
            opacity=alt.condition({"param": "chosen"}, alt.value(0.8), alt.value(FAINT)),
            tooltip=_tooltip(CHOSEN),
        )
        .properties(
            width=WIDTH,
            height=STRIP,
            title=alt.TitleParams(
                f"part not measured: {count} {'head' if count == 1 else 'heads'}, at {'its' if count == 1 else 'their'} fit in the choosing half",
                fontSize=11,
                fontWeight="normal",
                anchor="start",
            ),
            view=alt.ViewConfig(fill="#f4f4f4"),
        )
    )


def _no_band(layers: int, located: int) -> alt.LayerChart:
    text = "no band: nothing is lost without them" if located else "no head located"
    nothing = alt.Chart(alt.InlineData(values=[{"text": text}]))
    return alt.layer(nothing.mark_text(fontSize=13, color="#555").encode(text="text:N")).properties(
        width=230,
        height=HEIGHT,
        view=alt.ViewConfig(fill="#f4f4f4"),
        title=alt.TitleParams(f"The band: none of the {layers} layers", fontSize=12, anchor="start"),
    )


def _band(band: Mapping[str, Any], level: float, located: list[dict[str, Any]]) -> alt.HConcatChart:
    """Effect of the located heads, layer by layer; the band shaded, the intervals of its ends beside it."""
    count = band["layers"]
    (a, b), (c, d) = band["first_interval"], band["last_interval"]
    scale = alt.Scale(domain=list(range(count)), padding=0)
    return alt.hconcat(
        _effects(band, located, scale).properties(width=190, height=HEIGHT),
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
    band: Mapping[str, Any], located: list[dict[str, Any]], scale: alt.Scale
) -> alt.LayerChart | alt.FacetChart:
    """A bar a layer; the band shaded."""
    rows = [
        {
            "layer": layer,
            "effect": finite(round(effect, 4)),
            "inside": band["first"] <= layer <= band["last"],
            "heads": ", ".join(row["head"] for row in located if row["layer"] == layer),
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
        x=alt.X("effect:Q", title="effect of the located heads", axis=alt.Axis(tickCount=4)),
        color=alt.condition("datum.inside", alt.value(MARKS[KERNEL_HEAD][0]), alt.value("#999")),
        tooltip=[
            "layer:O",
            alt.Tooltip("effect:Q", title="share of the logit difference", format=".3f"),
            alt.Tooltip("heads:N", title="located heads"),
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
