"""Kernel heads beside impostors: none of these is called a kernel head, and the true one is found; see `benchmarks/recovery.py`."""

from __future__ import annotations

import warnings

import pytest
from support import has_hooked_transformer

from benchmarks.planted import IMPOSTORS, impostor_plan
from icl_kernel_lens import locate_heads
from icl_kernel_lens.results.criteria import KERNEL_CLASSES
from icl_kernel_lens.worlds.planted.model import PlantedModel

CASES = [("salience", 0), ("misbound", 1), ("echo", 1)]
"""By what its weights go with, by the input it is bound to, by where its answer comes from."""
DRAWN = ("opposed_kernel", "pair_kernel")


@pytest.mark.once
@pytest.mark.parametrize(("kind", "seed"), CASES)
def test_the_kernel_is_found_and_its_impostor_is_not_taken_for_one(kind, seed):
    plan = impostor_plan(kind, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PlantedModel.of(plan, None if has_hooked_transformer() else "TransformerBridge").model
        prompts = plan.prompts(count=128, tests_per_set=4, seed=seed + 1)
        ranking = locate_heads(model, prompts, progress=False)
    (kernel,) = (h.ref for h in plan.heads if h.role == "kernel")
    assert plan.findable == (kernel,)
    assert ranking.heads == (kernel,)
    assert ranking.classes[kernel] in KERNEL_CLASSES
    (impostor,) = (h.ref for h in plan.heads if h.role == kind)
    assert ranking.classes[impostor] == plan.expected[impostor]


@pytest.mark.parametrize("kind", DRAWN)
def test_impostors_have_clear_classes_and_a_share_worth_the_name(kind):
    assert kind in IMPOSTORS
    plan = impostor_plan(kind, 0)
    assert plan.heads == impostor_plan(kind, 0).heads, "drawn by the seed alone"
    facts = plan.facts().set_index("head")
    (kernel,) = (str(h.ref) for h in plan.heads if h.role == "kernel")
    assert facts.loc[kernel, "findable"]
    others = facts.loc[[str(h.ref) for h in plan.heads if str(h.ref) != kernel]]
    assert others["findable"].sum() == (kind == "pair_kernel")
    assert others["clear"].all()
    alone = impostor_plan(kind, 0, kernel=False)
    assert all(h.role != "kernel" for h in alone.heads)
