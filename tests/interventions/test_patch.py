"""Patching, against the same intervention written once more: on the plain Hugging Face model, and by TransformerLens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from architectures import ARCHITECTURES, HOOKED, hf_model
from interventions.huggingface import HEADS, Plain
from support import needs_hooked, shared_prompts, uneven_prompts

WHATS = (
    "residual",
    "attention_output",
    "mlp_output",
    "head_output",
    "query",
    "key",
    "value",
    "attention_edge",
)


def other(prompts, seed=5):
    """The same prompts with every label exchanged for the next class's, and other test inputs."""
    labels = (prompts.demo_labels + 1) % prompts.labels
    tokens = prompts.tokens.scatter(1, prompts.label_pos, prompts.label_tokens.gather(1, labels))
    return replace(prompts, tokens=tokens, demo_labels=labels)


@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_cell_equals_the_plain_model(tiny, name, what):
    """Each architecture under the bridge, GPT-J, GPT-Neo and OPT included; prompts of different lengths."""
    from icl_kernel_lens import patch_labels

    model, _ = tiny(name, "bridge")
    clean = shared_prompts(sets=1, tests=2).select([0, 2])
    corrupted = other(clean)
    found = patch_labels(
        model, clean=clean, corrupted=corrupted, what=what, offsets=(-1, 0, 2), progress=False
    )
    plain = Plain(name, hf_model(name))
    assert not found.values.isnan().any()
    for number in range(len(clean)):
        at, words = int(clean.answer_pos[number]), clean.label_tokens[number]
        for cell in found.values[number].isfinite().nonzero().tolist():
            layer, part, offset = cell
            positions = clean.label_pos[number] + int(found.offsets[offset])
            logits = plain.patched(
                corrupted.tokens[number], clean.tokens[number], at, what, layer, part, positions
            )
            torch.testing.assert_close(
                found.label_scores[number, layer, part, offset], logits[words], atol=1e-5, rtol=1e-5
            )
    assert found.effect().abs().max() > 1e-3


