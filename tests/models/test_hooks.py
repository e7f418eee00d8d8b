"""Hooks of the user's are found; an attribute of one object is another for a while, and afterwards as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from icl_kernel_lens.models.hooks import instead, with_hooks


def test_modules_with_hooks_of_the_users_are_found():
    """Hooks of every kind, and a `forward` put in place of a module's own; not those of libraries."""
    kinds = ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook")
    modules = [nn.Linear(2, 2) for _ in range(len(kinds) + 3)]
    assert with_hooks(modules) == []
    handles = [
        getattr(module, f"register_{kind}")(lambda *_: None)
        for kind, module in zip(kinds, modules, strict=False)
    ]
    modules[4].forward = lambda x: x
    modules[5].register_forward_hook(instead)  # a library's: by the name of its module
    assert with_hooks(modules) == modules[:5]
    for handle in handles:
        handle.remove()
    assert with_hooks(modules) == [modules[4]]


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
