"""A kernel regression over the demonstrations' labels, its vote, and measures of agreement.

    ŷ_c = Σ_i K(x, x_i) [y_i = c] / Σ_i K(x, x_i)          Han et al. (TMLR 2025), Eq. 6

The kernel weights may be a head's attention or an encoder's similarities.
"""

from __future__ import annotations

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

TIE = 1e-6
"""Label shares this close to the largest count as tied with it."""


def normalised(weights: Float[Tensor, "*cell demo"]) -> Float[Tensor, "*cell demo"]:
    """Weights over their sum, w_i = K_i / Σ_j K_j; NaN where the sum is 0."""
    mass = weights.sum(-1, keepdim=True)
    return (weights / mass).masked_fill(mass <= 0, float("nan"))


def kernel_regression(
    weights: Float[Tensor, "prompt layer head demo"],
    demo_labels: Int[Tensor, "prompt demo"],
    labels: int,
) -> Float[Tensor, "prompt layer head label"]:
    """Each label's share ŷ_c of the weight on the demonstrations (Nadaraya–Watson).

    NaN where the denominator Σ_i K vanishes or a weight is NaN; the caller says why.
    """
    one_hot = torch.nn.functional.one_hot(demo_labels, labels).to(weights.dtype)
    mass = weights.sum(-1, keepdim=True)
    votes = einsum(weights, one_hot, "prompt layer head demo, prompt demo label -> prompt layer head label")
    return (votes / mass).masked_fill(mass <= 0, float("nan"))


def hard_vote(
    shares: Float[Tensor, "prompt layer head label"],
) -> Float[Tensor, "prompt layer head label"]:
    """The label with the largest share, argmax_c ŷ_c, as one-hot; k labels tied within 1e-6 get 1/k each."""
    best = shares >= shares.max(-1, keepdim=True).values - TIE
    vote = best / best.sum(-1, keepdim=True).clamp(min=1)
    return vote.to(shares.dtype).masked_fill(shares.isnan().any(-1, keepdim=True), float("nan"))


def credit(
    vote: Float[Tensor, "prompt layer head label"], answer: Int[Tensor, " prompt"]
) -> Float[Tensor, "prompt layer head"]:
    """The share of the vote that `answer` got: 1 if the vote is for it alone, 1/k if k labels tie with it, else 0."""
    index = answer[:, None, None, None].expand(*vote.shape[:3], 1)
    return vote.gather(-1, index).squeeze(-1)


def effective_number(
    weights: Float[Tensor, "prompt layer head demo"],
) -> Float[Tensor, "prompt layer head"]:
    """How many demonstrations share the vote: 1 / Σ_i w_i², with w the weights over their sum.

    Between 1 (one demonstration decides) and their number (uniform): the kernel's bandwidth as a count.
    """
    return 1 / normalised(weights).square().sum(-1)


def cohen_kappa(
    vote: Float[Tensor, "prompt layer head label"], answer: Int[Tensor, " prompt"]
) -> Float[Tensor, "layer head"]:
    """Agreement beyond what the two label frequencies give by chance: κ = (p_o − p_e) / (1 − p_e).

    p_o is the mean credit, p_e = Σ_c P(vote = c) P(answer = c); ties count as shared votes. Over the
    prompts where the head could vote. NaN where p_e = 1 (both always say the same).
    """
    voted = ~vote.isnan().any(-1)
    count = voted.sum(0)
    observed = credit(vote, answer).nan_to_num().sum(0) / count
    truth = torch.nn.functional.one_hot(answer, vote.shape[-1]).to(vote.dtype)
    share_answer = einsum(voted.to(vote.dtype), truth, "prompt layer head, prompt label -> layer head label")
    share_vote = vote.nan_to_num().sum(0)
    expected = (share_vote * share_answer).sum(-1) / count.square()
    chance = 1 - expected
    return ((observed - expected) / chance).masked_fill(chance <= 1e-12, float("nan"))


def jensen_shannon(
    p: Float[Tensor, "prompt layer head label"], q: Float[Tensor, "prompt label"]
) -> Float[Tensor, "prompt layer head"]:
    """Jensen–Shannon divergence in nats, between 0 and ln 2: ½ KL(p‖m) + ½ KL(q‖m), m = ½(p + q)."""
    q = q[:, None, None].expand_as(p)
    middle = (p + q) / 2
    kl = torch.special.xlogy(p, p / middle) + torch.special.xlogy(q, q / middle)
    return kl.nan_to_num_(nan=0.0).sum(-1).div(2).masked_fill(p.isnan().any(-1), float("nan"))
