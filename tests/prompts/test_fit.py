"""Prompts too long for a model are refused, with what would fit."""

from __future__ import annotations

import pytest
from prompts.from_text import build
from prompts.small_tokenizers import byte_level

from icl_kernel_lens.errors import PromptError


def test_prompts_too_long_are_refused_with_what_would_fit():
    tokenizer = byte_level()
    longest = int(build(tokenizer, score_on="sequence").lengths.max())
    for context in range(8, longest):
        with pytest.raises(PromptError, match=rf"context of {context} tokens; \d+ of 6 do not") as caught:
            build(tokenizer, context=context, score_on="sequence")
        text = caught.value.message
        if "not even the test input" in text:
            continue
        fit = int(text.rsplit(". ", 1)[1].split()[0])
        fitting = build(tokenizer, score_on="sequence")
        extra = int(fitting.label_lengths.max()) - 1
        for demos, fits in ((fit, True), (fit + 1, False)):
            # Independently: drop the last demonstrations of the very same prompts.
            needed = 0
            for p in range(6):
                starts = [*fitting.demo_spans[p, :, 0].tolist(), None]
                cut = starts[demos]
                dropped = 0
                if cut is not None:
                    dropped = int(fitting.demo_spans[p, -1, 1]) - cut
                needed = max(needed, int(fitting.lengths[p]) - dropped + extra)
            assert (needed <= context) is fits
