"""Checks the arguments of public functions against their annotations, at the door, before anything runs.

What stands for the same thing is turned into what is declared: NumPy's numbers, a tensor or an array of numbers for a
sequence, a list for a tuple, a text for a class that has `from_text` (`Template`). Anything else is refused. What an
annotation leaves open (`Any`, tensors, functions) is the function's own to check.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, wraps
from numbers import Integral, Real
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from icl_kernel_lens.errors import ArgumentError

F = TypeVar("F", bound=Callable[..., Any])
_PLAIN = (bool, int, float, str)
_ROWS = (Sequence, Iterable)
_NOT = object()
"""A value is not what an annotation declares."""


def checked(function: F) -> F:
    """A function that refuses arguments which its annotations do not declare.

    Raises: ArgumentError.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def door(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError as error:
            known = ", ".join(name for name in signature.parameters if name not in ("self", "cls"))
            raise ArgumentError(
                f"{function.__name__} must be called with what it takes ({known}); {error}.",
                code="wrong-type",
            ) from error
        hints = _hints(function)
        for name, value in given.arguments.items():
            if name in hints and signature.parameters[name].kind not in (
                inspect.Parameter.VAR_POSITIONAL,
                inspect.Parameter.VAR_KEYWORD,
            ):
                given.arguments[name] = argument(name, value, hints[name])
        return function(*given.args, **given.kwargs)

    return door  # pyright: ignore[reportReturnType]


def argument(name: str, value: Any, hint: Any) -> Any:
    """A value as its annotation declares it.

    Raises: ArgumentError: it is something else.
    """
    turned = _turned(value, hint)
    if turned is not _NOT:
        return turned
    found = f"{value!r:.60} ({type(value).__name__})"
    raise ArgumentError(
        f"{name} must be {_words(hint)}; it is {found}.{_advice(hint, value)}",
        code="unknown-choice" if isinstance(value, str) and get_origin(hint) is Literal else "wrong-type",
    )


def check_fields(instance: Any) -> None:
    """Turns and checks the fields of a frozen dataclass, as its annotations declare them; for `__post_init__`.

    Raises: ArgumentError.
    """
    for name, hint in get_type_hints(type(instance)).items():
        if name in type(instance).__dataclass_fields__:
            object.__setattr__(instance, name, argument(name, getattr(instance, name), hint))


@cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    inner = inspect.unwrap(function)
    given = {name: hint for name, hint in inner.__annotations__.items() if name != "return"}
    return get_type_hints(SimpleNamespace(__annotations__=given), globalns=inner.__globals__)


def _turned(value: Any, hint: Any) -> Any:
    """The value, or what it stands for, as the annotation declares it; `_NOT` if it is nothing of the kind."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        tried = (_turned(value, one) for one in args)
        return next((found for found in tried if found is not _NOT), _NOT)
    if hint is Any:
        return value
    if hint is NoneType:
        return None if value is None else _NOT
    if origin is Literal:
        return (
            value
            if any(value is one or (type(value) is type(one) and value == one) for one in args)
            else _NOT
        )
    if hint in _PLAIN:
        return _plain(value, hint)
    if origin is tuple or origin in _ROWS:
        return _row(value, origin, args)
    kind = origin or hint
    if not isinstance(kind, type) or kind in (object, Callable) or hasattr(kind, "dim_str"):
        return value
    if getattr(kind, "_is_protocol", False) or isinstance(value, kind):
        return value
    turn = getattr(kind, "from_text", None)  # of a class that has a property of this name, no function
    return turn(value) if callable(turn) and isinstance(value, str) else _NOT


def _plain(value: Any, hint: type) -> Any:
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, bool) or hint in (bool, str):
        return value if isinstance(value, bool) is (hint is bool) and isinstance(value, hint) else _NOT
    if hint is int:
        return int(value) if isinstance(value, Integral) else _NOT
    return float(value) if isinstance(value, Real) else _NOT


def _row(value: Any, origin: Any, args: tuple[Any, ...]) -> Any:
    """A sequence with its members turned; a single text is none, and neither is a mapping."""
    if hasattr(value, "tolist") and getattr(value, "ndim", 0) == 1:
        value = value.tolist()
    if isinstance(value, str | bytes | Mapping) or not isinstance(
        value, Iterable if origin is Iterable else Sequence
    ):
        return _NOT
    if not isinstance(value, Sequence):
        return value
    hints = args if origin is tuple and args[1:] != (Ellipsis,) else args[:1] * len(value)
    if len(hints) != len(value):
        return _NOT
    if not all(hint in _PLAIN or get_origin(hint) is Literal for hint in hints):
        return value  # heads, examples and the like are read by those who know them
    members = [_turned(one, hint) for one, hint in zip(value, hints, strict=True)]
    if any(one is _NOT for one in members):
        return _NOT
    if origin is tuple:
        return tuple(members)
    return value if all(one is mine for one, mine in zip(members, value, strict=True)) else members


def _advice(hint: Any, value: Any) -> str:
    """How the object that is wanted is made, where its class says so (`made_by`); how one text is written in a list."""
    kinds = (hint, *get_args(hint))
    if isinstance(value, str) and any(get_origin(kind) in (tuple, *_ROWS) for kind in kinds):
        return f" A single one is written [{value!r:.60}]."
    found = (getattr(kind, "made_by", "") for kind in kinds)
    return next((f" {advice}" for advice in found if advice), "")


_NAMES = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", NoneType: "None"}
_SEVERAL = {bool: "truth values", int: "whole numbers", float: "numbers", str: "texts"}


def _words(hint: Any) -> str:
    """An annotation in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_words(one) for one in args)
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(map(repr, args))
    if origin is tuple or origin in _ROWS:
        if args and get_origin(args[0]) is Literal:
            return f"a list, each {_words(args[0])}"
        return f"a list of {_SEVERAL[args[0]]}" if args and args[0] in _SEVERAL else "a list"
    word = getattr(origin or hint, "__name__", str(hint))
    return _NAMES.get(hint) or (
        "a dictionary" if origin is Mapping else f"{'an' if word[0] in 'AEIOU' else 'a'} {word}"
    )
