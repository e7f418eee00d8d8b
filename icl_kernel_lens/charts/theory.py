"""Figures of the theory: distance against demonstrations, kernels' variants, the posterior, experiments.

Each takes numbers and labels; what they are numbers of is said by their callers.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from icl_kernel_lens.charts.figure import Figure, alt, finite

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
"""Okabe and Ito's, told apart by the colour-blind; shapes and dashes say the same again."""
DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 2], [1, 3], [10, 4])
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "stroke")
WIDTH, HEIGHT = 270, 210
WRAP = 150
"""Characters of a subtitle's line."""
EXACT = 1e-9
"""Distances below this are drawn as exact."""


class Series(NamedTuple):
    """One line: a number, and perhaps its interval, at each x."""

    name: str
    x: Sequence[float] | Sequence[str]
    y: Float[Tensor, " x"]
    low: Float[Tensor, " x"] | None = None
    high: Float[Tensor, " x"] | None = None

    def rows(self) -> list[dict[str, Any]]:
        """One row an x with a finite y."""
        columns = {"y": self.y, "low": self.low, "high": self.high}
        numbers = {name: column.tolist() for name, column in columns.items() if column is not None}
        rows = [
            {"series": self.name, "x": x} | {name: finite(column[i]) for name, column in numbers.items()}
            for i, x in enumerate(self.x)
        ]
        return [row for row in rows if row["y"] is not None]


def _figure(chart: Any, title: str, subtitle: Sequence[str], name: str, *, wrap: int = WRAP) -> Figure:
    lines = [line for part in subtitle for line in textwrap.wrap(part, wrap)]
    return Figure.styled(chart, title, lines, name)


def _panel(*layers: Any, title: str = "") -> alt.LayerChart:
    return alt.layer(*layers).properties(
        width=WIDTH,
        height=HEIGHT,
        title=alt.TitleParams(title, fontSize=12, fontWeight="normal", anchor="start"),
    )


def _choice(names: Sequence[str], values: Sequence[Any]) -> alt.Scale:
    """One value a name, in turn."""
    return alt.Scale(domain=list(names), range=[values[i % len(values)] for i in range(len(names))])


def _lines(lines: Sequence[Series], x: alt.X, y: alt.Y, axis: str, *, offset: bool = False) -> list[Any]:
    """Layers of lines with points and intervals; `axis` is y's title, for all layers."""
    rows = [row for line in lines for row in line.rows()]
    names = [line.name for line in lines]
    legend = alt.Legend(
        orient="top",
        columns=3,
        labelLimit=420,
        symbolSize=90,
        symbolOpacity=1,
        symbolStrokeWidth=0,
        symbolDash=[1, 0],
    )
    colour = alt.Color("series:N", title=None, sort=names, scale=_choice(names, COLOURS), legend=legend)
    shape = alt.Shape("series:N", title=None, sort=names, scale=_choice(names, SHAPES))
    base = alt.Chart(alt.Data(values=rows)).encode(x=x, color=colour)
    if offset:
        base = base.encode(xOffset=alt.XOffset("series:N", sort=names))
    tips = [
        alt.Tooltip("series:N"),
        alt.Tooltip("x:N"),
        *(alt.Tooltip(f"{n}:Q", format=".4g") for n in ("y", "low", "high")),
    ]
    span = base.mark_rule(opacity=0.45 if len(rows) < 60 else 0.25, strokeWidth=1.5).encode(
        y=alt.Y("low:Q", title=axis), y2="high:Q"
    )
    points = base.mark_point(filled=True, size=38, opacity=1).encode(y=y, shape=shape, tooltip=tips)
    layers = [span.transform_filter("isValid(datum.low)"), points]
    if not offset:
        dash = alt.StrokeDash("series:N", legend=None, scale=_choice(names, DASHES))
        layers.insert(0, base.mark_line(strokeWidth=1.8).encode(y=y, strokeDash=dash))
    return layers


def _log_distance(lines: Sequence[Series], title: str) -> alt.Y:
    rows = [row for line in lines for row in line.rows()]
    seen = [v for row in rows for v in (row["y"], row.get("low"), row.get("high")) if v and v > 0]
    return alt.Y(
        "y:Q",
        title=title,
        scale=alt.Scale(
            type="log", domain=[min(seen, default=1) / 1.2, max(seen, default=1) * 1.2], nice=False
        ),
        axis=alt.Axis(values=[a * 10.0**b for b in range(-4, 2) for a in (1, 2, 5)], format=".2~g"),
    )


