"""The emergence curve: label accuracy against training step, by the number of demonstrations before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from icl_kernel_lens.charts.figure import Figure, alt


def emergence_curve(record: Mapping[str, Any]) -> Figure:
    """Held-out label accuracy over training, from the record that `train_mini` returns and writes.

    One line a number of demonstrations; the dashed line is chance. With no demonstration the label cannot
    be known, and with one, only half of the test inputs are of its topic.
    """
    rows = [
        {"step": point["step"], "demonstrations": int(name.split("_")[1]), "accuracy": value}
        for point in record["curve"]
        for name, value in point.items()
        if name.startswith("accuracy_")
    ]
    scale = alt.Scale(domain=[0.4, 1])
    base = alt.Chart(alt.InlineData(values=rows))
    lines = base.mark_line().encode(
        x=alt.X("step:Q", title="training step", axis=alt.Axis(tickCount=7)),
        y=alt.Y("accuracy:Q", title="held-out label accuracy", scale=scale),
        color=alt.Color("demonstrations:O", scale=alt.Scale(scheme="viridis", reverse=True)),
        tooltip=["step:Q", "demonstrations:O", alt.Tooltip("accuracy:Q", format=".3f")],
    )
    chance = (
        alt.Chart(alt.InlineData(values=[{"chance": 0.5}]))
        .mark_rule(strokeDash=[4, 4], color="#555")
        .encode(y=alt.Y("chance:Q", scale=scale))
    )
    return Figure.styled(
        alt.layer(chance, lines).properties(width=460, height=240),
        "In-context learning emerges",
        f"{record['parameters']:,} parameters, pairs of topics and of label words never trained on",
        "emergence of in-context learning",
    )
