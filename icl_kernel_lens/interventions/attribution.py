"""Estimates the effect of patching to first order, for all cells of a prompt together (Nanda 2023; Syed et al. 2023).

    m(base) + ⟨a(source) − a(base), ∂m/∂a at base⟩

from two forward passes and one backward; for an attention edge a is its part of z, and one more pass reads the changed
run's own weights and values. Does not show: sizes, where the model is far from linear between the two runs; exact
effects of a random sample of cells, and of those with the largest estimates, stand beside every result.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from icl_kernel_lens.errors import ModelError
from icl_kernel_lens.interventions.activations import HEAD_AXIS, Patch, edited
from icl_kernel_lens.interventions.engine import Runs, run
from icl_kernel_lens.interventions.verify import check_primitive
from icl_kernel_lens.models.adapter import InterceptableAdapter
from icl_kernel_lens.models.attention_passes import Prefix
from icl_kernel_lens.numbers.logits import logit_difference
from icl_kernel_lens.results.patch_effects import Comparison, PatchEffects
from icl_kernel_lens.run.forward import check_finite
from icl_kernel_lens.run.runner import run_prompts
from icl_kernel_lens.run.variants import Seen, look_at, run_variants

SAMPLE, LARGEST = 24, 8
"""Cells whose exact effect is computed beside first-order estimates: drawn at random; with the largest estimates."""


def attributed(
    adapter: InterceptableAdapter, patch: Patch, seed: int, checkpoint: str | Path | None, *, progress: bool
) -> PatchEffects:
    """First-order estimates of every cell, and exact effects of some.

    Raises: ModelError: the model's weights take no gradients.
    """
    check_primitive(adapter, patch.primitive)
    if any(p.is_inference() for p in getattr(adapter.model, "parameters", list)()):
        raise ModelError(
            f"gradients need ordinary weights; those of {adapter.name} were made under torch.inference_mode. Load it "
            'outside, or use method="exact".',
            code="gradient",
        )
    runs = Runs(adapter, patch)

    def step(numbers: list[int], shared: Prefix | None) -> dict[str, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            found = [_estimates(runs, patch, number, shared) for number in numbers]
        return {name: torch.stack([f[name] for f in found]) for name in found[0]}

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
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(count, generator=generator)[:SAMPLE].sort().values
    most = estimates.mean(0).abs().topk(min(LARGEST, count)).indices
    some = replace(patch, cells=patch.cells[torch.cat([drawn, most]).unique()])
    exact = run(adapter, some, checkpoint=folder and folder / "exact", progress=progress)

    def compared(which: Tensor) -> Comparison:
        cells = patch.cells[which]
        effects = exact.effect()[(slice(None), *cells.unbind(1))]
        return Comparison(tuple(map(tuple, cells.tolist())), estimates[:, which], effects)

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
    prefix, seen = runs.base([number], shared), runs.source(number, shared)
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
    for found in (logits.detach(), seen.logits):
        check_finite(found[None].cpu(), torch.tensor([number]), adapter)
    words = patch.clean.label_tokens[number].to(logits.device)
    reference = torch.tensor(patch.reference(number, logits.detach(), seen))
    metric = logit_difference(logits[words], reference.to(logits.device))
    gradients = torch.autograd.grad(metric, list(zeros.values()), allow_unused=True)
    if edge:
        moved = _moved(patch, look_at(adapter, tokens, at, positions, ["value"], prefix), seen, positions)
    else:
        moved = seen.vectors[patch.activation]
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