def theorem_figure(
    l1: Sequence[Series],
    linf: Sequence[Series],
    agree: Sequence[Series],
    *,
    vacuous: float | None,
    subtitle: Sequence[str],
    name: str,
) -> Figure:
    """Distances and agreement of kernel regression and exact Bayes against n.

    In L∞, from 1 to `vacuous` (the largest value of a bound) an area is grey: a bound there says nothing.
    """
    x = alt.X(
        "x:Q",
        title="demonstrations n",
        scale=alt.Scale(type="log", base=2, nice=False, padding=10),
        axis=alt.Axis(values=[float(n) for n in l1[0].x], format="d", grid=False),
    )
    left, distance, same = "L1 distance to exact Bayes", "L∞ distance to exact Bayes", "same first answer"
    middle, title = _lines(linf, x, _log_distance(linf, distance), distance), "Eq. 7's distance"
    if vacuous is not None:
        title += ", and its term that falls with n"
        empty = alt.Chart(alt.Data(values=[{"from": 1, "to": max(1.0, vacuous) * 1.2}]))
        low = alt.Y("from:Q", title=distance)
        middle = [
            empty.mark_rect(color="#999", opacity=0.18).encode(y=low, y2="to:Q"),
            empty.mark_text(text="says nothing here", color="#555", align="right", dx=-6, dy=-8).encode(
                x=alt.value(WIDTH), y=low
            ),
            alt.layer(*middle),
        ]
    share = alt.Y("y:Q", title=same, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=5))
    panels = (
        _panel(
            *_lines(l1, x, _log_distance(l1, left), left), title="Distance (the paper's norm is not stated)"
        ),
        _panel(*middle, title=title),
        _panel(*_lines(agree, x, share, same), title="Agreement with exact Bayes"),
    )
    chart = alt.hconcat(*panels, spacing=26).resolve_scale(
        color="independent", shape="independent", strokeDash="independent"
    )
    return _figure(chart, "Kernel regression and exact Bayesian prediction", subtitle, name)


def variants_figure(
    variants: Sequence[str],
    tasks: Sequence[int],
    distance: Float[Tensor, "variant task"],
    readouts: Sequence[str],
    *,
    colours: Sequence[str],
    subtitle: str,
    name: str,
) -> Figure:
    """L1 distance to P(Y | x, θ) with infinitely many demonstrations, one mark a task; exact variants are at the left."""
    rows = [
        {"variant": variant, "task": task, "y": max(y, 1e-17), "readout": readout}
        for variant, readout, row in zip(variants, readouts, distance.tolist(), strict=True)
        for task, y in zip(tasks, row, strict=True)
        if math.isfinite(y)
    ]
    gone = [variants[i] for i in (~distance.isfinite()).any(1).nonzero().flatten().tolist()]
    title = "L1 distance to P(Y | x, θ) as n → ∞, mean over the task's inputs"
    order = list(variants)
    marks = (
        alt.Chart(alt.Data(values=rows))
        .mark_point(filled=True, size=70, opacity=0.75)
        .encode(
            x=alt.X(
                "y:Q",
                title=title,
                scale=alt.Scale(type="log"),
                axis=alt.Axis(format=".0e", tickCount=8),
            ),
            y=alt.Y(
                "variant:N",
                title=None,
                sort=order,
                scale=alt.Scale(domain=order),
                axis=alt.Axis(labelLimit=380),
            ),
            color=alt.Color(
                "readout:N", title=None, scale=_choice(colours, COLOURS), legend=alt.Legend(orient="top")
            ),
            shape=alt.Shape("readout:N", title=None, scale=_choice(colours, SHAPES)),
            tooltip=["variant:N", "task:O", alt.Tooltip("y:Q", format=".3g")],
        )
    )
    rule = (
        alt.Chart(alt.Data(values=[{"y": EXACT}]))
        .mark_rule(strokeDash=[4, 4], color="#555")
        .encode(x=alt.X("y:Q", title=title))
    )
    words = (
        alt.Chart(alt.Data(values=[{"variant": variant} for variant in gone]))
        .mark_text(text="no number in float64 for some task", color="#777", align="left", dx=6)
        .encode(x=alt.value(0), y=alt.Y("variant:N", sort=order))
    )
    chart = (
        alt.layer(rule, marks, *([words] if gone else []))
        .resolve_scale(color="shared", shape="shared")
        .properties(width=460, height=22 * len(order) + 20)
    )
    return _figure(chart, "Which operator, moment and readout make the identity exact", [subtitle], name)


