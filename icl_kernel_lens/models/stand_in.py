"""Stands in for attention scores and masks with tensors that have no numbers and note what is done to them.

A layer multiplies q·kᵀ, scales, caps, masks or biases the scores, applies softmax, and multiplies with v. `Scores`
stands for q·kᵀ and turns each of these steps into a `Rule`; where it meets v, it hands q, k, v and the rule to the
function that computes z (`takeover.py`). `Mask` stands for a causal mask of Hugging Face's.

Nothing here knows an architecture, and nothing is guessed: the rule is what the model's own code just did. Whatever
it does that a `Rule` cannot say (another operation, a mask that is no causal band, a bias that is not linear) is a
`CannotIntercept`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, no_type_check

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from icl_kernel_lens.errors import ModelError
from icl_kernel_lens.numbers.attention import Rule

HIDDEN = -1e4
"""A number added to a score that hides it; a bias that matters is smaller."""


class CannotIntercept(ModelError):
    """The layer does something to its scores that cannot be taken over exactly."""

    def __init__(self, message: str, code: str = "not-taken-over") -> None:
        super().__init__(message, code)


def refuse(when: bool, why: str) -> None:
    """Says why a layer cannot be taken over, when it cannot."""
    if when:
        raise CannotIntercept(why)


@dataclass(frozen=True)
class Noted:
    """What a layer has done to its scores so far."""

    attend: Callable[[Tensor, Tensor, Tensor, Rule], Tensor]
    """Computes z from q, k, v and the rule."""
    q: Tensor
    k: Tensor
    rule: Rule = Rule()  # noqa: RUF009 - frozen
    capping: float | None = None
    """The divisor of a soft cap under way: score / c, then tanh, then · c."""
    causal: bool = False
    weights: bool = False
    """Softmax is done."""


class _StandIn(Tensor):
    """A tensor without numbers: of its steps, it answers those that it understands."""

    @classmethod
    @no_type_check
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FACTS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        return cls.step(getattr(func, "__name__", str(func)).strip("_"), args, kwargs or {})

    @classmethod
    def step(cls, name: str, args: Any, kwargs: Any) -> Any:
        """What becomes of it where a layer calls `name`."""
        raise NotImplementedError


class Mask(_StandIn):
    """Stands for a causal mask of Hugging Face's, of which only the window is needed."""

    window: int | None

    @staticmethod
    def __new__(cls, shape: Sequence[int], window: int | None, like: Tensor) -> Mask:
        mask = like.expand(*shape).as_subclass(cls)
        mask.window = window
        return mask

    @classmethod
    def step(cls, name: str, args: Any, kwargs: Any) -> Any:
        if any(isinstance(a, Scores) for a in args):
            return NotImplemented  # the scores note what is done with a mask
        refuse(name not in _STILL_A_MASK, f"it calls {name} on its mask")
        return next(a for a in args if isinstance(a, Mask))


class Scores(_StandIn):
    """Stands for scores or weights, (batch, head, query, key) or with batch and head in one."""

    noted: Noted

    @staticmethod
    def __new__(cls, shape: Sequence[int], dtype: torch.dtype, noted: Noted) -> Scores:
        scores = torch.empty((), dtype=dtype, device=noted.q.device).expand(*shape).as_subclass(cls)
        scores.noted = noted
        return scores

    def now(self, **changes: Any) -> Scores:
        return Scores(self.shape, self.dtype, replace(self.noted, **changes))

    def ruled(self, **changes: Any) -> Scores:
        return self.now(rule=replace(self.noted.rule, **changes))

    def banded(self, window: int | None) -> Scores:
        """Hide the keys behind each query, and those before its window."""
        windows = [w for w in (window, self.noted.rule.window) if w is not None]
        return self.ruled(window=min(windows, default=None)).now(causal=True)

    @classmethod
    def step(cls, name: str, args: Any, kwargs: Any) -> Any:
        refuse(name not in _STEPS, f"it calls {name} on its attention scores")
        return _STEPS[name](*args, **kwargs)


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
    if isinstance(value, bool | Scores):
        return None
    if isinstance(value, int | float):
        return float(value)
    return float(value) if isinstance(value, Tensor) and value.numel() == 1 else None


