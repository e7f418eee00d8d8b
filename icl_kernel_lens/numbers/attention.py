"""Computes causal attention in parts, without writing out its square.

For a query at position t and keys at positions s,

    score(t, s) = cap · tanh(scale · ⟨q_t, k_s⟩ / cap) + slope · s        s ≤ t, t − s < window
    A(t, s)     = exp score(t, s) / Σ_s' exp score(t, s')
    z_t         = Σ_s A(t, s) v_s

(without a soft cap: scale · ⟨q_t, k_s⟩; the linear bias is ALiBi's, up to a constant a row, which softmax
does not see). Keys may come in blocks, each attended alone; with ℓ = ln Σ_s exp score(t, s) of each block,

    z_t = Σ_b exp(ℓ_b − ℓ) z_b,    ℓ = ln Σ_b exp ℓ_b

which is how many prompts attend a prefix that they share, without a copy of it for each. On a CPU, where copies are
small beside what is computed of them, the blocks are put together and run through PyTorch's fused attention instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

LARGEST_STRETCH = {"cpu": 2**21}
"""Most scores alive at once where they must be written out: 8 MiB in float32 on a CPU, 256 MiB elsewhere."""
ELSEWHERE = 2**26
QUERIES_A_COPY = 64
"""So many queries must meet a copy of a key, for it to be worth its making (`benchmarks.passes`)."""


@dataclass(frozen=True)
class Rule:
    """How one layer turns ⟨q, k⟩ into a score."""

    scale: float = 1.0
    soft_cap: float | None = None
    slopes: Float[Tensor, " head"] | None = None
    """ALiBi: added to a score is slope · (position of the key)."""
    window: int | None = None
    """A position sees itself and the window − 1 positions before it; None: all before it."""

    def scores(
        self, dots: Float[Tensor, "*batch head query key"], key_start: int = 0
    ) -> Float[Tensor, "*batch head query key"]:
        """Scores in float32 of ⟨q, k⟩ · scale, for keys from position `key_start` on; nothing is masked."""
        scores = dots.float()
        if self.soft_cap is not None:
            scores = torch.tanh(scores / self.soft_cap) * self.soft_cap
        if self.slopes is not None:
            keys = torch.arange(key_start, key_start + scores.shape[-1], device=scores.device)
            scores = scores + self.slopes.float().to(scores.device)[:, None, None] * keys
        return scores


@dataclass(frozen=True)
class Block:
    """Keys and values from position `start` on.

    There is one row a prompt; the queries that meet it may be several in succession (variants of the prompt).
    """

    k: Float[Tensor, "prompt kv_head key d_head"]
    v: Float[Tensor, "prompt kv_head key d_value"]
    start: int = 0

    @property
    def end(self) -> int:
        return self.start + self.k.shape[2]

    def after(self, position: int) -> Block:
        """Its keys from a position on."""
        at = max(0, position - self.start)
        return Block(self.k[:, :, at:], self.v[:, :, at:], self.start + at)

    def grouped(self, groups: int) -> Block:
        """One key and one value for each group of heads, where those of a group are all the same."""
        if self.k.shape[1] == groups:
            return self
        k, v = (x.unflatten(1, (groups, -1)) for x in (self.k, self.v))
        same = all(bool((x == x[:, :, :1]).all()) for x in (k, v))
        return Block(k[:, :, 0], v[:, :, 0], self.start) if same else self


def attend(
    q: Float[Tensor, "batch head pos d_head"],
    k: Float[Tensor, "batch head pos d_head"],
    v: Float[Tensor, "batch head pos d_value"],
    rule: Rule,
) -> Float[Tensor, "batch head pos d_value"]:
    """z of every position of whole prompts, through PyTorch's fused attention wherever it is exact."""
    windowed = rule.window is not None and rule.window < q.shape[2]
    if rule.soft_cap is not None or windowed:
        return attend_blocks(q, [Block(k, v)], rule)
    width = v.shape[-1]
    if rule.slopes is not None:
        # A key's bias as one more coordinate: ⟨(q, 1/scale), (k, slope·s)⟩ · scale = ⟨q, k⟩·scale + slope·s.
        bias = rule.slopes.to(k)[:, None, None] * torch.arange(k.shape[2], device=k.device)[:, None]
        pad = (0, -(width + 1) % 8)
        q = functional.pad(torch.cat([q, torch.full_like(q[..., :1], 1 / rule.scale)], -1), pad)
        k = functional.pad(torch.cat([k, bias.expand(*k.shape[:-1], 1).to(k)], -1), pad)
        v = functional.pad(v, (0, q.shape[-1] - width))
    z = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=rule.scale)
    return z[..., :width]


