"""Weights written by hand compute attention by its formula, in each form and under both classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import has_hooked_transformer, needs_hooked

from icl_kernel_lens.errors import ModelError
from icl_kernel_lens.models.planted_build import EPS, HandWeights, build, default_kind

VOCAB, CONTEXT, LAYERS, HEADS, D_HEAD, ROTARY = 5, 6, 2, 2, 4, 2
TOKENS = torch.tensor([[1, 3, 0, 4]])


def hand(form, norm=True):
    """Random weights; queries and keys leave alone what a rotary embedding turns."""
    g = torch.Generator().manual_seed(3)
    width = HEADS * D_HEAD
    q, k, v = torch.randn(3, LAYERS, HEADS, width, D_HEAD, generator=g) / 2
    q[..., :ROTARY] = 0
    positions = torch.randn(CONTEXT, width, generator=g)
    return HandWeights(
        form=form,
        norm=norm,
        rotary_dim=ROTARY,
        embed=torch.randn(VOCAB, width, generator=g),
        positions=positions if form == "plain" else torch.zeros_like(positions),
        q=q,
        k=k,
        v=v,
        o=torch.randn(LAYERS, HEADS, D_HEAD, width, generator=g) / 2,
        unembed=torch.randn(width, VOCAB, generator=g),
    )


def by_formula(w):
    """The logits, written out."""

    def normed(x):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()

    norm = normed if w.norm else torch.clone
    x = w.embed[TOKENS[0]] + w.positions[: TOKENS.shape[1]]
    hidden = torch.ones(len(x), len(x)).triu(1).bool()
    for layer in range(LAYERS):
        read, added = norm(x), torch.zeros_like(x)
        for head in range(HEADS):
            q, k, v = (read @ m[layer, head] for m in (w.q, w.k, w.v))
            scores = (q @ k.T / D_HEAD**0.5).masked_fill(hidden, -torch.inf)
            added = added + scores.softmax(-1) @ v @ w.o[layer, head]
        x = x + added
    return norm(x) @ w.unembed


@pytest.mark.parametrize("form", ["plain", "rotary", "parallel"])
@pytest.mark.parametrize(
    ("kind", "norm"),
    [
        pytest.param("HookedTransformer", True, marks=needs_hooked),
        pytest.param("HookedTransformer", False, marks=needs_hooked),
        ("TransformerBridge", True),
    ],
)
def test_hand_written_weights_compute_the_formula(form, kind, norm):
    w, before = hand(form, norm), torch.random.get_rng_state()
    model = build(w, kind, "by-hand")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not model.training
    with torch.no_grad():
        logits = model(TOKENS, return_type="logits")[0]
    torch.testing.assert_close(logits, by_formula(w), atol=1e-4, rtol=1e-4)


def test_the_class_that_is_taken_and_the_form_it_cannot_hold():
    assert default_kind(False) == "HookedTransformer"
    assert default_kind(True) == ("HookedTransformer" if has_hooked_transformer() else "TransformerBridge")
    with pytest.raises(ModelError, match="norm=False needs kind='HookedTransformer'") as caught:
        build(replace(hand("plain"), norm=False), "TransformerBridge", "by-hand")
    assert caught.value.code == "model-backend"
