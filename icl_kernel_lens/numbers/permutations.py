"""Permutation tests of a head's agreement with the model's answers: could weights blind to the test input agree so often?

A head's p-value is the largest of several (an intersection–union test: a head must pass all, so that none needs a
correction for the others). Each is exact given the prompts, up to random draws, which count the observed order too:

    labels_permuted    the labels permuted among the demonstrations, the weights unchanged
    labels_reread      the same test of the weights that the head has in the prompts with permuted labels, voting with
                       the labels of the original prompts: weights that follow label words, or an answer, fail it
    answers_permuted   the model's answers permuted among prompts that show the same demonstrations
    label_prior, last_label, first_demo, commonest_answer, positions
                       the head against a simple vote, by flipping the signs of paired differences; `positions` votes
                       with the head's own mean weight at each place in the prompt, over other demonstration sets

Prompts that share their demonstrations form one factor, whose distribution is enumerated or drawn; the distributions
of all factors are convolved, so that the number of draws does not bound how small a p-value can be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import factorial, prod

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from icl_kernel_lens.numbers.draws import generator
from icl_kernel_lens.numbers.groups import group_sums, numbered
from icl_kernel_lens.numbers.votes import kernel_regression, normalised

DRAWS = 512
"""Permutations of one factor, where there are more."""
_TIE = 1e-5
"""Label shares this close are a tie, broken by the same random numbers for every head and control."""


def broken_ties(
    weights: Float[Tensor, "prompt *head demo"], labels: Int[Tensor, "prompt demo"], noise: Tensor
) -> Int[Tensor, "prompt *head"]:
    """The label that weights vote for, ties broken by `noise` (prompt, label); −1 where all weights are 0."""
    heads = weights.shape[1:-1]
    shares = kernel_regression(weights.flatten(1, -2)[:, None], labels, noise.shape[1])[:, 0]
    vote = (shares + noise[:, None]).nan_to_num(nan=-1.0).argmax(-1)
    return vote.masked_fill(shares.isnan().any(-1), -1).unflatten(1, heads)


def tie_noise(prompts: int, labels: int, generator: torch.Generator) -> Float[Tensor, "prompt label"]:
    """Small random numbers that break ties, one for each label of each prompt."""
    return torch.rand(prompts, labels, generator=generator) * _TIE


def p_labels_permuted(
    weights: Float[Tensor, "prompt head demo"],
    demo_labels: Int[Tensor, "prompt demo"],
    answer: Int[Tensor, " prompt"],
    demo_set: Int[Tensor, " prompt"],
    noise: Float[Tensor, "prompt label"],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Float[Tensor, " head"]:
    """P(agreement ≥ observed), the labels permuted among the demonstrations of each set.

        P(Σ_s A_s ≥ a),   A_s = Σ_{p in s} [vote(w_p, π(y_s)) = answer_p],   π uniform and independent between sets

    With a set for each prompt, Σ A is Poisson–binomial. Valid where weights depend on inputs and positions alone.
    """
    source = generator(seed)

    def agreements(members: Tensor) -> Tensor:
        labels = _arrangements(demo_labels[members[0]].tolist(), draws, source)
        one_hot = torch.nn.functional.one_hot(labels, noise.shape[1]).to(weights.dtype)
        counts = torch.zeros(len(labels), weights.shape[1], dtype=torch.long)
        for prompt in members.tolist():
            share = normalised(weights[prompt])
            votes = torch.einsum("hn,anc->ahc", share, one_hot) + noise[prompt]
            agree = votes.nan_to_num(nan=-1.0).argmax(-1) == answer[prompt]
            counts += agree & ~share.isnan().any(-1)
        return counts

    return _tail(map(agreements, _sets(demo_set)))


def p_answers_permuted(
    vote: Int[Tensor, "prompt head"],
    answer: Int[Tensor, " prompt"],
    demo_set: Int[Tensor, " prompt"],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Float[Tensor, " head"]:
    """P(agreement ≥ observed), the answers permuted among the prompts of each demonstration set.

    Valid where a head's vote depends on the demonstrations and not on the test input. Says nothing (1) where every
    prompt has demonstrations of its own.
    """
    source = generator(seed)

    def agreements(members: Tensor) -> Tensor:
        answers = _arrangements(answer[members].tolist(), draws, source)
        return (answers[:, :, None] == vote[members]).sum(1)

    return _tail(map(agreements, _sets(demo_set)))


def p_against(
    agree: Bool[Tensor, "prompt head"],
    control: Bool[Tensor, "prompt #head"],
    demo_set: Int[Tensor, " prompt"],
) -> Float[Tensor, " head"]:
    """P(Σ_s ±|d_s| ≥ Σ_s d_s), d_s the difference of the two agreements in set s, signs fair and independent.

    With a set for each prompt this is the exact one-sided McNemar test. With larger sets it is exact where d_s is
    symmetric about 0; with few sets of skewed differences it is somewhat too small.
    """
    sets = group_sums(agree.long() - control.long(), numbered(demo_set))
    # ±|d| ≥ d is (±|d| + |d|) / 2 ≥ (d + |d|) / 2: each set counts 0 or |d|.
    return _tail(torch.stack([sets.clamp(min=0), (-sets).clamp(min=0)], 1))


def shares_sets(demo_set: Int[Tensor, " prompt"]) -> bool:
    """Whether at least half of the prompts share their demonstrations with another prompt."""
    _, sizes = demo_set.unique(return_counts=True)
    return 2 * int(sizes[sizes > 1].sum()) >= len(demo_set)


def benjamini_hochberg(p: Float[Tensor, " test"]) -> Float[Tensor, " test"]:
    """Adjusted p-values: reject those ≤ q, and the expected share of false discoveries is ≤ q.

    Benjamini & Hochberg (1995); NaN (not tested) stays NaN and does not count.
    """
    from scipy.stats import false_discovery_control

    tested = ~p.isnan()
    adjusted = p.clone()
    adjusted[tested] = torch.as_tensor(false_discovery_control(p[tested].numpy()), dtype=p.dtype)
    return adjusted


def hardest(parts: Mapping[str, Float[Tensor, "*head"]]) -> Float[Tensor, "*head"]:
    """The p-value of the intersection–union test: the largest of the tests' p-values."""
    return torch.stack(list(parts.values())).amax(0)