def attend_blocks(
    q: Float[Tensor, "batch head pos d_head"], blocks: Sequence[Block], rule: Rule
) -> Float[Tensor, "batch head pos d_value"]:
    """z of the positions that the last block holds the keys of, over all blocks."""
    if len(blocks) > 1 and (z := _attend_together(q, blocks, rule)) is not None:
        return z
    first = blocks[-1].start
    parts = [_attend_block(q, block, rule, first) for block in blocks]
    if len(parts) == 1:
        return parts[0][0].to(q.dtype)
    lse = torch.stack([part[1] for part in parts])
    share = (lse - lse.logsumexp(0)).exp()
    return sum(share[i, ..., None] * parts[i][0] for i in range(len(parts))).to(q.dtype)  # pyright: ignore[reportAttributeAccessIssue]


def _attend_together(
    q: Float[Tensor, "batch head pos d_head"], blocks: Sequence[Block], rule: Rule
) -> Float[Tensor, "batch head pos d_value"] | None:
    """The same through PyTorch's fused attention, over a copy of all keys for each row; None where that is not the faster way."""
    batch, heads, length, width = q.shape
    every = [x for block in blocks for x in (block.k, block.v)]
    plain = q.device.type == "cpu" and rule.soft_cap is None and rule.slopes is None
    plain &= all(x.dtype == q.dtype == torch.float32 and x.shape[-1] == width for x in every)
    if not plain or (torch.is_grad_enabled() and any(x.requires_grad for x in (q, *every))):
        return None
    first = blocks[-1].start
    low = 0 if rule.window is None else max(0, first - rule.window + 1)
    seen = [block.after(low) for block in blocks if block.end > low]
    groups = min(block.k.shape[1] for block in seen)
    seen = [block.grouped(groups) for block in seen]
    groups = max(block.k.shape[1] for block in seen)
    keys = sum(block.k.shape[2] for block in seen)
    # Of a single row, too: its last digits are then those that it has beside a few others.
    few = heads // groups * length < QUERIES_A_COPY
    large = batch * groups * keys * width > LARGEST_STRETCH["cpu"]  # than scores that are written out may be
    if few or large:
        return None
    k, v = (torch.cat([_for_each(getattr(block, name), batch, groups) for block in seen], 2) for name in "kv")
    positions = torch.arange(seen[0].start, blocks[-1].end)
    mask = torch.zeros(length, keys).masked_fill(_hidden(rule, positions[-length:], positions), float("-inf"))
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=rule.scale, enable_gqa=groups < heads
    )


