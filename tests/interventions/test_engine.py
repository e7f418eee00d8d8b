"""What every intervention shares: batches, checkpoints, metrics, and a model that is left as it was found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from architectures import hf_model
from interventions.huggingface import Plain, other, rows_changed, without
from support import KINDS, needs_hooked, shared_prompts, uneven_prompts

from icl_kernel_lens import HeadRef, PromptSet, knock_out, patch_labels, swap_values
from icl_kernel_lens.errors import ModelError, PromptError, ResultError, RunError
from icl_kernel_lens.interventions import engine, patch
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.models.load import bridge_from_hf, hooked_from_hf
from icl_kernel_lens.models.verify import verify_model
from icl_kernel_lens.run import memory, variants


@pytest.mark.parametrize("kind", ["bridge", pytest.param("hooked", marks=needs_hooked)])
@pytest.mark.parametrize("activation", ["residual", "value", "attention_edge"])
def test_batches_sharing_and_checkpoints_change_nothing(tiny, activation, kind, tmp_path, monkeypatch):
    model, _ = tiny("llama", kind)
    clean = shared_prompts(sets=2, tests=2)
    corrupted = other(clean)
    options = {
        "clean": clean,
        "corrupted": corrupted,
        "activation": activation,
        "offsets": (0, 1),
        "progress": False,
    }
    whole = patch_labels(model, checkpoint=tmp_path / "run", **options)
    again = patch_labels(model, checkpoint=tmp_path / "run", **options)
    assert torch.equal(again.values, whole.values)
    with monkeypatch.context() as patched:
        patched.setattr(memory, "CPU_BYTES", 1)  # one variant at a time
        single = patch_labels(model, **options)
    torch.testing.assert_close(single.values, whole.values, atol=1e-5, rtol=1e-5)
    with monkeypatch.context() as patched:
        for module in (variants, engine):
            patched.setattr(module, "keep", lambda *_: None)  # the answer is run with the whole prompt
        unshared = patch_labels(model, **options)
    torch.testing.assert_close(unshared.values, whole.values, atol=1e-5, rtol=1e-5)
    if activation == "attention_edge":
        with pytest.raises(RunError, match="other settings"):
            patch_labels(model, checkpoint=tmp_path / "run", **options | {"factor": "values"})
        moved = other(corrupted)
        with pytest.raises(RunError, match="other settings"):
            patch_labels(model, checkpoint=tmp_path / "run", **options | {"clean": moved})


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_prompts_of_a_set_are_read_in_one_pass(tiny, name, kind, monkeypatch):
    """Whatever their length, they are changed as each of them alone is, which shares nothing."""
    model, _ = tiny(name, kind)
    prompts, read = shared_prompts(sets=2, tests=8), variants.keep_together
    # Of a prompt with hardly any tokens of its own, nothing is kept.
    own = prompts.answer_pos - prompts.label_pos[:, -1]
    prompts = prompts.select((own >= 6).nonzero()[:, 0].tolist())
    lengths = []

    def seen(adapter, tokens, at, shared, own):
        kept = read(adapter, tokens, at, shared, own)
        lengths.append((kept is not None, len(at.unique())))
        return kept

    def cut(some):
        return knock_out(model, some, controls=False, progress=False)

    monkeypatch.setattr(variants, "keep_together", seen)
    found = cut(prompts)
    if variants.own_tokens(as_adapter(model), int(prompts.lengths.max())) is None:
        assert lengths == []
    else:
        assert any(together and different > 1 for together, different in lengths)
    for number in (0, 2, 4, len(prompts) - 2):
        alone = cut(prompts.select([number]))
        torch.testing.assert_close(found.values[number], alone.values[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.base[number], alone.base[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.others["kl"][number], alone.others["kl"][0], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", ["bridge", pytest.param("hooked", marks=needs_hooked)])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_found(kind, fails, monkeypatch):
    """Hooks, gradient flags and gradients, modes, the random state; after Ctrl-C too."""
    model = {"bridge": bridge_from_hf, "hooked": hooked_from_hf}[kind](hf_model("gptj"))
    model.train()
    inner = getattr(model, "original_model", model)
    clean = shared_prompts(sets=1, tests=2)
    corrupted = other(clean)
    patch_labels(model, clean=clean, corrupted=corrupted, offsets=(0,), progress=False)

    def state():
        modules = [*model.modules(), *inner.modules()]
        hooks = [
            [len(getattr(m, name)) for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")]
            for m in modules
        ]
        own = [{k: v for k, v in vars(m).items() if k in ("forward", "config", "training")} for m in modules]
        flags = [(p.requires_grad, p.grad is None) for p in inner.parameters()]
        return hooks, own, flags, torch.get_rng_state().tolist(), torch.is_grad_enabled()

    before = state()
    if fails:
        for module in (patch, engine):
            run, calls = module.run_variants, []

            def interrupted(*args, run=run, calls=calls, **options):
                logits = run(*args, **options)
                calls.append(1)
                if len(calls) > 1:
                    raise KeyboardInterrupt
                return logits

            monkeypatch.setattr(module, "run_variants", interrupted)
    for call in (
        lambda: patch_labels(
            model, clean=clean, corrupted=corrupted, activation="residual", offsets=(0,), progress=False
        ),
        lambda: patch_labels(
            model,
            clean=clean,
            corrupted=corrupted,
            activation="key",
            method="attribution",
            offsets=(0,),
            progress=False,
        ),
        lambda: patch_labels(
            model, clean=clean, corrupted=corrupted, path="direct", offsets=(0,), progress=False
        ),
        lambda: knock_out(model, clean, "label_reads_text", progress=False),
        lambda: swap_values(model, clean, progress=False),
    ):
        if fails:
            with pytest.raises(KeyboardInterrupt):
                call()
        else:
            call()
        assert state() == before


def test_a_model_that_cannot_be_taken_over_is_refused():
    model = bridge_from_hf(hf_model("gptj"))
    model.blocks[1].attn.original_component.attn_dropout.forward = lambda weights: weights.relu()
    with pytest.raises(ModelError, match="must be taken over exactly to be changed.*calls relu"):
        knock_out(model, uneven_prompts(count=1), progress=False)


@pytest.mark.parametrize("against", ["model", "truth"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("activation", ["value", "attention_edge"])
def test_metrics_are_of_the_clean_answer_and_of_every_token(tiny, activation, direction, against):
    """Which class is meant, both runs unchanged, and the metrics of one cell: from the plain model's logits."""
    model, _ = tiny("gpt_neox", "bridge")
    clean = uneven_prompts(count=24)
    corrupted = other(clean)
    found = patch_labels(
        model,
        clean=clean,
        corrupted=corrupted,
        activation=activation,
        direction=direction,
        against=against,
        offsets=(0,),
        heads=[(1, 2)],
        progress=False,
    )
    plain = Plain("gpt_neox", hf_model("gpt_neox"))
    ends = clean.answer_pos.tolist()
    runs = {
        name: [plain.run(prompts.tokens[i, : at + 1])[0][at] for i, at in enumerate(ends)]
        for name, prompts in (("clean", clean), ("corrupted", corrupted))
    }
    words = clean.label_tokens
    answers = torch.stack([logits[words[i]] for i, logits in enumerate(runs["clean"])]).argmax(1)
    assert not torch.equal(
        answers, torch.stack([x[words[i]] for i, x in enumerate(runs["corrupted"])]).argmax(1)
    )
    reference = answers if against == "model" else clean.test_labels
    assert torch.equal(found.reference, reference)

    def difference(logits, i):
        scores = logits[words[i]]
        others = [c for c in range(clean.labels) if c != reference[i]]
        return scores[reference[i]] - scores[others].mean()

    base, source = ("corrupted", "clean") if direction == "denoise" else ("clean", "corrupted")
    for kind, expected in ((found.base, base), (found.source, source)):
        expected = torch.stack([difference(x, i) for i, x in enumerate(runs[expected])])
        torch.testing.assert_close(kind, expected, atol=1e-5, rtol=1e-5)
    one, two = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    i, layer, part = 1, 1, 2
    logits = plain.patched(one.tokens[i], two.tokens[i], ends[i], activation, layer, part, clean.label_pos[i])
    cell = (i, layer, part, 0)
    torch.testing.assert_close(found.values[cell], difference(logits, i), atol=1e-5, rtol=1e-5)
    word = words[i, reference[i]]
    torch.testing.assert_close(
        found.others["probability"][cell], logits.softmax(-1)[word], atol=1e-6, rtol=1e-5
    )
    p, q = runs[base][i].log_softmax(-1), logits.log_softmax(-1)
    torch.testing.assert_close(found.others["kl"][cell], (p.exp() * (p - q)).sum(), atol=1e-6, rtol=1e-4)
    options = {"against": against, "progress": False, "controls": False}
    cut = knock_out(model, clean, heads=[(0, 1), (2, 3)], **options)
    assert torch.equal(cut.reference, reference)
    expected = torch.stack([difference(x, i) for i, x in enumerate(runs["clean"])])
    torch.testing.assert_close(cut.base, expected, atol=1e-5, rtol=1e-5)
    turned = knock_out(model, clean, heads=[(2, 3), (0, 1)], **options)
    for layer, head in ((2, 3), (0, 1)):
        torch.testing.assert_close(turned.values[:, layer, head], cut.values[:, layer, head])


