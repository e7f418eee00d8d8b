"""Narrows a model's unembedding to some tokens: of a vocabulary of 262,144, a few labels are all that most questions need.

A row of one token costs as much in an unembedding of such a vocabulary as in all layers below it (Gemma 3 270M). The weights'
rows of the tokens asked for are picked where the unembedding's own code multiplies with them, and what the model does to its
logits afterwards (a soft cap, a scale) it does to these. That they are then what they are among all is measured on the model in
hand (`run/facts.py`: `narrows`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, no_type_check

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from icl_kernel_lens.models.hooks import instead, with_hooks


def places_among(
    words: Int[Tensor, "*prompt label"], columns: Int[Tensor, " column"] | None
) -> Int[Tensor, "*prompt label"]:
    """Where tokens stand in the logits of `columns`, which are in order; None: of all tokens."""
    return words if columns is None else torch.searchsorted(columns, words.contiguous())


class Narrow(TorchFunctionMode):
    """Active while an unembedding runs: of its one product with weights, computes some rows."""

    def __init__(self, columns: Int[Tensor, " column"]) -> None:
        super().__init__()
        self.columns = columns
        self.done = False

    @no_type_check
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear and not kwargs:
            self.done = True
            given, weight, *bias = args
            here = self.columns.to(weight.device)
            return func(given, weight[here], *(b if b is None else b[here] for b in bias))
        return func(*args, **(kwargs or {}))


@contextmanager
def unembedding_to(unembed: nn.Module, columns: Int[Tensor, " column"]) -> Iterator[Narrow]:
    """Within, an unembedding gives these columns alone, where its own code is such a product (`.done` says so); else all.

    Hooks of the user's on it see all columns.
    """
    narrow = Narrow(columns)
    if with_hooks(unembed.modules()):
        yield narrow
        return
    forward = unembed.forward

    def narrowed(*args: Any, **kwargs: Any) -> Any:
        with narrow:
            return forward(*args, **kwargs)

    with instead(unembed, "forward", narrowed):
        yield narrow