def _for_each(
    x: Float[Tensor, "prompt kv_head key width"], batch: int, groups: int
) -> Float[Tensor, "batch group key width"]:
    """Keys or values for every row and every group of heads."""
    prompts, heads = x.shape[:2]
    x = x.expand(batch, -1, -1, -1) if prompts == 1 else x.repeat_interleave(batch // prompts, 0)
    return x.repeat_interleave(groups // heads, 1) if heads < groups else x


def _attend_block(
    q: Float[Tensor, "batch head pos d_head"], block: Block, rule: Rule, first: int
) -> tuple[Float[Tensor, "batch head pos d_value"], Float[Tensor, "batch head pos"]]:
    """z over one block alone, in float32, and the log of its summed exponentials (−inf: sees none of it).

    Queries are taken a stretch at a time, so that few scores are alive at once; where a gradient is asked for, they
    are computed again on the way back.
    """
    z = torch.zeros(*q.shape[:3], block.v.shape[-1], device=q.device, dtype=torch.float32)
    lse = torch.full(q.shape[:3], float("-inf"), device=q.device, dtype=torch.float32)
    graph = torch.is_grad_enabled() and any(x.requires_grad for x in (q, block.k, block.v))
    for at, end in stretches(q, block.k.shape[2]):
        here, part = first + at, slice(at, end)
        # Keys beyond the last query of the stretch, or before the window of its first, are seen by none.
        low = 0 if rule.window is None else max(0, here - rule.window + 1 - block.start)
        high = min(block.k.shape[2], first + end - block.start)
        if low >= high:
            continue
        inputs = q[:, :, part], block.k[:, :, low:high], block.v[:, :, low:high]
        attended = partial(_attend_stretch, rule=rule, query_start=here, key_start=block.start + low)
        if graph:
            attended = partial(checkpoint, attended, use_reentrant=False, preserve_rng_state=False)
        z[:, :, part], lse[:, :, part] = attended(*inputs)  # pyright: ignore[reportGeneralTypeIssues]
    return z, lse


def stretches(q: Float[Tensor, "batch head pos d_head"], keys: int) -> list[tuple[int, int]]:
    """Queries in stretches of which the scores on so many keys may be alive at once."""
    batch, heads, length, _ = q.shape
    step = max(1, LARGEST_STRETCH.get(q.device.type, ELSEWHERE) // (batch * heads * keys))
    return [(at, min(at + step, length)) for at in range(0, length, step)]


def _attend_stretch(
    q: Float[Tensor, "batch head query d_head"],
    k: Float[Tensor, "prompt kv_head key d_head"],
    v: Float[Tensor, "prompt kv_head key d_value"],
    rule: Rule,
    query_start: int,
    key_start: int,
) -> tuple[Float[Tensor, "batch head query d_value"], Float[Tensor, "batch head query"]]:
    scores = masked_scores(q, k, rule, query_start, key_start)
    top = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
    # In place, unless a gradient needs the scores again.
    weights = (scores - top).exp() if scores.requires_grad else scores.sub_(top).exp_()
    total = weights.sum(-1, keepdim=True)
    z = _mix(weights.to(v.dtype), v).float() / total.clamp(min=torch.finfo(total.dtype).tiny)
    return z, (total.log() + top).squeeze(-1)


def masked_scores(
    q: Float[Tensor, "batch head query d_head"],
    k: Float[Tensor, "prompt kv_head key d_head"],
    rule: Rule,
    query_start: int,
    key_start: int = 0,
) -> Float[Tensor, "batch head query key"]:
    """Scores of queries and keys in a row from these positions on, in float32; −inf for keys that are not seen."""
    scores = rule.scores(_dots(q * rule.scale, k), key_start)
    query_end, key_end = query_start + q.shape[2], key_start + k.shape[2]
    causal = key_end - 1 > query_start
    windowed = rule.window is not None and key_start <= query_end - 1 - rule.window
    if not causal and not windowed:  # every query sees every key
        return scores
    queries = torch.arange(query_start, query_end, device=q.device)
    keys = torch.arange(key_start, key_end, device=q.device)
    return scores.masked_fill(_hidden(rule, queries, keys), float("-inf"))


def answer_row(
    q: Float[Tensor, "batch head d_head"],
    pos: Int[Tensor, " batch"],
    blocks: Sequence[Block],
    rule: Rule,
) -> Float[Tensor, "batch head key"]:
    """A(t, ·) of one position a prompt, over all keys of all blocks in order, in float32."""
    return answer_scores(q, pos, blocks, rule).softmax(-1)


def answer_scores(
    q: Float[Tensor, "batch head d_head"],
    pos: Int[Tensor, " batch"],
    blocks: Sequence[Block],
    rule: Rule,
) -> Float[Tensor, "batch head key"]:
    """The scores whose softmax is `answer_row`; −inf for keys that are not seen."""
    rows = []
    for block in blocks:
        dots = _dots(q[:, :, None].float() * rule.scale, block.k.float())
        hidden = _hidden(rule, pos.to(q.device), torch.arange(block.start, block.end, device=q.device))
        rows.append(rule.scores(dots, block.start)[:, :, 0].masked_fill(hidden[:, None], float("-inf")))
    return torch.cat(rows, -1)


def scores_of_keys(
    q: Float[Tensor, "row d_head"],
    k: Float[Tensor, "row key d_head"],
    heads: Int[Tensor, " row"],
    positions: Int[Tensor, "row key"],
    rule: Rule,
) -> Float[Tensor, "row key"]:
    """The scores of keys of each row's own, at positions that it sees, in float32."""
    scores = (k.float() @ (q.float() * rule.scale)[..., None])[..., 0]
    if rule.soft_cap is not None:
        scores = torch.tanh(scores / rule.soft_cap) * rule.soft_cap
    if rule.slopes is not None:
        scores = scores + rule.slopes.float().to(scores.device)[heads][:, None] * positions
    return scores


def mixed(
    weights: Float[Tensor, "batch head key"], blocks: Sequence[Block]
) -> Float[Tensor, "batch head d_value"]:
    """Σ_s w(s) v_s over all keys of all blocks in order, in float32."""
    parts = weights[:, :, None].float().split([block.k.shape[2] for block in blocks], -1)
    mixes = [_mix(part, block.v.float()) for part, block in zip(parts, blocks, strict=True)]
    return torch.stack(mixes).sum(0)[:, :, 0]


def values_at(
    blocks: Sequence[Block], positions: Int[Tensor, "batch demo"], heads: int
) -> Float[Tensor, "batch head demo d_value"]:
    """v at some positions of each prompt, in float32, from whichever block holds them."""
    shape = len(positions), heads, positions.shape[1], blocks[0].v.shape[-1]
    found = torch.zeros(shape, device=positions.device, dtype=torch.float32)
    for block in blocks:
        here = (positions >= block.start) & (positions < block.end)
        index = (positions - block.start).clamp(0, block.end - block.start - 1)
        v = block.v.expand(len(positions), -1, -1, -1)
        v = v.gather(2, index[:, None, :, None].expand(-1, v.shape[1], -1, v.shape[-1])).float()
        v = v.repeat_interleave(heads // v.shape[1], 1)
        found = torch.where(here[:, None, :, None], v, found)
    return found


def _hidden(
    rule: Rule, queries: Int[Tensor, " query"], keys: Int[Tensor, " key"]
) -> Bool[Tensor, "query key"]:
    """Which of the keys at these positions each query does not see."""
    later = keys > queries[:, None]
    return later if rule.window is None else later | (keys <= queries[:, None] - rule.window)


def _dots(
    q: Float[Tensor, "batch head query d_head"], k: Float[Tensor, "prompt kv_head key d_head"]
) -> Float[Tensor, "batch head query key"]:
    """⟨q, k⟩; the keys of a group serve all its query heads, and those of a prompt all its rows."""
    rows = _by_keys(q, k)
    return _by_rows(rows @ k.transpose(2, 3), *q.shape[:3])


def _mix(
    weights: Float[Tensor, "batch head query key"], v: Float[Tensor, "prompt kv_head key d_value"]
) -> Float[Tensor, "batch head query d_value"]:
    return _by_rows(_by_keys(weights, v) @ v, *weights.shape[:3])


def _by_keys(
    x: Float[Tensor, "batch head query width"], keys: Float[Tensor, "prompt kv_head key d_head"]
) -> Float[Tensor, "prompt kv_head row width"]:
    """The queries (or weights) that meet the same keys, as rows of one matrix."""
    prompts, groups = keys.shape[:2]
    return rearrange(x, "(p b) (g r) q d -> p g (b r q) d", p=prompts, g=groups)


def _by_rows(
    x: Float[Tensor, "prompt kv_head row width"], batch: int, heads: int, queries: int
) -> Float[Tensor, "batch head query width"]:
    prompts, groups = x.shape[:2]
    return rearrange(x, "p g (b r q) d -> (p b) (g r) q d", b=batch // prompts, r=heads // groups, q=queries)
