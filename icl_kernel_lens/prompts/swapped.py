"""Swaps the inputs of two demonstrations of different classes, where their labels stay: do weights go with the input?"""

from __future__ import annotations

import random
from itertools import combinations

import torch
from jaxtyping import Int
from torch import Tensor

from icl_kernel_lens.prompts.corrupt_inputs import inputs_of
from icl_kernel_lens.prompts.promptset import PromptSet

MOST_PAIRS = 3
"""Pairs of one prompt whose inputs are swapped."""


def swap_inputs(prompts: PromptSet, seed: int) -> tuple[PromptSet, Int[Tensor, "prompt pair 2"]]:
    """Up to three pairs of demonstrations a prompt with their inputs swapped, the same in prompts of one set; and these pairs.

    The two of a pair have different labels and inputs, of the same layout (equally many tokens, among others). Where there is such
    a choice, the two demonstrations behind the first pair are in no pair, so that weights which go with the input before can be
    seen there. −1 where a prompt has fewer pairs; prompts that share a number in `demo_set` show the same demonstrations.
    """
    where = torch.arange(prompts.tokens.shape[1]).repeat(len(prompts), 1)
    found = torch.full((len(prompts), MOST_PAIRS, 2), -1)
    for number, group in enumerate(prompts.demo_set.tolist()):
        layouts, places = inputs_of(prompts, number)
        shown = [prompts.tokens[number, at].tolist() for at in places]
        labels = prompts.demo_labels[number].tolist()
        order = random.Random(f"swap_inputs/{seed}/{group}").sample(range(prompts.demos), prompts.demos)
        alike = [
            (a, b)
            for a, b in combinations(order, 2)
            if labels[a] != labels[b] and shown[a] != shown[b] and layouts[a] == layouts[b]
        ]
        last = prompts.demos - 1
        free, pairs = set(order), []
        for a, b in (pair for pair in alike if abs(pair[0] - pair[1]) > 1 and last not in pair):
            pairs, free = [(a, b)], free - {a, b, a + 1, b + 1}
            break
        for a, b in alike:
            if {a, b} <= free and len(pairs) < MOST_PAIRS:
                pairs.append((a, b))
                free -= {a, b}
        for at, (a, b) in enumerate(pairs):
            found[number, at] = torch.tensor([a, b])
            where[number, places[a]] = torch.tensor(places[b])
            where[number, places[b]] = torch.tensor(places[a])
    return prompts.rearranged(where, episodes=None, strings=()), found
