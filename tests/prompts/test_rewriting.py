"""Prompts written anew: with permuted labels, and without demonstrations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from prompts.small_tokenizers import word_pieces
from prompts.test_build import build, fake_adapter

from icl_kernel_lens import load_task
from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.prompts.rewriting import rebuilt


def test_controls_are_tokenized_as_the_prompts_are():
    """A tokenizer that begins with a token of its own: the rewritten prompts begin with it too."""
    tokenizer = word_pieces()
    tokenizer.bos_token = "[SEP]"
    prompts = build(tokenizer, score_on="sequence")
    adapter = fake_adapter(tokenizer)
    for labels in ("permuted", "none"):
        again = rebuilt(adapter, prompts, labels=labels)
        assert (again.tokens[:, 0] == prompts.tokens[0, 0]).all()


def test_permuted_labels_keep_texts_and_label_counts(mini):
    prompts = load_task("topics").prompts(mini, demos=8, count=20, sets=5)
    permuted = rebuilt(mini, prompts, labels="permuted")
    assert permuted.info.permuted_labels
    assert torch.equal(permuted.label_pos, prompts.label_pos)
    assert torch.equal(permuted.demo_labels.sort(1).values, prompts.demo_labels.sort(1).values)
    assert not torch.equal(permuted.demo_labels, prompts.demo_labels)
    same = permuted.tokens == prompts.tokens
    assert same.scatter(1, prompts.label_pos, True).all()  # nothing but label tokens has changed
    drawn = {tuple(row) for row in permuted.demo_labels.tolist()}
    assert len(drawn) > 12, "a set's prompts are not all given one permutation"
    fresh = load_task("topics").prompts(mini, demos=8, count=40)
    assert torch.equal(rebuilt(mini, fresh, labels="permuted").demo_set, fresh.demo_set)


def test_prompts_without_their_texts_are_refused(mini):
    prompts = load_task("topics").prompts(mini, demos=2, count=4)
    with pytest.raises(PromptError, match="only where they were made from text"):
        rebuilt(mini, replace(prompts, episodes=None), labels="none")
