"""Values of two demonstrations exchanged inside a head: does it move the answer by what kernel regression says?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.axes import Head, HeadRef, Reference
from icl_kernel_lens.errors import PromptError, ResultError
from icl_kernel_lens.interventions.patch import check_intervened
from icl_kernel_lens.interventions.rows import exchanged
from icl_kernel_lens.interventions.sweep import HeadSets, Sweep, run_sweep
from icl_kernel_lens.interventions.variants import Row
from icl_kernel_lens.models.lens import InterceptableLens
from icl_kernel_lens.prompts import PromptSet
from icl_kernel_lens.readouts import DirectLogits, direct_logits
from icl_kernel_lens.results.patch_effects import PatchEffects

if TYPE_CHECKING:
    import pandas as pd


def swap_values(
    model: Any,
    prompts: PromptSet,
    *,
    heads: Sequence[Head] | None = None,
    against: Reference = "model",
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> PatchEffects:
    """The values of two demonstrations exchanged inside one head at a time: what changes, beside what must change.

    In each prompt a demonstration i whose label is the reference class, and a j with another label, are drawn. With w
    the head's weights (attention, not renormalised), v its values at the two label tokens, exchanging these changes

        z' = z + (w_i − w_j)(v_j − v_i)

    The result's effects are total: everything above is recomputed. Beside them stand, as `others` (logits):

        direct       what the change of z does straight to the logit difference, with the final norm's scale frozen:
                     (w_i − w_j)(u(v_j) − u(v_i)), u the read-out of `direct_logits`
        predicted    (w_i − w_j)(ū_other − ū_same), ū the mean read-outs of labels of the reference class and of other
                     classes, in prompts of other demonstration sets: what a head that regresses labels must do

    `prediction(effects)` regresses the one on the other, per head: slope 1 and R² near 1 say that this head's values
    carry the label and nothing else that matters, so that its weights decide. NaN where a prompt has no such pair.
    Does not show: that the weights come from the inputs (exchange inputs: `corrupt`); nor anything about a head whose
    two weights hardly ever differ.

    Raises: as `direct_logits` and `knock_out`; PromptError: all prompts show one demonstration set.
    """
    check_intervened(prompts, against)
    if len(prompts.demo_set.unique()) < 2:
        raise PromptError(
            "a swap's effect is predicted from prompts of other demonstration sets; all of these show one. Draw them "
            "with sets=2 or more, or without sets."
        )
    folder = Path(checkpoint) if checkpoint is not None else None
    parts = direct_logits(
        model,
        prompts,
        toward=against,
        checkpoint=folder / "direct" if folder else None,
        progress=progress,
    )
    pairs = _pairs(prompts, parts.toward, seed)
    there = (pairs >= 0).all(1)

    def make(lens: InterceptableLens, sets: HeadSets) -> Sweep:
        current = torch.zeros(2, dtype=torch.long)

        def begin(numbers: list[int]) -> Int[Tensor, "prompt column"]:
            (number,) = numbers
            current.copy_(prompts.label_pos[number, pairs[number].clamp(min=0)])
            return prompts.answer_pos[numbers][:, None]

        def swap(row: Row, _option: Int[Tensor, " row"]) -> Float[Tensor, "row key"]:
            one, other = current.to(row.weights.device)[:, None].expand(-1, len(row.weights))
            return exchanged(row.weights, one, other)

        return Sweep("swap_values", "values of two demonstrations exchanged", ("pair",), {"": swap}, begin)

    effects = run_sweep(
        model,
        prompts,
        make,
        heads=heads,
        layers=None,
        against=against,
        settings={"seed": seed},
        name="swapping values",
        checkpoint=folder / "total" if folder else None,
        progress=progress,
    )
    direct, predicted = _direct(parts, pairs)
    blank = ~there[:, None, None, None] | effects.values.isnan()
    return replace(
        effects,
        values=effects.values.masked_fill(blank, torch.nan),
        others={
            **{name: values.masked_fill(blank, torch.nan) for name, values in effects.others.items()},
            "direct": direct[..., None].masked_fill(blank, torch.nan),
            "predicted": predicted[..., None].masked_fill(blank, torch.nan),
        },
        label_scores=None
        if effects.label_scores is None
        else effects.label_scores.masked_fill(blank[..., None], torch.nan),
        reasons={"no pair of demonstrations with and without the reference label": int((~there).sum())}
        if not there.all()
        else {},
    )


def prediction(effects: PatchEffects) -> pd.DataFrame:
    """Per head: slope and R² of the direct change of a swap on the predicted one, by least squares over prompts.

    Raises: ResultError: these effects are not of `swap_values`.
    """
    import pandas as pd

    if not {"direct", "predicted"} <= set(effects.others):
        raise ResultError(f"only swap_values makes predictions; these effects are of {effects.what}.")
    rows = []
    for layer, head in (~effects.values[..., 0].isnan()).any(0).nonzero().tolist():
        x, y = (effects.others[name][:, layer, head, 0].double() for name in ("predicted", "direct"))
        kept = ~(x.isnan() | y.isnan())
        x, y = x[kept] - x[kept].mean(), y[kept] - y[kept].mean()
        varies = len(x) > 2 and float(x.square().sum()) > 0 and float(y.square().sum()) > 0
        rows.append(
            {
                "head": str(HeadRef(layer, head)),
                "slope": float((x @ y) / (x @ x)) if varies else float("nan"),
                "r2": float((x @ y) ** 2 / ((x @ x) * (y @ y))) if varies else float("nan"),
                "direct": float(effects.others["direct"][:, layer, head, 0].nanmean()),
                "total": float(effects.mean()[layer, head, 0]),
                "prompts": len(x),
            }
        )
    frame = pd.DataFrame(rows, columns=["head", "slope", "r2", "direct", "total", "prompts"])
    return frame.sort_values("direct", key=abs, ascending=False, kind="stable", ignore_index=True)


def _pairs(prompts: PromptSet, reference: Int[Tensor, " prompt"], seed: int) -> Int[Tensor, "prompt 2"]:
    """A demonstration with the reference label and one without, drawn; −1 where there is none."""
    pairs = torch.full((len(prompts), 2), -1)
    for number, labels in enumerate(prompts.demo_labels):
        same = labels == reference[number]
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        for side, where in enumerate((same, ~same)):
            found = where.nonzero()[:, 0]
            if len(found):
                pairs[number, side] = found[torch.randint(len(found), (), generator=generator)]
    return pairs.masked_fill((pairs < 0).any(1, keepdim=True), -1)


def _direct(
    parts: DirectLogits, pairs: Int[Tensor, "prompt 2"]
) -> tuple[Float[Tensor, "prompt layer head"], Float[Tensor, "prompt layer head"]]:
    """Direct changes and predicted ones."""
    weights, reads = parts.weights, parts.read_outs
    same = (parts.demo_labels == parts.toward[:, None])[:, None, None].expand_as(reads)
    _, sets = parts.demo_set.unique(return_inverse=True)

    def others(which: Tensor) -> Float[Tensor, "prompt layer head"]:
        """The mean read-out of some labels in prompts of other sets."""
        total = torch.zeros(int(sets.max()) + 1, *reads.shape[1:3]).double()
        count = total.clone()
        total.index_add_(0, sets, (reads * which).sum(-1).double())
        count.index_add_(0, sets, which.sum(-1).double())
        return ((total.sum(0) - total) / (count.sum(0) - count))[sets].float()

    index = pairs.clamp(min=0)[:, None, None].expand(-1, *weights.shape[1:3], -1)
    w, u = weights.gather(-1, index), reads.gather(-1, index)
    lever = w[..., 0] - w[..., 1]
    return lever * (u[..., 1] - u[..., 0]), lever * (others(~same) - others(same))
