"""Finds the user's hooks on a model, adds and removes ours, and replaces attributes for the length of a context.

A hook of the user's may count positions or edit activations, so leading tokens are run apart only where there is
none. TransformerLens's, transformers' and accelerate's own hooks, which only record or move tensors, do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_LIBRARIES = ("transformer_lens.", "transformers.", "accelerate.", "icl_kernel_lens.")
KINDS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where PyTorch keeps hooks of a module; those of every module stand under the same names behind `_global`."""


def with_hooks(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Those of these modules that have a hook of the user's, forward or backward, or a `forward` put in place of its own.

    It is asked at every run, of many modules that have nothing.
    """
    touched = [m for m in modules if "forward" in vars(m) or any(map(vars(m).get, KINDS))]
    return [module for module in touched if registered(module) or _replacement(module)]


def registered(module: Any) -> dict[tuple[str, int], Any]:
    """The user's hooks that can be removed again, each with its kind and the number that PyTorch gave it."""
    return {
        (kind, number): hook
        for kind in KINDS
        for number, hook in (getattr(module, kind, None) or {}).items()
        if not _of_a_library(hook)
    }


def _replacement(module: Any) -> list[Any]:
    own = vars(module).get("forward")
    return [] if own is None or hasattr(own, "taken_over") or _of_a_library(own) else [own]


def hooks_everywhere() -> list[Any]:
    """The hooks that PyTorch runs on every module there is."""
    kinds = (f"_global{kind}" for kind in KINDS)
    return [hook for kind in kinds for hook in getattr(nn.modules.module, kind, {}).values()]


def lasting(modules: Iterable[Any]) -> tuple[int, ...]:
    """What `without_hooks` leaves, by identity: each `forward` put in place of a module's own, and hooks on every module."""
    replaced = (own for module in modules if "forward" in vars(module) for own in _replacement(module))
    return tuple(map(id, [*hooks_everywhere(), *replaced]))


@contextmanager
def without_hooks(modules: Iterable[Any]) -> Iterator[None]:
    """Takes the user's hooks off these modules; afterwards they are there again, in their order.

    What libraries add within stays, as they remember that they added it.
    """
    removed = {}
    for module in modules:
        mine = registered(module)
        for kind in {kind for kind, _ in mine}:
            hooks = getattr(module, kind)
            removed[id(hooks)] = hooks, dict(hooks)
        for kind, number in mine:
            del getattr(module, kind)[number]
    try:
        yield
    finally:
        for hooks, before in removed.values():
            added = {number: hook for number, hook in hooks.items() if number not in before}
            hooks.clear()
            hooks.update(before | added)


def _of_a_library(hook: Any) -> bool:
    """Whether a hook was written in a library; TransformerLens's hook points wrap what they are given."""
    code, cells = getattr(hook, "__code__", None), getattr(hook, "__closure__", None)
    wrapped = str(getattr(hook, "__module__", "")) == "transformer_lens.hook_points"
    if wrapped and code is not None and cells and "hook" in code.co_freevars:
        hook = cells[code.co_freevars.index("hook")].cell_contents
    return str(getattr(getattr(hook, "func", hook), "__module__", "")).startswith(_LIBRARIES)


@contextmanager
def hooked(point: Any, callback: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Adds one hook to a TransformerLens hook point, after the user's own, and removes exactly that one."""

    def look(activation: Tensor, *, hook: Any) -> Tensor | None:
        return callback(activation)

    point.add_hook(look)
    handle = point.fwd_hooks[-1]
    try:
        yield
    finally:
        handle.hook.remove()
        point.fwd_hooks[:] = [h for h in point.fwd_hooks if h is not handle]


def module_seen(module: nn.Module, see: Callable[[Tensor, Any], None]) -> RemovableHandle:
    """Shows `see` the first input of a module and its output at every forward pass within the context."""
    return module.register_forward_hook(lambda _module, given, out: see(given[0], out))


@contextmanager
def instead(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replaces an attribute of this one object; afterwards it is as it was, in whatever order contexts are left."""
    key = (id(owner), name)
    values = _replaced.setdefault(key, [vars(owner).get(name, _ABSENT)])
    values.append(value)
    vars(owner)[name] = value
    try:
        yield
    finally:
        del values[max(at for at, one in enumerate(values) if one is value)]
        if values[-1] is _ABSENT:
            vars(owner).pop(name, None)
        else:
            vars(owner)[name] = values[-1]
        if len(values) == 1:
            del _replaced[key]


_ABSENT = object()
_replaced: dict[tuple[int, str], list[Any]] = {}
"""What stood in each replaced attribute, and then the values in its place; the last of these is in force."""
