"""Do a head's weights follow the inputs, the label words, or an answer that is already there?

Every prompt is read once more with its labels permuted. With k a head's weights over the demonstrations, summing to 1,
k′ those of the second reading, and y′ its labels:

    moved     ½ Σ_i |k_i − k′_i|                        total variation between the two readings
    within    ½ Σ_c 1/n_c Σ_{i,j in c} |k_i − k_j|      the same for weights shuffled among demonstrations of one class
    words     ½ Σ_c |m_c − n_c/n|, m_c = Σ_i k′_i [y′_i = c], minus its mean when y′ is shuffled:
              how much more the weights gather on some label than they would if they did not know the labels
    echo      m_a − n_a/n for the model's answer a to the permuted prompt, minus the mean of the same for a's label
              token over other prompts: how much the weights follow the answer, beyond liking its word

A kernel's weights follow the inputs: moved is small beside within, words and echo are 0.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

SHUFFLES = 16
"""Shuffles of the labels that the mean of `words` is taken over."""
FEWEST = 5
"""Other prompts that a label token must be in, for what the head gives it there to be counted as a preference."""
Weights = Float[Tensor, "prompt layer head demo"]
PerPrompt = Float[Tensor, "prompt layer head"]


def normalised(weights: Weights) -> Weights:
    """Weights over their sum; NaN where that is 0."""
    mass = weights.sum(-1, keepdim=True)
    return (weights / mass).masked_fill(mass <= 0, float("nan"))


def moved(kernel: Weights, reread: Weights) -> PerPrompt:
    """Total variation between a prompt's weights and those with its labels permuted: 0 not moved, 1 all of it."""
    return (kernel - reread).abs().sum(-1) / 2


def moved_within(kernel: Weights, labels: Int[Tensor, "prompt demo"]) -> PerPrompt:
    """The mean total variation between the weights and themselves, shuffled among demonstrations of one class."""
    same = (labels[:, :, None] == labels[:, None]).to(kernel.dtype)
    share = same / same.sum(-1, keepdim=True)
    total = torch.zeros(kernel.shape[:3])
    for i in range(kernel.shape[-1]):
        total += ((kernel - kernel[..., i : i + 1]).abs() * share[:, None, None, :, i]).sum(-1)
    return total / 2


def excess(
    reread: Weights, labels: Int[Tensor, "prompt demo"], count: int
) -> Float[Tensor, "prompt layer head label"]:
    """m_c − n_c/n: what a label's demonstrations hold beyond their number."""
    one_hot = torch.nn.functional.one_hot(labels, count).to(reread.dtype)
    return torch.einsum("plhd,pdc->plhc", reread, one_hot) - one_hot.mean(1)[:, None, None]


def follows_words(
    reread: Weights, labels: Int[Tensor, "prompt demo"], count: int, *, seed: int = 0
) -> PerPrompt:
    """`words`: how far the weights gather on some label, beyond what shuffled labels give."""
    generator = torch.Generator().manual_seed(seed)
    found = excess(reread, labels, count).abs().sum(-1) / 2
    by_chance = torch.zeros_like(found)
    for _ in range(SHUFFLES):
        order = torch.rand(labels.shape, generator=generator).argsort(1)
        by_chance += excess(reread, labels.gather(1, order), count).abs().sum(-1) / 2
    return found - by_chance / SHUFFLES


def follows_answer(
    reread: Weights,
    labels: Int[Tensor, "prompt demo"],
    answer: Int[Tensor, " prompt"],
    label_tokens: Int[Tensor, "prompt label"],
) -> PerPrompt:
    """`echo`: how far the weights follow the answer, beyond what the head gives that answer's word elsewhere."""
    over = excess(reread, labels, label_tokens.shape[1])
    _, token = label_tokens.unique(return_inverse=True)
    flat, known = over.movedim(-1, 1).flatten(0, 1), token.flatten()
    valid = ~flat.isnan()
    kinds = int(known.max()) + 1
    total = torch.zeros(kinds, *flat.shape[1:]).index_add(0, known, flat.nan_to_num())
    number = torch.zeros(kinds, *flat.shape[1:]).index_add(0, known, valid.to(flat.dtype))
    index = answer[:, None, None, None].expand(*over.shape[:3], 1)
    mine = over.gather(-1, index)[..., 0]
    chosen = token.gather(1, answer[:, None])[:, 0]
    others = number[chosen] - (~mine.isnan()).to(mine.dtype)
    liked = (total[chosen] - mine.nan_to_num()) / others.clamp(min=1)
    return mine - liked.masked_fill(others < FEWEST, 0)
