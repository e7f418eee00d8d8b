"""What knows less than a head: the votes every score is shown beside.

Agreement with the model's answer is cheap where the model follows something simple. Each control votes
by one simple rule, through the same code as the heads:

    label_prior        every demonstration weighs the same: the commonest label in the prompt
    last_label         the last demonstration alone (recency)
    first_demo         the first demonstration alone (what an attention sink in it would vote)
    commonest_answer   always the answer given most often over these prompts, without looking
    shuffled_labels    the head's own weights, the labels dealt out anew among the demonstrations
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.kernels.regression import credit, hard_vote, kernel_regression

SHUFFLES = 32
"""Permutations averaged over by `shuffled_labels`."""


def simple_weights(demo_labels: Int[Tensor, "prompt demo"]) -> dict[str, Float[Tensor, "prompt demo"]]:
    """Weights over the demonstrations that know nothing of the inputs."""
    uniform = torch.ones(demo_labels.shape)
    last, first = torch.zeros_like(uniform), torch.zeros_like(uniform)
    last[:, -1], first[:, 0] = 1, 1
    return {"label_prior": uniform, "last_label": last, "first_demo": first}


def simple_votes(
    demo_labels: Int[Tensor, "prompt demo"], answer: Int[Tensor, " prompt"], labels: int
) -> dict[str, Float[Tensor, "prompt 1 1 label"]]:
    """The votes of the four controls that do not depend on the head."""
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
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(weights.shape[:3])
    for _ in range(shuffles):
        order = torch.rand(demo_labels.shape, generator=generator).argsort(1)
        dealt = demo_labels.gather(1, order)
        total += credit(hard_vote(kernel_regression(weights, dealt, labels)), answer)
    return total / shuffles