def test_hooks_of_the_users_meet_whole_prompts():
    """A head ablated at a position of the prompt stays ablated there, and effects are those of that model."""
    model = bridge_from_hf(hf_model("llama"))
    verify_model(as_adapter(model))
    prompts = shared_prompts(sets=1, tests=2)

    def ablate(z, hook):
        assert z.shape[1] > 20, "whole prompts"
        z = z.clone()
        z[:, 5, 1] = 0
        return z

    model.blocks[0].attn.hook_z.add_hook(ablate)
    options = {"clean": prompts, "corrupted": other(prompts), "offsets": (0,), "progress": False}
    edge = patch_labels(model, heads=[(2, 1)], **options)
    plain, at = Plain("llama", hf_model("llama")), int(prompts.answer_pos[1])

    def zero(z):
        z = z.clone()
        z[:, 5] = 0
        return z

    with plain.hooked(plain.place("head_output", 0, 1), zero):
        logits = plain.patched(
            other(prompts).tokens[1], prompts.tokens[1], at, "attention_edge", 2, 1, prompts.label_pos[1]
        )
    scores = edge.label_scores[1, 2, 1, 0]
    torch.testing.assert_close(scores, logits[prompts.label_tokens[1]], atol=1e-5, rtol=1e-5)


def test_undefined_logits_and_single_sets_are_refused(tiny):
    model = bridge_from_hf(hf_model("llama"))
    prompts = uneven_prompts(count=3)
    knock_out(model, prompts, progress=False, heads=[(0, 0)])
    with torch.no_grad():
        model.original_model.model.embed_tokens.weight[prompts.tokens[1, 3]] = torch.nan
    with pytest.raises(ModelError, match="logits must be finite"):
        knock_out(model, prompts, progress=False)
    with pytest.raises(PromptError, match="all of these show one"):
        swap_values(
            tiny("llama", "bridge")[0], shared_prompts(sets=1, tests=2).select([0, 1]), progress=False
        )


