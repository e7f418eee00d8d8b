"""The ablation curves show necessity and sufficiency over the number of heads, beside random sets, floor, ceiling, chance."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from icl_kernel_lens.charts.figure import Figure, alt
from icl_kernel_lens.charts.ranking import KERNEL_HEAD, MARKS

SERIES = {"the located heads": MARKS[KERNEL_HEAD][0], "random sets: median, 95 % of them": "#777777"}
SIDES = {
    "necessity": ("Necessity: label edges of the first k heads cut", "none cut"),
    "sufficiency": ("Sufficiency: those of all other heads cut", "none kept"),
}
"""Title of a panel, and what k = 0 is in it."""
HEIGHT, APART = 230, 0.06
"""Pixels; least distance of two lines' names, as a share of the axis."""
MOST_TICKS = 24
Rows = Sequence[Mapping[Hashable, Any]]


def curves_figure(
    rows: Rows,
    *,
    of: str,
    prompts: int,
    sets: str,
    against: str,
    chance: float,
    restored: Mapping[str, tuple[float, float, float] | None],
) -> Figure:
    """Draw how often the answer is right as the located heads lose their label edges, and as they alone keep them.

    One row a kind of cut. Bars are intervals over prompts; the grey area holds 95 % of the random sets of as many
    heads. `ceiling`: nothing cut. `floor`: the label edges of every head cut. `chance`: always the commonest answer.

    Args:
        rows: The table of the curves: one row a cut, side and k.
        of: The model and the task.
        prompts: How many.
        sets: How many random sets differ, in words.
        against: What right means: "truth" or "model".
        chance: How often always giving the commonest answer is right.
        restored: For each cut, in the order of its rows, the share of ceiling − floor that all heads restore and its
            interval; None: there is too little to be restored.
    """
    panels = []
    for cut, share in restored.items():
        sides = {side: [row for row in rows if (row["cut"], row["side"]) == (cut, side)] for side in SIDES}
        heads = [row["head"] for row in sides["necessity"][1:]]
        levels = _levels(chance, floor=sides["sufficiency"][0]["right"], ceiling=rows[0]["right"])
        panels.append(
            alt.hconcat(
                *(_panel(sides[side], side, heads, against, levels) for side in SIDES), spacing=30
            ).properties(
                title=alt.TitleParams(
                    f"cut edges {cut}: {_says(len(heads), share)}",
                    fontSize=12,
                    fontWeight="normal",
                    anchor="start",
                )
            )
        )
    above = any(chance > row["right"] for row in rows if row["side"] == "sufficiency" and row["k"] == 0)
    what = "the true label" if against == "truth" else "the uncut answer"
    return Figure.styled(
        alt.vconcat(*panels, spacing=24),
        "Are the located heads needed, and are they enough?",
        [
            f"{of}: {prompts} prompts; right means {what}; random sets for each k: {sets} different",
            "chance: always giving the commonest answer"
            + "; it lies above the floor, where the model, reading no label, answers otherwise" * above,
        ],
        f"necessity and sufficiency: {of}",
    )


def _says(count: int, share: tuple[float, float, float] | None) -> str:
    """How much of what labels bring the heads bring by themselves."""
    if share is None:
        return "cutting every label edge takes away too little for a share of it to be said"
    heads = f"the {count} heads alone restore" if count > 1 else "the head alone restores"
    value, low, high = share
    return f"{heads} {value:.0%} ({low:.0%} to {high:.0%}) of ceiling − floor"


