"""The head map shows a score by layer and head, its strongest control beside it, and a head's weights below."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import altair as alt
from jaxtyping import Float
from torch import Tensor

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.charts.figure import Figure

LABEL_COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"]
"""Okabe and Ito's palette, told apart by the colour-blind."""
SCHEME = "viridis"
DIGITS = 4
"""Digits of a weight in the figure: packed as text, they make a page twenty times smaller."""
SIDE = 300


def head_map_figure(
    rows: Sequence[Mapping[Hashable, Any]],
    *,
    score: str,
    title: str,
    of: str,
    measured: str,
    weights: Float[Tensor, "shown layer head demo"] | None = None,
    demos: Sequence[Mapping[str, Any]] = (),
) -> Figure:
    """Draw a score over layers and heads beside the same map of its strongest control.

    Clicking a head on either map shows, below, its kernel weights over the demonstrations of a prompt,
    coloured by label. Unscored heads are left grey. Both maps share one colour scale.

    Args:
        rows: One a head, the one to frame first: head, the score under its own name, low, high; and with a control,
            control, strongest_control (its name) and above_control.
        score: The name of the score.
        title: What the score is.
        of: The model and the task.
        measured: How many prompts of which kind, and in what unit.
        weights: Attention of the first prompts on their demonstrations, not renormalised.
        demos: One row a shown prompt and demonstration, in that order: label, rank (the class), text, answer.
    """
    controlled = "control" in rows[0]
    above = rows[0]["above_control" if controlled else score]
    first = HeadRef(0, 0) if math.isnan(above) else HeadRef.of(rows[0]["head"])
    heads = _head_rows(rows, score, weights)
    shape = 1 + max(row["layer"] for row in heads), 1 + max(row["head"] for row in heads)
    values = [row[key] for row in heads for key in ("value", "control") if row.get(key) is not None]
    domain = [min(values, default=0.0), max(values, default=1.0)]
    if domain[0] == domain[1]:
        domain = [domain[0] - 0.5, domain[1] + 0.5]
    words = score.replace("_", " ")
    fields = {"value": words} | ({"control": "its strongest control"} if controlled else {})
    maps = [_map(shape, words, field, fields, domain) for field in fields]
    parts: list[alt.HConcatChart | alt.LayerChart] = [alt.hconcat(*maps)]
    data: dict[str, Any] = {"heads": heads}
    if weights is not None and weights.numel():
        parts.append(_demo_bars(len(weights), weights.shape[-1], 1 + max(row["rank"] for row in demos)))
        data["demos"] = [{"key": key, **row} for key, row in enumerate(demos)]
    framed = "with the largest mean"
    if controlled:
        framed = "furthest above its control" if above > 0 else "nearest to its control; none is above"
    chart = (
        alt.vconcat(*parts, datasets=data)
        .properties(
            title=alt.TitleParams(
                f"{title[:1].upper()}{title[1:]}",
                subtitle=[
                    f"{of}: {measured}",
                    f"framed: the head {framed}; layers and heads from 0",
                ],
                anchor="start",
            )
        )
        .configure_view(stroke=None)
        .configure_axis(labelFontSize=11, titleFontSize=12)
        .resolve_scale(color="independent")
    )
    return Figure(_with_pick(chart, first, len(maps)), f"{score}: {of}")


def _with_pick(chart: alt.VConcatChart, first: HeadRef, maps: int) -> alt.TopLevelMixin:
    """Let a click on any of the maps choose the head.

    One parameter that lists the maps as its views; Altair can only attach one parameter per chart.
    """
    spec = chart.to_dict()
    pick = {
        "name": "pick",
        "select": {"type": "point", "fields": ["layer", "head"], "toggle": False, "clear": False},
        "value": [{"layer": first.layer, "head": first.head}],
        "views": [f"map_{i}" for i in range(maps)],
    }
    spec["params"] = [pick, *spec.get("params", [])]
    return _Spec(spec)


