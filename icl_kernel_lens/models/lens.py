"""One small protocol for every model, and the two TransformerLens classes behind it.

A `Lens` looks at a model without changing it: it runs tokens to the scores of one position per prompt,
and hands each layer's attention to a callback while the forward pass is under way. `as_lens` finds the
lens of a `HookedTransformer` or a `TransformerBridge`; anything that satisfies `Lens` itself is taken as
it is. Outside `models/` nothing imports transformer_lens.

What is read, by TransformerLens's names (the same on both classes):
`blocks.{l}.attn.hook_pattern` (batch, head, query, key), `hook_v` (batch, pos, kv_head, d_head) and
`hook_z` (batch, pos, head, d_head). Both classes also let the middle of their attention be taken over
(`InterceptableLens`), which is how `models/fast.py` reads without writing the pattern out.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from threading import Lock, RLock
from typing import Any, Literal, Protocol, get_args, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from icl_kernel_lens.errors import ModelError
from icl_kernel_lens.models.intercept import (
    CannotIntercept,
    Handler,
    check_padding,
    hooks_everywhere,
    hooks_of,
    instead,
    intercepting,
    without_masks,
)

HookName = Literal["hook_pattern", "hook_v", "hook_z"]
"""Of a layer's attention."""
VectorName = Literal["hook_q", "hook_k", "hook_v"]
"""Of a layer's attention: queries and keys before any rotary embedding, values; (batch, pos, head, d_head)."""
StreamName = Literal["hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post"]
"""Of a layer's block: what comes in, what attention and MLP add (after any norm behind them), what goes out."""


@dataclass(frozen=True)
class LensShape:
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


@runtime_checkable
class Lens(Protocol):
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
    def shape(self) -> LensShape: ...

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

    def run(
        self,
        tokens: Int[Tensor, "batch pos"],
        lengths: Int[Tensor, " batch"],
        positions: Int[Tensor, "batch read"],
    ) -> Float[Tensor, "batch read vocab"]:
        """Next-token logits at `positions`, float32; positions from `lengths` on are padding."""
        ...


@runtime_checkable
class InterceptableLens(Lens, Protocol):
    """A lens whose attention can be taken over between q, k, v and z."""

    def run(
        self,
        tokens: Int[Tensor, "batch pos"],
        lengths: Int[Tensor, " batch"],
        positions: Int[Tensor, "batch read"],
        *,
        gradients: bool = False,
    ) -> Float[Tensor, "batch read vocab"]:
        """As `Lens.run`; `gradients` records what autograd needs."""
        ...

    def intercepting(self, handler: Handler, *, start: int = 0) -> AbstractContextManager[None]:
        """A context manager under which `handler` gives each layer's z, and tokens stand from `start` on.

        Raises: CannotIntercept, here or when the model runs: the layer cannot be taken over exactly.
        """
        ...

    def editing(
        self, callbacks: Mapping[tuple[int, StreamName | VectorName], Callable[[Tensor], Tensor | None]]
    ) -> AbstractContextManager[None]:
        """A context manager under which each callback sees an activation and may return another in its place."""
        ...

    def hooks_in_place(self) -> list[str]:
        """Names of hook points and modules that have hooks of the user's: they may count positions."""
        ...


