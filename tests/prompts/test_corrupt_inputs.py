"""Inputs exchanged among demonstrations and test inputs replaced, only within a length; demonstrations in another
order: nothing is lost, and every position is right again."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from prompts.toy import (
    by_hand,
    corrupted,
    fake_adapter,
    refused,
    task,
    written,
)
from support import shared_prompts, uneven_prompts

from icl_kernel_lens import load_task
from icl_kernel_lens.errors import PromptError


def test_inputs_are_exchanged_only_within_a_length():
    prompts = by_hand()
    after = corrupted(prompts, "exchange_inputs")
    assert after.tokens.tolist() == [
        [1, 16, 17, 50, 13, 14, 15, 51, 11, 12, 50, 18, 19],
        [1, 26, 27, 51, 23, 24, 25, 51, 21, 22, 50, 28, 29],
    ]
    assert list(after.strings[0]) == [f"{token} " for token in after.tokens[0].tolist()]
    # Two of three inputs moved in each prompt; only the second prompt's are of different classes.
    said = "exchange_inputs, seed 0, 66.7% of inputs changed, 33.3% to one of another class"
    assert after.info.corruption == said


def test_inputs_are_exchanged_only_beside_the_same_template():
    """Three inputs of one token; before the second stands another token of the template, say a space."""
    prompts = by_hand()
    tokens, roles = prompts.tokens.clone(), prompts.roles.clone()
    tokens[:, 8] = tokens[:, 1]
    roles[:, [1, 4, 5, 8]] = 2
    prompts = replace(prompts, tokens=tokens, roles=roles)
    for seed in range(10):
        after = corrupted(prompts, "exchange_inputs", seed=seed)
        assert after.tokens[0].tolist() == [1, 11, 17, 50, 13, 14, 15, 51, 11, 12, 50, 18, 19]


def test_exchanges_are_uniform_among_those_that_change_something():
    tokens = torch.tensor([[1, 11, 50, 12, 51, 13, 52, 14]])
    prompts = by_hand(
        tokens=tokens,
        label_pos=torch.tensor([[2, 4, 6]]),
        demo_labels=torch.tensor([[0, 1, 2]]),
        demo_spans=torch.tensor([[[1, 3], [3, 5], [5, 7]]]),
        test_labels=None,
    )
    seen = Counter(
        tuple(corrupted(prompts, "exchange_inputs", seed=seed).tokens[0, [1, 3, 5]].tolist())
        for seed in range(600)
    )
    assert set(seen) == set(permutations([11, 12, 13])) - {(11, 12, 13)}
    assert all(abs(times - 120) < 5 * 120**0.5 for times in seen.values())


def with_test_inputs(**changes):
    """Four prompts that share a demonstration with input 7; the test inputs are 7, 8, 9 and 8."""
    return by_hand(
        **{
            "tokens": torch.tensor([[7, 50, 7], [7, 50, 8], [7, 50, 9], [7, 50, 8]]),
            "label_pos": torch.tensor([[1]] * 4),
            "demo_labels": torch.tensor([[0]] * 4),
            "demo_spans": None,
            "test_labels": torch.tensor([0, 1, 2, 1]),
        }
        | changes
    )


def test_a_test_input_comes_from_another_prompt_and_is_none_that_is_shown():
    prompts = with_test_inputs()
    seen: dict[int, set[int]] = {i: set() for i in range(4)}
    for seed in range(60):
        after = corrupted(prompts, "replace_test_input", seed=seed)
        for prompt, token in enumerate(after.tokens[:, 2].tolist()):
            seen[prompt].add(token)
        assert after.test_labels.tolist() == [{8: 1, 9: 2}[token] for token in after.tokens[:, 2].tolist()]
        assert after.strings[0][2] == f"{int(after.tokens[0, 2])} "
    assert seen == {0: {8, 9}, 1: {9}, 2: {8}, 3: {9}}
    assert corrupted(replace(prompts, test_labels=None), "replace_test_input").test_labels is None


def test_test_inputs_of_prompts_that_are_not_shown_are_spelled():
    """Twelve prompts, eight with strings: where the text is known, the others' test inputs are written too."""
    texts = [f"{a} {b}" for a in ("good", "very", "dull", "film") for b in ("moving", "gripping", "film")]
    prompts = written(texts=texts, count=12, demos=1)
    lost, least = replace(prompts, episodes=None), 8
    for seed in range(5):
        after = corrupted(prompts, "replace_test_input", seed=seed)
        assert after.episodes is not None
        assert len(after.strings) == 8
        for strings, episode in zip(after.strings, after.episodes, strict=False):
            assert "".join(strings).endswith(f"\nInput: {episode.test.texts[0]}\nOutput:")
        fewer = corrupted(lost, "replace_test_input", seed=seed).strings
        assert ["".join(row) for row in fewer] == ["".join(row) for row in after.strings[: len(fewer)]]
        least = min(least, len(fewer))
    assert least < 8
    many = with_test_inputs(
        tokens=torch.tensor([[7, 50, 10 + i] for i in range(12)]),
        label_pos=torch.tensor([[1]] * 12),
        demo_labels=torch.tensor([[0]] * 12),
        test_labels=None,
    )
    after = corrupted(many, "replace_test_input")
    for strings, row in zip(after.strings, after.tokens.tolist(), strict=False):
        assert list(strings) == [f"{token} " for token in row]
    assert len(after.strings) == 8


def test_inputs_that_cannot_be_exchanged_are_refused_and_shown():
    prompts = by_hand()
    spans = prompts.demo_spans.clone()
    spans[1, 0, 0] = 0
    spans[1, 2, 0] = 9
    message = r"prompt 1 has no two such, .*: 3 tokens '1 21 22'; 3 tokens '23 24 25'; 1 tokens '27'\. .*match_lengths=True"
    tokens = prompts.tokens.clone()
    tokens[1, 4:7] = tokens[1, :3]  # of equal length, but equal: nothing changes
    message = message.replace("23 24 25", "1 21 22")
    refused(
        replace(prompts, demo_spans=spans, tokens=tokens, strings=by_hand(tokens=tokens).strings),
        "exchange_inputs",
        message,
    )
    uneven = task(["x", "very good film", "a good film is moving"], tests=["a film", "x x"]).prompts(
        fake_adapter(), demos=3, count=1, score_on="sequence"
    )
    refused(uneven, "exchange_inputs", "3 tokens 'very good film'")
    refused(
        replace(uneven, episodes=None, strings=()),
        "exchange_inputs",
        r": \d tokens; \d tokens; \d tokens\.",
    )


def test_test_inputs_that_cannot_be_replaced_are_refused_and_shown():
    prompts = with_test_inputs(answer_pos=torch.tensor([2, 2, 2, 2])).select([1, 3])
    message = r"the one of prompt 0, '8', has 1 with its template, as have 1 others.*found \(prompts\): 1 \(2\)\. .*match_lengths"
    refused(prompts, "replace_test_input", message)
    refused(replace(prompts, strings=()), "replace_test_input", "prompt 0, '8', has 1")
    shown = with_test_inputs().select([1, 0])
    refused(shown, "replace_test_input", "prompt 0, '8', has 1 with its template, as have 1 others")
    uneven = task(["x", "very good film", "a good film is moving"]).prompts(
        fake_adapter(), demos=1, count=3, score_on="sequence"
    )
    refused(
        uneven, "replace_test_input", r"as have 0 others.*found \(prompts\): \d+ \(1\), \d+ \(1\), \d+ \(1\)"
    )


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
