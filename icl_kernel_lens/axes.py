"""The words for axes and arrays, each defined once.

    prompt    one few-shot prompt: demonstrations and a test input
    demo      one answered demonstration of a prompt, in reading order
    pos       token position in a prompt, 0 is the first token
    label     class index, or the label word of that class
    layer     transformer block, 0 is the first
    head      query head in a layer, 0 is the first
    kv_head   key-value head; query head h reads key-value head h // (heads / kv_heads)
    point     position in the averaged attention row, after resampling (see `evidence`)

Layers, heads, positions and demonstrations are counted from 0 everywhere, also in print.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, get_args

from icl_kernel_lens.errors import ResultError


class HeadRef(NamedTuple):
    """One attention head, printed as `L3H7` (both from 0)."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"

    def __repr__(self) -> str:
        return str(self)

    @classmethod
    def of(cls, head: Head | str) -> HeadRef:
        """A head from its name ("L3H7") or from a pair.

        Raises: ResultError: it is neither.
        """
        if isinstance(head, str):
            if (found := re.fullmatch(r"L(\d+)H(\d+)", head)) is not None:
                return cls(int(found[1]), int(found[2]))
        elif isinstance(head, tuple) and len(head) == 2:
            return cls(*head)
        raise ResultError(
            f'a head is a pair (layer, head) or a name such as "L3H7", both from 0; got {head!r}.'
        )


Head = tuple[int, int]
"""(layer, head): a `HeadRef`, or a plain pair."""

Pooling = Literal[
    "label",
    "label_sum",
    "span_max",
    "span_max_without_first",
    "span_sum",
    "span_sum_without_first",
    "span_mean",
    "span_mean_without_first",
]
"""How the answer row's attention on one demonstration becomes one weight.

    label        the first label token
    label_sum    all label tokens, summed
    span_max     the largest weight in the demonstration, text and label (Han et al. 2025, section 5.2)
    span_sum     all tokens of the demonstration, summed
    span_mean    the mean over the tokens of the demonstration

`_without_first` leaves position 0 of the prompt out. Many heads park their attention there (a sink);
where the first demonstration begins at position 0, `span_max` then makes such heads vote for its label.
"""

SPAN_POOLINGS: tuple[Pooling, ...] = ("span_max", "span_sum", "span_mean")

Reference = Literal["model", "truth"]
"""What a vote is compared with: the model's own answer, or the true label."""


def check_pooling(pooling: str) -> None:
    """Refuse a word that is no pooling."""
    if pooling not in get_args(Pooling):
        raise ResultError(f"a pooling is one of {', '.join(get_args(Pooling))}; got {pooling!r}.")


def check_reference(against: str) -> None:
    """Refuse a word that is neither `model` nor `truth`."""
    if against not in get_args(Reference):
        raise ResultError(f'against must be "model" or "truth"; got {against!r}.')
