"""Layouts of inputs in tokens: which inputs can change places without moving a position.

Two inputs have the same layout when their tokens have the same roles in the same order, a label stands at the
same place between them, and the same tokens of the template touch them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from icl_kernel_lens.models.adapter import ModelAdapter
from icl_kernel_lens.prompts.example import Episode, Example
from icl_kernel_lens.prompts.promptset import TEXT_ROLES, TokenRole
from icl_kernel_lens.prompts.spans import locate_spans, pieces_of
from icl_kernel_lens.prompts.template import Template
from icl_kernel_lens.prompts.tokenizer import check_tokenizer, encode


def input_layout(ids: list[int], roles: list[int], start: int, end: int) -> tuple[int, ...]:
    """The layout of the input of the demonstration at `[start, end)`, as numbers to be compared.

    They are the roles of the input's tokens, one number for a label between them (of however many tokens), and
    which tokens of the template touch the input: a space before it where the tokenizer does not merge the two.
    """
    texts = [at for at in range(start, end) if roles[at] in TEXT_ROLES]
    beside = {at + step for at in texts for step in (-1, 1)}
    found: list[int] = []
    for at in range(start, end):
        if roles[at] == TokenRole.LABEL:
            found += [int(TokenRole.LABEL)] if roles[at - 1] != TokenRole.LABEL else []
        elif roles[at] in TEXT_ROLES:
            found.append(roles[at])
        elif at in beside:
            found.append(-1 - ids[at])
    return tuple(found)


@dataclass(frozen=True)
class Layout:
    """The layouts of an example at the places of a prompt where it can stand."""

    first: tuple[int, ...]
    """Its `input_layout` in the first demonstration of a prompt."""
    later: tuple[int, ...]
    """Its `input_layout` in a later one."""
    test: int
    """As the test input: the number of tokens from the end of the last demonstration to the answer position."""

    @property
    def inputs(self) -> int:
        """Tokens of the input."""
        return sum(role in TEXT_ROLES for role in self.later)


def find_layouts(
    adapter: ModelAdapter, template: Template, examples: Sequence[Example], word: str
) -> list[Layout]:
    """The layout of each example, written twice as a demonstration (labelled `word`) and as the test input."""
    pieces = []
    for example in examples:
        shown = replace(example, label=0)
        pieces.append(pieces_of(Episode((shown, shown), shown, (word,), 0), template))
    texts = ["".join(piece.string for piece in row) for row in pieces]
    found = []
    for row, (ids, offsets) in zip(pieces, encode(check_tokenizer(adapter), texts, None), strict=True):
        at = locate_spans(row, ids, offsets)
        first, later = (input_layout(ids, at.roles, start, end) for start, end in at.demo_spans)
        found.append(Layout(first, later, len(ids) - at.demo_spans[1][1]))
    return found
