"""Declares the sizes of a model, and names the activations that are read and edited.

The names are TransformerLens's, the same on both of its model classes: of a layer's attention
`hook_pattern` (batch, head, query, key), `hook_v` (batch, pos, kv_head, d_head), `hook_z` (batch, pos, head, d_head).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

HookName = Literal["hook_pattern", "hook_v", "hook_z"]
"""Of a layer's attention."""
VectorName = Literal["hook_q", "hook_k", "hook_v"]
"""Of a layer's attention: queries and keys before any rotary embedding, values; (batch, pos, head, d_head)."""
StreamName = Literal["hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post"]
"""Of a layer's block: what comes in, what attention and MLP add (after any norm behind them), what goes out."""
Edits = Mapping[tuple[int, HookName | VectorName | StreamName], Callable[[Tensor], Tensor | None]]
"""(layer, activation) → a function that sees it, and may return another in its place."""


@dataclass(frozen=True)
class ModelShape:
    """The sizes a reader of attention needs."""

    layers: int
    heads: int
    kv_heads: int
    context: int | None
    vocab: int
    width: int = 0
    """Of the residual stream; 0: not known, which only the choice of batch sizes minds."""
    by_length: int | None = None
    """From so many tokens on, where a token stands depends on the longest prompt of its batch; None: never."""
