"""Prompts in many variants at once, each with its own change: the one place that runs a model to change it.

A change is made between a layer's own q, k, v and its own z (`models/intercept.py`), or where the layer reads from
and adds to the residual stream, and everything above is computed anew by the model's own code. What changes only
the answer position needs only that position run again: the keys and values of the tokens before it are kept
(`keep`), and the variants are rows of one token each, which attend them without a copy. What changes an earlier
position is run whole, the variants being the rows of a batch.

Attention rows are changed in closed form, in float32: with A the row that the model's own q and k give there,

    z' = z + Σ_s (A'(s) − A(s)) v_s + added
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from icl_kernel_lens.errors import ModelError
from icl_kernel_lens.models import Lens, memory, probe
from icl_kernel_lens.models.attend import Block, Rule, answer_row, answer_scores, attend, attend_blocks, mixed
from icl_kernel_lens.models.fast import Prefix, read_prefix, to_be_taken_over
from icl_kernel_lens.models.lens import InterceptableLens, StreamName, VectorName

HeadVector = Literal["query", "key", "value", "head_output"]
"""One vector per head and position: after any rotary embedding, and z."""
StreamVector = Literal["residual", "attention_output", "mlp_output"]
"""One vector per position: what a block reads, and what its attention and its MLP add."""
STREAMS: Mapping[StreamVector, StreamName] = {
    "residual": "hook_resid_pre",
    "attention_output": "hook_attn_out",
    "mlp_output": "hook_mlp_out",
}
Callbacks = dict[tuple[int, StreamName | VectorName], Callable[[Tensor], Tensor | None]]
Edit = Callable[[int, Tensor], Tensor]
"""(layer, activation of all variants) → the same with each variant's change."""


@dataclass(frozen=True)
class Row:
    """Attention rows to be changed: one for each (variant, head) of a layer that asks for it."""

    layer: int
    prompts: Int[Tensor, " row"]
    """Counted from 0 among the prompts that are run together."""
    variants: Int[Tensor, " row"]
    """Of all prompts, one after the other."""
    heads: Int[Tensor, " row"]
    column: int
    """Which of the changed positions."""
    weights: Float[Tensor, "row key"]
    scores: Float[Tensor, "row key"]
    """What softmax makes the weights of; −inf for what is not seen."""


@dataclass(frozen=True)
class RowChange:
    """What becomes of attention rows."""

    heads: Bool[Tensor, "variant layer head"]
    """Whose rows."""
    positions: Int[Tensor, "variant column"]
    """Of which queries; the answer position, most often."""
    change: Callable[[Row], Float[Tensor, "row key"]]
    added: Callable[[Row], Float[Tensor, "row d_head"]] | None = None


@dataclass(frozen=True)
class Changes:
    """What the variants of a run change."""

    vectors: Mapping[HeadVector, Edit] = field(default_factory=dict)
    """On (variant, head, pos, d_head); keys and values are repeated for every query head."""
    streams: Mapping[StreamVector, Edit] = field(default_factory=dict)
    """On (variant, pos, width)."""
    rows: RowChange | None = None


def editable(model: Any) -> InterceptableLens:
    """The lens of a model whose attention can be changed exactly.

    Raises: ModelError: it cannot, and why.
    """
    return to_be_taken_over(
        model, "to be changed", "Score its heads with read(model, prompts); interventions need another model."
    )


def own_tokens(lens: Lens, longest: int) -> int | None:
    """How many of the last tokens of prompts must be run together, behind kept keys and values; None: all.

    One, but where a single token does not show its position bias (ALiBi), two. All with hooks of the user's on the model:
    they may mean a position of the whole prompt; and where tokens are placed by the prompt's length.
    """
    report, limit = probe(lens), lens.shape.by_length
    if report.not_shared is not None or (limit is not None and longest >= limit):
        return None
    if not isinstance(lens, InterceptableLens) or lens.hooks_in_place():
        return None
    return 1 if report.not_alone is None else 2


