"""An attribute of one object is another for a while, and afterwards as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from icl_kernel_lens.models.hooks import instead


def test_an_attribute_is_put_back():
    module = nn.Linear(2, 2)
    with instead(module, "forward", lambda x: x + 1):
        assert module(torch.ones(1)).item() == 2
    with pytest.raises(RuntimeError, match="size"), instead(module, "forward", lambda x: x @ torch.ones(3)):
        module(torch.ones(1, 2))
    assert "forward" not in module.__dict__
    module.note = "mine"
    with instead(module, "note", "ours"):
        assert module.note == "ours"
    assert module.note == "mine"
