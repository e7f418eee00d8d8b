"""The axes of every result, and the words for heads and poolings, each defined once.

    prompt    one few-shot prompt: demonstrations and a test input
    demo      one answered demonstration of a prompt, in reading order
    pair      two demonstrations of a prompt that change places
    pos       token position in a prompt, 0 is the first token
    offset    token position relative to the first label token of a demonstration, 0 is that token
    order     one order of the same demonstrations, 0 is the prompts' own
    replacement   class whose label takes the place of a demonstration's own
    shift     by how much the classes of all demonstrations are shifted, from 0
    pattern   one choice of demonstrations whose labels are replaced together
    label     class index, or the label word of that class
    piece     token of a label word, 0 is the first
    layer     transformer block, 0 is the first
    head      query head in a layer, 0 is the first
    kv_head   key-value head; query head h reads key-value head h // (heads / kv_heads)
    set       a named set of heads that are changed together
    cell      one of the cells that estimates are compared at
    shown     one of the first prompts, kept to be looked at
    shown_pos token position in a prompt kept to be looked at
    point     position in the averaged attention row, after resampling (see `evidence`)
    flow      one of the three flows of `saliency`
    edges     a set of offsets from the labels whose edges are cut, or alone kept, together (see `label_coverage`)
    cut       what takes the place of label edges that are cut (see `ablation_curves`)
    step      number of heads cut or kept so far, from 0
    k         the same from 1, where random sets of as many heads are drawn
    draw      one of the random sets of heads

In the theory's results:

    trial     one prompt with a task of its own, or one world
    n         number of demonstrations
    task      a task θ of the mixture
    rival     another task, that it is told apart from
    variant   a choice of operator, moment and read-out
    setting   what an experiment changes
    series    what it compares

An axis holds what its name says and nothing else. Layers, heads, positions and demonstrations are counted from 0
everywhere, also in print.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from numbers import Integral
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
        if isinstance(head, str) and (found := re.fullmatch(r"L(\d{1,9})H(\d{1,9})", head)):
            return cls(int(found[1]), int(found[2]))
        pair = head if isinstance(head, Sequence) and not isinstance(head, str) else ()
        if len(pair) == 2 and all(isinstance(at, Integral) and not isinstance(at, bool) for at in pair):
            return cls(*map(int, pair))
        raise ResultError(
            f'a head is a pair (layer, head) or a name such as "L3H7", both from 0; got {head!r:.60}.',
            code="head-name",
        )

    @classmethod
    def each(cls, heads: Sequence[Head | str]) -> list[HeadRef]:
        """Several heads, each named once.

        Raises: ResultError: a single name for a list, or a head that is there twice.
        """
        if isinstance(heads, str) or not isinstance(heads, Sequence):
            raise ResultError(
                f'several heads are a list of names or pairs, such as ["L3H7", (4, 0)]; got {heads!r:.60}.',
                code="head-name",
            )
        found = [cls.of(head) for head in heads]
        if twice := [head for head, times in Counter(found).items() if times > 1]:
            raise ResultError(
                f"heads must be named once; {', '.join(map(str, twice))} is there twice.",
                code="head-repeated",
            )
        return found


Head = tuple[int, int]
"""(layer, head): a `HeadRef`, or a plain pair."""

Pooling = Literal[
    "label",
    "label_sum",
    "edges",
    "span_max",
    "span_max_without_first",
    "span_sum",
    "span_sum_without_first",
    "span_mean",
    "span_mean_without_first",
]
"""How the attention of the answer position on the tokens of one demonstration becomes one weight.

    label        the first label token
    label_sum    all label tokens, summed
    edges        the tokens at the `offsets` asked for when reading, summed (0: all label tokens; `label_coverage`)
    span_max     the largest weight in the demonstration, text and label (Han et al. 2025, section 5.2)
    span_sum     all tokens of the demonstration, summed
    span_mean    the mean over the tokens of the demonstration

`_without_first` leaves position 0 of the prompt out. Many heads rest their attention there (a sink); where the first
demonstration begins at position 0, `span_max` makes such heads vote for its label.
"""

SPAN_POOLINGS: tuple[Pooling, ...] = ("span_max", "span_sum", "span_mean")

Reference = Literal["model", "truth"]
"""The answer that a vote is compared with: the model's own, or the true label."""


def check_pooling(pooling: str) -> None:
    """Refuse a word that names no pooling."""
    if pooling not in get_args(Pooling):
        raise ResultError(
            f"a pooling is one of {', '.join(get_args(Pooling))}; got {pooling!r}.", code="unknown-choice"
        )


def check_reference(against: str) -> None:
    """Refuse a word that is neither `model` nor `truth`."""
    if against not in get_args(Reference):
        raise ResultError(f'against must be "model" or "truth"; got {against!r}.', code="unknown-choice")
