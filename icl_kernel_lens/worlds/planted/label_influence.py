"""What each label does to the answer of a planted model, and which head carries it, in closed form.

    G_i   = mean over c ≠ y_i of [(s_{y_i} − s_c)(P) − (s_{y_i} − s_c)(P with y_i → c)]      label influence
    t_c   = s_c(own labels) − mean of s_c over the cyclic shifts of the classes              label part

`carried` is the part of G_i that goes through one head's edge to label i: the prompt's own run, in which that edge
alone reads the key, the value or both of the run with the label replaced.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.worlds.planted.layers import Change, forward
from icl_kernel_lens.worlds.planted.view import View
from icl_kernel_lens.worlds.planted.world import PlantedWorld

Factor = Literal["keys", "values", "both"]


def influence(world: PlantedWorld, view: View, sinks: dict[HeadRef, float]) -> Float[Tensor, "prompt demo"]:
    """G."""
    return _pull(view, forward(world, view, sinks).votes, forward(world, replaced(view), sinks).votes)


def label_part(world: PlantedWorld, view: View, sinks: dict[HeadRef, float]) -> Float[Tensor, "prompt label"]:
    """t."""
    own = forward(world, view, sinks).votes
    shifts = range(1, world.labels)
    others = [forward(world, view._replace(labels=view.labels.roll(k, -1)), sinks).votes for k in shifts]
    return own - torch.stack([own, *others]).mean(0)


def carried(
    world: PlantedWorld, view: View, sinks: dict[HeadRef, float], factor: Factor, offset: int
) -> Float[Tensor, "prompt layer head demo"]:
    """The part of G that goes through one head's edge to the token `offset` behind a label."""
    clean = forward(world, view, sinks).votes
    base, other = view.repeated(_times(view)), replaced(view)
    parts = []
    for ref, head in world.all_heads.items():
        if not head.strength:
            parts.append(torch.zeros_like(view.alike))
            continue
        run = forward(world, base, sinks, Change((ref,), factor, other, offset))
        parts.append(_pull(view, clean, run.votes))
    return torch.stack(parts, 1).unflatten(1, (world.layers, world.heads_per_layer))


def replaced(view: View) -> View:
    """Every prompt with each of its labels replaced by each other class: a row for each (demo, shift of the class)."""
    demos, labels = view.labels.shape[1:]
    every = view.labels[:, None, None].repeat(1, demos, labels - 1, 1, 1)
    for i in range(demos):
        for shift in range(1, labels):
            every[:, i, shift - 1, i] = view.labels[:, i].roll(shift, -1)
    return view.repeated(_times(view))._replace(labels=every.reshape(-1, demos, labels))


def _times(view: View) -> int:
    """Rows of `replaced` for each prompt."""
    return view.labels.shape[1] * (view.labels.shape[2] - 1)


def _pull(
    view: View, clean: Float[Tensor, "prompt label"], changed: Float[Tensor, "row label"]
) -> Float[Tensor, "prompt demo"]:
    """How far the logit of a label's own class falls, against the class that replaces it, mean over these."""
    count, demos, labels = view.labels.shape
    moved = clean[:, None, None] - changed.unflatten(0, (count, demos, labels - 1))
    own = view.labels[:, :, None]
    new = torch.stack([view.labels.roll(shift, -1) for shift in range(1, labels)], 2)
    return (moved * (own - new)).sum(-1).mean(-1)
