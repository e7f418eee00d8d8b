"""Inputs of pairs of demonstrations swapped: of different classes and one layout, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from prompts.toy import by_hand
from support import shared_prompts
from worlds.planted.plans import one

from icl_kernel_lens import PromptSet, load_task
from icl_kernel_lens.prompts.corrupt_inputs import inputs_of
from icl_kernel_lens.prompts.swapped import MOST_PAIRS, swap_inputs
from icl_kernel_lens.worlds.planted.roles import PlantedHead


def test_one_pair_by_hand():
    """Inputs of two tokens have one class in the first prompt, and two in the second; that of three is alone in both."""
    prompts = by_hand()
    for seed in range(4):
        found, pairs = swap_inputs(prompts, seed)
        assert found.tokens.tolist() == [
            prompts.tokens[0].tolist(),
            [1, 26, 27, 51, 23, 24, 25, 51, 21, 22, 50, 28, 29],
        ]
        assert pairs[0].tolist() == [[-1, -1]] * MOST_PAIRS
        assert sorted(pairs[1, 0].tolist()) == [0, 2]
        assert pairs[1, 1:].tolist() == [[-1, -1]] * (MOST_PAIRS - 1)


def test_pairs_have_one_layout():
    """Inputs of one token; a token of the template stands before the second and behind the third."""
    tokens = torch.tensor([[3, 11, 50, 3, 12, 51, 13, 3, 52, 3, 14, 53, 9]])
    prompts = PromptSet.from_tokens(
        tokens,
        torch.tensor([[2, 5, 8, 11]]),
        torch.tensor([[0, 1, 2, 3]]),
        torch.tensor([50, 51, 52, 53]),
    )
    roles = prompts.roles.clone()
    roles[:, [0, 3, 7, 9]] = 2
    for seed in range(6):
        found, pairs = swap_inputs(replace(prompts, roles=roles), seed)
        assert 2 not in pairs.unique().tolist()
        assert found.tokens[0, 6] == 13
        assert (pairs[0, 1] == -1).all(), "three that could be paired make one pair"


def test_equal_inputs_are_no_pair():
    prompts = by_hand()
    tokens = prompts.tokens.clone()
    tokens[1, 8:10] = tokens[1, 1:3]
    found, pairs = swap_inputs(replace(prompts, tokens=tokens, strings=()), 0)
    assert (pairs == -1).all()
    assert torch.equal(found.tokens, tokens)


def planted(demos=10):
    plan = one(PlantedHead(1, 0, "kernel"), labels=3, demos=demos, separator=True)
    return plan.prompts(count=9, tests_per_set=3)


def topics(mini):
    return load_task("topics").prompts(mini, demos=8, count=6, sets=2, seed=0)


@pytest.mark.parametrize("make", [lambda _: planted(), topics, lambda _: shared_prompts(sets=4, demos=6)])
def test_pairs_are_disjoint_of_two_classes_and_the_same_in_a_set(mini, make):
    prompts, seen = make(mini), set()
    for seed in range(5):
        found, pairs = swap_inputs(prompts, seed)
        seen.add(str(pairs.tolist()))
        assert pairs.shape == (len(prompts), MOST_PAIRS, 2)
        for number in range(len(prompts)):
            mine = [pair for pair in pairs[number].tolist() if pair != [-1, -1]]
            assert pairs[number, len(mine) :].eq(-1).all(), "pairs come first"
            both = [demo for pair in mine for demo in pair]
            assert len(set(both)) == len(both)
            layouts, places = inputs_of(prompts, number)
            expected = prompts.tokens[number].tolist()
            for a, b in mine:
                assert prompts.demo_labels[number, a] != prompts.demo_labels[number, b]
                assert layouts[a] == layouts[b]
                for here, there in zip(places[a], places[b], strict=True):
                    expected[here], expected[there] = expected[there], expected[here]
            assert found.tokens[number].tolist() == expected
            assert (expected != prompts.tokens[number].tolist()) == bool(mine)
            first = int((prompts.demo_set == prompts.demo_set[number]).nonzero()[0])
            assert torch.equal(pairs[number], pairs[first])
        for name in (
            "roles",
            "lengths",
            "answer_pos",
            "demo_spans",
            "label_spans",
            "demo_labels",
            "demo_set",
        ):
            assert torch.equal(getattr(found, name), getattr(prompts, name)), name
        assert torch.equal(found.test_labels, prompts.test_labels)
        assert found.episodes is None
        assert found.strings == ()
    assert len(seen) > 1, "another seed draws other pairs"


def test_at_most_three_pairs():
    assert MOST_PAIRS == 3
    assert swap_inputs(planted(), 0)[1].shape == (9, 3, 2)
    assert (swap_inputs(planted(), 0)[1] >= 0).all()
    _, few = swap_inputs(planted(demos=3), 0)
    assert ((few >= 0).all(-1).sum(1) == 1).all()
