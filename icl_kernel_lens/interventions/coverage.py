"""Where labels enter: what of the answer's label part goes without the edges at some offsets, and what comes of them alone.

    s_c(P)    label logits of prompt P;  Π: the C cyclic shifts of the classes, the labels' own among them
    t_c = s_c(own labels) − mean over Π of s_c,      t = t_c* − mean over c ≠ c* of t_c

Every demonstration carries each class once, C runs a prompt. The edges are cut in all of these runs alike, so that
what an edge brings beside the labels cancels.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.axes import Reference
from icl_kernel_lens.interventions.engine import RowEdit, RowEdits, run_cells
from icl_kernel_lens.interventions.validate import check_intervened
from icl_kernel_lens.models.adapter import InterceptableAdapter, attention_layers
from icl_kernel_lens.numbers.logits import logit_difference
from icl_kernel_lens.numbers.rows import cut
from icl_kernel_lens.prompts.corrupt_labels import shift_labels
from icl_kernel_lens.prompts.label_edges import (
    check_offsets,
    demo_keys,
    label_keys,
    present,
    start_of_test_input,
)
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.results.ablation_curves import Side
from icl_kernel_lens.results.label_coverage import CUTS, CutRows, LabelCoverage
from icl_kernel_lens.results.label_part import LabelPart, Offsets, check_shares, name_of
from icl_kernel_lens.results.run_info import RunInfo
from icl_kernel_lens.run.progress import ROW, work
from icl_kernel_lens.run.runner import BatchSize, tokens_to_run
from icl_kernel_lens.run.variants import Row, editable

OFFSETS = (-1, 0, 1, 2)
LOSE, KEEP = 0.8, 0.5
"""What the smallest set must lose when cut, and keep alone."""
ALL_SETS = 4
"""Of so many offsets every set is measured."""
SIDES: tuple[Side, ...] = get_args(Side)


@checked
def label_coverage(
    model: Any,
    prompts: PromptSet,
    *,
    offsets: Sequence[int] | None = None,
    rows: CutRows = "answer",
    layers: bool = False,
    lose: float = LOSE,
    keep: float = KEEP,
    against: Reference | None = None,
    batch_size: BatchSize = "auto",
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> LabelCoverage:
    """Find where labels enter the answer: its label part, what of it is lost with the edges at each offset, what they keep.

        t = ⟨contrast with c*⟩ of  s(own labels) − mean over Π of s       Π: the C cyclic shifts of the classes
        lost(O) = 1 − Σ t_cut(O) / Σ t         the edges to the offsets in O cut in all heads
        kept(O) = Σ t_keep(O) / Σ t            all edges to the demonstrations cut but these

    in logits, sums over prompts; for two classes t is half of what exchanging all labels does. c* is the true class, or with
    `against="model"` (and where there is no truth) the model's own answer. Offset 0 is the label with all its tokens,
    another number the token so far from a label's first (`prompts/label_edges.py`); without `offsets`, those of
    −1, 0, 1, 2 that hold a token. Cuts are *zeroed* (z' = z − Σ A_i v_i) and *renormalised* (what is left of the row
    sums to one again). Position 0 and special tokens stay when all but some edges are cut.

    Every set of up to four offsets is measured (of more, every run of neighbours). The smallest whose joint cut loses at
    least `lose`, and which alone keeps at least `keep`, is found on one half of the demonstration sets; `.smallest_set()`
    confirms it on the other half. Where there is none, the answer's edges are not where labels enter, and with a warning
    each offset, and all together, are measured with the rows of all test-input tokens cut (`rows="test_input"`): the
    result's `.test_input`. `layers=True` also cuts, and keeps, each offset layer by layer (of the `rows` asked for).

    Cost: a prompt is run C times (demonstrations that prompts share once for all of them), and its last token 4 C times a
    set of offsets (15 sets of 4 offsets), and 4 C n times a layer. With the rows of the test input, all its tokens are
    run as often as the last one, for n + 1 sets.
    `checkpoint` names a folder in which finished prompts are kept; the same call goes on from there.

    Does not show: which heads read there (`knock_out` with these `offsets`), nor that a label's information is at the label
    itself: edges from the labels to later demonstrations are not cut. What all shifts of the classes have in common, such
    as a preference for a word, is no label part.

    Raises: PromptError: prompts are scored on whole labels; an offset holds no token; labels of unequal token counts in
                prompts of token ids. ModelError: attention cannot be changed exactly. ResultError: `lose` or `keep` is
                no share.
    """
    against = against or ("model" if prompts.test_labels is None else "truth")
    check_shares(lose, keep)
    runs = Relabelled.of(model, prompts, offsets, against, batch_size=batch_size, progress=progress)
    given = {"lose": lose, "keep": keep, "seed": seed}
    folder = None if checkpoint is None else Path(checkpoint)
    with work("label coverage", [runs.tokens(len(sets_of(runs.offsets, rows)) * 4)], progress):
        found = measured(runs, rows, given, layers=layers, checkpoint=folder and folder / rows)
        if found.undefined is not None or found.smallest_set().offsets is not None or rows == "test_input":
            return found
        warnings.warn(
            f"labels do not enter {found.run.model}'s answer by its own edges to offsets {name_of(found.offsets)}: "
            f"{found.smallest_set().why}. Earlier tokens of the test input may carry them: their rows are cut now, too (see "
            ".test_input).",
            stacklevel=3,
        )
        wider = measured(runs, "test_input", given, checkpoint=folder and folder / "test_input")
    return replace(found, test_input=wider)


class Cell(NamedTuple):
    """One way of cutting: which side of which offsets, what takes the place of the edges, in which layer (None: all)."""

    side: Side
    cut: str
    offsets: Offsets
    layer: int | None = None

    @property
    def name(self) -> str:
        where = "" if self.layer is None else f", layer {self.layer}"
        return f"{self.side}, {self.cut}, offsets {name_of(self.offsets)}{where}"


@dataclass(frozen=True)
class Relabelled:
    """Prompts under every shift of their classes, their own labels first, and how they are run."""

    prompts: tuple[PromptSet, ...]
    adapter: InterceptableAdapter
    offsets: Offsets
    against: Reference
    batch_size: BatchSize
    progress: bool

    @classmethod
    def of(
        cls,
        model: Any,
        prompts: PromptSet,
        offsets: Sequence[int] | None,
        against: Reference,
        *,
        batch_size: BatchSize = "auto",
        progress: bool,
    ) -> Relabelled:
        """What `label_coverage` runs; without offsets, those of `OFFSETS` that hold a token.

        Raises: PromptError, ModelError: see `label_coverage`.
        """
        check_intervened(prompts, against)
        asked = tuple(sorted(present(prompts, OFFSETS) if offsets is None else offsets))
        check_offsets(prompts, asked)
        adapter = editable(model)
        shifted = tuple(shift_labels(prompts, by, model) for by in range(1, prompts.labels))
        return cls((prompts, *shifted), adapter, asked, against, batch_size, progress)

    def parts(
        self, cells: Sequence[Cell], rows: CutRows, folder: Path | None
    ) -> tuple[Float[Tensor, "prompt cell"], Float[Tensor, " prompt"], Int[Tensor, " prompt"], RunInfo]:
        """The label part in every cell, the one uncut, and the class that both are about."""
        each = self.tokens(len(cells)) / len(self.prompts)
        with work("label coverage", [each] * len(self.prompts), self.progress):
            effects = [
                run_cells(
                    self.adapter,
                    self.cutting(prompts, cells, rows),
                    batch_size=self.batch_size,
                    checkpoint=folder and folder / f"shifted by {by}",
                    progress=self.progress,
                )
                for by, prompts in enumerate(self.prompts)
            ]
        scores, uncut = (
            torch.stack([e.numbers[name] for e in effects]) for name in ("label_scores", "base_label_scores")
        )
        truth = self.prompts[0].test_labels
        reference = uncut[0].argmax(-1) if self.against == "model" or truth is None else truth
        part = logit_difference(scores[0] - scores.mean(0), reference[:, None])
        return part, logit_difference(uncut[0] - uncut.mean(0), reference), reference, effects[0].run

    def tokens(self, cells: int) -> float:
        """About how many tokens are run, with so many cells of the answer's row."""
        once = tokens_to_run(self.prompts[0], self.adapter) + ROW * cells * len(self.prompts[0])
        return once * len(self.prompts)

    def cutting(self, prompts: PromptSet, cells: Sequence[Cell], rows: CutRows) -> RowEdits:
        """These cuts of one of the runs."""
        shape = self.adapter.shape
        masks = torch.zeros(len(cells), shape.layers, shape.heads, dtype=torch.bool)
        masks[:, attention_layers(self.adapter)] = True
        for at, cell in enumerate(cells):
            if cell.side == "necessity" and cell.layer is not None:
                masks[at, torch.arange(shape.layers) != cell.layer] = False
        first = prompts.answer_pos if rows == "answer" else start_of_test_input(prompts)

        def prepare(numbers: list[int]) -> tuple[Tensor, dict[str, RowEdit]]:
            found = [_keys(prompts, number, cells, self.offsets, int(first[number])) for number in numbers]
            edits = Edits(tuple(cells), *map(torch.stack, zip(*found, strict=True)))
            return edits.queries, {"": edits.cut}

        return RowEdits(
            name=f"label coverage, {rows.replace('_', ' ')} rows",
            title="edges at offsets from the labels cut",
            prompts=prompts,
            clean=prompts,
            against="model",
            places={"set": tuple(cell.name for cell in cells)},
            cells=torch.arange(len(cells))[:, None],
            settings={"rows": rows, "offsets": str(self.offsets)},
            masks=masks,
            prepare=prepare,
            along="set",
            alone=rows == "answer",
            first=first,
            together=True,
        )


