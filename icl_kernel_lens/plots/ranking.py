"""The located heads: fidelity against causal effect, one point a head, and beside it the effect over the layers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import altair as alt

from icl_kernel_lens.plots.figure import Figure
from icl_kernel_lens.results.head_ranking import HEAD_CLASSES, HeadClass

if TYPE_CHECKING:
    from icl_kernel_lens.results.head_ranking import HeadRanking

MARKS: dict[HeadClass, tuple[str, str]] = {
    "kernel head": ("#D55E00", "circle"),
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
FAINT = 0.12
"""Opacity of the classes that a click in the legend has not chosen."""
SHOWN = ("agreement", "control", "margin", "margin_low", "margin_high", "moved", "carried", "label_mass")
CAUSAL = ("loss", "loss_low", "loss_high", "equal_mass_loss")
Place = tuple[float, float]


def ranking_figure(ranking: HeadRanking) -> Figure:
    """How far each head's vote is above its strongest control, against what the answer loses without it.

    Colour and shape tell the class; a click in the legend sets one class off. Thin lines are intervals, dashed lines
    the smallest effects of interest. Heads that were not cut in the reporting half have no effect to be drawn at: they
    lie in the strip below, by layer. On the right, the confirmed heads' effect summed over each layer, and the band.
    """
    rows = _rows(ranking)
    drawn = [row for row in rows if "margin" in row]
    present = {row["class"] for row in drawn}
    beside = [row for row in drawn if "loss" not in row]
    run, criteria = ranking.run, ranking.criteria
    parts: list[alt.LayerChart | alt.Chart] = [
        _points(ranking, drawn, [name for name in HEAD_CLASSES if name in present])
    ]
    if beside:
        parts.append(_strip(ranking, drawn, len(beside)))
    left = alt.vconcat(*parts, spacing=8).resolve_scale(color="independent", shape="independent")
    dropped, confirmed = len(rows) - len(drawn), len(ranking.heads)
    subtitle = [
        f"{run.model} on {run.prompts.task}: {len(ranking.agreement)} prompts that no head was chosen on; "
        "layers and heads from 0",
        f"thin lines: {criteria.level:.0%} intervals; dashed: smallest effects of interest "
        f"(vote {criteria.margin:g}, effect {criteria.effect:g})"
        + (f"; {dropped} heads whose vote could not be scored are left out" if dropped else "")
        + (f"; named: the {NAMED} kernel heads of the largest effect" if confirmed > NAMED else ""),
    ]
    chart = (
        alt.hconcat(left, _band(ranking), spacing=30, datasets={"heads": drawn})
        .properties(
            title=alt.TitleParams("Which heads vote, and which matter", subtitle=subtitle, anchor="start")
        )
        .configure_view(stroke=None)
        .configure_axis(labelFontSize=11, titleFontSize=12, gridColor="#eee")
    )
    return Figure(chart, f"located heads: {run.model} on {run.prompts.task}")


def _rows(ranking: HeadRanking) -> list[dict[str, Any]]:
    """One row a head, without the numbers it does not have; the kernel heads last, so that they lie on top."""
    rows = []
    for (head, name), strongest in zip(ranking.classes.items(), ranking.strongest, strict=True):
        row: dict[str, Any] = {
            "head": str(head),
            "layer": head.layer,
            "class": name,
            "control_name": strongest.replace("_", " "),
        }
        for column in (*SHOWN, *CAUSAL):
            value = float(ranking.columns[column][head])
            if math.isfinite(value):
                row[column] = round(value, 4)
        rows.append(row)
    return sorted(rows, key=lambda row: -HEAD_CLASSES.index(row["class"]))


def _span(values: list[float]) -> Place:
    """An axis that holds the values and 0, with a margin."""
    low, high = min(values), max(values)
    pad = 0.06 * ((high - low) or 1.0)
    return low - pad, high + pad


def _domains(ranking: HeadRanking, rows: list[dict[str, Any]]) -> tuple[Place, Place]:
    """Of fidelity and of effect: all that is drawn, zero, and the smallest effects of interest."""
    criteria = ranking.criteria
    x = [row[name] for row in rows for name in ("margin", "margin_low", "margin_high") if name in row]
    y = [row[name] for row in rows for name in ("loss", "loss_low", "loss_high") if name in row]
    return (
        _span([*x, 0.0, 2 * criteria.margin]),
        _span([*y, -1.5 * criteria.effect, 2 * criteria.effect]),
    )


def _colour(legend: alt.Legend | None) -> alt.Color:
    scale = alt.Scale(domain=list(HEAD_CLASSES), range=[MARKS[name][0] for name in HEAD_CLASSES])
    return alt.Color("class:N", title="class", scale=scale, legend=legend)


def _shape(legend: alt.Legend | None) -> alt.Shape:
    scale = alt.Scale(domain=list(HEAD_CLASSES), range=[MARKS[name][1] for name in HEAD_CLASSES])
    return alt.Shape("class:N", title="class", scale=scale, legend=legend)


def _tooltip(*, causal: bool) -> list[alt.Tooltip]:
    names = {
        "agreement": "agreement with the answer",
        "control": "its strongest control",
        "control_name": "which",
        "margin": "above it",
        "moved": "weights moved by permuted labels",
        "carried": "had they gone with the words",
        "label_mass": "attention on labels",
    }
    if causal:
        names |= {
            "loss": "loss without its label edges",
            "loss_low": "interval from",
            "loss_high": "to",
            "equal_mass_loss": "without other edges of equal mass",
        }
    numbers = [
        alt.Tooltip("control_name:N", title=title)
        if name == "control_name"
        else alt.Tooltip(f"{name}:Q", title=title, format=".3f")
        for name, title in names.items()
    ]
    return [alt.Tooltip("head:N"), alt.Tooltip("class:N"), *numbers]


def _points(ranking: HeadRanking, rows: list[dict[str, Any]], present: list[HeadClass]) -> alt.LayerChart:
    criteria = ranking.criteria
    across, up = _domains(ranking, rows)
    fidelity = alt.Scale(domain=list(across), nice=False, zero=False)
    effect = alt.Scale(domain=list(up), nice=False, zero=False)
    x = alt.X("margin:Q", title="fidelity: agreement above the strongest control", scale=fidelity)
    y = alt.Y("loss:Q", title="causal effect: share of the logit difference lost", scale=effect)
    pick = alt.selection_point(name="chosen", fields=["class"], bind="legend")
    legend = alt.Legend(
        values=present, orient="top", direction="horizontal", columns=4, symbolSize=80, symbolOpacity=1
    )
    seen = alt.condition(pick, alt.value(0.9), alt.value(FAINT))
    thin = alt.condition(pick, alt.value(0.45), alt.value(FAINT / 2))
    measured = alt.Chart(alt.NamedData("heads")).transform_filter("isValid(datum.loss)")
    points = (
        measured.mark_point(filled=True, size=70 if len(rows) <= 200 else 40)
        .encode(
            x=x, y=y, color=_colour(legend), shape=_shape(legend), opacity=seen, tooltip=_tooltip(causal=True)
        )
        .add_params(pick)
    )
    ends = measured.mark_rule().encode(color=_colour(legend), opacity=thin)
    lines = [
        *_lines("x", fidelity, [criteria.margin]),
        *_lines("y", effect, [-criteria.effect, criteria.effect]),
    ]
    # The kernel heads, and whatever else the answer needs.
    named = [
        row
        for row in rows
        if "loss" in row and (row["class"] == "kernel head" or abs(row["loss"]) > criteria.effect)
    ]
    named = sorted(named, key=lambda row: (row["class"] != "kernel head", -abs(row["loss"])))[:NAMED]
    names = _names(named, rows, across, up)
    label = alt.Chart(alt.InlineData(values=names))
    layers = [
        *lines,
        ends.encode(x=alt.X("margin_low:Q", scale=fidelity), x2="margin_high:Q", y=y),
        ends.encode(x=x, y=alt.Y("loss_low:Q", scale=effect), y2="loss_high:Q"),
        points,
    ]
    if names:
        at = {"x": alt.X("x:Q", scale=fidelity), "y": alt.Y("y:Q", scale=effect)}
        layers += [
            label.mark_rule(color="#888", strokeWidth=0.6).encode(**at, x2="margin:Q", y2="loss:Q"),
            label.mark_text(fontSize=11, fontWeight="bold", stroke="#fff", strokeWidth=3).encode(
                **at, text="head:N"
            ),
            label.mark_text(fontSize=11, fontWeight="bold", color="#222").encode(**at, text="head:N"),
        ]
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)


def _lines(axis: str, scale: alt.Scale, thresholds: list[float]) -> list[alt.Chart]:
    channel = alt.X if axis == "x" else alt.Y
    at = {axis: channel("at:Q", scale=scale)}
    zero = alt.Chart(alt.InlineData(values=[{"at": 0}])).mark_rule(color="#bbb", strokeWidth=1)
    least = alt.Chart(alt.InlineData(values=[{"at": value} for value in thresholds]))
    return [
        zero.encode(**at),
        least.mark_rule(color="#888", strokeWidth=0.8, strokeDash=[4, 3]).encode(**at),
    ]


def _names(
    named: list[dict[str, Any]], rows: list[dict[str, Any]], across: Place, up: Place
) -> list[dict[str, Any]]:
    """Where to write the heads' names: each near its point, over no other name and as few points as may be."""

    def pixel(margin: float, loss: float) -> Place:
        return (
            (margin - across[0]) / (across[1] - across[0]) * WIDTH,
            (up[1] - loss) / (up[1] - up[0]) * HEIGHT,
        )

    points = [pixel(row["margin"], row["loss"]) for row in rows if "loss" in row]
    written: list[tuple[float, float, float]] = []
    found = []
    for row in named:
        half = LETTER * len(row["head"]) / 2
        a, b = pixel(row["margin"], row["loss"])
        best, cost = (a, b), math.inf
        for ring, away in enumerate((16, 26, 38, 52, 70, 90, 115)):
            for step, degrees in enumerate((30, 150, -30, -150, 60, 120, -60, -120)):
                angle = math.radians(degrees)
                u, v = a + (away + half / 2) * math.cos(angle), b - away * math.sin(angle)
                here = ring + 0.1 * step
                here += 6 * sum(abs(u - p) < half + 5 and abs(v - q) < LINE / 2 + 5 for p, q in points)
                here += 60 * sum(abs(u - p) < half + h + 3 and abs(v - q) < LINE for p, q, h in written)
                here += 60 * (not half < u < WIDTH - half) + 60 * (not LINE / 2 < v < HEIGHT - LINE / 2)
                if here < cost:
                    best, cost = (u, v), here
        written.append((*best, half))
        x = across[0] + best[0] / WIDTH * (across[1] - across[0])
        y = up[1] - best[1] / HEIGHT * (up[1] - up[0])
        found.append({"head": row["head"], "margin": row["margin"], "loss": row["loss"], "x": x, "y": y})
    return found


