"""Replaces an attribute of one object for the length of a context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def instead(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replaces an attribute of this one object; afterwards it is as it was, in whatever order contexts are left."""
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