@dataclass(frozen=True)
class Edits:
    """The keys of equally long prompts that each cell cuts."""

    cells: tuple[Cell, ...]
    queries: Int[Tensor, "prompt column"]
    keys: Bool[Tensor, "prompt cell column key"]
    every: Bool[Tensor, "prompt column key"]
    """All edges to the demonstrations: what is cut in the other layers where one layer's are kept."""

    def cut(self, row: Row, cell: Int[Tensor, " row"]) -> Float[Tensor, "row key"]:
        """Each row without its cell's keys."""
        device, cells = row.weights.device, self.cells
        keys = self.keys.to(device)[row.prompts, cell, row.column]
        elsewhere = torch.tensor([c.layer not in (None, row.layer) for c in cells], device=device)[cell]
        if elsewhere.any():
            all_of_them = self.every.to(device)[row.prompts, row.column]
            keys = torch.where(elsewhere[:, None], all_of_them, keys)
        new = cut(row.weights, row.scores, keys, renormalise=False)
        renormalised = torch.tensor([c.cut == "renormalised" for c in cells], device=device)[cell]
        if renormalised.any():
            new = torch.where(
                renormalised[:, None], cut(row.weights, row.scores, keys, renormalise=True), new
            )
        return new


def _keys(
    prompts: PromptSet, number: int, cells: Sequence[Cell], offsets: Offsets, first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, the keys that each cell cuts, and all keys of the demonstrations, of one prompt."""
    queries = torch.arange(first, int(prompts.answer_pos[number]) + 1)
    at = dict(zip(offsets, label_keys(prompts, number, offsets).any(1), strict=True))
    every = torch.stack([demo_keys(prompts, number), *at.values()]).any(0)
    chosen = [torch.stack([at[offset] for offset in cell.offsets]).any(0) for cell in cells]
    keys = torch.stack(
        [
            mine if cell.side == "necessity" else every & ~mine
            for cell, mine in zip(cells, chosen, strict=True)
        ]
    )
    before = torch.arange(keys.shape[-1]) < queries[:, None]
    return queries, keys[:, None] & before, every & before


def measured(
    runs: Relabelled,
    rows: CutRows,
    asked: Mapping[str, Any],
    *,
    layers: bool = False,
    checkpoint: Path | None,
) -> LabelCoverage:
    """All sets of offsets, and each offset layer by layer, in one pass over the relabelled prompts."""
    offsets, every = runs.offsets, attention_layers(runs.adapter) if layers else []
    sets = sets_of(offsets, rows)
    whole = [Cell(*of) for of in product(SIDES, CUTS, sets)]
    apart = [Cell(side, cut, (at,), layer) for side, cut, at, layer in product(SIDES, CUTS, offsets, every)]
    part, base, reference, info = runs.parts([*whole, *apart], rows, checkpoint)
    by_layer: dict[Side, Tensor] = {}
    if layers:
        found = part[:, len(whole) :].unflatten(1, (len(SIDES), len(CUTS), len(offsets), len(every)))
        placed = torch.full((*found.shape[:-1], runs.adapter.shape.layers), torch.nan)
        placed[..., every] = found
        by_layer = _by_side(placed)
    return LabelCoverage(
        rows=rows,
        offsets=offsets,
        sets=sets,
        part=base,
        left=_by_side(part[:, : len(whole)].unflatten(1, (len(SIDES), len(CUTS), len(sets)))),
        by_layer=by_layer,
        reference=reference,
        demo_set=runs.prompts[0].demo_set,
        run=info,
        **asked,
        settings={"against": runs.against, "relabellings": f"{runs.prompts[0].labels} cyclic shifts"},
    )


def zeroed(
    runs: Relabelled, *, checkpoint: Path | None
) -> tuple[LabelPart, Mapping[Side, Float[Tensor, "prompt edges"]], tuple[Offsets, ...]]:
    """What the smallest set is found from, and nothing else: the answer's rows, all sets of offsets, the zeroed cut.

    The label part, what is left of it under each set's cut and alone, and the sets; half of the runs of `measured`.
    """
    sets = sets_of(runs.offsets, "answer")
    cells = [Cell(side, "zeroed", one) for side, one in product(SIDES, sets)]
    left, whole, _, _ = runs.parts(cells, "answer", checkpoint)
    part = LabelPart(whole, runs.prompts[0].demo_set)
    return part, _by_side(left.unflatten(1, (len(SIDES), len(sets)))), sets


def sets_of(offsets: Offsets, rows: CutRows) -> tuple[Offsets, ...]:
    """The sets that are measured, small ones first: all there are of up to four offsets, else runs of neighbours.

    With the rows of the test input, which cost as much as all its tokens, each offset and all together.
    """
    count = len(offsets)
    sizes = range(1, count + 1) if rows == "answer" else sorted({1, count})
    if count <= ALL_SETS:
        return tuple(one for size in sizes for one in combinations(offsets, size))
    return tuple(offsets[at : at + size] for size in sizes for at in range(count + 1 - size))


def _by_side(found: Float[Tensor, "prompt side *cell"]) -> dict[Side, Tensor]:
    return {side: left.clone() for side, left in zip(SIDES, found.unbind(1), strict=True)}
