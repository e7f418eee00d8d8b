"""What a planted head attends to, and what it reads there: scores, attention and values, in closed form."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from icl_kernel_lens.worlds.planted.places import BY_PLACE, place_scores, reach
from icl_kernel_lens.worlds.planted.roles import ABOVE, ROLES, PlantedHead
from icl_kernel_lens.worlds.planted.view import View
from icl_kernel_lens.worlds.planted.wires import WIRES
from icl_kernel_lens.worlds.planted.world import PlantedWorld


class Attention(NamedTuple):
    """A head's attention on each demonstration's token, and on the tokens that have the sink's score."""

    demos: Float[Tensor, "prompt demo"]
    rest: Float[Tensor, "prompt rest"]


def label_scores(
    world: PlantedWorld, head: PlantedHead, view: View, formed: Float[Tensor, "prompt label"]
) -> Float[Tensor, "prompt demo"]:
    """Scores of the demonstrations' tokens, above their common score; `formed` is the answer so far."""
    wires = WIRES[head.role]
    scores = torch.zeros_like(view.alike)
    if wires.matches:
        matched = view.before if wires.matches == "before" else view.shown
        alike = (matched @ view.x[..., None]).squeeze(-1)
        scores = (1 - head.echo_share) * wires.toward * alike / head.width**2
    if head.role == "salience":
        scores = view.shown @ world.taste / head.width**2
    if head.role in BY_PLACE:
        scores = place_scores(world, head, view.x, view.labels.shape[1])[:, :-1]
    if head.role == "word_preference":
        assert head.label is not None
        scores = view.labels[..., head.label] / head.width**2
    if sharpness := echo_sharpness(head):
        centred = formed - formed.mean(-1, keepdim=True)
        scores = scores + sharpness * (view.labels @ centred[..., None]).squeeze(-1)
    return scores + head.word_pull * (view.labels @ world.words)


def echo_sharpness(head: PlantedHead) -> float:
    """What the answer formed so far counts in a head's scores."""
    if head.role == "echo":
        return 1 / head.width
    return head.echo_share / ROLES["echo"].bandwidth


def rest_scores(world: PlantedWorld, head: PlantedHead, view: View) -> Float[Tensor, "prompt rest"]:
    """Scores of the tokens that have the sink's, but for the sink's own, above the labels' common score."""
    if WIRES[head.role].rest == "is_input":
        inputs = torch.cat([view.shown, view.x[:, None]], 1)
        scores = (inputs @ view.x[..., None]).squeeze(-1) / head.width**2
    elif head.role in BY_PLACE:
        scores = place_scores(world, head, view.x, view.labels.shape[1])[:, -1:]
    else:
        scores = view.x.new_zeros(len(view.x), 1)
    return scores + head.swing * (view.x @ world.mood)[:, None]


def calibrated(
    world: PlantedWorld, head: PlantedHead, view: View, formed: Float[Tensor, "prompt label"]
) -> float:
    """The sink's score that leaves a head's share on labels in the median of these prompts."""
    share = world.sink if head.share is None else 1 - head.share
    if share == 0:
        return -above(world, head)
    labels = label_scores(world, head, view, formed).logsumexp(-1)
    rest = rest_scores(world, head, view).logsumexp(-1)
    return max(float((labels - rest).median()) + math.log(share / (1 - share)), -above(world, head))


def attention(
    world: PlantedWorld,
    head: PlantedHead,
    view: View,
    formed: Float[Tensor, "prompt label"],
    sink: float,
    *,
    cut: bool = False,
) -> Attention:
    """The softmax of a head's scores; `cut`: without the labels, the rest renormalised."""
    scores = label_scores(world, head, view, formed)
    if cut:
        scores = torch.full_like(scores, -math.inf)
    rest = sink + rest_scores(world, head, view)
    demos = scores.shape[1]
    others = world.length(demos) - demos - rest.shape[1]
    floor = scores.new_full((len(scores), 1), math.log(others) - above(world, head))
    row = torch.cat([scores, rest, floor], -1).softmax(-1)
    return Attention(row[:, :demos], row[:, demos:-1])


def above(world: PlantedWorld, head: PlantedHead) -> float:
    """How far a head's label positions stand above positions that are neither label nor sink."""
    spread = abs(head.word_pull) / 2
    if WIRES[head.role].matches or head.role == "salience":
        spread += head.width**-2
    if head.role in BY_PLACE:
        spread += reach(world, head)
    return ABOVE + spread


def written_by(
    world: PlantedWorld, head: PlantedHead, seen: Attention, view: View
) -> Float[Tensor, "prompt label"]:
    """What a head that attends so adds to the answer."""
    wires = WIRES[head.role]
    read, weights = view.labels, seen.demos
    if wires.values == "previous":
        read = view.shown @ world.centres.T
    elif wires.values == "feature":
        read = torch.cat([view.shown, view.x[:, None]], 1) @ world.centres.T
        weights = seen.rest
    return wires.sign * head.strength * (weights[..., None] * read).sum(1)
