"""Runs attention through PyTorch's fused kernels: the same results, and no square of scores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from icl_kernel_lens.models.verify import to_be_taken_over
from icl_kernel_lens.numbers.attention import attend


@contextmanager
def fast_attention(model: Any) -> Iterator[None]:
    """Runs a model's attention through PyTorch's fused kernels within the context: the same results, and no square.

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
        >>> import torch
        >>> from icl_kernel_lens import load_model
        >>> model = load_model("mini", device="cpu")
        >>> with fast_attention(model):
        ...     logits = model(torch.arange(3, 12)[None])
        >>> logits.shape
        torch.Size([1, 9, 349])
    """
    adapter = to_be_taken_over(model, "to be fast", "Run the model as it is.")
    with adapter.intercepting(lambda _layer, q, k, v, rule: attend(q, k, v, rule)):
        yield
