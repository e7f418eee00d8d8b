"""The tokenizer's own habits: its first token, special tokens in a text, and the offsets that are needed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from prompts.from_text import FAMILIES, build
from prompts.small_tokenizers import byte_level

from icl_kernel_lens.errors import PromptError


@pytest.mark.parametrize("family", FAMILIES)
def test_bos_is_what_the_tokenizer_does_unless_told(family):
    tokenizer = FAMILIES[family]()
    default = build(tokenizer, score_on="sequence")
    adds = tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    assert default.info.prepend_bos is adds
    with_bos = build(tokenizer, score_on="sequence", prepend_bos=True)
    without = build(tokenizer, score_on="sequence", prepend_bos=False)
    assert (with_bos.tokens[:, 0] == tokenizer.bos_token_id).all()
    assert with_bos.info.prepend_bos is True
    assert without.info.prepend_bos is False
    assert torch.equal(with_bos.lengths, without.lengths + 1)
    assert torch.equal(with_bos.label_pos, without.label_pos + 1)
    for p in range(len(without)):
        n = int(without.lengths[p])
        assert with_bos.tokens[p, 1 : n + 1].tolist() == without.tokens[p, :n].tolist()


def test_special_tokens_in_a_text_stay_text():
    """`</s>` in a tweet is three characters and a letter, not the end of the sequence."""
    tokenizer = byte_level()
    prompts = build(tokenizer, demos=7, count=8, score_on="sequence")
    assert (prompts.tokens[:, 1:] != tokenizer.eos_token_id).sum() > 0
    special = torch.tensor(tokenizer.all_special_ids)
    real = torch.arange(prompts.tokens.shape[1]) < prompts.lengths[:, None]
    assert not torch.isin(prompts.tokens[real], special).any()


def test_a_tokenizer_is_needed_and_must_give_offsets():
    slow = SimpleNamespace(is_fast=False, name_or_path="slow")
    with pytest.raises(PromptError, match="fake has none. Give the model one"):
        build(None)
    with pytest.raises(PromptError, match="only fast tokenizers give"):
        build(slow)
