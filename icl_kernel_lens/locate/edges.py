"""Chooses which edges count as a label's when heads are located: those by which labels enter the model's own answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Int
from torch import Tensor

from icl_kernel_lens.interventions.coverage import Relabelled, measured
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.results.label_coverage import Offsets, name_of

LABEL: Offsets = (0,)
PROMPTS = 32
"""How many prompts of the choosing half the offsets are chosen on, as evenly of its demonstration sets as can be."""


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

    Signed by the model's own answer, as the votes are.
    """
    few = prompts.select(_spread(prompts.demo_set[numbers], numbers))
    runs = Relabelled.of(model, few, None, "model", progress=progress)
    found = measured(runs, "answer", {"lose": 0.8, "keep": 0.5, "seed": seed}, checkpoint=checkpoint)
    smallest = found.smallest_set()
    part = f"label part t = {found.label_part()} logits on {len(few)} prompts"
    if smallest.offsets is not None:
        return LabelEdges(smallest.offsets, f"{smallest.why} ({part})", True)
    less = "" if found.undefined else "; label_coverage looks at earlier tokens of the test input"
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
