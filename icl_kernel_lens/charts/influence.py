"""Label influence shows how far demonstrations pull the answers: within one set, under one prompt's heads, and together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from icl_kernel_lens.charts.figure import Figure, alt, finite
from icl_kernel_lens.charts.head_map import LABEL_COLOURS

SCHEME = "purplegreen"
"""Diverging around 0, told apart by the colour-blind, and no colour of a label."""
ANSWER, LABEL = "answer", "label"
"""The row and the column of the map that show the labels' colours."""
MOST_CELLS, MOST_INPUTS = 6000, 64
"""Cells and test inputs that a map shows: more make a page heavy, and cannot be told apart."""
MOST_POINTS = 1500
PANEL = 66
"""Pixels: the height of a panel of one prompt's weights."""
SIDE = 330
MARKS = {
    "pair": ("two demonstrations", "#0072B2", "circle"),
    "half": ("half of them", "#D55E00", "square"),
    "all": ("all of them", "#009E73", "triangle-up"),
}
"""Which labels are replaced together: in words, colour and mark, told apart without colour, too."""
Rows = Sequence[Mapping[Any, Any]]


def _rank_colour(classes: int) -> alt.Color:
    """The colour of a class, the same in every figure."""
    colours = [LABEL_COLOURS[c % len(LABEL_COLOURS)] for c in range(classes)]
    return alt.Color("rank:N", scale=alt.Scale(domain=list(range(classes)), range=colours), legend=None)


