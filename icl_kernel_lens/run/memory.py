"""Estimates how many prompts fit into memory, and halves what does not.

    bytes a token    ≈ size · 24 · width                      residual stream, q, k, v, z, MLP
    bytes a prompt   ≈ 16 · heads · length + 8 · vocabulary      the rows read, in float32; answer logits
                     + 3 · 4 · heads · length²                 where the pattern itself must be written out

Halving on an out-of-memory error catches what the model misses, so it need not be exact.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from typing import TypeVar

import torch

from icl_kernel_lens.errors import RunError
from icl_kernel_lens.models.adapter import ModelAdapter

T = TypeVar("T")
R = TypeVar("R")

CPU_BYTES = 2**27
"""For activations on a CPU, where larger batches are no faster: caches are small."""
CPU_PREFIX_BYTES = 2**31
SHARE = 0.5
"""Of the free memory of a GPU, for activations; a quarter is left for a shared prefix."""
LARGEST_BATCH = 1024


def prompts_at_once(adapter: ModelAdapter, length: int, shared: int, *, fast: bool) -> int:
    """How many prompts of `length` tokens, of which `shared` are run already, make one batch."""
    shape, size = adapter.shape, adapter.dtype.itemsize
    token = size * 24 * (shape.width or 64 * shape.heads)
    prompt = token * (length - shared) + 16 * shape.heads * length + 8 * shape.vocab
    if not fast:
        prompt += 12 * shape.heads * length**2
    return int(max(1, min(LARGEST_BATCH, _bytes(adapter, SHARE) // prompt)))


def prefix_tokens(adapter: ModelAdapter) -> int:
    """How many leading tokens can be kept: keys and values of every layer."""
    shape = adapter.shape
    head_width = max(1, (shape.width or 64 * shape.heads) // shape.heads)
    token = 2 * shape.layers * shape.kv_heads * head_width * adapter.dtype.itemsize
    return int((_bytes(adapter, SHARE / 2) if adapter.device.type == "cuda" else CPU_PREFIX_BYTES) // token)


def _bytes(adapter: ModelAdapter, share: float) -> int:
    """Bytes to use where memory is scarcest."""
    if adapter.device.type != "cuda":
        return CPU_BYTES
    parameters = getattr(adapter.model, "parameters", list)()
    devices = {p.device for p in parameters if p.is_cuda} or {adapter.device}
    # What PyTorch holds and does not use is free, too.
    free = [
        torch.cuda.mem_get_info(at)[0] + torch.cuda.memory_reserved(at) - torch.cuda.memory_allocated(at)
        for at in devices
    ]
    return int(share * min(free))


def exhausted(error: Exception) -> bool:
    """Whether an error says that memory ran out, on a GPU or a CPU."""
    signs = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error).lower() for sign in signs)


@contextmanager
def must_fit(message: str) -> Iterator[None]:
    """Turns running out of memory into an error with this message.

    Raises: RunError.
    """
    try:
        yield
    except RuntimeError as error:
        if not exhausted(error):
            raise
        raise RunError(message, code="memory") from error


def in_pieces(
    items: Sequence[T], size: int, run: Callable[[Sequence[T]], R]
) -> Iterator[tuple[Sequence[T], R]]:
    """Runs items in pieces of at most `size`, in halves of these where memory runs out.

    Raises: RuntimeError: not even one item fits; the error is PyTorch's own.
    """
    first = 0
    while first < len(items):
        piece = items[first : first + size]
        try:
            result = run(piece)
        except RuntimeError as error:
            if not exhausted(error) or len(piece) == 1:
                raise
        else:
            yield piece, result
            first += len(piece)
            continue
        # Outside of the handler, whose traceback would hold the tensors of the failed run.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        size = (len(piece) + 1) // 2


def in_batches(
    adapter: ModelAdapter, variants: Sequence[T], length: int, shared: int, run: Callable[[Sequence[T]], R]
) -> Iterator[R]:
    """Runs variants of one prompt in as many passes as memory asks for; a pass that does not fit is halved.

    Passes are of about equal size, and up to an eighth larger than estimated where that saves one for a few variants.
    """
    most = prompts_at_once(adapter, length, shared, fast=True)
    passes = ceil(len(variants) / (most + most // 8))
    return (r for _, r in in_pieces(variants, ceil(len(variants) / passes), run))
