"""Exchanges the values of two demonstrations inside a head: does the answer move as kernel regression says?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.axes import Reference
from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.interventions.engine import RowEdit, change_rows
from icl_kernel_lens.interventions.validate import HeadList, check_heads, check_intervened
from icl_kernel_lens.numbers.draws import generator
from icl_kernel_lens.numbers.groups import group_sums, numbered
from icl_kernel_lens.numbers.rows import exchanged
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.readouts.logit_attribution import direct_logit_attribution
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.results.logit_attribution import LogitAttribution
from icl_kernel_lens.results.patch_effects import PatchEffects
from icl_kernel_lens.run.variants import Row, editable


@checked
def swap_values(
    model: Any,
    prompts: PromptSet,
    *,
    heads: HeadList | None = None,
    against: Reference = "model",
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> PatchEffects:
    """Exchange the values of two demonstrations inside one head at a time: what changes, beside what must change.

    In each prompt a demonstration i whose label is the reference class, and a j with another label, are drawn. With the
    head's weights w (attention, not renormalised) and its values v at the two label tokens, exchanging these changes

        z' = z + (w_i − w_j)(v_j − v_i)

    The result's effects are total: everything above is recomputed. Beside them stand, as `others` (logits):

        direct       what the change of z does straight to the logit difference, with the final norm's scale frozen:
                     (w_i − w_j)(u(v_j) − u(v_i)), u the read-out of `direct_logit_attribution`
        predicted    (w_i − w_j)(ū_other − ū_same), ū the mean read-outs of labels of the reference class and of other
                     classes, in prompts of other demonstration sets: what a head that regresses labels must do

    The result's `prediction()` regresses the one on the other, per head: slope 1 and R² near 1 say that this head's
    values carry the label and nothing else that matters, so that its weights decide. NaN where a prompt has no such pair.
    Does not show: that the weights come from the inputs (exchange inputs: `corrupt`); nor anything about a head whose
    two weights hardly ever differ.

    Raises: as `direct_logit_attribution` and `knock_out`; PromptError: all prompts show one demonstration set.
    """
    check_intervened(prompts, against)
    if len(prompts.demo_set.unique()) < 2:
        raise PromptError(
            "a swap's effect is predicted from prompts of other demonstration sets; all of these show one. Draw them "
            "with sets=2 or more, or without sets.",
            code="too-few-sets",
        )
    if heads is not None:
        check_heads(editable(model), heads)
    folder = None if checkpoint is None else Path(checkpoint)
    written = direct_logit_attribution(
        model, prompts, toward=against, checkpoint=folder and folder / "direct", progress=progress
    )
    pairs = pairs_drawn(prompts, written.toward, seed)

    def prepare(numbers: list[int]) -> tuple[Tensor, dict[str, RowEdit]]:
        at = prompts.label_pos[numbers].gather(1, pairs[numbers].clamp(min=0))

        def swap(row: Row, _demo: Int[Tensor, " row"]) -> Float[Tensor, "row key"]:
            return exchanged(row.weights, *at.to(row.weights.device)[row.prompts].unbind(1))

        return prompts.answer_pos[numbers][:, None], {"": swap}

    effects = change_rows(
        model,
        prompts,
        prepare,
        name="swap_values",
        title="values of two demonstrations exchanged",
        heads=heads,
        against=against,
        settings={"seed": seed},
        checkpoint=folder and folder / "total",
        progress=progress,
    )
    return _with_direct(effects, written, pairs)


def pairs_drawn(prompts: PromptSet, reference: Int[Tensor, " prompt"], seed: int) -> Int[Tensor, "prompt 2"]:
    """A demonstration with the reference label and one without, drawn at random; −1 where there is none."""
    pairs = torch.full((len(prompts), 2), -1)
    for number, labels in enumerate(prompts.demo_labels):
        same = labels == reference[number]
        draws = generator(seed, number)
        for side, where in enumerate((same, ~same)):
            found = where.nonzero()[:, 0]
            if len(found):
                pairs[number, side] = found[torch.randint(len(found), (), generator=draws)]
    return pairs.masked_fill((pairs < 0).any(1, keepdim=True), -1)


def _with_direct(
    effects: PatchEffects, written: LogitAttribution, pairs: Int[Tensor, "prompt 2"]
) -> PatchEffects:
    """Total effects beside the direct ones and the predicted ones; NaN in prompts without a pair."""
    alone, (direct, predicted) = (pairs < 0).any(1), _direct(written, pairs)
    known = ~effects.values.isnan()
    blank = alone[:, None, None] | ~known
    unpaired = int((known & blank).sum())
    others = {**effects.others, "direct": direct, "predicted": predicted}
    assert effects.label_scores is not None
    return replace(
        effects,
        values=effects.values.masked_fill(blank, torch.nan),
        others={name: values.masked_fill(blank, torch.nan) for name, values in others.items()},
        label_scores=effects.label_scores.masked_fill(blank[..., None], torch.nan),
        reasons={**effects.reasons, **({Reason.NO_PAIR: unpaired} if unpaired else {})},
    )


def _direct(
    written: LogitAttribution, pairs: Int[Tensor, "prompt 2"]
) -> tuple[Float[Tensor, "prompt layer head"], Float[Tensor, "prompt layer head"]]:
    """Direct changes and predicted ones."""
    weights, reads = written.weights, written.read_outs
    same = (written.demo_labels == written.toward[:, None])[:, None, None].expand_as(reads)
    sets = numbered(written.demo_set)

    def others(which: Tensor) -> Float[Tensor, "prompt layer head"]:
        """The mean read-out of some labels in prompts of other sets."""
        total, count = (group_sums(x.sum(-1).double(), sets) for x in (reads * which, which))
        return ((total.sum(0) - total) / (count.sum(0) - count))[sets].float()

    index = pairs.clamp(min=0)[:, None, None].expand(-1, *weights.shape[1:3], -1)
    w, u = weights.gather(-1, index), reads.gather(-1, index)
    lever = w[..., 0] - w[..., 1]
    return lever * (u[..., 1] - u[..., 0]), lever * (others(~same) - others(same))
