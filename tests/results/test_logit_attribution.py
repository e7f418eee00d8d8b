"""Logit attribution as a result: its regression, its table, its long form, its file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from architectures import hf_model
from support import shared_prompts, uneven_prompts

from icl_kernel_lens.models.load import bridge_from_hf
from icl_kernel_lens.readouts.logit_attribution import direct_logit_attribution
from icl_kernel_lens.results.logit_attribution import LogitAttribution


def test_the_value_side_of_a_head():
    """Values that carry labels, values that carry something else, and a head that writes nothing."""
    prompts = uneven_prompts(count=40, demos=6)
    found = direct_logit_attribution(bridge_from_hf(hf_model("gpt2")), prompts, progress=False)
    right = (prompts.demo_labels == found.toward[:, None])[:, None, None]
    demos = found.demos.clone()
    demos[:, 0, 0] = (found.weights * torch.where(right, 3.0, -1.5))[:, 0, 0]
    demos[:, 0, 1] = found.weights[:, 0, 1]
    demos[:, 0, 2] = 0
    side = replace(found, demos=demos).regression()
    assert float(side.slope[0, 0]) == pytest.approx(3.0, rel=1e-4)
    assert float(side.r2[0, 0]) == pytest.approx(1.0, abs=1e-4)
    assert float(side.r2[0, 1]) < 0.5
    assert side.slope[0, 2].isnan()
    assert side.r2[0, 2].isnan()
    x = (found.weights * torch.where(right, 1.0, -0.5))[:, 2, 3].flatten().numpy()
    from scipy.stats import linregress

    line = linregress(x, found.demos[:, 2, 3].flatten().numpy())
    assert float(side.slope[2, 3]) == pytest.approx(line.slope, rel=1e-3)
    assert float(side.r2[2, 3]) == pytest.approx(line.rvalue**2, rel=1e-3)


def test_what_the_result_can_do(tiny, tmp_path):
    found = direct_logit_attribution(tiny("falcon")[0], shared_prompts(), progress=False)
    table = found.table()
    assert len(table) == 12
    assert table["direct_logit_attribution"].is_monotonic_decreasing
    assert table["direct_logit_attribution"].max() == found.mean().max().item()
    assert (table["low"] <= table["direct_logit_attribution"]).all()
    frame = found.to_dataframe()
    row = frame[(frame["prompt"] == 3) & (frame["layer"] == 1) & (frame["head"] == 2)].iloc[0]
    assert row["value"] == found.heads[3, 1, 2].item()
    assert row["through_labels"] == found.demos[3, 1, 2].sum().item()
    assert "toward model; falcon" in repr(found)
    assert "parts add up within" in repr(found)
    again = LogitAttribution.load(found.save(tmp_path / "found.safetensors"))
    assert repr(again) == repr(found)
    assert again.run == found.run
    assert again.residual == found.residual
    for name in ("heads", "demos", "weights", "toward", "demo_labels", "demo_set", "biases"):
        assert torch.equal(getattr(again, name), getattr(found, name))
