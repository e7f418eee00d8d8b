"""Attention in parts against plain loops over positions, in float64, on unequal random inputs."""

from __future__ import annotations

import math

import pytest
import torch

from icl_kernel_lens.numbers import attention
from icl_kernel_lens.numbers.attention import Block, Rule, answer_row, attend, attend_blocks


def plain(q, k, v, rule):
    """z, and the weights, position by position."""
    batch, heads, length, width = q.shape
    z = torch.zeros(batch, heads, length, v.shape[-1], dtype=torch.float64)
    weights = torch.zeros(batch, heads, length, length, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for t in range(length):
                first = 0 if rule.window is None else max(0, t - rule.window + 1)
                scores = []
                for s in range(first, t + 1):
                    score = rule.scale * sum(
                        float(q[b, h, t, i]) * float(k[b, h, s, i]) for i in range(width)
                    )
                    if rule.soft_cap is not None:
                        score = rule.soft_cap * math.tanh(score / rule.soft_cap)
                    if rule.slopes is not None:
                        score += float(rule.slopes[h]) * s
                    scores.append(score)
                exps = [math.exp(score - max(scores)) for score in scores]
                for s, e in zip(range(first, t + 1), exps, strict=True):
                    weights[b, h, t, s] = e / sum(exps)
                    z[b, h, t] += e / sum(exps) * v[b, h, s].double()
    return z, weights


def rules():
    slopes = torch.tensor([0.5, 0.125])
    return {
        "plain": Rule(scale=0.7),
        "capped": Rule(scale=0.7, soft_cap=1.5),
        "window": Rule(scale=0.7, window=4),
        "alibi": Rule(scale=0.7, slopes=slopes),
        "everything": Rule(scale=0.4, soft_cap=2.0, slopes=slopes, window=5),
    }


NAMES = ("plain", "capped", "window", "alibi", "everything")


def inputs(length=11, batch=2, heads=2, width=3):
    generator = torch.Generator().manual_seed(3)
    return [2 * torch.randn(batch, heads, length, width, generator=generator) for _ in range(3)]


@pytest.fixture(params=[None, 5], ids=["in one", "in stretches"])
def stretches(request, monkeypatch):
    """Scores written out all at once, or a few queries at a time."""
    if request.param:
        monkeypatch.setattr(attention, "LARGEST_STRETCH", {"cpu": request.param * 2 * 2 * 11})


@pytest.mark.parametrize("name", NAMES)
def test_whole_prompts(name, stretches):
    q, k, v = inputs()
    expected, _ = plain(q, k, v, rules()[name])
    atol = 3e-6 if name == "alibi" else 1e-6  # its bias is one more product, of up to 5, in float32
    torch.testing.assert_close(attend(q, k, v, rules()[name]).double(), expected, atol=atol, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cuts", [(0, 6), (0, 1), (0, 3, 4, 10)])
def test_blocks_combine_to_the_whole(name, cuts, stretches):
    """Keys in blocks, the leading ones one row for both prompts: the last block's positions as in the whole."""
    rule = rules()[name]
    q, k, v = inputs()
    ends = (*cuts[1:], q.shape[2])
    for x in (k, v):
        x[1, :, : cuts[-1]] = x[0, :, : cuts[-1]]
    expected, weights = plain(q, k, v, rule)
    blocks = [
        Block(k[:1, :, a:b], v[:1, :, a:b], a) if b <= cuts[-1] else Block(k[:, :, a:b], v[:, :, a:b], a)
        for a, b in zip(cuts, ends, strict=True)
    ]
    z = attend_blocks(q[:, :, cuts[-1] :], blocks, rule)
    torch.testing.assert_close(z.double(), expected[:, :, cuts[-1] :], atol=1e-6, rtol=1e-5)
    pos = torch.tensor([10, cuts[-1]])
    row = answer_row(q[torch.arange(2), :, pos], pos, blocks, rule)
    torch.testing.assert_close(row.double(), weights[torch.arange(2), :, pos], atol=1e-6, rtol=1e-5)


def test_grouped_keys_serve_every_query_head_of_their_group():
    generator = torch.Generator().manual_seed(5)
    q = torch.randn(2, 4, 3, 5, generator=generator)
    shared = [torch.randn(1, 2, 6, 5, generator=generator) for _ in range(2)]
    own = [torch.randn(2, 2, 3, 5, generator=generator) for _ in range(2)]
    rule = Rule(scale=0.3)
    found = attend_blocks(q, [Block(*shared), Block(*own, 6)], rule)
    k, v = (
        torch.cat([s.expand(2, -1, -1, -1), o], 2).repeat_interleave(2, 1)
        for s, o in zip(shared, own, strict=True)
    )
    padded = torch.cat([torch.zeros(2, 4, 6, 5), q], 2)
    expected, _ = plain(padded, k, v, rule)
    torch.testing.assert_close(found.double(), expected[:, :, 6:], atol=1e-6, rtol=1e-5)


def test_a_block_outside_the_window_gives_nothing():
    """Its share is exactly zero, not undefined."""
    q, k, v = inputs(length=9)
    rule = Rule(scale=1.0, window=2)
    far, own = Block(k[:1, :, :4], v[:1, :, :4]), Block(k[:, :, 6:], v[:, :, 6:], 6)
    with_far = attend_blocks(q[:, :, 6:], [far, own], rule)
    assert torch.isfinite(with_far).all()
    torch.testing.assert_close(with_far, attend_blocks(q[:, :, 6:], [own], rule))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near_and_keeps_its_type(dtype):
    q, k, v = (x.to(dtype) for x in inputs())
    rule = Rule(scale=0.7)
    expected, weights = plain(q.float(), k.float(), v.float(), rule)
    z = attend_blocks(
        q[:, :, 6:], [Block(k[:, :, :6], v[:, :, :6]), Block(k[:, :, 6:], v[:, :, 6:], 6)], rule
    )
    assert z.dtype == dtype
    torch.testing.assert_close(z.double(), expected[:, :, 6:], atol=4e-2, rtol=4e-2)
    pos = torch.tensor([10, 10])
    row = answer_row(q[:, :, 10], pos, [Block(k, v)], rule)
    assert row.dtype == torch.float32
    torch.testing.assert_close(row.double(), weights[:, :, 10], atol=1e-5, rtol=1e-5)


def test_large_scores_do_not_overflow():
    q, k, v = inputs()
    rule = Rule(scale=1000.0)
    expected, _ = plain(q, k, v, rule)
    z = attend_blocks(
        q[:, :, 6:], [Block(k[:, :, :6], v[:, :, :6]), Block(k[:, :, 6:], v[:, :, 6:], 6)], rule
    )
    torch.testing.assert_close(z.double(), expected[:, :, 6:], atol=1e-3, rtol=1e-3)
