"""Toy prompts: one token a word, so that lengths can be counted by eye; and prompts from ready-made ids."""

from __future__ import annotations

import pytest
import torch
from prompts.from_text import fake_adapter as bare_adapter
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from icl_kernel_lens import PromptSet, Task
from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.prompts.corruptions import corrupt

TEXTS = (
    "a gripping film|a moving film|the very good|a dull film|good and dull|x good|is very very good".split(
        "|"
    )
)
SAME_LENGTH = [f"{a} {b} {a}" for a in ("a", "very", "good", "too") for b in ("no", "yes", "both")]
"""Three tokens each, for every tokenizer used here."""


def whole_words() -> PreTrainedTokenizerFast:
    """One token a word, so that lengths can be counted by eye."""
    every = f"<unk> Input Output : {' '.join(TEXTS)} {' '.join(SAME_LENGTH)} negative positive maybe world sports all bad z q this that"
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(dict.fromkeys(every.split()))}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def fake_adapter(tokenizer=None):
    """An adapter that is never run: only its tokenizer and sizes are asked for."""
    return bare_adapter(tokenizer or whole_words())


def task(texts=TEXTS, words=("negative", "positive"), tests=None):
    rows, held = (
        [{"text": text, "label": i % len(words)} for i, text in enumerate(pool)]
        for pool in (texts, tests or texts)
    )
    return Task.from_records(rows, held, name="toy", label_words=words)


def written(adapter=None, texts=TEXTS, words=("negative", "positive"), **options):
    """Prompts from text whose inputs have equal lengths."""
    options = {"demos": 3, "count": 4, "match_lengths": True, "score_on": "sequence"} | options
    return task(texts, words).prompts(adapter or fake_adapter(), **options)


def by_hand(**changes):
    """Two prompts: in the first, demonstrations 0 and 2 have inputs of two tokens, demonstration 1 of three."""
    given = {
        "tokens": torch.tensor(
            [
                [1, 11, 12, 50, 13, 14, 15, 51, 16, 17, 50, 18, 19],
                [1, 21, 22, 51, 23, 24, 25, 51, 26, 27, 50, 28, 29],
            ]
        ),
        "label_pos": torch.tensor([[3, 7, 10], [3, 7, 10]]),
        "demo_labels": torch.tensor([[0, 1, 0], [1, 1, 0]]),
        "label_tokens": torch.tensor([50, 51, 52]),
        "demo_spans": torch.tensor([[[1, 4], [4, 8], [8, 11]]]).repeat(2, 1, 1),
        "test_labels": torch.tensor([1, 2]),
    }
    return PromptSet.from_tokens(**(given | changes))


def corrupted(prompts, how, **options):
    """`corrupt` with seed 0 unless another is given."""
    return corrupt(prompts, how, **({"seed": 0} | options))


def refused(prompts, how, message, **options):
    with pytest.raises(PromptError, match=message):
        corrupted(prompts, how, **options)
