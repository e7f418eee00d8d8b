"""Classes from numbers made by hand: each question alone decides, and what cannot be known is not said."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from locate.half import classed, numbers

QUESTIONS = {
    # agreement, label shift, drop → class
    "kernel head": (0.9, 0.02, 0.4),
    "shadow": (0.9, 0.02, 0.0),
    "driver": (0.3, 0.02, 0.4),
    "driver, against the answer": (0.9, 0.02, -0.4),
    "driver, shifted": (0.9, 0.4, 0.4),
    "neither": (0.3, 0.02, 0.0),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_each_question_decides(name):
    found, columns = classed(*numbers(*QUESTIONS[name]))
    assert found == name.split(",")[0]
    agreement, _, drop = QUESTIONS[name]
    assert columns["agreement"] == pytest.approx(agreement)
    assert columns["logit_diff_drop"] == pytest.approx(drop, abs=0.03)
    assert columns["logit_diff_drop_low"] < columns["logit_diff_drop"] < columns["logit_diff_drop_high"]


def test_words_and_answers_come_first():
    """However well such a head agrees, and whatever it carries."""
    assert classed(*numbers(0.95, 0.4, 0.4, words=0.3))[0] == "word preference"
    assert classed(*numbers(0.95, 0.4, 0.4, words=0.3, echo=0.3))[0] == "echo"
    assert classed(*numbers(0.95, 0.02, 0.4, echo=0.3))[0] == "kernel head", "a kernel forms the answer"


def test_what_is_not_sure_is_not_said():
    assert classed(*numbers(0.9, 0.2, 0.4))[0] == "undetermined", "moved by half of what words carry"
    assert classed(*numbers(0.9, 0.02, 0.4, p=0.3))[0] == "undetermined", "its agreement may be chance"
    assert classed(*numbers(0.9, 0.02, 0.05))[0] == "undetermined", "a drop at the smallest of interest"
    assert classed(*numbers(0.9, 0.4, 0.0))[0] == "undetermined", "no shadow: its weights move"
    name, columns = classed(*numbers(0.9, 0.02, 0.4), votes=False)
    assert name == "neither", "the choosing half gave no reason"
    assert columns["p"] != columns["p"], "not tested"
    fidelity, drop, base = numbers(0.5, 0.4, 0.4, words=0.3)
    unmeasured = torch.full_like(drop, torch.nan)
    name, _ = classed(fidelity, unmeasured, base, unmeasured, votes=False, label_shift=True)
    assert name == "word preference", "its class needs no cut"


def test_agreeing_as_often_as_the_control_in_few_sets_is_not_a_vote_denied():
    """32 prompts in which a head and its control always agree do not say that it does not vote; 200 do."""
    for prompts, votes in ((8, None), (32, None), (200, 0.0)):
        fidelity, drop, base = numbers(1.0, 0.02, 0.4, p=1.0)
        cut = {
            name: value[:prompts] for name, value in vars(fidelity).items() if isinstance(value, torch.Tensor)
        }
        ones = torch.ones(prompts, 1, 1)
        fidelity = replace(fidelity, **cut | {"agreement": ones, "controls": {"label_prior": ones}})
        name, columns = classed(fidelity, drop[:prompts], base[:prompts])
        assert name == ("undetermined" if votes is None else "driver")
        assert columns["margin_low"] < 0 < columns["margin_high"]
        assert columns["agreement_low"] < 1
        assert columns["votes"] == votes if votes is not None else columns["votes"] != columns["votes"]