class _Spec(alt.TopLevelMixin):
    """A finished specification under Altair's interface: `to_dict` gives it back."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec

    def to_dict(self, *_: Any, **__: Any) -> dict[str, Any]:
        return self._spec


def _finite(x: float) -> float | None:
    return round(x, 4) if math.isfinite(x) else None


def _head_rows(
    rows: Sequence[Mapping[Hashable, Any]],
    score: str,
    weights: Float[Tensor, "shown layer head demo"] | None,
) -> list[dict[str, Any]]:
    """One row a head, by layer and head: its score, interval, strongest control and packed weights."""
    found = []
    for row in rows:
        ref = HeadRef.of(row["head"])
        one: dict[str, Any] = {
            **ref._asdict(),
            "name": str(ref),
            "value": _finite(row[score]),
            "low": _finite(row["low"]),
            "high": _finite(row["high"]),
        }
        if "control" in row:
            one["control"] = _finite(row["control"])
            one["control_name"] = row["strongest_control"].replace("_", " ")
        if weights is not None:
            one["w"] = _pack(weights[:, ref.layer, ref.head])
        found.append(one)
    return sorted(found, key=lambda one: (one["layer"], one["head"]))


def _pack(weights: Float[Tensor, "shown demo"]) -> str:
    """Kernel weights (over their sum) of all shown prompts, as fixed-width digits."""
    share = (weights / weights.sum(-1, keepdim=True)).nan_to_num(nan=0.0, posinf=0.0)
    top = 10**DIGITS - 1
    return "".join(f"{round(x * top):0{DIGITS}d}" for x in share.clamp(0, 1).flatten().tolist())


def _map(
    shape: tuple[int, int], score: str, field: str, fields: Mapping[str, str], domain: list[float]
) -> alt.LayerChart:
    layers, heads = shape
    cell = max(9, min(42, SIDE // max(layers, heads)))
    tooltip: list[Any] = [
        alt.Tooltip("name:N", title="head"),
        alt.Tooltip("value:Q", title=score, format=".3f"),
        alt.Tooltip("low:Q", title="95 % interval from", format=".3f"),
        alt.Tooltip("high:Q", title="to", format=".3f"),
    ]
    if "control" in fields:
        tooltip += [
            alt.Tooltip("control:Q", title="strongest control", format=".3f"),
            alt.Tooltip("control_name:N", title="which"),
        ]
    step = max(1, max(layers, heads) // 14)
    base = alt.Chart(alt.NamedData("heads")).encode(
        x=alt.X("head:O", title="head", axis=alt.Axis(values=list(range(0, heads, step)), labelAngle=0)),
        y=alt.Y("layer:O", title="layer", axis=alt.Axis(values=list(range(0, layers, step)))),
    )
    cells = base.mark_rect().encode(
        color=alt.condition(
            f"isValid(datum.{field})",
            alt.Color(
                f"{field}:Q",
                title=None,
                scale=alt.Scale(scheme=SCHEME, domain=domain),
                legend=alt.Legend(format=".2f", gradientLength=120),
            ),
            alt.value("#d9d9d9"),
        ),
        tooltip=tooltip,
    )
    frame = base.transform_filter({"param": "pick", "empty": False}).mark_rect(
        fill=None, stroke="#d7191c", strokeWidth=2.5
    )
    number = list(fields).index(field)
    return alt.layer(cells.properties(name=f"map_{number}"), frame).properties(
        width=cell * heads, height=cell * layers, title=alt.TitleParams(fields[field], fontSize=12)
    )


def _demo_bars(count: int, demos: int, classes: int) -> alt.LayerChart:
    """The chosen head's weights on the demonstrations of the chosen prompt."""
    prompt = alt.param(
        name="prompt",
        value=0,
        bind=alt.binding_select(options=list(range(count)), name="prompt ") if count > 1 else alt.Undefined,
    )
    first = f"{DIGITS} * (prompt * {demos} + datum.i)"
    top = 10**DIGITS - 1
    base = (
        alt.Chart(alt.NamedData("heads"))
        .transform_filter({"param": "pick", "empty": False})
        .transform_calculate(i=f"sequence(0, {demos})")
        .transform_flatten(["i"])
        .transform_calculate(
            weight=f"toNumber(substring(datum.w, {first}, {first} + {DIGITS})) / {top}",
            key=f"prompt * {demos} + datum.i",
        )
        .transform_lookup(
            lookup="key",
            from_=alt.LookupData(
                alt.NamedData("demos"), key="key", fields=["label", "rank", "text", "answer"]
            ),
        )
        .encode(
            x=alt.X("i:O", title="demonstration, in reading order", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("weight:Q", title="kernel weight", scale=alt.Scale(domainMin=0)),
            color=alt.Color(
                "rank:N",
                scale=alt.Scale(
                    domain=list(range(classes)),
                    range=[LABEL_COLOURS[c % len(LABEL_COLOURS)] for c in range(classes)],
                ),
                legend=None,
            ),
            tooltip=[
                alt.Tooltip("name:N", title="head"),
                alt.Tooltip("i:O", title="demonstration"),
                alt.Tooltip("text:N", title="text"),
                alt.Tooltip("label:N", title="label"),
                alt.Tooltip("weight:Q", title="kernel weight", format=".3f"),
                alt.Tooltip("answer:N", title="compared with"),
            ],
        )
    )
    words = base.mark_text(angle=270 + 30 * (demos <= 20), align="left", dx=4, dy=-3, fontSize=10).encode(
        text="label:N", color=alt.value("#333")
    )
    title = (
        "'Weights of L' + pick.layer[0] + 'H' + pick.head[0] + ' on the demonstrations of one prompt, each "
        "under its label; the answer compared with is ' + data('demos')[prompt * " + str(demos) + "].answer"
    )
    return (
        alt.layer(base.mark_bar(), words)
        .add_params(prompt)
        .properties(
            width=2 * SIDE + 40,
            height=140,
            title=alt.TitleParams(alt.ExprRef(title), fontSize=12, anchor="start", offset=40),
        )
    )
