"""Adapts TransformerLens's two model classes, holds what is particular to each, and names what both have.

`HookedTransformer` exists up to TransformerLens 3.9, `TransformerBridge` from 3.0 on. Both have the same hook points,
blocks and `unembed`; they differ in how a forward pass is called, how positions are counted and how masks are made.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from threading import Lock, RLock
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from icl_kernel_lens.errors import ModelError
from icl_kernel_lens.models.hooks import hooked, hooks_everywhere, instead, with_hooks
from icl_kernel_lens.models.stand_in import check_padding, refuse
from icl_kernel_lens.models.takeover import Handler, intercepting, product_seen, without_masks
from icl_kernel_lens.models.unembedding import unembedding_to

HookName = Literal["hook_pattern", "hook_v", "hook_z"]
"""Of a layer's attention: (batch, head, query, key); (batch, pos, kv_head, d_head); (batch, pos, head, d_head)."""
ProductName = Literal["v", "z"]
"""Of a layer's attention, where its own code multiplies weights with values: (batch, pos, head, d_head); only seen."""
VectorName = Literal["hook_q", "hook_k", "hook_v"]
"""Of a layer's attention: queries and keys before any rotary embedding, values; (batch, pos, head, d_head)."""
StreamName = Literal["hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post"]
"""Of a layer's block: what comes in, what attention and MLP add (after any norm behind them), what goes out."""
Edits = Mapping[
    tuple[int, HookName | VectorName | StreamName | ProductName], Callable[[Tensor], Tensor | None]
]
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


