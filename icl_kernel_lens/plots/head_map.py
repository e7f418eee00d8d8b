"""The layer × head map of a score, its strongest control beside it, and the chosen head's weights below."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import altair as alt
from jaxtyping import Float
from torch import Tensor

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.plots.figure import Figure

if TYPE_CHECKING:
    from icl_kernel_lens.results.head_scores import HeadScores, ShownDemos

LABEL_COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"]
"""Okabe and Ito's palette, told apart by the colour-blind."""
SCHEME = "viridis"
DIGITS = 4
"""Digits of a weight in the figure: packed as text, they make a page twenty times smaller."""
SIDE = 300


def head_map(scores: HeadScores) -> Figure:
    """A score over layers and heads beside the same map of its strongest control.

    Clicking a head on either map shows, below, its kernel weights over the demonstrations of a prompt,
    coloured by label. Unscored heads are left grey. Both maps share one colour scale.
    """
    rows = _head_rows(scores)
    values = [r[key] for r in rows for key in ("value", "control") if r.get(key) is not None]
    domain = [min(values, default=0.0), max(values, default=1.0)]
    if domain[0] == domain[1]:
        domain = [domain[0] - 0.5, domain[1] + 0.5]
    best = scores.best() if not scores.mean().isnan().all() else HeadRef(0, 0)
    maps = [_map(scores, "value", scores.name.replace("_", " "), domain)]
    if scores.controls:
        maps.append(_map(scores, "control", "its strongest control", domain))
    parts: list[alt.HConcatChart | alt.LayerChart] = [alt.hconcat(*maps)]
    data = {"heads": rows}
    if scores.shown is not None and scores.shown.weights.numel():
        parts.append(_demo_bars(scores.shown))
        data["demos"] = _demo_rows(scores.shown)
    framed = "with the largest mean"
    if scores.controls:
        above = scores.above_control().nan_to_num(nan=-math.inf).max() > 0
        framed = "furthest above its control" if above else "nearest to its control; none is above"
    run = scores.run
    title = f"{scores.title[0].upper()}{scores.title[1:]}"
    chart = (
        alt.vconcat(*parts, datasets=data)
        .properties(
            title=alt.TitleParams(
                title,
                subtitle=[
                    f"{run.model} on {run.prompts.task}: {len(scores.values)} prompts of "
                    f"{run.prompts.demos} demonstrations; {scores.unit}"
                    + (f"; pooling {scores.settings['pooling']}" if "pooling" in scores.settings else ""),
                    f"framed: the head {framed}; layers and heads from 0",
                ],
                anchor="start",
            )
        )
        .configure_view(stroke=None)
        .configure_axis(labelFontSize=11, titleFontSize=12)
        .resolve_scale(color="independent")
    )
    return Figure(_with_pick(chart, best, len(maps)), f"{scores.name}: {run.model} on {run.prompts.task}")


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
    return None if math.isnan(x) else round(x, 4)


def _head_rows(scores: HeadScores) -> list[dict[str, Any]]:
    """One row per head: its score, interval, strongest control and packed weights."""
    mean, (low, high) = scores.mean(), scores.interval()
    control, names = scores.strongest_control() if scores.controls else (None, None)
    rows = []
    for layer in range(mean.shape[0]):
        for head in range(mean.shape[1]):
            row: dict[str, Any] = {
                "layer": layer,
                "head": head,
                "name": str(HeadRef(layer, head)),
                "value": _finite(mean[layer, head].item()),
                "low": _finite(low[layer, head].item()),
                "high": _finite(high[layer, head].item()),
            }
            if control is not None and names is not None:
                row["control"] = _finite(control[layer, head].item())
                row["control_name"] = names[layer][head].replace("_", " ")
            if scores.shown is not None:
                row["w"] = _pack(scores.shown.weights[:, layer, head])
            rows.append(row)
    return rows


def _pack(weights: Float[Tensor, "shown demo"]) -> str:
    """Kernel weights (over their sum) of all shown prompts, as fixed-width digits."""
    share = (weights / weights.sum(-1, keepdim=True)).nan_to_num(nan=0.0, posinf=0.0)
    top = 10**DIGITS - 1
    return "".join(f"{round(x * top):0{DIGITS}d}" for x in share.clamp(0, 1).flatten().tolist())


def _demo_rows(shown: ShownDemos) -> list[dict[str, Any]]:
    """One row per shown prompt and demonstration."""
    rows = []
    demos = shown.demo_labels.shape[1]
    for prompt, labels in enumerate(shown.demo_labels.tolist()):
        words = shown.label_words[prompt]
        for i, label in enumerate(labels):
            text = shown.texts[prompt][i]
            rows.append(
                {
                    "key": prompt * demos + i,
                    "label": words[label].strip(),
                    "rank": label,
                    "text": text if len(text) <= 200 else text[:199] + "…",
                    "answer": words[int(shown.answers[prompt])].strip(),
                }
            )
    return rows


def _map(scores: HeadScores, field: str, title: str, domain: list[float]) -> alt.LayerChart:
    layers, heads = scores.mean().shape
    cell = max(9, min(42, SIDE // max(layers, heads)))
    tooltip: list[Any] = [
        alt.Tooltip("name:N", title="head"),
        alt.Tooltip("value:Q", title=scores.name.replace("_", " "), format=".3f"),
        alt.Tooltip("low:Q", title="95 % interval from", format=".3f"),
        alt.Tooltip("high:Q", title="to", format=".3f"),
    ]
    if scores.controls:
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
    number = 0 if field == "value" else 1
    return alt.layer(cells.properties(name=f"map_{number}"), frame).properties(
        width=cell * heads, height=cell * layers, title=alt.TitleParams(title, fontSize=12)
    )


def _demo_bars(shown: ShownDemos) -> alt.LayerChart:
    count, demos = shown.demo_labels.shape
    prompt = alt.param(
        name="prompt",
        value=0,
        bind=alt.binding_select(options=list(range(count)), name="prompt ") if count > 1 else alt.Undefined,
    )
    first = f"{DIGITS} * (prompt * {demos} + datum.i)"
    top = 10**DIGITS - 1
    classes = int(shown.demo_labels.max()) + 1
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
