"""Knocking out what a position reads: attention edges cut, beside cuts of other edges that should matter less."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from icl_kernel_lens.axes import Reference
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.interventions.patch import check_intervened
from icl_kernel_lens.interventions.rows import cut, cut_mass
from icl_kernel_lens.interventions.sweep import Heads, HeadSets, Sweep, run_sweep
from icl_kernel_lens.interventions.variants import Row
from icl_kernel_lens.models.lens import InterceptableLens
from icl_kernel_lens.prompts import PromptSet
from icl_kernel_lens.prompts.promptset import Role
from icl_kernel_lens.results.patch_effects import PatchEffects

Edges = Literal["answer_reads_labels", "answer_reads_text", "label_reads_text"]
"""Which query reads which keys: the answer position the demonstrations' labels (all their tokens); the answer position
the demonstrations' texts; each demonstration's first label token its own text."""


def knock_out(
    model: Any,
    prompts: PromptSet,
    edges: Edges = "answer_reads_labels",
    *,
    heads: Heads | None = None,
    layers: Sequence[int] | None = None,
    demo: int | Literal["all", "each"] = "all",
    renormalise: bool = True,
    controls: bool = True,
    against: Reference = "model",
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> PatchEffects:
    """The answer when some heads no longer read some tokens, everything above recomputed.

        answer_reads_labels    the answer position no longer reads the demonstrations' labels (all their tokens)
        answer_reads_text      nor here their texts, without labels and template
        label_reads_text       each demonstration's first label token no longer reads its own text

        renormalised        A' = softmax of the scores, without the keys K      (Geva et al. 2023)
        not renormalised    z' = z − Σ_{s∈K} A(s) v_s

    Without `heads`, every head is cut on its own; a head, or a set of heads, is one cell; `layers` cuts all heads
    of those layers together. `demo` cuts one demonstration's edges, all demonstrations' together, or each in turn.
    Controls, in the same rows of the same heads, never position 0, a special token, a label, or the position itself:

        random_keys    as many other keys that the head can see, drawn at random
        equal_mass     other keys in random order until they hold the same attention, the last in part

    Effects are changes of the label logit difference (see `Metric`); below 0, the edges spoke for the answer.
    Does not show: that the head computes a kernel regression: see `head_vote` for its vote, and for what its
    weights do `substitute_kernel`. An effect of 0 may be covered up by other heads that take over.

    Raises: ModelError: this model's attention cannot be changed exactly. ResultError: no such head or demonstration.
            PromptError: prompts are scored on whole labels.
    """
    if edges not in get_args(Edges):
        raise ResultError(f"edges must be one of {', '.join(get_args(Edges))}; got {edges!r}.")
    check_intervened(prompts, against)
    if not (demo in ("all", "each") or (isinstance(demo, int) and 0 <= demo < prompts.demos)):
        raise ResultError(
            f'demo must be "all", "each", or a number below {prompts.demos}, counted from 0; got {demo!r}.'
        )
    chosen = range(prompts.demos) if demo in ("all", "each") else [int(demo)]
    options = [[i] for i in chosen] if demo == "each" else [list(chosen)]
    names = tuple(f"demo {o[0]}" if len(o) == 1 and demo != "all" else "all demonstrations" for o in options)

    def make(lens: InterceptableLens, sets: HeadSets) -> Sweep:
        cutter = Cutter(prompts, edges, options, renormalise=renormalise, seed=seed)
        kinds = {"": cutter.cut}
        if controls:
            kinds |= {"random_keys": cutter.random_keys, "equal_mass": cutter.equal_mass}
        return Sweep(
            what=f"knock_out of {edges}",
            title="edges cut, " + ("the rest renormalised" if renormalise else "the rest as it was"),
            offsets=names,
            kinds=kinds,
            begin=cutter.begin,
            alone=edges != "label_reads_text",
            several=True,
        )

    return run_sweep(
        model,
        prompts,
        make,
        heads=heads,
        layers=layers,
        against=against,
        settings={
            "edges": edges,
            "demo": demo,
            "renormalise": renormalise,
            "controls": controls,
            "seed": seed,
        },
        name="knocking out",
        checkpoint=checkpoint,
        progress=progress,
    )


class Cutter:
    """The keys of some prompts at a time: those cut, and those that may be cut instead."""

    def __init__(
        self,
        prompts: PromptSet,
        edges: Edges,
        options: Sequence[Sequence[int]],
        *,
        renormalise: bool,
        seed: int,
    ) -> None:
        self.prompts, self.edges, self.options = prompts, edges, options
        self.renormalise, self.seed = renormalise, seed
        self.keys: Bool[Tensor, "prompt option column key"]
        self.free: Bool[Tensor, "prompt column key"]
        self.order: Float[Tensor, "prompt option column key"]

    def begin(self, numbers: list[int]) -> Int[Tensor, "prompt column"]:
        """Equally long prompts."""
        found = [self._of(number) for number in numbers]
        queries, self.keys, self.free, self.order = (torch.stack(part) for part in zip(*found, strict=True))
        return queries

    def _of(self, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        p, at = self.prompts, int(self.prompts.answer_pos[number])
        width, each = at + 1, self.edges == "label_reads_text"
        here = torch.arange(width)

        def within(spans: Int[Tensor, "demo 2"]) -> Bool[Tensor, "demo key"]:
            return (here >= spans[:, :1]) & (here < spans[:, 1:])

        labels, roles = within(p.label_spans[number]), p.roles[number, :width]
        text = (roles == Role.TEXT) | (roles == Role.TEXT2)
        by_demo = labels if self.edges == "answer_reads_labels" else within(p.demo_spans[number]) & text
        queries = p.label_pos[number] if each else torch.tensor([at])
        keys = torch.zeros(len(self.options), len(queries), width, dtype=torch.bool)
        for option, demos in enumerate(self.options):
            for i in demos:
                keys[option, i if each else 0] |= by_demo[i]
        seen = here < queries[:, None]
        keys &= seen
        never = labels.any(0) | (roles == Role.SPECIAL) | (here == 0)
        free = seen & ~never & ~keys.any(0)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        order = torch.rand(keys.shape, generator=generator).masked_fill(~free, torch.inf)
        return queries, keys, free, order

    def _here(self, row: Row, option: Int[Tensor, " row"]) -> Bool[Tensor, "row key"]:
        return self.keys.to(row.weights.device)[row.prompts, option, row.column]

    def _order(self, row: Row, option: Int[Tensor, " row"]) -> Float[Tensor, "row key"]:
        return self.order.to(row.weights.device)[row.prompts, option, row.column]

    def cut(self, row: Row, option: Int[Tensor, " row"]) -> Float[Tensor, "row key"]:
        return cut(row.weights, row.scores, self._here(row, option), renormalise=self.renormalise)

    def random_keys(self, row: Row, option: Int[Tensor, " row"]) -> Float[Tensor, "row key"]:
        # Keys that the head cannot see (outside its window) would be cut to no effect.
        seen = row.scores.isfinite()
        keys = self._here(row, option) & seen
        order = self._order(row, option).masked_fill(~seen, torch.inf)
        rank = order.argsort(-1).argsort(-1)
        instead = (rank < keys.sum(-1, keepdim=True)) & order.isfinite()
        new = cut(row.weights, row.scores, instead, renormalise=self.renormalise)
        return new.masked_fill((instead.sum(-1) < keys.sum(-1))[:, None], torch.nan)

    def equal_mass(self, row: Row, option: Int[Tensor, " row"]) -> Float[Tensor, "row key"]:
        mass = (row.weights * self._here(row, option)).sum(-1)
        return cut_mass(row.weights, mass, self._order(row, option), renormalise=self.renormalise)
