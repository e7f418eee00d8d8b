"""How the cost of reading grows with demonstrations, prompts and layers; and the figure of it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import altair as alt
import torch

from benchmarks.measure import once
from benchmarks.peers import CASES
from benchmarks.setup import BATCH, Setup, build, make_prompts, short_prompts
from icl_kernel_lens.charts.figure import Figure

VARIED: dict[str, tuple[int, ...]] = {
    "demonstrations": (8, 16, 32, 64, 128),
    "prompts": (8, 16, 32, 64, 128),
    "layers": (2, 4, 6, 8, 12),
}
FIELDS = {"demonstrations": "demos", "prompts": "tests", "layers": "layers"}
CURVES = {
    "eager-1": "Hugging Face output_attentions",
    "fresh-bridge": "ours, fresh prompts",
    "shared-bridge": "ours, shared demonstrations",
    "floor": "floor",
}
COLOURS = ["#D55E00", "#E69F00", "#0072B2", "#000000"]
"""Of Okabe and Ito's palette, as in the head map."""
PEER_PROMPTS = 2


def measure(setup: Setup) -> list[dict[str, Any]]:
    """One row a point: panel, value, case, seconds.

    Fresh prompts run in batches of 8 and the peer's one at a time, whatever their number; so one batch and two
    prompts are timed, and multiplied. The other two are timed in full, the shortest of two runs.
    """
    rows = []
    for panel, values in VARIED.items():
        for value in values:
            at = replace(setup, **{FIELDS[panel]: value})
            rows += [
                {"panel": panel, "value": value, "case": CURVES[name], "seconds": seconds}
                for name, seconds in _seconds(at).items()
            ]
    return rows


def _seconds(setup: Setup) -> dict[str, float]:
    found = {}
    for name in CURVES:
        case = CASES[name]
        most = {"eager-1": PEER_PROMPTS, "fresh-bridge": BATCH}.get(name, setup.tests)
        with torch.no_grad():
            model = build(case.kind, setup)
            prompts = make_prompts(replace(setup, tests=most), shared=case.shared)
            case.run(model, short_prompts(setup, case.shared))
            run = partial(case.run, model, prompts)
            found[name] = once(run, 1 if most < setup.tests else 2) * setup.tests / most
    return found


def figure(rows: list[dict[str, Any]], setup: Setup) -> Figure:
    """Three panels with one axis of seconds; both axes are logarithmic, so a straight line is a power."""
    fixed = {"demonstrations": setup.demos, "prompts": setup.tests, "layers": setup.layers}
    order = list(CURVES.values())
    colour = alt.Color(
        "case:N",
        sort=order,
        title=None,
        scale=alt.Scale(domain=order, range=COLOURS),
        legend=alt.Legend(orient="bottom", direction="horizontal", labelLimit=300, symbolType="stroke"),
    )
    panels = []
    for number, (panel, values) in enumerate(VARIED.items()):
        others = ", ".join(f"{count} {name}" for name, count in fixed.items() if name != panel)
        base = alt.Chart(alt.InlineData(values=[row for row in rows if row["panel"] == panel]))
        axis = alt.Axis(values=list(values), grid=False, labelFlush=False, labelOverlap=False)
        across = alt.Scale(type="log", base=2, nice=False, padding=12)
        chart = base.mark_line(point=alt.OverlayMarkDef(size=36), strokeWidth=2).encode(
            x=alt.X("value:Q", title=panel, scale=across, axis=axis),
            y=alt.Y(
                "seconds:Q",
                title="seconds" if number == 0 else None,
                scale=alt.Scale(type="log"),
                axis=alt.Axis(
                    format="~g", values=[0.01, 0.1, 1, 10, 100, 1000], labelOpacity=float(number == 0)
                ),
            ),
            color=colour,
            tooltip=["case:N", "value:Q", alt.Tooltip("seconds:Q", format=".3f")],
        )
        title = alt.TitleParams(others, fontSize=11, fontWeight="normal", anchor="start", frame="group")
        panels.append(chart.properties(width=210, height=230, title=title))
    chart = (
        alt.hconcat(*panels, spacing=16, bounds="flush")
        .resolve_scale(y="shared", color="shared")
        .properties(
            title=alt.TitleParams(
                "Seconds to read every head",
                subtitle=[
                    f"{setup.model}, width {setup.width}, {setup.heads} heads, demonstrations of "
                    f"{setup.demo_tokens} tokens, one thread",
                    "fresh prompts: one batch of 8 timed and multiplied; Hugging Face: two prompts timed and multiplied",
                ],
                anchor="start",
                offset=12,
            )
        )
        .configure_view(stroke=None)
        .configure_axis(labelFontSize=11, titleFontSize=12)
    )
    return Figure(chart, "growth of the cost of reading")
