"""Gives a HookedTransformer the rotary angles of the Hugging Face model that it was made from, as that one rounds them.

Both compute pos / base^(2i/d), one by a division and the other by a product with the reciprocal: at position 600 their
float32 angles are 4e-5 apart, which is 1e-4 in the scores of Gemma 3.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

ROUNDING = 1e-2
"""How far two tables may be apart and still be of the same frequencies."""


def take_angles(model: Any, hf: Any) -> None:
    """Put the cosines and sines of Hugging Face's frequencies into each layer whose own are the same but for rounding."""
    frequencies = [
        buffer.detach().float() for name, buffer in hf.named_buffers() if name.endswith("inv_freq")
    ]
    for block in model.blocks:
        cos = getattr(block.attn, "rotary_cos", None)
        if cos is None or not frequencies or cos.dtype != torch.float32:
            continue
        tables = [table for one in frequencies if (table := _angles(one, cos)).shape == cos.shape]
        apart = [float((table.cos() - cos).abs().max()) for table in tables]
        if apart and min(apart) < ROUNDING:
            nearest = tables[apart.index(min(apart))]
            block.attn.rotary_cos, block.attn.rotary_sin = nearest.cos(), nearest.sin()


def _angles(
    frequency: Float[Tensor, " half"], like: Float[Tensor, "pos width"]
) -> Float[Tensor, "pos width2"]:
    """Position times frequency, twice beside each other."""
    angles = torch.arange(len(like), device=like.device).float()[:, None] * frequency.to(like.device)
    return torch.cat([angles, angles], 1)
