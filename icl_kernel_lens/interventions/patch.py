"""Patches activations at label positions: what one run's activation does in another run.

Two runs of prompts that agree in every position: one is changed, the other gives activations, at the labels or at the
answer:

    residual                        what a block reads
    attention_output, mlp_output    what its attention and its MLP add to the residual stream
    head_output                     one head's z
    query, key, value               one head's vectors, the last two of a key-value head
    attention_edge                  what one head reads at the answer position from the labels:

        z' = z − Σ_p A_p v_p + Σ_p A*_p v*_p        p over label position + offset, * from the source run
        factor="weights": A*_p v_p;  factor="values": A_p v*_p

An exact effect is one changed forward pass a cell (`engine.py`). A first-order one (Nanda 2023; Syed et al. 2023)

    m(base) + ⟨a(source) − a(base), ∂m/∂a at base⟩

takes two forward passes and one backward for all cells of a prompt together; for an attention edge a is its part of z,
and one more pass reads the changed run's own weights and values. Does not show: sizes, where the model is far from linear
between the two runs; exact effects of a random sample of cells, and of those with the largest estimates, stand beside
every estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.axes import Reference
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.interventions.engine import EffectPath, Intervention, PerVariant, Runs, run
from icl_kernel_lens.interventions.validate import (
    HeadList,
    check_alike,
    check_heads,
    check_intervened,
    check_word,
    label_positions,
)
from icl_kernel_lens.interventions.verify import check_primitive
from icl_kernel_lens.models.adapter import InterceptableAdapter, attention_layers
from icl_kernel_lens.models.attention_passes import Prefix
from icl_kernel_lens.numbers.draws import generator
from icl_kernel_lens.numbers.logits import logit_difference
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.results.patch_effects import Estimates, PatchEffects, Places
from icl_kernel_lens.run.forward import check_differentiable
from icl_kernel_lens.run.runner import run_prompts
from icl_kernel_lens.run.variants import (
    STREAMS,
    Changes,
    Edit,
    Row,
    RowChange,
    Seen,
    editable,
    look_at,
    run_variants,
)

Activation = Literal[
    "residual",
    "attention_output",
    "mlp_output",
    "head_output",
    "query",
    "key",
    "value",
    "attention_edge",
]
Factor = Literal["both", "weights", "values"]
"""Which factor of an attention edge comes from the other run."""
HEAD_AXIS: dict[str, Literal["head", "kv_head"]] = {
    **dict.fromkeys(("head_output", "query", "attention_edge"), "head"),
    **dict.fromkeys(("key", "value"), "kv_head"),
}
"""The heads that an activation belongs to; the others belong to a whole layer."""
WORDS = {
    "residual": "the residual stream before a block",
    "attention_output": "what a layer's attention adds",
    "mlp_output": "what a layer's MLP adds",
    "head_output": "a head's output z",
    "query": "a head's query",
    "key": "a key-value head's key",
    "value": "a key-value head's value",
    "attention_edge": "what a head reads at the answer",
}
Direction = Literal["denoise", "noise"]
Method = Literal["exact", "attribution"]
At = Literal["labels", "answer"]
SAMPLE, LARGEST = 24, 8
"""Cells whose exact effect is computed beside first-order estimates: drawn at random; with the largest estimates."""


@checked
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
    `activation` has heads (equations, and what `factor` splits: at the head of this module), and one offset from the
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
    check_intervened(clean, against)
    check_alike(clean, corrupted)
    positions = label_positions(clean, offsets) if at == "labels" else clean.answer_pos[:, None, None]
    places, cells = _cells(adapter, activation, heads, tuple(offsets) if at == "labels" else None)
    runs = {"clean": clean, "corrupted": corrupted}
    source, base = runs if direction == "denoise" else reversed(runs)
    patch = Patch(
        name=f"patch_labels of {activation}",
        title=f"{WORDS[activation]}: {source} in the {base} run"
        + ", layers above frozen" * (path == "direct"),
        primitive=activation,
        prompts=runs[base],
        clean=clean,
        source=runs[source],
        against=against,
        places=places,
        cells=cells,
        settings={
            "activation": activation,
            "direction": direction,
            "at": at,
            "against": against,
            "path": path,
            "method": method,
            "factor": factor,
            "corruption": str(corrupted.info.corruption),
        },
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
        'attention_edge is about what the answer reads from the labels; leave out at="answer".': (
            edge and at == "answer"
        ),
        f"factor splits an attention_edge; {activation} has none. Leave factor out.": (
            not edge and factor != "both"
        ),
        f"{activation} belongs to a whole layer, not to heads. Leave heads out.": (
            heads is not None and activation not in HEAD_AXIS
        ),
        'a direct path starts in attention at the answer position: with activation="attention_edge", or with '
        f'activation="head_output" and at="answer"; got activation={activation!r} and at={at!r}.': (
            direct and not edge and (activation, at) != ("head_output", "answer")
        ),
        "a direct effect is computed exactly; leave out method.": direct and method != "exact",
    }
    for problem, holds in refused.items():
        if holds:
            raise ResultError(problem, code="options-clash")


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


def edited(activation: str, edit: Edit) -> Changes:
    """The change of one activation of a layer: a stream, or a vector of its heads."""
    group = "streams" if activation in STREAMS else "vectors"
    return Changes(**{group: {activation: edit}})  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, kw_only=True)
class Patch(Intervention):
    """Activations of the source run, put into the run that is changed."""

    activation: Activation
    factor: Factor
    positions: Int[Tensor, "prompt offset demo"]
    """Where they stand; what the answer reads there, for an attention edge."""

    def look(
        self, adapter: InterceptableAdapter, source: PromptSet, number: int, prefix: Prefix | None
    ) -> Seen:
        at, positions = int(source.answer_pos[number]), self.positions[number].flatten()
        return look_at(adapter, source.tokens[number], at, positions, [self.looked_at], prefix)

    @property
    def looked_at(self) -> str:
        """The vectors that are needed of a run."""
        return "value" if self.activation == "attention_edge" else self.activation

    def changes(
        self, numbers: list[int], seen: Seen | None, prefix: Prefix | None
    ) -> Callable[[PerVariant, PerVariant], Changes]:
        (number,) = numbers
        assert seen is not None
        positions, vectors = self.positions[number], seen.vectors[self.looked_at]
        demos, start = torch.arange(positions.shape[1]), prefix.end if prefix else 0

        def of(cells: PerVariant, _kinds: PerVariant) -> Changes:
            layers, offsets = self.column("layer", cells), self.column("offset", cells)
            heads = self.column(HEAD_AXIS.get(self.activation, ""), cells)
            places, entries = positions[offsets], offsets[:, None] * len(demos) + demos
            if self.activation == "attention_edge":
                masks = torch.zeros(len(cells), *seen.weights.shape[:2], dtype=torch.bool)
                there = (layers >= 0).nonzero()[:, 0]
                masks[there, layers[there], heads[there]] = True
                answer = self.prompts.answer_pos[number].expand(len(cells), 1)
                return Changes(rows=self._edges(masks, answer, places, entries, seen))

            def edit(layer: int, x: Tensor) -> Tensor:
                which = (layers == layer).nonzero()[:, 0]
                at, entry = places[which].to(x.device) - start, entries[which].to(x.device)
                new, x = vectors[layer].to(x), x.clone()
                if self.activation in STREAMS:
                    x[which.to(x.device)[:, None], at] = new[entry]
                    return x
                # Keys and values are repeated for every query head of their group.
                group = x.shape[1] // len(self.places[HEAD_AXIS[self.activation]])
                mine = (heads[which][:, None] * group + torch.arange(group)).to(x.device)[:, :, None]
                x[which.to(x.device)[:, None, None], mine, at[:, None]] = new[mine, entry[:, None]]
                return x

            return edited(self.activation, edit)

        return of

    def _edges(
        self,
        masks: Tensor,
        answer: Int[Tensor, "variant 1"],
        places: Int[Tensor, "variant demo"],
        entries: Int[Tensor, "variant demo"],
        seen: Seen,
    ) -> RowChange:
        def here(row: Row) -> tuple[Tensor, Tensor]:
            """The positions that each row no longer reads as its own, and the source's weights there."""
            mine = places.to(row.weights.device)[row.variants]
            return mine, seen.weights[row.layer].to(row.weights)[row.heads].gather(1, mine)

        def change(row: Row) -> Float[Tensor, "row key"]:
            mine, theirs = here(row)
            return row.weights.scatter(
                1, mine, theirs if self.factor == "weights" else torch.zeros_like(theirs)
            )

        def added(row: Row) -> Float[Tensor, "row d_head"]:
            mine, theirs = here(row)
            weights = theirs if self.factor == "both" else row.weights.gather(1, mine)
            entry = entries.to(mine.device)[row.variants]
            values = seen.vectors["value"][row.layer].to(row.weights)[row.heads[:, None], entry]
            return einsum(weights, values, "row demo, row demo d -> row d")

        return RowChange(masks, answer, change, None if self.factor == "weights" else added)


