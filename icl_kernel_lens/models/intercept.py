"""Taking over the middle of attention: between a layer's own q, k, v and its own z.

A layer computes its queries, keys and values by its own code (projections, norms, rotary embedding, hooks),
multiplies q·kᵀ, does this and that to the scores, applies softmax and multiplies with v. Under `intercepting`
the product q·kᵀ is not written out: a `_Scores` stands for it, a tensor that has a shape and no numbers,
and notes what the layer does to it (a scale, a soft cap, a mask, ALiBi's bias). Where it meets v, the handler
gets (layer, q, k, v, rule) and gives z; the layer goes on by its own code, and `hook_z` fires as ever.

So nothing here knows an architecture, and nothing is guessed: the rule is what the model's own code
just did. Whatever it does that a `Rule` cannot say (another operation, a mask that is no causal band, a
bias that is not linear) is a `CannotIntercept`, and the model runs by its own path. That the two paths
agree is measured on the model in hand (`models/probe.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from icl_kernel_lens.errors import ModelError
from icl_kernel_lens.models.attend import Rule

Handler = Callable[[int, Tensor, Tensor, Tensor, Rule], Tensor]
"""(layer, q, k, v, rule) → z, each (batch, head, pos, d_head); k and v repeated to the query heads."""

HIDDEN = -1e4
"""A number added to a score that hides it; a bias that matters is smaller."""


class CannotIntercept(ModelError):
    """The layer does something to its scores that cannot be taken over exactly."""


@dataclass(frozen=True)
class _Asked:
    """What a layer has done to its scores so far."""

    seeing: _Seeing
    q: Tensor
    k: Tensor
    rule: Rule = Rule()  # noqa: RUF009 - frozen
    capping: float | None = None
    """The divisor of a soft cap under way: score / c, then tanh, then · c."""
    causal: bool = False
    weights: bool = False
    """Softmax is done."""


class _Mask(Tensor):
    """Stands for a causal mask of Hugging Face's, of which only the window is needed."""

    window: int | None

    @staticmethod
    def __new__(cls, shape: Sequence[int], window: int | None, like: Tensor) -> _Mask:
        mask = like.expand(*shape).as_subclass(cls)
        mask.window = window
        return mask

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(a, _Scores) for a in args):
            return NotImplemented  # the scores note what is done with a mask
        if func in _FACTS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func)).strip("_")
        if name in _STILL_A_MASK:
            return next(a for a in args if isinstance(a, _Mask))
        raise CannotIntercept(f"it calls {name} on its mask")


class _Scores(Tensor):
    """Stands for scores or weights, (batch, head, query, key) or with batch and head in one."""

    asked: _Asked

    @staticmethod
    def __new__(cls, shape: Sequence[int], dtype: torch.dtype, asked: _Asked) -> _Scores:
        one = torch.empty((), dtype=dtype, device=asked.q.device)
        scores = one.expand(*shape).as_subclass(cls)
        scores.asked = asked
        return scores

    def now(self, **changes: Any) -> _Scores:
        return _Scores(self.shape, self.dtype, replace(self.asked, **changes))

    def ruled(self, **changes: Any) -> _Scores:
        return self.now(rule=replace(self.asked.rule, **changes))

    def banded(self, window: int | None) -> _Scores:
        """Hide the keys behind each query, and those before its window."""
        windows = [w for w in (window, self.asked.rule.window) if w is not None]
        rule = replace(self.asked.rule, window=min(windows, default=None))
        return self.now(rule=rule, causal=True)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FACTS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func)).strip("_")
        step = _STEPS.get(name)
        if step is None:
            raise CannotIntercept(f"it calls {name} on its attention scores")
        return step(*args, **kwargs)


_FACTS = {
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    Tensor.is_floating_point,
    *(
        getattr(Tensor, fact).__get__
        for fact in ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "layout", "is_nested")
    ),
}


_STILL_A_MASK = {
    "getitem",
    "to",
    "type",
    "type_as",
    "float",
    "half",
    "bfloat16",
    "bool",
    "expand",
    "contiguous",
}
"""Slices and casts of a causal band are that band."""


def _number(value: Any) -> float | None:
    """A plain number, or a tensor that holds one."""
    if isinstance(value, bool | _Scores):
        return None
    if isinstance(value, int | float):
        return float(value)
    return float(value) if isinstance(value, Tensor) and value.numel() == 1 else None


