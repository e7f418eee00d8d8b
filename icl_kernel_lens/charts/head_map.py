"""The head map shows a score by layer and head, its strongest control beside it, and a head's weights below."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.charts.figure import Figure, alt, finite

LABEL_COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"]
"""Okabe and Ito's palette, told apart by the colour-blind."""
SCHEME, GREY = "viridis", "#d9d9d9"
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
    least_attention: float = 0.0,
) -> Figure:
    """Draw a score over layers and heads beside the same map of its strongest control.

    Clicking a head on either map shows, below, its attention on the demonstrations of a prompt, coloured by label, on
    one scale for all heads. Unscored heads and those that hardly read the labels are grey. Both maps share one colour scale.

    Args:
        rows: One a head, the one to frame first: head, the score under its own name, low, high; and with a control,
            control, strongest_control (its name) and above_control_low; label_attention, if it is known.
        score: The name of the score.
        title: What the score is.
        of: The model and the task.
        measured: How many prompts of which kind, and in what unit.
        weights: Attention of the first prompts on their demonstrations, not renormalised.
        demos: One row a shown prompt and demonstration, in that order: label, rank (the class), text, answer.
        least_attention: Heads with less label_attention are grey.
    """
    controlled = "control" in rows[0]
    first = HeadRef(0, 0) if math.isnan(rows[0][score]) else HeadRef.of(rows[0]["head"])
    heads = _head_rows(rows, score, weights, least_attention)
    shape = 1 + max(row["layer"] for row in heads), 1 + max(row["head"] for row in heads)
    values = [row[key] for row in heads for key in ("value", "control") if row.get(key) is not None]
    domain = [min(values, default=0.0), max(values, default=1.0)]
    if domain[0] == domain[1]:
        domain = [domain[0] - 0.5, domain[1] + 0.5]
    words = score.replace("_", " ")
    fields = {"value": words} | ({"control": "its strongest control"} if controlled else {})
    parts: list[Any] = [alt.hconcat(*(_map(shape, words, field, fields, domain) for field in fields))]
    data: dict[str, Any] = {"heads": heads}
    if weights is not None and weights.numel():
        most = float(weights.nan_to_num().max()) or 1.0
        classes = 1 + max(row["rank"] for row in demos)
        parts.append(_demo_bars(len(weights), weights.shape[-1], classes, shape[1], most))
        data["demos"] = [{"key": key, **row} for key, row in enumerate(demos)]
    framed = f"with the largest {words}"
    if controlled:
        sure = rows[0]["above_control_low"] > 0
        framed = (
            "most surely above its control"
            if sure
            else "of the best lower bound over its control; none is surely above"
        )
    grey = []
    if not all(row["reads"] for row in heads):
        grey = [f"grey: attention on labels below {least_attention:g}, where a vote is noise"]
    chart = alt.vconcat(*parts, datasets=data).resolve_scale(color="independent")
    # One parameter that lists the maps as its views: a click on any of them chooses the head.
    pick = alt.TopLevelSelectionParameter(
        name="pick",
        select=alt.PointSelectionConfig(type="point", fields=["layer", "head"], toggle=False, clear=False),
        value=[first._asdict()],
        views=[f"map_{number}" for number in range(len(fields))],
    )
    chart.params = [pick, *([] if chart.params is alt.Undefined else chart.params)]
    return Figure.styled(
        chart,
        f"{title[:1].upper()}{title[1:]}",
        [f"{of}: {measured}", f"framed: the head {framed}; layers and heads from 0", *grey],
        f"{score}: {of}",
    )


def _head_rows(
    rows: Sequence[Mapping[Hashable, Any]],
    score: str,
    weights: Float[Tensor, "shown layer head demo"] | None,
    least_attention: float,
) -> list[dict[str, Any]]:
    """One row a head, by layer and head: its score, interval, strongest control, whether it reads the labels, its attention
    on the demonstrations of each prompt shown (`sum`) and how it is shared (`w`)."""
    by_head = {HeadRef.of(row["head"]): row for row in rows}
    numbers = {"value": score, "low": "low", "high": "high", "control": "control"}
    numbers |= {"attention": "label_attention"}
    return [
        {**ref._asdict(), "name": str(ref)}
        | {name: finite(round(row[of], 4)) for name, of in numbers.items() if of in row}
        | ({"control_name": row["strongest_control"].replace("_", " ")} if "control" in row else {})
        | {"reads": not row.get("label_attention", 1.0) < least_attention}
        | ({} if weights is None else _packed(weights[:, ref.layer, ref.head]))
        for ref, row in sorted(by_head.items())
    ]