class _TransformerLensBase(ABC):
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
    def shape(self) -> LensShape:
        cfg = self.model.cfg
        return LensShape(
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

    def _attention(self, layer: int) -> nn.Module | None:
        return getattr(self.model.blocks[layer], "attn", None)

    def missing_attention(self) -> dict[int, str]:
        reasons: dict[int, str] = {}
        for layer in range(self.shape.layers):
            if self._attention(layer) is None:
                kind = type(self.model.blocks[layer]).__name__
                reasons[layer] = f"no attention in layer {layer} ({kind})"
        return reasons

    def hook_point(self, layer: int, name: HookName) -> Any:
        attention = self._attention(layer)
        point = getattr(attention, name, None)
        if point is None:
            raise ModelError(
                f"every attention layer must have a hook point {name}; blocks.{layer}.attn.{name} does "
                f"not exist in this {self.kind} ({self.name}). The attention of this architecture is "
                "not opened up by the installed TransformerLens; try another version of it."
            )
        return point

    @contextmanager
    def intercepting(self, handler: Handler, *, start: int = 0) -> Iterator[None]:
        """See `InterceptableLens`. The model is as before afterwards, also after an exception."""
        missing = self.missing_attention()
        attentions = {
            layer: attention
            for layer in range(self.shape.layers)
            if layer not in missing and (attention := self._attention(layer)) is not None
        }
        own = intercepting(attentions, self.shape.heads, handler)
        with _alone(self.model), self._standing_from(start, attentions), own:
            yield

    def hooks_in_place(self) -> list[str]:
        """See `InterceptableLens`; a bridge's own hooks, which capture what it reports, are not the user's."""
        roots = [self.model, getattr(self.model, "original_model", None)]
        named: dict[nn.Module, str] = {}
        for root in roots:
            for name, module in root.named_modules() if root is not None else ():
                named.setdefault(module, name.replace("._original_component", ""))
        everywhere = ["every module of PyTorch's"] if hooks_everywhere() else []
        return everywhere + sorted(name for module, name in named.items() if hooks_of(module))

    @abstractmethod
    def _standing_from(self, start: int, attentions: Mapping[int, Any]) -> AbstractContextManager[None]:
        """Positions count from `start`, and masks are not written out."""

    @contextmanager
    def watching(self, callbacks: Mapping[tuple[int, HookName], Callable[[Tensor], None]]) -> Iterator[None]:
        """Attach the callbacks; only they are removed again, whatever happens inside."""
        with ExitStack() as stack:
            stack.enter_context(_alone(self.model))
            for (layer, name), callback in callbacks.items():
                stack.enter_context(_hooked(self.hook_point(layer, name), callback))
            yield

    @contextmanager
    def editing(
        self, callbacks: Mapping[tuple[int, StreamName | VectorName], Callable[[Tensor], Tensor | None]]
    ) -> Iterator[None]:
        """See `InterceptableLens`."""
        with ExitStack() as stack:
            stack.enter_context(_alone(self.model))
            for (layer, name), callback in callbacks.items():
                block = self.model.blocks[layer]
                point = getattr(block if name in get_args(StreamName) else block.attn, name, None)
                if point is None:
                    raise ModelError(
                        f"every layer must have a hook point {name}; layer {layer} of this {self.kind} ({self.name}) "
                        "does not. Intervene on another part of the layer."
                    )
                stack.enter_context(_hooked(point, callback))
            yield

    def run(
        self,
        tokens: Int[Tensor, "batch pos"],
        lengths: Int[Tensor, " batch"],
        positions: Int[Tensor, "batch read"],
        *,
        gradients: bool = False,
    ) -> Float[Tensor, "batch read vocab"]:
        """Only the positions asked for go through the unembedding; `gradients` records what autograd needs."""
        rows = torch.arange(len(tokens))[:, None]

        def keep_answer(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            residual = args[0]
            there = residual.device
            return (residual[rows.to(there), positions.to(there)], *args[1:])

        mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
        graph = torch.set_grad_enabled(gradients)
        # Under autocast the model would be another one than the one that was probed.
        cast = torch.autocast(self.device.type, enabled=False)
        with _alone(self.model), self._as_found(), evaluating(self.model), graph, cast:
            handle = self.model.unembed.register_forward_pre_hook(keep_answer)
            try:
                logits = self._forward(tokens.to(self.device), mask.to(self.device))
            finally:
                handle.remove()
        return logits.float()


class HookedLens(_TransformerLensBase):
    """Behind a `HookedTransformer` (TransformerLens up to 3.9)."""

    kind = "HookedTransformer"

    def _forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.model(tokens, return_type="logits", attention_mask=mask)

    @contextmanager
    def _standing_from(self, start: int, attentions: Mapping[int, Any]) -> Iterator[None]:
        cfg = self.model.cfg
        positions = cfg.positional_embedding_type
        if positions not in ("standard", "rotary", "alibi"):
            raise CannotIntercept(f"its positions are of the kind {positions!r}")
        if start and getattr(cfg, "use_logn_attn", False):
            raise CannotIntercept("it scales queries by the logarithm of their position")
        with ExitStack() as stack:
            if start and positions == "standard":
                embed = self.model.pos_embed
                stack.enter_context(instead(embed, "forward", _from_position(embed.forward, start)))
            for attention in attentions.values():
                if cfg.attention_dir == "causal":
                    window = cfg.window_size if attention.attn_type == "local" else None
                    stack.enter_context(instead(attention, "apply_causal_mask", _band(window)))
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


class BridgeLens(_TransformerLensBase):
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
        """Rotary embeddings whose frequencies follow the length of what is run ("dynamic" and "longrope")."""

        def kinds(module: nn.Module) -> list[str]:
            found = getattr(module, "rope_type", None)
            return [str(kind) for kind in (found.values() if isinstance(found, dict) else [found])]

        modules = self.model.original_model.modules()
        return [m for m in modules if any("dynamic" in kind or kind == "longrope" for kind in kinds(m))]

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


def _band(window: int | None) -> Callable[..., Any]:
    """Instead of `apply_causal_mask`: the mask is said, and not written out."""

    def apply_causal_mask(scores: Any, _offset: int = 0, attention_mask: Tensor | None = None) -> Any:
        check_padding(attention_mask)
        return scores.banded(window)

    return apply_causal_mask


@contextmanager
def _hooked(point: Any, callback: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Add one hook to a TransformerLens hook point, after the user's own, and take exactly it away."""

    def look(activation: Tensor, *, hook: Any) -> Tensor | None:
        return callback(activation)

    point.add_hook(look)
    handle = point.fwd_hooks[-1]
    try:
        yield
    finally:
        handle.hook.remove()
        point.fwd_hooks[:] = [h for h in point.fwd_hooks if h is not handle]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside (no dropout); every submodule's own mode again afterwards.

    A bridge runs modules that it does not list among its own: those of the model it was built into.
    """
    roots = [model, getattr(model, "original_model", None)]
    every = dict.fromkeys(m for root in roots if isinstance(root, nn.Module) for m in root.modules())
    modes = [(module, module.training) for module in every if module.training]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _alone(model: nn.Module) -> Iterator[None]:
    """One thread at a time: reading changes the model for as long as it lasts."""
    with _locks_lock:
        lock = _locks.setdefault(model, RLock())
    with lock:
        yield


_locks: WeakKeyDictionary[nn.Module, RLock] = WeakKeyDictionary()
_locks_lock = Lock()


def as_lens(model: Any) -> Lens:
    """The lens of a model; refuses what cannot be read.

    Raises: ModelError: the object is neither of TransformerLens's two model classes nor a `Lens`.
    """
    if isinstance(model, _TransformerLensBase):
        return model
    hooked, bridge = transformer_lens_classes()
    if bridge is not None and isinstance(model, bridge):
        return BridgeLens(model)
    if hooked is not None and isinstance(model, hooked):
        return HookedLens(model)
    if isinstance(model, Lens):
        return model
    raise ModelError(
        "a model must be a HookedTransformer, a TransformerBridge, or satisfy "
        f"icl_kernel_lens.models.Lens; this is a {type(model).__module__}.{type(model).__name__}, which has "
        "no attention hooks. Wrap a Hugging Face model with "
        "icl_kernel_lens.models.bridge_from_hf(model, tokenizer), or call load_model(name)."
    )


def transformer_lens_classes() -> tuple[type | None, type | None]:
    """`HookedTransformer` (None from TransformerLens 4 on) and `TransformerBridge`."""
    from transformer_lens.model_bridge import TransformerBridge

    try:
        from transformer_lens import HookedTransformer
    except ImportError:
        return None, TransformerBridge
    return HookedTransformer, TransformerBridge