def _multiply(a: Any, b: Any) -> _Scores:
    scores, other = (a, b) if isinstance(a, _Scores) else (b, a)
    factor = _number(other)
    asked = scores.asked
    if factor is None or asked.weights:
        raise CannotIntercept("it multiplies its attention scores with a tensor")
    if asked.rule.soft_cap is not None:
        if asked.capping != factor:
            raise CannotIntercept("it scales its scores after a soft cap")
        return scores.now(capping=None)
    if asked.rule.slopes is not None:
        raise CannotIntercept("it scales its scores after a bias was added")
    return scores.ruled(scale=asked.rule.scale * factor)


def _divide(scores: Any, divisor: Any, **_: Any) -> _Scores:
    number = _number(divisor)
    if number is None or not isinstance(scores, _Scores):
        raise CannotIntercept("it divides its attention scores by a tensor")
    divided = _multiply(scores, 1 / number)
    # Which division this is (a scale, or the beginning of a soft cap) shows when tanh follows.
    return divided if scores.asked.rule.soft_cap is not None else divided.now(capping=number)


def _tanh(scores: _Scores) -> _Scores:
    cap = scores.asked.capping
    if cap is None or scores.asked.causal or scores.asked.rule.slopes is not None:
        raise CannotIntercept("it applies tanh to its scores without dividing by a cap just before")
    return scores.ruled(scale=scores.asked.rule.scale * cap, soft_cap=cap)


def _add(a: Any, b: Any, *, alpha: float = 1, **_: Any) -> _Scores:
    scores, other = (a, b) if isinstance(a, _Scores) else (b, a)
    if alpha != 1 or isinstance(other, _Scores) or scores.asked.weights:
        raise CannotIntercept("it adds something unusual to its attention scores")
    if isinstance(other, _Mask):
        return scores.banded(other.window)
    if not isinstance(other, Tensor):
        raise CannotIntercept("it adds a number to its attention scores")
    queries = scores.shape[-2]
    row = other[..., -1, :]
    heads = scores.asked.q.shape[1]
    if row.dim() >= 2 and row.shape[-2] in (heads, heads * scores.asked.q.shape[0]) and heads > 1:
        return scores.ruled(slopes=_slopes(row.reshape(-1, heads, row.shape[-1])))
    if bool(((row != 0) & (row > HIDDEN)).any()):
        raise CannotIntercept("it adds a bias to its attention scores that is not ALiBi's")
    return scores.banded(_window(other > HIDDEN, queries))


def _slopes(rows: Tensor) -> Tensor:
    """ALiBi's slopes from one query's biases (batch, head, key); refuses another kind of bias.

    Padding behind a prompt may have the bias 0.
    """
    rows = rows.float()
    if rows.shape[2] < 2:
        raise CannotIntercept("a prompt of one token does not show its position bias")
    first = rows[0]
    slopes = first[:, 1] - first[:, 0]
    line = first[:, :1] + slopes[:, None] * torch.arange(rows.shape[2], device=rows.device)
    if not bool((torch.isclose(rows, line, rtol=1e-6, atol=1e-5) | (rows == 0)).all()):
        raise CannotIntercept(
            "it adds a bias to its scores that is not linear in the key's position (ALiBi's is not, in half "
            "precision, beyond 256 positions)"
        )
    return slopes


def _masked_fill(scores: Any, mask: Any, value: Any) -> _Scores:
    if not isinstance(scores, _Scores):
        raise CannotIntercept("it fills another tensor by its attention scores")
    if scores.asked.weights:
        return scores
    filler = _number(value)
    if filler is None or filler > HIDDEN:
        raise CannotIntercept("it replaces attention scores by a number")
    return scores.banded(_window(mask, scores.shape[-2], hidden=True))


def _where(condition: Any, scores: Any, other: Any) -> _Scores:
    if isinstance(condition, _Scores):  # rows without any key become zeros; causal rows have one
        return other
    filler = _number(other)
    if not isinstance(scores, _Scores) or filler is None or filler > HIDDEN or scores.asked.weights:
        raise CannotIntercept("it chooses between its attention scores and others")
    return scores.banded(_window(condition, scores.shape[-2]))


def _window(mask: Tensor, queries: int, *, hidden: bool = False) -> int | None:
    """The width of a causal band from a mask of what is visible (or hidden); refuses any other mask."""
    if isinstance(mask, _Mask):
        return mask.window
    # A mask kept for the whole context (GPT-Neo's) shows its band, also where these prompts are shorter.
    base = mask._base
    if base is None or base.dtype != torch.bool or base.dim() < 2 or not _begins(mask, base):
        return _band(~mask if hidden else mask, queries)
    now = (base._version, hidden)
    if base not in _kept_masks or _kept_masks[base][0] != now:
        _kept_masks[base] = now, _band(~base if hidden else base, base.shape[-1])
    return _kept_masks[base][1]


