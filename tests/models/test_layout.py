"""The order of weights in memory: a HookedTransformer copies none at a pass, and its numbers stay."""

from __future__ import annotations

import pytest
import torch
from architectures import hf_model
from support import needs_hooked
from torch.overrides import TorchFunctionMode

from icl_kernel_lens.models.layout import TURNED
from icl_kernel_lens.models.load import hooked_from_hf

TOKENS = torch.arange(8)[None] + 3


class Copies(TorchFunctionMode):
    """The sizes of what is copied to be contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if (
            getattr(func, "__name__", "") in ("contiguous", "reshape")
            and out.data_ptr() != args[0].data_ptr()
        ):
            self.sizes.append(out.numel())
        return out


@needs_hooked
@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj", "qwen3"])
def test_no_weight_is_copied_at_a_pass(name):
    hf = hf_model(name)
    model = hooked_from_hf(hf)
    weights = {p.numel() for n, p in model.named_parameters() if n.rsplit(".", 1)[-1] in TURNED}
    with torch.no_grad(), Copies() as copies:
        logits = model(TOKENS)
    assert not weights & set(copies.sizes)
    with torch.no_grad():
        expected = hf(TOKENS).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


@needs_hooked
def test_weights_are_the_same_numbers_in_the_same_shapes(monkeypatch):
    after = hooked_from_hf(hf_model("llama")).state_dict()
    monkeypatch.setattr("icl_kernel_lens.models.load.lay_out", lambda model: None)
    before = hooked_from_hf(hf_model("llama")).state_dict()
    assert {k: v.shape for k, v in after.items()} == {k: v.shape for k, v in before.items()}
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert any(after[key].stride() != value.stride() for key, value in before.items())
