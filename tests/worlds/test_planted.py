"""Planted models against their closed form, in every form, with and without norms, under both classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import has_hooked_transformer, needs_hooked

from benchmarks.planted import random_plan
from icl_kernel_lens import corrupt, knock_out, read
from icl_kernel_lens.errors import ModelError, PromptError
from icl_kernel_lens.worlds.planted.closed_form import PlantedPlan
from icl_kernel_lens.worlds.planted.model import PlantedModel, planted_model
from icl_kernel_lens.worlds.planted.roles import PlantedHead

CASES = [
    pytest.param(
        form,
        norm,
        kind,
        id=f"{form}-{'norm' if norm else 'plain'}-{kind}",
        marks=needs_hooked if kind == "HookedTransformer" else (),
    )
    for form in ("plain", "rotary", "parallel")
    for norm, kind in ((True, "HookedTransformer"), (False, "HookedTransformer"), (True, "TransformerBridge"))
]


def everything(**settings):
    """Every role once or more, in four layers of six heads."""
    heads = [
        PlantedHead(0, 1, "first_token"),
        PlantedHead(0, 4, "word_preference", label=2, gain=0.5),
        PlantedHead(1, 0, "kernel"),
        PlantedHead(1, 1, "unread_kernel", bandwidth=0.25),
        PlantedHead(1, 2, "cancelled_kernel"),
        PlantedHead(1, 3, "uniform"),
        PlantedHead(2, 0, "canceller"),
        PlantedHead(2, 1, "kernel", gain=2.0, bandwidth=0.6),
        PlantedHead(2, 2, "driver", gain=4.0),
        PlantedHead(2, 3, "anti_kernel", gain=2.0, bandwidth=0.5),
        PlantedHead(2, 4, "uniform", gain=1.0),
        PlantedHead(3, 0, "echo"),
        PlantedHead(3, 1, "echo", gain=1.0),
        PlantedHead(3, 2, "last_label"),
        PlantedHead(3, 3, "last_label", gain=0.7),
        PlantedHead(3, 4, "word_preference", label=1),
    ]
    given = {"layers": 4, "heads_per_layer": 6, "labels": 3, "direct": 0.3, "demos": 12, "noise": 0.1}
    return PlantedPlan(**({"heads": tuple(heads)} | given | settings))


@pytest.fixture(scope="module")
def built():
    """`built(form, norm, kind)`: the model with every role, built once."""
    made = {}

    def make(form, norm, kind):
        if (form, norm, kind) not in made:
            made[form, norm, kind] = PlantedModel.of(everything(form=form, norm=norm), kind)
        return made[form, norm, kind]

    return make


def best_kind():
    return "HookedTransformer" if has_hooked_transformer() else "TransformerBridge"


def gaussian(plan, prompts, bandwidth):
    """exp(−|φ(x) − φ(x_i)|² / 2h²), normalised; from the features alone."""
    phi = plan.features[prompts.tokens]
    inputs = phi.gather(1, (prompts.label_pos - 1)[..., None].expand(-1, -1, phi.shape[-1]))
    test = phi[torch.arange(len(prompts)), prompts.answer_pos]
    kernel = (-(inputs - test[:, None]).square().sum(-1) / (2 * bandwidth**2)).exp()
    return kernel / kernel.sum(-1, keepdim=True)


@pytest.mark.parametrize(("form", "norm", "kind"), CASES)
def test_the_model_computes_its_closed_form(built, form, norm, kind):
    """Weights, logits and the effect of every knock-out; kernels from the features alone, too."""
    planted = built(form, norm, kind)
    plan, prompts = planted.plan, planted.prompts(count=24)
    evidence = read(planted.model, prompts, progress=False)
    atol = 1e-4 if norm else 1e-5
    weights = evidence.weights["label"]
    torch.testing.assert_close(weights.double(), plan.weights(prompts), atol=atol, rtol=0)
    for head in planted.heads:
        if head.role in ("kernel", "unread_kernel", "cancelled_kernel"):
            row = weights[:, head.layer, head.head].double()
            torch.testing.assert_close(
                row / row.sum(-1, keepdim=True), gaussian(plan, prompts, head.width), atol=atol, rtol=0
            )
            sink = evidence.sink[:, head.layer, head.head]
            torch.testing.assert_close(row.sum(-1), 1 - sink.double(), atol=1e-5, rtol=0)
            assert 0.1 < float(sink.median()) < 0.35, "0.2 was asked for"
    torch.testing.assert_close(evidence.label_scores.double(), plan.logits(prompts), atol=1e-4, rtol=0)
    assert bool((evidence.model_tokens == prompts.label_tokens[0, evidence.answers]).all())

    effects = knock_out(planted.model, prompts, controls=False, progress=False)
    found = effects.effect().double()
    torch.testing.assert_close(found, plan.effects(prompts), atol=1e-4, rtol=0)
    share = found.mean(0) / effects.base.double().mean()
    for head in planted.heads:
        if head.role == "kernel":
            assert share[head.layer, head.head] < -0.1
        elif head.role in ("unread_kernel", "cancelled_kernel", "canceller", "carrier", "idle"):
            assert found[:, head.layer, head.head].abs().max() < 1e-4


@pytest.mark.parametrize("form", ["plain", "rotary", "parallel"])
def test_what_a_kernel_head_does_is_written_out_here_again(form):
    """One kernel, its sink and the direct path, without any of the plan's own sums."""
    planted = planted_model(
        [PlantedHead(1, 1, "kernel", gain=2.5, bandwidth=0.4)],
        layers=2,
        heads_per_layer=3,
        labels=4,
        form=form,
        kind=best_kind(),
        direct=0.5,
        demos=8,
    )
    prompts = planted.prompts(count=16)
    evidence = read(planted.model, prompts, progress=False)
    mass = 1 - evidence.sink[:, 1, 1].double()
    kernel = gaussian(planted.plan, prompts, 0.4)
    votes = torch.zeros(16, 4, dtype=torch.float64).scatter_add(1, prompts.demo_labels, kernel)
    assert prompts.test_labels is not None
    direct = 0.5 * torch.nn.functional.one_hot(prompts.test_labels, 4)
    torch.testing.assert_close(
        evidence.label_scores.double(), 2.5 * mass[:, None] * votes + direct, atol=1e-4, rtol=0
    )
    effects = knock_out(planted.model, prompts, controls=False, progress=False)
    answer = evidence.answers
    own = votes.gather(1, answer[:, None]).squeeze(1)
    expected = -2.5 * mass * (own - (votes.sum(1) - own) / 3)
    torch.testing.assert_close(effects.effect()[:, 1, 1].double(), expected, atol=1e-4, rtol=0)
    others = effects.effect().clone()
    others[:, 1, 1] = 0
    assert others.abs().max() < 1e-4


