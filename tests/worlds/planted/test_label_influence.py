"""Label influence, label part and what each head carries, against runs of the model with labels replaced in it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from support import has_hooked_transformer, needs_hooked
from worlds.planted.plans import best_kind, decoys, gaussian

from benchmarks.planted import mixed_plan
from icl_kernel_lens import HeadRef, carried_influence, label_influence, read
from icl_kernel_lens.interventions.coverage import Relabelled
from icl_kernel_lens.interventions.label_routes import take_out
from icl_kernel_lens.numbers.identification import share_removed
from icl_kernel_lens.worlds.planted.closed_form import PlantedPlan
from icl_kernel_lens.worlds.planted.label_influence import kernel_shares, label_shares
from icl_kernel_lens.worlds.planted.model import PlantedModel
from icl_kernel_lens.worlds.planted.roles import FIRST_LABEL, PlantedHead
from icl_kernel_lens.worlds.planted.view import view_of


def relabelled(prompts, labels):
    """The same prompts with other labels, in tokens and in what is said of them."""
    tokens = prompts.tokens.scatter(1, prompts.label_pos, FIRST_LABEL + labels)
    return replace(prompts, tokens=tokens, demo_labels=labels)


def one_replaced(prompts, demo, shift):
    labels = prompts.demo_labels.clone()
    labels[:, demo] = (labels[:, demo] + shift) % prompts.labels
    return relabelled(prompts, labels), labels[:, demo]


def pulled(scores, changed, own, new):
    """The fall of s_own − s_new."""
    fall = scores - changed
    return (fall.gather(1, own[:, None]) - fall.gather(1, new[:, None])).squeeze(1)


def scores_of(model, prompts):
    return read(model, prompts, progress=False).label_scores.double()


@pytest.mark.parametrize("seed", [1, 2, 4])
def test_influence_and_label_part_are_the_models_own(seed):
    plan = mixed_plan(seed, norm=True)
    model, prompts = PlantedModel.of(plan, best_kind()).model, plan.prompts(count=5)
    clean = scores_of(model, prompts)
    found = torch.zeros(5, plan.demos, dtype=torch.float64)
    for demo, shift in product(range(plan.demos), range(1, plan.labels)):
        other, new = one_replaced(prompts, demo, shift)
        fall = pulled(clean, scores_of(model, other), prompts.demo_labels[:, demo], new)
        found[:, demo] += fall / (plan.labels - 1)
    torch.testing.assert_close(found, plan.influence(prompts), atol=2e-4, rtol=0)
    shifts = [relabelled(prompts, (prompts.demo_labels + k) % plan.labels) for k in range(plan.labels)]
    part = clean - torch.stack([scores_of(model, p) for p in shifts]).mean(0)
    torch.testing.assert_close(part, plan.label_part(prompts), atol=2e-4, rtol=0)


def edge_read_from(model, prompts, other, head, demo, factor, offset):
    """Label scores where one head's edge to one label reads key or value of other prompts; by TransformerLens's hooks."""
    layer, index = head
    at, answer = int(prompts.label_pos[0, demo]) + offset, prompts.tokens.shape[1] - 1
    names = {
        part: f"blocks.{layer}.attn.hook_{part}" for part in ("q", "k", "rot_q", "rot_k", "v", "pattern")
    }
    with torch.no_grad():
        _, own = model.run_with_cache(prompts.tokens)
        _, source = model.run_with_cache(other.tokens)
    rot = "rot_" if names["rot_k"] in own else ""
    query, key = own[names[f"{rot}q"]][:, answer, index], source[names[f"{rot}k"]][:, at, index]
    score = (query * key).sum(-1) / model.cfg.d_head**0.5

    def change_score(scores, hook):
        if factor != "values":
            scores[:, index, answer, at] = score
        return scores

    def change_value(z, hook):
        if factor != "keys":
            moved = source[names["v"]][:, at, index] - own[names["v"]][:, at, index]
            weight = seen[0][:, index, answer, at, None]
            z[:, answer, index] += weight * moved
        return z

    seen = []
    hooks = [
        (f"blocks.{layer}.attn.hook_attn_scores", change_score),
        (names["pattern"], lambda pattern, hook: seen.append(pattern)),
        (f"blocks.{layer}.attn.hook_z", change_value),
    ]
    with torch.no_grad():
        logits = model.run_with_hooks(prompts.tokens, fwd_hooks=hooks)[:, -1]
    return logits[:, FIRST_LABEL : FIRST_LABEL + prompts.labels].double()


CARRIED = [
    ("plain", "values", 0),
    ("rotary", "keys", 0),
    ("parallel", "both", 0),
    ("rotary", "values", 1),
    ("plain", "both", 1),
]


@needs_hooked
@pytest.mark.parametrize(("form", "factor", "offset"), CARRIED)
def test_what_heads_carry_is_what_their_edges_do(form, factor, offset):
    """Every head that writes, at two of the demonstrations."""
    plan = decoys(form=form, labels=2)
    model, prompts = PlantedModel.of(plan, "HookedTransformer").model, plan.prompts(count=3)
    carried = plan.carried(prompts, factor, offset=offset)
    clean = scores_of(model, prompts)
    for head, demo in product(plan.heads, (0, 4)):
        other, new = one_replaced(prompts, demo, 1)
        changed = edge_read_from(model, prompts, other, head.ref, demo, factor, offset)
        found = pulled(clean, changed, prompts.demo_labels[:, demo], new)
        torch.testing.assert_close(found, carried[:, head.layer, head.head, demo], atol=2e-4, rtol=0)
    assert carried.abs().amax((0, 3)).gt(1e-3).sum() >= (1 if offset else 5)


def test_a_kernels_influence_is_its_weights():
    """2 · gain · attention for any number of labels, and all of it carried by its values."""
    for labels in (2, 4):
        plan = PlantedPlan(
            (PlantedHead(1, 0, "kernel", gain=2.0, bandwidth=0.5),),
            layers=2,
            heads_per_layer=2,
            labels=labels,
            direct=3.0,
            demos=6,
        )
        prompts = plan.prompts(count=20)
        weights, influence = plan.weights(prompts)[:, 1, 0], plan.influence(prompts)
        torch.testing.assert_close(influence, 4.0 * weights)
        torch.testing.assert_close(
            influence / influence.sum(-1, keepdim=True), gaussian(plan, prompts, 0.5), atol=1e-6, rtol=0
        )
        for factor in ("values", "both"):
            torch.testing.assert_close(plan.carried(prompts, factor)[:, 1, 0], influence)
        assert plan.carried(prompts, "keys").abs().max() < 1e-12
        votes = torch.nn.functional.one_hot(prompts.demo_labels, labels).double()
        part = 2.0 * (weights[..., None] * votes).sum(1)
        torch.testing.assert_close(plan.label_part(prompts), part - part.mean(-1, keepdim=True))


@pytest.mark.parametrize("seed", range(5))
def test_what_is_measured_is_the_closed_form(seed):
    """Heads of any role and dose, in worlds with separators, trailing tokens and noise, with norms and without."""
    plan = mixed_plan(seed, norm=None if has_hooked_transformer() else True)
    prompts = plan.prompts(count=6, tests_per_set=3, seed=seed)
    model = PlantedModel.of(plan, best_kind()).model
    found = label_influence(model, prompts, progress=False)
    size = max(1.0, float(plan.influence(prompts).abs().max()))
    close = {"atol": 1e-4 * size, "rtol": 0}
    torch.testing.assert_close(found.values.double(), plan.influence(prompts), **close)
    prior = found.shifted.mean(1)
    torch.testing.assert_close((found.shifted[:, 0] - prior).double(), plan.label_part(prompts), **close)
    for factor in ("both", "values", "keys"):
        parts = carried_influence(model, found, carrier=factor, progress=False)
        torch.testing.assert_close(parts.values.double(), plan.carried(prompts, factor), **close)


def test_shares_of_the_label_part_are_what_relabelled_values_take():
    """Each head's values averaged over the shifts, weights fixed, with everything above recomputed; as runs say."""
    plan = PlantedPlan(
        (
            PlantedHead(1, 0, "kernel", gain=2.0),
            PlantedHead(1, 1, "salience", gain=2.0),
            PlantedHead(2, 0, "echo", gain=1.0),
        ),
        layers=3,
        heads_per_layer=3,
        labels=3,
        direct=0.5,
        demos=6,
    )
    prompts = plan.prompts(count=12, tests_per_set=4)
    model = PlantedModel.of(plan, best_kind()).model
    runs = Relabelled.of(model, prompts, (0,), "model", progress=False)
    routes = take_out(runs, [[h.ref] for h in plan.heads], ("transport",), checkpoint=None)
    measured = share_removed(routes.left, routes.part, prompts.demo_set)[0][:, 0]
    view, refs = view_of(plan, prompts), [h.ref for h in plan.heads]
    closed = label_shares(plan, view, plan.sinks, refs)
    torch.testing.assert_close(measured, closed, atol=1e-4, rtol=0)
    assert closed.min() > 0.05
    assert label_shares(plan, view, plan.sinks, [HeadRef(1, 2)]) == 0, "an idle head"


def test_shares_of_the_kernel_part():
    """A lone kernel carries all and is followed; a head whose weights ignore the test input carries none."""
    heads = PlantedHead(1, 0, "kernel", gain=2.0), PlantedHead(1, 1, "salience", gain=2.0)
    settings = {"layers": 2, "heads_per_layer": 3, "labels": 3, "demos": 6}
    for given, shares in ((heads[:1], [1.0]), (heads, [1.0, 0.0])):
        plan = PlantedPlan(given, **settings)
        prompts = plan.prompts(count=40, tests_per_set=4)
        refs = [h.ref for h in given]
        found = kernel_shares(plan, view_of(plan, prompts), plan.sinks, refs, prompts.demo_set)
        assert found.share.tolist() == pytest.approx(shares, abs=0.1)
        assert found.fit[0] > (0.95 if len(given) == 1 else 0.9)
        assert plan.findable == ((1, 0),)
    alone = PlantedPlan(heads[1:], **settings)
    assert alone.facts()["kernel_share"].isna().all(), "no kernel part to carry"
