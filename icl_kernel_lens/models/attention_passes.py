"""Runs a model with each layer's attention in the caller's hands, behind leading tokens that have been run before.

In each layer the caller gets q, k and v as the layer made them (after any rotary embedding), and gives z:

    z_t = Σ_s softmax_s(score(t, s)) v_s        over the keys of the prefix and of the tokens run (`numbers/attention.py`)

`AttentionUnderWay.attend` computes that z; what a caller does before it (change q, k or v), beside it (read the row of
the answer position, keep keys and values) and after it (change z) is its own. Everything else of the model runs by
its own code. Nothing of size position × position is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from icl_kernel_lens.models.adapter import Edits, InterceptableAdapter, ModelAdapter, attention_layers
from icl_kernel_lens.models.hooks import module_seen
from icl_kernel_lens.models.stand_in import CannotIntercept, refuse
from icl_kernel_lens.numbers.attention import Block, Rule, answer_row, attend, attend_blocks

Watched = Mapping[nn.Module, Callable[[Tensor, Tensor], None]]
"""Module → what sees its first input and its output."""


@dataclass(frozen=True)
class Prefix:
    """Leading tokens that have been run, as the later tokens of a prompt see them."""

    end: int
    """How many tokens."""
    blocks: Mapping[int, tuple[Block, ...]]
    """Per layer, in order of position; keys after any rotary embedding, one row for all prompts."""

    def until(self, end: int) -> Prefix:
        """Its first `end` tokens."""
        return Prefix(end, {layer: tuple(_until(blocks, end)) for layer, blocks in self.blocks.items()})

    def of(self, rows: list[int], end: int) -> Prefix:
        """Of prompts that were run together, some, whose tokens up to `end` are kept."""
        blocks = {
            layer: (
                *before,
                Block(last.k[rows, :, : end - last.start], last.v[rows, :, : end - last.start], last.start),
            )
            for layer, (*before, last) in self.blocks.items()
        }
        return Prefix(end, blocks)

    def row(self, at: int) -> Prefix:
        """Of prompts that were run together, one; of a single prompt, or what several share, the whole."""
        several = any(len(block.k) > 1 for blocks in self.blocks.values() for block in blocks)
        return self.of([at], self.end) if several else self


def _until(blocks: Sequence[Block], end: int) -> Iterator[Block]:
    for block in blocks:
        size = min(block.end, end) - block.start
        if size > 0:
            yield Block(block.k[:, :, :size], block.v[:, :, :size], block.start)


@dataclass(frozen=True)
class AttentionUnderWay:
    """One layer's attention between its own q, k, v and its own z."""

    layer: int
    q: Float[Tensor, "batch head pos d_head"]
    """Of the tokens run, the first of which stands at `start`."""
    k: Float[Tensor, "batch head pos d_head"]
    """Repeated for every query head of a group, as v is."""
    v: Float[Tensor, "batch head pos d_value"]
    rule: Rule
    before: tuple[Block, ...]
    """Keys and values of the prefix."""
    start: int

    @property
    def blocks(self) -> tuple[Block, ...]:
        """All keys and values there are, in order of position."""
        return (*self.before, Block(self.k, self.v, self.start))

    def attend(self) -> Float[Tensor, "batch head pos d_value"]:
        """z, as the layer itself would compute it."""
        if self.before:
            return attend_blocks(self.q, self.blocks, self.rule)
        return attend(self.q, self.k, self.v, self.rule)

    def at(
        self, x: Float[Tensor, "batch head pos width"], positions: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch head width"]:
        """One position a prompt of q, k, v or z."""
        return x[torch.arange(len(x), device=x.device), :, (positions - self.start).to(x.device)]

    def row(self, positions: Int[Tensor, " batch"]) -> Float[Tensor, "batch head key"]:
        """The attention from one position a prompt, over all keys, in float32."""
        return answer_row(self.at(self.q, positions), positions, self.blocks, self.rule)


Handle = Callable[[AttentionUnderWay], Float[Tensor, "batch head pos d_value"]]
"""A layer's attention → its z."""


def attention_pass(
    adapter: ModelAdapter,
    tokens: Int[Tensor, "batch pos"],
    lengths: Int[Tensor, " batch"],
    positions: Int[Tensor, "batch read"],
    handle: Handle = AttentionUnderWay.attend,
    *,
    prefix: Prefix | None = None,
    edits: Edits | None = None,
    watched: Watched | None = None,
    gradients: bool = False,
    columns: Int[Tensor, " column"] | None = None,
) -> Float[Tensor, "row read vocab"]:
    """Next-token logits at `positions` (of all tokens, or of `columns`), every layer's z given by `handle`.

    `tokens` are those behind the prefix; lengths and positions count from the beginning of the prompt.

    Raises: CannotIntercept: a layer cannot be taken over exactly, or did not run its attention once.
    """
    if not isinstance(adapter, InterceptableAdapter):
        raise CannotIntercept("the adapter does not let its attention be taken over")
    start = prefix.end if prefix else 0
    ran: list[int] = []

    def handler(layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        ran.append(layer)
        return handle(AttentionUnderWay(layer, q, k, v, rule, prefix.blocks[layer] if prefix else (), start))

    with ExitStack() as stack:
        stack.enter_context(adapter.intercepting(handler, start=start))
        stack.enter_context(adapter.editing(edits or {}))
        for module, see in (watched or {}).items():
            stack.enter_context(module_seen(module, see))
        logits = adapter.forward(
            tokens, lengths - start, positions - start, gradients=gradients, columns=columns
        )
    for layer in attention_layers(adapter):
        times = ran.count(layer)
        refuse(
            times != 1,
            f"layer {layer} of {adapter.name} ran its attention {times} times in a forward pass, not once",
        )
    return logits


def read_prefix(
    adapter: ModelAdapter,
    tokens: Int[Tensor, "*prompt pos"],
    parent: Prefix | None = None,
    lengths: Int[Tensor, " prompt"] | None = None,
) -> Prefix:
    """Runs leading tokens of one prompt or of several (those behind the parent's), and keeps their keys and values.

    With `lengths`, counted from the beginning of the prompt, what stands behind them is padding, for `Prefix.of` to cut off.
    """
    kept: dict[int, tuple[Block, ...]] = {}

    def handle(attention: AttentionUnderWay) -> Tensor:
        # Keys and values come repeated for every query head of a group; one of each is kept.
        repeats = attention.k.shape[1] // adapter.shape.kv_heads
        k, v = (x[:, ::repeats].contiguous() for x in (attention.k, attention.v))
        kept[attention.layer] = (*attention.before, Block(k, v, attention.start))
        return attention.attend()

    rows = tokens.reshape(-1, tokens.shape[-1])
    whole = torch.full((len(rows),), (parent.end if parent else 0) + rows.shape[1])
    end = whole if lengths is None else lengths
    # Logits are not asked for; an unembedding of one token costs nothing.
    none = torch.zeros(1, dtype=torch.long)
    attention_pass(adapter, rows, end, end[:, None] - 1, handle, prefix=parent, columns=none)
    return Prefix(int(whole[0]), kept)
