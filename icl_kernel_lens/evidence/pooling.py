"""Reduces one attention row per head to one weight per demonstration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from icl_kernel_lens.axes import SPAN_POOLINGS, Pooling, check_pooling
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.prompts.promptset import PromptSet, TokenRole

POINTS = 30
"""Points a text span is resampled to (Han et al. 2025, section 5.1)."""


@dataclass(frozen=True)
class RowPlan:
    """Where to look in the answer rows of one batch, worked out once for all layers."""

    label_pos: Int[Tensor, "batch demo"]
    label_owner: Int[Tensor, "batch pos"]
    span_owner: Int[Tensor, "batch pos"]
    """The demonstration each position counts for, or the number of demonstrations for none."""
    left: Int[Tensor, "batch point"]
    right: Int[Tensor, "batch point"]
    share: Float[Tensor, "batch point"]
    """The averaged row's points lie between two positions: left·(1 − share) + right·share."""

    @classmethod
    def of(cls, prompts: PromptSet, width: int, *, template_tokens: bool) -> RowPlan:
        roles = prompts.roles[:, :width]
        owner = _owners(prompts.demo_spans, width)
        if not template_tokens:
            owner = owner.masked_fill(roles == TokenRole.TEMPLATE, prompts.demos)
        left, right, share = _resampling(prompts)
        return cls(prompts.label_pos, _owners(prompts.label_spans, width), owner, left, right, share)

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

    NaN for a demonstration none of whose tokens count.
    """
    demos = plan.label_pos.shape[1]
    if pooling == "label":
        return rows.gather(2, plan.label_pos[:, None].expand(-1, rows.shape[1], -1))
    owner = plan.label_owner if pooling == "label_sum" else plan.span_owner
    if pooling.endswith("_without_first"):
        owner = owner.clone()
        owner[:, 0] = demos
    index = owner[:, None].expand_as(rows)
    empty = torch.zeros(*rows.shape[:2], demos + 1, device=rows.device, dtype=rows.dtype)
    kind = pooling.removesuffix("_without_first")
    how = {"label_sum": "sum", "span_sum": "sum", "span_mean": "mean", "span_max": "amax"}[kind]
    pooled = empty.scatter_reduce(2, index, rows, how, include_self=False)[..., :demos]
    return pooled.masked_fill(~_counted(owner, demos)[:, None], float("nan"))


def _counted(owner: Int[Tensor, "batch pos"], demos: int) -> Bool[Tensor, "batch demo"]:
    """Which demonstrations have a token that counts."""
    hits = torch.zeros(len(owner), demos + 1, device=owner.device)
    return hits.scatter_add(1, owner, torch.ones_like(owner, dtype=hits.dtype))[:, :demos] > 0


def resample(rows: Float[Tensor, "batch head pos"], plan: RowPlan) -> Float[Tensor, "batch head point"]:
    """The row on a grid that all prompts share: 30 points a text, one a label, 30 for the test input."""
    heads = rows.shape[1]
    left = rows.gather(2, plan.left[:, None].expand(-1, heads, -1))
    right = rows.gather(2, plan.right[:, None].expand(-1, heads, -1))
    return left + (right - left) * plan.share[:, None]


def with_twins(keep: tuple[Pooling, ...]) -> tuple[Pooling, ...]:
    """The poolings asked for, each over a span together with its twin without position 0."""
    if isinstance(keep, str):
        raise ResultError(
            f'keep is a tuple of poolings; got the text {keep!r}. Write keep=("{keep}",).', code="wrong-type"
        )
    found: list[Pooling] = []
    for pooling in keep:
        check_pooling(pooling)
        found.append(pooling)
        if pooling in SPAN_POOLINGS:
            found.append(f"{pooling}_without_first")  # pyright: ignore[reportArgumentType]
    return tuple(dict.fromkeys(found))
