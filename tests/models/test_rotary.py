"""Rotary angles of a HookedTransformer: those of the Hugging Face model, to the last digit, and no others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from architectures import hf_model
from support import needs_hooked
from torch import nn

from icl_kernel_lens.models import load
from icl_kernel_lens.models.rotary import take_angles

pytestmark = needs_hooked


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
def test_angles_are_hugging_faces_to_the_last_digit(name):
    hf = hf_model(name)
    model = load.hooked_from_hf(hf)
    positions = torch.arange(len(model.blocks[0].attn.rotary_cos))[None]
    cos, sin = hf.model.rotary_emb(torch.zeros(1), positions)
    for block in model.blocks:
        assert torch.equal(block.attn.rotary_cos, cos[0])
        assert torch.equal(block.attn.rotary_sin, sin[0])


def test_they_are_not_by_themselves(monkeypatch):
    """Else there would be nothing to mend."""
    hf = hf_model("llama")
    monkeypatch.setattr(load, "take_angles", lambda model, hf: None)
    model = load.hooked_from_hf(hf)
    positions = torch.arange(len(model.blocks[0].attn.rotary_cos))[None]
    cos, _ = hf.model.rotary_emb(torch.zeros(1), positions)
    off = (model.blocks[0].attn.rotary_cos - cos[0]).abs().max()
    assert 0 < float(off) < 1e-4


@pytest.mark.parametrize("other", ["other frequencies", "another width", "none"])
def test_what_is_not_the_same_stays(other):
    """Of each layer the nearest table is taken, if one is near."""
    model = load.hooked_from_hf(hf_model("llama"))
    before = [block.attn.rotary_cos.clone() for block in model.blocks]
    half = before[0].shape[1] // 2
    own = hf_model("llama").model.rotary_emb.inv_freq
    frequency = {"other frequencies": own * 1.01, "another width": torch.ones(half + 1), "none": None}[other]
    hf = nn.Module()
    if frequency is not None:
        hf.register_buffer("inv_freq", frequency)
    take_angles(SimpleNamespace(blocks=model.blocks), hf)
    assert all(torch.equal(b.attn.rotary_cos, old) for b, old in zip(model.blocks, before, strict=True))
