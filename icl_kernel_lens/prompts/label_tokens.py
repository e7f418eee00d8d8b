"""The tokens of every label word as the answer, found by tokenizing it behind the prompt that it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unicodedata import combining

from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.prompts.promptset import ScoreOn
from icl_kernel_lens.prompts.spans import LocatedPrompt
from icl_kernel_lens.prompts.template import Template
from icl_kernel_lens.prompts.tokenizer import Offsets, encode, unknown_tokens


def find_label_tokens(
    tokenizer: Any,
    prompts: Sequence[LocatedPrompt],
    words: Sequence[tuple[str, ...]],
    template: Template,
    prepend_bos: bool | None,
    score_on: ScoreOn,
) -> list[list[list[int]]]:
    """For each prompt and class, the label word's tokens behind the prompt, whose own tokens must not change.

    Raises: PromptError: they do change, a word is not in the vocabulary, or its first token is a bare space where
        first tokens are compared.
    """
    gap = template.gap
    flat = [
        [*prompt.stretches, (gap + word, False)]
        for prompt, row in zip(prompts, words, strict=True)
        for word in row
    ]
    encoded = iter(encode(tokenizer, flat, prepend_bos))
    unknown = unknown_tokens(tokenizer)

    def behind(prompt: LocatedPrompt, word: str) -> list[int]:
        ids, offsets = next(encoded)
        length = len(prompt.ids)
        answer = ids[length:]
        text = prompt.text + gap + word
        end = max((span[1] for span in offsets[:length] if span is not None), default=0)
        if ids[:length] != prompt.ids or text[len(prompt.text) : end].strip() or not answer:
            same = [a == b for a, b in zip(ids, prompt.ids, strict=False)]
            at = min([*same, False].index(False), length - 1)
            raise PromptError(
                f"a label must begin a new token; written behind the prompt, {gap + word!r} changes the "
                f"prompt's own tokens from position {at} on: {_pieces(prompt.ids[at:])} becomes "
                f"{_pieces(ids[at:])}. End the template, before the label, in a character that the tokenizer does not "
                "merge, such as ':'.",
                code="label-tokens",
            )
        lost = _lost(text, max(end, len(prompt.text)), offsets[length:])
        if lost or unknown & set(answer):
            becomes = tokenizer.convert_ids_to_tokens([t for t in answer if t in unknown][:1])
            raise PromptError(
                f"every label word must be in the tokenizer's vocabulary; {word!r} is not "
                + (
                    f"(it becomes {becomes[0]!r}: {_pieces(answer)})"
                    if becomes
                    else f"({_pieces(answer)} leave out a character)"
                )
                + ". Choose other words in label_words.",
                code="label-tokens",
            )
        if score_on == "first_token" and not tokenizer.decode(answer[:1]).strip():
            raise PromptError(
                f"a label's first token must be more than a space to be scored on it; {gap + word!r} becomes "
                f"{_pieces(answer)}, and a bare space would be compared with words. Choose other words in "
                'label_words, or score whole labels (score_on="sequence").',
                code="label-tokens",
            )
        return answer

    def _pieces(ids: Sequence[int]) -> str:
        return " | ".join(tokenizer.convert_ids_to_tokens(list(ids[:12])))

    return [[behind(prompt, word) for word in row] for prompt, row in zip(prompts, words, strict=True)]


def _lost(text: str, start: int, offsets: Offsets) -> str:
    """The characters from `start` on that no token covers, white space and accents aside."""
    covered = {at for span in offsets if span is not None for at in range(*span)}
    rest = (text[at] for at in range(start, len(text)) if at not in covered)
    return "".join(char for char in rest if not (char.isspace() or combining(char)))
