"""Shifts of a head's weights when labels are permuted: do they follow the inputs, the label words, or the answer?

Every prompt is read once more with its labels permuted. With k a head's weights over the demonstrations, summing to 1,
k′ those of the second reading, and y′ its labels:

    label_shift         ½ Σ_i |k_i − k′_i|              the total variation between the two readings
    word_bound_shift    ½ Σ_{i in M} mean over j in M with y_j = y′_i of |k_i − k_j|,  M: demonstrations whose label changed:
                        what the shift would be had each weight gone where its label word went
    within_class_shift  ½ Σ_c 1/n_c Σ_{i,j in c} |k_i − k_j|:
                        what it would be had weights been shuffled among demonstrations of one class
    words               ½ Σ_c |m_c − n_c/n| with m_c = Σ_i k′_i [y′_i = c], minus its mean when y′ is shuffled:
                        how much more the weights gather on some label than weights blind to labels would
    preferred           m_b − n_b/n, b the label shown whose token the head gives most beyond its number of demonstrations
                        in prompts of other demonstration sets
    echo                m_a − n_a/n, a the model's answer to the permuted prompt, minus the mean of the same for a's
                        token over prompts of other sets: how far the weights follow the answer, beyond liking its word

The weights of a kernel follow the inputs: label_shift is small beside word_bound_shift, and the last three are 0.
None of them shows that the head causes the answer.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from icl_kernel_lens.numbers.groups import group_sums, numbered
from icl_kernel_lens.numbers.permutations import shuffled_mean

SHUFFLES = 16
"""Shuffles of the labels over which `words` takes its mean."""
FEWEST = 5
"""Fewest other prompts with a label token from which a preference for it is known."""
Weights = Float[Tensor, "prompt layer head demo"]
PerPrompt = Float[Tensor, "prompt layer head"]


def label_shift(kernel: Weights, reread: Weights) -> PerPrompt:
    """The total variation between a prompt's weights and those with its labels permuted: 0 nothing moved, 1 all of it."""
    return (kernel - reread).abs().sum(-1) / 2


def word_bound_shift(
    kernel: Weights, labels: Int[Tensor, "prompt demo"], permuted: Int[Tensor, "prompt demo"]
) -> PerPrompt:
    """The label shift that weights bound to their label words would have, on average; 0 where no label changed."""
    changed = labels != permuted
    gets_word_of = permuted[:, :, None] == labels[:, None]
    return _mean_distances(kernel, changed[:, :, None] & changed[:, None] & gets_word_of)


def within_class_shift(kernel: Weights, labels: Int[Tensor, "prompt demo"]) -> PerPrompt:
    """The mean total variation between the weights and themselves shuffled among demonstrations of one class."""
    return _mean_distances(kernel, labels[:, :, None] == labels[:, None])


def _mean_distances(kernel: Weights, partners: Bool[Tensor, "prompt demo demo"]) -> PerPrompt:
    """½ Σ_i mean over the partners j of i of |k_i − k_j|; a demonstration without partners adds nothing."""
    share = partners.to(kernel.dtype) / partners.sum(-1, keepdim=True).clamp(min=1)
    total = torch.zeros(kernel.shape[:3])
    for i in range(kernel.shape[-1]):
        total += ((kernel - kernel[..., i : i + 1]).abs() * share[:, None, None, i]).sum(-1)
    return total / 2


def excess(
    reread: Weights, labels: Int[Tensor, "prompt demo"], count: int
) -> Float[Tensor, "prompt layer head label"]:
    """The weight on each label's demonstrations beyond their number: m_c − n_c/n."""
    one_hot = torch.nn.functional.one_hot(labels, count).to(reread.dtype)
    return torch.einsum("plhd,pdc->plhc", reread, one_hot) - one_hot.mean(1)[:, None, None]


def follows_words(
    reread: Weights, labels: Int[Tensor, "prompt demo"], count: int, *, seed: int = 0
) -> PerPrompt:
    """`words`: how far the weights gather on some label, beyond what shuffled labels give."""

    def gathered(y: Tensor) -> Tensor:
        return excess(reread, y, count).abs().sum(-1) / 2

    return gathered(labels) - shuffled_mean(gathered, labels, shuffles=SHUFFLES, seed=seed)


def follows_answer(
    reread: Weights,
    labels: Int[Tensor, "prompt demo"],
    answer: Int[Tensor, " prompt"],
    label_tokens: Int[Tensor, "prompt label"],
    demo_set: Int[Tensor, " prompt"],
) -> PerPrompt:
    """`echo`: how far the weights follow the answer, beyond what the head gives the answer's word in other prompts."""
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
    """`preferred`: how far the weights favour the label shown whose word the head likes best in other prompts.

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
    """The mean `excess` of each label's token over prompts of other demonstration sets, and the number of these prompts."""
    token = numbered(label_tokens)
    pairs = torch.stack([token, demo_set[:, None].expand_as(token)], -1).flatten(0, 1)
    own = pairs.unique(dim=0, return_inverse=True)[1]
    flat = over.movedim(-1, 1).flatten(0, 1)

    def others(values: Tensor) -> Tensor:
        """Sums over prompts with the token, without those of the same set."""
        every, mine = (group_sums(values, group)[group] for group in (token.flatten(), own))
        return (every - mine).unflatten(0, token.shape).movedim(1, -1)

    number = others((~flat.isnan()).to(flat.dtype))
    return others(flat.nan_to_num()) / number.clamp(min=1), number
