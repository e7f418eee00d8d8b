"""The answer position's own computation in a planted model, layer after layer, in closed form."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.worlds.planted.roles import PlantedHead
from icl_kernel_lens.worlds.planted.scores import Attention, attention, calibrated, written_by
from icl_kernel_lens.worlds.planted.view import View
from icl_kernel_lens.worlds.planted.wires import COPIES, WIRES
from icl_kernel_lens.worlds.planted.world import PlantedWorld


class Run(NamedTuple):
    """What came out: every head's attention on labels, and the labels' logits."""

    weights: Mapping[HeadRef, Float[Tensor, "prompt demo"]]
    votes: Float[Tensor, "prompt label"]


class Change(NamedTuple):
    """What is done to the edges of some heads from the answer position to labels; everything above is recomputed."""

    heads: Collection[HeadRef] = ()
    how: Literal["renormalised", "zeroed", "keys", "values", "both"] = "renormalised"
    """The edges are cut, and the rest of the row is renormalised or left; or they read keys, values or both of
    `source`, and the row is renormalised."""
    source: View | None = None
    offset: int = 0
    """A label's edge is the one to the token so far behind it."""


UNCHANGED = Change()
Stands = dict[str, Float[Tensor, "prompt label"]]
"""What stands at the answer position in the subspaces that later heads or the logits read."""


def forward(
    world: PlantedWorld,
    view: View,
    sinks: dict[HeadRef, float],
    change: Change = UNCHANGED,
    *,
    idle: bool = False,
    calibrate: bool = False,
) -> Run:
    """Attention and logits; `idle`: idle heads' attention too; `calibrate`: fill in `sinks` on the way."""
    direct = world.direct * one_hot(view.test, world.labels).double()
    stands: Stands = {name: torch.zeros_like(direct) for name in ("vote", "taken", "moved")}
    if not world.trailing:
        stands["vote"] = direct
    weights: dict[HeadRef, Tensor] = {}
    for layer in range(world.layers):
        before = dict(stands)
        for ref in (HeadRef(layer, i) for i in range(world.heads_per_layer)):
            head = world.all_heads[ref]
            if head.role in WIRES:
                if calibrate:
                    sinks[ref] = calibrated(world, head, view, before["vote"])
                weights[ref], new = _reader(world, head, view, before["vote"], sinks[ref], change)
            elif head.role == "idle":
                weights[ref] = _idle_row(world, head, view, change.offset) if idle else view.alike * 0
                continue
            else:
                weights[ref], new = _looker(world, head, view, before, change)
            for into, added in new.items():
                # A norm reads what is added to the test input's token as a share of that token's size.
                there = not world.trailing or into == "moved"
                stands[into] = stands[into] + (added / view.size[:, None] if there else added)
    return Run(weights, stands["vote"] + stands["taken"])


def _reader(
    world: PlantedWorld, head: PlantedHead, view: View, formed: Tensor, sink: float, change: Change
) -> tuple[Tensor, Stands]:
    """A head that attends to labels: its attention on them from the answer position, and what it writes."""
    wires, keys, values = WIRES[head.role], view, view
    reads_at = 1 if wires.at == "is_separator" else 0
    changed = head.ref in change.heads and change.offset == reads_at and head.role != "early_kernel"
    if changed and change.source is not None:
        keys = view if change.how == "values" else change.source
        values = view if change.how == "keys" else change.source
    seen = attention(world, head, keys, formed, sink)
    nothing = torch.zeros_like(seen.demos)
    row = seen.demos if change.offset == reads_at else nothing
    if head.role == "early_kernel" and change.offset == 0:
        # It writes at the test input; at the answer position, which has no feature of its own, all labels are alike.
        row = attention(world, head, view._replace(x=torch.zeros_like(view.x)), formed, sink).demos
    if not head.strength:
        return row, {}
    if changed and change.how == "renormalised":
        seen = Attention(nothing, attention(world, head, view, formed, sink, cut=True).rest)
    elif changed and change.how == "zeroed":
        seen = Attention(nothing, seen.rest)
    return row, {wires.into: written_by(world, head, seen, values)}


def _looker(
    world: PlantedWorld, head: PlantedHead, view: View, before: Stands, change: Change
) -> tuple[Tensor, Stands]:
    """A head that attends to fixed places: the same two."""
    count, demos = view.alike.shape
    length, at = world.length(demos), world.label_positions(demos)
    row, here = torch.zeros_like(view.alike), torch.zeros_like(view.alike)
    if head.role == "uniform":
        row = here = torch.full_like(view.alike, 1 / length)
    elif head.role in COPIES:
        to = length - 1 - COPIES[head.role].back(separator=world.separator, trailing=world.trailing)
        row, here = ((at + off == to).double().expand(count, -1) for off in (0, change.offset))
    if head.role == "carrier" and world.trailing:
        return here, {"vote": world.direct * one_hot(view.test, world.labels).double()}
    if head.role == "mover":
        return here, {"vote": before["moved"]}
    if head.role == "canceller":
        return here, {"taken": -before["taken"]}
    if not head.strength:
        return here, {}
    labels = view.labels
    if head.ref in change.heads:
        if change.source is not None:
            labels = labels if change.how == "keys" or change.offset else change.source.labels
        elif change.offset == 0:
            return here, {}
        elif change.how == "renormalised":
            row = row / (1 - here.sum(-1, keepdim=True))
    return here, {"vote": head.strength * (row[..., None] * labels).sum(1)}


def _idle_row(world: PlantedWorld, head: PlantedHead, view: View, offset: int) -> Tensor:
    query, key = world.idle_weights[head.ref][:2]
    seen = world.scratch[view.tokens]
    row = (seen @ key @ (seen[:, -1] @ query)[..., None]).squeeze(-1).softmax(-1)
    return row[:, world.label_positions(view.labels.shape[1]) + offset]
