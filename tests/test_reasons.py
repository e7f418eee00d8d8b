"""Reasons are compared by their codes and printed as their messages."""

from __future__ import annotations

from icl_kernel_lens.reasons import Reason


def test_a_reason_is_its_code_and_prints_its_message():
    assert Reason("no_weight") is Reason.NO_WEIGHT
    assert {Reason.NO_WEIGHT: 3}["no_weight"] == 3
    assert f"{Reason.NO_WEIGHT}" == str(Reason.NO_WEIGHT) == "no demonstration has kernel weight"
    assert len({str(reason) for reason in Reason}) == len(Reason), "no two say the same"
    assert all(reason.value == reason.name.lower() for reason in Reason)
