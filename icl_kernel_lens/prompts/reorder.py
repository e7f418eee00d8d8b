"""The same prompts with their demonstrations in another order: a kernel regression does not care, a model may."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import torch

from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.models import as_lens
from icl_kernel_lens.prompts.build import build_prompts
from icl_kernel_lens.prompts.promptset import SHOWN, PromptSet


def reorder_demos(prompts: PromptSet, *, seed: int, model: Any = None) -> PromptSet:
    """The demonstrations of each prompt in a random order; prompts of one set go on sharing theirs.

    Prompts made from text are written anew and need `model` for its tokenizer; of ready-made ids, the tokens of
    `demo_spans` are moved, and those between them stay (without `demo_spans`, position 0 belongs to the first one).

    Raises: PromptError: prompts made from text, and no model; fewer than two demonstrations.
    """
    if prompts.demos < 2:
        raise PromptError(
            f"at least two demonstrations can be reordered; these prompts have {prompts.demos}."
        )
    orders = [_order(seed, int(group), prompts.demos) for group in prompts.demo_set]
    before = f"{prompts.info.corruption}; then " if prompts.info.corruption else ""
    info = replace(prompts.info, corruption=f"{before}demonstrations reordered, seed {seed}")
    if prompts.episodes is None or prompts.info.template is None:
        return _moved(replace(prompts, info=info), orders)
    if model is None:
        raise PromptError(
            "prompts made from text are written anew in another order; pass model= for its tokenizer."
        )
    episodes = [
        replace(episode, demos=tuple(episode.demos[i] for i in order))
        for episode, order in zip(prompts.episodes, orders, strict=True)
    ]
    return build_prompts(
        as_lens(model),
        episodes,
        prompts.info.template,
        info=info,
        classes=prompts.classes,
        score_on=prompts.score_on,
        prepend_bos=prompts.info.bos_asked,
    )


def _order(seed: int, group: int, demos: int) -> list[int]:
    order = list(range(demos))
    random.Random(f"reorder/{seed}/{group}").shuffle(order)
    return order


def _moved(prompts: PromptSet, orders: list[list[int]]) -> PromptSet:
    tokens, roles = prompts.tokens.clone(), prompts.roles.clone()
    spans, labels = prompts.demo_spans.clone(), prompts.label_spans.clone()
    for number, order in enumerate(orders):
        old, old_labels = prompts.demo_spans[number].tolist(), prompts.label_spans[number].tolist()
        at = old[0][0]
        where: list[int] = []
        for slot, demo in enumerate(order):
            start, end = old[demo]
            spans[number, slot] = torch.tensor([at, at + end - start])
            labels[number, slot] = torch.tensor(old_labels[demo]) - start + at
            where += range(start, end)
            at += end - start
            if slot + 1 < len(order):
                gap = range(old[slot][1], old[slot + 1][0])
                where += gap
                at += len(gap)
        first, last = old[0][0], old[-1][1]
        tokens[number, first:last] = prompts.tokens[number, where]
        roles[number, first:last] = prompts.roles[number, where]
    strings = tuple(
        tuple(f"{token} " for token in tokens[number, : int(prompts.lengths[number])].tolist())
        for number in range(min(SHOWN, len(prompts)))
    )
    index = torch.tensor(orders)
    return replace(
        prompts,
        tokens=tokens,
        roles=roles,
        demo_spans=spans,
        label_spans=labels,
        demo_labels=prompts.demo_labels.gather(1, index),
        strings=strings if prompts.strings else (),
        episodes=None,
    )
