"""Runs a model forward, the fast way where that is exact: logits, label scores, and the attention rows on the way.

The fast way rebuilds the attention row that is asked for from q and k, and lets prompts share leading tokens
(`models/attention_passes.py`). The plain way is the model's own forward pass, with rows taken from `hook_pattern`; it
takes over, with a warning, where a forward pass meets a limit of the fast one. The numbers do not depend on the way.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.axes import Reference, check_reference
from icl_kernel_lens.errors import ModelError, PromptError
from icl_kernel_lens.models.adapter import Edits, InterceptableAdapter, ModelAdapter, attention_layers
from icl_kernel_lens.models.attention_passes import (
    AttentionUnderWay,
    Handle,
    Prefix,
    Watched,
    attention_pass,
)
from icl_kernel_lens.models.stand_in import CannotIntercept
from icl_kernel_lens.models.verify import seen_once, why_not_finite
from icl_kernel_lens.prompts.promptset import PromptSet

Look = Callable[[int, Float[Tensor, "batch head key"]], None]
"""(layer, rows in float32 where the layer lives)."""


def next_token_logits(
    adapter: ModelAdapter,
    tokens: Int[Tensor, "batch pos"],
    lengths: Int[Tensor, " batch"],
    positions: Int[Tensor, "batch read"],
    prefix: Prefix | None = None,
    *,
    fast: bool,
    look: Look | None = None,
    columns: Int[Tensor, " column"] | None = None,
) -> Float[Tensor, "batch read vocab"]:
    """Next-token logits (of all tokens, or of `columns`) of whole prompts; `look` sees each layer's attention from the first position.

    `fast` is what `reads_fast(adapter)` says; a prefix holds the first tokens of every prompt.

    Raises: ModelError: a layer's attention did not run exactly once.
    """
    first = positions[:, 0]
    if fast:

        def handle(attention: AttentionUnderWay) -> Tensor:
            if look is not None:
                look(attention.layer, attention.row(first))
            return attention.attend()

        try:
            return attention_pass(
                adapter,
                tokens[:, prefix.end if prefix else 0 :],
                lengths,
                positions,
                handle,
                prefix=prefix,
                columns=columns,
            )
        except CannotIntercept as error:
            warnings.warn(
                f"{adapter.name} is read through hook_pattern, which is slower, because {error.message}.",
                stacklevel=4,
            )

    def see(layer: int, pattern: Float[Tensor, "batch head query key"]) -> None:
        if look is not None:
            look(layer, pattern[torch.arange(len(first)), :, first.to(pattern.device)].detach().float())

    layers = attention_layers(adapter) if look is not None else []
    with seen_once(adapter, {(layer, "hook_pattern"): partial(see, layer) for layer in layers}):
        logits = adapter.forward(tokens, lengths, positions)
    return logits if columns is None else logits[..., columns.to(logits.device)]


def answer_logits(
    adapter: ModelAdapter,
    batch: PromptSet,
    prefix: Prefix | None = None,
    *,
    fast: bool,
    look: Look | None = None,
    columns: Int[Tensor, " column"] | None = None,
) -> Float[Tensor, "prompt vocab"]:
    """Logits (of all tokens, or of `columns`) at the answer positions; `look` sees each layer's attention from there."""
    tokens, at = batch.tokens[:, : int(batch.lengths.max())], batch.answer_pos[:, None]
    logits = next_token_logits(
        adapter, tokens, batch.lengths, at, prefix, fast=fast, look=look, columns=columns
    )
    return logits[:, 0]


def intervened_logits(
    adapter: ModelAdapter,
    batch: PromptSet,
    handle: Handle,
    prefix: Prefix | None = None,
    *,
    watched: Watched | None = None,
    gradients: bool = False,
) -> Float[Tensor, "prompt vocab"]:
    """Logits at the answer positions, every layer's z given by `handle`.

    Raises: CannotIntercept: a layer cannot be taken over exactly.
    """
    tokens = batch.tokens[:, prefix.end if prefix else 0 : int(batch.lengths.max())]
    at = batch.answer_pos[:, None]
    return attention_pass(
        adapter, tokens, batch.lengths, at, handle, prefix=prefix, watched=watched, gradients=gradients
    )[:, 0]