@needs_hooked
@pytest.mark.parametrize("form", ["plain", "rotary", "parallel"])
def test_both_classes_hold_the_same_model(built, form):
    """At every position of prompts, in what they show and in the answer; the Hugging Face forms are what they say."""
    hooked, bridge = (built(form, True, kind) for kind in ("HookedTransformer", "TransformerBridge"))
    tokens = hooked.prompts(count=3, seed=5).tokens
    with torch.no_grad():
        ours, theirs = (m.model(tokens, return_type="logits") for m in (hooked, bridge))
        hf = bridge.model.original_model(tokens).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    torch.testing.assert_close(theirs, hf, atol=1e-4, rtol=0)
    name = {"plain": "GPT2LMHeadModel", "rotary": "GPTNeoXForCausalLM", "parallel": "GPTJForCausalLM"}[form]
    assert type(bridge.model.original_model).__name__ == name
    if form == "rotary":
        assert not bridge.model.original_model.config.use_parallel_residual
    assert hooked.model.cfg.parallel_attn_mlp == (form == "parallel")
    assert hooked.model.cfg.positional_embedding_type == ("standard" if form == "plain" else "rotary")


@needs_hooked
def test_the_norm_has_one_scale_everywhere(built):
    planted = built("plain", True, "HookedTransformer")
    seen = []
    names = [n for n in planted.model.hook_dict if n.endswith(("ln1.hook_scale", "ln_final.hook_scale"))]
    with torch.no_grad():
        planted.model.run_with_hooks(
            planted.prompts(count=8).tokens, fwd_hooks=[(n, lambda x, hook: seen.append(x)) for n in names]
        )
    assert len(names) == 5
    assert len(seen) >= 5
    scales = torch.cat([s.flatten() for s in seen])
    assert (scales.max() - scales.min()) / scales.mean() < 2e-6


