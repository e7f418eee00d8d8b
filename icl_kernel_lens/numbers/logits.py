"""Measures of an answer, from the logits of a run and of a changed one.

With label tokens t_c and the reference class c*:

    logit difference = logit[t_c*] − mean over c ≠ c* of logit[t_c]
    probability      = softmax(logits)[t_c*]            over the whole vocabulary
    kl               = KL(P ‖ P_changed)                P: the unchanged run's next tokens
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def contrast(values: Tensor, dim: int) -> Tensor:
    """Each label's value minus the mean of the others': x_c − mean over c′ ≠ c of x_c′, labels along `dim`."""
    labels = values.shape[dim]
    return values - (values.sum(dim, keepdim=True) - values) / (labels - 1)


def logit_difference(
    label_scores: Float[Tensor, "*cell label"], reference: Int[Tensor, "*#cell"]
) -> Float[Tensor, "*cell"]:
    """The reference class's label logit minus the mean of the others'."""
    return contrast(label_scores, -1).gather(-1, reference.expand(label_scores.shape[:-1])[..., None])[..., 0]


def measures(
    logits: Float[Tensor, "variant vocab"],
    base: Float[Tensor, " vocab"],
    label_tokens: Int[Tensor, " label"],
    reference: int,
) -> dict[str, Tensor]:
    """The label scores, probability and KL divergence of changed runs, on the CPU."""
    logprob, before = logits.log_softmax(-1), base.log_softmax(-1)
    tokens = label_tokens.to(logits.device)
    surprise = torch.where(before > -torch.inf, before.exp() * (before - logprob), 0.0)
    return {
        "label_scores": logits[:, tokens].cpu(),
        "probability": logprob[:, tokens[reference]].exp().cpu(),
        "kl": surprise.sum(-1).clamp(min=0).cpu(),
    }
