"""A model's tokenizer, asked for token ids and the characters that each token covers."""

from __future__ import annotations

from typing import Any

from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.models.adapter import ModelAdapter

Offsets = list[tuple[int, int] | None]
"""The characters that each token covers, `[start, end)`; None for a token that the tokenizer added."""


def check_tokenizer(adapter: ModelAdapter) -> Any:
    """The tokenizer of a model, which must give character offsets.

    Raises: PromptError: there is none, or it is a slow one.
    """
    tokenizer = adapter.tokenizer
    if tokenizer is None:
        raise PromptError(
            f"prompts made from text need a tokenizer; {adapter.name} has none. Give the model one, or make "
            "token ids yourself and pass them to PromptSet.from_tokens.",
            code="tokenizer",
        )
    if not getattr(tokenizer, "is_fast", False):
        raise PromptError(
            "spans are read off the tokenizer's character offsets, which only fast tokenizers give; "
            f"{type(tokenizer).__name__} is a slow one. Load it with "
            "AutoTokenizer.from_pretrained(name, use_fast=True).",
            code="tokenizer",
        )
    return tokenizer


def tokenizer_name(tokenizer: Any) -> str:
    """What a tokenizer was loaded from, or else its class."""
    return getattr(tokenizer, "name_or_path", None) or type(tokenizer).__name__


def encode(tokenizer: Any, texts: list[str], prepend_bos: bool | None) -> list[tuple[list[int], Offsets]]:
    """The token ids of each text with their offsets. What a tokenizer appends to close a text is left out.

    `prepend_bos=None` adds in front what the tokenizer adds by default.

    Raises: PromptError: a beginning-of-sequence token is asked for, and the tokenizer has none.
    """
    for text in texts:
        if (at := next((i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"), None)) is not None:
            raise PromptError(
                f"a text must be Unicode to be tokenized; {text[max(0, at - 20) : at + 20]!r} holds half of a surrogate pair. "
                'Mend it with text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").',
                code="text-unicode",
            )
    out = tokenizer(
        texts,
        add_special_tokens=prepend_bos is None,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        truncation=False,
        padding=False,
        split_special_tokens=True,
        verbose=False,
    )
    bos = tokenizer.bos_token_id
    if prepend_bos and bos is None:
        raise PromptError(
            "prepend_bos=True needs a beginning-of-sequence token, and this tokenizer has none. Pass "
            "prepend_bos=False.",
            code="tokenizer",
        )
    rows = []
    for ids, offsets, special in zip(
        out["input_ids"], out["offset_mapping"], out["special_tokens_mask"], strict=True
    ):
        spans: Offsets = [
            None if added and a == b else (int(a), int(b))
            for added, (a, b) in zip(special, offsets, strict=True)
        ]
        while spans and spans[-1] is None:  # the answer must follow the text directly
            spans.pop()
        ids = list(ids[: len(spans)])
        rows.append(([bos, *ids], [None, *spans]) if prepend_bos else (ids, spans))
    return rows
