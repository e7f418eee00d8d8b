"""Prompts from text by three families of tokenizers, without a model."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from prompts.small_tokenizers import byte_level, metaspace, word_pieces

from icl_kernel_lens import Task
from icl_kernel_lens.models.adapter import ModelShape
from icl_kernel_lens.prompts.build import build_prompts
from icl_kernel_lens.prompts.example import Example
from icl_kernel_lens.prompts.promptset import PromptInfo

TEXTS = [
    "a gripping film",
    "dull, lifeless and far too long!",
    "Café 🎬 naïve 好",
    "it says positive and negative both; Sentiment: positive",
    "</s><|endoftext|> <img src=x onerror=alert(1)>",
    '\'tis (not) "good"',
    "x",
    "the acting is very good",
]


def fake_adapter(tokenizer, context=None):
    """An adapter that is never run: only its tokenizer and sizes are asked for."""
    return SimpleNamespace(
        tokenizer=tokenizer,
        name="fake",
        kind="fake",
        shape=ModelShape(2, 2, 2, context, 10_000),
        model=None,
        dtype=torch.float32,
        device=torch.device("cpu"),
        missing_attention=dict,
        watching=dict,
        forward=dict,
    )


def task(words=("negative", "positive"), template=None, texts=TEXTS):
    rows = [{"text": t, "label": i % 2} for i, t in enumerate(texts)]
    options = {} if template is None else {"template": template}
    return Task.from_records(rows, rows, name="toy", label_words=words, **options)


def build(tokenizer, source=None, *, context=None, demos=4, count=6, **options):
    source = source or task()
    episodes = source.episodes(demos=demos, count=count, seed=0)
    return build_prompts(
        fake_adapter(tokenizer, context),  # pyright: ignore[reportArgumentType]
        episodes,
        source.template,
        info=PromptInfo(task="toy"),
        classes=source.classes,
        **options,
    )


FAMILIES = {
    "byte_level": byte_level,
    "byte_level_bos": lambda: byte_level(True),
    "metaspace": metaspace,
    "word_pieces": word_pieces,
}


def squeeze(text: str) -> str:
    return "".join(text.lower().split())


ROWS = [{"text": f"text {i}", "label": ("bad", "good")[i % 2]} for i in range(12)]


def example(texts, label):
    """An `Example` of what a user may give, past the type checks of the tests."""
    made = object.__new__(Example)
    object.__setattr__(made, "texts", texts)
    object.__setattr__(made, "label", label)
    made.__post_init__()
    return made
