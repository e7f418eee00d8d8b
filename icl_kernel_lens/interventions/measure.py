"""What is measured of an answer: pure, on logits.

With label tokens t_c and the reference class c*:

    logit difference = logit[t_c*] − mean over c ≠ c* of logit[t_c]
    probability      = softmax(logits)[t_c*]            over the whole vocabulary
    kl               = KL(P ‖ P_changed)                P: the unchanged run's next tokens
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def logit_difference(
    label_scores: Float[Tensor, "*cell label"], reference: Int[Tensor, "*#cell"]
) -> Float[Tensor, "*cell"]:
    """The reference class's label logit minus the mean of the others'."""
    reference = reference.expand(label_scores.shape[:-1])
    right = label_scores.gather(-1, reference[..., None])[..., 0]
    return right - (label_scores.sum(-1) - right) / (label_scores.shape[-1] - 1)


def measures(
    logits: Float[Tensor, "variant vocab"],
    base: Float[Tensor, " vocab"],
    label_tokens: Int[Tensor, " label"],
    reference: int,
) -> dict[str, Tensor]:
    """Label scores and metrics of changed runs, on the CPU."""
    logprob, before = logits.log_softmax(-1), base.log_softmax(-1)
    tokens = label_tokens.to(logits.device)
    surprise = torch.where(before > -torch.inf, before.exp() * (before - logprob), 0.0)
    return {
        "label_scores": logits[:, tokens].cpu(),
        "probability": logprob[:, tokens[reference]].exp().cpu(),
        "kl": surprise.sum(-1).clamp(min=0).cpu(),
    }