def test_permuted_labels_move_echoes_and_word_preferences_only(built):
    """Kernels follow the inputs, echoes the answer, word preferences the word."""
    planted = built("parallel", True, best_kind())
    prompts = planted.prompts(count=40)
    permuted = corrupt(prompts, "permute_labels", seed=3)
    before, after = (read(planted.model, p, progress=False) for p in (prompts, permuted))
    words, new_words = prompts.demo_labels, permuted.demo_labels
    for head in planted.heads:
        one, two = (e.weights["label"][:, head.layer, head.head] for e in (before, after))
        moved = (one - two).abs().sum(-1)
        if head.role in ("echo", "word_preference"):
            assert moved.median() > 0.2, head
        elif head.role != "idle":
            assert moved.max() < 1e-4, head
        for evidence, labels, row in ((before, words, one), (after, new_words, two)):
            if head.role == "word_preference":
                chosen = labels == head.label
            elif head.role == "echo":
                chosen = labels == evidence.answers[:, None]
            else:
                continue
            # Weights are equal among the chosen labels, and larger than any other.
            there = chosen.any(1) & ~chosen.all(1)
            high = row.masked_fill(~chosen, torch.inf).amin(1)[there]
            low = row.masked_fill(chosen, -torch.inf).amax(1)[there]
            assert (high > low).float().mean() > (0.99 if head.role == "word_preference" else 0.8), head


def test_every_head_has_a_class_and_the_table_says_why():
    plan = everything()
    expected = plan.expected
    assert len(expected) == 24
    roles = {ref: head.role for ref, head in plan.all_heads.items()}
    sure = {
        "kernel": "kernel head",
        "unread_kernel": "shadow",
        "cancelled_kernel": "shadow",
        "canceller": "neither",
        "anti_kernel": "driver",
        "first_token": "neither",
        "echo": "echo",
        "word_preference": "word preference",
        "carrier": "neither",
        "idle": "neither",
    }
    for ref, role in roles.items():
        assert expected[ref] == sure.get(role, expected[ref]), (ref, role)
    assert expected[3, 2] == "neither"
    facts = plan.facts().set_index("head")
    # What is told of heads is what knock-outs and votes on prompts of its own give.
    prompts = plan.prompts(count=600, seed=77)
    share = -plan.effects(prompts).mean(0)
    clean = plan.logits(prompts)
    top = clean.amax(1)
    whole = (top - (clean.sum(1) - top) / 2).mean()
    for head in plan.all_heads.values():
        fact = facts.loc[str(head.ref)]
        assert fact["effect"] == pytest.approx(float(share[head.layer, head.head] / whole), abs=0.05)
    assert facts.loc["L1H0", "agreement"] - facts.loc["L1H0", "control"] > 0.25
    assert facts.loc["L1H0", "findable"]
    assert not facts.loc["L1H1", "findable"]
    assert plan.findable == ((1, 0), (2, 1))
    assert facts.loc["L2H3", "agreement"] < 0.1, "an anti-kernel's own vote is wrong"
    table = plan.table()
    assert plan.clear[3, 0]
    dull = everything(heads=tuple(replace(h, bandwidth=9.0) if h.role == "echo" else h for h in plan.heads))
    assert not dull.clear[3, 0], "an echo too flat to follow the answer"
    assert list(table["head"][:2]) == ["L0H0", "L0H1"]
    assert "Gaussian kernel" in table["why"][6]
    assert "of the logit difference goes" in table["why"][6]
    assert table["why"][0].endswith("no effect")
    assert "4 layers × 6 heads, 3 labels, 12 demonstrations: " in repr(plan)
    assert "2 kernel" in repr(plan)


