"""Heads, poolings and references by name: what is taken, and what is refused."""

from __future__ import annotations

from icl_kernel_lens import HeadRef


def test_head_refs_print_as_the_field_writes_them():
    assert str(HeadRef(3, 7)) == repr(HeadRef(3, 7)) == "L3H7"
