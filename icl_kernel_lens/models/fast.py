"""Reading attention without its square, and leading tokens that many prompts share only once.

Both take over the middle of a model's attention (`models/intercept.py`) and do it by `models/attend.py`:

- `fast_attention(model)`: the model runs as it is used to, its own q, k and v going through
  `torch.nn.functional.scaled_dot_product_attention`; nothing of size head × position² is made.
- `read_rows`: beside that, the one row of attention asked for is rebuilt from q and k, in float32.
- `read_prefix`: runs leading tokens once and keeps their keys and values, for `read_rows` of what follows.

Keys are kept as they meet the queries (after a rotary embedding), so that nothing is rotated twice. Where
a model cannot be taken over exactly there is a `CannotIntercept`, and `evidence/read.py` runs it as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.errors import ModelError
from icl_kernel_lens.models.attend import Block, Rule, answer_row, attend, attend_blocks
from icl_kernel_lens.models.intercept import CannotIntercept
from icl_kernel_lens.models.lens import InterceptableLens, Lens, as_lens
from icl_kernel_lens.models.probe import probe

Look = Callable[[int, Float[Tensor, "batch head key"]], None]
"""(layer, rows in float32 where the layer lives)."""


@dataclass(frozen=True)
class Prefix:
    """Leading tokens that have been run, as the later tokens of a prompt see them."""

    end: int
    """How many tokens."""
    blocks: Mapping[int, tuple[Block, ...]]
    """Per layer, in order of position; keys after any rotary embedding, one row for all prompts."""

    @property
    def bytes(self) -> int:
        kept = (t for blocks in self.blocks.values() for block in blocks for t in (block.k, block.v))
        return sum(t.numel() * t.element_size() for t in kept)


@contextmanager
def fast_attention(model: Any) -> Iterator[None]:
    """Within, attention runs through PyTorch's fused kernels: the same results, and no square.

        z = softmax(scale · q kᵀ + bias, causal) · v      by scaled_dot_product_attention

    For a `HookedTransformer` or a `TransformerBridge`, its hooks and gradients included: `hook_q`, `hook_k`,
    `hook_v`, `hook_rot_q`, `hook_rot_k`, `hook_z` fire as ever, and edits there count. `hook_attn_scores` and
    `hook_pattern` have nothing to show: a hook on one of them is an error when the model runs (give
    `run_with_cache` a `names_filter` that leaves them out). Rotary embeddings, grouped queries and ALiBi are
    exact; so are soft caps and sliding windows shorter than the prompt, which are computed a stretch of
    queries at a time instead. The model is as before afterwards, also after an exception.

    Padding must stand behind the text, dropout must be off (`model.eval()`), and there must be no cache of keys of
    earlier tokens (`generate(..., use_past_kv_cache=False)`).

    Raises: ModelError: this model's attention cannot be taken over exactly, and why; at once, by running it
            on a few random tokens both ways, or at a forward pass that meets one of the limits above.
    Example:
        >>> from icl_kernel_lens import load_model
        >>> model = load_model("mini", device="cpu")
        >>> with fast_attention(model):
        ...     logits = model(torch.arange(3, 12)[None])
        >>> logits.shape
        torch.Size([1, 9, 349])
    """
    lens = to_be_taken_over(model, "to be fast", "Run the model as it is.")
    with lens.intercepting(lambda _layer, q, k, v, rule: attend(q, k, v, rule)):
        yield


def to_be_taken_over(model: Any, purpose: str, instead: str) -> InterceptableLens:
    """The lens of a model whose attention can be taken over exactly.

    Raises: ModelError: it cannot, why, and what to do instead.
    """
    lens = as_lens(model)
    reason = probe(lens).not_fast
    if reason is None and isinstance(lens, InterceptableLens):
        return lens
    raise ModelError(
        f"attention must be taken over exactly {purpose}; that of {lens.name} is not ({reason}). {instead}"
    )


def reads_fast(lens: Lens) -> bool:
    """Whether rows are rebuilt from q and k: it is exact, and no hook of the user's looks at the pattern."""
    if not isinstance(lens, InterceptableLens) or probe(lens).not_fast is not None:
        return False
    return not any(name.endswith(("hook_pattern", "hook_attn_scores")) for name in lens.hooks_in_place())


def read_rows(
    lens: Lens,
    tokens: Int[Tensor, "batch pos"],
    lengths: Int[Tensor, " batch"],
    answer_pos: Int[Tensor, " batch"],
    look: Look,
    *,
    prefix: Prefix | None = None,
) -> Float[Tensor, "batch 1 vocab"]:
    """Run prompts, show `look` every layer's attention from the answer position, and return the logits there.

    All positions count from the beginning of the prompt; `tokens` are those behind the prefix, if there is
    one, and rows cover the prefix too.
    """
    return read_logits(lens, tokens, lengths, answer_pos[:, None], prefix=prefix, look=look)


def read_logits(
    lens: Lens,
    tokens: Int[Tensor, "batch pos"],
    lengths: Int[Tensor, " batch"],
    positions: Int[Tensor, "batch read"],
    *,
    prefix: Prefix | None = None,
    look: Look | None = None,
) -> Float[Tensor, "batch read vocab"]:
    """Logits at some positions; `look` sees the attention from the first of them."""
    assert isinstance(lens, InterceptableLens)
    start = prefix.end if prefix else 0
    first = positions[:, 0]

    def handle(layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        blocks = (*(prefix.blocks[layer] if prefix else ()), Block(k, v, start))
        if look is not None:
            at = q[torch.arange(len(q), device=q.device), :, (first - start).to(q.device)]
            look(layer, answer_row(at, first, blocks, rule))
        return attend_blocks(q, blocks, rule) if prefix else attend(q, k, v, rule)

    with lens.intercepting(handle, start=start):
        return lens.run(tokens, lengths - start, positions - start)


def read_prefix(lens: Lens, tokens: Int[Tensor, "*prompt pos"], parent: Prefix | None = None) -> Prefix:
    """Run leading tokens of one prompt, or of several at once (those behind the parent's, if there is one), and keep
    their keys and values."""
    assert isinstance(lens, InterceptableLens)
    start = parent.end if parent else 0
    kept: dict[int, tuple[Block, ...]] = {}
    groups = lens.shape.kv_heads

    def handle(layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        before = parent.blocks[layer] if parent else ()
        # Keys and values come repeated for every query head of a group; one of each is kept.
        repeats = k.shape[1] // groups
        k_kept, v_kept = (x[:, ::repeats].contiguous() for x in (k, v))
        kept[layer] = (*before, Block(k_kept, v_kept, start))
        return attend_blocks(q, (*before, Block(k, v, start)), rule) if parent else attend(q, k, v, rule)

    rows = tokens.reshape(-1, tokens.shape[-1])
    length = torch.full((len(rows),), rows.shape[1])
    with lens.intercepting(handle, start=start):
        lens.run(rows, length, length[:, None] - 1)
    return Prefix(start + rows.shape[1], kept)


__all__ = [
    "CannotIntercept",
    "Prefix",
    "fast_attention",
    "read_logits",
    "read_prefix",
    "read_rows",
    "reads_fast",
    "to_be_taken_over",
]
