"""Takes what heads bring from labels out of the answer, in several ways and under every relabelling of the demonstrations.

Π are the cyclic shifts of the classes, the own labels among them. In the answer's row of a head, with A the weights, v the
values, and S the tokens of the label edges, in the run of each relabelling:

    zeroed         z' = z − Σ_{s∈S} A(s) v_s
    renormalised   A' = softmax of the scores without S
    mean_replaced  z' = z + Σ_{s∈S} A(s) (m − v_s)          m: the mean of v over S and Π
    transport      z' = z + Σ_{s∈S} A(s) (v̄_s − v_s)        v̄_s: the mean of v_s over Π

so that transport leaves the weights as they are and takes away what the values say of the labels, and that alone. What is left
of the label part is t' = s'(own labels) − mean over Π of s', with everything above recomputed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.interventions.coverage import Relabelled
from icl_kernel_lens.interventions.engine import Intervention, PerVariant, run_cells
from icl_kernel_lens.models.adapter import InterceptableAdapter, attention_layers
from icl_kernel_lens.models.attention_passes import Prefix
from icl_kernel_lens.numbers.rows import cut
from icl_kernel_lens.prompts.label_edges import label_keys
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.results.run_info import RunInfo
from icl_kernel_lens.run.memory import in_batches
from icl_kernel_lens.run.runner import cost_of_pass
from icl_kernel_lens.run.variants import Changes, Row, RowChange, Seen, kept_at, run_on

Way = Literal["zeroed", "renormalised", "mean_replaced", "transport"]
"""How a head's label edges are taken out; equations at the head of this module."""
WAYS: tuple[Way, ...] = get_args(Way)


class Routes(NamedTuple):
    """Label scores with the label edges of sets of heads taken out, under every relabelling; the own labels come first."""

    scores: Float[Tensor, "relabelling prompt set way label"]
    uncut: Float[Tensor, "relabelling prompt label"]
    run: RunInfo

    @property
    def part(self) -> Float[Tensor, "prompt label"]:
        """t, with nothing taken out."""
        return self.uncut[0] - self.uncut.mean(0)

    @property
    def left(self) -> Float[Tensor, "prompt set way label"]:
        """t' of every set and way."""
        return self.scores[0] - self.scores.mean(0)


def take_out(
    runs: Relabelled,
    sets: Sequence[Sequence[HeadRef]],
    ways: Sequence[Way] = WAYS,
    *,
    checkpoint: Path | None,
) -> Routes:
    """Run every relabelling of the prompts with the label edges of each set of heads taken out in each way.

    Cost: per prompt and relabelling one pass (behind shared demonstrations, of its own tokens) and a token a set and way.

    Raises: PromptError: label words have unequal token counts, so that edges differ between relabellings.
            ModelError: attention cannot be changed exactly.
    """
    _check_even(runs.prompts[0])
    values = Values(runs.adapter, runs.prompts, runs.offsets)
    found = [
        run_cells(
            runs.adapter,
            WithoutEdges.of(values, by, sets, ways),
            batch_size=runs.batch_size,
            checkpoint=checkpoint and checkpoint / f"shifted by {by}",
            progress=runs.progress,
        )
        for by in range(len(runs.prompts))
    ]
    scores = torch.stack([one.numbers["label_scores"].unflatten(1, (len(sets), len(ways))) for one in found])
    uncut = torch.stack([one.numbers["base_label_scores"] for one in found])
    info = replace(found[0].run, prompts=runs.prompts[0].info)
    return Routes(scores, uncut, info)


def _check_even(prompts: PromptSet) -> None:
    """Refuse label words of unequal token counts.

    Raises: PromptError: the first prompt that has them.
    """
    if (uneven := (prompts.label_lengths != prompts.label_lengths[:, :1]).any(1)).any():
        prompt = int(uneven.nonzero()[0])
        words, lengths = prompts.label_words[prompt], prompts.label_lengths[prompt].tolist()
        counted = ", ".join(f"{word!r} ({length})" for word, length in zip(words, lengths, strict=True))
        raise PromptError(
            "label edges are taken out in every relabelling alike only where label words have equally many tokens; prompt "
            f"{prompt} has {counted} (token counts). Choose label words of equally many tokens in label_words.",
            code="label-lengths",
        )


