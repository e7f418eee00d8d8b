"""What goes by the input beside the label, and numbers that are the same in every prompt."""

from __future__ import annotations

import pytest
import torch

from icl_kernel_lens.numbers.identification import interval, share_removed, share_within, within_labels
from icl_kernel_lens.numbers.influence import pair_part


def drawn(sets=12, each=4, demos=8):
    g = torch.Generator().manual_seed(0)
    kernel = torch.rand(sets * each, demos, generator=g, dtype=torch.float64)
    labels = torch.arange(2).repeat(demos // 2)[torch.rand(sets, demos, generator=g).argsort(1)]
    labels, demo_set = labels.repeat_interleave(each, 0), torch.arange(sets).repeat_interleave(each)
    answer = torch.randint(2, (sets * each, 1), generator=g)
    return kernel, labels, demo_set, (labels == answer).double()


def test_an_echo_has_nothing_among_demonstrations_of_one_label_and_a_kernel_all():
    kernel, labels, demo_set, echo = drawn()
    target = pair_part(kernel + echo, demo_set)
    whole = [pair_part(x, demo_set) for x in (kernel + echo, echo)]
    value, low, high = share_within(torch.stack(whole, 1), target, labels, demo_set)
    assert value.tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    assert 0.5 < low[0] < 1 < high[0]
    assert (low[1], high[1]) == (0.0, 0.0), "certain, though all sets agree"
    part = share_within(pair_part(kernel + 3 * echo, demo_set)[:, None], target, labels, demo_set)
    assert 0 < float(part[1]) < float(part[0]) < float(part[2]) < 1
    nothing = share_within(whole[0][:, None], whole[1], labels, demo_set)
    assert all(bool(x.isnan().all()) for x in nothing), "nothing to compare with"


def test_means_are_of_the_same_label_and_leave_out_what_is_unknown():
    values = torch.tensor([[1.0, 3.0, 5.0, float("nan")]])
    found = within_labels(values, torch.tensor([[0, 0, 1, 1]]))
    assert found[0, :3].tolist() == [-1.0, 1.0, 0.0]
    assert found[0, 3].isnan()


def test_what_every_prompt_shows_alike_is_certain_in_few_sets():
    part, demo_set = torch.tensor([[1.0, -1.0], [2.0, -2.0], [0.5, -0.5]]), torch.arange(3)
    left = torch.stack([part, part / 4, part * torch.tensor([[0.5], [0.1], [0.9]])], 1)
    value, low, high = share_removed(left, part, demo_set)
    assert value[:2].tolist() == low[:2].tolist() == high[:2].tolist() == [0.0, 0.75]
    assert low[2] < value[2] < high[2]
    assert interval(torch.zeros(3, 1), demo_set) == (0.0, 0.0, 0.0)
    mean, low, high = interval(torch.tensor([[0.1], [0.2], [0.3]]), demo_set)
    assert low < mean < high
