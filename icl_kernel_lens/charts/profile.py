"""The averaged attention map shows where the answer position looks, per layer and head (Han et al. 2025, Fig. 2)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d, pad

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.charts.figure import Figure, alt

MOST_ROWS = 64
"""Above this many heads the figure shows each layer's mean over heads."""
COARSE = 6
"""Points a text is drawn with: 30 make a page heavy, and the eye cannot use them."""


def profile_figure(
    profile: Float[Tensor, "layer head point"], *, demos: int, of: str, prompts: int
) -> Figure:
    """Draw the answer row's attention over the prompt, mean over prompts, texts stretched to equal length.

    Columns run through text, label, text, label, …, test input. Each drawn text column is the mean of five
    of the thirty resampled points. The colour scale is a square root, so that small weights show.
    """
    columns, places = _coarse(profile, demos)
    layers, heads = columns.shape[:2]
    by_head = layers * heads <= MOST_ROWS
    values = columns if by_head else columns.mean(1, keepdim=True)
    order = [
        str(HeadRef(layer, head)) if by_head else f"layer {layer}"
        for layer in range(layers)
        for head in range(values.shape[1])
    ]
    rows = [
        {"row": name, "column": column, "attention": round(value, 5), "place": places[column]}
        for name, row in zip(order, values.flatten(0, 1).tolist(), strict=True)
        for column, value in enumerate(row)
        if value == value
    ]
    ticks = [i for i, place in enumerate(places) if place.startswith("label")]
    names = "{" + ",".join(f"{t}:'y{k}'" for k, t in enumerate(ticks)) + "}"
    chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_rect()
        .encode(
            x=alt.X(
                "column:O",
                title="position, each text stretched to the same length; y0, y1, … are the labels",
                axis=alt.Axis(values=ticks, labelExpr=f"({names})[datum.value]", labelAngle=0),
            ),
            y=alt.Y("row:O", title=None, sort=order),
            color=alt.Color(
                "attention:Q",
                scale=alt.Scale(scheme="viridis", type="sqrt"),
                title="attention",
                legend=alt.Legend(format=".2~g"),
            ),
            tooltip=["row:N", "place:N", alt.Tooltip("attention:Q", format=".4f")],
        )
        .properties(width=max(420, min(1000, 6 * len(places))), height=max(140, 12 * len(order)))
    )
    return Figure.styled(
        chart,
        "Averaged attention of the answer position",
        f"{of}: mean over {prompts} prompts" + ("" if by_head else " and over the heads of each layer"),
        f"averaged attention: {of}",
    )


def _coarse(
    profile: Float[Tensor, "layer head point"], demos: int
) -> tuple[Float[Tensor, "layer head column"], list[str]]:
    """Fewer points a text, and what each column is of."""
    points = (profile.shape[-1] - demos) // (demos + 1)
    # One row a text and its label; the test input has none.
    rows = pad(profile, (0, 1)).unflatten(-1, (demos + 1, points + 1))
    texts = adaptive_avg_pool1d(rows[..., :-1].flatten(1, 2), COARSE).unflatten(1, rows.shape[1:3])
    columns = torch.cat([texts, rows[..., -1:]], -1).flatten(-2)[..., :-1]
    places = [place for i in range(demos) for place in (*[f"text {i}"] * COARSE, f"label {i}")]
    return columns, places + ["test input"] * COARSE
