"""Scores of places: what a head says of a token by where it stands, in the turns by which positions are told.

θ(p) = p                  with learned positions
θ(p) = answer − p         with rotary ones, which know distances alone

recency       exp(score) ≈ exp(−distance / h)              score = ± sin(θ ω) / (ω h), ω the slowest turn
addressing    Σ_d (φ(x)·f_d) Σ_ω cos((θ − τ_d) ω) / h²     f_d orthogonal directions, τ_d a place of each
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from icl_kernel_lens.worlds.planted.roles import FEATURES, ROTARY, PlantedHead
from icl_kernel_lens.worlds.planted.world import PlantedWorld

FREQUENCIES = 10000.0 ** -(torch.arange(0, ROTARY, 2).double() / ROTARY)
"""Of the turns that tell positions."""
BY_PLACE = ("recency", "addressing")
"""Roles with a score of places."""


def thetas(world: PlantedWorld, demos: int) -> Float[Tensor, " place"]:
    """θ of every label, and of BOS behind them."""
    at = torch.cat([world.label_positions(demos), torch.zeros(1, dtype=torch.long)]).double()
    return at if world.form == "plain" else world.length(demos) - 1 - at


def addresses(world: PlantedWorld) -> Float[Tensor, " feature"]:
    """τ, spread over the labels' places in mixed order."""
    order = torch.randperm(FEATURES, generator=torch.Generator().manual_seed(world.seed + 4)).double()
    places = thetas(world, world.demos)[:-1]
    return places.min() + (places.max() - places.min()) * (order + 0.5) / FEATURES


def place_scores(
    world: PlantedWorld, head: PlantedHead, x: Float[Tensor, "prompt feature"], demos: int
) -> Float[Tensor, "prompt place"]:
    """The score that a head gives to every label's place, and to BOS's behind them."""
    theta = thetas(world, demos)
    if head.role == "recency":
        slow = FREQUENCIES[-1]
        sign = 1.0 if world.form == "plain" else -1.0
        return (sign * (theta * slow).sin() / (slow * head.width)).expand(len(x), -1)
    off = theta[:, None, None] - addresses(world)[:, None]
    return (x @ world.frame.T) @ (off * FREQUENCIES).cos().sum(-1).T / head.width**2


def reach(world: PlantedWorld, head: PlantedHead) -> float:
    """How far the score of one place may lie above another's, at most."""
    if head.role == "recency":
        return 2 * world.longest / head.width
    return 2 * len(FREQUENCIES) * FEATURES**0.5 / head.width**2
