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
