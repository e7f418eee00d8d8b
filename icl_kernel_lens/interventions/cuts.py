"""Knocks out what a position reads: attention edges cut, beside cuts of other edges that should matter less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.axes import Reference
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.interventions.engine import Prepare, RowEdit, change_rows
from icl_kernel_lens.interventions.validate import Heads, check_intervened, check_word
from icl_kernel_lens.numbers.draws import generator
from icl_kernel_lens.numbers.rows import cut, cut_mass
from icl_kernel_lens.prompts.label_edges import check_offsets, label_keys, within
from icl_kernel_lens.prompts.promptset import PromptSet, TokenRole
from icl_kernel_lens.results.patch_effects import PatchEffects
from icl_kernel_lens.run.variants import Row

Edges = Literal["answer_reads_labels", "answer_reads_text", "label_reads_text"]
"""Which query reads which keys: the answer position the demonstrations' labels (all their tokens); the answer position
the demonstrations' texts; each demonstration's first label token its own text."""
Control = Literal["random_keys", "equal_mass"]
"""What is cut to compare with."""
CONTROLS: tuple[Control, ...] = get_args(Control)
WORDS: Mapping[Edges, str] = {
    "answer_reads_labels": "the answer no longer reads the labels",
    "answer_reads_text": "the answer no longer reads the texts",
    "label_reads_text": "labels no longer read their texts",
}


@checked
def knock_out(
    model: Any,
    prompts: PromptSet,
    edges: Edges = "answer_reads_labels",
    *,
    heads: Heads | None = None,
    layers: Sequence[int] | None = None,
    demo: int | Literal["all", "each"] = "all",
    offsets: Sequence[int] = (0,),
    renormalise: bool = True,
    controls: bool | Sequence[Control] = True,
    against: Reference = "model",
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> PatchEffects:
    """Measure the answer when some heads no longer read some tokens, everything above recomputed.

        answer_reads_labels    the answer position no longer reads the demonstrations' labels (all their tokens)
        answer_reads_text      the answer position no longer reads the demonstrations' texts (neither labels nor template)
        label_reads_text       each demonstration's first label token no longer reads its own text

        renormalised        A' = softmax of the scores, without the keys K      (Geva et al. 2023)
        not renormalised    z' = z − Σ_{s∈K} A(s) v_s

    Without `heads`, every head is cut on its own; a head, or a set of heads, is one cell; `layers` cuts all heads of those
    layers together. `demo` cuts the edges of one demonstration, of all together, or of each in turn (an axis `demo`).
    `offsets` says what counts as labels: 0 all their tokens, another number the token so far from a label's first, as
    `label_coverage` finds where they are read; `(0, 1)` cuts the token behind one-token labels, too.
    Controls (all, none, or some by name), in the same rows, never cut position 0, a special token, a label, or the position
    itself:

        random_keys    as many other keys that the head can see, drawn at random
        equal_mass     other keys in random order until they hold the same attention, the last in part

    Effects are changes of the label logit difference (see `Metric`); below 0, the edges spoke for the answer.
    Does not show: that the head computes a kernel regression: see `head_vote` for its vote, and for what its
    weights do `substitute_kernel`. An effect of 0 may be covered up by other heads that take over.

    Raises: ModelError: this model's attention cannot be changed exactly. ResultError: no such head or demonstration.
            PromptError: prompts are scored on whole labels; an offset holds no token.
    """
    check_word("edges", edges, Edges)
    check_intervened(prompts, against)
    check_offsets(prompts, offsets)
    if tuple(offsets) != (0,) and edges != "answer_reads_labels":
        raise ResultError(
            f"offsets= belong to answer_reads_labels; got {tuple(offsets)} with {edges!r}. Leave them out.",
            code="options-clash",
        )
    if not (demo in ("all", "each") or (isinstance(demo, int) and 0 <= demo < prompts.demos)):
        raise ResultError(
            f'demo must be "all", "each", or a number below {prompts.demos}, counted from 0; got {demo!r}.',
            code="unknown-choice",
        )
    asked = (CONTROLS if controls else ()) if isinstance(controls, bool) else tuple(controls)
    for control in asked:
        check_word("controls", control, Control)
    every = tuple(range(prompts.demos))
    groups = [(i,) for i in every] if demo == "each" else [every if demo == "all" else (int(demo),)]
    return change_rows(
        model,
        prompts,
        cutting(prompts, edges, groups, renormalise=renormalise, seed=seed, offsets=offsets),
        name=f"knock_out of {edges}",
        title=f"{WORDS[edges]}, the rest {'renormalised' if renormalise else 'as it was'}",
        controls=asked,
        heads=heads,
        layers=layers,
        demos=every if demo == "each" else None,
        against=against,
        settings={
            "edges": edges,
            "demo": demo,
            "offsets": tuple(offsets),
            "renormalise": renormalise,
            "controls": asked,
            "seed": seed,
        },
        checkpoint=checkpoint,
        progress=progress,
        alone=edges != "label_reads_text",
        together=True,
    )


def cutting(
    prompts: PromptSet,
    edges: Edges,
    groups: Sequence[Sequence[int]],
    *,
    renormalise: bool,
    seed: int,
    offsets: Sequence[int] = (0,),
) -> Prepare:
    """The cuts of some edges, one a group of demonstrations, and the cuts of other edges to compare them with."""

    def prepare(numbers: list[int]) -> tuple[Tensor, dict[str, RowEdit]]:
        found = [_keys(prompts, edges, groups, number, seed, offsets) for number in numbers]
        cuts = EdgeCuts(renormalise, *map(torch.stack, zip(*found, strict=True)))
        return cuts.queries, {"": cuts.cut, "random_keys": cuts.random_keys, "equal_mass": cuts.equal_mass}

    return prepare


@dataclass(frozen=True)
class EdgeCuts:
    """The keys of equally long prompts: those cut for each group of demonstrations, and those that may be cut instead."""

    renormalise: bool
    queries: Int[Tensor, "prompt column"]
    """The positions whose rows are changed."""
    keys: Bool[Tensor, "prompt group column key"]
    free: Bool[Tensor, "prompt column key"]
    order: Float[Tensor, "prompt group column key"]
    """In which the free keys are taken; the others are infinite."""

    def cut(self, row: Row, group: Int[Tensor, " row"]) -> Float[Tensor, "row key"]:
        return cut(row.weights, row.scores, self._of(self.keys, row, group), renormalise=self.renormalise)

    def random_keys(self, row: Row, group: Int[Tensor, " row"]) -> Float[Tensor, "row key"]:
        # Keys that the head cannot see (outside its window) would be cut to no effect.
        seen = row.scores.isfinite()
        keys = self._of(self.keys, row, group) & seen
        order = self._of(self.order, row, group).masked_fill(~seen, torch.inf)
        rank = order.argsort(-1).argsort(-1)
        instead = (rank < keys.sum(-1, keepdim=True)) & order.isfinite()
        new = cut(row.weights, row.scores, instead, renormalise=self.renormalise)
        return new.masked_fill((instead.sum(-1) < keys.sum(-1))[:, None], torch.nan)

    def equal_mass(self, row: Row, group: Int[Tensor, " row"]) -> Float[Tensor, "row key"]:
        mass = (row.weights * self._of(self.keys, row, group)).sum(-1)
        return cut_mass(row.weights, mass, self._of(self.order, row, group), renormalise=self.renormalise)

    def _of(self, values: Tensor, row: Row, group: Tensor) -> Tensor:
        return values.to(row.weights.device)[row.prompts, group, row.column]


def _keys(
    prompts: PromptSet,
    edges: Edges,
    groups: Sequence[Sequence[int]],
    number: int,
    seed: int,
    offsets: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys that are cut, keys that may be cut instead and their order, of one prompt."""
    at = int(prompts.answer_pos[number])
    width, each = at + 1, edges == "label_reads_text"
    here = torch.arange(width)
    labels, roles = label_keys(prompts, number, (0, *offsets)).any(0), prompts.roles[number, :width]
    by_demo = label_keys(prompts, number, offsets).any(0)
    if edges != "answer_reads_labels":
        text = (roles == TokenRole.TEXT) | (roles == TokenRole.TEXT2)
        by_demo = within(prompts.demo_spans[number], width) & text
    queries = prompts.label_pos[number] if each else torch.tensor([at])
    member = torch.tensor([[i in demos for i in range(prompts.demos)] for demos in groups])
    seen = here < queries[:, None]
    keys = member[:, :, None] & by_demo
    keys = (keys if each else keys.any(1, keepdim=True)) & seen
    never = labels.any(0) | (roles == TokenRole.SPECIAL) | (here == 0)
    free = seen & ~never & ~keys.any(0)
    order = torch.rand(keys.shape, generator=generator(seed, number)).masked_fill(~free, torch.inf)
    return queries, keys, free, order
