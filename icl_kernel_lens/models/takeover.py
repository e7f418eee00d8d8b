"""Takes over the middle of attention, between a layer's own q, k, v and its own z.

A layer computes its queries, keys and values by its own code (projections, norms, rotary embedding, hooks). Under
`intercepting` its product q·kᵀ is not written out: a stand-in notes what the layer does to its scores
(`stand_in.py`), and where it meets v, the handler gets (layer, q, k, v, rule) and gives z. The layer goes on by its
own code, and `hook_z` fires as ever.

Where a layer cannot be taken over exactly there is a `CannotIntercept`, and the model runs by its own path. That the
two paths agree is measured on the model in hand (`verify.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import partial
from typing import Any, no_type_check

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from icl_kernel_lens.models.hooks import KINDS, hooked, instead
from icl_kernel_lens.models.stand_in import (
    CannotIntercept,
    Mask,
    Noted,
    Scores,
    add,
    check_padding,
    multiply,
    refuse,
)
from icl_kernel_lens.numbers.attention import Rule

Handler = Callable[[int, Tensor, Tensor, Tensor, Rule], Tensor]
"""(layer, q, k, v, rule) → z, each (batch, head, pos, d_head); k and v repeated to the query heads."""


class _Seeing(TorchFunctionMode):
    """Active while one layer's attention runs: finds q·kᵀ, and hands the end of it to the handler."""

    def __init__(self, layer: int, heads: int, handler: Handler) -> None:
        super().__init__()
        self.layer, self.heads, self.handler = layer, heads, handler
        self.begun = self.done = 0

    @no_type_check  # called for every step of a layer: there is nothing to check, and checking took most of the tests' time
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.begun and not any(isinstance(a, Scores) for a in args):
            name = getattr(func, "__name__", "").strip("_")
            if name in ("matmul", "bmm") and args[0].dim() >= 3:
                return self.begin(args[0], args[1])
            if name == "baddbmm":
                return self.begin_biased(*args, **kwargs)
        return func(*args, **kwargs)

    def begin(self, q: Tensor, transposed: Tensor) -> Scores:
        shape = (*q.shape[:-1], transposed.shape[-1])
        k = transposed.transpose(-1, -2)
        if q.dim() == 3:
            q, k = (rearrange(x, "(b h) s d -> b h s d", h=self.heads) for x in (q, k))
        refuse(
            q.dim() == k.dim() == 4 and q.shape[:2] == k.shape[:2] and q.shape[2] < k.shape[2],
            "keys of earlier tokens come from a cache, and its masks count from them. Run without one "
            "(use_cache=False; in generate also use_past_kv_cache=False)",
        )
        refuse(
            q.dim() != 4 or q.shape != k.shape or q.shape[1] != self.heads,
            f"its first product has shapes {tuple(q.shape)} and {tuple(k.shape)}, not those of q and k",
        )
        self.begun += 1
        return Scores(shape, q.dtype, Noted(self.handle, q, k))

    def begin_biased(
        self, bias: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1
    ) -> Scores:
        scores = multiply(self.begin(batch1, batch2), alpha)
        if beta == 0:
            return scores
        refuse(beta != 1, "it scales the bias of its attention scores")
        return add(scores, bias)

    def handle(self, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        self.done += 1
        # Some layers multiply q and k in float32; what they hold is of the type of v.
        return self.handler(self.layer, q.to(v.dtype), k.to(v.dtype), v, rule)


def _through(layer: int, heads: int, module: nn.Module, handler: Handler) -> Callable[..., Any]:
    """The forward of one attention module, its middle taken over; of contexts in one another, the inner one."""
    forward = getattr(module.forward, "taken_over", module.forward)

    def intercepted(*args: Any, **kwargs: Any) -> Any:
        for name in ("hook_pattern", "hook_attn_scores"):
            point = getattr(module, name, None)
            refuse(
                any(getattr(point, kind, None) for kind in KINDS),
                f"blocks.{layer}.attn.{name} has a hook, and what it would see is never written out. Give "
                "run_with_cache a names_filter that leaves hook_pattern and hook_attn_scores out, or run the model "
                "without fast_attention",
            )
        seeing = _Seeing(layer, heads, handler)
        try:
            # There a bridge leaves the last pattern it made; this one would keep q and k alive.
            with instead(module, "_pattern", None), seeing:
                out = forward(*args, **kwargs)
        except CannotIntercept as error:
            raise CannotIntercept(f"layer {layer}: {error.message}") from None
        refuse(seeing.done != 1, f"layer {layer}: its product of weights and values was not found")
        return _without_scores(out)

    intercepted.taken_over = forward  # pyright: ignore[reportFunctionMemberAccess]
    return intercepted


class _Products(TorchFunctionMode):
    """Active while one layer's attention runs: finds the v and z of weights times values, (batch, pos, head, d_head)."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads, self.weighted = heads, False
        self.found: list[dict[str, Tensor]] = []

    @no_type_check
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").strip("_")
        if name == "softmax":
            self.weighted = True
        elif self.weighted and name in ("matmul", "bmm") and args[0].shape[-2] == args[0].shape[-1]:
            self.weighted = False
            pair = {"v": args[1], "z": out}
            if out.dim() == 3 and len(out) % self.heads == 0:
                pair = {name: rearrange(x, "(b h) s d -> b h s d", h=self.heads) for name, x in pair.items()}
            if all(x.dim() == 4 for x in pair.values()):
                self.found.append({name: x.transpose(1, 2) for name, x in pair.items()})
        return out


@contextmanager
def product_seen(module: nn.Module, heads: int, see: Mapping[str, Callable[[Tensor], Any]]) -> Iterator[None]:
    """Shows the values that an attention module multiplies with its weights ("v"), and what it gets ("z").

    What the module does before and after (norms, gates, other shapes) is not in between. Where its own code has no
    such product, or several, they are what hook_v and hook_z show.
    """
    forward = module.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        shown: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for name in see:
                if (point := getattr(module, f"hook_{name}", None)) is not None:
                    stack.enter_context(hooked(point, partial(shown.__setitem__, name)))
            products = stack.enter_context(_Products(heads))
            out = forward(*args, **kwargs)
        if len(products.found) == 1:
            shown = products.found[0]
        for name, callback in see.items():
            if name in shown:
                callback(shown[name])
        return out

    with instead(module, "forward", watched):
        yield


def _without_scores(out: Any) -> Any:
    if isinstance(out, Scores):
        return None
    return tuple(_without_scores(part) for part in out) if isinstance(out, tuple) else out


@contextmanager
def intercepting(attentions: dict[int, nn.Module], heads: int, handler: Handler) -> Iterator[None]:
    """Gives each of these attention modules its z from the handler; afterwards all is as before."""
    with ExitStack() as stack:
        for layer, module in attentions.items():
            stack.enter_context(instead(module, "forward", _through(layer, heads, module, handler)))
        yield


NAME = "icl_kernel_lens"
"""Under which our functions stand in Hugging Face's registries of attention and of masks."""


@contextmanager
def without_masks(model: nn.Module) -> Iterator[None]:
    """Lets a Hugging Face model make `Mask`s instead of masks; it has configs of its own for that long."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
    owners = [m for m in model.modules() if hasattr(vars(m).get("config"), "_attn_implementation")]
    configs = deepcopy([vars(module)["config"] for module in owners])  # what was one object is one copy
    with ExitStack() as stack:
        for module, config in zip(owners, configs, strict=True):
            config._attn_implementation = NAME
            stack.enter_context(instead(module, "config", config))
        yield


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention written plainly, for modules that leave it to Hugging Face's registry: it is taken over too."""
    refuse(
        kwargs.get("s_aux") is not None or kwargs.get("softcap") is not None,
        "its attention has a sink or a soft cap of Hugging Face's own",
    )
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, 1) if repeats > 1 else x for x in (key, value))
    scale = kwargs.get("scaling")
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if attention_mask is None else scores + attention_mask
    weights = torch.nn.functional.dropout(
        scores.softmax(-1), p=kwargs.get("dropout", 0.0), training=module.training
    )
    return (weights @ value).transpose(1, 2).contiguous(), None


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    *,
    mask_function: Callable[..., Any],
    attention_mask: Tensor | None = None,
    config: Any = None,
    dtype: torch.dtype = torch.float32,
    device: Any = "cpu",
    **_: Any,
) -> Mask:
    """The window of a mask of Hugging Face's, noted of three queries of the longest text the model takes."""
    check_padding(attention_mask)
    longest = max(kv_length, int(getattr(config, "max_position_embeddings", None) or 0))
    keys = torch.arange(longest, device=device)

    def sees(query: int) -> Tensor:
        seen = mask_function(0, 0, torch.tensor(query, device=device), keys)
        return seen if isinstance(seen, Tensor) else torch.full_like(keys, seen, dtype=torch.bool)

    width = int(sees(longest - 1).sum())
    for query in {longest - 1, longest // 2, min(width, longest - 1)}:
        band = (keys <= query) & (keys > query - width)
        refuse(not torch.equal(sees(query), band), "its mask is not a causal band")
    like = torch.empty((), dtype=dtype, device=device)
    return Mask((batch_size, 1, q_length, kv_length), width if width < longest else None, like)