class Values:
    """The values at label edges under every relabelling, of each beginning that prompts share run once."""

    def __init__(
        self, adapter: InterceptableAdapter, every: Sequence[PromptSet], offsets: Sequence[int]
    ) -> None:
        self.adapter, self.every, self.offsets = adapter, every, tuple(offsets)
        self._kept: dict[tuple[bytes, ...], Float[Tensor, "relabelling layer kv_head edge d_value"]] = {}

    def positions(self, by: int, number: int) -> Int[Tensor, " edge"]:
        """Where the label edges of a prompt are under a relabelling, in order."""
        return label_keys(self.every[by], number, self.offsets).any((0, 1)).nonzero()[:, 0]

    def of(self, number: int) -> Float[Tensor, "relabelling layer kv_head edge d_value"]:
        """The values at a prompt's label edges under every relabelling."""
        where = [self.positions(by, number) for by in range(len(self.every))]
        tokens = [one.tokens[number, : int(at[-1]) + 1] for one, at in zip(self.every, where, strict=True)]
        begun = tuple(t.numpy().tobytes() + at.numpy().tobytes() for t, at in zip(tokens, where, strict=True))
        if begun not in self._kept:
            rows = list(zip(tokens, where, strict=True))
            self._kept[begun] = torch.cat(list(in_batches(self.adapter, rows, len(tokens[0]), 0, self._run)))
        return self._kept[begun]

    def _run(
        self, rows: Sequence[tuple[Int[Tensor, " pos"], Int[Tensor, " edge"]]]
    ) -> Float[Tensor, "relabelling layer kv_head edge d_value"]:
        tokens, where = map(torch.stack, zip(*rows, strict=True))
        return kept_at(run_on(self.adapter, tokens), where)[1]


@dataclass(frozen=True, kw_only=True)
class WithoutEdges(Intervention):
    """Label edges of sets of heads taken out, in one relabelling."""

    values: Values
    by: int
    """Which relabelling."""
    ways: tuple[Way, ...]
    masks: Bool[Tensor, "set layer head"]

    @classmethod
    def of(
        cls, values: Values, by: int, sets: Sequence[Sequence[HeadRef]], ways: Sequence[Way]
    ) -> WithoutEdges:
        """Every set and way is a cell."""
        shape, prompts = values.adapter.shape, values.every[by]
        masks = torch.zeros(len(sets), shape.layers, shape.heads, dtype=torch.bool)
        for at, members in enumerate(sets):
            masks[at, [h.layer for h in members], [h.head for h in members]] = True
        places: Mapping[str, tuple[str | int, ...]] = {
            "set": tuple(" ".join(map(str, members)) for members in sets),
            "way": tuple(ways),
        }
        return cls(
            name="label routes",
            title="label edges taken out",
            primitive="attention_rows",
            prompts=prompts,
            clean=prompts,
            against="model",
            places=places,
            cells=torch.cartesian_prod(torch.arange(len(sets)), torch.arange(len(ways))).reshape(-1, 2),
            settings={
                "offsets": str(values.offsets),
                "relabelled": f"{by} of {len(values.every)}",
                "own": values.every[0].digest(),
            },
            values=values,
            by=by,
            ways=tuple(ways),
            masks=masks,
            # Of a prompt alone, each variant is run from the layer that it changes on; that saves less than a pass does.
            together=len(sets) * len(ways) < cost_of_pass(values.adapter),
        )

    def changes(
        self, numbers: list[int], seen: Seen | None, prefix: Prefix | None
    ) -> Callable[[PerVariant, PerVariant], Changes]:
        adapter, count = self.values.adapter, len(numbers)
        positions = [self.values.positions(self.by, number) for number in numbers]
        keys = torch.zeros(count, int(self.prompts.answer_pos[numbers[0]]) + 1, dtype=torch.bool)
        moved: list[dict[Way, Tensor]] = []
        for at, number in enumerate(numbers):
            keys[at, positions[at]] = True
            every = self.values.of(number)
            own = every[self.by]
            mean = every.mean((0, 3))[:, :, None]
            moved.append({"mean_replaced": mean - own, "transport": every.mean(0) - own})
        layer_at = {layer: at for at, layer in enumerate(attention_layers(adapter))}

        def of(cells: PerVariant, _kinds: PerVariant) -> Changes:
            masks = self.masks[self.column("set", cells)] & (cells >= 0)[:, None, None]
            answer = self.prompts.answer_pos[numbers].repeat_interleave(len(cells) // count)[:, None]
            way = self.column("way", cells)

            def taken(row: Row, name: Way) -> Bool[Tensor, " row"]:
                at = self.ways.index(name) if name in self.ways else -2
                return way.to(row.weights.device)[row.variants] == at

            def change(row: Row) -> Float[Tensor, "row key"]:
                new = row.weights.clone()
                for name in ("zeroed", "renormalised"):
                    mine = taken(row, name)
                    here = keys.to(row.weights.device)[row.prompts[mine]]
                    new[mine] = cut(
                        row.weights[mine], row.scores[mine], here, renormalise=name == "renormalised"
                    )
                return new

            def added(row: Row) -> Float[Tensor, "row d_value"]:
                weights, layer = row.weights, layer_at[row.layer]
                width, kv_heads = (moved[0]["transport"].shape[at] for at in (-1, 1))
                group = adapter.shape.heads // kv_heads
                found = torch.zeros(len(weights), width, device=weights.device)
                for prompt, name in product(range(count), moved[0]):
                    mine = taken(row, name) & (row.prompts == prompt)
                    if mine.any():
                        at = positions[prompt].to(weights.device)
                        there = moved[prompt][name][layer].to(weights)[row.heads[mine] // group]
                        found[mine] = (weights[mine][:, at, None] * there).sum(1)
                return found

            return Changes(rows=RowChange(masks, answer, change, added))

        return of
