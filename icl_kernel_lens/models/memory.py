"""How many prompts fit: a rough model of what a forward pass holds, and what running out looks like.

    bytes a token    ≈ size · 24 · width                      residual stream, q, k, v, z, MLP
    bytes a prompt   ≈ 16 · heads · length + 8 · vocabulary      the rows read, in float32; answer logits
                     + 3 · 4 · heads · length²                 where the pattern itself must be written out

Halving on an out-of-memory error catches what the model misses, so it need not be exact.
"""

from __future__ import annotations

import gc

import torch

from icl_kernel_lens.models.lens import Lens

CPU_BYTES = 2**27
"""For activations on a CPU, where larger batches are no faster: caches are small."""
CPU_PREFIX_BYTES = 2**31
SHARE = 0.5
"""Of the free memory of a GPU, for activations; a quarter is left for a shared prefix."""
LARGEST_BATCH = 1024


def prompts_at_once(lens: Lens, length: int, shared: int, *, fast: bool) -> int:
    """How many prompts of `length` tokens, of which `shared` are run already, make one batch."""
    shape, size = lens.shape, lens.dtype.itemsize
    token = size * 24 * (shape.width or 64 * shape.heads)
    prompt = token * (length - shared) + 16 * shape.heads * length + 8 * shape.vocab
    if not fast:
        prompt += 12 * shape.heads * length**2
    return int(max(1, min(LARGEST_BATCH, _bytes(lens, SHARE) // prompt)))


def prefix_tokens(lens: Lens) -> int:
    """How many leading tokens can be kept: keys and values of every layer."""
    shape = lens.shape
    head_width = max(1, (shape.width or 64 * shape.heads) // shape.heads)
    token = 2 * shape.layers * shape.kv_heads * head_width * lens.dtype.itemsize
    return int((_bytes(lens, SHARE / 2) if lens.device.type == "cuda" else CPU_PREFIX_BYTES) // token)


def _bytes(lens: Lens, share: float) -> int:
    """Bytes to use where memory is scarcest."""
    if lens.device.type != "cuda":
        return CPU_BYTES
    parameters = getattr(lens.model, "parameters", None)
    devices = {p.device for p in parameters() if p.is_cuda} if parameters else {lens.device}
    free = []
    for device in devices:
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free.append(torch.cuda.mem_get_info(device)[0] + unused)
    return int(share * min(free))


def exhausted(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out, on a GPU or a CPU."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return any(sign in text for sign in ("out of memory", "can't allocate memory", "not enough memory"))


def release() -> None:
    """Give back what a failed run left behind."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