def test_other_true_labels_are_another_run(tiny, tmp_path):
    model, _ = tiny("llama", "bridge")
    prompts = uneven_prompts(count=3)
    options = {"against": "truth", "checkpoint": tmp_path, "progress": False}
    knock_out(model, prompts, **options)
    with pytest.raises(RunError, match="other prompts"):
        knock_out(model, replace(prompts, test_labels=(prompts.test_labels + 1) % 3), **options)


def test_short_prompts_of_an_alibi_model(tiny):
    """Two tokens before the answer: too few to run apart, and no reason to fail."""
    model, _ = tiny("bloom", "bridge")
    prompts = PromptSet.from_tokens(
        torch.tensor([[5, 10, 7]]), torch.tensor([[1]]), torch.tensor([[0]]), torch.tensor([10, 20])
    )
    plain = Plain("bloom", hf_model("bloom"))
    found = knock_out(model, prompts, heads=[(1, 1)], controls=False, progress=False)
    logits = rows_changed(plain, prompts.tokens[0], {1: [(1, 2, without([1], renormalise=True))]})[2]
    torch.testing.assert_close(found.label_scores[0, 1, 1], logits[[10, 20]], atol=1e-5, rtol=1e-5)


def test_a_run_that_does_not_fit_is_halved(tiny, monkeypatch):
    """Variants of one prompt in ever smaller runs, and the same numbers."""
    model, _ = tiny("llama", "bridge")
    prompts, sizes, run = uneven_prompts(count=1), [], engine.run_variants
    expected = knock_out(model, prompts, progress=False)

    def scarce(adapter, tokens, at, count, *rest, **more):
        sizes.append(count)
        if count > 7:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return run(adapter, tokens, at, count, *rest, **more)

    monkeypatch.setattr(engine, "run_variants", scarce)
    found = knock_out(model, prompts, progress=False)
    torch.testing.assert_close(found.values, expected.values, atol=1e-5, rtol=1e-5)
    assert sizes[0] == 37
    assert sum(size for size in sizes if size <= 7) == 37


