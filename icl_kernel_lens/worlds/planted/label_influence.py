"""What each label does to the answer of a planted model, and which head carries it, in closed form.

    G_i   = mean over c ≠ y_i of [(s_{y_i} − s_c)(P) − (s_{y_i} − s_c)(P with y_i → c)]      label influence
    t_c   = s_c(own labels) − mean of s_c over the cyclic shifts of the classes              label part

`carried` is the part of G_i that goes through one head's edge to label i: the prompt's own run, in which that edge
alone reads the key, the value or both of the run with the label replaced. `label_shares` is what of t is gone with the values
of a head's label edges averaged over the cyclic shifts, weights left as they are; `kernel_shares` what of the pair part of G
(`numbers.influence.pair_part`) a head carries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.numbers.influence import fit, pair_part
from icl_kernel_lens.worlds.planted.layers import Change, forward
from icl_kernel_lens.worlds.planted.view import View
from icl_kernel_lens.worlds.planted.world import PlantedWorld

Factor = Literal["keys", "values", "both"]
LEAST = 1e-12
"""Mean square of a pair part that is more than rounding."""


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
    parts = carried_by(world, view, sinks, tuple(world.all_heads), factor, offset)
    return parts.unflatten(1, (world.layers, world.heads_per_layer))


def carried_by(
    world: PlantedWorld,
    view: View,
    sinks: dict[HeadRef, float],
    refs: Sequence[HeadRef],
    factor: Factor = "both",
    offset: int = 0,
) -> Float[Tensor, "prompt head demo"]:
    """The same of some heads."""
    clean = forward(world, view, sinks).votes
    base, other = view.repeated(_times(view)), replaced(view)
    parts = []
    for ref in refs:
        if not world.all_heads[ref].strength:
            parts.append(torch.zeros_like(view.alike))
            continue
        run = forward(world, base, sinks, Change((ref,), factor, other, offset))
        parts.append(_pull(view, clean, run.votes))
    return torch.stack(parts, 1)


def label_shares(
    world: PlantedWorld, view: View, sinks: dict[HeadRef, float], refs: Sequence[HeadRef]
) -> Float[Tensor, " head"]:
    """1 − Σ ⟨t', t⟩ / Σ ⟨t, t⟩ of each head, t' with its label values averaged over the cyclic shifts of the classes."""
    even = torch.full_like(view.labels, 1 / world.labels)
    runs = [view._replace(labels=view.labels.roll(k, -1)) for k in range(world.labels)]

    def part(change: Change) -> Tensor:
        votes = torch.stack([forward(world, run, sinks, change).votes for run in runs])
        return votes[0] - votes.mean(0)

    whole = part(Change())
    shares = [
        1 - (part(Change((ref,), "values", view._replace(labels=even))) * whole).sum() / whole.square().sum()
        if world.all_heads[ref].strength
        else whole.new_zeros(())
        for ref in refs
    ]
    return torch.stack(shares).nan_to_num()


class KernelShares(NamedTuple):
    """Of heads, by the pair part I of G."""

    share: Float[Tensor, " head"]
    """Σ ⟨pair part of what the head carries, I⟩ / Σ ⟨I, I⟩."""
    fit: Float[Tensor, " head"]
    """Correlation of the pair part of its normalised weights with I; NaN where either does not vary."""


def kernel_shares(
    world: PlantedWorld,
    view: View,
    sinks: dict[HeadRef, float],
    refs: Sequence[HeadRef],
    demo_set: Int[Tensor, " prompt"],
) -> KernelShares:
    """What of the model's own kernel each head carries, and how far its weights follow it; NaN where there is none."""
    run = forward(world, view, sinks)
    weights = torch.stack([run.weights[ref] for ref in refs], 1)
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)
    own = pair_part(influence(world, view, sinks), demo_set)
    size = own.square().nansum()
    nothing = own.new_full((len(refs),), torch.nan)
    if size <= LEAST * own.numel():
        return KernelShares(nothing, nothing)
    parts = pair_part(carried_by(world, view, sinks, refs), demo_set)
    share = (parts * own[:, None]).nansum((0, 2)) / size
    return KernelShares(share, fit(pair_part(weights, demo_set), own).correlation)


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
