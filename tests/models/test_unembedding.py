"""The logits of some tokens alone are those among all, in whatever model, and cost a product with their rows alone."""

from __future__ import annotations

import pytest
import torch
from architectures import VOCAB
from models.left_as_found import KINDS, same, state
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.models.unembedding import unembedding_to
from icl_kernel_lens.run.facts import narrows

COLUMNS = torch.tensor([20, 3, VOCAB - 1, 3])
"""In no order, and one twice."""
CASES = [(name, kind) for name in ("gpt2", "llama", "gemma2", "gptj", "bloom") for kind in KINDS]


class Weights(TorchFunctionMode):
    """How many rows the weights have that a model multiplies with."""

    def __init__(self):
        super().__init__()
        self.rows = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is functional.linear:
            self.rows.add(args[1].shape[0])
        return func(*args, **(kwargs or {}))


def logits(model, columns=None):
    tokens = torch.randint(3, VOCAB, (2, 12), generator=torch.Generator().manual_seed(2))
    positions = torch.tensor([[4, 11], [0, 7]])
    with Weights() as seen:
        found = as_adapter(model).forward(tokens, torch.tensor([12, 12]), positions, columns=columns)
    return found, seen.rows


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_some_columns_are_those_among_all(tiny, name, kind):
    """After a soft cap or a scale, too; no product has the vocabulary's rows."""
    model, _ = tiny(name, kind)
    whole, rows = logits(model)
    assert VOCAB in rows
    assert whole.shape == (2, 2, VOCAB)
    some, rows = logits(model, COLUMNS)
    assert VOCAB not in rows
    assert len(COLUMNS) in rows
    torch.testing.assert_close(some, whole[..., COLUMNS], atol=1e-5, rtol=0)
    assert narrows(as_adapter(model))
    assert "forward" not in vars(model.unembed)
    torch.testing.assert_close(logits(model)[0], whole, atol=0, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_users_hook_sees_all_columns(tiny, kind):
    model, _ = tiny("llama", kind)
    whole, _ = logits(model)
    seen = []
    handle = model.unembed.register_forward_hook(lambda _module, _given, out: seen.append(out.shape[-1]))
    try:
        some, _ = logits(model, COLUMNS)
        reversed_, _ = logits(model, torch.arange(VOCAB).flip(0))
    finally:
        handle.remove()
    assert seen == [VOCAB, VOCAB]
    torch.testing.assert_close(reversed_, whole.flip(-1), atol=1e-6, rtol=0)
    torch.testing.assert_close(some, whole[..., COLUMNS], atol=1e-6, rtol=0)


def test_it_is_as_before_after_an_exception(tiny):
    model, _ = tiny("llama")
    before = state(model)
    with pytest.raises(ZeroDivisionError), unembedding_to(model.unembed, COLUMNS):
        raise ZeroDivisionError
    assert same(state(model), before)
    assert "forward" not in vars(model.unembed)