def test_heads_by_name_by_pair_and_in_sets_are_the_same_heads(tiny):
    model, _ = tiny("llama", "bridge")
    prompts = uneven_prompts(count=2)
    options = {"controls": False, "progress": False}
    named = knock_out(model, prompts, heads=["L2H1", (0, 3)], **options)
    assert named.places == {"layer": (0, 1, 2), "head": (0, 1, 2, 3)}
    assert named.values[0].isfinite().nonzero().tolist() == [[0, 3], [2, 1]]
    sets = knock_out(
        model, prompts, heads=["L2H1", ("L2H1", (0, 3)), [HeadRef(0, 3)]], demo="each", **options
    )
    assert sets.places == {"set": ("L2H1", "L2H1 L0H3", "L0H3"), "demo": (0, 1, 2)}
    each = knock_out(model, prompts, heads=[(2, 1), (0, 3)], demo="each", **options)
    torch.testing.assert_close(sets.values[:, 0], each.values[:, 2, 1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sets.values[:, 2], each.values[:, 0, 3], atol=1e-5, rtol=1e-5)
    whole = knock_out(model, prompts, heads=[("L2H1", "L0H3")], **options)
    assert whole.values.shape == (2, 1)
    layers = knock_out(model, prompts, layers=[1, 2], **options)
    assert layers.places == {"set": ("all heads of layers 1, 2",)}
    many = [HeadRef(layer, head) for layer in (1, 2) for head in range(4)]
    same = knock_out(model, prompts, heads=[many], **options)
    assert same.places["set"][0].endswith("and 2 more")
    torch.testing.assert_close(same.values, layers.values)
    patched = patch_labels(
        model,
        clean=prompts,
        corrupted=prompts,
        activation="value",
        offsets=(0,),
        heads=["L2H3"],
        progress=False,
    )
    assert patched.places == {"layer": (0, 1, 2), "kv_head": (0, 1), "offset": (0,)}
    assert patched.values[0].isfinite().nonzero().tolist() == [[2, 1, 0]], "its key-value head"


def test_what_is_no_head_is_refused(tiny):
    model, _ = tiny("llama", "bridge")
    prompts = uneven_prompts(count=2)
    for heads, reason in (
        (["L9H0"], "L9H0 is not"),
        (["head 3"], 'a name such as "L3H7"'),
        ("L2H1", r"heads must be a list or None; it is 'L2H1' \(str\)\. A single one is written \['L2H1'\]"),
        (["L2H1", (2, 1)], "named once"),
        ([[], "L2H1"], "each by name or as"),
    ):
        with pytest.raises(ResultError, match=reason):
            knock_out(model, prompts, heads=heads, progress=False)
    with pytest.raises(ResultError, match="L9H0 is not"):
        swap_values(model, prompts, heads=["L9H0"], progress=False)
