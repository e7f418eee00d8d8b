"""Tokens at offsets from labels, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from icl_kernel_lens import PromptSet
from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.prompts.label_edges import (
    check_offsets,
    demo_keys,
    label_keys,
    present,
    start_of_test_input,
)
from icl_kernel_lens.prompts.promptset import TokenRole


def two_tokens() -> PromptSet:
    """[special, x, y, y', newline, x, y, y', newline, x, x]: labels of two tokens, and what separates demonstrations."""
    prompts = PromptSet.from_tokens(
        torch.tensor([[1, 5, 10, 11, 3, 6, 20, 21, 3, 7, 8]]),
        torch.tensor([[2, 6]]),
        torch.tensor([[0, 1]]),
        torch.tensor([10, 20]),
        demo_spans=torch.tensor([[[1, 3], [5, 7]]]),
    )
    roles = prompts.roles.clone()
    roles[0, 0], roles[0, [3, 7]] = int(TokenRole.SPECIAL), int(TokenRole.LABEL)
    return replace(
        prompts,
        roles=roles,
        label_spans=torch.tensor([[[2, 4], [6, 8]]]),
        demo_spans=torch.tensor([[[1, 4], [5, 8]]]),
        label_sequences=torch.tensor([[[10, 11], [20, 21]]]),
        label_lengths=torch.tensor([[2, 2]]),
    )


def places(keys) -> list[list[list[int]]]:
    return [[row.nonzero()[:, 0].tolist() for row in each] for each in keys]


def test_a_label_is_all_its_tokens_and_no_other_offset():
    keys = label_keys(two_tokens(), 0, (-1, 0, 1, 2, 3, -3))
    assert places(keys) == [
        [[1], [5]],
        [[2, 3], [6, 7]],
        [[], []],  # the second token of each label
        [[4], [8]],
        [[5], []],  # behind the last demonstration: the test input
        [[], []],  # before the prompt, and the label before
    ]


def test_what_stands_between_demonstrations_stands_behind_the_last():
    prompts = two_tokens()
    assert start_of_test_input(prompts).tolist() == [9]
    assert demo_keys(prompts, 0).nonzero()[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    whole = replace(prompts, demo_spans=torch.tensor([[[0, 4], [4, 8]]]), roles=prompts.roles.clamp(min=3))
    assert start_of_test_input(whole).tolist() == [8]
    assert demo_keys(whole, 0).nonzero()[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7], (
        "position 0 is no demonstration's"
    )


def test_offsets_without_a_token_are_refused_or_left_out():
    prompts = two_tokens()
    assert present(prompts, (-1, 0, 1, 2)) == (-1, 0, 2)
    with pytest.raises(PromptError, match=r"\+1 does not: labels have up to 2 tokens.*begins at token 9"):
        check_offsets(prompts, (0, 1))
    for wrong in ((), (0, 0), (True,)):
        with pytest.raises(PromptError, match="whole numbers, each named once"):
            check_offsets(prompts, wrong)
