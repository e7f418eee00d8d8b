"""Describes how a model reads logits out of its residual stream: norms, held at their scale, and the unembedding.

    logits = W_U f(x) + b,    f(x) = γ ⊙ C x / σ(x) + β        linear in x once σ is held at what it is in this run

Nothing here knows an architecture: γ, β and C of a norm are found by calling it. Does not show: how σ itself depends
on x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from icl_kernel_lens.errors import ModelError
from icl_kernel_lens.models.adapter import InterceptableAdapter, ModelAdapter
from icl_kernel_lens.models.transformer_lens_adapters import evaluating
from icl_kernel_lens.models.verify import tolerance

EXACT = 1e-3
"""Largest error of the sum in float32, relative to its largest part; half precision has `verify.tolerance`."""


@dataclass(frozen=True)
class FrozenNorm:
    """A norm as f(x) = γ ⊙ C x / σ(x) + β, found by calling it; an identity is one too, its σ constant.

    C = 1 − mean for a LayerNorm, C = 1 for an RMSNorm.
    """

    name: str
    gamma: Float[Tensor, " width"]
    beta: Float[Tensor, " width"]
    centred: bool
    limit: float

    @classmethod
    def of(cls, module: nn.Module, name: str, width: int, adapter: InterceptableAdapter) -> FrozenNorm:
        """From f(0) = β; f(±K s), whose norm is K for alternating signs s; and whether f(x + 3) = f(x)."""
        like = next(module.parameters(), torch.empty(0, dtype=adapter.dtype, device=adapter.device))
        signs = 1.0 - 2.0 * (torch.arange(width) % 2)
        x = torch.randn(width, generator=torch.Generator().manual_seed(0))
        given = torch.stack([torch.zeros(width), LARGE * signs, -LARGE * signs, x, x + 3])
        out = module(given[None].to(like))[0].float()
        beta, odd = out[0], (out[1] - out[2]) / 2
        moved = (out[4] - out[3]).abs().mean()
        centred = bool(moved < 0.1 * (out[3] - beta).abs().mean())
        return cls(name, odd * signs.to(odd), beta, centred, max(EXACT, tolerance(adapter.dtype)))

    def linear(self, x: Tensor) -> Tensor:
        """γ ⊙ C x."""
        return self.gamma * (x - x.mean(-1, keepdim=True) if self.centred else x)

    def transposed(self, u: Tensor) -> Tensor:
        """C (γ ⊙ u): what ⟨γ ⊙ C x, u⟩ = ⟨x, ·⟩ is taken with."""
        u = self.gamma.to(u.device) * u
        return u - u.mean(-1, keepdim=True) if self.centred else u

    def scale(
        self, x: Float[Tensor, "batch width"], y: Float[Tensor, "batch width"]
    ) -> Float[Tensor, " batch"]:
        """σ of each input, given what came out; by least squares, and then it must fit."""
        line, shifted = self.linear(x), y - self.beta
        square = line.square().sum(-1)
        sigma = (square / (line * shifted).sum(-1)).masked_fill(square == 0, 1)
        off = (line / sigma[:, None] - shifted).abs().amax(-1) / y.abs().amax(-1).clamp(min=1e-12)
        if bool(((off > self.limit) & off.isfinite()).any()):  # what is not finite, the logits tell
            raise ModelError(
                f"a norm must be linear once its scale is held; {self.name} is not: γ ⊙ C x / σ + β misses what "
                f"it gives by {float(off.max()):.1e} of its size (tolerance {self.limit:.0e}). Direct logit "
                "attribution is not defined for it.",
                code="not-linear",
            )
        return sigma


LARGE = 100.0
"""Against which the ε of a norm is nothing, and whose square half precision still holds."""


@dataclass(frozen=True)
class LinearReadOut:
    """From the residual stream to the logits of some tokens: the norms on the way, and their unembedding."""

    adapter: InterceptableAdapter
    final: FrozenNorm
    post: Mapping[int, FrozenNorm]
    """Norms between attention and the residual stream."""
    tokens: Int[Tensor, " token"]
    columns: Float[Tensor, "token width"]
    """W_U of these tokens, on the device of the unembedding."""
    bias: Float[Tensor, " token"]

    @classmethod
    def of(cls, adapter: InterceptableAdapter, tokens: Int[Tensor, " token"]) -> LinearReadOut:
        """Calls the norms and the unembedding on known inputs.

        Raises: ModelError: a block or the unembedding is not what it must be to be split.
        """
        model = adapter.model
        with torch.no_grad(), evaluating(model):
            try:
                weight = model.unembed.W_U
                blocks = [(block.attn.W_O, block.hook_resid_pre) for block in model.blocks]
            except (AttributeError, NotImplementedError) as error:
                raise ModelError(
                    "direct logit attribution needs unembed.W_U, and of every block attn.W_O and hook_resid_pre; "
                    f"{adapter.name} ({adapter.kind}) lacks one ({error}).",
                    code="hook-missing",
                ) from error
            width, heads = weight.shape[0], adapter.shape.heads
            for layer, (matrix, _) in enumerate(blocks):
                if matrix.dim() != 3 or (matrix.shape[0], matrix.shape[2]) != (heads, width):
                    raise ModelError(
                        f"blocks.{layer}.attn.W_O must be (head, d_head, width), {heads} heads to {width}; in "
                        f"{adapter.name} it is {tuple(matrix.shape)}.",
                        code="hook-shape",
                    )
            nothing = torch.zeros(1, 1, width, dtype=weight.dtype, device=weight.device)
            there = tokens.to(weight.device)
            post = {
                layer: FrozenNorm.of(norm, f"blocks.{layer}.ln1_post", width, adapter)
                for layer, block in enumerate(model.blocks)
                if (norm := getattr(block, "ln1_post", None)) is not None
            }
            return cls(
                adapter=adapter,
                final=FrozenNorm.of(getattr(model, "ln_final", nn.Identity()), "ln_final", width, adapter),
                post=post,
                tokens=tokens,
                columns=weight[:, there].T.float(),
                bias=model.unembed(nothing)[0, 0, there].float(),
            )


def unembedded(
    adapter: ModelAdapter, residual: Float[Tensor, "prompt width"]
) -> Float[Tensor, "prompt vocab"]:
    """The logits that the model's own final norm, unembedding and soft cap make of the last residual stream."""
    model = adapter.model
    with torch.no_grad():
        normed = getattr(model, "ln_final", nn.Identity())(residual[:, None])
        logits = model.unembed(normed)[:, 0].float()
    cap = getattr(model.cfg, "output_logits_soft_cap", None) or 0
    return cap * torch.tanh(logits / cap) if cap > 0 else logits