def _panel(
    table: Rows, side: str, heads: Sequence[str], against: str, levels: list[alt.Chart]
) -> alt.LayerChart:
    """One side of one cut: the located heads and the random sets, over k."""
    title, nothing = SIDES[side]
    found, drawn = SERIES
    columns = {drawn: ("random", "random_low", "random_high"), found: ("right", "low", "high")}
    # A random set of no head is what the first of the curve is.
    start = dict.fromkeys(columns[drawn], table[0]["right"])
    rows = [
        {"k": row["k"], "head": row["head"] or nothing, "series": series}
        | {name: row[column] for name, column in zip(columns[found], columns[series], strict=True)}
        for row in ({**table[0], **start}, *table[1:])
        for series in columns
    ]
    count = max(1, len(heads))
    every = -(-(count + 1) // MOST_TICKS)
    names = json.dumps([nothing, *(f"+ {head}" for head in heads)])
    scale = alt.Scale(domain=[0, 1])
    x = alt.X(
        "k:Q",
        title="heads, one more at each step",
        scale=alt.Scale(domain=[-0.04 * count, 1.04 * count], nice=False, zero=False),
        axis=alt.Axis(
            values=list(range(0, count + 1, every)),
            labelExpr=f"({names})[datum.value]",
            labelAngle=0 if count <= 4 else -90,
            grid=False,
        ),
    )
    y = alt.Y(
        "right:Q",
        title="answers right" if against == "truth" else "answers as uncut",
        scale=scale,
        axis=alt.Axis(format="%", tickCount=6),
    )
    colour = alt.Color(
        "series:N",
        title=None,
        scale=alt.Scale(domain=list(SERIES), range=list(SERIES.values())),
        legend=alt.Legend(orient="top", symbolType="square", symbolOpacity=1, labelLimit=300),
    )
    base = alt.Chart(alt.InlineData(values=rows)).encode(x=x, color=colour)
    random, own = (base.transform_filter(f"datum.series === {json.dumps(name)}") for name in (drawn, found))
    ends = {"y": alt.Y("low:Q", scale=scale), "y2": "high:Q"}
    return alt.layer(
        random.mark_area(opacity=0.22).encode(**ends),
        *levels,
        random.mark_line(strokeDash=[5, 3], strokeWidth=1.5).encode(y=y),
        own.mark_line(strokeWidth=2).encode(y=y),
        own.mark_rule(strokeWidth=1.5).encode(**ends),
        base.mark_point(filled=True, opacity=1).encode(
            y=y,
            size=alt.condition(f"datum.series === {json.dumps(found)}", alt.value(60), alt.value(14)),
            tooltip=[
                alt.Tooltip("k:Q", title="heads"),
                alt.Tooltip("head:N", title="the last of them"),
                "series:N",
                alt.Tooltip("right:Q", format=".3f"),
                alt.Tooltip("low:Q", title="from", format=".3f"),
                alt.Tooltip("high:Q", title="to", format=".3f"),
            ],
        ),
    ).properties(
        width=max(230, min(460, 44 * (count + 1))),
        height=HEIGHT,
        title=alt.TitleParams(title, fontSize=12, anchor="start"),
    )


def _levels(chance: float, *, floor: float, ceiling: float) -> list[alt.Chart]:
    """Floor, ceiling and chance as lines, their names moved apart where the lines lie together."""
    values = {"chance": chance, "floor": floor, "ceiling": ceiling}
    names = sorted(values, key=values.__getitem__)
    pushed_up = accumulate((values[name] for name in names), lambda below, own: max(own, below + APART))
    rows = [
        {
            "name": f"{name} {values[name]:.0%}",
            "value": values[name],
            "written": min(written, 1 - APART * above),  # the names must not run out of the figure
            "dash": name == "chance",
        }
        for name, written, above in zip(names, pushed_up, reversed(range(len(names))), strict=True)
    ]
    base = alt.Chart(alt.InlineData(values=rows))
    scale = alt.Scale(domain=[0, 1])
    return [
        base.mark_rule(strokeWidth=1, color="#333").encode(
            y=alt.Y("value:Q", scale=scale),
            strokeDash=alt.condition("datum.dash", alt.value([1, 3]), alt.value([1, 0])),
        ),
        base.mark_text(align="left", dx=6, fontSize=11, color="#333").encode(
            x=alt.value("width"), y=alt.Y("written:Q", scale=scale), text="name:N"
        ),
    ]
