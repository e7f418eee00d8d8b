"""Whether weights follow inputs, words or answers: definitions by loops, and hand-made heads."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from icl_kernel_lens.numbers import shifts, votes

PROMPTS, DEMOS, LABELS = 60, 6, 3


def heads():
    """Weights of a kernel, a word preference and an echo in two readings; the labels of both, and answers."""
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(LABELS, (PROMPTS, DEMOS), generator=g)
    labels[:, :LABELS] = torch.arange(LABELS)
    again = labels.gather(1, torch.rand(PROMPTS, DEMOS, generator=g).argsort(1))
    answers = torch.randint(LABELS, (PROMPTS,), generator=g)
    inputs = torch.rand(PROMPTS, DEMOS, generator=g) ** 3
    kinds = []
    for y in (labels, again):
        word = (y == 1).float() + 0.02
        echo = (y == answers[:, None]).float() + 0.02
        kinds.append(torch.stack([inputs, word, echo], 1)[:, None])
    return (*kinds, labels, again, answers)


def test_definitions_by_loops():
    first, second, labels, again, _ = heads()
    k, k2 = votes.normalised(first), votes.normalised(second)
    torch.testing.assert_close(k.sum(-1), torch.ones(PROMPTS, 1, 3))
    moved = shifts.label_shift(k, k2)
    assert float(moved[3, 0, 1]) == pytest.approx(
        sum(abs(a - b) for a, b in zip(k[3, 0, 1], k2[3, 0, 1], strict=True)) / 2
    )
    within = shifts.within_class_shift(k, labels)
    orders = [
        o for o in permutations(range(DEMOS)) if all(labels[5, i] == labels[5, j] for i, j in enumerate(o))
    ]
    shuffled = [float((k[5, 0, 0] - k[5, 0, 0][list(o)]).abs().sum() / 2) for o in orders]
    assert len(orders) > 1
    assert float(within[5, 0, 0]) == pytest.approx(sum(shuffled) / len(shuffled), rel=1e-5)
    over = shifts.excess(k2, again, LABELS)
    mine = again[7] == 2
    expected = float(k2[7, 0, 2][mine].sum() - mine.float().mean())
    assert float(over[7, 0, 2, 2]) == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(over.sum(-1), torch.zeros(PROMPTS, 1, 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tokens", ["fixed", "drawn"])
def test_each_kind_of_head_is_told_apart(tokens):
    first, second, labels, again, answers = heads()
    words = torch.tensor([10, 20, 30]).expand(PROMPTS, -1)
    if (
        tokens == "drawn"
    ):  # every prompt has its own label words: nothing is learned of a word from other prompts
        words = torch.arange(PROMPTS * LABELS).reshape(PROMPTS, LABELS)
    k, k2 = votes.normalised(first), votes.normalised(second)
    moved, within = shifts.label_shift(k, k2).mean(0)[0], shifts.within_class_shift(k, labels).mean(0)[0]
    carried = shifts.word_bound_shift(k, labels, again).mean(0)[0]
    follows = shifts.follows_words(k2, again, LABELS).mean(0)[0]
    sets = torch.arange(PROMPTS) // 2
    echo = shifts.follows_answer(k2, again, answers, words, sets).mean(0)[0]
    preferred = shifts.prefers_word(k2, again, words, sets).nanmean(0)[0]
    assert moved[0] == 0
    assert within[0] > 0.2
    assert (moved[1:] > 0.3).all()
    assert (within[1:] < 0.05).all()
    assert carried[0] > 0.3
    torch.testing.assert_close(carried[1:], moved[1:], atol=1e-5, rtol=0)
    assert abs(float(follows[0])) < 0.06
    assert (follows[1:] > 0.2).all()
    assert abs(float(echo[0])) < 0.1
    assert float(echo[2]) > 0.4
    assert abs(float(echo[1])) < 0.15
    if tokens == "fixed":
        assert float(preferred[1]) > 0.4
        assert (preferred[[0, 2]] < 0.15).all()
    else:
        assert preferred.isnan().all(), "no word is in another prompt"


def test_a_liked_word_is_no_echo():
    """Every answer is the liked word: the head would give it the same without the answer."""
    _, second, _, again, _ = heads()
    words = torch.tensor([10, 20, 30]).expand(PROMPTS, -1)
    k2 = votes.normalised(second)
    ones, sets = torch.ones(PROMPTS, dtype=torch.long), torch.arange(PROMPTS)
    echo = shifts.follows_answer(k2, again, ones, words, sets)
    assert abs(float(echo[:, 0, 1].mean())) < 1e-5


def test_no_weights_are_unknown():
    weights = torch.zeros(2, 1, 1, 3)
    k = votes.normalised(weights)
    labels = torch.tensor([[0, 1, 0], [1, 0, 0]])
    words = torch.tensor([[5, 6], [5, 6]])
    assert k.isnan().all()
    assert shifts.within_class_shift(k, labels).isnan().all()
    assert shifts.follows_words(k, labels, 2).isnan().all()
    sets = torch.arange(2)
    assert shifts.follows_answer(k, labels, torch.tensor([0, 1]), words, sets).isnan().all()
    assert shifts.prefers_word(k, labels, words, sets).isnan().all()


def test_prompts_of_one_set_are_no_witnesses_of_each_other():
    """A sharp kernel gives all prompts of a set the same weights: its favourite there is no preference."""
    g = torch.Generator().manual_seed(1)
    sets = torch.arange(8).repeat_interleave(10)
    labels = torch.randint(2, (8, DEMOS), generator=g)[sets]
    labels[:, :2] = torch.tensor([0, 1])
    weights = torch.nn.functional.one_hot(torch.randint(DEMOS, (8,), generator=g), DEMOS).float()[sets]
    words = torch.stack([10 + 2 * sets, 11 + 2 * sets], 1)
    found = shifts.prefers_word(weights[:, None, None], labels, words, sets)
    assert found.isnan().all(), "each set has words of its own"
    alone = shifts.prefers_word(weights[:, None, None], labels, words, torch.arange(80))
    assert float(alone.mean()) > 0.2, "or this test shows nothing"


def test_carried_by_loops():
    """Every way to deal the weights that moved out again, each with its label word; 0 where no label changed."""
    k = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
    old, new = [0, 1, 1, 0, 2], [1, 1, 0, 2, 0]
    moving = [i for i in range(5) if old[i] != new[i]]
    ways = []
    for order in permutations(moving):
        if all(old[j] == new[i] for i, j in zip(moving, order, strict=True)):
            dealt = k.clone()
            dealt[moving] = k[list(order)]
            ways.append(float((k - dealt).abs().sum() / 2))
    assert len(ways) == 2
    found = shifts.word_bound_shift(k[None, None, None], torch.tensor([old]), torch.tensor([new]))
    assert float(found) == pytest.approx(sum(ways) / 2, rel=1e-5)
    assert float(shifts.word_bound_shift(k[None, None, None], torch.tensor([old]), torch.tensor([old]))) == 0
