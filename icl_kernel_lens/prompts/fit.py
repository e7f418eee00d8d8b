"""Do prompts fit a model? Asked before anything runs."""

from __future__ import annotations

from typing import Any

import torch

from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.models.adapter import ModelAdapter
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.prompts.tokenizer import tokenizer_name, vocabulary_of


def check_fits(prompts: PromptSet, adapter: ModelAdapter) -> None:
    """Refuse prompts of another tokenizer, longer than the model's context, or with tokens it does not have.

    Raises: PromptError: with the longest prompt, and how many demonstrations would fit.
    """
    check_same_tokenizer(prompts, adapter)
    context, vocab = adapter.shape.context, adapter.shape.vocab
    answer = int(prompts.label_lengths.max()) - 1 if prompts.score_on == "sequence" else 0
    needed = prompts.lengths + answer
    if context is not None and (over := needed > context).any():
        fit = _demos_that_fit(prompts, needed - context)
        raise PromptError(
            f"a prompt must fit the model's context of {context} tokens; {int(over.sum())} of {len(prompts)} do "
            f"not (the longest needs {int(needed.max())}). "
            + (
                f"{fit} demonstrations would fit every prompt."
                if fit >= 0
                else "In some, not even the test input fits alone."
            ),
            code="too-long",
        )
    biggest = max(int(prompts.tokens.max()), int(prompts.label_sequences.max()))
    smallest = min(int(prompts.tokens.min()), int(prompts.label_sequences.min()))
    if biggest >= vocab or smallest < 0:
        raise PromptError(
            f"token ids must lie in 0…{vocab - 1} for {adapter.name}; found "
            f"{biggest if biggest >= vocab else smallest}. Were the prompts made for another model?",
            code="vocabulary",
        )


def check_same_tokenizer(prompts: PromptSet, adapter: ModelAdapter) -> None:
    """Refuse prompts whose ids stand for other tokens in this model; added tokens are not compared.

    Raises: PromptError: with what the ids are read as.
    """
    tokenizer: Any = adapter.tokenizer
    ours, theirs = prompts.info.vocabulary, vocabulary_of(tokenizer)
    if ours is None or theirs is None or ours == theirs:
        return
    start = prompts.tokens[0, : min(12, int(prompts.lengths[0]))].tolist()
    meant = "".join(prompts.strings[0][:12]) if prompts.strings else f"the tokens {start}"
    raise PromptError(
        f"prompts must be made with the model's own tokenizer; these are of {prompts.info.tokenizer!r}, and what "
        f"begins with {meant!r} begins with {tokenizer.decode(start)!r} for {adapter.name} "
        f"({tokenizer_name(tokenizer)!r}). Draw them with task.prompts(model, ...); to run the ids as they are, "
        "pass prompts.as_ids().",
        code="vocabulary",
    )


def _demos_that_fit(prompts: PromptSet, excess: torch.Tensor) -> int:
    """The most demonstrations that every prompt could keep, dropping from the end; -1 for not even none."""
    if prompts.demos == 0:
        return -1
    end = prompts.demo_spans[:, -1:, 1]
    # Keeping k demonstrations drops what lies between the k-th one's beginning and the last one's end.
    dropped = torch.cat([end - prompts.demo_spans[..., 0], torch.zeros_like(end)], 1)
    kept = torch.arange(prompts.demos + 1).where(dropped >= excess[:, None], -1)
    return int(kept.amax(1).min())
