"""What the closed form sees of prompts, by their tokens."""

from __future__ import annotations

import torch
from worlds.planted.plans import decoys

from icl_kernel_lens.worlds.planted.view import view_of


def test_features_are_those_of_the_tokens():
    plan = decoys()
    prompts = plan.prompts(count=3)
    view = view_of(plan, prompts)
    inputs = prompts.tokens.gather(1, prompts.label_pos - 1)
    assert torch.equal(view.shown, plan.features[inputs])
    assert torch.equal(view.x, plan.features[prompts.tokens[:, -2]]), "a token follows the test input"
    assert torch.equal(view.test, prompts.test_labels)
    assert torch.equal(view.before[:, 1:], view.shown[:, :-1])
    assert not view.before[:, 0].any()
    assert torch.equal(view.labels.argmax(-1), prompts.demo_labels)
    twice = view.repeated(2)
    assert torch.equal(twice.shown[::2], view.shown)
    assert torch.equal(twice.shown[1::2], view.shown)
