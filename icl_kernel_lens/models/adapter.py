"""Declares what this package asks of a model, and finds the adapter that does it for a model in hand.

A `ModelAdapter` looks at a model without changing it: it runs tokens to the logits of chosen positions, and hands
each layer's attention to a callback while the forward pass is under way. `as_adapter` finds the adapter of a
`HookedTransformer` or a `TransformerBridge`; anything that satisfies `ModelAdapter` itself is taken as it is. Both
TransformerLens classes also let the middle of their attention be taken over (`InterceptableAdapter`), which is how
attention is read without being written out (`attention_passes.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.errors import ModelError
from icl_kernel_lens.models.takeover import Handler
from icl_kernel_lens.models.transformer_lens_adapters import (
    BridgeAdapter,
    Edits,
    HookedAdapter,
    HookName,
    ModelShape,
    transformer_lens_classes,
)


@runtime_checkable
class ModelAdapter(Protocol):
    """What this package asks of a model."""

    @property
    def model(self) -> Any:
        """The user's own object."""
        ...

    @property
    def kind(self) -> str:
        """`HookedTransformer`, `TransformerBridge`, or a name of your own; recorded in results."""
        ...

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> ModelShape: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device:
        """Where token ids go in; layers may live elsewhere."""
        ...

    @property
    def tokenizer(self) -> Any | None: ...

    def missing_attention(self) -> dict[int, str]:
        """Layers without attention, and why: they are not scored."""
        ...

    def watching(
        self, callbacks: Mapping[tuple[int, HookName], Callable[[Tensor], None]]
    ) -> AbstractContextManager[None]:
        """A context manager under which each callback sees its activation at every forward pass."""
        ...

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        lengths: Int[Tensor, " batch"],
        positions: Int[Tensor, "batch read"],
    ) -> Float[Tensor, "batch read vocab"]:
        """Next-token logits at `positions`, float32; positions from `lengths` on are padding."""
        ...


@runtime_checkable
class InterceptableAdapter(ModelAdapter, Protocol):
    """An adapter whose attention can be taken over between q, k, v and z."""

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        lengths: Int[Tensor, " batch"],
        positions: Int[Tensor, "batch read"],
        *,
        gradients: bool = False,
        columns: Int[Tensor, " column"] | None = None,
    ) -> Float[Tensor, "row read vocab"]:
        """As `ModelAdapter.forward`; `gradients` records what autograd needs. Rows may have joined on the way,
        equally many to each prompt and right behind it.

        With `columns`, the logits of these tokens alone, which costs less (`models/unembedding.py`).
        """
        ...

    def intercepting(self, handler: Handler, *, start: int = 0) -> AbstractContextManager[None]:
        """A context manager under which `handler` gives each layer's z, and tokens stand from `start` on.

        Raises: CannotIntercept, here or when the model runs: the layer cannot be taken over exactly.
        """
        ...

    def editing(self, edits: Edits) -> AbstractContextManager[None]:
        """A context manager under which activations are seen and edited at every forward pass."""
        ...

    def hooks_in_place(self) -> list[str]:
        """Names of hook points and modules that have hooks of the user's: they may count positions."""
        ...


def as_adapter(model: Any) -> ModelAdapter:
    """The adapter of a model; refuses what cannot be read.

    Raises: ModelError: the object is neither of TransformerLens's two model classes nor a `ModelAdapter`.
    """
    hooked, bridge = transformer_lens_classes()
    if isinstance(model, bridge):
        return BridgeAdapter(model)
    if hooked is not None and isinstance(model, hooked):
        return HookedAdapter(model)
    if isinstance(model, ModelAdapter):
        return model
    raise ModelError(
        "a model must be a HookedTransformer, a TransformerBridge, or satisfy "
        f"icl_kernel_lens.models.ModelAdapter; this is a {type(model).__module__}.{type(model).__name__}, which has "
        "no attention hooks. Wrap a Hugging Face model with "
        "icl_kernel_lens.models.bridge_from_hf(model, tokenizer), or call load_model(name).",
        code="model-kind",
    )


def users_hooks(adapter: ModelAdapter) -> list[str]:
    """Where the user has hooks on a model; nothing is known of an adapter that cannot say."""
    return adapter.hooks_in_place() if isinstance(adapter, InterceptableAdapter) else []


def attention_layers(adapter: ModelAdapter) -> list[int]:
    """The layers that have attention, in order."""
    missing = adapter.missing_attention()
    return [layer for layer in range(adapter.shape.layers) if layer not in missing]
