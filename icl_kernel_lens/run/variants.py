"""Runs prompts in many variants at once, each with a change of its own.

A change is made between a layer's own q, k, v and its own z (`models/attention_passes.py`), or where the layer reads from
and adds to the residual stream, and everything above is computed anew by the model's own code. What changes only
the answer position needs only that position run again: the keys and values of the tokens before it are kept
(`keep`), and the variants are rows of one token each, which attend them without a copy. What changes an earlier
position is run whole, the variants being the rows of a batch.

Attention rows are changed in closed form, in float32: with A the row that the model's own q and k give there,

    z' = z + Σ_s (A'(s) − A(s)) v_s + added
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from icl_kernel_lens.errors import ModelError
from icl_kernel_lens.models.adapter import InterceptableAdapter, ModelAdapter, attention_layers, users_hooks
from icl_kernel_lens.models.attention_passes import AttentionUnderWay, Prefix, attention_pass, read_prefix
from icl_kernel_lens.models.transformer_lens_adapters import Edits, StreamName
from icl_kernel_lens.models.verify import to_be_taken_over, verify_model
from icl_kernel_lens.numbers.attention import Block, Rule, answer_scores, mixed, values_at
from icl_kernel_lens.prompts.promptset import PromptSet

HeadVector = Literal["query", "key", "value", "head_output"]
"""One vector per head and position: after any rotary embedding, and z."""
StreamVector = Literal["residual", "attention_output", "mlp_output"]
"""One vector per position: what a block reads, and what its attention and its MLP add."""
STREAMS: Mapping[StreamVector, StreamName] = {
    "residual": "hook_resid_pre",
    "attention_output": "hook_attn_out",
    "mlp_output": "hook_mlp_out",
}
Edit = Callable[[int, Tensor], Tensor]
"""(layer, activation of all variants) → the same with each variant's change."""


@dataclass(frozen=True)
class Row:
    """The attention rows of one layer that are to be changed, one a (variant, head)."""

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
    """The scores whose softmax is the weights; −inf for keys that are not seen."""
    queries: Float[Tensor, "row d_head"]
    rule: Rule


@dataclass(frozen=True)
class RowChange:
    """How attention rows are changed."""

    heads: Bool[Tensor, "variant layer head"]
    """Whose rows."""
    positions: Int[Tensor, "variant column"]
    """Of which queries; the answer position, most often."""
    change: Callable[[Row], Float[Tensor, "row key"]]
    added: Callable[[Row], Float[Tensor, "row d_head"]] | None = None


@dataclass(frozen=True)
class Changes:
    """The changes that the variants of a run make."""

    vectors: Mapping[HeadVector, Edit] = field(default_factory=dict)
    """On (variant, head, pos, d_head); keys and values are repeated for every query head."""
    streams: Mapping[StreamVector, Edit] = field(default_factory=dict)
    """On (variant, pos, width)."""
    rows: RowChange | None = None
    edits: Edits = field(default_factory=dict)
    """On other activations of a layer, by TransformerLens's names; without a stream that is changed above."""


def editable(model: Any) -> InterceptableAdapter:
    """The adapter of a model whose attention can be changed exactly.

    Raises: ModelError: it cannot, and why.
    """
    return to_be_taken_over(
        model, "to be changed", "Score its heads with read(model, prompts); interventions need another model."
    )


def own_tokens(adapter: ModelAdapter, longest: int) -> int | None:
    """How many of the last tokens of prompts must be run together, behind kept keys and values; None: all.

    One, but where a single token does not show its position bias (ALiBi), two. All with hooks of the user's on the model:
    they may mean a position of the whole prompt; and where tokens are placed by the prompt's length.
    """
    report, limit = verify_model(adapter), adapter.shape.by_length
    if report.not_shared is not None or (limit is not None and longest >= limit) or users_hooks(adapter):
        return None
    return 1 if report.not_alone is None else 2


def keep(
    adapter: ModelAdapter, tokens: Int[Tensor, "*prompt pos"], at: int, shared: Prefix | None, own: int | None
) -> Prefix | None:
    """Keys and values of all tokens before the last `own` up to the answer; None where they are not run apart."""
    if own is None:
        return None
    end, start = at + 1 - own, shared.end if shared else 0
    return read_prefix(adapter, tokens[..., start:end], shared) if end - start >= own else shared


def run_on(adapter: ModelAdapter, tokens: Int[Tensor, "*prompt pos"], parent: Prefix | None = None) -> Prefix:
    """Keys and values of one prompt's tokens, or of several rows of one length, those of the parent before them."""
    return read_prefix(adapter, tokens, parent)


