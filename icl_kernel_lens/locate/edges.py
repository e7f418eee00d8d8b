"""Chooses which edges count as a label's when heads are located: those by which labels enter the model's own answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Int
from torch import Tensor

from icl_kernel_lens.interventions.coverage import KEEP, LOSE, OFFSETS, SIDES, Relabelled, sets_of, zeroed
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.results.label_part import Offsets, name_of

LABEL: Offsets = (0,)
PROMPTS = 32
"""How many prompts of the choosing half the offsets are chosen on, as evenly of its demonstration sets as can be."""
CELLS = len(SIDES) * len(sets_of(OFFSETS, "answer"))
"""How many cuts each of them is run with, once a class, where all offsets hold a token."""


class LabelEdges(NamedTuple):
    """Which offsets count, and why."""

    offsets: Offsets
    why: str
    found: bool
    """False: the label is taken because no set was found."""


def choose_edges(
    model: Any,
    prompts: PromptSet,
    numbers: Int[Tensor, " some"],
    *,
    seed: int,
    checkpoint: Path | None,
    progress: bool,
) -> LabelEdges:
    """The smallest set of offsets that `label_coverage` finds on some of these prompts; the label where there is none.

    Signed by the model's own answer, as the votes are. Of the cuts, only those that the set is found by are run: zeroed.
    """
    few = prompts.select(_spread(prompts.demo_set[numbers], numbers))
    runs = Relabelled.of(model, few, None, "model", progress=progress)
    whole, left, sets = zeroed(runs, checkpoint=checkpoint)
    smallest = whole.smallest_set(left, sets, lose=LOSE, keep=KEEP, seed=seed)
    part = f"label part t = {whole.mean()} logits on {len(few)} prompts"
    if smallest.offsets is not None:
        return LabelEdges(smallest.offsets, f"{smallest.why} ({part})", True)
    less = "" if whole.undefined else "; label_coverage looks at earlier tokens of the test input"
    return LabelEdges(LABEL, f"offset 0 is taken, untested: {smallest.why} ({part}){less}", False)


def _spread(demo_set: Int[Tensor, " some"], numbers: Int[Tensor, " some"]) -> list[int]:
    """The first prompts of every set, then the second ones, up to `PROMPTS`; in their own order."""
    seen: dict[int, int] = {}
    turns: list[tuple[int, int]] = []
    for number, group in zip(numbers.tolist(), demo_set.tolist(), strict=True):
        seen[group] = seen.get(group, 0) + 1
        turns.append((seen[group], number))
    return sorted(number for _, number in sorted(turns)[:PROMPTS])


def named(offsets: Offsets) -> str:
    """The edges in words, for a table's foot."""
    return "the label" if offsets == LABEL else f"offsets {name_of(offsets)} from the label"
