"""The averaged attention map holds the profile, coarser, and drops to layers where heads are many."""

from __future__ import annotations

import pytest
import torch
from charts.hostile import hostile_evidence, texts

from icl_kernel_lens.charts.profile import COARSE, profile_figure


def drawn(figure) -> list[dict]:
    (rows,) = figure.spec()["datasets"].values()
    return rows


def test_the_averaged_map_holds_the_profile():
    hostile = hostile_evidence()
    rows = drawn(hostile.figure())
    label = {r["row"]: r["attention"] for r in rows if r["place"] == "label 3"}
    for layer in range(3):
        for head in range(4):
            expected = hostile.profile[layer, head, 3 * 31 + 30].item()
            assert label[f"L{layer}H{head}"] == pytest.approx(expected, abs=1e-5)
    text = [r["attention"] for r in rows if r["row"] == "L1H2" and r["place"] == "text 5"]
    assert sum(text) / 6 == pytest.approx(hostile.profile[1, 2, 5 * 31 : 5 * 31 + 30].mean().item(), abs=1e-4)


def test_of_many_heads_each_layers_mean_is_drawn():
    profile = torch.rand(20, 5, 2 * 31 + 30)
    profile[3, 0] = torch.nan
    figure = profile_figure(profile, demos=2, of="a model on a task", prompts=7)
    rows = drawn(figure)
    assert {r["row"] for r in rows} == {f"layer {i}" for i in range(20)} - {"layer 3"}, "NaN is not drawn"
    (found,) = [r["attention"] for r in rows if (r["row"], r["place"]) == ("layer 4", "label 1")]
    assert found == pytest.approx(profile[4, :, 61].mean().item(), abs=1e-5)
    assert sum(r["row"] == "layer 0" for r in rows) == 3 * COARSE + 2
    assert "a model on a task: mean over 7 prompts and over the heads of each layer" in texts(figure.svg())


def test_without_demonstrations_only_the_test_input_is_drawn():
    rows = drawn(profile_figure(torch.rand(1, 2, 30), demos=0, of="x", prompts=1))
    assert {r["place"] for r in rows} == {"test input"}