def _some(names: Sequence[str], most: int) -> list[str]:
    """Names at even distances, at most so many."""
    return list(names[:: max(1, -(-len(names) // most))])


def influence_figure(
    demos: Rows,
    inputs: Rows,
    values: Sequence[Sequence[float]],
    profile: Rows,
    *,
    classes: int,
    of: str,
    about: str,
    shown: str,
) -> Figure:
    """Draw the influence of one set's demonstrations on its test inputs, beside the mean at each place over all prompts.

    Rows are demonstrations in reading order, columns test inputs, those of equal answers together. The first row and the
    first column show the classes' colours: where a kernel looks at classes, what is green has the colours of its row and
    column alike.

    Args:
        demos: One a demonstration, in reading order: word, rank (the class), text.
        inputs: One a test input: prompt, answer and truth (words), rank (the class that the model answers).
        values: One row a test input: the influence of each demonstration; NaN where no label could be put.
        profile: One row a place: place, influence, low, high.
        classes: How many classes there are.
        of: The model and the task.
        about: How many prompts, and the verdict.
        shown: Which set this is, and how it was chosen.
    """
    most = max(1, min(MOST_INPUTS, MOST_CELLS // len(demos)))
    left_out = len(inputs) - most
    order = sorted(range(len(inputs)), key=lambda at: (inputs[at]["rank"], inputs[at]["prompt"]))
    if left_out > 0:
        order = [at for at in order if at in set(range(most))]
    rows = [f"{place}  {row['word']}" for place, row in enumerate(demos)]
    columns = [f"{inputs[at]['prompt']}  {inputs[at]['answer']}" for at in order]
    data: dict[str, list[dict[Any, Any]]] = {
        "demos": [
            {"place": place, "row": name, "column": LABEL} | dict(row)
            for place, (name, row) in enumerate(zip(rows, demos, strict=True))
        ],
        "inputs": [
            {"row": ANSWER, "column": name, "g": [finite(round(x, 4)) for x in values[at]]} | dict(inputs[at])
            for name, at in zip(columns, order, strict=True)
        ],
        "profile": [
            {"row": name} | {key: finite(row[key]) for key in ("influence", "low", "high")} | {"place": place}
            for place, (name, row) in enumerate(zip(rows, profile, strict=True))
        ],
    }
    height = max(8, min(26, 400 // len(rows)))
    title = alt.TitleParams("G: demonstrations × test inputs of one set", fontSize=12, anchor="start")
    largest = max([1e-6, *(abs(x) for row in data["inputs"] for x in row["g"] if x is not None)])
    heat = _heat(rows, columns, classes, height, largest).properties(title=title)
    beside = _profile(rows, height)
    grey = [
        "grey: no other label could take its place"
        * any(x is None for row in data["inputs"] for x in row["g"])
    ]
    cut = [f"{most} of {len(inputs)} test inputs of the set are drawn"] if left_out > 0 else []
    return Figure.styled(
        alt.hconcat(heat, beside, spacing=24, datasets=data),
        "How far does each demonstration pull the answer to its own label?",
        [
            f"{of}: {about}",
            f"{shown}; green: towards its own label, purple: away from it",
            *filter(None, (*grey, *cut)),
        ],
        f"label influence: {of}",
    )


def _places(rows: Sequence[str], height: int) -> dict[str, Any]:
    """Arguments of the axis of demonstrations."""
    every = [ANSWER, *rows]
    values = [ANSWER, *(rows if height >= 9 else _some(rows, 40))]
    axis = alt.Axis(values=values, labelLimit=110, labelFontSize=min(11, height), labelOverlap=False)
    return {"scale": alt.Scale(domain=every), "axis": axis}


def _heat(
    rows: Sequence[str], columns: Sequence[str], classes: int, height: int, largest: float
) -> alt.LayerChart:
    """The map, and the colours of the classes along two sides of it; `largest` ends the colour scale."""
    every, width = [LABEL, *columns], max(8, min(26, 420 // len(columns)))
    named = [LABEL, *(columns if width >= 9 else _some(columns, 40))]
    axis = alt.Axis(
        values=named, labelAngle=-90, labelLimit=90, labelFontSize=min(11, width), labelOverlap=False
    )
    x = alt.X(
        "column:N",
        title="test input (prompt and the model's answer)",
        scale=alt.Scale(domain=every),
        axis=axis,
    )
    y = alt.Y("row:N", title="demonstration (place and label)", **_places(rows, height))
    grid = (
        alt.Chart(alt.NamedData("inputs"))
        .transform_calculate(place=f"sequence(0, {len(rows)})")
        .transform_flatten(["g", "place"], as_=["influence", "place"])
        .transform_lookup(
            "place", alt.LookupData(alt.NamedData("demos"), key="place", fields=["row", "text"])
        )
        .mark_rect(invalid=None)
        .encode(
            x=x,
            y=y,
            color=alt.condition(
                "!isValid(datum.influence)",
                alt.value("#bbb"),
                alt.Color(
                    "influence:Q",
                    title="G",
                    scale=alt.Scale(scheme=SCHEME, domain=[-largest, largest]),
                    legend=alt.Legend(format=".3~g", gradientLength=120),
                ),
            ),
            tooltip=[
                alt.Tooltip("row:N", title="demonstration"),
                alt.Tooltip("text:N", title="text"),
                alt.Tooltip("column:N", title="test input, answer"),
                alt.Tooltip("truth:N", title="truth"),
                alt.Tooltip("influence:Q", title="G", format=".3~g"),
            ],
        )
    )
    sides = [
        alt.Chart(alt.NamedData(name))
        .mark_rect(stroke="white", strokeWidth=1)
        .encode(x=x, y=y, color=_rank_colour(classes), tooltip=[f"{field}:N" for field in fields])
        for name, fields in (("demos", ["row", "text"]), ("inputs", ["column", "truth"]))
    ]
    return (
        alt.layer(grid, *sides)
        .resolve_scale(color="independent")
        .properties(width=width * len(every), height=height * (len(rows) + 1))
    )


def _profile(rows: Sequence[str], height: int) -> alt.LayerChart:
    """The mean at each place with its interval, on the same rows."""
    bare: Any = alt.Axis(labels=False, ticks=False, domain=False)
    places: dict[str, Any] = _places(rows, height) | {"axis": bare}
    base = alt.Chart(alt.NamedData("profile")).encode(y=alt.Y("row:N", title=None, **places))
    zero = alt.Chart(alt.InlineData(values=[{"at": 0}])).mark_rule(color="#888").encode(x="at:Q")
    return alt.layer(
        zero,
        base.mark_rule(strokeWidth=2, color="#0072B2").encode(x=alt.X("low:Q"), x2="high:Q"),
        base.mark_point(filled=True, opacity=1, size=48, color="#0072B2").encode(
            x=alt.X("influence:Q", title="mean G, 95 % interval"),
            tooltip=[
                alt.Tooltip("place:O"),
                alt.Tooltip("influence:Q", title="mean G", format=".3~g"),
                alt.Tooltip("low:Q", title="from", format=".3~g"),
                alt.Tooltip("high:Q", title="to", format=".3~g"),
            ],
        ),
    ).properties(
        width=170,
        height=height * (len(rows) + 1),
        title=alt.TitleParams("by place, all prompts", fontSize=12, anchor="start"),
    )


def prompt_figure(
    demos: Rows,
    influence: Sequence[float],
    weights: Mapping[str, Sequence[float]],
    *,
    classes: int,
    of: str,
    about: Sequence[str],
    unit: str,
    short: str,
) -> Figure:
    """Draw one prompt's influences, and below them heads' kernel weights on the same demonstrations, coloured by label.

    Args:
        demos: One a demonstration, in reading order: word, rank (the class), text.
        influence: G of each; NaN where no label could be put.
        weights: Of each panel, by its title, the kernel weight of each demonstration; NaN where there is none.
        classes: How many classes there are.
        of: The model and the task.
        about: What is said of the prompt.
        unit: Of G.
        short: The figure's name.
    """
    names = [f"{place}  {row['word']}" for place, row in enumerate(demos)]
    panels = {f"label influence G ({unit}): the model's own kernel": influence, **weights}
    width = max(8, min(44, 640 // len(names)))
    few = names if width >= 9 else _some(names, 60)
    charts = []
    for number, (title, values) in enumerate(panels.items()):
        last = number == len(panels) - 1
        rows = [
            {"demo": name, "value": finite(round(value, 5))} | dict(row)
            for name, value, row in zip(names, values, demos, strict=True)
        ]
        axis = alt.Axis(
            values=few,
            labels=last,
            ticks=last,
            labelAngle=-90,
            labelLimit=110,
            labelFontSize=min(11, width),
            labelOverlap=False,
        )
        zero = alt.Chart(alt.InlineData(values=[{"at": 0}])).mark_rule(color="#888").encode(y="at:Q")
        bars = (
            alt.Chart(alt.InlineData(values=rows))
            .mark_bar()
            .encode(
                x=alt.X(
                    "demo:N",
                    title="demonstration (place and label), in reading order" if last else None,
                    scale=alt.Scale(domain=names),
                    axis=axis,
                ),
                y=alt.Y("value:Q", title=None, axis=alt.Axis(tickCount=3, format=".3~g")),
                color=_rank_colour(classes),
                tooltip=[
                    alt.Tooltip("demo:N", title="demonstration"),
                    alt.Tooltip("text:N", title="text"),
                    alt.Tooltip("value:Q", title="weight" if number else "G", format=".3~g"),
                ],
            )
        )
        charts.append(
            alt.layer(bars, zero).properties(
                width=width * len(names),
                height=PANEL,
                title=alt.TitleParams(title, fontSize=12, anchor="start", frame="group", offset=4),
            )
        )
    return Figure.styled(
        alt.vconcat(*charts, spacing=12),
        "The model's own kernel, and what heads attend to, in one prompt",
        [of, *about],
        short,
    )


def additivity_figure(
    points: Rows, r2: Mapping[str, str], *, title: str, of: str, about: str, unit: str
) -> Figure:
    """Draw the effect of replacing several labels against the sum of the single effects, one point a prompt and pattern.

    Args:
        points: pattern, prompt, summed, observed: effects on the reference class's score minus the mean of the others'.
        r2: Of each pattern, its R².
        title: Says R² of all patterns.
        of: The model and the task.
        about: What is drawn.
        unit: Of the scores.
    """
    every = max(1, -(-len(points) // MOST_POINTS))
    rows = [
        {
            "pattern": f"{MARKS[row['pattern']][0]}, R² {r2[row['pattern']]}",
            "prompt": row["prompt"],
            "summed": round(row["summed"], 4),
            "observed": round(row["observed"], 4),
        }
        for row in points[::every]
    ]
    present = [name for name in MARKS if name in r2]
    domain = [f"{MARKS[name][0]}, R² {r2[name]}" for name in present]
    numbers = [row[axis] for row in rows for axis in ("summed", "observed")]
    low, high = min([0.0, *numbers]), max([0.0, *numbers])
    edge = 0.04 * (high - low) or 0.5
    scale = alt.Scale(domain=[low - edge, high + edge], nice=False, zero=False)
    legend = alt.Legend(orient="right", labelLimit=320, symbolOpacity=1)
    base = alt.Chart(alt.InlineData(values=rows))
    line = [{"at": low - edge}, {"at": high + edge}]
    chart = alt.layer(
        alt.Chart(alt.InlineData(values=line))
        .mark_line(color="#888", strokeDash=[4, 3], clip=True)
        .encode(x=alt.X("at:Q", scale=scale), y=alt.Y("at:Q", scale=scale)),
        base.mark_point(filled=True, opacity=0.65, size=36).encode(
            x=alt.X("summed:Q", scale=scale, title=f"sum of the single effects, {unit}"),
            y=alt.Y("observed:Q", scale=scale, title=f"effect of replacing them together, {unit}"),
            color=alt.Color(
                "pattern:N",
                title="labels replaced together",
                scale=alt.Scale(domain=domain, range=[MARKS[name][1] for name in present]),
                legend=legend,
            ),
            shape=alt.Shape(
                "pattern:N",
                title="labels replaced together",
                scale=alt.Scale(domain=domain, range=[MARKS[name][2] for name in present]),
                legend=legend,
            ),
            tooltip=[
                "pattern:N",
                "prompt:O",
                alt.Tooltip("summed:Q", format=".3~g"),
                alt.Tooltip("observed:Q", format=".3~g"),
            ],
        ),
    ).properties(width=SIDE, height=SIDE)
    fewer = [f"every {every}th of {len(points):,} points is drawn"] if every > 1 else []
    return Figure.styled(
        chart,
        title,
        [of, f"{about}; dashed: joint effect = sum of single effects", *fewer],
        f"additivity: {of}",
    )
