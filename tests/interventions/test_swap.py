"""Exchanged values, against the plain Hugging Face model and the read-outs of the exchange itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from architectures import hf_model
from interventions.huggingface import Plain, rows_changed
from support import uneven_prompts

from icl_kernel_lens import swap_values
from icl_kernel_lens.interventions.swap import _with_direct, pairs_drawn
from icl_kernel_lens.readouts.logit_attribution import direct_logit_attribution
from icl_kernel_lens.reasons import Reason


def test_swaps_are_what_the_weights_and_values_say(tiny):
    """The total change against the plain model; the direct one against the exchange's own read-outs."""
    model, _ = tiny("llama", "bridge")
    prompts = uneven_prompts(count=12)
    effects = swap_values(model, prompts, progress=False, seed=3)
    parts = direct_logit_attribution(model, prompts, progress=False)
    pairs = pairs_drawn(prompts, parts.toward, 3)
    kept = (pairs >= 0).all(1)
    assert 0 < kept.sum() < len(prompts), "or this test shows less"
    assert effects.values[~kept].isnan().all()
    cells = effects.values[0].numel()
    assert effects.reasons == {Reason.NO_PAIR: int((~kept).sum()) * cells}, "cells, as they are printed"
    assert f"({effects.reasons[Reason.NO_PAIR]} of {effects.values.numel()} cells)" in repr(effects)
    one = swap_values(model, prompts, heads=["L1H2"], progress=False, seed=3)
    assert one.reasons == {Reason.NO_PAIR: int((~kept).sum())}, "cells not asked for have no reason"
    # A cell that was already lost keeps the reason it had.
    lost = torch.full_like(one.values, torch.nan)
    lost[:, 1, 2] = 0.0
    lost[int((~kept).nonzero()[0, 0]), 1, 2] = torch.nan
    again = _with_direct(replace(one, values=lost, reasons={Reason.NOTHING_LEFT: 1}), parts, pairs)
    assert again.reasons == {Reason.NOTHING_LEFT: 1, Reason.NO_PAIR: int((~kept).sum()) - 1}
    plain = Plain("llama", hf_model("llama"))
    number = int(kept.nonzero()[0, 0])
    i, j = prompts.label_pos[number, pairs[number]].tolist()
    assert prompts.demo_labels[number, pairs[number, 0]] == parts.toward[number]
    assert prompts.demo_labels[number, pairs[number, 1]] != parts.toward[number]
    at = int(prompts.answer_pos[number])

    def change(a):
        a[[i, j]] = a[[j, i]]
        return a

    logits = rows_changed(plain, prompts.tokens[number, : at + 1], {1: [(2, at, change)]})[at]
    scores = effects.label_scores[number, 1, 2]
    torch.testing.assert_close(scores, logits[prompts.label_tokens[number]], atol=1e-5, rtol=1e-5)
    w, u = parts.weights[number, 1, 2], parts.demos[number, 1, 2] / parts.weights[number, 1, 2]
    a, b = pairs[number].tolist()
    direct = (w[a] - w[b]) * (u[b] - u[a])
    torch.testing.assert_close(effects.others["direct"][number, 1, 2], direct)
    others = [n for n in range(len(prompts)) if prompts.demo_set[n] != prompts.demo_set[number]]
    reads = parts.demos[:, 1, 2] / parts.weights[:, 1, 2]
    same = prompts.demo_labels == parts.toward[:, None]
    gap = reads[others][~same[others]].mean() - reads[others][same[others]].mean()
    predicted = effects.others["predicted"][number, 1, 2]
    torch.testing.assert_close(predicted, (w[a] - w[b]) * gap, atol=1e-6, rtol=1e-4)
    table = effects.prediction().set_index("head")
    x, y = (effects.others[k][kept, 1, 2].numpy() for k in ("predicted", "direct"))
    import numpy as np

    assert table.loc["L1H2", "slope"] == pytest.approx(np.polyfit(x, y, 1)[0], rel=1e-3)
    assert table.loc["L1H2", "r2"] == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2, rel=1e-3)
