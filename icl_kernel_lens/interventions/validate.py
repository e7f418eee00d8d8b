"""Refuses what cannot be intervened on or compared, and says why, before the model is run."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from icl_kernel_lens.axes import Head, HeadRef, Reference
from icl_kernel_lens.errors import PromptError, ResultError
from icl_kernel_lens.models.adapter import InterceptableAdapter, ModelAdapter, attention_layers
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.run.forward import check_first_token

HeadList = Sequence[Head | str]
Heads = Sequence[Head | str | Sequence[Head | str]]
"""Heads by name ("L2H1") or as pairs; where a set of heads may stand, such a sequence of them."""


def check_word(name: str, value: Any, words: Any) -> None:
    """Refuse an argument that is not one of a Literal's words."""
    if value not in get_args(words):
        raise ResultError(
            f"{name} must be one of {', '.join(get_args(words))}; got {value!r}.", code="unknown-choice"
        )


def check_alike(clean: PromptSet, corrupted: PromptSet) -> None:
    """Refuse two sets of prompts that do not agree in every position.

    Raises: PromptError: they do not, and where.
    """
    if len(clean) != len(corrupted) or clean.demos != corrupted.demos:
        raise PromptError(
            f"clean and corrupted prompts must correspond one to one; there are {len(clean)} of {clean.demos} "
            f"demonstrations and {len(corrupted)} of {corrupted.demos}. Make the one from the other with corrupt().",
            code="prompts-differ",
        )
    for name in ("lengths", "answer_pos", "label_spans", "demo_spans"):
        differ = (getattr(clean, name) != getattr(corrupted, name)).flatten()
        if differ.any():
            prompt = int(differ.nonzero()[0]) // (differ.numel() // len(clean))
            raise PromptError(
                f"clean and corrupted prompts must agree in every position; {name} of prompt {prompt} is "
                f"{getattr(clean, name)[prompt].tolist()} and {getattr(corrupted, name)[prompt].tolist()}. "
                "corrupt() keeps positions, or refuses.",
                code="prompts-differ",
            )


def check_intervened(prompts: PromptSet, against: Reference) -> None:
    """Refuse prompts whose answer cannot be measured on one position.

    Raises: PromptError: whole labels are scored, there is no demonstration, or no true label is known.
    """
    check_first_token(prompts, against, "an intervention")
    if prompts.demos == 0:
        raise PromptError(
            "there must be demonstrations to intervene on; these prompts have none.",
            code="too-few-demonstrations",
        )


def label_positions(prompts: PromptSet, offsets: Sequence[int]) -> Int[Tensor, "prompt offset demo"]:
    """The positions at some offsets from each demonstration's first label token.

    Raises: PromptError: offsets are no whole numbers, are named twice, or leave a prompt.
    """
    whole = isinstance(offsets, Sequence) and all(isinstance(offset, int) for offset in offsets)
    if not whole or not offsets or len(set(offsets)) < len(offsets):
        raise PromptError(
            "offsets must name whole numbers, each named once, such as (0,), the label itself; got "
            f"{offsets!r}.",
            code="offset",
        )
    positions = prompts.label_pos[:, None] + torch.tensor(list(offsets))[None, :, None]
    outside = (positions < 0) | (positions > prompts.answer_pos[:, None, None])
    if outside.any():
        prompt, which, demo = outside.nonzero()[0].tolist()
        raise PromptError(
            f"label position + offset must lie in the prompt; offset {offsets[which]} from the label of demonstration "
            f"{demo} in prompt {prompt} (position {int(prompts.label_pos[prompt, demo])}) does not: the answer "
            f"position is {int(prompts.answer_pos[prompt])}. Leave that offset out.",
            code="offset",
        )
    return positions


