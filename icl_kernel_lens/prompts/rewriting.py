"""Prompts written anew from their texts: without demonstrations, with permuted labels, or with other episodes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.prompts.build import build_prompts
from icl_kernel_lens.prompts.example import Episode
from icl_kernel_lens.prompts.promptset import PromptInfo, PromptSet

PERMUTATIONS = 32
"""Fewest permutations of labels that prompts with permuted labels are drawn from."""


def rewritten(
    prompts: PromptSet, episodes: Sequence[Episode], model: Any, info: PromptInfo | None = None
) -> PromptSet:
    """The prompts of these episodes, in the template and with the tokenization of `prompts`."""
    assert prompts.info.template is not None
    return build_prompts(
        as_adapter(model),
        episodes,
        prompts.info.template,
        info=info or prompts.info,
        classes=prompts.classes,
        score_on=prompts.score_on,
        prepend_bos=prompts.info.bos_asked,
    )


def rebuilt(model: Any, prompts: PromptSet, *, labels: Literal["none", "permuted"]) -> PromptSet:
    """The same test inputs with no demonstrations (`"none"`), or with the demonstrations' labels permuted.

    Raises: PromptError: the prompts were not made from text in this session.
    """
    if not prompts.from_text:
        raise PromptError(
            "prompts can be written anew only where they were made from text in this session; these came "
            "from token ids or from a file. Draw them again with task.prompts(...).",
            code="only-text",
        )
    given = prompts.episodes or ()
    if labels == "none":
        episodes = [episode.without_demos() for episode in given]
    else:
        # With few sets, one permutation a set would be a coin toss: the prompts of a set take turns with several.
        turns = -(-PERMUTATIONS // len({episode.demo_set for episode in given}))
        seen: Counter[int] = Counter()
        episodes = []
        for episode in given:
            turn = seen[episode.demo_set] % turns
            seen[episode.demo_set] += 1
            name = f"permute/{prompts.info.seed}/{episode.demo_set}" + (f"/{turn}" if turn else "")
            episodes.append(episode.with_permuted_labels(random.Random(name)))
    info = replace(prompts.info, demos=len(episodes[0].demos), permuted_labels=labels == "permuted")
    return rewritten(prompts, episodes, model, info)
