"""Accuracy by hand: verdicts, conditions, reasons."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from results.examples import task_accuracy

from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.reasons import Reason


def test_verdict_and_reasons():
    found = task_accuracy()
    assert found.mean()["demonstrations"] == 1
    assert "permuted labels not measured" in found.verdict()
    assert f"not measured: {Reason.NOTHING_PERMUTED}" in repr(found)
    alone = replace(found, demo_set=torch.zeros(6, dtype=torch.long))
    assert alone.verdict().startswith("Undetermined")


def test_what_it_must_hold():
    found = task_accuracy()
    right = found.correct["majority"]
    for change, words in (
        ({"correct": {"majority": right}}, "must hold demonstrations and majority"),
        ({"correct": {**found.correct, "luck": right}}, "conditions are .*; not luck"),
        ({"reasons": {"majority": Reason.NOTHING_PERMUTED}}, "majority has both"),
        ({"correct": {**found.correct, "majority": right + 0.5}}, r"right \(1\) or wrong \(0\)"),
    ):
        with pytest.raises(ResultError, match=words):
            replace(found, **change)


def test_twelve_prompts_that_are_all_right_are_not_certainty():
    """Nor is a gain of as many prompts in which neither is ever right; the verdict says how many sets would tell."""
    right = torch.ones(12)
    found = replace(
        task_accuracy(),
        correct={"demonstrations": right, "majority": right},
        demo_set=torch.arange(12),
    )
    low, high = found.interval()["demonstrations"]
    assert low == pytest.approx(0.025 ** (1 / 12))
    assert high == 1
    gain, low, high = found.gain()
    assert gain == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 12))
    assert low == -high
    better = replace(found, correct={"demonstrations": right, "majority": (torch.arange(12) < 10).float()})
    assert "There are 12 demonstration sets" in better.verdict()
    assert "would show it" in better.verdict()