def check_heads(adapter: InterceptableAdapter, heads: HeadList) -> list[HeadRef]:
    """The heads that are named; all of them are the model's.

    Raises: ResultError: none are named, or a layer or head is out of range or has no attention.
    """
    shape, missing = adapter.shape, adapter.missing_attention()
    listed = isinstance(heads, Sequence) and not isinstance(heads, str)
    if not listed or not heads or any(_single(entry) is None for entry in heads):
        raise ResultError(
            'heads must name at least one, each by name or as (layer, head), such as ["L2H1"] or [(2, 1)]; None means '
            f"all. Got {heads!r}.",
            code="no-heads",
        )
    refs = HeadRef.each(heads)
    for ref in refs:
        if not (0 <= ref.layer < shape.layers and 0 <= ref.head < shape.heads) or ref.layer in missing:
            raise ResultError(
                f"a head must be one of the model's; {ref} is not: {adapter.name} has {shape.layers} "
                f"layers of {shape.heads} heads, counted from 0"
                + (f" ({missing[ref.layer]})." if ref.layer in missing else "."),
                code="head-outside",
            )
    return refs


def every_head(adapter: ModelAdapter) -> list[HeadRef]:
    """All heads of layers that have attention."""
    return [
        HeadRef(layer, head) for layer in attention_layers(adapter) for head in range(adapter.shape.heads)
    ]


def head_sets(
    adapter: InterceptableAdapter, heads: Heads | None, layers: Sequence[int] | None
) -> tuple[list[list[HeadRef]], bool]:
    """What is changed at once: every head alone (neither given), heads or sets of them, or all heads of some layers;
    and whether each is a single head.

    Raises: ResultError: both are given, a head is not the model's, or is named twice.
    """
    shape = adapter.shape
    if heads is not None and layers is not None:
        raise ResultError(
            "give heads or layers, not both; heads may hold sets of heads.", code="options-clash"
        )
    if layers is not None:
        if not isinstance(layers, Sequence) or not all(isinstance(layer, Integral) for layer in layers):
            raise ResultError(
                f"layers must name whole numbers, such as [1, 2]; got {layers!r}.", code="wrong-type"
            )
        heads = [[HeadRef(layer, head) for layer in layers for head in range(shape.heads)]]
    elif heads is None:
        heads = every_head(adapter)
    if not isinstance(heads, Sequence) or isinstance(heads, str) or len(heads) == 0:
        raise ResultError(
            'heads must be a sequence of heads, by name ("L2H1") or as (layer, head), or of sets of them; None means '
            f"every head alone. Got {heads!r}.",
            code="head-name",
        )
    alone = [_single(entry) for entry in heads]
    members: list[Any] = [entry if ref is None else [ref] for entry, ref in zip(heads, alone, strict=True)]
    sets = [check_heads(adapter, some) for some in members]
    single = None not in alone
    if len({frozenset(members) for members in sets}) < len(sets):
        raise ResultError(
            "heads, and sets of heads, must be named once; one is there twice.", code="head-repeated"
        )
    return sorted(sets) if single else sets, single


def check_kernel(
    kernel: Any, shape: tuple[int, ...], what: str, rows: Bool[Tensor, " row"] | Literal[True] = True
) -> None:
    """Refuse what is no kernel's weights; of some `rows` alone, where they are given.

    Raises: ResultError: another shape or type, or negative, undefined or only zero weights.
    """
    if not isinstance(kernel, Tensor) or tuple(kernel.shape) != shape or not kernel.is_floating_point():
        found = (
            f"{tuple(kernel.shape)}, {kernel.dtype}" if isinstance(kernel, Tensor) else type(kernel).__name__
        )
        raise ResultError(
            f"{what} must be a tensor of floating-point weights of shape {shape}; it is {found}. "
            "torch.as_tensor makes one.",
            code="kernel-weights",
        )
    kernel = kernel.detach().cpu().double()
    total = kernel.sum(-1)
    bad = (~(kernel >= 0).all(-1) | ~total.isfinite() | (total <= 0)) & rows
    if bad.any():
        row = bad.nonzero()[0].tolist()
        raise ResultError(
            f"{what} must be finite, at least 0, and not 0 for all demonstrations; row {row[0]} is "
            f"{kernel[tuple(row)].tolist()[:8]}.",
            code="kernel-weights",
        )


def _single(entry: Any) -> HeadRef | None:
    """One head, by name or as a pair of whole numbers; None for anything else."""
    if isinstance(entry, str):
        return HeadRef.of(entry)
    if isinstance(entry, Sequence) and len(entry) == 2 and all(isinstance(x, Integral) for x in entry):
        return HeadRef(int(entry[0]), int(entry[1]))
    return None
