"""Prompts whose demonstrations come in another order: a kernel regression does not depend on it, a model may."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import torch

from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.prompts.rewriting import rewritten


def reorder_demos(prompts: PromptSet, seed: int, *, model: Any) -> tuple[PromptSet, str]:
    """The demonstrations of each prompt in a random order, the same in prompts of one set; see `corrupt`."""
    if prompts.demos < 2:
        raise PromptError(
            f"at least two demonstrations can be reordered; these prompts have {prompts.demos}.",
            code="too-few-demonstrations",
        )
    orders = []
    for group in prompts.demo_set.tolist():
        order = list(range(prompts.demos))
        random.Random(f"reorder/{seed}/{group}").shuffle(order)
        orders.append(order)
    moved = sum(i != j for order in orders for i, j in enumerate(order))
    what = f"{100 * moved / prompts.demo_labels.numel():.1f}% of demonstrations moved"
    if not prompts.from_text:
        return _moved(prompts, orders), what
    if model is None:
        raise PromptError(
            "prompts made from text are written anew in another order; pass model= for its tokenizer.",
            code="tokenizer",
        )
    episodes = [
        replace(episode, demos=tuple(episode.demos[i] for i in order))
        for episode, order in zip(prompts.episodes or (), orders, strict=True)
    ]
    return rewritten(prompts, episodes, model), what


def _moved(prompts: PromptSet, orders: list[list[int]]) -> PromptSet:
    """The same token ids with the demonstrations' spans moved, and what separates them where it was in order."""
    where = torch.arange(prompts.tokens.shape[1]).repeat(len(prompts), 1)
    spans, labels = prompts.demo_spans.clone(), prompts.label_spans.clone()
    for number, order in enumerate(orders):
        old = prompts.demo_spans[number].tolist()
        first = at = old[0][0]
        source: list[int] = []
        for slot, demo in enumerate(order):
            start, end = old[demo]
            spans[number, slot] = torch.tensor([at, at + end - start])
            labels[number, slot] = prompts.label_spans[number, demo] + at - start
            behind = range(old[slot][1], old[slot + 1][0]) if slot + 1 < len(order) else ()
            source += [*range(start, end), *behind]
            at = first + len(source)
        where[number, first:at] = torch.tensor(source)
    return prompts.rearranged(
        where,
        demo_spans=spans,
        label_spans=labels,
        demo_labels=prompts.demo_labels.gather(1, torch.tensor(orders)),
        episodes=None,
    )