_kept_masks: Any = WeakIdKeyDictionary()
"""Of each mask that is kept, its state and its width; comparing a whole one takes time."""


def _begins(mask: Tensor, base: Tensor) -> bool:
    """Whether a mask is the upper left corner of a square one."""
    corner = mask.storage_offset() == base.storage_offset() and mask.stride()[-2:] == base.stride()[-2:]
    return corner and base.shape[-1] == base.shape[-2]


def _band(visible: Tensor, queries: int) -> int | None:
    """The width of the causal band that every prompt's mask is."""
    keys = visible.shape[-1]
    every = visible.reshape(-1, *visible.shape[-2:])
    last = int(every[0, -1].sum())
    width = last if last < keys else keys
    # A single row is the last query's.
    t = torch.arange(queries, device=every.device)[-every.shape[1] :, None]
    s = torch.arange(keys, device=every.device)
    if not bool((every == ((s <= t) & (s > t - width))).all()):
        raise CannotIntercept("its mask is not one causal band for all prompts (left padding is not)")
    return width if width < keys else None


def _softmax(scores: _Scores, dim: int | None = None, *_: Any, dtype: Any = None, **__: Any) -> _Scores:
    asked = scores.asked
    if dim not in (-1, scores.dim() - 1) or asked.weights:
        raise CannotIntercept("it applies softmax along another dimension than the keys'")
    if not asked.causal:
        raise CannotIntercept("its attention is not masked, so it is not causal")
    if asked.rule.soft_cap is not None and asked.capping is not None:
        raise CannotIntercept("its soft cap does not multiply back")
    return _Scores(scores.shape, dtype or scores.dtype, replace(asked, weights=True))


def _cast(scores: _Scores, *args: Any, **kwargs: Any) -> _Scores:
    wanted = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.dtype)]
    like = [a.dtype for a in args if isinstance(a, Tensor)]
    dtype = next(iter([*wanted, *like]), scores.dtype)
    return _Scores(scores.shape, dtype, scores.asked)


def _reshape(scores: _Scores, *shape: Any) -> _Scores:
    shape = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
    known = [n for n in shape if n != -1]
    rest = scores.numel() // max(1, torch.Size(known).numel())
    return _Scores([rest if n == -1 else n for n in shape], scores.dtype, scores.asked)


def _dropout(scores: _Scores, p: float = 0.5, training: bool = True, inplace: bool = False) -> _Scores:
    if training and p > 0:
        raise CannotIntercept("it drops attention weights at random; call model.eval() first")
    return scores


def _permute(scores: _Scores, *dims: Any) -> _Scores:
    dims = tuple(dims[0]) if len(dims) == 1 and not isinstance(dims[0], int) else dims
    if tuple(d % scores.dim() for d in dims) != tuple(range(scores.dim())):
        raise CannotIntercept("it transposes its attention scores")
    return scores


def _same(scores: _Scores, *_: Any, **__: Any) -> _Scores:
    return scores


def _float(scores: _Scores) -> _Scores:
    return _Scores(scores.shape, torch.float32, scores.asked)


def _weights_times_values(weights: Any, v: Any, **_: Any) -> Tensor:
    if not isinstance(weights, _Scores) or not weights.asked.weights or not isinstance(v, Tensor):
        raise CannotIntercept("it multiplies attention scores before softmax")
    asked = weights.asked
    batch = len(asked.q)
    flat = v.dim() == 3
    v = rearrange(v, "(b h) s d -> b h s d", b=batch) if flat else v
    z = asked.seeing.handle(asked.q, asked.k, v, asked.rule)
    return rearrange(z, "b h s d -> (b h) s d") if flat else z


_STEPS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("mul", "rmul", "imul", "multiply"), _multiply),
    **dict.fromkeys(("div", "truediv", "itruediv", "true_divide", "divide"), _divide),
    **dict.fromkeys(("add", "radd", "iadd"), _add),
    "tanh": _tanh,
    "masked_fill": _masked_fill,
    "where": _where,
    "softmax": _softmax,
    **dict.fromkeys(("to", "type", "type_as"), _cast),
    "float": _float,
    **dict.fromkeys(("view", "reshape"), _reshape),
    "permute": _permute,
    "dropout": _dropout,
    **dict.fromkeys(("contiguous", "clone", "detach", "isnan", "nan_to_num"), _same),
    "zeros_like": _same,
    **dict.fromkeys(("matmul", "bmm"), _weights_times_values),
}


