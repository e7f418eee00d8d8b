"""The tokens of every label word as the answer, found by tokenizing it behind the prompt that it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.prompts.spans import LocatedPrompt
from icl_kernel_lens.prompts.template import Template
from icl_kernel_lens.prompts.tokenizer import encode


def find_label_tokens(
    tokenizer: Any,
    prompts: Sequence[LocatedPrompt],
    words: Sequence[tuple[str, ...]],
    template: Template,
    prepend_bos: bool | None,
) -> list[list[list[int]]]:
    """For each prompt and class, the label word's tokens behind the prompt, whose own tokens must not change.

    Raises: PromptError: they do change, or a word is not in the vocabulary.
    """
    before = template.demo.split("{label}")[0]
    gap = before[len(before.rstrip(" ")) :]
    flat = [prompt.text + gap + word for prompt, row in zip(prompts, words, strict=True) for word in row]
    encoded = iter(encode(tokenizer, flat, prepend_bos))
    unknown = getattr(tokenizer, "unk_token_id", None)

    def behind(prompt: list[int], word: str) -> list[int]:
        ids, _ = next(encoded)
        own, answer = ids[: len(prompt)], ids[len(prompt) :]
        if own != prompt or not answer:
            same = [a == b for a, b in zip(ids, prompt, strict=False)]
            raise PromptError(
                f"a label must begin a new token; written behind the prompt, {gap + word!r} changes the "
                f"prompt's own tokens from position {[*same, False].index(False)} on. End the template, before "
                "the label, in a character that the tokenizer does not merge, such as ':'.",
                code="label-tokens",
            )
        if unknown is not None and unknown in answer:
            raise PromptError(
                f"every label word must be in the tokenizer's vocabulary; {word!r} is not (it becomes "
                f"{tokenizer.unk_token!r}). Choose other words in label_words.",
                code="label-tokens",
            )
        return answer

    return [[behind(prompt.ids, word) for word in row] for prompt, row in zip(prompts, words, strict=True)]
