"""Saliency as a result: its table, its long form, its file."""

from __future__ import annotations

import torch
from support import shared_prompts

from icl_kernel_lens.readouts.gradients import saliency
from icl_kernel_lens.results.saliency import Saliency


def test_what_the_result_can_do(tiny, tmp_path):
    found = saliency(tiny("falcon")[0], shared_prompts(), progress=False)
    table = found.table()
    assert len(table) == 12
    assert table["pq_above_ww"].is_monotonic_decreasing
    assert table["pq"].max() == found.mean()["pq"].max().item()
    assert (table["low"] <= table["pq_above_ww"]).all()
    frame = found.to_dataframe()
    row = frame[(frame["prompt"] == 3) & (frame["layer"] == 1) & (frame["head"] == 2)].iloc[0]
    assert [row["wp"], row["pq"], row["ww"]] == [
        getattr(found, n)[3, 1, 2].item() for n in ("wp", "pq", "ww")
    ]
    assert "loss of truth; falcon" in repr(found)
    again = Saliency.load(found.save(tmp_path / "found.safetensors"))
    assert repr(again) == repr(found)
    for name in ("wp", "pq", "ww", "layers", "demo_set"):
        assert torch.equal(getattr(again, name), getattr(found, name))
