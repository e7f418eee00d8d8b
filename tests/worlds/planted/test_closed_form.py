"""Planted models against their closed form, in every form, with and without norms, under both classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import needs_hooked
from worlds.planted.plans import best_kind, everything, gaussian

from icl_kernel_lens import corrupt, knock_out, read
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


@pytest.fixture(scope="module")
def built():
    """`built(form, norm, kind)`: the model with every role, built once."""
    made = {}

    def make(form, norm, kind):
        if (form, norm, kind) not in made:
            made[form, norm, kind] = PlantedModel.of(everything(form=form, norm=norm), kind)
        return made[form, norm, kind]

    return make


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
    assert facts.loc["L1H0", "findable"]
    assert not facts.loc["L1H1", "findable"]
    assert plan.findable == ((1, 0), (2, 1))
    assert facts.loc["L2H3", "fit"] < -0.5, "an anti-kernel goes by the labels of unlike inputs"
    assert facts.loc["L2H3", "label_share"] > 0.05
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
    assert plan(PlantedHead(1, 0, "last_label", gain=1.0)).expected[1, 0] == "recency"
    alone = plan(PlantedHead(1, 0, "kernel", gain=0.06))
    assert alone.expected[1, 0] == "kernel head", "however small, it is all of the label part"
    weak = plan(PlantedHead(1, 0, "kernel", gain=0.3), PlantedHead(1, 1, "driver", gain=4.0))
    assert weak.expected[1, 0] == "shadow"
    assert not weak.clear[1, 0]
    assert weak.findable == ()
    assert plan(PlantedHead(1, 0, "kernel", gain=0.0)).expected[1, 0] == "shadow"
    wide = plan(
        PlantedHead(1, 0, "kernel", gain=3.0, bandwidth=0.35),
        PlantedHead(1, 1, "kernel", gain=8.0, bandwidth=4.0),
    )
    assert list(wide.expected.values())[2:4] == ["kernel head", "driver"], "labels, next to evenly"
    assert wide.facts().set_index("head").loc["L1H1", "label_share"] > 0.2
    assert wide.clear[1, 1]
    nearly = replace(wide, heads=(wide.heads[0], replace(wide.heads[1], bandwidth=2.0)))
    assert not nearly.clear[1, 1], "its share of the kernel is near the threshold"
    quarter = [PlantedHead(1 + i // 2, i % 2, "kernel", gain=0.75) for i in range(4)]
    assert list(plan(*quarter, direct=0.0).expected.values()).count("kernel head") == 4
