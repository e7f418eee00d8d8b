"""Crosses prompts of different demonstrations: the demonstrations of one with the test inputs of several.

What a head or a model does with the *pair* of test input and demonstration is seen where demonstrations stay and the test
input alone varies.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.prompts.build import rewritten
from icl_kernel_lens.prompts.promptset import TEXT_ROLES, PromptSet, TokenRole


def cross(prompts: PromptSet, each: int, *, model: Any) -> PromptSet:
    """Every `each` prompts, one after the other, make a set, numbered from 0: the first's demonstrations with the test inputs of all of them.

    A test input that is one of the demonstrations' is left out; so are prompts at the end that fill no set. Prompts from text are
    written anew, others put together of token ids.

    Raises: PromptError: prompts have label words of their own, which the test inputs of others do not go with; no set holds two
                test inputs.
    """
    check_crossed(prompts)
    firsts = torch.arange(0, len(prompts) - each + 1, each)
    shown = firsts.repeat_interleave(each)
    tested = torch.arange(len(shown))
    apart = torch.tensor(
        [not _shows(prompts, a, b) for a, b in zip(shown.tolist(), tested.tolist(), strict=True)],
        dtype=torch.bool,
    )
    shown, tested = shown[apart], tested[apart]
    if each < 2 or not len(shown) or int(shown.bincount().max()) < 2:
        raise PromptError(
            f"demonstrations can be crossed with at least two test inputs that are none of them; of {len(prompts)} prompts in "
            f"sets of {each} no set has two. Draw more prompts, or with task.prompts(..., sets=32).",
            code="too-few-sets",
        )
    demo_set = shown // each
    if not prompts.from_text:
        return replace(_put_together(prompts, shown, tested), demo_set=demo_set)
    assert prompts.episodes is not None
    episodes = [
        replace(prompts.episodes[a], test=prompts.episodes[b].test, demo_set=at)
        for a, b, at in zip(shown.tolist(), tested.tolist(), demo_set.tolist(), strict=True)
    ]
    return rewritten(prompts, episodes, model)


def check_crossed(prompts: PromptSet) -> None:
    """Refuse prompts with label words of their own.

    Raises: PromptError: the first that differs.
    """
    sequences = prompts.label_sequences
    if len(other := (sequences != sequences[:1]).flatten(1).any(1).nonzero()[:, 0]):
        at, words = int(other[0]), prompts.label_words
        raise PromptError(
            "test inputs can be shown with other prompts' demonstrations only if all have the same label words; prompt 0 has "
            f"{', '.join(words[0])} and prompt {at} {', '.join(words[at])}. Draw prompts that share their demonstrations: "
            "task.prompts(..., sets=32).",
            code="no-shared-sets",
        )


def _put_together(prompts: PromptSet, shown: Int[Tensor, " row"], tested: Int[Tensor, " row"]) -> PromptSet:
    """The tokens of each `shown` prompt up to the end of its demonstrations, and those of `tested` behind them."""
    ends = prompts.demo_spans[:, -1, 1]
    behind = prompts.lengths[tested] - ends[tested]
    lengths = ends[shown] + behind
    here = torch.arange(int(lengths.max()))
    first = here < ends[shown][:, None]
    rows = torch.where(first, shown[:, None], tested[:, None])
    where = torch.where(first, here, here - ends[shown][:, None] + ends[tested][:, None])
    inside = here < lengths[:, None]
    where = where.masked_fill(~inside, 0)
    whole = replace(prompts, strings=(), episodes=None).select(shown.tolist())
    return replace(
        whole,
        tokens=prompts.tokens[rows, where].masked_fill(~inside, 0),
        roles=prompts.roles[rows, where].masked_fill(~inside, int(TokenRole.PADDING)),
        lengths=lengths,
        answer_pos=ends[shown] + prompts.answer_pos[tested] - ends[tested],
        test_labels=None if prompts.test_labels is None else prompts.test_labels[tested],
    )


def _shows(prompts: PromptSet, shown: int, tested: int) -> bool:
    """Whether the demonstrations of one prompt show the test input of another."""
    if prompts.episodes is not None:
        return prompts.episodes[tested].test.texts in {d.texts for d in prompts.episodes[shown].demos}
    start, end = int(prompts.demo_spans[tested, -1, 1]), int(prompts.answer_pos[tested]) + 1
    test = _text(prompts, tested, start, end)
    return any(_text(prompts, shown, a, b) == test for a, b in prompts.demo_spans[shown].tolist())


def _text(prompts: PromptSet, number: int, start: int, end: int) -> list[int]:
    roles = prompts.roles[number, start:end]
    return prompts.tokens[number, start:end][(roles[:, None] == torch.tensor(TEXT_ROLES)).any(1)].tolist()