def keep(
    lens: Lens, tokens: Int[Tensor, "*prompt pos"], at: int, shared: Prefix | None, own: int | None
) -> Prefix | None:
    """Keys and values of all tokens before the last `own` up to the answer; None where they are not run apart."""
    if own is None:
        return None
    end, start = at + 1 - own, shared.end if shared else 0
    return read_prefix(lens, tokens[..., start:end], shared) if end - start >= own else shared


def run_variants(
    lens: Lens,
    tokens: Int[Tensor, "*prompt pos"],
    at: int,
    count: int,
    changes: Changes,
    prefix: Prefix | None,
    *,
    gradients: bool = False,
) -> Float[Tensor, "variant vocab"]:
    """Logits at the answer position `at` of `count` variants a prompt, one prompt's after the other's.

    Only tokens behind the prefix are run. Several prompts are equally long, and change the same heads' rows.
    """
    lens = editable(lens)
    start = prefix.end if prefix else 0
    seen: set[int] = set()

    def handle(layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        seen.add(layer)
        edits = changes.vectors
        q = edits["query"](layer, q) if "query" in edits else q
        k = edits["key"](layer, k) if "key" in edits else k
        v = edits["value"](layer, v) if "value" in edits else v
        blocks = (*(prefix.blocks[layer] if prefix else ()), Block(k, v, start))
        z = attend_blocks(q, blocks, rule) if prefix else attend(q, k, v, rule)
        if changes.rows is not None:
            z = _with_rows(layer, q, z, blocks, rule, changes.rows, start, count)
        return edits["head_output"](layer, z) if "head_output" in edits else z

    def stream(name: StreamVector, layer: int) -> Callable[[Tensor], Tensor]:
        return lambda x: changes.streams[name](layer, x)

    layers = [layer for layer in range(lens.shape.layers) if layer not in lens.missing_attention()]
    points: Callbacks = {
        (layer, STREAMS[name]): stream(name, layer) for name in changes.streams for layer in layers
    }
    rows = tokens.reshape(-1, tokens.shape[-1])[:, start : at + 1].repeat_interleave(count, 0)
    length = torch.full((len(rows),), at + 1 - start)
    with lens.intercepting(handle, start=start), lens.editing(points) if points else nullcontext():
        logits = lens.run(rows, length, length[:, None] - 1, gradients=gradients)[:, 0]
    if missed := set(layers) - seen:
        raise ModelError(
            f"a change must reach every layer's attention; layer {min(missed)} of {lens.name} did not run it."
        )
    return logits


def _with_rows(
    layer: int,
    q: Tensor,
    z: Tensor,
    blocks: Sequence[Block],
    rule: Rule,
    rows: RowChange,
    start: int,
    count: int,
) -> Float[Tensor, "variant head pos d_head"]:
    """z with the rows of this layer's heads changed."""
    variants, heads = (x.to(z.device) for x in rows.heads[:, layer].nonzero(as_tuple=True))
    if len(variants) == 0:
        return z
    which, place = variants.unique(return_inverse=True)
    # Rows are chosen alike in every prompt, so that they still stand prompt by prompt before the keys of each.
    own = [Block(b.k[which], b.v[which], b.start) if len(b.k) == len(q) else b for b in blocks]
    z = z.clone()
    for column in range(rows.positions.shape[1]):
        pos = rows.positions.to(z.device)[which, column]
        scores = answer_scores(q[which, :, pos - start], pos, own, rule)
        weights = scores.softmax(-1)
        row = Row(
            layer, variants // count, variants, heads, column, weights[place, heads], scores[place, heads]
        )
        difference = torch.zeros_like(weights)
        difference[place, heads] = rows.change(row) - row.weights
        moved = mixed(difference, own)
        if rows.added is not None:
            moved[place, heads] += rows.added(row)
        z[which, :, pos - start] += moved.to(z.dtype)
    return z


@dataclass(frozen=True)
class Seen:
    """Activations of one prompt at some positions, and its answer row."""

    vectors: Mapping[str, Float[Tensor, "layer *part position width"]]
    """By name (`HeadVector`, `StreamVector`); with an axis of query heads for the former."""
    weights: Float[Tensor, "layer head key"]
    """The answer row."""
    logits: Float[Tensor, " vocab"]


def look_at(
    lens: Lens,
    tokens: Int[Tensor, " pos"],
    at: int,
    positions: Int[Tensor, " position"],
    names: Sequence[str],
    prefix: Prefix | None,
) -> Seen:
    """Run one prompt unchanged; keys and values are seen anywhere, the rest behind the prefix only."""
    lens = editable(lens)
    start = prefix.end if prefix else 0
    found: dict[str, dict[int, Tensor]] = {name: {} for name in names}
    rows: dict[int, Tensor] = {}

    def handle(layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        blocks = (*(prefix.blocks[layer] if prefix else ()), Block(k, v, start))
        rows[layer] = answer_row(q[:, :, at - start], torch.tensor([at]), blocks, rule)[0]
        z = attend_blocks(q, blocks, rule) if prefix else attend(q, k, v, rule)
        for name in names:
            if name in ("key", "value"):
                parts = [block.k if name == "key" else block.v for block in blocks]
                whole = torch.cat([_per_query_head(part[0], q.shape[1]) for part in parts], 1)
                found[name][layer] = whole[:, positions.to(whole.device)].clone()
            elif name in ("query", "head_output"):
                x = q if name == "query" else z
                found[name][layer] = x[0][:, (positions - start).to(x.device)].clone()
        return z

    def stream(name: str, layer: int) -> Callable[[Tensor], None]:
        def see(x: Tensor) -> None:
            found[name][layer] = x[0][(positions - start).to(x.device)].clone()

        return see

    layers = [layer for layer in range(lens.shape.layers) if layer not in lens.missing_attention()]
    points: Callbacks = {
        (layer, STREAMS[n]): stream(n, layer) for n in STREAMS if n in names for layer in layers
    }
    row, length = tokens[None, start : at + 1], torch.tensor([at + 1 - start])
    with lens.intercepting(handle, start=start), lens.editing(points) if points else nullcontext():
        logits = lens.run(row, length, length[:, None] - 1)[0, 0]
    if missed := set(layers) - set(rows):
        raise ModelError(
            f"every layer must be seen; layer {min(missed)} of {lens.name} did not run its attention."
        )
    device = logits.device

    def stacked(parts: Mapping[int, Tensor]) -> Tensor:
        empty = torch.full_like(next(iter(parts.values())), float("nan"))
        return torch.stack([parts.get(layer, empty).to(device) for layer in range(lens.shape.layers)])

    return Seen({name: stacked(parts) for name, parts in found.items()}, stacked(rows), logits)


def _per_query_head(x: Float[Tensor, "kv_head key d_head"], heads: int) -> Float[Tensor, "head key d_head"]:
    return x.repeat_interleave(heads // len(x), 0) if len(x) != heads else x


T = TypeVar("T")


def in_batches(
    lens: Lens,
    variants: Sequence[T],
    length: int,
    shared: int,
    run: Callable[[Sequence[T]], Float[Tensor, "variant vocab"]],
) -> Iterator[Float[Tensor, "variant vocab"]]:
    """Variants of one prompt in as many runs as memory asks for; a run that does not fit is halved."""
    size = memory.prompts_at_once(lens, length, shared, fast=True)
    first = 0
    while first < len(variants):
        try:
            out = run(variants[first : first + size])
        except RuntimeError as error:
            if not memory.exhausted(error) or size == 1:
                raise
            out = None
        if out is None:
            # Outside of the handler, whose traceback would hold the tensors of the failed run.
            memory.release()
            size = (min(size, len(variants) - first) + 1) // 2
            continue
        yield out
        first += size
