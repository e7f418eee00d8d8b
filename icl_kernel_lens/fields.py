"""What the annotations of a dataclass declare: how its fields are checked, stored and read back.

    Float[Tensor, "prompt layer head"]    a tensor; one axis name is one size in the whole object
    Mapping[K, V]   tuple[V, ...]   V | None   Literal[...]   Enum   NamedTuple   another dataclass
    str   int   float   bool   Any (what JSON can hold)

`check` compares a value with its annotation. `encode` splits it into JSON and named tensors, and `decode` is its
inverse, which believes nothing. `leaves` are the tensors with their axes. A field of `field(metadata=TRANSIENT)` is
checked and not stored. A dataclass with `own_axes`, where it is part of another, was checked when it was made, and
its axes are not those of the whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import Field, fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints, no_type_check

import torch
from jaxtyping import AbstractArray, jaxtyped
from torch import Tensor

TRANSIENT = {"stored": False}
_STORED = "tensor"
"""Stands in the JSON for a tensor, which is stored under its path."""
_TYPES = (torch.bool, torch.int64, torch.float32, torch.float64)
"""What tensors are made of: what numpy and pandas take as well."""
# `no_type_check` below: where a hook checks types (in the tests), every function has axes of its own, and here all
# must share those of `check`.


class Mismatch(ValueError):
    """A value is not what its annotation declares; the text says where."""


class Leaf(NamedTuple):
    """A tensor of a dataclass: where it is, its axes, what its numbers are."""

    path: str
    tensor: Tensor
    axes: tuple[str, ...]
    unit: str

    def varying(self) -> tuple[Tensor, tuple[str, ...]]:
        """The tensor and its axes without those declared `#name` along which it is the same."""
        sizes = zip(self.axes, self.tensor.shape, strict=True)
        kept = [(axis.replace("#", ""), size) for axis, size in sizes if "#" not in axis or size > 1]
        return self.tensor.reshape([size for _, size in kept]), tuple(axis for axis, _ in kept)


def unit(words: str) -> dict[str, str]:
    """The metadata of a field whose numbers have this unit: `field(metadata=unit("logits"))`."""
    return {"unit": words}


@no_type_check
def check(value: Any) -> None:
    """Every field of a dataclass, and of those in it, is of the declared type, and its axes agree.

    Raises: Mismatch.
    """
    with jaxtyped("context"):  # pyright: ignore[reportArgumentType, reportCallIssue]
        _check(value, type(value), "")


def declared(cls: type) -> Iterator[tuple[Field[Any], Any]]:
    """The stored fields of a dataclass with their annotations."""
    hints = _hints(cls)
    return ((f, hints[f.name]) for f in fields(cls) if f.metadata.get("stored", True))


def is_tensor(hint: Any) -> bool:
    """Whether an annotation is that of a tensor."""
    return isinstance(hint, type) and issubclass(hint, AbstractArray)


@no_type_check
def member(value: Any, hint: Any) -> Any:
    """The member of a union that a value belongs to; any other annotation as it is."""
    if get_origin(hint) not in (Union, UnionType):
        return hint
    choices = [arg for arg in get_args(hint) if (arg is NoneType) == (value is None)]
    return next((arg for arg in choices if len(choices) == 1 or _fits(value, arg)), hint)


def encode(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """A dataclass as JSON, and the tensors that belong to it by their path in it."""
    found: list[Leaf] = []
    return _encode(value, type(value), _Place(), found), {leaf.path: leaf.tensor for leaf in found}


def leaves(value: Any) -> list[Leaf]:
    """The tensors of a dataclass, in the order of its fields."""
    found: list[Leaf] = []
    _encode(value, type(value), _Place(), found)
    return found


def decode(data: Any, hint: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `encode` made of a dataclass of type `hint`.

    Raises: Mismatch: something is missing, is there beside what is declared, or is of another type.
    """
    left = dict(tensors)
    value = _decode(data, hint, "", left)
    if left:
        raise Mismatch(f"nothing declares the tensors {', '.join(sorted(left)[:5])}")
    return value


