"""Reduces the answer rows of every layer to demonstration weights, and assembles these to `Evidence`."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from icl_kernel_lens.axes import Pooling
from icl_kernel_lens.evidence.pooling import POINTS, RowPlan, pool, resample
from icl_kernel_lens.models.adapter import ModelAdapter
from icl_kernel_lens.models.verify import verify_model
from icl_kernel_lens.prompts.promptset import SHOWN, PromptSet
from icl_kernel_lens.results.evidence import Evidence
from icl_kernel_lens.results.run_info import RunInfo
from icl_kernel_lens.run.checkpoint import SUM


class AnswerRows:
    """One batch's answer rows, reduced layer by layer; they stay where they live until the batch is done."""

    def __init__(
        self,
        adapter: ModelAdapter,
        batch: PromptSet,
        numbers: list[int],
        names: tuple[Pooling, ...],
        shown: tuple[int, ...],
        *,
        template_tokens: bool,
    ) -> None:
        self.adapter, self.batch, self.numbers, self.names = adapter, batch, numbers, names
        self.shown_shape = shown
        self.plan = RowPlan.of(batch, int(batch.lengths.max()), template_tokens=template_tokens)
        self.plans = {torch.device("cpu"): self.plan}
        self.layers: dict[int, dict[str, Tensor]] = {}

    def add(self, layer: int, rows: Float[Tensor, "batch head pos"]) -> None:
        """Takes in one layer's answer rows."""
        if rows.device not in self.plans:
            self.plans[rows.device] = self.plan.to(rows.device)
        plan = self.plans[rows.device]
        reduced = {f"weights.{name}": pool(rows, plan, name) for name in self.names}
        reduced |= {"sink": rows[..., 0], "profile": resample(rows, plan).sum(0)}
        shown = [at for at, number in enumerate(self.numbers) if number < SHOWN]
        self.layers[layer] = reduced | ({"rows": rows[shown].clone()} if shown else {})

    def results(self) -> dict[str, Tensor]:
        """Weights and sinks (prompt, layer, …), NaN where a layer was not seen; sums over the batch."""
        seen = {layer: {k: v.cpu() for k, v in parts.items()} for layer, parts in self.layers.items()}
        some = next(iter(seen.values()))
        layers = range(self.adapter.shape.layers)

        def stacked(name: str) -> Tensor:
            absent = torch.full_like(some[name], float("nan"))
            return torch.stack([seen[layer][name] if layer in seen else absent for layer in layers], 1)

        found = {name: stacked(name) for name in some if name not in ("profile", "rows")}
        profile = torch.full((len(layers), *some["profile"].shape), float("nan"), dtype=torch.float64)
        for layer, parts in seen.items():
            profile[layer] = parts["profile"].double()
        found[f"{SUM}profile"] = profile
        if "rows" in some:
            found[f"{SUM}rows"] = self._shown(stacked("rows"))
        return found

    def _shown(self, rows: Float[Tensor, "some layer head pos"]) -> Float[Tensor, "shown layer head whole"]:
        """Whole rows in their places among the shown prompts; 0 beyond a prompt's length."""
        shown = [at for at, number in enumerate(self.numbers) if number < SHOWN]
        whole = torch.zeros(self.shown_shape)
        for row, at in zip(rows, shown, strict=True):
            end = int(self.batch.lengths[at])
            whole[self.numbers[at], ..., :end] = row[..., :end]
        return whole


def sums(adapter: ModelAdapter, prompts: PromptSet) -> dict[str, Tensor]:
    """Zeros for what is added up over prompts."""
    points = prompts.demos * (POINTS + 1) + POINTS
    return {
        "profile": torch.zeros(adapter.shape.layers, adapter.shape.heads, points, dtype=torch.float64),
        "rows": torch.zeros(shown_shape(adapter, prompts)),
    }


def shown_shape(adapter: ModelAdapter, prompts: PromptSet) -> tuple[int, ...]:
    """The shape of the whole rows that are kept of the first prompts."""
    shown = min(SHOWN, len(prompts))
    return shown, adapter.shape.layers, adapter.shape.heads, int(prompts.lengths[:shown].max())


def evidence_of(
    adapter: ModelAdapter,
    prompts: PromptSet,
    names: tuple[Pooling, ...],
    results: dict[str, Tensor],
    template_tokens: bool,
    reading: str,
) -> Evidence:
    """The `Evidence` of these prompts from the results of their steps."""
    return Evidence(
        prompts=prompts,
        weights={name: results[f"weights.{name}"] for name in names},
        sink=results["sink"],
        label_scores=results["label_scores"],
        model_tokens=results["model_tokens"],
        profile=(results[f"{SUM}profile"] / len(prompts)).float(),
        rows=results[f"{SUM}rows"],
        missing=dict(verify_model(adapter).missing),
        run=RunInfo.of(
            adapter, prompts.info, prompts.score_on, template_tokens=template_tokens, reading=reading
        ),
    )
