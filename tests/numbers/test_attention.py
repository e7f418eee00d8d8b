"""Attention in parts against plain loops over positions, in float64, on unequal random inputs."""

from __future__ import annotations

import math
from itertools import pairwise

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


def several(rows, kv_heads, heads, length, before, width=4):
    """Queries of several rows that share what stands before them, and their own keys, repeated for every head of a group."""
    draw = torch.Generator().manual_seed(5)
    q = torch.randn(rows, heads, length, width, generator=draw)
    own = [torch.randn(rows, kv_heads, length, width, generator=draw) for _ in range(2)]
    shared = [
        torch.randn(1, kv_heads, end - start, width, generator=draw)
        for start, end in pairwise(before)
        for _ in range(2)
    ]
    blocks = [Block(k, v, start) for k, v, start in zip(shared[::2], shared[1::2], before, strict=False)]
    own = [x.repeat_interleave(heads // kv_heads, 1) for x in own]
    return q, [*blocks, Block(*own, before[-1])]


@pytest.fixture
def fused(monkeypatch):
    """How often blocks were put together, and how often not."""
    seen, together = [], attention._attend_together

    def watched(q, blocks, rule):
        z = together(q, blocks, rule)
        seen.append(z is not None)
        return z

    monkeypatch.setattr(attention, "_attend_together", watched)
    return seen


TOGETHER = {
    "shared, grouped": ((3, 2, 6, 24, (0, 7, 12)), Rule(scale=0.7)),
    "one row": ((1, 2, 2, 64, (0, 9)), Rule(scale=0.7)),
    "a window beyond the first block": ((3, 2, 6, 24, (0, 7, 12)), Rule(scale=0.7, window=4)),
    "a window within a block": ((1, 2, 2, 64, (0, 9, 11)), Rule(scale=0.7, window=5)),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_blocks_put_together_give_what_they_give_apart(name, fused, monkeypatch):
    shape, rule = TOGETHER[name]
    q, blocks = several(*shape)
    z = attend_blocks(q, blocks, rule)
    monkeypatch.setattr(attention, "QUERIES_A_COPY", float("inf"))
    monkeypatch.setattr(attention, "LARGEST_STRETCH", {"cpu": 0})
    apart = attend_blocks(q, blocks, rule)
    assert fused == [True, False]
    torch.testing.assert_close(z, apart, atol=2e-6, rtol=0)


def test_heads_of_a_group_whose_keys_were_changed_keep_their_own(fused):
    """As those of label edges are, in the tokens that are run."""
    q, blocks = several(3, 2, 6, 64, (0, 7))
    k = blocks[-1].k.clone()
    k[1, 4, 3] += 2
    changed = attend_blocks(q, [blocks[0], Block(k, blocks[-1].v, 7)], Rule(scale=0.7))
    z = attend_blocks(q, blocks, Rule(scale=0.7))
    assert fused == [True, True]
    differs = (changed - z).abs().amax((2, 3)) > 1e-3
    assert differs.nonzero().tolist() == [[1, 4]]
    keys, values = (
        torch.cat([shared[:, 1:], own[1:2, 4:5]], 2)
        for shared, own in ((blocks[0].k, k), (blocks[0].v, blocks[-1].v))
    )
    padded = torch.cat([torch.zeros(1, 1, 7, 4), q[1:2, 4:5]], 2)
    expected, _ = plain(padded, keys, values, Rule(scale=0.7))
    torch.testing.assert_close(changed[1:2, 4:5].double(), expected[:, :, 7:], atol=1e-5, rtol=0)


def test_what_is_not_put_together(fused):
    """Few queries for a copy of the keys, soft caps, linear biases, half precision, gradients."""
    few, capped = several(3, 2, 6, 8, (0, 7)), several(3, 2, 6, 24, (0, 7))
    attend_blocks(*few, Rule(scale=0.7))
    attend_blocks(*capped, Rule(scale=0.7, soft_cap=2.0))
    attend_blocks(*capped, Rule(scale=0.7, slopes=torch.rand(6)))
    q, blocks = capped
    attend_blocks(q.bfloat16(), [Block(b.k.bfloat16(), b.v.bfloat16(), b.start) for b in blocks], Rule())
    attend_blocks(q.requires_grad_(), blocks, Rule())
    assert not any(fused)
    assert len(fused) == 5
