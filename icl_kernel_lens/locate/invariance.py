"""Do a head's weights follow the inputs, the label words, or an answer that is already there?

Every prompt is read once more with its labels permuted. With k a head's weights over the demonstrations, summing to 1,
k′ those of the second reading, and y′ its labels:

    moved     ½ Σ_i |k_i − k′_i|                        total variation between the two readings
    carried   ½ Σ_{i in M} mean over j in M with y_j = y′_i of |k_i − k_j|, M those whose label changed:
              the same if each weight had gone where its label word went
    within    ½ Σ_c 1/n_c Σ_{i,j in c} |k_i − k_j|      the same for weights shuffled among demonstrations of one class
    words     ½ Σ_c |m_c − n_c/n|, m_c = Σ_i k′_i [y′_i = c], minus its mean when y′ is shuffled:
              how much more the weights gather on some label than they would if they did not know the labels
    preferred m_b − n_b/n for that label b shown whose token the head gives most beyond its number, in prompts of other demonstration sets
    echo      m_a − n_a/n for the model's answer a to the permuted prompt, minus the mean of the same for a's label
              token over prompts of other sets: how much the weights follow the answer, beyond liking its word

A kernel's weights follow the inputs: moved is small beside carried, and the last three are 0.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

SHUFFLES = 16
"""Shuffles of the labels that the mean of `words` is taken over."""
FEWEST = 5
"""Other prompts a label token must be in for what the head gives it there to count as a preference."""
Weights = Float[Tensor, "prompt layer head demo"]
PerPrompt = Float[Tensor, "prompt layer head"]


def normalised(weights: Weights) -> Weights:
    """Weights over their sum; NaN where that is 0."""
    mass = weights.sum(-1, keepdim=True)
    return (weights / mass).masked_fill(mass <= 0, float("nan"))


def moved(kernel: Weights, reread: Weights) -> PerPrompt:
    """Total variation between a prompt's weights and those with its labels permuted: 0 not moved, 1 all of it."""
    return (kernel - reread).abs().sum(-1) / 2


def carried(
    kernel: Weights, labels: Int[Tensor, "prompt demo"], permuted: Int[Tensor, "prompt demo"]
) -> PerPrompt:
    """The mean total variation, had each weight gone with its label word; 0 where no label changed."""
    changed = labels != permuted
    total = torch.zeros(kernel.shape[:3])
    for i in range(kernel.shape[-1]):
        mine = changed & changed[:, i : i + 1] & (labels == permuted[:, i : i + 1])
        share = mine.to(kernel.dtype) / mine.sum(-1, keepdim=True).clamp(min=1)
        total += ((kernel - kernel[..., i : i + 1]).abs() * share[:, None, None]).sum(-1)
    return total / 2


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
    demo_set: Int[Tensor, " prompt"],
) -> PerPrompt:
    """`echo`: how far the weights follow the answer, beyond what the head gives that answer's word elsewhere."""
    over = excess(reread, labels, label_tokens.shape[1])
    liked, others = _elsewhere(over, label_tokens, demo_set)
    index = answer[:, None, None, None].expand(*over.shape[:3], 1)
    liked = liked.masked_fill(others < FEWEST, 0)
    return (over - liked).gather(-1, index)[..., 0]


def prefers_word(
    reread: Weights,
    labels: Int[Tensor, "prompt demo"],
    label_tokens: Int[Tensor, "prompt label"],
    demo_set: Int[Tensor, " prompt"],
) -> PerPrompt:
    """`preferred`: what the weights give, beyond its number, to the label shown whose word the head likes best elsewhere.

    NaN where fewer than two labels shown are known from `FEWEST` other prompts.
    """
    over = excess(reread, labels, label_tokens.shape[1])
    liked, others = _elsewhere(over, label_tokens, demo_set)
    shown = torch.nn.functional.one_hot(labels, label_tokens.shape[1]).any(1)[:, None, None]
    known = shown & (others >= FEWEST)
    best = liked.masked_fill(~known, -torch.inf).argmax(-1, keepdim=True)
    return over.gather(-1, best)[..., 0].masked_fill(known.sum(-1) < 2, float("nan"))


def _elsewhere(
    over: Float[Tensor, "prompt layer head label"],
    label_tokens: Int[Tensor, "prompt label"],
    demo_set: Int[Tensor, " prompt"],
) -> tuple[Float[Tensor, "prompt layer head label"], Float[Tensor, "prompt layer head label"]]:
    """The mean of `excess` of each label's token over prompts of other demonstration sets, and how many these are."""
    _, token = label_tokens.unique(return_inverse=True)
    _, mine = (
        torch.stack([token, demo_set[:, None].expand_as(token)], -1)
        .flatten(0, 1)
        .unique(dim=0, return_inverse=True)
    )
    flat = over.movedim(-1, 1).flatten(0, 1)
    valid = (~flat.isnan()).to(flat.dtype)

    def others(values: Tensor) -> Tensor:
        """Sums over prompts with the token, without those of the same set."""
        sums = []
        for group in (token.flatten(), mine):
            whole = torch.zeros(int(group.max()) + 1, *values.shape[1:]).index_add(0, group, values)
            sums.append(whole[group])
        return (sums[0] - sums[1]).unflatten(0, token.shape).movedim(1, -1)

    number = others(valid)
    return others(flat.nan_to_num()) / number.clamp(min=1), number