@pytest.mark.parametrize("edge", ["weights", "values"])
@pytest.mark.parametrize("name", ["gptj", "llama", "falcon", "gemma2"])
def test_the_parts_of_an_edge(tiny, name, edge):
    from icl_kernel_lens import patch_labels

    model, _ = tiny(name, "bridge")
    clean = uneven_prompts(count=2)
    corrupted = other(clean)
    found = patch_labels(
        model, clean=clean, corrupted=corrupted, part=edge, offsets=(0,), direction="noise", progress=False
    )
    plain = Plain(name, hf_model(name))
    for layer, part in ((0, 1), (1, 3), (2, 0)):
        at = int(clean.answer_pos[1])
        logits = plain.patched(
            clean.tokens[1],
            corrupted.tokens[1],
            at,
            "attention_edge",
            layer,
            part,
            clean.label_pos[1],
            edge,
        )
        scores = found.label_scores[1, layer, part, 0]
        torch.testing.assert_close(scores, logits[clean.label_tokens[1]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("what", [w for w in WHATS if w != "attention_edge"])
@pytest.mark.parametrize("name", ["gptj", "qwen3", "opt"])
def test_at_the_answer(tiny, name, what):
    """Only the answer position is run again, and it is the same."""
    from icl_kernel_lens import patch_labels

    model, _ = tiny(name, "bridge")
    clean = shared_prompts(sets=1, tests=2)
    corrupted = other(clean)
    found = patch_labels(
        model, clean=clean, corrupted=corrupted, what=what, at="answer", progress=False, direction="noise"
    )
    assert found.offsets == ("answer",)
    plain = Plain(name, hf_model(name))
    at = int(clean.answer_pos[1])
    for layer, part, _ in found.values[1].isfinite().nonzero().tolist():
        logits = plain.patched(clean.tokens[1], corrupted.tokens[1], at, what, layer, part, [at])
        scores = found.label_scores[1, layer, part, 0]
        torch.testing.assert_close(scores, logits[clean.label_tokens[1]], atol=1e-5, rtol=1e-5)


@needs_hooked
@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("name", sorted(HOOKED))
def test_every_cell_equals_transformer_lens(tiny, name, what):
    """`patching.generic_activation_patch` with a setter that does the same."""
    from transformer_lens import patching

    from icl_kernel_lens import patch_labels

    model, _ = tiny(name, "hooked")
    clean = uneven_prompts(count=2).select([1])
    corrupted = other(clean)
    at, positions = int(clean.answer_pos[0]), clean.label_pos[0]
    found = patch_labels(model, clean=clean, corrupted=corrupted, what=what, offsets=(0,), progress=False)
    _, cache = model.run_with_cache(clean.tokens)
    _, base = model.run_with_cache(corrupted.tokens)
    hook = {
        "residual": "resid_pre",
        "attention_output": "attn_out",
        "mlp_output": "mlp_out",
        "head_output": "z",
        "query": "q",
        "key": "k",
        "value": "v",
        "attention_edge": "z",
    }[what]

    def setter(activation, index, source):
        layer, part = index[0], index[-1]
        new = activation.clone()
        if what == "attention_edge":
            group = model.cfg.n_heads // (model.cfg.n_key_value_heads or model.cfg.n_heads)
            for run, sign in ((base, -1), (cache, 1)):
                a = run["pattern", layer][0, part, at, positions]
                v = run["v", layer][
                    0, positions, part // group if run["v", layer].shape[2] != model.cfg.n_heads else part
                ]
                new[0, at, part] += sign * (a[:, None] * v).sum(0)
        elif activation.dim() == 4:
            new[0, positions, part] = source[0, positions, part]
        else:
            new[0, positions] = source[0, positions]
        return new

    import pandas as pd

    cells = found.values[0, :, :, 0].isfinite().nonzero().tolist()
    if PARTS_WHOLE(what):
        frame = pd.DataFrame([{"layer": layer} for layer, _ in cells])
    else:
        frame = pd.DataFrame([{"layer": layer, "head": part} for layer, part in cells])
    expected = patching.generic_activation_patch(
        model,
        corrupted.tokens,
        cache,
        patching_metric=lambda logits: logits[0, at, clean.label_tokens[0, 0]],
        patch_setter=setter,
        activation_name=hook,
        index_df=frame,
    )
    scores = torch.stack([found.label_scores[0, layer, part, 0, 0] for layer, part in cells])
    torch.testing.assert_close(scores, expected.flatten(), atol=1e-5, rtol=1e-5)
    assert (scores - found.base_label_scores[0, 0]).abs().max() > 1e-3


def PARTS_WHOLE(what):
    return what in ("residual", "attention_output", "mlp_output")


FINAL_NORM = {
    "gpt2": "transformer.ln_f",
    "gptj": "transformer.ln_f",
    "llama": "model.norm",
    "gemma2": "model.norm",
    "falcon": "transformer.ln_f",
    "opt": "model.decoder.final_layer_norm",
}


@pytest.mark.parametrize("what", ["attention_edge", "head_output"])
@pytest.mark.parametrize("name", sorted(FINAL_NORM))
def test_direct_effects_leave_everything_above_frozen(tiny, name, what):
    """What the changed attention adds, added to the final residual of the plain Hugging Face run."""
    from icl_kernel_lens import direct_effect

    model, _ = tiny(name, "bridge")
    clean = shared_prompts(sets=1, tests=2)
    corrupted = other(clean)
    found = direct_effect(model, clean=clean, corrupted=corrupted, what=what, progress=False)
    plain, number = Plain(name, hf_model(name)), 1
    at = int(clean.answer_pos[number])
    base, source = corrupted.tokens[number, : at + 1], clean.tokens[number, : at + 1]
    norm = plain.hf.get_submodule(FINAL_NORM[name]), "input", slice(None)
    for layer, part in ((0, 2), (1, 0), (2, 3)):
        place = plain.place("attention_output", layer, part)
        seen = []
        with plain.hooked(place, lambda x, seen=seen: seen.append(x[0, at].clone())):
            positions = [at] if what == "head_output" else clean.label_pos[number]
            plain.patched(base, source, at, what, layer, part, positions)
        changed = seen[-1]
        _, plainly, _ = plain.run(base, watch=[("x", place)])
        moved = changed - plainly["x"][0, at]

        def add(x, moved=moved):
            x = x.clone()
            x[:, at] += moved
            return x

        logits = plain.run(base, changes=[(norm, add)])[0][at]
        scores = found.label_scores[number, layer, part, 0]
        torch.testing.assert_close(scores, logits[clean.label_tokens[number]], atol=1e-5, rtol=1e-5)
    assert found.what == f"direct_effect of {what}"
    last = direct_effect(
        model, clean=clean, corrupted=corrupted, heads=[(2, 3)], what=what, progress=False
    ).values
    torch.testing.assert_close(last[:, 2, 3], found.values[:, 2, 3])
    assert last[:, 0].isnan().all(), "heads that were not asked for"


@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("name", ["gptj", "llama", "falcon"])
def test_first_order_estimates_are_gradients(tiny, name, what):
    """⟨difference, gradient⟩ taken once more on the plain model, activation by activation."""
    from icl_kernel_lens import patch_labels

    model, _ = tiny(name, "bridge")
    clean = shared_prompts(sets=1, tests=2)
    corrupted = other(clean)
    offsets = (0, 1)
    found = patch_labels(
        model,
        clean=clean,
        corrupted=corrupted,
        what=what,
        offsets=offsets,
        method="attribution",
        progress=False,
    )
    assert found.label_scores is None
    plain, number = Plain(name, hf_model(name)), 1
    at = int(clean.answer_pos[number])
    base, source = corrupted.tokens[number, : at + 1], clean.tokens[number, : at + 1]
    words, reference = clean.label_tokens[number], int(found.reference[number])
    inner = "head_output" if what == "attention_edge" else what
    for layer, part in ((0, 0), (2, 0)):
        place = plain.place(inner, layer, part)
        _, there, _ = plain.run(source, watch=[("x", place)])
        kept = []

        def keep(x, kept=kept):
            x = x.clone().requires_grad_(True)
            kept.append(x)
            return x

        with plain.hooked(place, keep):
            logits = plain.hf(base[None], use_cache=False).logits[0, at, words]
        others = [c for c in range(len(words)) if c != reference]
        (gradient,) = torch.autograd.grad(logits[reference] - logits[others].mean(), kept[0])
        for number_of, offset in enumerate(offsets):
            positions = clean.label_pos[number] + offset
            if what == "attention_edge":
                seen = []
                with plain.hooked(place, lambda x, seen=seen: seen.append(x[0, at].clone())):
                    plain.patched(base, source, at, what, layer, part, positions)
                # The outer hook sees z before the inner one changes it: take the change from the inner run.
                group = HEADS // plain.kv_heads()
                value = plain.place("value", layer, part // group)
                moved = 0
                for sign, tokens in ((-1, base), (1, source)):
                    _, v, attentions = plain.run(tokens, watch=[("v", value)])
                    a = attentions[layer][0, part, at]
                    moved = moved + sign * (a[positions, None] * v["v"][0, positions]).sum(0)
                expected = (moved * gradient[0, at]).sum()
            else:
                difference = there["x"][0, positions] - kept[0][0, positions].detach()
                expected = (difference * gradient[0, positions]).sum()
            estimate = found.effect()[number, layer, part, number_of]
            torch.testing.assert_close(estimate, expected, atol=1e-4, rtol=1e-3)


def test_estimates_come_with_exact_effects(tiny):
    """Of a random sample, and of the largest; their correlation is the sample's."""
    from icl_kernel_lens import patch_labels

    model, _ = tiny("llama", "bridge")
    clean = uneven_prompts(count=4)
    corrupted = other(clean)
    options = {"clean": clean, "corrupted": corrupted, "what": "value", "progress": False}
    options["offsets"] = (-1, 0, 1)
    estimated = patch_labels(model, method="attribution", seed=3, **options)
    exact = patch_labels(model, **options)
    for check in (estimated.sample, estimated.largest):
        for number, (layer, part, offset) in enumerate(check.cells):
            torch.testing.assert_close(
                check.exact[:, number], exact.effect()[:, layer, part, offset], atol=1e-5, rtol=1e-5
            )
            torch.testing.assert_close(
                check.estimate[:, number], estimated.effect()[:, layer, part, offset], atol=1e-5, rtol=1e-5
            )
    assert len(set(estimated.sample.cells)) == 18 == len(estimated.sample.cells), "all there are"
    sizes = estimated.mean().abs().flatten().sort(descending=True).values[:8]
    chosen = torch.stack([estimated.mean()[cell].abs() for cell in estimated.largest.cells])
    torch.testing.assert_close(chosen, sizes)
    import numpy as np

    sample = estimated.sample
    correlation = np.corrcoef(sample.estimate.mean(0).numpy(), sample.exact.mean(0).numpy())[0, 1]
    assert sample.correlation == pytest.approx(correlation, abs=1e-6)
    assert f"correlation {correlation:.3f}" in repr(estimated)


@pytest.mark.parametrize("kind", ["bridge", pytest.param("hooked", marks=needs_hooked)])
@pytest.mark.parametrize("what", ["residual", "value", "attention_edge"])
def test_batches_sharing_and_checkpoints_change_nothing(tiny, what, kind, tmp_path, monkeypatch):
    from icl_kernel_lens import patch_labels
    from icl_kernel_lens.interventions import patch, sweep, variants
    from icl_kernel_lens.models import memory

    model, _ = tiny("llama", kind)
    clean = shared_prompts(sets=2, tests=2)
    corrupted = other(clean)
    options = {
        "clean": clean,
        "corrupted": corrupted,
        "what": what,
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
        for module in (variants, patch, sweep):
            patched.setattr(module, "keep", lambda *_: None)  # the answer is run with the whole prompt
        unshared = patch_labels(model, **options)
    torch.testing.assert_close(unshared.values, whole.values, atol=1e-5, rtol=1e-5)
    if what == "attention_edge":
        from icl_kernel_lens.errors import RunError

        with pytest.raises(RunError, match="other settings"):
            patch_labels(model, checkpoint=tmp_path / "run", **options | {"part": "values"})
        moved = other(corrupted)
        with pytest.raises(RunError, match="other settings"):
            patch_labels(model, checkpoint=tmp_path / "run", **options | {"clean": moved})


@pytest.mark.parametrize("kind", ["bridge", pytest.param("hooked", marks=needs_hooked)])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_found(kind, fails, monkeypatch):
    """Hooks, gradient flags and gradients, modes, the random state; after Ctrl-C too."""
    from icl_kernel_lens import direct_effect, knock_out, patch_labels, swap_values
    from icl_kernel_lens.interventions import patch, sweep
    from icl_kernel_lens.models import bridge_from_hf, hooked_from_hf

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
        for module in (patch, sweep):
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
            model, clean=clean, corrupted=corrupted, what="residual", offsets=(0,), progress=False
        ),
        lambda: patch_labels(
            model,
            clean=clean,
            corrupted=corrupted,
            what="key",
            method="attribution",
            offsets=(0,),
            progress=False,
        ),
        lambda: direct_effect(model, clean=clean, corrupted=corrupted, progress=False),
        lambda: knock_out(model, clean, "label_reads_text", progress=False),
        lambda: swap_values(model, clean, progress=False),
    ):
        if fails:
            with pytest.raises(KeyboardInterrupt):
                call()
        else:
            call()
        assert state() == before


def test_what_cannot_be_compared_is_refused(tiny):
    from icl_kernel_lens import knock_out, patch_labels
    from icl_kernel_lens.errors import PromptError, ResultError

    model, _ = tiny("llama", "bridge")
    clean = uneven_prompts(count=3)
    corrupted = other(clean)
    moved = replace(corrupted, label_spans=corrupted.label_spans - 1)
    whole = replace(clean, score_on="sequence")
    blind = replace(clean, test_labels=None)
    for options, error, reason in (
        ({"clean": clean, "corrupted": moved}, PromptError, "label_spans of prompt 0 is"),
        ({"clean": clean, "corrupted": corrupted.select([0, 1])}, PromptError, "correspond one to one"),
        ({"clean": whole, "corrupted": corrupted}, PromptError, "scored on whole labels"),
        ({"clean": clean, "corrupted": corrupted, "offsets": (40,)}, PromptError, "offset 40 from the label"),
        ({"clean": clean, "corrupted": corrupted, "offsets": ()}, PromptError, "offsets must name"),
        ({"clean": blind, "corrupted": corrupted, "against": "truth"}, PromptError, "needs true labels"),
        ({"clean": clean, "corrupted": corrupted, "heads": [(3, 0)]}, ResultError, "L3H0 is not"),
        ({"clean": clean, "corrupted": corrupted, "heads": []}, ResultError, "at least one"),
        (
            {"clean": clean, "corrupted": corrupted, "what": "key", "part": "values"},
            ResultError,
            "Leave part out",
        ),
        (
            {"clean": clean, "corrupted": corrupted, "what": "residual", "heads": [(0, 1)]},
            ResultError,
            "whole layer",
        ),
        ({"clean": clean, "corrupted": corrupted, "offsets": (0, 0)}, PromptError, "named once"),
        ({"clean": clean, "corrupted": corrupted, "at": "answer"}, ResultError, 'leave out at="answer"'),
    ):
        with pytest.raises(error, match=reason):
            patch_labels(model, progress=False, **{"offsets": (0,)} | options)
    for options, reason in (
        ({"heads": [(0, 1), (0, 1)]}, "named once"),
        ({"heads": [(0, 1)], "layers": [1]}, "not both"),
        ({"heads": [[(0, 9)]]}, "L0H9 is not"),
        ({"demo": 3}, "a number below 3"),
    ):
        with pytest.raises(ResultError, match=reason):
            knock_out(model, clean, progress=False, **options)


def test_a_model_that_cannot_be_taken_over_is_refused():
    from icl_kernel_lens import knock_out
    from icl_kernel_lens.errors import ModelError
    from icl_kernel_lens.models import bridge_from_hf

    model = bridge_from_hf(hf_model("gptj"))
    model.blocks[1].attn.original_component.attn_dropout.forward = lambda weights: weights.relu()
    with pytest.raises(ModelError, match="must be taken over exactly to be changed.*calls relu"):
        knock_out(model, uneven_prompts(count=1), progress=False)


@pytest.mark.parametrize("against", ["model", "truth"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("what", ["value", "attention_edge"])
def test_metrics_are_of_the_clean_answer_and_of_every_token(tiny, what, direction, against):
    """Which class is meant, both runs unchanged, and the metrics of one cell: from the plain model's logits."""
    from icl_kernel_lens import knock_out, patch_labels

    model, _ = tiny("gpt_neox", "bridge")
    clean = uneven_prompts(count=24)
    corrupted = other(clean)
    found = patch_labels(
        model,
        clean=clean,
        corrupted=corrupted,
        what=what,
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
    logits = plain.patched(one.tokens[i], two.tokens[i], ends[i], what, layer, part, clean.label_pos[i])
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
    from icl_kernel_lens import knock_out, patch_labels, routes
    from icl_kernel_lens.errors import ModelError
    from icl_kernel_lens.models import as_lens, bridge_from_hf, probe

    model = bridge_from_hf(hf_model("llama"))
    probe(as_lens(model))
    prompts = shared_prompts(sets=1, tests=2)
    hook = model.blocks[0].attn.hook_z
    hook.add_hook(lambda z, hook: z[:, :40:39] * 0 + z[:, 39:40])
    with pytest.raises(ModelError, match="on 9 random tokens.*Call routes"):
        knock_out(model, prompts, progress=False)
    hook.remove_hooks()
    routes(model)

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
