"""Prompts in which half of the demonstrations are others: does what one of the rest brings hang on them?"""

from __future__ import annotations

import random

import torch
from jaxtyping import Bool
from torch import Tensor

from icl_kernel_lens.prompts.corrupt_inputs import inputs_of
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.prompts.relabel import interchangeable, relabelled


def change_company(prompts: PromptSet, seed: int) -> tuple[PromptSet, Bool[Tensor, "prompt demo"]]:
    """Half of the demonstrations (rounded down) get other labels, and inputs of equally many tokens move round among them; which
    of the demonstrations stay as they are.

    The same in prompts of one set. The inputs are those that were there before, so that a kernel regression has the same weights
    on all that stay. None stays where nothing could be changed. Prompts that share a number in `demo_set` show the same
    demonstrations.
    """
    where = torch.arange(prompts.tokens.shape[1]).repeat(len(prompts), 1)
    stays = torch.ones(len(prompts), prompts.demos, dtype=torch.bool)
    labels, can = prompts.demo_labels.clone(), interchangeable(prompts)
    for number, group in enumerate(prompts.demo_set.tolist()):
        draw = random.Random(f"change_company/{seed}/{group}")
        changed = sorted(draw.sample(range(prompts.demos), prompts.demos // 2))
        layouts, places = inputs_of(prompts, number)
        shown = [prompts.tokens[number, at].tolist() for at in places]
        alike: dict[tuple[int, ...], list[int]] = {}
        other = False
        for demo in changed:
            alike.setdefault(layouts[demo], []).append(demo)
            if choice := can[number, demo].nonzero()[:, 0].tolist():
                labels[number, demo], other = draw.choice(choice), True
        for demos in alike.values():
            for to, source in zip(demos, [*demos[1:], demos[0]], strict=True):
                where[number, places[to]] = torch.tensor(places[source])
                other |= shown[to] != shown[source]
        stays[number, changed] = False
        stays[number] &= other
    moved = prompts.rearranged(where, episodes=None, strings=())
    return relabelled(moved, torch.arange(len(prompts)), labels), stays