def plain_logits(
    adapter: InterceptableAdapter,
    tokens: Int[Tensor, "batch pos"],
    lengths: Int[Tensor, " batch"],
    positions: Int[Tensor, "batch read"],
    edits: Edits,
) -> Float[Tensor, "batch read vocab"]:
    """Logits of the model's own forward pass, with activations seen or edited and attention left alone."""
    with adapter.editing(edits):
        return adapter.forward(tokens, lengths, positions)


def sequence_scores(
    adapter: ModelAdapter, batch: PromptSet, prefix: Prefix | None = None, *, fast: bool = False
) -> Float[Tensor, "prompt label"]:
    """log P(label | prompt) = Σ_k log P(piece_k | prompt, pieces before), each label fed as it stands."""
    scores = torch.zeros(len(batch), batch.labels)
    for label in range(batch.labels):
        pieces, lengths = batch.label_sequences[:, label], batch.label_lengths[:, label]
        most = int(lengths.max())
        steps = torch.arange(most)
        width, longest = int(batch.lengths.max()), int((batch.lengths + lengths).max()) - 1
        tokens = torch.nn.functional.pad(batch.tokens[:, :width], (0, most - 1))
        where = batch.answer_pos[:, None] + 1 + steps[:-1]
        tokens = tokens.scatter(1, where, pieces[:, : most - 1])[:, :longest]
        positions = torch.minimum(
            batch.answer_pos[:, None] + steps, batch.answer_pos[:, None] + lengths[:, None] - 1
        )
        logits = next_token_logits(
            adapter, tokens, batch.lengths + lengths - 1, positions, prefix, fast=fast
        ).cpu()
        check_finite(logits, torch.arange(len(batch)), adapter)
        logprob = logits.log_softmax(-1).gather(2, pieces[:, :most, None]).squeeze(-1)
        scores[:, label] = (logprob * (steps < lengths[:, None])).sum(1)
    return scores


def check_finite(logits: Tensor, numbers: Int[Tensor, " prompt"], adapter: ModelAdapter) -> None:
    """Refuses logits with infinities or NaN."""
    bad = ~torch.isfinite(logits).flatten(1).all(1)
    if bad.any():
        raise ModelError(
            f"logits must be finite; {adapter.name} gave infinite or undefined ones for {int(bad.sum())} of "
            f"{len(numbers)} prompts (the first is prompt {int(numbers[bad][0])}). {why_not_finite(adapter)}",
            code="not-finite",
        )


def check_first_token(prompts: PromptSet, against: Reference, name: str, argument: str = "against") -> None:
    """Refuses prompts whose answer is not measured on one position's logits, or that lack the labels asked for.

    Raises: PromptError: and `name` says who needs it.
    """
    check_reference(against)
    if prompts.score_on == "sequence":
        raise PromptError(
            f"{name} is measured on the first token of each label; these prompts are scored on whole labels. Draw them "
            'with score_on="first_token" and label words that differ in it.',
            code="whole-labels",
        )
    if against == "truth" and prompts.test_labels is None:
        raise PromptError(
            f'{name} with {argument}="truth" needs true labels; these prompts have none. Pass test_labels to '
            f'PromptSet.from_tokens, or {argument}="model".',
            code="no-truth",
        )


def check_differentiable(adapter: ModelAdapter) -> None:
    """Refuses a model that autograd cannot run backward.

    Raises: ModelError: its weights were made under torch.inference_mode.
    """
    if any(p.is_inference() for p in getattr(adapter.model, "parameters", list)()):
        raise ModelError(
            f"gradients need ordinary weights; those of {adapter.name} were made under torch.inference_mode. Load it "
            "outside.",
            code="gradient",
        )
