"""How close a head's label shares are to the model's distribution over the labels."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from icl_kernel_lens.axes import Pooling
from icl_kernel_lens.evidence import Evidence
from icl_kernel_lens.kernels.regression import jensen_shannon, kernel_regression
from icl_kernel_lens.results.head_scores import HeadScores
from icl_kernel_lens.scores.common import reasons_for, reference, shown_demos


def soft_agreement_values(
    shares: Float[Tensor, "prompt layer head label"], model: Float[Tensor, "prompt label"]
) -> Float[Tensor, "prompt layer head"]:
    """1 − JSD(ŷ, p) / ln 2: 1 equal distributions, 0 disjoint ones."""
    return 1 - jensen_shannon(shares, model) / math.log(2)


def soft_agreement(evidence: Evidence, *, pooling: Pooling = "label") -> HeadScores:
    """How close the head's kernel regression ŷ is to the model's probabilities p over the labels.

        1 − JSD(ŷ, p) / ln 2,      ŷ_y = Σ_i a_i [y_i = y] / Σ_i a_i

    with p the softmax of the label scores. Between 0 (disjoint) and 1 (equal).
    Controls: `label_prior` (ŷ from uniform weights) and `uniform_labels` (ŷ = 1/labels).
    Does not show: agreement in the answer (see `head_vote`); a timid head and a timid model agree softly.

    Raises:   EvidenceMissing: `evidence` was read without this pooling.
    """
    answer = reference(evidence, "model")
    prompts = evidence.prompts
    weights, model = evidence.pooled(pooling), evidence.label_probabilities
    prior = kernel_regression(
        torch.ones(len(prompts), 1, 1, prompts.demos), prompts.demo_labels, prompts.labels
    )
    shares = kernel_regression(weights, prompts.demo_labels, prompts.labels)
    return HeadScores(
        name="soft_agreement",
        title="closeness of the head's label shares to the model's label probabilities",
        unit="1 − JSD/ln 2",
        values=soft_agreement_values(shares, model),
        controls={
            "label_prior": soft_agreement_values(prior, model),
            "uniform_labels": soft_agreement_values(torch.full_like(prior, 1 / prompts.labels), model),
        },
        companions={"label_mass": weights.sum(-1).nanmean(0)},
        reasons=reasons_for(evidence, weights),
        demo_set=prompts.demo_set,
        run=evidence.run,
        settings={"pooling": pooling},
        shown=shown_demos(evidence, weights, answer),
    )