def _strip(ranking: HeadRanking, rows: list[dict[str, Any]], count: int) -> alt.Chart:
    """The heads that were not cut in the reporting half, at their fidelity; their height is their layer."""
    across, _ = _domains(ranking, rows)
    layers = ranking.agreement.shape[1]
    return (
        alt.Chart(alt.NamedData("heads"))
        .transform_filter("!isValid(datum.loss)")
        .mark_point(filled=True, size=30 if len(rows) <= 200 else 14)
        .encode(
            x=alt.X("margin:Q", title=None, scale=alt.Scale(domain=list(across), nice=False, zero=False)),
            y=alt.Y(
                "layer:Q",
                title="layer",
                scale=alt.Scale(domain=[layers - 0.5, -0.5], nice=False, zero=False),
                axis=alt.Axis(values=sorted({0, layers - 1}), format="d", grid=False),
            ),
            color=_colour(None),
            shape=_shape(None),
            opacity=alt.condition({"param": "chosen"}, alt.value(0.8), alt.value(FAINT)),
            tooltip=_tooltip(causal=False),
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


def _band(ranking: HeadRanking) -> alt.HConcatChart | alt.LayerChart:
    """Effect of the confirmed heads, layer by layer; the band shaded, the intervals of its ends beside it."""
    band = ranking.band
    if band is None:
        layers = ranking.agreement.shape[1]
        text = "no band: nothing is lost without them" if ranking.heads else "no kernel head confirmed"
        nothing = alt.Chart(alt.InlineData(values=[{"text": text}]))
        return alt.layer(nothing.mark_text(fontSize=13, color="#555").encode(text="text:N")).properties(
            width=230,
            height=HEIGHT,
            view=alt.ViewConfig(fill="#f4f4f4"),
            title=alt.TitleParams(f"The band: none of the {layers} layers", fontSize=12, anchor="start"),
        )
    rows = [
        {
            "layer": layer,
            "effect": round(effect, 4) if math.isfinite(effect) else None,
            "inside": band.first <= layer <= band.last,
            "heads": ", ".join(str(head) for head in sorted(ranking.heads) if head.layer == layer),
        }
        for layer, effect in enumerate(band.by_layer)
    ]
    step = HEIGHT / band.layers
    every = max(1, math.ceil(14 / step))
    scale = alt.Scale(domain=list(range(band.layers)), padding=0)
    axis = alt.Axis(values=list(range(0, band.layers, every)), grid=False, ticks=False)
    y = alt.Y("layer:O", title="layer", scale=scale, axis=axis)
    base = alt.Chart(alt.InlineData(values=rows)).encode(y=y)
    shade = base.transform_filter("datum.inside").mark_rect(color="#D55E00", opacity=0.14)
    bars = base.mark_bar(size=max(1.0, min(22.0, 0.7 * step))).encode(
        x=alt.X(
            "effect:Q",
            title="effect of the confirmed heads",
            axis=alt.Axis(tickCount=4),
        ),
        color=alt.condition("datum.inside", alt.value(MARKS["kernel head"][0]), alt.value("#999")),
        tooltip=[
            "layer:O",
            alt.Tooltip("effect:Q", title="share of the logit difference", format=".3f"),
            alt.Tooltip("heads:N", title="confirmed heads"),
        ],
    )
    ends = [
        {"end": "first", "at": band.first, "low": band.first_interval[0], "high": band.first_interval[1]},
        {"end": "last", "at": band.last, "low": band.last_interval[0], "high": band.last_interval[1]},
    ]
    hidden = alt.Y("low:O", title=None, scale=scale, axis=None)
    interval = alt.Chart(alt.InlineData(values=ends)).encode(
        x=alt.X("end:N", title=None, sort=["first", "last"], axis=alt.Axis(labelAngle=0, ticks=False)),
        tooltip=[
            "end:N",
            "at:O",
            alt.Tooltip("low:O", title="interval from"),
            alt.Tooltip("high:O", title="to"),
        ],
    )
    intervals = alt.layer(
        interval.mark_rule(color="#222", strokeWidth=1.5).encode(y=hidden, y2="high:O"),
        interval.mark_point(filled=True, color="#222", size=45, opacity=1).encode(
            y=alt.Y("at:O", title=None, scale=scale, axis=None)
        ),
    )
    (a, b), (c, d) = band.first_interval, band.last_interval
    low, high = band.depth
    level = f"{ranking.criteria.level:.0%}"
    return alt.hconcat(
        alt.layer(shade, bars).properties(width=190, height=HEIGHT),
        intervals.properties(width=56, height=HEIGHT),
        spacing=4,
    ).properties(
        title=alt.TitleParams(
            f"The band: layers {band.first}–{band.last} of {band.layers}, counted from 0",
            subtitle=[
                f"relative depth {low:.2f}–{high:.2f}; {band.share:.0%} of the effect (asked: {band.wanted:.0%})",
                f"{level} intervals: first {a}–{b}, last {c}–{d}",
            ],
            fontSize=12,
            subtitleFontSize=11,
            anchor="start",
        )
    )
