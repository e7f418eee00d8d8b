"""Planted models as a user builds them: at depth, at random, and those that cannot be built."""

from __future__ import annotations

import pytest
import torch
from support import has_hooked_transformer, needs_hooked

from benchmarks.planted import random_plan
from icl_kernel_lens import read
from icl_kernel_lens.errors import ModelError, PromptError
from icl_kernel_lens.worlds.planted.closed_form import PlantedPlan
from icl_kernel_lens.worlds.planted.model import PlantedModel, planted_model
from icl_kernel_lens.worlds.planted.roles import PlantedHead


def test_a_model_of_gptj_s_shape():
    """28 layers of 16 heads, kernels in layers 18–21; small, and exact at depth."""
    heads = [PlantedHead(18 + i, 5 * i, "kernel", bandwidth=0.3 + 0.1 * i) for i in range(4)]
    heads += [PlantedHead(5, 2, "unread_kernel"), PlantedHead(26, 3, "echo", gain=2.0)]
    for kind in ("HookedTransformer", "TransformerBridge"):
        if kind == "HookedTransformer" and not has_hooked_transformer():
            continue
        planted = planted_model(heads, layers=28, heads_per_layer=16, form="parallel", kind=kind, demos=8)
        assert sum(p.numel() * p.element_size() for p in planted.model.parameters()) < 200e6
        prompts = planted.prompts(count=4)
        evidence = read(planted.model, prompts, progress=False)
        torch.testing.assert_close(
            evidence.weights["label"].double(), planted.plan.weights(prompts), atol=1e-4, rtol=0
        )
        torch.testing.assert_close(
            evidence.label_scores.double(), planted.plan.logits(prompts), atol=1e-4, rtol=0
        )
    assert planted.findable == ((18, 0), (19, 5), (20, 10), (21, 15))


@pytest.mark.once
@pytest.mark.parametrize("seed", [0, 4, 5, 7])
def test_random_plans_are_clear_and_computed_exactly(seed):
    before = torch.get_rng_state()
    plan = random_plan(seed, norm=None if has_hooked_transformer() else True)
    planted = PlantedModel.of(plan)
    if plan.norm:
        PlantedModel.of(plan, "TransformerBridge")
    assert torch.equal(torch.get_rng_state(), before), "the global seed is left as it was"
    assert 2 <= plan.layers <= 12
    assert 2 <= plan.heads_per_layer <= 16
    assert 2 <= plan.labels <= 6
    assert 4 <= plan.demos <= 32
    kernels = [h for h in plan.heads if h.role == "kernel"]
    assert len(kernels) <= 4
    unclear = [ref for ref, clear in plan.clear.items() if not clear]
    assert all(plan.all_heads[ref].role == "kernel" for ref in unclear)
    wanted = {"driver": "driver", "anti_kernel": "driver", "unread_kernel": "shadow"}
    for ref, kind in plan.expected.items():
        assert kind == wanted.get(plan.all_heads[ref].role, kind)
    again = random_plan(seed, norm=None if has_hooked_transformer() else True)
    assert (again.heads, repr(again)) == (plan.heads, repr(plan))
    prompts = planted.prompts(count=12)
    evidence = read(planted.model, prompts, progress=False)
    torch.testing.assert_close(evidence.weights["label"].double(), plan.weights(prompts), atol=1e-4, rtol=0)
    torch.testing.assert_close(evidence.label_scores.double(), plan.logits(prompts), atol=1e-3, rtol=0)


def test_what_cannot_be_built_or_drawn_is_refused():
    kernel = PlantedHead(1, 0, "kernel")
    plan = PlantedPlan((kernel,), layers=2, heads_per_layer=2, demos=6, inputs=9)
    with pytest.raises(PromptError, match="7 demonstrations make 16 tokens, and the context has 14"):
        plan.prompts(7)
    with pytest.raises(PromptError, match="6 \\+ 4 inputs a class, and the world has 9"):
        plan.prompts(tests_per_set=4)
    with pytest.raises(PromptError, match="at least 2"):
        plan.prompts(1)
    other = PlantedPlan((kernel,), layers=2, heads_per_layer=2, inputs=40)
    with pytest.raises(PromptError, match="own prompts"):
        plan.logits(other.prompts(count=2))
    bare = PlantedPlan((kernel,), layers=2, heads_per_layer=2, norm=False)
    with pytest.raises(ModelError, match="norm=False needs kind='HookedTransformer'"):
        PlantedModel.of(bare, "TransformerBridge")
    if not has_hooked_transformer():
        with pytest.raises(ModelError, match="removed in 4.0"):
            PlantedModel.of(bare)


@needs_hooked
def test_the_default_class_is_hooked_transformer():
    planted = planted_model([PlantedHead(1, 0, "kernel")], layers=2, heads_per_layer=2)
    assert type(planted.model).__name__ == planted.kind == "HookedTransformer"
    assert repr(planted).startswith("PlantedModel(HookedTransformer, plain, norm on, 2 layers × 2 heads")
