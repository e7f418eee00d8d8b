"""Changes a run's own attention rows, in single heads or sets of heads: knock-outs, swaps and substitutions.

z' = z + Σ_s (A'(s) − A(s)) v_s + added        A' in the heads of a cell; everything above is computed anew
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from icl_kernel_lens import fields
from icl_kernel_lens.axes import HeadRef, Reference
from icl_kernel_lens.interventions.engine import Intervention, PerVariant, run
from icl_kernel_lens.interventions.validate import Heads, head_sets
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.results.patch_effects import PatchEffects, Places
from icl_kernel_lens.run.variants import Changes, Row, RowChange, Seen, editable

RowEdit = Callable[[Row, Int[Tensor, " row"]], Float[Tensor, "row key"]]
"""(rows, where each of them stands on the axis `demo`) → what becomes of them."""
Prepare = Callable[[list[int]], tuple[Int[Tensor, "prompt column"], Mapping[str, RowEdit]]]
"""Equally long prompts → the query positions whose rows are changed, the change (under "") and the controls' changes."""


_OF_ROWS = ("prompts", "variants", "heads", "weights", "scores")


def _set_name(members: Sequence[HeadRef], layers: Sequence[int] | None) -> str:
    if layers is not None:
        return f"all heads of layers {', '.join(map(str, layers))}"
    more = f" and {len(members) - 6} more" if len(members) > 6 else ""
    return " ".join(map(str, members[:6])) + more


@dataclass(frozen=True, kw_only=True)
class RowEdits(Intervention):
    """Changes of a run's own attention rows."""

    primitive: str = "attention_rows"
    masks: Bool[Tensor, "cell layer head"]
    prepare: Prepare
    added: Callable[[Row], Float[Tensor, "row d_head"]] | None = None
    """What is added to z in the changed rows."""

    def identity(self) -> dict[str, str]:
        return super().identity() | {"heads": fields.digest(None, {"masks": self.masks})}

    def changes(
        self, numbers: list[int], seen: Seen | None, start: int
    ) -> Callable[[PerVariant, PerVariant], Changes]:
        queries, edits = self.prepare(numbers)

        def of(cells: PerVariant, kinds: PerVariant) -> Changes:
            demos = self.column("demo", cells)

            def change(row: Row) -> Float[Tensor, "row key"]:
                new = row.weights.clone()
                mine, demo = (x.to(new.device)[row.variants] for x in (kinds, demos))
                for number, name in enumerate(("", *self.controls)):
                    here = mine == number
                    if here.any():
                        new[here] = edits[name](_some(row, here), demo[here])
                return new

            masks = self.masks[cells] & (cells >= 0)[:, None, None]
            positions = queries.repeat_interleave(len(cells) // len(numbers), 0)
            return Changes(rows=RowChange(masks, positions, change, self.added))

        return of


def _some(row: Row, which: Bool[Tensor, " row"]) -> Row:
    return replace(row, **{name: getattr(row, name)[which] for name in _OF_ROWS})


def change_rows(
    model: Any,
    prompts: PromptSet,
    prepare: Prepare,
    *,
    name: str,
    title: str,
    controls: tuple[str, ...] = (),
    heads: Heads | None = None,
    layers: Sequence[int] | None = None,
    demos: tuple[int, ...] | None = None,
    against: Reference = "model",
    settings: Mapping[str, Any],
    checkpoint: str | Path | None,
    progress: bool,
    **more: Any,
) -> PatchEffects:
    """The effects of changing attention rows of single heads or sets of heads, for each of `demos` if there are any.

    `more` are further fields of `RowEdits`.
    """
    adapter = editable(model)
    sets, single = head_sets(adapter, heads, layers)
    shape, repeats = adapter.shape, 1 if demos is None else len(demos)
    masks = torch.zeros(len(sets), shape.layers, shape.heads, dtype=torch.bool)
    for number, members in enumerate(sets):
        masks[number, [head.layer for head in members], [head.head for head in members]] = True
    places: Places = {"set": tuple(_set_name(members, layers) for members in sets)}
    cells = torch.arange(len(sets))[:, None]
    if single:
        places = {"layer": tuple(range(shape.layers)), "head": tuple(range(shape.heads))}
        cells = torch.tensor([tuple(head) for (head,) in sets])
    cells = cells.repeat_interleave(repeats, 0)
    if demos is not None:
        places = {**places, "demo": demos}
        cells = torch.cat([cells, torch.arange(repeats).repeat(len(sets))[:, None]], 1)
    edits = RowEdits(
        name=name,
        title=title,
        prompts=prompts,
        clean=prompts,
        against=against,
        places=places,
        cells=cells,
        controls=controls,
        settings={"against": against, **{key: str(value) for key, value in settings.items()}},
        masks=masks.repeat_interleave(repeats, 0),
        prepare=prepare,
        **more,
    )
    return run(adapter, edits, checkpoint=checkpoint, progress=progress)
