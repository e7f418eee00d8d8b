"""Demonstrations in another order: nothing is lost, and every position is right again."""

from __future__ import annotations

import pytest
import torch
from prompts.toy import corrupted
from support import shared_prompts, uneven_prompts

from icl_kernel_lens import load_task
from icl_kernel_lens.errors import PromptError


def blocks(prompts, number):
    """A prompt's demonstrations as (tokens, place of the label in them, label)."""
    found = []
    for span, label, y in zip(
        prompts.demo_spans[number].tolist(),
        prompts.label_pos[number].tolist(),
        prompts.demo_labels[number].tolist(),
        strict=True,
    ):
        found.append((tuple(prompts.tokens[number, span[0] : span[1]].tolist()), label - span[0], y))
    return found


@pytest.mark.parametrize("make", [uneven_prompts, shared_prompts])
def test_token_ids_are_moved(make):
    prompts = make()
    moved = corrupted(prompts, "reorder_demos", seed=0)
    changed = 0
    for number in range(len(prompts)):
        before, after = blocks(prompts, number), blocks(moved, number)
        assert sorted(before) == sorted(after)
        changed += before != after
        last = int(prompts.demo_spans[number, -1, 1])
        assert torch.equal(moved.tokens[number, last:], prompts.tokens[number, last:])
        words = moved.label_tokens[number][moved.demo_labels[number]]
        old = prompts.label_tokens[number][prompts.demo_labels[number]]
        if torch.equal(prompts.tokens[number, prompts.label_pos[number]], old):
            assert torch.equal(moved.tokens[number, moved.label_pos[number]], words)
    assert changed >= 3
    assert torch.equal(moved.answer_pos, prompts.answer_pos)
    same = [torch.equal(moved.demo_labels[i], moved.demo_labels[0]) for i in range(len(prompts))]
    if make is shared_prompts:
        assert sum(same) >= 3, "prompts of one set go on sharing their demonstrations"
    places = [
        blocks(prompts, n)[i] != blocks(moved, n)[i]
        for n in range(len(prompts))
        for i in range(prompts.demos)
    ]
    assert (
        moved.info.corruption
        == f"reorder_demos, seed 0, {100 * sum(places) / len(places):.1f}% of demonstrations moved"
    )


def test_texts_are_written_anew(mini):
    prompts = load_task("topics").prompts(mini, demos=5, count=4, seed=0)
    moved = corrupted(prompts, "reorder_demos", seed=2, model=mini)
    for old, new in zip(prompts.episodes, moved.episodes, strict=True):
        assert sorted(map(repr, old.demos)) == sorted(map(repr, new.demos))
        assert old.test == new.test
    assert [e.demos for e in prompts.episodes] != [e.demos for e in moved.episodes]
    assert torch.equal(moved.tokens[:, 0], prompts.tokens[:, 0])
    with pytest.raises(PromptError, match="pass model="):
        corrupted(prompts, "reorder_demos", seed=0)
    with pytest.raises(PromptError, match="at least two demonstrations"):
        corrupted(load_task("topics").prompts(mini, demos=1, count=2), "reorder_demos", model=mini)