def concentration_figure(
    odds: Sequence[Series],
    divergences: Float[Tensor, "task rival"],
    threshold: float,
    *,
    subtitle: str,
    name: str,
) -> Figure:
    """Log-odds of the true task against n, and each pair's divergence beside A2's threshold."""
    x = alt.X(
        "x:Q",
        title="demonstrations n",
        axis=alt.Axis(values=[float(n) for n in odds[0].x], format="d", grid=False),
    )
    nats = "log-odds of the true task (nats)"
    left = _panel(*_lines(odds, x, alt.Y("y:Q", title=nats), nats), title="The posterior")
    chart = alt.hconcat(left, _divergences(divergences, threshold), spacing=40).resolve_scale(
        color="independent", shape="independent"
    )
    return _figure(chart, "How demonstrations tell the task", [subtitle], name, wrap=105)


def _divergences(divergences: Float[Tensor, "task rival"], threshold: float) -> alt.LayerChart:
    """One mark a pair of tasks, infinite ones above all others."""
    kl = "KL divergence (nats)"
    numbers = divergences[divergences.isfinite()].tolist()
    largest = max([*numbers, threshold if math.isfinite(threshold) else 1.0])
    pairs = [
        {
            "pair": f"{i} → {j}",
            "task": i,
            "kl": finite(value),
            "y": value if math.isfinite(value) else 1.15 * largest,
            "size": "finite" if math.isfinite(value) else "infinite",
        }
        for i, row in enumerate(divergences.tolist())
        for j, value in enumerate(row)
        if i != j
    ]
    sizes = ("finite", "infinite")
    marks = (
        alt.Chart(alt.Data(values=pairs))
        .mark_point(filled=True, size=55, opacity=0.7)
        .encode(
            x=alt.X("task:O", title="task θ (a mark for each other task)", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("y:Q", title=kl, scale=alt.Scale(domainMin=0)),
            shape=alt.Shape("size:N", title=None, scale=_choice(sizes, ("circle", "triangle-up"))),
            color=alt.Color(
                "size:N", title=None, scale=_choice(sizes, COLOURS), legend=alt.Legend(orient="top")
            ),
            tooltip=["pair:N", alt.Tooltip("kl:Q", format=".4g")],
        )
    )
    layers: list[Any] = [marks]
    if math.isfinite(threshold):
        line = alt.Chart(alt.Data(values=[{"y": threshold, "text": "threshold ln 1/(ε_r ε_d)"}]))
        at = alt.Y("y:Q", title=kl)
        text = line.mark_text(align="left", dx=4, dy=-7, color="#333").encode(
            x=alt.value(0), y=at, text="text:N"
        )
        layers += [line.mark_rule(strokeDash=[4, 4], color="#333").encode(y=at), text]
    return _panel(*layers, title="A2: are tasks told apart?")


def experiment_figure(
    axis: str,
    settings: Sequence[float] | Sequence[str],
    panels: Sequence[tuple[str, Sequence[Series]]],
    *,
    near: Sequence[bool],
    title: str,
    subtitle: str,
    name: str,
) -> Figure:
    """One panel a measure, against the settings; `near` says of each whether its axis may leave 0 out."""
    words = any(isinstance(setting, str) for setting in settings)
    x = _setting_words(axis, settings) if words else _setting_numbers(axis, [float(s) for s in settings])
    drawn = []
    for (measure, lines), away in zip(panels, near, strict=True):
        y = alt.Y(
            "y:Q",
            title=measure,
            scale=alt.Scale(zero=not away),
            axis=alt.Axis(tickCount=5, format=".2~g"),
        )
        drawn.append(_panel(*_lines(lines, x, y, measure, offset=words)))
    columns = 2 if len(drawn) == 4 else 3
    return _figure(alt.concat(*drawn, columns=columns, spacing=22), title, [subtitle], name, wrap=110)


def _setting_words(axis: str, settings: Sequence[Any]) -> alt.X:
    return alt.X(
        "x:N", title=axis, sort=[str(s) for s in settings], axis=alt.Axis(labelAngle=-25, labelLimit=160)
    )


def _setting_numbers(axis: str, settings: Sequence[float]) -> alt.X:
    """On a logarithmic axis where they span more than a factor of 10; whole numbers are each marked."""
    whole = all(setting == int(setting) for setting in settings)
    scale = alt.Scale(padding=10)
    if min(settings) > 0 and max(settings) / min(settings) > 10:
        scale = alt.Scale(type="log", base=2 if whole else 10, nice=False, padding=10)
    marks = alt.Axis(format=".2~g", tickCount=6, grid=False)
    if whole:
        marks = alt.Axis(values=list(settings), format="d", grid=False)
    return alt.X("x:Q", title=axis, scale=scale, axis=marks)