def by_position(
    kernel: Float[Tensor, "prompt head demo"], demo_set: Int[Tensor, " prompt"]
) -> Float[Tensor, "prompt head demo"]:
    """Each head's mean weight at each place among the demonstrations, over prompts of other demonstration sets."""
    member, known = numbered(demo_set), ~kernel.isnan()
    sums = (group_sums(part.double(), member) for part in (kernel.nan_to_num(), known))
    total, count = (part.sum(0) - part[member] for part in sums)
    return (total / count.clamp(min=1)).to(kernel.dtype)


def shuffled_mean(
    score: Callable[[Tensor], Tensor], values: Num[Tensor, "prompt demo"], *, shuffles: int, seed: int
) -> Tensor:
    """The mean of a score over random permutations of `values` among the demonstrations of each prompt."""
    source = generator(seed)
    orders = (torch.rand(values.shape, generator=source).argsort(1) for _ in range(shuffles))
    return sum((score(values.gather(1, order)) for order in orders), torch.zeros(())) / shuffles


def _sets(demo_set: Int[Tensor, " prompt"]) -> Iterator[Int[Tensor, " member"]]:
    """The prompts of each demonstration set."""
    return ((demo_set == group).nonzero()[:, 0] for group in demo_set.unique())


def _arrangements(values: list[int], draws: int, generator: torch.Generator) -> Int[Tensor, "draw value"]:
    """All distinct orders of some values, or `draws` of them at random; the first is the given one."""
    if factorial(len(values)) // prod(factorial(n) for n in Counter(values).values()) > draws:
        order = torch.rand(draws - 1, len(values), generator=generator).argsort(1)
        first = torch.tensor(values)
        return torch.cat([first[None], first[order]])
    every = [[]]
    for _ in values:
        every = [
            [*start, value]
            for start in every
            for value in set(values)
            if start.count(value) < values.count(value)
        ]
    return torch.tensor(sorted(every, key=lambda order: order != values))


def _tail(sets: Iterable[Int[Tensor, "order head"]]) -> Float[Tensor, " head"]:
    """P(Σ_s A_s ≥ Σ_s a_s), A_s the counts of a set under its orders, which are equally likely; a_s is the first."""
    distribution, observed = torch.ones(1, 1, dtype=torch.float64), torch.zeros((), dtype=torch.long)
    for counts in sets:
        factor = torch.nn.functional.one_hot(counts).double().mean(0)  # (head, count)
        width = distribution.shape[1]
        wider = torch.zeros(len(factor), width + factor.shape[1] - 1, dtype=torch.float64)
        for count, chance in enumerate(factor.unbind(1)):
            wider[:, count : count + width] += distribution * chance[:, None]
        distribution, observed = wider, observed + counts[0]
    reached = torch.arange(distribution.shape[1]) >= observed[:, None]
    return (distribution * reached).sum(1).clamp(max=1)
