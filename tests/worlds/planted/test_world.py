"""Prompts of a planted world are what they are taken for."""

from __future__ import annotations

import pytest
import torch
from worlds.planted.plans import everything


def test_prompts_are_what_the_closed_form_takes_them_for():
    plan = everything()
    prompts = plan.prompts(8, count=11, tests_per_set=3, seed=4)
    assert prompts.demos == 8
    assert prompts.demo_set.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert prompts.info.task == "planted"
    inputs = prompts.tokens[:, 1::2]
    assert all(len(set(row)) == 9 for row in inputs.tolist()), "no input twice"
    assert torch.equal(prompts.tokens[0, :-1], prompts.tokens[2, :-1])
    assert len({int(t) for t in prompts.tokens[:3, -1]}) == 3
    assert torch.equal(plan.classes[prompts.tokens[:, -1]], prompts.test_labels)
    assert torch.equal(plan.prompts(8, count=11, tests_per_set=3, seed=4).tokens, prompts.tokens)
    assert not torch.equal(plan.prompts(8, count=11, tests_per_set=3, seed=5).tokens, prompts.tokens)
    many = plan.prompts(count=400)
    shown = plan.classes[many.tokens[:, 1:-1:2]]
    assert (shown != many.demo_labels).float().mean() == pytest.approx(0.1, abs=0.02), "the noise asked for"
    assert torch.bincount(many.demo_labels.flatten()).float().std() < 100
    few = plan.prompts(3, count=60).demo_labels
    assert bool((few.amin(1) != few.amax(1)).all()), "two classes at least"
    counts = torch.nn.functional.one_hot(many.demo_labels, 3).sum(1)
    assert counts.float().std(0).min() > 1, "random, not balanced"
