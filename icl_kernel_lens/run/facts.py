"""What holds of the model in hand, measured on it once: here, whether the logits of some tokens alone are those among all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from icl_kernel_lens.models.adapter import InterceptableAdapter, ModelAdapter
from icl_kernel_lens.models.hooks import without_hooks
from icl_kernel_lens.models.transformer_lens_adapters import modules_of
from icl_kernel_lens.models.verify import VerificationReport, tolerance, verify_model
from icl_kernel_lens.numbers.residuals import gap, largest
from icl_kernel_lens.run.memory import exhausted

TOKENS = 9
COLUMNS = 500
"""Logits that are compared, about."""
Facts = WeakKeyDictionary[Any, tuple[VerificationReport, bool]]
"""What holds of each model, as long as its report does."""
_narrows: Facts = WeakKeyDictionary()


def once_a_model(
    facts: Facts, adapter: InterceptableAdapter, measure: Callable[[InterceptableAdapter, float], bool]
) -> bool:
    """Whether something holds of a model, within its limit; code of an unknown model may fail in any way, and then it does not."""
    report = verify_model(adapter)
    if adapter.model not in facts or facts[adapter.model][0] is not report:
        try:
            with without_hooks(modules_of(adapter.model)):
                holds = measure(adapter, max(report.limit, tolerance(adapter.dtype)))
        except Exception as error:
            if exhausted(error):
                raise
            holds = False
        facts[adapter.model] = report, holds
    return facts[adapter.model][1]


def narrows(adapter: ModelAdapter) -> bool:
    """Whether the logits of some tokens alone are those among the logits of all.

    Measured once a model, on random tokens: what a model does to its logits after the unembedding may count on all of them.
    """
    return isinstance(adapter, InterceptableAdapter) and once_a_model(_narrows, adapter, _same_logits)


def _same_logits(adapter: InterceptableAdapter, limit: float) -> bool:
    vocab, length = adapter.shape.vocab, min(TOKENS, adapter.shape.context or TOKENS)
    tokens = torch.randint(vocab, (1, length), generator=torch.Generator().manual_seed(1))

    def run(columns: Tensor | None) -> Tensor:
        last = torch.tensor([[length - 1]])
        return adapter.forward(tokens, last[0] + 1, last, columns=columns)[0, 0].cpu()

    whole = run(None)
    # Few, as of labels, and many, from the last to the first: picked rows of the weights are copies.
    few = torch.tensor([0, len(whole) // 2, len(whole) - 1])
    many = torch.arange(len(whole) - 1, -1, -max(1, len(whole) // COLUMNS))
    return largest([gap(run(some), whole[some]) for some in (few, many)]) <= limit
