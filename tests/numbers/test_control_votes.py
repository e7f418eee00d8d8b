"""The shuffled labels' control against the exact mean over all permutations."""

from __future__ import annotations

import math
from itertools import permutations

import torch
from scores.test_vote import evidence_of

from icl_kernel_lens.numbers.control_votes import shuffled_credit
from icl_kernel_lens.numbers.votes import credit, hard_vote, kernel_regression


def test_shuffled_labels_is_the_mean_over_all_permutations(tiny):
    """Against the exact mean over all 5! permutations, within Monte Carlo error."""
    evidence = evidence_of(tiny)
    prompts, weights = evidence.prompts, evidence.weights["label"]
    exact = torch.zeros(weights.shape[:3])
    orders = list(permutations(range(5)))
    for order in orders:
        dealt = prompts.demo_labels[:, list(order)]
        exact += credit(hard_vote(kernel_regression(weights, dealt, 3)), evidence.answers)
    exact /= len(orders)
    found = shuffled_credit(weights, prompts.demo_labels, evidence.answers, 3, shuffles=2000)
    assert (found - exact).abs().max() < 5 * 0.5 / math.sqrt(2000)
    other = shuffled_credit(weights, prompts.demo_labels, evidence.answers, 3, shuffles=4, seed=1)
    again = shuffled_credit(weights, prompts.demo_labels, evidence.answers, 3, shuffles=4, seed=1)
    assert torch.equal(other, again)