class _Seeing(TorchFunctionMode):
    """Active while one layer's attention runs: finds q·kᵀ, and hands the end of it to the handler."""

    def __init__(self, layer: int, heads: int, handler: Handler) -> None:
        super().__init__()
        self.layer, self.heads, self.handler = layer, heads, handler
        self.begun = self.done = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.begun and not any(isinstance(a, _Scores) for a in args):
            name = getattr(func, "__name__", "").strip("_")
            if name in ("matmul", "bmm") and args[0].dim() >= 3:
                return self.begin(args[0], args[1])
            if name == "baddbmm":
                return self.begin_biased(*args, **kwargs)
        return func(*args, **kwargs)

    def begin(self, q: Tensor, transposed: Tensor) -> _Scores:
        shape = (*q.shape[:-1], transposed.shape[-1])
        k = transposed.transpose(-1, -2)
        if q.dim() == 3:
            q, k = (rearrange(x, "(b h) s d -> b h s d", h=self.heads) for x in (q, k))
        if q.dim() == k.dim() == 4 and q.shape[2] < k.shape[2]:
            raise CannotIntercept(
                "keys of earlier tokens come from a cache, and its masks count from them. Run without one "
                "(use_cache=False; in generate also use_past_kv_cache=False)"
            )
        if q.dim() != 4 or q.shape != k.shape or q.shape[1] != self.heads:
            raise CannotIntercept(
                f"its first product has shapes {tuple(q.shape)} and {tuple(k.shape)}, not those of q and k"
            )
        self.begun += 1
        return _Scores(shape, q.dtype, _Asked(self, q, k))

    def begin_biased(
        self, bias: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1
    ) -> _Scores:
        scores = _multiply(self.begin(batch1, batch2), alpha)
        if beta == 0:
            return scores
        if beta != 1:
            raise CannotIntercept("it scales the bias of its attention scores")
        return _add(scores, bias)

    def handle(self, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        self.done += 1
        # Some layers multiply q and k in float32; what they hold is of the type of v.
        return self.handler(self.layer, q.to(v.dtype), k.to(v.dtype), v, rule)


def hooks_of(module: Any) -> list[Any]:
    """The hooks on a module, forward and backward, that are not a library's own, which only record."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooks = [hook for kind in kinds for hook in (getattr(module, kind, None) or {}).values()]
    own = vars(module).get("forward")
    if own is not None and not hasattr(own, "taken_over"):
        hooks.append(own)
    return [hook for hook in hooks if not _defined_in(hook).startswith(_LIBRARIES)]


def hooks_everywhere() -> list[Any]:
    """Hooks that PyTorch runs on every module there is."""
    kinds = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")
    return [hook for kind in kinds for hook in getattr(nn.modules.module, kind, {}).values()]


_LIBRARIES = ("transformer_lens.", "transformers.", "accelerate.", "icl_kernel_lens.")


def _defined_in(hook: Any) -> str:
    """The module a hook was written in; TransformerLens's hook points wrap what they are given."""
    code, cells = getattr(hook, "__code__", None), getattr(hook, "__closure__", None)
    wrapped = str(getattr(hook, "__module__", "")) == "transformer_lens.hook_points"
    if wrapped and code is not None and cells and "hook" in code.co_freevars:
        hook = cells[code.co_freevars.index("hook")].cell_contents
    return str(getattr(getattr(hook, "func", hook), "__module__", ""))


def _through(layer: int, heads: int, module: nn.Module, handler: Handler) -> Callable[..., Any]:
    """The forward of one attention module, its middle taken over; of contexts in one another, the inner one."""
    forward = getattr(module.forward, "taken_over", module.forward)

    def intercepted(*args: Any, **kwargs: Any) -> Any:
        for name in ("hook_pattern", "hook_attn_scores"):
            point = getattr(module, name, None)
            if getattr(point, "_forward_hooks", None) or getattr(point, "_backward_hooks", None):
                raise CannotIntercept(
                    f"blocks.{layer}.attn.{name} has a hook, and what it would see is never written out. Give "
                    "run_with_cache a names_filter that leaves hook_pattern and hook_attn_scores out, or run the model "
                    "without fast_attention"
                )
        seeing = _Seeing(layer, heads, handler)
        left = module.__dict__.get("_pattern")
        try:
            with seeing:
                out = forward(*args, **kwargs)
        except CannotIntercept as error:
            raise CannotIntercept(f"layer {layer}: {error}") from None
        finally:
            if "_pattern" in module.__dict__:
                # Where a bridge leaves the last pattern it made; this one would keep q and k alive.
                module.__dict__["_pattern"] = left
        if seeing.done != 1:
            raise CannotIntercept(f"layer {layer}: its product of weights and values was not found")
        return _without_scores(out)

    intercepted.taken_over = forward  # pyright: ignore[reportFunctionMemberAccess]
    return intercepted


def _without_scores(out: Any) -> Any:
    if isinstance(out, _Scores):
        return None
    return tuple(_without_scores(part) for part in out) if isinstance(out, tuple) else out


@contextmanager
def intercepting(attentions: dict[int, nn.Module], heads: int, handler: Handler) -> Iterator[None]:
    """Within, each of these attention modules gets its z from the handler; afterwards all is as before."""
    with ExitStack() as stack:
        for layer, module in attentions.items():
            stack.enter_context(instead(module, "forward", _through(layer, heads, module, handler)))
        yield


@contextmanager
def instead(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of this one object replaced, and afterwards as it was, in whatever order contexts are left."""
    key = (id(owner), name)
    before, values = _replaced.setdefault(key, (vars(owner).get(name, _ABSENT), []))
    values.append(value)
    vars(owner)[name] = value
    try:
        yield
    finally:
        at = next(i for i in reversed(range(len(values))) if values[i] is value)
        del values[at]
        if values:
            vars(owner)[name] = values[-1]
        else:
            del _replaced[key]
            if before is _ABSENT:
                vars(owner).pop(name, None)
            else:
                vars(owner)[name] = before


_ABSENT = object()
_replaced: dict[tuple[int, str], tuple[Any, list[Any]]] = {}
"""What stood in each replaced attribute, and the values in its place; the last of these is in force."""


NAME = "icl_kernel_lens"
"""Under which our functions stand in Hugging Face's registries of attention and of masks."""


@contextmanager
def without_masks(model: nn.Module) -> Iterator[None]:
    """Within, a Hugging Face model makes `_Mask`s instead of masks; it gets configs of its own for that long."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
    with ExitStack() as stack:
        changed: dict[int, Any] = {}
        for module in model.modules():
            config = vars(module).get("config")
            if not hasattr(config, "_attn_implementation"):
                continue
            if id(config) not in changed:
                changed[id(config)] = deepcopy(config)
                changed[id(config)]._attn_implementation = NAME
            stack.enter_context(instead(module, "config", changed[id(config)]))
        yield


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention written plainly, for modules that leave it to Hugging Face's registry: it is taken over too."""
    if kwargs.get("s_aux") is not None or kwargs.get("softcap") is not None:
        raise CannotIntercept("its attention has a sink or a soft cap of Hugging Face's own")
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, 1) if repeats > 1 else x for x in (key, value))
    scale = kwargs.get("scaling")
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if mask is None else scores + mask
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
) -> _Mask:
    """The window of a mask of Hugging Face's, asked of three queries of the longest text the model takes."""
    check_padding(attention_mask)
    longest = max(kv_length, int(getattr(config, "max_position_embeddings", None) or 0))
    keys = torch.arange(longest, device=device)

    def sees(query: int) -> Tensor:
        seen = mask_function(0, 0, torch.tensor(query, device=device), keys)
        return seen if isinstance(seen, Tensor) else torch.full_like(keys, seen, dtype=torch.bool)

    width = int(sees(longest - 1).sum())
    for query in {longest - 1, longest // 2, min(width, longest - 1)}:
        if not bool((sees(query) == ((keys <= query) & (keys > query - width))).all()):
            raise CannotIntercept("its mask is not a causal band")
    like = torch.empty((), dtype=dtype, device=device)
    return _Mask((batch_size, 1, q_length, kv_length), width if width < longest else None, like)


def check_padding(attention_mask: Tensor | None) -> None:
    """Padding behind the text is seen by no real position; before it, it would be."""
    if attention_mask is not None and attention_mask.dim() == 2:
        kept = attention_mask.bool()
        if bool((kept[:, 1:] & ~kept[:, :-1]).any()):
            raise CannotIntercept("padding stands before the text; pad on the right")
