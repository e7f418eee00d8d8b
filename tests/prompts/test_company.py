"""Half of the demonstrations changed: other labels, inputs that move round among them, and nothing else."""

from __future__ import annotations

import torch
from support import shared_prompts
from worlds.planted.plans import one

from icl_kernel_lens import PromptSet
from icl_kernel_lens.prompts import company
from icl_kernel_lens.prompts.company import change_company
from icl_kernel_lens.prompts.corrupt_inputs import inputs_of
from icl_kernel_lens.worlds.planted.roles import PlantedHead


def test_half_are_others_and_the_rest_stays():
    """Inputs are those that were there; all labels of changed demonstrations are others; sets stay sets."""
    prompts = one(PlantedHead(1, 0, "kernel"), demos=7, labels=3).prompts(count=12, tests_per_set=3)
    changed, stays = change_company(prompts, 4)
    assert stays.sum(1).tolist() == [4] * 12
    assert changed.demo_labels[stays].equal(prompts.demo_labels[stays])
    assert (changed.demo_labels[~stays] != prompts.demo_labels[~stays]).all()
    assert changed.demo_set.equal(prompts.demo_set)
    for number in range(12):
        _, places = inputs_of(prompts, number)
        before, after = ([one.tokens[number, at].tolist() for at in places] for one in (prompts, changed))
        labels = changed.tokens[number, prompts.label_pos[number]]
        assert labels.equal(prompts.label_tokens[number][changed.demo_labels[number]])
        for demo in range(7):
            if stays[number, demo]:
                assert before[demo] == after[demo]
        assert sorted(before) == sorted(after)
        first = int((prompts.demo_set == prompts.demo_set[number]).nonzero()[0])
        assert stays[number].equal(stays[first])
        assert changed.demo_labels[number].equal(changed.demo_labels[first])
        rest = torch.ones_like(prompts.tokens[number], dtype=torch.bool)
        rest[prompts.label_pos[number]] = False
        rest[[at for row in places for at in row]] = False
        assert changed.tokens[number][rest].equal(prompts.tokens[number][rest])
    moved = [
        prompts.tokens[n, at].tolist() != changed.tokens[n, at].tolist()
        for n in range(12)
        for at in inputs_of(prompts, n)[1]
    ]
    assert any(moved)


def test_it_is_drawn_by_the_seed():
    prompts = shared_prompts(sets=2, tests=2, demos=6)
    first, stays = change_company(prompts, 1)
    again, same = change_company(prompts, 1)
    assert first.tokens.equal(again.tokens)
    assert stays.equal(same)
    others = [change_company(prompts, seed)[1] for seed in range(2, 8)]
    assert any(not other.equal(stays) for other in others)


def test_none_stays_where_nothing_can_be_changed(monkeypatch):
    """Label words of unequal token counts, and inputs each alone in its length."""
    tokens = torch.arange(22).expand(3, -1) + 100
    at, labels = torch.tensor([[2, 6, 11, 17]]).expand(3, -1), torch.tensor([[0, 1, 2, 0]]).expand(3, -1)
    words = torch.tensor([10, 20, 30])
    prompts = PromptSet.from_tokens(tokens.scatter(1, at, words[labels]), at, labels, words)
    _, stays = change_company(prompts, 0)
    assert stays.sum(1).tolist() == [2, 2, 2], "labels of one token can be others"
    monkeypatch.setattr(company, "interchangeable", lambda some: torch.zeros(3, 4, 3, dtype=torch.bool))
    changed, stays = change_company(prompts, 0)
    assert not stays.any()
    assert changed.tokens.equal(prompts.tokens)
