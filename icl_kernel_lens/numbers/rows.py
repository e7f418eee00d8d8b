"""Changes rows of attention weights: keys cut, weights replaced by a kernel, two exchanged. Rows are in float32.

    cut, not renormalised    A'(s) = A(s) · [s not cut]
    cut, renormalised        A' = softmax of the scores without those cut
    cut of equal mass        keys in a given order, until they hold the mass m: A'(s) = A(s)·(1 − r(s)), the last in part
    substituted              A'(p_i) = M κ_i,  M = Σ_i A(p_i),  Σ_i κ_i = 1
    exchanged                A'(p_i) = A(p_j) and A'(p_j) = A(p_i): the same as exchanging the values there

A row of which nothing is left is NaN, never 0.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def cut(
    weights: Float[Tensor, "row key"],
    scores: Float[Tensor, "row key"],
    keys: Bool[Tensor, "row key"],
    *,
    renormalise: bool,
) -> Float[Tensor, "row key"]:
    """Cut some keys of each row."""
    if not renormalise:
        return weights.masked_fill(keys, 0)
    return scores.masked_fill(keys, -torch.inf).softmax(-1)


def cut_mass(
    weights: Float[Tensor, "row key"],
    mass: Float[Tensor, " row"],
    order: Float[Tensor, "row key"],
    *,
    renormalise: bool,
) -> Float[Tensor, "row key"]:
    """Cut keys that hold `mass`, in ascending `order`; keys of infinite order are never cut."""
    at = order.argsort(-1)
    free = order.gather(-1, at).isfinite()
    taken = weights.gather(-1, at) * free
    before = taken.cumsum(-1) - taken
    removed = (mass[:, None] - before).clamp(min=0).minimum(taken)
    new = weights - torch.zeros_like(weights).scatter(-1, at, removed)
    short = removed.sum(-1) < mass * (1 - 1e-4) - 1e-9
    if renormalise:
        left = 1 - mass
        new = new / left.masked_fill(left <= 1e-6, torch.nan)[:, None]
    return new.masked_fill(short[:, None], torch.nan)


def substituted(
    weights: Float[Tensor, "row key"],
    places: Int[Tensor, "row demo"],
    kernel: Float[Tensor, "row demo"],
) -> Float[Tensor, "row key"]:
    """Share out each row's mass on some keys by a kernel; a row without any stays as it is."""
    share = kernel / kernel.sum(-1, keepdim=True)
    mass = weights.gather(-1, places).sum(-1, keepdim=True)
    return torch.where(mass > 0, weights.scatter(-1, places, (mass * share).to(weights)), weights)


def exchanged(
    weights: Float[Tensor, "row key"], one: Int[Tensor, " row"], other: Int[Tensor, " row"]
) -> Float[Tensor, "row key"]:
    """Exchange the weights of two keys of each row."""
    pair = torch.stack([one, other], -1)
    return weights.scatter(-1, pair, weights.gather(-1, pair.flip(-1)))