class TransformerLensAdapter(ABC):
    """What `HookedTransformer` and `TransformerBridge` share: hook points, blocks, `unembed`."""

    kind: str

    def __init__(self, model: Any) -> None:
        self.model = model

    @abstractmethod
    def _forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Logits of the model's own forward pass, without a key-value cache."""

    @property
    def name(self) -> str:
        return str(getattr(self.model.cfg, "model_name", None) or "unnamed")

    @property
    def shape(self) -> ModelShape:
        cfg = self.model.cfg
        return ModelShape(
            layers=int(cfg.n_layers),
            heads=int(cfg.n_heads),
            kv_heads=int(getattr(cfg, "n_key_value_heads", None) or cfg.n_heads),
            context=int(cfg.n_ctx) if getattr(cfg, "n_ctx", None) else None,
            vocab=int(cfg.d_vocab),
            width=int(cfg.d_model),
            by_length=self._by_length,
        )

    @property
    def _by_length(self) -> int | None:
        return None

    def _as_found(self) -> AbstractContextManager[None]:
        """What a forward pass itself changes in the model is afterwards as it was."""
        return nullcontext()

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    @property
    def device(self) -> torch.device:
        return next(self.model.embed.parameters()).device

    @property
    def tokenizer(self) -> Any | None:
        return getattr(self.model, "tokenizer", None)

    @property
    def _blocks(self) -> Any:
        blocks = getattr(self.model, "blocks", None)
        if blocks is None:
            raise ModelError(
                f"a model must show its layers as blocks to be read; this {self.kind} ({self.name}) has none: the installed "
                "TransformerLens does not open this architecture up. Try another version of it.",
                code="hook-missing",
            )
        return blocks

    def _attention(self, layer: int) -> nn.Module | None:
        return getattr(self._blocks[layer], "attn", None)

    def missing_attention(self) -> dict[int, str]:
        return {
            layer: f"no attention in layer {layer} ({type(self._blocks[layer]).__name__})"
            for layer in range(self.shape.layers)
            if self._attention(layer) is None
        }

    def _point(self, layer: int, name: HookName | StreamName | VectorName) -> Any:
        owner = self._blocks[layer] if name in get_args(StreamName) else self._attention(layer)
        point = getattr(owner, name, None)
        if point is None:
            raise ModelError(
                f"every layer must have a hook point {name} to be read or edited there; layer {layer} of this {self.kind} "
                f"({self.name}) does not: the installed TransformerLens does not open this architecture up. Try another "
                "version of it, or another part of the layer.",
                code="hook-missing",
            )
        return point

    @contextmanager
    def intercepting(self, handler: Handler, *, start: int = 0) -> Iterator[None]:
        """See `InterceptableAdapter`. The model is as before afterwards, also after an exception."""
        attentions = {
            layer: self._blocks[layer].attn
            for layer in range(self.shape.layers)
            if self._attention(layer) is not None
        }
        with (
            _alone(self.model),
            self._standing_from(start, attentions),
            intercepting(attentions, self.shape.heads, handler),
        ):
            yield

    def hooks_in_place(self) -> list[str]:
        """See `InterceptableAdapter`; a bridge's own hooks, which capture what it reports, are not the user's."""
        everywhere = ["every module of PyTorch's"] if hooks_everywhere() else []
        modules = modules_of(self.model)
        return everywhere + sorted(modules[module] for module in with_hooks(modules))

    @abstractmethod
    def _standing_from(self, start: int, attentions: Mapping[int, Any]) -> AbstractContextManager[None]:
        """Positions count from `start`, and masks are not written out."""

    @contextmanager
    def editing(self, edits: Edits) -> Iterator[None]:
        """See `InterceptableAdapter`; only these are removed again, whatever happens inside."""
        with ExitStack() as stack:
            stack.enter_context(_alone(self.model))
            products: dict[int, dict[str, Callable[[Tensor], Any]]] = {}
            for (layer, name), callback in edits.items():
                if name in get_args(ProductName):
                    products.setdefault(layer, {})[name] = callback
                else:
                    stack.enter_context(hooked(self._point(layer, name), callback))  # pyright: ignore[reportArgumentType]
            for layer, see in products.items():
                stack.enter_context(product_seen(self._blocks[layer].attn, self.shape.heads, see))
            yield

    def watching(
        self, callbacks: Mapping[tuple[int, HookName], Callable[[Tensor], None]]
    ) -> AbstractContextManager[None]:
        """See `ModelAdapter`; values and z are those of the layer's own product."""
        products = {"hook_v": "v", "hook_z": "z"}
        return self.editing({(at, products.get(name, name)): see for (at, name), see in callbacks.items()})  # pyright: ignore[reportArgumentType]

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        lengths: Int[Tensor, " batch"],
        positions: Int[Tensor, "batch read"],
        *,
        gradients: bool = False,
        columns: Int[Tensor, " column"] | None = None,
    ) -> Float[Tensor, "row read vocab"]:
        """See `InterceptableAdapter`; only the positions asked for go through the unembedding, to the columns asked for."""

        def keep_answer(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            residual, *rest = args
            # Rows may have joined on the way, equally many to each prompt and right behind it (`run/variants.py`).
            rows = torch.arange(len(residual), device=residual.device)[:, None]
            where = positions.to(residual.device).repeat_interleave(len(residual) // len(positions), 0)
            return (residual[rows, where], *rest)

        mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
        with (
            _alone(self.model),
            self._as_found(),
            evaluating(self.model),
            torch.set_grad_enabled(gradients),
            # Under autocast the model would be another one than the one that was verified.
            torch.autocast(self.device.type, enabled=False),
            self.model.unembed.register_forward_pre_hook(keep_answer),
            nullcontext() if columns is None else unembedding_to(self.model.unembed, columns) as narrow,
        ):
            logits = self._forward(tokens.to(self.device), mask.to(self.device)).float()
        if columns is None or (narrow is not None and narrow.done):
            return logits
        return logits[..., columns.to(logits.device)]


class HookedAdapter(TransformerLensAdapter):
    """Behind a `HookedTransformer` (TransformerLens up to 3.9)."""

    kind = "HookedTransformer"

    def _forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.model(tokens, return_type="logits", attention_mask=mask)

    @contextmanager
    def _standing_from(self, start: int, attentions: Mapping[int, Any]) -> Iterator[None]:
        cfg = self.model.cfg
        positions = cfg.positional_embedding_type
        refuse(
            positions not in ("standard", "rotary", "alibi"), f"its positions are of the kind {positions!r}"
        )
        refuse(
            bool(start and getattr(cfg, "use_logn_attn", False)),
            "it scales queries by the logarithm of their position",
        )
        with ExitStack() as stack:
            if start and positions == "standard":
                embed = self.model.pos_embed
                stack.enter_context(instead(embed, "forward", _from_position(embed.forward, start)))
            for attention in attentions.values():
                if cfg.attention_dir == "causal":
                    window = cfg.window_size if attention.attn_type == "local" else None
                    stack.enter_context(instead(attention, "apply_causal_mask", partial(_banded, window)))
                if start and positions == "rotary":
                    rotated = _from_position(attention.apply_rotary, start)
                    stack.enter_context(instead(attention, "apply_rotary", rotated))
                if positions == "alibi":
                    # One row for all queries; its own is (head, query, key) and differs by a constant a row.
                    slopes = attention.create_alibi_multipliers(cfg.n_heads, cfg.device)
                    line = slopes[:, None, None] * torch.arange(cfg.n_ctx, device=slopes.device)
                    line = line.expand(-1, cfg.n_ctx, -1)
                    stack.enter_context(instead(attention, "alibi", line))
            yield


class BridgeAdapter(TransformerLensAdapter):
    """Behind a `TransformerBridge` (TransformerLens 3 and 4)."""

    kind = "TransformerBridge"

    def _forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.model(
            tokens,
            return_type="logits",
            attention_mask=mask,
            output_attentions=False,
            use_cache=False,
        )

    @cached_property
    def _length_rotaries(self) -> list[nn.Module]:
        """Rotary embeddings whose frequencies follow the length of what is run."""
        return [module for module in self.model.original_model.modules() if _follows_length(module)]

    @property
    def _by_length(self) -> int | None:
        return min((_trained_length(m.config) for m in self._length_rotaries), default=None)

    @contextmanager
    def _as_found(self) -> Iterator[None]:
        """See above: these rotary embeddings remember the longest text they were given."""
        before = [
            (module, dict(vars(module)), {name: (b, b.clone()) for name, b in module.named_buffers()})
            for module in self._length_rotaries
        ]
        try:
            yield
        finally:
            for module, attributes, buffers in before:
                vars(module).clear()
                vars(module).update(attributes)
                module._buffers.clear()
                for name, (buffer, numbers) in buffers.items():
                    module._buffers[name] = buffer.copy_(numbers)

    @contextmanager
    def _standing_from(self, start: int, attentions: Mapping[int, Any]) -> Iterator[None]:
        original = self.model.original_model

        def place(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            tokens = args[0] if args else kwargs["input_ids"]
            positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
            return args, kwargs | {"position_ids": positions.expand(len(tokens), -1)}

        with ExitStack() as stack:
            stack.enter_context(without_masks(original))
            if start and "position_ids" in inspect.signature(type(original).forward).parameters:
                stack.callback(original.register_forward_pre_hook(place, with_kwargs=True).remove)
            yield


def _follows_length(module: nn.Module) -> bool:
    """Whether a module is a rotary embedding of the kind "dynamic" or "longrope", for any of its layers."""
    kinds = getattr(module, "rope_type", None)
    found = [str(kind) for kind in (kinds.values() if isinstance(kinds, dict) else [kinds])]
    return any("dynamic" in kind or kind == "longrope" for kind in found)


def _trained_length(config: Any) -> int:
    """The shortest length that a Hugging Face config names as one it was trained at, for any of its layers."""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    places = [config, parameters, *(p for p in parameters.values() if isinstance(p, dict))]
    names = ("original_max_position_embeddings", "max_position_embeddings")
    found = [p.get(n) if isinstance(p, dict) else getattr(p, n, None) for p in places for n in names]
    return min((int(length) for length in found if length), default=0)


def _from_position(forward: Callable[..., Tensor], start: int) -> Callable[..., Tensor]:
    """A positional function of a HookedTransformer, its positions counted from `start`.

    Padding stands behind the text, so that no mask is needed to count.
    """
    return lambda x, *_, **__: forward(x, start)


def _banded(window: int | None, scores: Any, _offset: int = 0, attention_mask: Tensor | None = None) -> Any:
    """Instead of `apply_causal_mask`: the mask is said, and not written out."""
    check_padding(attention_mask)
    return scores.banded(window)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside (no dropout); every submodule's own mode again afterwards.

    A bridge runs modules that it does not list among its own: those of the model it was built into.
    """
    training = {module for module in modules_of(model) if module.training}
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def modules_of(model: Any) -> dict[nn.Module, str]:
    """Every module that a model runs; what a bridge and the model under it both hold goes by the bridge's name for it."""
    return {
        module: name.replace("._original_component", "")
        for root in reversed(_roots(model))
        for name, module in root.named_modules()
    }


def _roots(model: Any) -> list[nn.Module]:
    """A model, and the one that a bridge was built into."""
    found = (model, getattr(model, "original_model", None))
    return [root for root in found if isinstance(root, nn.Module)]


def _alone(model: nn.Module) -> AbstractContextManager[Any]:
    """One thread at a time: reading changes the model for as long as it lasts."""
    with _locks_lock:
        return _locks.setdefault(model, RLock())


_locks: WeakKeyDictionary[nn.Module, RLock] = WeakKeyDictionary()
_locks_lock = Lock()


def transformer_lens_classes() -> tuple[type | None, type]:
    """`HookedTransformer` (None from TransformerLens 4 on) and `TransformerBridge`."""
    from transformer_lens.model_bridge import TransformerBridge

    try:
        from transformer_lens import HookedTransformer
    except ImportError:
        return None, TransformerBridge
    return HookedTransformer, TransformerBridge
