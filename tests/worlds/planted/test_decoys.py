"""Decoys and doses of planted models: the model computes the closed form, whatever stands beside what."""

from __future__ import annotations

import pytest
import torch
from support import has_hooked_transformer, needs_hooked
from worlds.planted.plans import best_kind, decoys, gaussian, mixed

from icl_kernel_lens import corrupt, knock_out, read
from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.worlds.planted.closed_form import PlantedPlan
from icl_kernel_lens.worlds.planted.model import PlantedModel
from icl_kernel_lens.worlds.planted.roles import PlantedHead

CASES = [
    pytest.param("plain", True, "TransformerBridge", id="plain-norm-bridge"),
    pytest.param("rotary", True, "TransformerBridge", id="rotary-norm-bridge"),
    pytest.param("parallel", True, "TransformerBridge", id="parallel-norm-bridge"),
    pytest.param("plain", False, "HookedTransformer", id="plain-bare", marks=needs_hooked),
    pytest.param("rotary", False, "HookedTransformer", id="rotary-bare", marks=needs_hooked),
    pytest.param("parallel", True, "HookedTransformer", id="parallel-norm", marks=needs_hooked),
]


def close(found, expected, atol=1e-4):
    torch.testing.assert_close(found.double(), expected, atol=atol, rtol=0)


@pytest.mark.parametrize(("form", "norm", "kind"), CASES)
def test_the_model_computes_every_decoy(form, norm, kind):
    """Weights on labels and on separators, logits, and cuts of either, renormalised and zeroed."""
    plan = decoys(form=form, norm=norm)
    model, prompts = PlantedModel.of(plan, kind).model, plan.prompts(count=6)
    for offset in (0, 1):
        evidence = read(model, prompts, offsets=(offset,), progress=False)
        close(evidence.weights["edges"], plan.weights(prompts, offset=offset))
        close(evidence.label_scores, plan.logits(prompts))
        for renormalised in (True, False):
            cut = knock_out(
                model, prompts, offsets=(offset,), renormalise=renormalised, controls=False, progress=False
            )
            close(cut.effect(), plan.effects(prompts, renormalised=renormalised, offset=offset))


@pytest.mark.parametrize("seed", range(36))
def test_mixtures_drawn_at_random_are_computed_exactly(seed):
    plan = mixed(seed, norm=None if has_hooked_transformer() else True)
    prompts = plan.prompts(count=6)
    evidence = read(PlantedModel.of(plan).model, prompts, progress=False)
    close(evidence.weights["label"], plan.weights(prompts))
    close(evidence.label_scores, plan.logits(prompts))
