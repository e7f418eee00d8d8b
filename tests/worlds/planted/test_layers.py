"""Decoys and doses of planted models: the model computes the closed form, whatever stands beside what."""

from __future__ import annotations

import pytest
import torch
from support import has_hooked_transformer, needs_hooked
from worlds.planted.plans import decoys, one

from benchmarks.planted import mixed_plan
from icl_kernel_lens import corrupt, knock_out, read
from icl_kernel_lens.errors import PromptError
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
    plan = mixed_plan(seed, norm=None if has_hooked_transformer() else True)
    prompts = plan.prompts(count=6)
    evidence = read(PlantedModel.of(plan).model, prompts, progress=False)
    close(evidence.weights["label"], plan.weights(prompts))
    close(evidence.label_scores, plan.logits(prompts))


def test_what_the_weights_of_each_decoy_go_with():
    """Total variation as inputs are exchanged, against weights carried along and left in place; as x is replaced."""
    plan = decoys(demos=8)
    prompts = plan.prompts(count=200)
    weights = plan.weights(prompts)
    exchanged = corrupt(prompts, "exchange_inputs", seed=1)
    inputs, before = (p.tokens.gather(1, p.label_pos - 1) for p in (exchanged, prompts))
    came_from = (inputs[:, :, None] == before[:, None]).long().argmax(-1)
    carried = weights.take_along_dim(came_from[:, None, None], -1)
    other = corrupt(prompts, "replace_test_input", seed=1)

    def moved(one, two):
        shares = [w / w.sum(-1, keepdim=True).clamp(min=1e-30) for w in (one, two)]
        return (shares[0] - shares[1]).abs().sum(-1).mean(0) / 2

    with_input, in_place = moved(plan.weights(exchanged), carried), moved(plan.weights(exchanged), weights)
    replaced = moved(plan.weights(other), weights)
    small = {
        "kernel": (True, False, False),
        "salience": (True, False, True),
        "addressing": (False, True, False),
        "misbound": (False, False, False),
        "label_blind": (True, False, False),
        "harmful_key": (True, False, False),
        "recency": (False, True, True),
        "pair_kernel": (False, False, False),
    }
    for head in plan.heads:
        if head.role in small and not head.echo_share:
            found = [float(moves[head.ref]) for moves in (with_input, in_place, replaced)]
            assert all(
                x < 1e-6 if low else x > 0.15 for x, low in zip(found, small[head.role], strict=True)
            ), (
                head,
                found,
            )


def test_opposed_kernels_matter_alone_and_together_do_nothing():
    pair = PlantedHead(1, 0, "opposed_kernel"), PlantedHead(1, 1, "opposing_kernel")
    plan = one(*pair)
    prompts = plan.prompts(count=50)
    clean = plan.logits(prompts)
    torch.testing.assert_close(plan.logits(prompts, [h.ref for h in pair]), clean)
    effects = plan.effects(prompts).mean(0)
    assert effects[1, 0] < -1
    assert effects[1, 1] > 1
    assert [plan.expected[h.ref] for h in pair] == ["cancelling", "cancelling"]


def test_cuts_of_a_harmful_key_disagree():
    plan = one(PlantedHead(1, 0, "kernel"), PlantedHead(1, 1, "harmful_key"))
    prompts = plan.prompts(count=50)
    assert plan.effects(prompts)[:, 1, 1].mean() < -0.5
    assert plan.effects(prompts, renormalised=False)[:, 1, 1].abs().max() < 1e-9
    assert plan.carried(prompts)[:, 1, 1].abs().max() < 1e-9


@pytest.mark.once
def test_every_class():
    """What a head is where it matters, and where it does not."""
    settings = {"layers": 3, "heads_per_layer": 6, "separator": True, "trailing": True, "direct": 0.2}
    classes = {
        "kernel": "kernel head",
        "pair_kernel": "pair kernel",
        "after_kernel": "kernel head",
        "salience": "salience",
        "addressing": "addressing",
        "misbound": "misbound",
        "label_blind": "label-blind",
        "harmful_key": "sink",
        "recency": "recency",
        "driver": "driver",
        "anti_kernel": "driver",
        "echo": "echo",
        "last_label": "recency",
        "uniform": "driver",
    }
    unread = dict.fromkeys(("kernel head", "pair kernel", "label-blind", "sink"), "shadow") | {"echo": "echo"}
    for role, name in classes.items():
        heads = PlantedHead(1, 0, role, gain=9.0), PlantedHead(1, 0, role, gain=0.0)
        found = [
            one(head, PlantedHead(1, 1, "driver", gain=2.0), **settings).expected[1, 0] for head in heads
        ]
        assert found == [name, unread.get(name, "neither")], role
    mostly = [PlantedHead(1, i, "kernel", echo_share=d) for i, d in enumerate((0.2, 0.8))]
    plan = one(*mostly, PlantedHead(1, 2, "early_kernel"), PlantedHead(2, 0, "mover"), **settings)
    assert [plan.expected[1, i] for i in range(3)] == ["kernel head", "echo", "kernel head"]
    assert list(plan.table()["expected"]) == list(plan.expected.values())


def test_tokens_after_labels_are_asked_for_where_they_are():
    plan = one(PlantedHead(1, 0, "kernel"))
    with pytest.raises(PromptError, match="got offset=1"):
        plan.weights(plan.prompts(count=2), offset=1)
