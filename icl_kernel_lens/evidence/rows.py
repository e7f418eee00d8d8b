"""Reduces the answer rows of every layer to one weight per demonstration, and assembles these to `Evidence`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from icl_kernel_lens.axes import SPAN_POOLINGS, Pooling, check_pooling
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.models.adapter import ModelAdapter
from icl_kernel_lens.models.verify import verify_model
from icl_kernel_lens.prompts.label_edges import check_offsets, label_keys
from icl_kernel_lens.prompts.promptset import SHOWN, PromptSet, TokenRole
from icl_kernel_lens.results.evidence import Evidence
from icl_kernel_lens.results.run_info import RunInfo
from icl_kernel_lens.run.checkpoint import SUM

POINTS = 30
"""Points a text span is resampled to (Han et al. 2025, section 5.1)."""


@dataclass(frozen=True)
class RowPlan:
    """Where to look in the answer rows of one batch, worked out once for all layers."""

    label_pos: Int[Tensor, "batch demo"]
    label_owner: Int[Tensor, "batch pos"]
    span_owner: Int[Tensor, "batch pos"]
    """The demonstration each position counts for, or the number of demonstrations for none."""
    edges: Bool[Tensor, "batch demo pos"]
    """The positions at the offsets asked for; one may be beside two labels, and counts for both."""
    left: Int[Tensor, "batch point"]
    right: Int[Tensor, "batch point"]
    share: Float[Tensor, "batch point"]
    """The averaged row's points lie between two positions: left·(1 − share) + right·share."""

    @classmethod
    def of(
        cls, prompts: PromptSet, width: int, *, offsets: tuple[int, ...], template_tokens: bool
    ) -> RowPlan:
        owner = _owners(prompts.demo_spans, width)
        if not template_tokens:
            owner = owner.masked_fill(prompts.roles[:, :width] == TokenRole.TEMPLATE, prompts.demos)
        left, right, share = _resampling(prompts)
        labels, edges = _owners(prompts.label_spans, width), _edges(prompts, width, offsets)
        return cls(prompts.label_pos, labels, owner, edges, left, right, share)

    def to(self, device: torch.device) -> RowPlan:
        return RowPlan(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def _owners(spans: Int[Tensor, "batch demo 2"], width: int) -> Int[Tensor, "batch pos"]:
    """For each position the number of the span that holds it; the count of spans where none does."""
    pos = torch.arange(width)
    inside = (pos >= spans[..., :1]) & (pos < spans[..., 1:])
    number = torch.arange(spans.shape[1])[:, None]
    return (
        torch.where(inside, number, spans.shape[1]).amin(1)
        if spans.shape[1]
        else torch.zeros(len(spans), width, dtype=torch.long)
    )


def _edges(prompts: PromptSet, width: int, offsets: Sequence[int]) -> Bool[Tensor, "batch demo pos"]:
    """The positions at some offsets from each demonstration's label."""
    found = torch.zeros(len(prompts), prompts.demos, width, dtype=torch.bool)
    for number in range(len(prompts)) if offsets else ():
        there = label_keys(prompts, number, offsets).any(0)
        found[number, :, : there.shape[1]] = there
    return found


def _resampling(prompts: PromptSet) -> tuple[Tensor, Tensor, Tensor]:
    """Fractional positions: 30 over each text, its label, …, then 30 over the test input."""
    grid = torch.linspace(0, 1, POINTS, dtype=torch.float64)
    parts: list[Tensor] = []
    for i in range(prompts.demos):
        start, label = prompts.demo_spans[:, i, 0], prompts.label_spans[:, i, 0]
        last = torch.maximum(label - 1, start)  # a demonstration that is nothing but its label
        parts += [start[:, None] + grid * (last - start)[:, None], label[:, None].double()]
    start = prompts.demo_spans[:, -1, 1] if prompts.demos else torch.zeros_like(prompts.answer_pos)
    parts.append(start[:, None] + grid * (prompts.answer_pos - start)[:, None])
    where = torch.cat(parts, 1)
    left = where.floor().long()
    right = torch.minimum(left + 1, prompts.answer_pos[:, None])
    return left, right, (where - left).float()


def pool(
    rows: Float[Tensor, "batch head pos"],
    plan: RowPlan,
    pooling: Pooling,
) -> Float[Tensor, "batch head demo"]:
    """One weight per demonstration; see `axes.Pooling` for what each pooling is.

    NaN for a demonstration none of whose tokens count; 0 where it has no token at the offsets of `edges`.
    """
    demos = plan.label_pos.shape[1]
    if pooling == "label":
        return rows.gather(2, plan.label_pos[:, None].expand(-1, rows.shape[1], -1))
    if pooling == "edges":
        return torch.einsum("bhp,bdp->bhd", rows, plan.edges.to(rows))
    owner = plan.label_owner if pooling == "label_sum" else plan.span_owner
    if pooling.endswith("_without_first"):
        owner = owner.clone()
        owner[:, 0] = demos
    how = {"span_mean": "mean", "span_max": "amax"}.get(pooling.removesuffix("_without_first"), "sum")
    # What no token counts for stays as it is here.
    none = rows.new_full((*rows.shape[:2], demos + 1), float("nan"))
    return none.scatter_reduce(2, owner[:, None].expand_as(rows), rows, how, include_self=False)[..., :demos]


def resample(rows: Float[Tensor, "batch head pos"], plan: RowPlan) -> Float[Tensor, "batch head point"]:
    """The row on a grid that all prompts share: 30 points a text, one a label, 30 for the test input."""
    left, right = (
        rows.gather(2, at[:, None].expand(-1, rows.shape[1], -1)) for at in (plan.left, plan.right)
    )
    return left + (right - left) * plan.share[:, None]


def poolings(prompts: PromptSet, keep: tuple[Pooling, ...], offsets: Sequence[int]) -> tuple[Pooling, ...]:
    """The poolings asked for, each over a span together with its twin without position 0.

    Raises: PromptError: an offset holds no token. ResultError: `edges` without offsets.
    """
    if offsets:
        check_offsets(prompts, offsets)
        keep = (*keep, "edges")
    elif "edges" in keep:
        raise ResultError(
            'the pooling "edges" sums over the tokens at some offsets from the labels; none were given. Give them, such as '
            "offsets=(0, 1).",
            code="offset",
        )
    found: list[Pooling] = []
    for pooling in keep:
        check_pooling(pooling)
        found.append(pooling)
        if pooling in SPAN_POOLINGS:
            found.append(f"{pooling}_without_first")  # pyright: ignore[reportArgumentType]
    return tuple(dict.fromkeys(found))


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
        offsets: tuple[int, ...],
        template_tokens: bool,
    ) -> None:
        self.adapter, self.batch, self.names, self.shown_shape = adapter, batch, names, shown
        self.shown = {at: number for at, number in enumerate(numbers) if number < SHOWN}
        self.plan = RowPlan.of(
            batch, int(batch.lengths.max()), offsets=offsets, template_tokens=template_tokens
        )
        self.plans = {torch.device("cpu"): self.plan}
        self.layers: dict[int, dict[str, Tensor]] = {}

    def add(self, layer: int, rows: Float[Tensor, "batch head pos"]) -> None:
        """Takes in one layer's answer rows."""
        if rows.device not in self.plans:
            self.plans[rows.device] = self.plan.to(rows.device)
        plan = self.plans[rows.device]
        reduced = {f"weights.{name}": pool(rows, plan, name) for name in self.names}
        reduced |= {"sink": rows[..., 0], "profile": resample(rows, plan).sum(0)}
        self.layers[layer] = reduced | ({"rows": rows[list(self.shown)].clone()} if self.shown else {})

    def results(self) -> dict[str, Tensor]:
        """Weights and sinks (prompt, layer, …), NaN where a layer was not seen; sums over the batch.

        Of the prompts shown, whole rows in their places among these; 0 beyond a prompt's length.
        """
        seen = {layer: {k: v.cpu() for k, v in parts.items()} for layer, parts in self.layers.items()}
        some = next(iter(seen.values()))

        def stacked(name: str, axis: int = 1) -> Tensor:
            absent = {name: torch.full_like(some[name], float("nan"))}
            return torch.stack([seen.get(n, absent)[name] for n in range(self.adapter.shape.layers)], axis)

        found = {name: stacked(name) for name in some if name not in ("profile", "rows")}
        found[f"{SUM}profile"] = stacked("profile", 0).double()
        if self.shown:
            whole = torch.zeros(self.shown_shape)
            for row, (at, number) in zip(stacked("rows"), self.shown.items(), strict=True):
                end = int(self.batch.lengths[at])
                whole[number, ..., :end] = row[..., :end]
            found[f"{SUM}rows"] = whole
        return found


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
    reading: str,
    *,
    offsets: tuple[int, ...],
    template_tokens: bool,
) -> Evidence:
    """The `Evidence` of these prompts from the results of their steps."""
    return Evidence(
        prompts=prompts,
        weights={name: results[f"weights.{name}"] for name in names},
        offsets=offsets,
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
