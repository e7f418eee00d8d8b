"""Logits and label scores by either way, on prompts alone and behind a prefix."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import shared_prompts

from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.models.attention_passes import read_prefix
from icl_kernel_lens.run.forward import (
    answer_logits,
    check_first_token,
    intervened_logits,
    plain_logits,
    sequence_scores,
)


def long_labels(prompts):
    """Labels of one, two and three tokens."""
    pieces = torch.tensor([[10, 0, 0], [20, 11, 0], [30, 12, 13]]).expand(len(prompts), -1, -1).contiguous()
    lengths = torch.tensor([[1, 2, 3]]).repeat(len(prompts), 1)
    return replace(prompts, label_sequences=pieces, label_lengths=lengths, score_on="sequence")


@pytest.mark.parametrize("fast", [False, True])
def test_labels_of_several_tokens_by_hand(tiny, fast):
    """The sum of the log-probabilities that Hugging Face gives to each piece after those before it."""
    (model, hf), prompts = tiny("llama"), long_labels(shared_prompts())
    adapter = as_adapter(model)
    found = sequence_scores(adapter, prompts, fast=fast)
    for number in (0, 4, 6):
        tokens = prompts.tokens[number, : int(prompts.answer_pos[number]) + 1].tolist()
        for label, length in enumerate((1, 2, 3)):
            pieces = prompts.label_sequences[number, label, :length].tolist()
            with torch.no_grad():
                logprob = hf(torch.tensor([tokens + pieces])).logits[0].double().log_softmax(-1)
            expected = sum(logprob[len(tokens) - 1 + i, piece] for i, piece in enumerate(pieces))
            assert float(found[number, label]) == pytest.approx(float(expected), abs=1e-4)
    if fast:
        batch = prompts.select([0, 1, 2])
        prefix = read_prefix(adapter, batch.tokens[0, :20])
        shared = sequence_scores(adapter, batch, prefix, fast=True)
        torch.testing.assert_close(shared, found[:3], atol=1e-4, rtol=1e-5)


def test_every_way_gives_the_same_logits(tiny):
    adapter, batch = as_adapter(tiny("gemma2")[0]), shared_prompts().select([0, 1, 2])
    prefix = read_prefix(adapter, batch.tokens[0, :20])
    plain = answer_logits(adapter, batch, fast=False)
    ways = (
        answer_logits(adapter, batch, fast=True),
        answer_logits(adapter, batch, prefix, fast=True),
        answer_logits(adapter, batch, prefix, fast=False),
        intervened_logits(adapter, batch, lambda attention: attention.attend(), prefix),
        plain_logits(adapter, batch.tokens, batch.lengths, batch.answer_pos[:, None], {})[:, 0],
    )
    for logits in ways:
        torch.testing.assert_close(logits, plain, atol=1e-5, rtol=1e-5)


def test_prompts_that_one_position_does_not_answer():
    prompts = shared_prompts()
    check_first_token(prompts, "truth", "a score")
    refused = (
        (long_labels(prompts), "model", "a score is measured on the first token.*scored on whole labels"),
        (replace(prompts, test_labels=None), "truth", 'a score with toward="truth" needs true labels'),
    )
    for given, against, message in refused:
        with pytest.raises(PromptError, match=message):
            check_first_token(given, against, "a score", "toward")
