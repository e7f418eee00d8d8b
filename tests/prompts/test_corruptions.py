"""Corrupted prompts: what changes is what was asked, and no position moves."""

from __future__ import annotations

from dataclasses import replace
from inspect import unwrap
from typing import get_args

import pytest
import torch
from prompts.small_tokenizers import byte_level, metaspace
from prompts.toy import (
    SAME_LENGTH,
    by_hand,
    corrupted,
    fake_adapter,
    refused,
    task,
    whole_words,
    written,
)
from support import shared_prompts

from icl_kernel_lens import load_task
from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.prompts.build import build_prompts
from icl_kernel_lens.prompts.corruptions import CORRUPTIONS, Corruption, corrupt

KINDS = ["permute_labels", "map_labels", "unrelated_words", "exchange_inputs", "replace_test_input"]
"""The kinds that move no position."""


def every_kind(adapter):
    """Each kind done to prompts from text."""
    texts = written(adapter, SAME_LENGTH, ("positive", "maybe"), demos=4, count=6)
    for how in KINDS:
        options = {"words": ("world", "sports"), "model": adapter} if how == "unrelated_words" else {}
        yield how, texts, corrupted(texts, how, **options)


@pytest.mark.parametrize("family", [whole_words, byte_level, metaspace])
def test_prompts_from_text_are_as_if_written_so(family):
    """What was done on token ids is what the tokenizer makes of the corrupted text."""
    adapter = fake_adapter(family())
    changed = 0
    for how, before, after in every_kind(adapter):
        assert after.episodes is not None
        assert after.info.template is not None
        again = build_prompts(
            adapter,  # pyright: ignore[reportArgumentType]
            list(after.episodes),
            after.info.template,
            info=after.info,
            classes=after.classes,
            score_on=after.score_on,
        )
        for name in (
            "tokens lengths roles answer_pos demo_spans label_spans demo_labels test_labels label_sequences "
            "label_lengths demo_set"
        ).split():
            assert torch.equal(getattr(after, name), getattr(again, name)), (how, name)
        assert after.label_words == again.label_words
        assert len(after.strings) == len(before.strings)
        assert [("".join(row)) for row in after.strings] == [("".join(row)) for row in again.strings], how
        if how in ("exchange_inputs", "replace_test_input", "permute_labels"):
            assert after.strings == again.strings, how
        changed += not torch.equal(before.tokens, after.tokens)
    assert changed == len(KINDS)


def sources(mini):
    yield load_task("topics").prompts(mini, demos=4, count=12, sets=4, match_lengths=True)
    shared = shared_prompts()
    end = shared.answer_pos.clone()
    end[:] = int(end.min())
    where = torch.arange(shared.tokens.shape[1])
    roles = shared.roles.where(where <= end[:, None], 0)
    even = replace(shared, answer_pos=end, lengths=end + 1, roles=roles, strings=())
    spans = even.demo_spans.clone()  # the last four tokens before each label are the input
    spans[..., 0] = even.label_pos - 4
    # Test inputs count from the last label: the prompt that stands alone is left out.
    yield replace(even, demo_spans=spans).select(range(3))


@pytest.mark.parametrize("how", KINDS)
def test_no_position_moves_and_nothing_given_is_edited(mini, how):
    for prompts in sources(mini):
        kept = [(t.clone() if isinstance(t, torch.Tensor) else t) for t in vars(prompts).values()]
        words = torch.tensor([101, 102, 103][: prompts.labels])
        after = corrupted(prompts, how, **({"words": words} if how == "unrelated_words" else {}))
        same = "lengths answer_pos demo_spans label_spans demo_set roles label_lengths".split()
        if how != "unrelated_words":
            same += ["label_sequences"]
        if how != "replace_test_input":
            same += ["test_labels"]
        if how not in ("permute_labels", "map_labels"):
            same += ["demo_labels"]
        for name in same:
            a, b = getattr(prompts, name), getattr(after, name)
            assert a is b or torch.equal(a, b), name
        # Tokens changed where they may, and nowhere else.
        rows, at = (after.tokens != prompts.tokens).nonzero(as_tuple=True)
        assert len(rows)
        labels = (prompts.label_pos[rows] == at[:, None]).any(1)
        tests = at >= prompts.demo_spans[rows, -1, 1]
        if how == "replace_test_input":
            assert tests.all()
        elif how == "exchange_inputs":
            assert not labels.any()
            assert not tests.any()
        else:
            assert labels.all()
        for prompt in range(len(after)):
            shown = after.label_tokens[prompt, after.demo_labels[prompt]]
            assert torch.equal(after.tokens[prompt, after.label_pos[prompt]], shown)
        for old, now in zip(kept, vars(prompts).values(), strict=True):
            assert torch.equal(old, now) if isinstance(old, torch.Tensor) else old == now
        # Prompts that share demonstrations go on sharing them.
        for prompt in range(len(after)):
            first = int((after.demo_set == after.demo_set[prompt]).nonzero()[0])
            end = int(after.demo_spans[prompt, -1, 1])
            assert torch.equal(after.tokens[prompt, :end], after.tokens[first, :end])


def test_requests_that_do_not_fit_are_refused():
    prompts = by_hand()
    with pytest.raises(PromptError, match="how must be one of 'permute_labels', .*; got 'shuffle'"):
        unwrap(corrupt)(prompts, "shuffle", seed=0)
    refused(prompts, "map_labels", "belongs to \"permute_labels\"; got it with 'map_labels'", derange=True)
    refused(prompts, "map_labels", "got them with 'map_labels'. Leave them out", words=("a", "b", "c"))
    refused(prompts, "unrelated_words", "none were given. Give the new label words")
    bare = task().prompts(fake_adapter(), demos=0, count=4, score_on="sequence")
    refused(bare, "permute_labels", "these prompts have none")
    one = task().prompts(fake_adapter(), demos=0, count=7, score_on="sequence", match_lengths=False)
    refused(one.select([0]), "replace_test_input", "as have 0 others")


def test_the_table_holds_every_kind():
    assert set(CORRUPTIONS) == set(get_args(Corruption)) == {*KINDS, "reorder_demos"}
