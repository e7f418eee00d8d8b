"""Prompts made from text and made anew, and what cannot be made."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from prompts.from_text import build, fake_adapter, task
from prompts.small_tokenizers import byte_level, metaspace, word_pieces

from icl_kernel_lens import Task, load_task
from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.prompts import build as module
from icl_kernel_lens.prompts.build import rebuilt
from icl_kernel_lens.prompts.promptset import TokenRole


def test_equal_first_label_tokens_are_refused_and_both_shown():
    source = task(words=("very good", "very bad"))
    with pytest.raises(
        PromptError,
        match=r"'very good' and 'very bad' both begin with ' ?very' \(token \d+, prompt 0\).*score_on=\"sequence\"",
    ):
        build(byte_level(), source)
    prompts = build(byte_level(), source, score_on="sequence")
    assert (prompts.label_sequences[:, 0, 0] == prompts.label_sequences[:, 1, 0]).all()
    assert (prompts.label_lengths > 1).all()


def test_unknown_and_overlapping_label_words_are_refused():
    with pytest.raises(PromptError, match=r"'☃' is not \(it becomes '\[UNK\]': \[UNK\]\)"):
        build(word_pieces(), task(words=("☃", "good")), score_on="sequence", demos=0)
    with pytest.raises(PromptError, match="'very' begins 'very good' in tokens"):
        build(byte_level(), task(words=("very good", "very")), score_on="sequence")


def test_a_label_read_otherwise_in_a_demonstration_is_refused(monkeypatch):
    """What is scored as the answer must be what stands in the demonstrations."""
    honest = module.find_label_tokens
    monkeypatch.setattr(
        module, "find_label_tokens", lambda *a: [[[t + 1 for t in s] for s in row] for row in honest(*a)]
    )
    with pytest.raises(PromptError, match="must have the same tokens in a demonstration and as the answer"):
        build(metaspace(), task(words=("lifeless", "gripping")), score_on="sequence")


def test_two_text_fields_and_no_demonstrations():
    rows = [{"text": f"premise {i}", "text2": f"guess {i}", "label": i % 3} for i in range(12)]
    source = Task.from_records(rows, rows, name="mnli", classes=("entailment", "neutral", "contradiction"))
    assert source.label_words == ("yes", "maybe", "no")
    prompts = build(metaspace(), source, demos=3, score_on="sequence")
    for role in (TokenRole.TEXT, TokenRole.TEXT2):
        assert (prompts.roles == role).any(1).all()
    assert prompts.demo_texts(0)[0].count(" / ") == 1
    bare = build(metaspace(), source, demos=0, score_on="sequence")
    assert bare.demo_spans.shape == (6, 0, 2)
    assert "Premise" in repr(bare)


def test_printing_shows_a_prompt_with_its_spans():
    prompts = build(byte_level(), score_on="sequence")
    text = repr(prompts)
    start, end = prompts.demo_spans[0, 1].tolist()
    assert f"demo 1  tokens {start}–{end - 1}  label at" in text
    assert "BOS: no" in text
    page = prompts._repr_html_()
    assert "<img src" not in page
    assert "&lt;" in page


def test_the_same_seed_gives_the_same_prompts():
    source = task()
    a = build(byte_level(), source, score_on="sequence")
    b = build(byte_level(), source, score_on="sequence")
    assert torch.equal(a.tokens, b.tokens)


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
    assert 5 < len(drawn) <= 10, "two permutations a set: five of them would be a coin toss"
    fresh = load_task("topics").prompts(mini, demos=8, count=40)
    assert torch.equal(rebuilt(mini, fresh, labels="permuted").demo_set, fresh.demo_set)


def test_a_set_of_enough_is_dealt_out_once_for_all_its_test_inputs(mini):
    """So that what its prompts share they go on sharing, labels permuted or not."""
    prompts = load_task("topics").prompts(mini, demos=8, count=40, sets=10)
    permuted = rebuilt(mini, prompts, labels="permuted")
    assert torch.equal(permuted.demo_set, prompts.demo_set)
    for some in prompts.demo_set.unique():
        mine = prompts.demo_set == some
        ends = prompts.demo_spans[mine, -1, 1]
        shown = {tuple(row[:end].tolist()) for row, end in zip(permuted.tokens[mine], ends, strict=True)}
        assert len(shown) == 1
    assert len({tuple(row) for row in permuted.demo_labels.tolist()}) > 5


def test_prompts_without_their_texts_are_refused(mini):
    prompts = load_task("topics").prompts(mini, demos=2, count=4)
    with pytest.raises(PromptError, match="only where they were made from text"):
        rebuilt(mini, replace(prompts, episodes=None), labels="none")
