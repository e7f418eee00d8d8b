"""Sums over groups, against loops; groups in two halves."""

from __future__ import annotations

import torch

from icl_kernel_lens.numbers.groups import first_half, group_sums, numbered


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


def test_groups_are_dealt_out_whole():
    """Half of the groups, and about half of the prompts; another seed deals otherwise."""
    group = torch.tensor([5] * 6 + [2] * 5 + [9, 9, 4, 4, 7, 1])
    halves = {tuple(first_half(group, seed=seed).tolist()) for seed in range(20)}
    assert len(halves) > 3
    for half in halves:
        chosen = torch.tensor(half)
        assert len(group[chosen].unique()) == len(group[~chosen].unique()) == 3
        assert not set(group[chosen].tolist()) & set(group[~chosen].tolist())
        assert abs(int(chosen.sum()) - int((~chosen).sum())) <= 5
    assert torch.equal(first_half(group, seed=3), first_half(group, seed=3))
