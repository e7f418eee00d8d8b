"""The effects of an intervention: layer × head or layer × offset, each beside its control; bars for sets of heads."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import altair as alt
from jaxtyping import Float
from torch import Tensor

from icl_kernel_lens.plots.figure import Figure
from icl_kernel_lens.plots.head_map import SIDE

if TYPE_CHECKING:
    from icl_kernel_lens.results.patch_effects import PatchEffects

SCHEME = "blueorange"
"""Diverging around 0, and told apart by the colour-blind."""
AXIS = {"head": "head", "kv_head": "key-value head"}
MANY, MOST = 6, 12
"""Above so many offsets, only so many heads are drawn, against the offset."""


def effect_map(effects: PatchEffects) -> Figure:
    """Mean effects on the label logit difference, one map an offset, and the same of each control.

    All maps share one colour scale, symmetric around 0; cells that were not run, or could not be, are crossed out. Layers as a whole are
    drawn against the offset from the label; sets of heads as bars with their intervals.
    """
    run = effects.run
    subtitle = [
        f"{run.model} on {run.prompts.task}: {len(effects.values)} prompts of {run.prompts.demos} demonstrations; "
        "change of the label logit difference",
    ]
    if effects.sample is not None:
        subtitle.append(
            f"to first order; correlation with exact effects of {len(effects.sample.cells)} random cells "
            f"{effects.sample.correlation:.2f}"
            + (
                ""
                if effects.largest is None
                else f", exact ÷ estimate of the largest {effects.largest.ratio:.2f}"
            )
        )
    else:
        subtitle.append("layers and heads from 0")
    chart = _bars(effects) if effects.parts == "set" else _maps(effects)
    title = f"{effects.what.replace('_', ' ')}: {effects.title}"
    chart = (
        chart.properties(title=alt.TitleParams(title, subtitle=subtitle, anchor="start"))
        .configure_view(stroke=None)
        .configure_axis(labelFontSize=11, titleFontSize=12)
    )
    return Figure(chart, f"{effects.what}: {run.model} on {run.prompts.task}")


def _largest(effects: PatchEffects) -> float:
    means = [effects.mean(), *effects.control_means().values()]
    return max([float(m.nan_to_num(0, 0, 0).abs().max()) for m in means] + [1e-6])


def _maps(effects: PatchEffects) -> alt.HConcatChart | alt.VConcatChart:
    low, high = effects.interval()
    largest = _largest(effects)
    named = {"": effects.mean(), **effects.control_means()}
    if effects.parts != "whole" and len(effects.offsets) > MANY:
        return _by_head(effects, named, largest)
    rows: list[Any] = []
    for name, means in named.items():
        own = not name
        maps = []
        by_offset = effects.parts != "whole" and means.shape[2] > 1
        for at in range(means.shape[2]) if by_offset else [0]:
            data = _cells(effects, means, at if effects.parts != "whole" else None, low, high, own=own)
            title = (
                "its control: " + name.replace("_", " ")
                if name
                else "the intervention" * bool(effects.controls)
            )
            title = f"offset {effects.offsets[at]}" + (f", {title}" if name else "") if by_offset else title
            maps.append(_map(effects, data, title, largest))
        rows.append(alt.concat(*maps, columns=6) if len(maps) > 1 else maps[0])
    wide = effects.parts == "whole" or len(effects.offsets) == 1
    return alt.hconcat(*rows) if wide else alt.vconcat(*rows)


def _by_head(
    effects: PatchEffects, named: dict[str, Float[Tensor, "layer part offset"]], largest: float
) -> alt.HConcatChart:
    """The heads with the largest effects against the offset."""
    size = named[""].nan_to_num(0, 0, 0).abs().amax(-1)
    order = size.flatten().argsort(descending=True)[:MOST].tolist()
    heads = [divmod(at, size.shape[1]) for at in order]
    names = [effects.part_name(layer, part) for layer, part in heads]
    charts = []
    for name, means in named.items():
        data = [
            {"y": label, "x": offset, "name": f"{label}, {offset}", "effect": _finite(means[layer, part, at])}
            for label, (layer, part) in zip(names, heads, strict=True)
            for at, offset in enumerate(effects.offsets)
        ]
        base = alt.Chart(alt.Data(values=data)).encode(
            x=alt.X("x:O", title=None, sort=list(effects.offsets), axis=alt.Axis(labelAngle=270)),
            y=alt.Y("y:O", title=AXIS[effects.parts], sort=names),
            tooltip=["name:N", alt.Tooltip("effect:Q", format=".3~g")],
        )
        scale = alt.Scale(scheme=SCHEME, domain=[-largest, largest], domainMid=0)
        cells = base.mark_rect(invalid=None).encode(
            color=alt.Color("effect:Q", scale=scale, legend=alt.Legend(format=".2~g", gradientLength=120))
        )
        absent = base.transform_filter("!isValid(datum.effect)").mark_text(text="×", color="#999")
        title = "its control: " + name.replace("_", " ") if name else "largest effects"
        charts.append(
            alt.layer(cells, absent).properties(
                width=18 * len(effects.offsets),
                height=22 * len(heads),
                title=alt.TitleParams(title, fontSize=12),
            )
        )
    return alt.hconcat(*charts)


def _cells(
    effects: PatchEffects,
    means: Float[Tensor, "layer part offset"],
    at: int | None,
    low: Float[Tensor, "layer part offset"],
    high: Float[Tensor, "layer part offset"],
    *,
    own: bool,
) -> list[dict[str, Any]]:
    """One row a cell; `at=None` sets the offset along the axis."""
    layers, parts, offsets = means.shape
    rows = []
    for layer in range(layers):
        for part in range(parts):
            for offset in range(offsets) if at is None else [at]:
                value = float(means[layer, part, offset])
                row: dict[str, Any] = {
                    "layer": layer,
                    "x": part if at is not None else effects.offsets[offset],
                    "name": f"{effects.part_name(layer, part)}, offset {effects.offsets[offset]}",
                    "effect": value if math.isfinite(value) else None,
                }
                if own and math.isfinite(value):
                    row["low"], row["high"] = (
                        _finite(low[layer, part, offset]),
                        _finite(high[layer, part, offset]),
                    )
                rows.append(row)
    return rows


def _finite(x: Tensor) -> float | None:
    value = float(x)
    return value if math.isfinite(value) else None


def _map(effects: PatchEffects, data: list[dict[str, Any]], title: str, largest: float) -> alt.LayerChart:
    layers = effects.values.shape[1]
    columns = len({row["x"] for row in data})
    cell = max(9, min(42, SIDE // max(layers, columns)))
    step = max(1, max(layers, columns) // 14)
    x_axis = alt.Axis(labelAngle=0)
    if effects.parts != "whole":
        x_axis = alt.Axis(values=list(range(0, columns, step)), labelAngle=0)
    base = alt.Chart(alt.Data(values=data)).encode(
        x=alt.X(
            "x:O",
            title=AXIS.get(effects.parts, "offset from the label"),
            axis=x_axis,
            sort=None if effects.parts == "whole" else "ascending",
        ),
        y=alt.Y("layer:O", title="layer", axis=alt.Axis(values=list(range(0, layers, step)))),
        tooltip=[
            alt.Tooltip("name:N", title="cell"),
            alt.Tooltip("effect:Q", format=".3~g"),
            alt.Tooltip("low:Q", title="95 % interval from", format=".3~g"),
            alt.Tooltip("high:Q", title="to", format=".3~g"),
        ],
    )
    cells = base.mark_rect(invalid=None).encode(
        color=alt.condition(
            "isValid(datum.effect)",
            alt.Color(
                "effect:Q",
                title="effect",
                scale=alt.Scale(scheme=SCHEME, domain=[-largest, largest], domainMid=0),
                legend=alt.Legend(format=".2~g", gradientLength=120),
            ),
            alt.value("#ffffff"),
        )
    )
    absent = base.transform_filter("!isValid(datum.effect)").mark_text(text="×", color="#999")
    return alt.layer(cells, absent).properties(
        width=cell * columns, height=cell * layers, title=alt.TitleParams(title, fontSize=12)
    )


def _bars(effects: PatchEffects) -> alt.LayerChart:
    low, high = effects.interval()
    named = {"the intervention": effects.mean(), **effects.control_means()}
    rows = []
    for name, means in named.items():
        for part in range(means.shape[1]):
            for at, offset in enumerate(effects.offsets):
                value = float(means[0, part, at])
                own = name == "the intervention"
                rows.append(
                    {
                        "set": effects.part_name(0, part)
                        + (f", {offset}" if len(effects.offsets) > 1 else ""),
                        "kind": name.replace("_", " "),
                        "effect": value if math.isfinite(value) else None,
                        "low": _finite(low[0, part, at]) if own else None,
                        "high": _finite(high[0, part, at]) if own else None,
                    }
                )
    kinds = [name.replace("_", " ") for name in named]
    colours = ["#0072B2", "#999999", "#E69F00"]
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("set:N", title=None, sort=None, axis=alt.Axis(labelLimit=300)),
        yOffset=alt.YOffset("kind:N", sort=kinds),
    )
    bars = base.mark_bar().encode(
        x=alt.X("effect:Q", title="change of the label logit difference"),
        color=alt.Color(
            "kind:N", sort=kinds, title=None, scale=alt.Scale(domain=kinds, range=colours[: len(kinds)])
        ),
        tooltip=["set:N", "kind:N", alt.Tooltip("effect:Q", format=".3~g")],
    )
    edges = base.mark_rule(color="#222").encode(x=alt.X("low:Q"), x2="high:Q")
    return alt.layer(bars, edges).properties(width=2 * SIDE)