def test_a_driver_that_decides_alone_matters():
    """Without kernels the answer follows the label prior; a gain of 0 takes the class away."""

    def plan(*heads, direct=0.5):
        return PlantedPlan(heads, layers=3, heads_per_layer=2, direct=direct)

    assert plan(PlantedHead(1, 0, "driver")).expected[1, 0] == "driver"
    assert plan(PlantedHead(1, 0, "driver", gain=0.0)).expected[1, 0] == "neither"
    assert plan(PlantedHead(1, 0, "last_label", gain=1.0)).expected[1, 0] == "driver"
    weak = plan(PlantedHead(1, 0, "kernel", gain=0.06))
    assert weak.expected[1, 0] == "shadow"
    assert not weak.clear[1, 0]
    assert plan(PlantedHead(1, 0, "kernel", gain=0.0)).expected[1, 0] == "shadow"
    quarter = [PlantedHead(1 + i // 2, i % 2, "kernel", gain=0.75) for i in range(4)]
    assert list(plan(*quarter, direct=0.0).expected.values()).count("kernel head") == 4


def test_prompts_are_what_the_closed_form_takes_them_for():
    plan = everything()
    prompts = plan.prompts(8, count=11, tests_per_set=3, seed=4)
    assert prompts.demos == 8
    assert prompts.demo_set.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert prompts.info.task == "planted"
    inputs = prompts.tokens[:, 1::2]
    assert all(len(set(row)) == 9 for row in inputs.tolist()), "no input twice"
    assert torch.equal(prompts.tokens[0, :-1], prompts.tokens[2, :-1])
    assert len({int(t) for t in prompts.tokens[:3, -1]}) == 3
    assert torch.equal(plan.classes[prompts.tokens[:, -1]], prompts.test_labels)
    assert torch.equal(plan.prompts(8, count=11, tests_per_set=3, seed=4).tokens, prompts.tokens)
    assert not torch.equal(plan.prompts(8, count=11, tests_per_set=3, seed=5).tokens, prompts.tokens)
    many = plan.prompts(count=400)
    shown = plan.classes[many.tokens[:, 1:-1:2]]
    assert (shown != many.demo_labels).float().mean() == pytest.approx(0.1, abs=0.02), "the noise asked for"
    assert torch.bincount(many.demo_labels.flatten()).float().std() < 100
    few = plan.prompts(3, count=60).demo_labels
    assert bool((few.amin(1) != few.amax(1)).all()), "two classes at least"
    counts = torch.nn.functional.one_hot(many.demo_labels, 3).sum(1)
    assert counts.float().std(0).min() > 1, "random, not balanced"


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


def test_what_cannot_be_planted_is_refused():
    kernel = PlantedHead(1, 0, "kernel")

    def refused(message, *heads, **settings):
        given = {"layers": 3, "heads_per_layer": 2} | settings
        with pytest.raises(ModelError, match=message):
            PlantedPlan(heads, **given)

    refused("L3H0 .kernel. is outside its 3 layers of 2 heads", PlantedHead(3, 0, "kernel"))
    refused("L1H0 was given kernel and echo", kernel, PlantedHead(1, 0, "echo"))
    refused("L0H1 .kernel. is in layer 0", PlantedHead(0, 1, "kernel"))
    refused("L0H0 .anti_kernel. is in layer 0", PlantedHead(0, 0, "anti_kernel"), kernel)
    refused("belongs in layer 0; got L1H1", PlantedHead(1, 1, "carrier"))
    refused("one carrier is enough", PlantedHead(0, 0, "carrier"), PlantedHead(0, 1, "carrier"), kernel)
    both = [PlantedHead(0, i, "first_token") for i in (0, 1)]
    refused("layer 0 must have room for the carrier", *both, kernel)
    cancelled, canceller = PlantedHead(2, 0, "cancelled_kernel"), PlantedHead(1, 1, "canceller")
    refused("L2H0 is a cancelled kernel and the canceller is L1H1", kernel, cancelled, canceller)
    refused("got 1 and 0. Plant both, or neither", kernel, cancelled)
    refused("got 0 and 1. Plant both, or neither", kernel, canceller)
    refused("at least 0.1 .*has 0.0", PlantedHead(1, 0, "kernel", bandwidth=0.0))
    refused("has -1.0", PlantedHead(1, 0, "kernel", bandwidth=-1.0))
    refused("no bandwidth; L1H0", PlantedHead(1, 0, "driver", bandwidth=1.0))
    refused("a gain is finite and at least 0", PlantedHead(1, 0, "kernel", gain=-1.0))
    refused("writes no vote; L1H1 has gain 1.0", kernel, PlantedHead(1, 1, "unread_kernel", gain=1.0))
    refused("has label=None", kernel, PlantedHead(1, 1, "word_preference"))
    refused("from 0 to 1; L1H1", kernel, PlantedHead(1, 1, "word_preference", label=2))
    refused("has label=0", PlantedHead(1, 0, "kernel", label=0))
    refused("before L1H1 nothing has written one", kernel, PlantedHead(1, 1, "echo"))
    refused("the model must form an answer", PlantedHead(1, 1, "unread_kernel"))
    refused("2 to 8 labels", kernel, labels=9)
    refused("demos=48 and inputs=48", kernel, demos=48)
    refused("34 tokens, and context=20", kernel, context=20)
    refused("sink=1.0", kernel, sink=1.0)
    refused("d_head=10 with 2 heads", kernel, d_head=10)


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