def attributed(
    adapter: InterceptableAdapter, patch: Patch, seed: int, checkpoint: str | Path | None, *, progress: bool
) -> PatchEffects:
    """First-order estimates of every cell, and exact effects of some.

    Raises: ModelError: the model's weights take no gradients.
    """
    check_primitive(adapter, patch.primitive)
    check_differentiable(adapter)
    runs = Runs(adapter, patch, others=True)

    def step(numbers: list[int], shared: Prefix | None) -> dict[str, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            found = _estimates(runs, patch, numbers[0], shared)
        return {name: values[None] for name, values in found.items()}

    folder = None if checkpoint is None else Path(checkpoint)
    results, _ = run_prompts(
        patch.prompts,
        adapter,
        step,
        name=f"{patch.name}, to first order",
        settings=patch.identity(),
        checkpoint=folder and folder / "estimates",
        share=patch.alone,
        batch_size=1,
        progress=progress,
    )
    estimates, count = results["estimate"], len(patch.cells)
    order = torch.randperm(count, generator=generator(seed))
    drawn = order[:SAMPLE].sort().values
    most = estimates.mean(0).abs().topk(min(LARGEST, count)).indices
    some = replace(patch, cells=patch.cells[torch.cat([drawn, most]).unique()])
    exact = run(adapter, some, checkpoint=folder and folder / "exact", progress=progress)

    def compared(which: Tensor) -> Estimates:
        cells = patch.cells[which]
        effects = exact.effect()[(slice(None), *cells.unbind(1))]
        return Estimates(tuple(map(tuple, cells.tolist())), estimates[:, which], effects)

    base = logit_difference(results["base_label_scores"], results["reference"])
    return replace(
        exact,
        title=f"{patch.title}, to first order",
        values=patch.placed(base[:, None] + estimates),
        base=base,
        source=logit_difference(results["source_scores"], results["reference"]),
        reference=results["reference"],
        label_scores=None,
        base_label_scores=results["base_label_scores"],
        others={},
        base_others={},
        settings={**exact.settings, "seed": str(seed)},
        sample=compared(drawn),
        largest=compared(most),
    )


def _estimates(runs: Runs, patch: Patch, number: int, shared: Prefix | None) -> dict[str, Tensor]:
    """⟨a(source) − a(base), ∂m/∂a⟩ of every cell of one prompt."""
    adapter, tokens = runs.adapter, patch.prompts.tokens[number]
    at, positions = int(patch.prompts.answer_pos[number]), patch.positions[number].flatten()
    prefix, seen = runs.bases([number], shared)([number]), runs.source(number, shared)
    assert seen is not None
    edge = patch.activation == "attention_edge"
    places = (torch.tensor([at]) if edge else positions) - (prefix.end if prefix else 0)
    zeros: dict[int, Tensor] = {}
    here: dict[int, Tensor] = {}

    def add_zeros(layer: int, x: Tensor) -> Tensor:
        """Zeros added at the positions, whose gradient is the activation's."""
        index = places.to(x.device)
        here[layer] = x[0][..., index, :].detach().float()
        zeros[layer] = torch.zeros_like(x[0][..., index, :], requires_grad=True)
        return x + torch.zeros_like(x[0]).index_add(-2, index, zeros[layer])

    changes = edited("head_output" if edge else patch.activation, add_zeros)
    logits = run_variants(adapter, tokens, at, 1, changes, prefix, gradients=True)[0]
    words = patch.clean.label_tokens[number].to(logits.device)
    reference = torch.tensor(runs.reference(number, logits.detach(), seen))
    metric = logit_difference(logits[words], reference.to(logits.device))
    gradients = torch.autograd.grad(metric, list(zeros.values()), allow_unused=True)
    moved = (
        _moved(patch, look_at(adapter, tokens, at, positions, ["value"], prefix), seen, positions)
        if edge
        else seen.vectors[patch.activation]
    )
    every, axis = torch.arange(len(patch.cells)), HEAD_AXIS.get(patch.activation, "")
    estimates = torch.zeros(adapter.shape.layers, len(patch.places.get(axis, (0,))), len(positions))
    for layer, gradient in zip(zeros, gradients, strict=True):
        if gradient is not None:
            difference = moved[layer].to(gradient.float()) - (0 if edge else here[layer])
            by_position = (difference * gradient).sum(-1)
            # A key-value head's are those of its query heads together.
            estimates[layer] = by_position.reshape(estimates.shape[1], -1, len(positions)).sum(1)
    by_offset = estimates.unflatten(-1, patch.positions.shape[1:]).sum(-1)
    cells = (patch.column(name, every) for name in ("layer", axis, "offset"))
    return {
        "estimate": by_offset[tuple(cells)],
        "base_label_scores": logits.detach()[words].cpu(),
        "source_scores": seen.logits[words].cpu(),
        "reference": reference,
    }


def _moved(patch: Patch, own: Seen, seen: Seen, positions: Tensor) -> Float[Tensor, "layer head at d_head"]:
    """What the edge from each position would change in z."""
    (a, v), (a_source, v_source) = (
        (one.weights[..., positions.to(one.weights.device)].float(), one.vectors["value"].float())
        for one in (own, seen)
    )
    new = {"both": (a_source, v_source), "weights": (a_source, v), "values": (a, v_source)}[patch.factor]
    by_position = "layer head at, layer head at d -> layer head at d"
    return (einsum(*new, by_position) - einsum(a, v, by_position)).detach()