def kept_at(
    prefix: Prefix, positions: Int[Tensor, "row position"]
) -> tuple[
    Float[Tensor, "row layer kv_head position d_head"], Float[Tensor, "row layer kv_head position d_value"]
]:
    """Keys and values in the layers that have attention, on the CPU: a row of positions for each row that was run (what was run as
    one row serves them all)."""
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for blocks in prefix.blocks.values():
        for into, parts in zip(found, ([b.k for b in blocks], [b.v for b in blocks]), strict=True):
            whole = [Block(x, x, b.start) for x, b in zip(parts, blocks, strict=True)]
            into.append(values_at(whole, positions.to(parts[0].device), parts[0].shape[1]).cpu())
    keys, values = (torch.stack(x, 1) for x in found)
    return keys, values


def keep_together(
    adapter: ModelAdapter,
    tokens: Int[Tensor, "prompt pos"],
    at: Int[Tensor, " prompt"],
    shared: Prefix,
    own: int,
) -> Prefix | None:
    """The same of several prompts of any length, in one pass, for `Prefix.of`; None: one of them has too few tokens."""
    end = at + 1 - own
    if len(at) < 2 or int(end.min()) - shared.end < own:
        return None
    return read_prefix(adapter, tokens[:, shared.end : int(end.max())], shared, end)


def bases(
    adapter: ModelAdapter, prompts: PromptSet, numbers: list[int], shared: Prefix | None, own: int | None
) -> Callable[[list[int]], Prefix | None]:
    """Equally long prompts among these → `keep` of them; those that share leading tokens are read in one pass, whatever their length."""
    at, together = prompts.answer_pos, None
    if shared is not None and own is not None:
        together = keep_together(adapter, prompts.tokens[numbers], at[numbers], shared, own)

    def of(some: list[int]) -> Prefix | None:
        if together is None or own is None:
            return keep(adapter, prompts.tokens[some], int(at[some[0]]), shared, own)
        return together.of([numbers.index(n) for n in some], int(at[some[0]]) + 1 - own)

    return of


def run_variants(
    adapter: ModelAdapter,
    tokens: Int[Tensor, "*prompt pos"],
    at: int,
    count: int,
    changes: Changes,
    prefix: Prefix | None,
    *,
    gradients: bool = False,
    late: bool = False,
    columns: Int[Tensor, " column"] | None = None,
) -> Float[Tensor, "variant vocab"]:
    """Logits (of all tokens, or of `columns`) at the answer position `at` of `count` variants a prompt, one prompt's after the other's.

    Only tokens behind the prefix are run. Several prompts are equally long, and change the same heads' rows. `late`: of a
    single prompt whose variants change attention rows alone, each joins below the first layer that it changes, as a copy of
    the unchanged row.
    """
    if late and changes.rows is not None and tokens.dim() == 1:
        return _joining(adapter, tokens, at, changes.rows, prefix, columns)

    def handle(attention: AttentionUnderWay) -> Tensor:
        def edited(name: HeadVector, x: Tensor) -> Tensor:
            return changes.vectors[name](attention.layer, x) if name in changes.vectors else x

        q, k, v = attention.q, attention.k, attention.v
        attention = replace(attention, q=edited("query", q), k=edited("key", k), v=edited("value", v))
        z = attention.attend()
        if changes.rows is not None:
            z = _with_rows(attention, z, changes.rows, count, torch.arange(count * len(prompts)))
        return edited("head_output", z)

    layers = attention_layers(adapter)
    edits: Edits = {
        (layer, STREAMS[name]): partial(edit, layer)
        for name, edit in changes.streams.items()
        for layer in layers
    }
    prompts = tokens.reshape(-1, tokens.shape[-1])
    rows = prompts[:, prefix.end if prefix else 0 : at + 1].repeat_interleave(count, 0)
    end = torch.full((len(rows),), at + 1)
    return attention_pass(
        adapter,
        rows,
        end,
        end[:, None] - 1,
        handle,
        prefix=prefix,
        edits={**edits, **changes.edits},
        gradients=gradients,
        columns=columns,
    )[:, 0]


