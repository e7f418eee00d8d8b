"""Patches activations at label positions: what one run's activation does in another run.

Two runs of prompts that agree in every position: one is changed, the other gives activations (`activations.py`). An exact
effect is one changed forward pass a cell (`engine.py`); a first-order one takes three passes for all cells together
(`attribution.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from icl_kernel_lens.axes import Reference
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.interventions.activations import HEAD_AXIS, WORDS, Activation, Factor, Patch
from icl_kernel_lens.interventions.attribution import attributed
from icl_kernel_lens.interventions.engine import EffectPath, run
from icl_kernel_lens.interventions.validate import (
    HeadList,
    check_alike,
    check_heads,
    check_intervened,
    check_word,
    label_positions,
)
from icl_kernel_lens.models.adapter import InterceptableAdapter, attention_layers
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.results.patch_effects import PatchEffects, Places
from icl_kernel_lens.run.variants import editable

Direction = Literal["denoise", "noise"]
Method = Literal["exact", "attribution"]
At = Literal["labels", "answer"]


def patch_labels(
    model: Any,
    *,
    clean: PromptSet,
    corrupted: PromptSet,
    activation: Activation = "attention_edge",
    offsets: Sequence[int] = (-1, 0, 1, 2, 3),
    heads: HeadList | None = None,
    method: Method = "exact",
    path: EffectPath = "total",
    direction: Direction = "denoise",
    factor: Factor = "both",
    at: At = "labels",
    against: Reference = "model",
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> PatchEffects:
    """Measure the answer when an activation at the labels comes from another run, cell by cell.

        denoise   the corrupted run is changed, activations come from the clean one: what suffices
        noise     the clean run is changed, activations come from the corrupted one: what is needed

    `clean` and `corrupted` (see `corrupt`) agree in every position; a cell is one layer, one of its heads where
    `activation` has heads (equations, and what `factor` splits: `interventions/activations.py`), and one offset from the
    first label token, at all labels together. `at="answer"` changes the answer position instead, for every `activation` but
    `attention_edge`, which is what the answer position reads from the labels. `heads` leaves the other heads out.

        path="total"      everything above is recomputed
        path="direct"     of an attention_edge, or a head_output at the answer: all above frozen but the final norm

    The metric is the logit difference of the class that the clean run answers (`against="truth"`: of the true one) on
    the clean label tokens. `method="attribution"` estimates all cells to first order, some beside their exact effects.
    Does not show: that the changed activation is one the model would ever have (patched states are mixtures of two
    runs); nor which later layer carries a total effect, nor what later layers make of a direct one.
    Raises: PromptError: positions differ, an offset leaves the prompt, prompts are scored on whole labels.
            ModelError: this model's attention cannot be changed exactly.
    """
    _check_words(activation, method, path, direction, factor, at, heads)
    adapter = editable(model)
    check_alike(clean, corrupted)
    check_intervened(clean, against)
    positions = label_positions(clean, offsets) if at == "labels" else clean.answer_pos[:, None, None]
    places, cells = _cells(adapter, activation, heads, tuple(offsets) if at == "labels" else None)
    settings = {"activation": activation, "direction": direction, "at": at, "against": against, "path": path}
    settings |= {"method": method, "factor": factor, "corruption": str(corrupted.info.corruption)}
    runs = {"clean": clean, "corrupted": corrupted}
    source, base = runs if direction == "denoise" else reversed(runs)
    title = f"{WORDS[activation]}: {source} in the {base} run"
    patch = Patch(
        name=f"patch_labels of {activation}",
        title=title + ", layers above frozen" * (path == "direct"),
        primitive=activation,
        prompts=runs[base],
        clean=clean,
        source=runs[source],
        against=against,
        places=places,
        cells=cells,
        settings=settings,
        alone=activation == "attention_edge" or at == "answer",
        path=path,
        activation=activation,
        factor=factor,
        positions=positions,
    )
    if method == "attribution":
        return attributed(adapter, patch, seed, checkpoint, progress=progress)
    return run(adapter, patch, checkpoint=checkpoint, progress=progress)


def _check_words(
    activation: Any, method: Any, path: Any, direction: Any, factor: Any, at: Any, heads: HeadList | None
) -> None:
    """Refuse words that mean nothing, or do not go together."""
    for name, value, words in (
        ("activation", activation, Activation),
        ("method", method, Method),
        ("path", path, EffectPath),
        ("direction", direction, Direction),
        ("factor", factor, Factor),
        ("at", at, At),
    ):
        check_word(name, value, words)
    edge, direct = activation == "attention_edge", path == "direct"
    refused = {
        (
            'attention_edge is about what the answer reads from the labels; leave out at="answer".',
            "options-clash",
        ): edge and at == "answer",
        (
            f"factor splits an attention_edge; {activation} has none. Leave factor out.",
            "options-clash",
        ): not edge and factor != "both",
        (f"{activation} belongs to a whole layer, not to heads. Leave heads out.", "options-clash"): heads
        is not None
        and activation not in HEAD_AXIS,
        (
            'a direct path starts in attention at the answer position: with activation="attention_edge", or with '
            f'activation="head_output" and at="answer"; got activation={activation!r} and at={at!r}.',
            "options-clash",
        ): direct and not edge and (activation, at) != ("head_output", "answer"),
        ("a direct effect is computed exactly; leave out method.", "options-clash"): direct
        and method != "exact",
    }
    for (words, code), holds in refused.items():
        if holds:
            raise ResultError(words, code=code)


def _cells(
    adapter: InterceptableAdapter,
    activation: Activation,
    heads: HeadList | None,
    offsets: tuple[int, ...] | None,
) -> tuple[Places, Int[Tensor, "cell axis"]]:
    """The axes of the result, and the cells that are run."""
    shape, there = adapter.shape, attention_layers(adapter)
    places: dict[str, tuple[int, ...]] = {"layer": tuple(range(shape.layers))}
    wanted = None
    if (axis := HEAD_AXIS.get(activation)) is not None:
        places[axis] = tuple(range(shape.heads if axis == "head" else shape.kv_heads))
        if heads is not None:
            group = shape.heads // len(places[axis])
            wanted = {(layer, head // group) for layer, head in check_heads(adapter, heads)}
    if offsets is not None:
        places["offset"] = offsets
    every = product(*(range(len(names)) for names in places.values()))
    chosen = [cell for cell in every if cell[0] in there and (wanted is None or cell[:2] in wanted)]
    return places, torch.tensor(chosen)
