"""How close a head's label shares are to the model's distribution over the labels."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.axes import Pooling
from icl_kernel_lens.numbers.votes import jensen_shannon, kernel_regression
from icl_kernel_lens.results.evidence import Evidence
from icl_kernel_lens.results.head_scores import HeadScores
from icl_kernel_lens.scores.common import score_heads


@checked
def soft_agreement(evidence: Evidence, *, pooling: Pooling = "label") -> HeadScores:
    """How close the head's kernel regression ŷ is to the model's probabilities p over the labels.

        1 − JSD(ŷ, p) / ln 2,      ŷ_y = Σ_i a_i [y_i = y] / Σ_i a_i

    with p the softmax of the label scores. Between 0 (disjoint) and 1 (equal).
    Controls: `label_prior` (ŷ from uniform weights) and `uniform_labels` (ŷ = 1/labels).
    Does not show: agreement in the answer (see `head_vote`); a timid head and a timid model agree softly.

    Raises:   EvidenceMissing: `evidence` was read without this pooling.
    """
    prompts, weights = evidence.prompts, evidence.pooled(pooling)

    def shares(kernel: Float[Tensor, "prompt layer head demo"]) -> Float[Tensor, "prompt layer head label"]:
        return kernel_regression(kernel, prompts.demo_labels, prompts.labels)

    def closeness(to: Float[Tensor, "prompt layer head label"]) -> Float[Tensor, "prompt layer head"]:
        return 1 - jensen_shannon(to, evidence.label_probabilities) / math.log(2)

    prior = shares(torch.ones(len(prompts), 1, 1, prompts.demos))
    return score_heads(
        evidence,
        pooling,
        closeness(shares(weights)),
        name="soft_agreement",
        title="closeness of the head's label shares to the model's label probabilities",
        unit="1 − JSD/ln 2",
        controls={
            "label_prior": closeness(prior),
            "uniform_labels": closeness(torch.full_like(prior, 1 / prompts.labels)),
        },
        companions={"label_attention": weights.sum(-1).nanmean(0)},
    )
