"""Control votes, which know less than a head; every vote score is shown beside them.

Agreement with the model's answer is cheap where the model follows something simple. Each control votes
by one simple rule, through the same code as the heads:

    label_prior        every demonstration weighs the same: the commonest label in the prompt
    last_label         the last demonstration alone (recency)
    first_demo         the first demonstration alone (what an attention sink in it would vote)
    commonest_answer   always the answer given most often over these prompts, without looking
    shuffled_labels    the head's own weights, the labels permuted among the demonstrations
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.numbers.permutations import shuffled_mean
from icl_kernel_lens.numbers.votes import credit, hard_vote, kernel_regression

SHUFFLES = 32
"""Permutations averaged over by `shuffled_labels`."""


def simple_weights(demo_labels: Int[Tensor, "prompt demo"]) -> dict[str, Float[Tensor, "prompt demo"]]:
    """The weights of the controls that look at places alone: all alike, the last, the first."""
    uniform = torch.ones(demo_labels.shape)
    last, first = torch.zeros_like(uniform), torch.zeros_like(uniform)
    last[:, -1], first[:, 0] = 1, 1
    return {"label_prior": uniform, "last_label": last, "first_demo": first}


def simple_votes(
    demo_labels: Int[Tensor, "prompt demo"], answer: Int[Tensor, " prompt"], labels: int
) -> dict[str, Float[Tensor, "prompt 1 1 label"]]:
    """The votes of the four controls that are the same for every head."""
    votes = {
        name: hard_vote(kernel_regression(weights[:, None, None], demo_labels, labels))
        for name, weights in simple_weights(demo_labels).items()
    }
    commonest = answer.bincount(minlength=labels).argmax()
    constant = torch.nn.functional.one_hot(commonest, labels).float()
    return votes | {"commonest_answer": constant.expand(len(demo_labels), 1, 1, labels).clone()}


def shuffled_credit(
    weights: Float[Tensor, "prompt layer head demo"],
    demo_labels: Int[Tensor, "prompt demo"],
    answer: Int[Tensor, " prompt"],
    labels: int,
    *,
    shuffles: int = SHUFFLES,
    seed: int = 0,
) -> Float[Tensor, "prompt layer head"]:
    """The mean credit of a head's weights over random permutations of the demonstrations' labels."""
    return shuffled_mean(
        lambda permuted: credit(hard_vote(kernel_regression(weights, permuted, labels)), answer),
        demo_labels,
        shuffles=shuffles,
        seed=seed,
    )
