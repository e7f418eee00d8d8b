"""Norms found by calling them, and the unembedding."""

from __future__ import annotations

import pytest
import torch
from architectures import hf_model

from icl_kernel_lens.errors import ModelError
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.models.load import bridge_from_hf
from icl_kernel_lens.models.read_out import FrozenNorm


def test_norms_are_found_by_calling_them():
    """γ, β, centring and σ of the norms there are; an identity; and one that is not linear."""
    adapter = as_adapter(bridge_from_hf(hf_model("gpt2")))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 32, generator=generator) + 0.5
    layer_norm, rms = torch.nn.LayerNorm(32), torch.nn.RMSNorm(32, eps=1e-6)
    for p in [*layer_norm.parameters(), *rms.parameters()]:
        torch.nn.init.normal_(p, generator=generator)
    with torch.no_grad():
        for module, centred in ((layer_norm, True), (rms, False), (torch.nn.Identity(), False)):
            norm = FrozenNorm.of(module, "n", 32, adapter)
            assert norm.centred is centred
            sigma = norm.scale(x, module(x))
            torch.testing.assert_close(norm.linear(x) / sigma[:, None] + norm.beta, module(x))
            u = torch.randn(32, generator=generator)
            torch.testing.assert_close(norm.linear(x) @ u, x @ norm.transposed(u), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(FrozenNorm.of(layer_norm, "n", 32, adapter).gamma, layer_norm.weight)
        torch.testing.assert_close(
            FrozenNorm.of(layer_norm, "n", 32, adapter).scale(x, layer_norm(x)),
            (x.var(-1, unbiased=False) + 1e-5).sqrt(),
        )
        with pytest.raises(ModelError, match="linear once its scale is held; n is not"):
            FrozenNorm.of(torch.nn.Tanh(), "n", 32, adapter).scale(x, x.tanh())
