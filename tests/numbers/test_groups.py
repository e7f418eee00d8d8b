"""Sums over groups, against loops."""

from __future__ import annotations

import torch

from icl_kernel_lens.numbers.groups import group_sums, numbered


def test_sums_are_those_of_loops():
    values = torch.arange(24.0).reshape(6, 2, 2)
    group = torch.tensor([7, 3, 7, 9, 3, 7])
    member = numbered(group)
    assert member.tolist() == [1, 0, 1, 2, 0, 1]
    found = group_sums(values, member)
    for number, name in enumerate((3, 7, 9)):
        expected = sum(v for v, g in zip(values, group.tolist(), strict=True) if g == name)
        assert torch.equal(found[number], expected)
    whole = group_sums(torch.tensor([1, 2, 3, 4, 5, 6]), member)
    assert whole.tolist() == [7, 10, 4]
    assert whole.dtype == torch.int64
