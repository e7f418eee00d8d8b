"""Fit of heads to the model's own kernel: loops written out, copies and impostors by hand, and the bundled model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from icl_kernel_lens import influence_fidelity, label_influence, load_task, read
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.numbers.influence import pair_part
from icl_kernel_lens.reasons import Reason


@pytest.fixture(scope="module")
def measured(mini):
    prompts = load_task("topics").prompts(mini, demos=8, count=96, sets=16, seed=0)
    return label_influence(mini, prompts, progress=False), read(mini, prompts, progress=False)


def test_the_bundled_models_kernel_has_one_head(measured):
    influence, evidence = measured
    found = influence_fidelity(influence, evidence)
    mean = found.mean()
    assert float(mean[2, 1]) >= 0.9
    others = mean.clone()
    others[2, 1] = torch.nan
    assert float(others.nan_to_num(-1).max()) <= 0.1
    assert float(found.companions["p_family"][2, 1]) <= 0.05
    assert float(found.companions["p_family"][~others.isnan()].min()) > 0.05
    assert float(found.companions["other_order"][2, 1]) > 0.1
    assert str(found.best()) == "L2H1"


def test_the_score_is_the_correlation_of_pair_parts(measured):
    influence, evidence = measured
    found = influence_fidelity(influence, evidence)
    sets = influence.demo_set
    for layer, head in ((2, 1), (1, 2)):
        weights = evidence.weights["label"][:, layer, head].double()
        x = pair_part(weights / weights.sum(-1, keepdim=True), sets).flatten().numpy()
        y = influence.pair().flatten().numpy()
        assert float(found.mean()[layer, head]) == pytest.approx(float(np.corrcoef(x, y)[0, 1]), abs=1e-4)
        plain = np.concatenate([w - w.mean() for w in weights.numpy()])
        pull = np.concatenate([g - g.mean() for g in influence.values.double().numpy()])
        expected = float(np.corrcoef(plain, pull)[0, 1])
        assert float(found.companions["with_influence"][layer, head]) == pytest.approx(expected, abs=1e-4)


def planted(evidence, influence, **heads):
    """Evidence whose first heads have these weights."""
    weights = evidence.weights["label"].clone()
    for head, kernel in heads.items():
        weights[:, 0, int(head[1:])] = kernel
    return replace(evidence, weights={"label": weights})


def test_heads_that_ignore_the_test_input_do_not_fit(measured):
    influence, evidence = measured
    sets, count = influence.demo_set, len(influence.prompts)
    g = influence.values.clamp(min=0) + 0.01
    mean = torch.stack([g[sets == s].mean(0) for s in sets])
    gain = torch.rand(count, 1, generator=torch.Generator().manual_seed(0)) + 0.5
    place = torch.linspace(0.1, 1, 8).expand(count, -1)
    found = influence_fidelity(
        influence,
        planted(
            evidence,
            influence,
            h0=0.9 * g / g.sum(-1, keepdim=True),
            h1=0.9 * mean / mean.sum(-1, keepdim=True),
            h2=gain * place / 20,
            h3=0.5 * mean * gain / mean.sum(-1, keepdim=True),
        ),
    )
    fit = found.mean()[0]
    assert float(fit[0]) > 0.9
    assert fit[1:].isnan().all()
    assert found.reasons[Reason.SET_ALIKE] == 3 * count
    assert float(found.companions["with_influence"][0, 1]) > 0.5, "plain correlation is fooled"


def test_a_scale_and_a_pooling_can_be_chosen(measured, mini):
    influence, _ = measured
    evidence = read(mini, influence.prompts, keep=("label_sum",), offsets=(0, 1), progress=False)
    one = influence_fidelity(influence, evidence, pooling="label_sum", scale="probability")
    assert one.settings["pooling"] == "label_sum"
    assert float(one.mean()[2, 1]) > 0.5
    edges = influence_fidelity(influence, evidence, pooling="edges")
    assert edges.settings["offsets"] == "(0, 1)"


def test_others_prompts_and_prompts_of_their_own_are_refused(measured, mini):
    influence, evidence = measured
    with pytest.raises(ResultError, match="same prompts and the same model"):
        influence_fidelity(influence, replace(evidence, prompts=evidence.prompts.select(range(95, -1, -1))))
    with pytest.raises(ResultError, match="draws must be at least 1"):
        influence_fidelity(influence, evidence, draws=0)
    regrouped = replace(evidence.prompts, demo_set=torch.arange(96) % 16)
    with pytest.raises(ResultError, match="agree in which prompts share"):
        influence_fidelity(influence, replace(evidence, prompts=regrouped))
    with pytest.raises(ResultError, match="must be a reading of this model"):
        influence_fidelity(influence, replace(evidence, label_scores=evidence.label_scores * 1.5))
    alone = load_task("topics").prompts(mini, demos=4, count=6, seed=0)
    with pytest.raises(ResultError, match="no two of these prompts share one"):
        influence_fidelity(label_influence(mini, alone, progress=False), read(mini, alone, progress=False))