def multiply(a: Any, b: Any) -> Scores:
    """Note that scores are scaled by a number; refuse a factor that is a tensor."""
    scores, other = (a, b) if isinstance(a, Scores) else (b, a)
    factor = _number(other)
    noted = scores.noted
    if factor is None or noted.weights:
        raise CannotIntercept("it multiplies its attention scores with a tensor")
    if noted.rule.soft_cap is not None:
        refuse(noted.capping != factor, "it scales its scores after a soft cap")
        return scores.now(capping=None)
    refuse(noted.rule.slopes is not None, "it scales its scores after a bias was added")
    return scores.ruled(scale=noted.rule.scale * factor)


def _divide(scores: Any, divisor: Any, **_: Any) -> Scores:
    number = _number(divisor)
    if number is None or not isinstance(scores, Scores):
        raise CannotIntercept("it divides its attention scores by a tensor")
    divided = multiply(scores, 1 / number)
    # Which division this is (a scale, or the beginning of a soft cap) shows when tanh follows.
    return divided if scores.noted.rule.soft_cap is not None else divided.now(capping=number)


def _tanh(scores: Scores) -> Scores:
    cap = scores.noted.capping
    if cap is None or scores.noted.causal or scores.noted.rule.slopes is not None:
        raise CannotIntercept("it applies tanh to its scores without dividing by a cap just before")
    return scores.ruled(scale=scores.noted.rule.scale * cap, soft_cap=cap)


def add(a: Any, b: Any, *, alpha: float = 1, **_: Any) -> Scores:
    """Note a mask or ALiBi's bias that is added to scores; refuse every other summand."""
    scores, other = (a, b) if isinstance(a, Scores) else (b, a)
    refuse(
        alpha != 1 or isinstance(other, Scores) or scores.noted.weights,
        "it adds something unusual to its attention scores",
    )
    if isinstance(other, Mask):
        return scores.banded(other.window)
    refuse(not isinstance(other, Tensor), "it adds a number to its attention scores")
    row = other[..., -1, :]
    heads = scores.noted.q.shape[1]
    if row.dim() >= 2 and row.shape[-2] in (heads, heads * scores.noted.q.shape[0]) and heads > 1:
        return scores.ruled(slopes=_slopes(row.reshape(-1, heads, row.shape[-1])))
    refuse(
        bool(((row != 0) & (row > HIDDEN)).any()),
        "it adds a bias to its attention scores that is not ALiBi's",
    )
    return scores.banded(causal_window(other > HIDDEN, scores.shape[-2]))


def _slopes(rows: Tensor) -> Tensor:
    """ALiBi's slopes from one query's biases (batch, head, key); refuses another kind of bias.

    Padding behind a prompt may have the bias 0.
    """
    rows = rows.float()
    refuse(rows.shape[2] < 2, "a prompt of one token does not show its position bias")
    first = rows[0]
    slopes = first[:, 1] - first[:, 0]
    line = first[:, :1] + slopes[:, None] * torch.arange(rows.shape[2], device=rows.device)
    refuse(
        not bool((torch.isclose(rows, line, rtol=1e-6, atol=1e-5) | (rows == 0)).all()),
        "it adds a bias to its scores that is not linear in the key's position (ALiBi's is not, in half precision, "
        "beyond 256 positions)",
    )
    return slopes


def _masked_fill(scores: Any, mask: Any, value: Any) -> Scores:
    refuse(not isinstance(scores, Scores), "it fills another tensor by its attention scores")
    if scores.noted.weights:
        return scores
    filler = _number(value)
    refuse(filler is None or filler > HIDDEN, "it replaces attention scores by a number")
    return scores.banded(causal_window(mask, scores.shape[-2], hidden=True))


def _maximum(scores: Scores, floor: Any, **_: Any) -> Scores:
    """A lowest score, as that of what is hidden, changes nothing that is seen."""
    number = _number(floor)
    refuse(number is None or number > HIDDEN, "it raises its attention scores to a number")
    return scores


def _where(condition: Any, scores: Any, other: Any) -> Scores:
    if isinstance(condition, Scores):  # rows without any key become zeros; causal rows have one
        return other
    filler = _number(other)
    refuse(
        not isinstance(scores, Scores) or filler is None or filler > HIDDEN or scores.noted.weights,
        "it chooses between its attention scores and others",
    )
    return scores.banded(causal_window(condition, scores.shape[-2]))