def _packed(weights: Float[Tensor, "shown demo"]) -> dict[str, Any]:
    """The attention of all shown prompts: its sums, and the kernel weights (over these) as fixed-width digits."""
    share = (weights / weights.sum(-1, keepdim=True)).nan_to_num(nan=0.0, posinf=0.0)
    top = 10**DIGITS - 1
    packed = "".join(f"{round(x * top):0{DIGITS}d}" for x in share.clamp(0, 1).flatten().tolist())
    return {"w": packed, "sum": [round(x, 6) for x in weights.nan_to_num().sum(-1).tolist()]}


def _map(
    shape: tuple[int, int], score: str, field: str, fields: Mapping[str, str], domain: list[float]
) -> alt.LayerChart:
    layers, heads = shape
    cell = max(9, min(42, SIDE // max(layers, heads)))
    step = max(1, max(layers, heads) // 14)
    strongest = [
        alt.Tooltip("control:Q", title="strongest control", format=".3f"),
        alt.Tooltip("control_name:N", title="which"),
    ]
    base = alt.Chart(alt.NamedData("heads")).encode(
        x=alt.X("head:O", title="head", axis=alt.Axis(values=list(range(0, heads, step)), labelAngle=0)),
        y=alt.Y("layer:O", title="layer", axis=alt.Axis(values=list(range(0, layers, step)))),
    )
    # What is no number would else be left out, or drawn as 0.
    cells = base.mark_rect(invalid=None).encode(
        color=alt.condition(
            f"!isValid(datum.{field}) || !datum.reads",
            alt.value(GREY),
            alt.Color(
                f"{field}:Q",
                title=None,
                scale=alt.Scale(scheme=SCHEME, domain=domain),
                legend=alt.Legend(format=".2f", gradientLength=120),
            ),
        ),
        tooltip=[
            alt.Tooltip("name:N", title="head"),
            alt.Tooltip("value:Q", title=score, format=".3f"),
            alt.Tooltip("low:Q", title="95 % interval from", format=".3f"),
            alt.Tooltip("high:Q", title="to", format=".3f"),
            *(strongest if "control" in fields else []),
            alt.Tooltip("attention:Q", title="attention on labels", format=".3f"),
        ],
    )
    frame = base.transform_filter({"param": "pick", "empty": False}).mark_rect(
        fill=None, stroke="#d7191c", strokeWidth=2.5
    )
    number = list(fields).index(field)
    return alt.layer(cells.properties(name=f"map_{number}"), frame).properties(
        width=cell * heads, height=cell * layers, title=alt.TitleParams(fields[field], fontSize=12)
    )


def _demo_bars(count: int, demos: int, classes: int, heads: int, most: float) -> alt.LayerChart:
    """The chosen head's attention on the demonstrations of the chosen prompt; `most` ends the axis, whichever head it is."""
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
        .transform_calculate(attention="datum.weight * datum.sum[prompt]")
        .transform_lookup(
            lookup="key",
            from_=alt.LookupData(
                alt.NamedData("demos"), key="key", fields=["label", "rank", "text", "answer"]
            ),
        )
        .encode(
            x=alt.X("i:O", title="demonstration, in reading order", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("attention:Q", title="attention", scale=alt.Scale(domain=[0, most])),
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
                alt.Tooltip("attention:Q", title="attention", format=".3f"),
                alt.Tooltip("weight:Q", title="kernel weight (its share)", format=".3f"),
                alt.Tooltip("answer:N", title="compared with"),
            ],
        )
    )
    words = base.mark_text(angle=270 + 30 * (demos <= 20), align="left", dx=4, dy=-3, fontSize=10).encode(
        text="label:N", color=alt.value("#333")
    )
    title = (
        "'Attention of L' + pick.layer[0] + 'H' + pick.head[0] + ' on the demonstrations of one prompt, ' + "
        f"format(data('heads')[pick.layer[0] * {heads} + pick.head[0]].sum[prompt], '.3f') + ' in all, each under its "
        f"label; the answer compared with is ' + data('demos')[prompt * {demos}].answer"
    )
    return (
        alt.layer(base.mark_bar(), words)
        .add_params(prompt)
        .properties(
            width=2 * SIDE + 40,
            height=140,
            title=alt.TitleParams(alt.ExprRef(title), fontSize=12, anchor="start", offset=8),
        )
    )
