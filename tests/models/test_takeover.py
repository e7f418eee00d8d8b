"""What a layer does to its scores is either understood exactly or refused, on attention written here."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from icl_kernel_lens.models.stand_in import CannotIntercept
from icl_kernel_lens.models.takeover import intercepting, product_seen
from icl_kernel_lens.numbers.attention import Rule, attend

HEADS, WIDTH, LENGTH = 2, 4, 7


class Attention(nn.Module):
    """Plain causal attention; `between` is what happens to the scores before softmax, `after` to the weights."""

    def __init__(self, between=None, after=None, mask=True):
        super().__init__()
        self.between, self.after, self.mask = between, after, mask

    def forward(self, q, k, v):
        scores = q @ k.transpose(-1, -2) * 0.5
        if self.between is not None:
            scores = self.between(scores)
        if self.mask:
            future = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(future, float("-inf"))
        weights = scores.softmax(-1)
        if self.after is not None:
            weights = self.after(weights)
        return weights @ v, weights


def qkv():
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(2, HEADS, LENGTH, WIDTH, generator=generator) for _ in range(3)]


def taken_over(module, seen=None):
    def handle(layer, q, k, v, rule):
        if seen is not None:
            seen.append(rule)
        return attend(q, k, v, rule)

    with intercepting({3: module}, HEADS, handle):
        return module(*qkv())


def band(width):
    t = torch.arange(LENGTH)
    return (t[:, None] >= t) & (t[:, None] - t < width)


LINE = torch.tensor([0.5, 0.25])[:, None, None] * torch.arange(LENGTH)

EXACT = {
    "a scale": (lambda s: s / 3 * 2, {"scale": 1 / 3}),
    "a soft cap": (lambda s: torch.tanh(s / 1.5) * 1.5, {"soft_cap": 1.5}),
    "an additive mask": (
        lambda s: s + torch.where(band(LENGTH), 0.0, torch.finfo(torch.float32).min),
        {"window": None},
    ),
    "a window": (lambda s: torch.where(band(3), s, torch.tensor(-1e9)), {"window": 3}),
    "a window of one": (lambda s: s.masked_fill(~band(1), -1e30), {"window": 1}),
    "a linear bias": (lambda s: s + LINE, {}),
    "in place": (lambda s: s.mul_(2).add_(LINE), {"scale": 1.0}),
    "a lowest score": (lambda s: torch.max(s, torch.tensor(torch.finfo(s.dtype).min)), {"scale": 0.5}),
    "batch and head in one": (lambda s: s.view(-1, LENGTH, LENGTH).view(2, HEADS, LENGTH, -1), {}),
}


@pytest.mark.parametrize("name", EXACT)
def test_understood(name):
    between, expected = EXACT[name]
    module, rules = Attention(between), []
    plain = module(*qkv())[0]
    z, weights = taken_over(module, rules)
    torch.testing.assert_close(z, plain, atol=1e-6, rtol=1e-5)
    assert weights is None, "weights that were never made are not handed out"
    for field, value in expected.items():
        assert getattr(rules[0], field) == pytest.approx(value)


HEAD_SCALE = torch.tensor([1.0, 2.0])[:, None, None]

REFUSED = {
    "scales that differ": (
        Attention(lambda s: s * HEAD_SCALE),
        "multiplies its attention scores with a tensor",
    ),
    "division by a tensor": (Attention(lambda s: s / HEAD_SCALE), "divides its attention scores by a tensor"),
    "an unknown operation": (Attention(lambda s: s.relu()), "calls relu on its attention scores"),
    "tanh alone": (Attention(lambda s: torch.tanh(s)), "tanh"),
    "half a soft cap": (Attention(lambda s: torch.tanh(s / 2)), "soft cap does not multiply back"),
    "another cap": (Attention(lambda s: torch.tanh(s / 2) * 3), "after a soft cap"),
    "a bias that bends": (Attention(lambda s: s + LINE**2), "not linear"),
    "a floor": (Attention(lambda s: s.max(torch.tensor(0.0))), "raises its attention scores"),
    "a bias for all heads": (Attention(lambda s: s + LINE[:1]), "not ALiBi's"),
    "a scale after a bias": (Attention(lambda s: (s + LINE) * 2), "after a bias"),
    "a hole in the mask": (
        Attention(lambda s: s.masked_fill(torch.arange(LENGTH) == 2, -1e9)),
        "not one causal band",
    ),
    "no mask": (Attention(mask=False), "not causal"),
    "weights changed": (Attention(after=lambda w: w * 0.5), "multiplies"),
    "a sink": (
        Attention(lambda s: torch.cat([s, s.new_zeros(2, HEADS, LENGTH, 1)], -1), mask=False),
        "calls",
    ),
    "dropout": (
        Attention(after=lambda w: functional.dropout(w, 0.1, training=True)),
        "drops attention weights at random",
    ),
    "weights not used": (Attention(after=lambda w: torch.zeros(2, HEADS, LENGTH, LENGTH)), "was not found"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    module, reason = REFUSED[name]
    with pytest.raises(CannotIntercept, match=reason) as error:
        taken_over(module)
    assert "layer 3" in str(error.value)
    assert "forward" not in module.__dict__, "the module's own forward is back"


def product(module, *, taken=False):
    """What is seen of a layer's own product, plainly or while its attention is taken over."""
    seen: dict[str, torch.Tensor] = {}
    with product_seen(module, HEADS, {name: partial(seen.__setitem__, name) for name in ("v", "z")}):
        out = taken_over(module)[0] if taken else module(*qkv())[0]
    assert "forward" not in module.__dict__
    return seen, out


class Gated(nn.Module):
    """Values are normed before, and a gate and a norm stand behind the product; batch and head may be in one."""

    def __init__(self, flat):
        super().__init__()
        self.flat = flat

    def forward(self, q, k, v):
        v = functional.normalize(v, dim=-1)
        if self.flat:
            q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        weights = (q @ k.transpose(-1, -2)).masked_fill(~band(LENGTH), float("-inf")).softmax(-1)
        z = weights @ v
        return functional.layer_norm(z * torch.sigmoid(q), (WIDTH,)), weights


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("taken", [False, True])
def test_values_and_z_are_those_of_the_layers_own_product(flat, taken):
    q, k, v = qkv()
    seen, out = product(Gated(flat), taken=taken)
    values = functional.normalize(v, dim=-1)
    z = attend(q, k, values, Rule())
    torch.testing.assert_close(seen["v"].transpose(1, 2), values)
    torch.testing.assert_close(seen["z"].transpose(1, 2), z, atol=1e-6, rtol=1e-5)
    gated = functional.layer_norm(z * torch.sigmoid(q), (WIDTH,))
    torch.testing.assert_close(out.view_as(gated), gated, atol=1e-5, rtol=1e-4)


def test_where_there_is_no_product_nothing_is_made_up():
    """Attention by one fused function; without hook points there is nothing to show."""
    fused = Attention()
    fused.forward = lambda q, k, v: (functional.scaled_dot_product_attention(q, k, v), None)
    seen: dict[str, torch.Tensor] = {}
    with product_seen(fused, HEADS, {"v": partial(seen.__setitem__, "v")}):
        fused(*qkv())
    assert not seen
