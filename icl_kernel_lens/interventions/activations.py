"""Puts activations of another run in the place of a run's own, at the labels or at the answer.

residual                        what a block reads
attention_output, mlp_output    what its attention and its MLP add to the residual stream
head_output                     one head's z
query, key, value               one head's vectors, the last two of a key-value head
attention_edge                  what one head reads at the answer position from the labels:

    z' = z − Σ_p A_p v_p + Σ_p A*_p v*_p        p over label position + offset, * from the source run
    factor="weights": A*_p v_p;  factor="values": A_p v*_p
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.interventions.engine import Intervention, PerVariant
from icl_kernel_lens.models.adapter import InterceptableAdapter
from icl_kernel_lens.models.attention_passes import Prefix
from icl_kernel_lens.run.variants import STREAMS, Changes, Edit, Row, RowChange, Seen, look_at

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

    def look(self, adapter: InterceptableAdapter, number: int, prefix: Prefix | None) -> Seen:
        assert self.source is not None
        at, tokens = int(self.source.answer_pos[number]), self.source.tokens[number]
        return look_at(adapter, tokens, at, self.positions[number].flatten(), [self.looked_at], prefix)

    @property
    def looked_at(self) -> str:
        """The vectors that are needed of a run."""
        return "value" if self.activation == "attention_edge" else self.activation

    def changes(
        self, numbers: list[int], seen: Seen | None, start: int
    ) -> Callable[[PerVariant, PerVariant], Changes]:
        (number,) = numbers
        assert seen is not None
        positions, vectors = self.positions[number], seen.vectors[self.looked_at]
        demos = torch.arange(positions.shape[1])

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
