"""Many relabellings of the same prompts as one `PromptSet`, and several sets of prompts as one.

What stands before a label that is replaced is the same tokens, so that prompts run together share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from icl_kernel_lens.prompts.corrupt_labels import check_labels_shown, with_label_tokens
from icl_kernel_lens.prompts.promptset import PromptSet


def relabelled(
    prompts: PromptSet, numbers: Int[Tensor, " row"], labels: Int[Tensor, "row demo"]
) -> PromptSet:
    """Prompts `numbers`, with these labels written over in place; they have no texts and no strings to show.

    Labels have as many tokens as those whose place they take (`interchangeable`).

    Raises: PromptError: a demonstration does not show its class's label.
    """
    check_labels_shown(prompts)
    rows = replace(prompts, strings=(), episodes=None).select(numbers.tolist())
    tokens = with_label_tokens(rows, labels, rows.label_sequences)
    return replace(rows, tokens=tokens, demo_labels=labels)


def interchangeable(prompts: PromptSet) -> Bool[Tensor, "prompt demo label"]:
    """Which other labels can take the place of each demonstration's: those of equally many tokens."""
    lengths = prompts.label_lengths
    own = lengths.gather(1, prompts.demo_labels)
    other = ~torch.nn.functional.one_hot(prompts.demo_labels, prompts.labels).bool()
    return other & (lengths[:, None] == own[..., None])


def stacked(several: Sequence[PromptSet]) -> PromptSet:
    """The prompts of several sets after one another, of equally many demonstrations and labels; without texts."""
    width = max(one.tokens.shape[1] for one in several)
    pieces = max(one.label_sequences.shape[2] for one in several)

    def joined(name: str) -> Tensor:
        parts = [getattr(one, name) for one in several]
        if name in ("tokens", "roles"):
            parts = [torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in parts]
        if name == "label_sequences":
            parts = [torch.nn.functional.pad(x, (0, pieces - x.shape[2])) for x in parts]
        return torch.cat(parts)

    first = several[0]
    tensors = [name for name, value in vars(first).items() if isinstance(value, Tensor)]
    return replace(
        first,
        **{name: joined(name) for name in tensors},
        label_words=tuple(words for one in several for words in one.label_words),
        strings=(),
        episodes=None,
    )
