"""Kernel regression against plain Python loops, scikit-learn and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import cohen_kappa_score

from icl_kernel_lens.numbers.votes import (
    cohen_kappa,
    credit,
    effective_number,
    hard_vote,
    jensen_shannon,
    kernel_regression,
)


def random_case(prompts=40, layers=2, heads=3, demos=7, labels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(prompts, layers, heads, demos, generator=generator) ** 3
    demo_labels = torch.randint(labels, (prompts, demos), generator=generator)
    answer = torch.randint(labels, (prompts,), generator=generator)
    return weights, demo_labels, answer


def loop_vote(weights, labels, classes):
    """One prompt and head, in plain Python: the share of each class, and the credit of each."""
    total = sum(weights)
    if total == 0:
        return [math.nan] * classes, [math.nan] * classes
    shares = [sum(w for w, y in zip(weights, labels, strict=True) if y == c) / total for c in range(classes)]
    winners = [c for c in range(classes) if shares[c] >= max(shares) - 1e-6]
    return shares, [1 / len(winners) if c in winners else 0.0 for c in range(classes)]


def test_shares_votes_and_credit_against_loops():
    weights, demo_labels, answer = random_case()
    weights[3, 1, 2] = 0.0  # a blind head
    weights[4] = 0.25  # ties
    shares = kernel_regression(weights, demo_labels, 3)
    votes = hard_vote(shares)
    earned = credit(votes, answer)
    for p in range(40):
        for layer in range(2):
            for head in range(3):
                share, vote = loop_vote(weights[p, layer, head].tolist(), demo_labels[p].tolist(), 3)
                np.testing.assert_allclose(shares[p, layer, head], share, atol=1e-6)
                np.testing.assert_allclose(votes[p, layer, head], vote, atol=1e-6)
                np.testing.assert_allclose(earned[p, layer, head], vote[int(answer[p])], atol=1e-6)


def test_ties_within_a_millionth_share_the_credit():
    weights = torch.tensor([0.3, 0.3 + 2e-7, 0.1]).reshape(1, 1, 1, 3)
    vote = hard_vote(kernel_regression(weights, torch.tensor([[0, 1, 2]]), 3))
    assert vote.flatten().tolist() == [0.5, 0.5, 0.0]
    assert credit(vote, torch.tensor([2])).item() == 0
    weights = torch.tensor([0.3, 0.31, 0.1]).reshape(1, 1, 1, 3)
    assert hard_vote(kernel_regression(weights, torch.tensor([[0, 1, 2]]), 3)).flatten().tolist() == [0, 1, 0]


def test_kappa_against_scikit_learn():
    weights, demo_labels, answer = random_case(prompts=200)
    vote = hard_vote(kernel_regression(weights, demo_labels, 3))
    found = cohen_kappa(vote, answer)
    for layer in range(2):
        for head in range(3):
            expected = cohen_kappa_score(vote[:, layer, head].argmax(-1), answer)
            assert found[layer, head].item() == pytest.approx(expected, abs=1e-5)


def test_kappa_leaves_out_what_could_not_vote():
    weights, demo_labels, answer = random_case(prompts=200)
    weights[::3] = 0
    vote = hard_vote(kernel_regression(weights, demo_labels, 3))
    voted = ~vote[:, 0, 0].isnan().any(-1)
    expected = cohen_kappa_score(vote[voted, 0, 0].argmax(-1), answer[voted])
    assert cohen_kappa(vote, answer)[0, 0].item() == pytest.approx(expected, abs=1e-5)
    constant = torch.zeros_like(answer)
    always = torch.nn.functional.one_hot(constant, 3)[:, None, None].float()
    assert cohen_kappa(always, constant).isnan().all()


def test_jensen_shannon_against_scipy():
    p = torch.rand(30, 2, 3, 4, generator=torch.Generator().manual_seed(1))
    p[0, 0, 0] = torch.tensor([1.0, 0, 0, 0])
    p = p / p.sum(-1, keepdim=True)
    q = torch.rand(30, 4, generator=torch.Generator().manual_seed(2)).softmax(-1)
    q[1] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    found = jensen_shannon(p, q)
    for index in np.ndindex(30, 2, 3):
        assert found[index].item() == pytest.approx(jensenshannon(p[index], q[index[0]]) ** 2, abs=1e-6)


def test_effective_number():
    cases = torch.tensor([[1.0, 1, 1, 1], [0, 0, 3, 0], [2, 2, 0, 0], [0, 0, 0, 0]])
    found = effective_number(cases[:, None, None]).flatten().tolist()
    assert found[:3] == pytest.approx([4, 1, 2])
    assert math.isnan(found[3])
