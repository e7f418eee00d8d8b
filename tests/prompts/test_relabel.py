"""Many relabellings as one set of prompts: the tokens that a loop writes, and what stays as it was."""

from __future__ import annotations

import pytest
import torch
from interventions.test_coverage import long_labels
from support import shared_prompts, uneven_prompts

from icl_kernel_lens.prompts.relabel import interchangeable, relabelled, stacked


@pytest.mark.parametrize("make", [uneven_prompts, long_labels])
def test_labels_are_written_in_place(make):
    prompts = make()
    numbers = torch.tensor([1, 0, 1])
    labels = torch.tensor([[0, 1, 2], [2, 2, 2], [1, 1, 0]])
    found = relabelled(prompts, numbers, labels)
    for row, number in enumerate(numbers.tolist()):
        tokens = prompts.tokens[number].clone()
        for demo, label in enumerate(labels[row].tolist()):
            start, end = prompts.label_spans[number, demo].tolist()
            tokens[start:end] = prompts.label_sequences[number, label, : end - start]
        assert torch.equal(found.tokens[row], tokens)
    assert torch.equal(found.demo_labels, labels)
    assert torch.equal(found.answer_pos, prompts.answer_pos[numbers])


def test_labels_of_one_length_take_each_others_place():
    prompts = long_labels()
    found = interchangeable(prompts)
    assert int(found.sum()) == prompts.demo_labels.numel() * 2
    assert not found.gather(2, prompts.demo_labels[..., None]).any()
    lengths = prompts.label_lengths.clone()
    lengths[:, 0] = 1
    uneven = type(prompts)(**{**vars(prompts), "label_lengths": lengths})
    apart = interchangeable(uneven)
    assert not apart[prompts.demo_labels == 0].any()
    assert not apart[..., 0].any()


def test_several_sets_stand_after_one_another():
    one, two = uneven_prompts(), shared_prompts(demos=3)
    found = stacked([one, two])
    assert len(found) == len(one) + len(two)
    assert torch.equal(found.tokens[: len(one), : one.tokens.shape[1]], one.tokens)
    assert torch.equal(found.tokens[len(one) :], two.tokens)
    assert torch.equal(found.answer_pos, torch.cat([one.answer_pos, two.answer_pos]))
    assert (found.roles[: len(one), one.tokens.shape[1] :] == 0).all()