def causal_window(mask: Tensor, queries: int, *, hidden: bool = False) -> int | None:
    """The width of a causal band from a mask of what is visible (or hidden); refuses any other mask."""
    if isinstance(mask, Mask):
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
    width = int(every[0, -1].sum())
    # A single row is the last query's.
    t = torch.arange(queries, device=every.device)[-every.shape[1] :, None]
    s = torch.arange(keys, device=every.device)
    refuse(
        not bool((every == ((s <= t) & (s > t - width))).all()),
        "its mask is not one causal band for all prompts (left padding is not)",
    )
    return width if width < keys else None


def _softmax(scores: Scores, dim: int | None = None, *_: Any, dtype: Any = None, **__: Any) -> Scores:
    noted = scores.noted
    refuse(
        dim not in (-1, scores.dim() - 1) or noted.weights,
        "it applies softmax along another dimension than the keys'",
    )
    refuse(not noted.causal, "its attention is not masked, so it is not causal")
    refuse(
        noted.rule.soft_cap is not None and noted.capping is not None, "its soft cap does not multiply back"
    )
    return Scores(scores.shape, dtype or scores.dtype, replace(noted, weights=True))


def _cast(scores: Scores, *args: Any, **kwargs: Any) -> Scores:
    given = [a.dtype if isinstance(a, Tensor) else a for a in (*args, *kwargs.values())]
    dtype = next((a for a in given if isinstance(a, torch.dtype)), scores.dtype)
    return Scores(scores.shape, dtype, scores.noted)


def _reshape(scores: Scores, *shape: Any) -> Scores:
    shape = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
    known = [n for n in shape if n != -1]
    rest = scores.numel() // max(1, torch.Size(known).numel())
    return Scores([rest if n == -1 else n for n in shape], scores.dtype, scores.noted)


def _dropout(scores: Scores, p: float = 0.5, training: bool = True, inplace: bool = False) -> Scores:
    refuse(training and p > 0, "it drops attention weights at random; call model.eval() first")
    return scores


def _permute(scores: Scores, *dims: Any) -> Scores:
    dims = tuple(dims[0]) if len(dims) == 1 and not isinstance(dims[0], int) else dims
    refuse(
        tuple(d % scores.dim() for d in dims) != tuple(range(scores.dim())),
        "it transposes its attention scores",
    )
    return scores


def _weights_times_values(weights: Any, v: Any, **_: Any) -> Tensor:
    refuse(
        not isinstance(weights, Scores) or not weights.noted.weights or not isinstance(v, Tensor),
        "it multiplies attention scores before softmax",
    )
    noted = weights.noted
    flat = v.dim() == 3
    v = rearrange(v, "(b h) s d -> b h s d", b=len(noted.q)) if flat else v
    z = noted.attend(noted.q, noted.k, v, noted.rule)
    return rearrange(z, "b h s d -> (b h) s d") if flat else z


_STEPS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("mul", "rmul", "imul", "multiply"), multiply),
    **dict.fromkeys(("div", "truediv", "itruediv", "true_divide", "divide"), _divide),
    **dict.fromkeys(("add", "radd", "iadd"), add),
    "tanh": _tanh,
    "masked_fill": _masked_fill,
    **dict.fromkeys(("max", "maximum"), _maximum),
    "where": _where,
    "softmax": _softmax,
    **dict.fromkeys(("to", "type", "type_as"), _cast),
    "float": lambda scores: _cast(scores, torch.float32),
    **dict.fromkeys(("view", "reshape"), _reshape),
    "permute": _permute,
    "dropout": _dropout,
    # What only copies, and what rows without any key would become; causal rows have one.
    **dict.fromkeys(
        ("contiguous", "clone", "detach", "isnan", "nan_to_num", "zeros_like"),
        lambda scores, *_, **__: scores,
    ),
    **dict.fromkeys(("matmul", "bmm"), _weights_times_values),
}


def check_padding(attention_mask: Tensor | None) -> None:
    """Refuses padding before the text, which real positions would see; behind it, none does."""
    if attention_mask is not None and attention_mask.dim() == 2:
        kept = attention_mask.bool()
        refuse(bool((kept[:, 1:] & ~kept[:, :-1]).any()), "padding stands before the text; pad on the right")
