"""An adapter of one's own is taken as it is, and logits that are no numbers are refused."""

from __future__ import annotations

import pytest
import torch
from models.left_as_found import build
from support import uneven_prompts

from icl_kernel_lens import read
from icl_kernel_lens.errors import ModelError
from icl_kernel_lens.models.adapter import ModelAdapter, as_adapter
from icl_kernel_lens.models.verify import verify_model


def test_a_lens_of_ones_own_is_taken_as_it_is():
    """Anything that satisfies the protocol works; here a bridge's adapter under another name."""
    inner = as_adapter(build("bridge"))

    class Renamed:
        model, shape, dtype, device, tokenizer = inner.model, inner.shape, inner.dtype, inner.device, None
        kind, name = "my own", "renamed"
        missing_attention = staticmethod(inner.missing_attention)
        watching = staticmethod(inner.watching)
        forward = staticmethod(inner.forward)

    adapter = Renamed()
    assert isinstance(adapter, ModelAdapter)
    assert as_adapter(adapter) is adapter
    assert read(adapter, uneven_prompts(), progress=False).run.kind == "my own"


def test_non_finite_logits_are_refused():
    model = build("bridge")
    verify_model(as_adapter(model))
    with torch.no_grad():
        next(iter(model.unembed.parameters()))[10] = float("nan")
    with pytest.raises(ModelError, match=r"logits must be finite; .* 5 of 5 prompts \(the first is prompt"):
        read(model, uneven_prompts(), progress=False)
