"""Masks that stand for others, and the band that a written mask is."""

from __future__ import annotations

import pytest
import torch

from icl_kernel_lens.models.stand_in import CannotIntercept, Mask, causal_window, check_padding

LENGTH = 7


def test_a_mask_kept_for_the_whole_context():
    """Its corner shows the band of it all; a shifted or changed one is looked at again."""
    kept = torch.ones(1, 1, 20, 20, dtype=torch.bool).tril() & torch.ones(20, 20, dtype=torch.bool).triu(-9)
    assert causal_window(kept[:, :, :LENGTH, :LENGTH], LENGTH) == 10
    assert causal_window(~kept[:, :, :LENGTH, :LENGTH], LENGTH, hidden=True) is None, (
        "seven tokens show no window"
    )
    with pytest.raises(CannotIntercept, match="not one causal band"):
        causal_window(kept[:, :, 2 : LENGTH + 2, :LENGTH], LENGTH)
    kept[0, 0, 5, 2] = False
    with pytest.raises(CannotIntercept, match="not one causal band"):
        causal_window(kept[:, :, :LENGTH, :LENGTH], LENGTH)


def test_a_mask_that_is_not_written_out_can_only_be_cut_and_cast():
    """What would change it is refused, not overlooked."""
    mask = Mask((1, 1, LENGTH, LENGTH), None, torch.zeros(()))
    assert mask[:, :, :3].to(torch.float64) is mask
    for change in (lambda: mask * 0, lambda: mask + 1.0, lambda: mask.masked_fill(mask < 0, 0.0)):
        with pytest.raises(CannotIntercept, match="on its mask"):
            change()


def test_padding_before_the_text_is_refused():
    check_padding(None)
    check_padding(torch.tensor([[1, 1, 1], [1, 0, 0]]))
    with pytest.raises(CannotIntercept, match="pad on the right"):
        check_padding(torch.tensor([[1, 1, 1], [0, 1, 1]]))
