"""Types and shapes are checked at the first calls of every function in every test.

jaxtyping and beartype at every call treble the time of tests that run many passes, for calls that are alike; and a
closure is wrapped anew each time that it is made.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections import Counter
from types import CodeType

import jaxtyping
import pytest

CALLS = 16
"""Of each function, in one test."""
_calls: Counter[CodeType] = Counter()
_every_call = jaxtyping.jaxtyped


def jaxtyped(function=None, **how):
    """jaxtyping's decorator, which its import hook gives to all that the package defines, for the first calls of a test."""
    if function is None:
        return functools.partial(jaxtyped, **how)
    if dataclasses.is_dataclass(function):
        if "__init__" in vars(function):
            function.__init__ = _at_first(function.__init__, how)
        return function
    if not inspect.isfunction(function):
        return _every_call(function, **how)  # other classes, and the word "context"
    return function if _calls[function.__code__] >= CALLS else _at_first(function, how)


def _at_first(plain, how):
    code, checked = plain.__code__, _every_call(plain, **how)

    @functools.wraps(plain)
    def function(*args, **kwargs):
        __tracebackhide__ = True
        if _calls[code] >= CALLS:
            return plain(*args, **kwargs)
        _calls[code] += 1
        return checked(*args, **kwargs)

    return function


@pytest.fixture(autouse=True)
def _each_test_checks_anew():
    _calls.clear()


jaxtyping.jaxtyped = jaxtyped
