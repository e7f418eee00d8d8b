"""Which tokens are a label's edges: those at some offsets from each demonstration's label.

    offset 0    the label, all its tokens
    offset o    the token at label_pos + o, counted from the label's first token

A label's token is offset 0 and no other, also where it stands behind another label, and a token of the test input is at no
offset. What stands between two demonstrations is expected behind the last one, too: there the test input begins
(`start_of_test_input`).
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.prompts.promptset import PromptSet, TokenRole


def within(spans: Int[Tensor, "demo 2"], width: int) -> Bool[Tensor, "demo key"]:
    """The positions in each span."""
    here = torch.arange(width)
    return (here >= spans[:, :1]) & (here < spans[:, 1:])


def label_keys(prompts: PromptSet, number: int, offsets: Sequence[int]) -> Bool[Tensor, "offset demo key"]:
    """Each demonstration's tokens at each offset, among those up to the answer position of one prompt."""
    width = int(prompts.answer_pos[number]) + 1
    labels, here, wanted = (
        within(prompts.label_spans[number], width),
        torch.arange(width),
        torch.tensor(list(offsets))[:, None],
    )
    others = here == (prompts.label_pos[number] + wanted)[..., None]
    others &= ~labels.any(0) & (here < start_of_test_input(prompts)[number])
    return torch.where((wanted == 0)[..., None], labels, others)


def demo_keys(prompts: PromptSet, number: int) -> Bool[Tensor, " key"]:
    """All tokens of the demonstrations and between them, but for position 0 and special tokens.

    No label stands before those, and heads rest their attention there.
    """
    width = int(prompts.answer_pos[number]) + 1
    here = torch.arange(width)
    inside = (here >= prompts.demo_spans[number, 0, 0]) & (here < start_of_test_input(prompts)[number])
    return inside & (here > 0) & (prompts.roles[number, :width] != TokenRole.SPECIAL)


def start_of_test_input(prompts: PromptSet) -> Int[Tensor, " prompt"]:
    """Where the test input begins: as far behind the last demonstration as that begins behind the one before."""
    spans = prompts.demo_spans
    between = spans[:, -1, 0] - spans[:, -2, 1] if prompts.demos > 1 else 0
    return (spans[:, -1, 1] + between).minimum(prompts.answer_pos)


def check_offsets(prompts: PromptSet, offsets: Sequence[int]) -> None:
    """Refuse offsets at which there is nothing to read.

    Raises: PromptError: they are no whole numbers, are named twice, or one holds no token in any prompt.
    """
    whole = isinstance(offsets, Sequence) and all(
        isinstance(offset, Integral) and not isinstance(offset, bool) for offset in offsets
    )
    if not whole or not offsets or len(set(offsets)) < len(offsets):
        raise PromptError(
            "offsets must name whole numbers, each named once, such as (0, 1), the label and the token behind its first; "
            f"got {offsets!r}.",
            code="offset",
        )
    if absent := [offset for offset in offsets if offset not in present(prompts, offsets)]:
        raise PromptError(
            f"an offset must hold a token of some prompt's demonstrations that is none of a label's; "
            f"{', '.join(f'{offset:+d}' for offset in absent)} does not: labels have up to "
            f"{int(prompts.label_lengths.max())} tokens, which are offset 0, and the test input begins at token "
            f"{int(start_of_test_input(prompts).max())} at the latest. Leave that offset out.",
            code="offset",
        )


def present(prompts: PromptSet, offsets: Sequence[int]) -> tuple[int, ...]:
    """Those of some offsets that hold a token in some prompt; the label's own always."""
    found = torch.stack(
        [label_keys(prompts, number, offsets)[..., :-1].flatten(1).any(1) for number in range(len(prompts))]
    )
    return tuple(
        offset for offset, there in zip(offsets, found.any(0).tolist(), strict=True) if there or offset == 0
    )
