"""Lays the weights of a HookedTransformer out in memory as its layers multiply with them.

Its layers turn a weight round before they multiply (`W.T.contiguous()`, `einops.rearrange`), which copies it at every pass: most
of the time of a pass over few tokens. Kept in the turned order, the same tensor is a view there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TURNED: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("W_U", "W_in", "W_gate", "W_out"), (1, 0)),
    **dict.fromkeys(("W_Q", "W_K", "W_V", "_W_K", "_W_V"), (0, 2, 1)),
    "W_O": (2, 0, 1),
}
"""Name of a parameter → its axes as a layer multiplies with it."""


def lay_out(model: Any) -> None:
    """Put each weight into the order of its product; shapes and values stay, strides do not."""
    for name, weight in model.named_parameters():
        axes = TURNED.get(name.rsplit(".", 1)[-1], ())
        if weight.dim() == len(axes):
            back = [axes.index(axis) for axis in range(len(axes))]
            weight.data = weight.data.permute(axes).contiguous().permute(back)