def _joining(
    adapter: ModelAdapter,
    tokens: Int[Tensor, " pos"],
    at: int,
    rows: RowChange,
    prefix: Prefix | None,
    columns: Int[Tensor, " column"] | None,
) -> Float[Tensor, "variant vocab"]:
    """The variants' logits, each run from the first layer that it changes; row 0 is the unchanged one."""
    touched = rows.heads.any(-1)
    first = torch.where(touched.any(-1), touched.int().argmax(-1), touched.shape[1])
    order = first.sort(stable=True).indices
    joined = order[first[order] < touched.shape[1]]
    row_of = torch.zeros(len(first), dtype=torch.long)
    row_of[joined] = torch.arange(1, len(joined) + 1)

    def join(many: int, x: Tensor) -> Tensor:
        return torch.cat([x, x[:1].expand(many, *x.shape[1:])])

    def handle(attention: AttentionUnderWay) -> Tensor:
        return _with_rows(attention, attention.attend(), rows, len(first), row_of)

    edits: Edits = {
        (layer, STREAMS["residual"]): partial(join, int((first == layer).sum()))
        for layer in first[joined].unique().tolist()
    }
    end = torch.tensor([at + 1])
    own = tokens[None, prefix.end if prefix else 0 : at + 1]
    logits = attention_pass(
        adapter, own, end, end[:, None] - 1, handle, prefix=prefix, edits=edits, columns=columns
    )[:, 0]
    return logits[row_of.to(logits.device)]


def _with_rows(
    attention: AttentionUnderWay, z: Tensor, rows: RowChange, count: int, row_of: Int[Tensor, " variant"]
) -> Float[Tensor, "row head pos d_value"]:
    """z with the rows of this layer's heads changed; `row_of`: where each variant stands in the batch."""
    variants, heads = (x.to(z.device) for x in rows.heads[:, attention.layer].nonzero(as_tuple=True))
    if len(variants) == 0:
        return z
    who, place = variants.unique(return_inverse=True)
    which = row_of.to(z.device)[who]
    # Rows are chosen alike in every prompt, so that they still stand prompt by prompt before the keys of each.
    whole, blocks = len(attention.q), attention.blocks
    own = [Block(b.k[which], b.v[which], b.start) if len(b.k) == whole else b for b in blocks]
    z = z.clone()
    for column in range(rows.positions.shape[1]):
        pos = rows.positions.to(z.device)[who, column]
        here = pos - attention.start
        scores = answer_scores(attention.q[which, :, here], pos, own, attention.rule)
        weights = scores.softmax(-1)
        row = Row(
            attention.layer,
            variants // count,
            variants,
            heads,
            column,
            weights[place, heads],
            scores[place, heads],
            attention.q[which[place], heads, here[place]],
            attention.rule,
        )
        difference = torch.zeros_like(weights)
        difference[place, heads] = rows.change(row) - row.weights
        moved = mixed(difference, own)
        if rows.added is not None:
            moved[place, heads] += rows.added(row)
        z[which, :, here] += moved.to(z.dtype)
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
    adapter: ModelAdapter,
    tokens: Int[Tensor, " pos"],
    at: int,
    positions: Int[Tensor, " position"],
    names: Sequence[str],
    prefix: Prefix | None,
) -> Seen:
    """Run one prompt unchanged; keys and values are seen anywhere, the rest behind the prefix only."""
    start = prefix.end if prefix else 0
    found: dict[str, dict[int, Tensor]] = {name: {} for name in (*names, "row")}

    def keep_at(name: str, layer: int, x: Float[Tensor, "1 *head pos width"], first: int = start) -> None:
        if name in names:
            found[name][layer] = x[0, ..., (positions - first).to(x.device), :].clone()

    def handle(attention: AttentionUnderWay) -> Tensor:
        layer, z = attention.layer, attention.attend()
        found["row"][layer] = attention.row(torch.tensor([at]))[0]
        keep_at("query", layer, attention.q)
        keep_at("head_output", layer, z)
        for name in {"key", "value"}.intersection(names):
            parts = [block.k if name == "key" else block.v for block in attention.blocks]
            # Of a prefix, one row is kept for all query heads of a group.
            whole = [part.repeat_interleave(z.shape[1] // part.shape[1], 1) for part in parts]
            keep_at(name, layer, torch.cat(whole, 2), 0)
        return z

    layers, seen = attention_layers(adapter), STREAMS.keys() & set(names)
    edits: Edits = {
        (layer, STREAMS[name]): partial(keep_at, name, layer) for name in seen for layer in layers
    }
    end = torch.tensor([at + 1])
    logits = attention_pass(
        adapter, tokens[None, start : at + 1], end, end[:, None] - 1, handle, prefix=prefix, edits=edits
    )[0, 0]

    def stacked(parts: Mapping[int, Tensor]) -> Tensor:
        widths = {layer: part.shape[-1] for layer, part in parts.items()}
        if len({*widths.values()}) > 1:
            raise ModelError(
                f"the heads of all layers must be of one width for their vectors to be changed; those of {adapter.name} have "
                f"{widths} (layer: width).",
                code="not-taken-over",
            )
        empty = torch.full_like(next(iter(parts.values())), float("nan"))
        return torch.stack(
            [parts.get(layer, empty).to(logits.device) for layer in range(adapter.shape.layers)]
        )

    return Seen({name: stacked(found[name]) for name in names}, stacked(found["row"]), logits)