def digest(data: Any, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of JSON and tensors: names, types, shapes and every byte."""
    found = hashlib.sha256(json.dumps(data, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


@no_type_check
def _fits(value: Any, hint: Any) -> bool:
    try:
        _check(value, hint, "")
    except Mismatch:
        return False
    return True


@no_type_check
def _check(value: Any, hint: Any, at: str) -> None:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return
    if origin in (Union, UnionType):
        one = member(value, hint)
        if one is hint:
            raise _mismatch(value, hint, at)
        _check(value, one, at)
    elif origin is Literal:
        if not any(value == arg and type(value) is type(arg) for arg in args):
            raise Mismatch(f"{at} must be one of {', '.join(map(repr, args))}; it is {value!r}")
    elif not isinstance(value, origin or hint if hint is not float else (int, float)) or (
        isinstance(value, bool) and hint in (int, float)
    ):
        raise _mismatch(value, hint, at)
    elif origin is tuple:
        if not _plain(value, args):
            for part, (number, one) in zip(value, _members(hint, len(value), at), strict=True):
                _check(part, one, f"{at}[{number}]")
    elif isinstance(value, Mapping):
        for key, part in value.items():
            _check(key, args[0], f"a key of {at}")
            _check(part, args[1], f"{at}[{key!r}]")
    elif is_tensor(hint):
        if value.dtype not in _TYPES or value.device.type != "cpu" or value.requires_grad or value.is_sparse:
            raise Mismatch(
                f"{at} must be a dense tensor on the CPU, without a gradient, of whole numbers (int64), truth values or "
                f"numbers of 32 or 64 bits; it is {value.dtype} on {value.device}"
            )
    elif not (at and _own_axes(hint)):
        for name, one in _parts(hint).items():
            _check(getattr(value, name), one, _join(at, name))


def _mismatch(value: Any, hint: Any, at: str) -> Mismatch:
    if isinstance(value, Tensor):
        found = f"a tensor of shape {tuple(value.shape)} and type {str(value.dtype).removeprefix('torch.')}"
    else:
        found = f"{value!r:.60} ({type(value).__name__})"
    return Mismatch(f"{at} must be {_describe(hint)}; it is {found}")


def _describe(hint: Any) -> str:
    if is_tensor(hint):
        return f"{hint.__name__.split('[')[0]} over ({', '.join(hint.dim_str.split())})"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


@cache
def _parts(hint: Any) -> dict[str, Any]:
    """The annotations of a dataclass's fields or a named tuple's members; any other type has none."""
    names = [f.name for f in fields(hint)] if is_dataclass(hint) else getattr(hint, "_fields", ())
    return {name: _hints(hint)[name] for name in names}


def _plain(values: tuple[Any, ...], args: tuple[Any, ...]) -> bool:
    """Whether a tuple is declared to hold texts or whole numbers, and does: the long ones, of which each is not looked at."""
    return args[1:] == (Ellipsis,) and args[0] in (str, int) and {args[0]}.issuperset(map(type, values))


def _members(hint: Any, count: int, at: str) -> list[tuple[str, Any]]:
    """The name or number, and the annotation, of each member of a tuple."""
    args = get_args(hint)
    if args[1:] == (Ellipsis,):
        args = args[:1] * count
    members = list(_parts(hint).items()) or [(str(number), one) for number, one in enumerate(args)]
    if len(members) != count:
        raise Mismatch(f"{at} must have {len(members)} members; it has {count}")
    return members


def _is_named_tuple(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields")


def _own_axes(hint: Any) -> bool:
    return getattr(hint, "own_axes", False)


def _join(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


class _Place(NamedTuple):
    path: str = ""
    unit: str = ""
    within: str = ""
    """The path of the part whose axes are its own."""

    def down(self, name: object) -> _Place:
        return self._replace(path=_join(self.path, str(name)))


def _encode(value: Any, hint: Any, at: _Place, found: list[Leaf]) -> Any:
    hint = member(value, hint)
    args = get_args(hint)
    if is_tensor(hint):
        axes = tuple(_join(at.within, axis) for axis in hint.dim_str.split())
        found.append(Leaf(at.path, value, axes, at.unit))
        return _STORED
    if get_origin(hint) is tuple and _plain(value, args):
        return list(value)
    if get_origin(hint) is tuple or _is_named_tuple(hint):
        members = zip(value, _members(hint, len(value), at.path), strict=True)
        return [_encode(part, one, at.down(name), found) for part, (name, one) in members]
    if get_origin(hint) is not None and isinstance(value, Mapping):
        return [
            [_encode(key, args[0], at, found), _encode(part, args[1], at.down(key), found)]
            for key, part in value.items()
        ]
    if is_dataclass(hint):
        if at.path and _own_axes(hint):
            at = at._replace(within=at.path)
        return {
            f.name: _encode(
                getattr(value, f.name), one, at.down(f.name)._replace(unit=f.metadata.get("unit", "")), found
            )
            for f, one in declared(hint)  # pyright: ignore[reportArgumentType]
        }
    return value.value if isinstance(value, Enum) else value


def _decode(data: Any, hint: Any, at: str, tensors: dict[str, Tensor]) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _decode_union(data, args, at, tensors)
    if is_tensor(hint):
        if data != _STORED or at not in tensors:
            raise Mismatch(f"the tensor {at} is missing")
        return tensors.pop(at)
    if origin is tuple or _is_named_tuple(hint):
        if not isinstance(data, list):
            raise _mismatch(data, hint, at)
        members = zip(data, _members(hint, len(data), at), strict=True)
        parts = [_decode(part, one, _join(at, name), tensors) for part, (name, one) in members]
        return hint(*parts) if _is_named_tuple(hint) else tuple(parts)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _decode_mapping(data, args, at, tensors)
    if is_dataclass(hint):
        return _decode_dataclass(data, hint, at, tensors)
    if isinstance(hint, type) and issubclass(hint, Enum):
        known = {one.value: one for one in hint}
        if not isinstance(data, str | int) or data not in known:
            raise _mismatch(data, hint, at)
        return known[data]
    _check(data, hint, at)
    return float(data) if hint is float else data


def _decode_union(data: Any, args: tuple[Any, ...], at: str, tensors: dict[str, Tensor]) -> Any:
    if data is None and NoneType in args:
        return None
    *others, last = (arg for arg in args if arg is not NoneType)
    for arg in others:
        with suppress(Mismatch):
            return _decode(data, arg, at, tensors)
    return _decode(data, last, at, tensors)


def _decode_mapping(data: Any, args: tuple[Any, ...], at: str, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(data, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in data):
        raise Mismatch(f"{at} must be pairs; it is {data!r:.60}")
    found: dict[Any, Any] = {}
    for raw, part in data:
        key = _decode(raw, args[0], f"a key of {at}", tensors)
        if key in found:
            raise Mismatch(f"{at} holds {key!r} twice")
        found[key] = _decode(part, args[1], _join(at, str(key)), tensors)
    return found


def _decode_dataclass(data: Any, hint: Any, at: str, tensors: dict[str, Tensor]) -> Any:
    wanted = {f.name: one for f, one in declared(hint)}
    if not isinstance(data, dict) or set(data) != set(wanted):
        raise Mismatch(f"{at or hint.__name__} must have the fields {', '.join(wanted)}; it is {data!r:.60}")
    return hint(**{name: _decode(data[name], one, _join(at, name), tensors) for name, one in wanted.items()})
