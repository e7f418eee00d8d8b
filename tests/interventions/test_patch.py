"""Patching, against the same intervention written once more: on the plain Hugging Face model, and by TransformerLens."""

from __future__ import annotations

import pytest
import torch
from architectures import ARCHITECTURES, HOOKED, hf_model
from interventions.huggingface import ACTIVATIONS, HEADS, Plain, other, place_of
from support import needs_hooked, shared_prompts, uneven_prompts

from icl_kernel_lens import patch_labels


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_cell_equals_the_plain_model(tiny, name, activation):
    """Each architecture under the bridge, GPT-J, GPT-Neo and OPT included; prompts of different lengths."""
    model, _ = tiny(name, "bridge")
    clean = shared_prompts(sets=1, tests=2).select([0, 2])
    corrupted = other(clean)
    found = patch_labels(
        model, clean=clean, corrupted=corrupted, activation=activation, offsets=(-1, 0, 2), progress=False
    )
    plain = Plain(name, hf_model(name))
    assert not found.values.isnan().any()
    for number in range(len(clean)):
        at, words = int(clean.answer_pos[number]), clean.label_tokens[number]
        for cell in found.values[number].isfinite().nonzero().tolist():
            layer, head = place_of(found, cell)
            positions = clean.label_pos[number] + found.places["offset"][cell[-1]]
            logits = plain.patched(
                corrupted.tokens[number], clean.tokens[number], at, activation, layer, head, positions
            )
            torch.testing.assert_close(
                found.label_scores[(number, *cell)], logits[words], atol=1e-5, rtol=1e-5
            )
    assert found.effect().abs().max() > 1e-3


@pytest.mark.parametrize("factor", ["weights", "values"])
@pytest.mark.parametrize("name", ["gptj", "llama", "falcon", "gemma2"])
def test_the_factors_of_an_edge(tiny, name, factor):
    model, _ = tiny(name, "bridge")
    clean = uneven_prompts(count=2)
    corrupted = other(clean)
    found = patch_labels(
        model,
        clean=clean,
        corrupted=corrupted,
        factor=factor,
        offsets=(0,),
        direction="noise",
        progress=False,
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
            factor,
        )
        scores = found.label_scores[1, layer, part, 0]
        torch.testing.assert_close(scores, logits[clean.label_tokens[1]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("activation", [w for w in ACTIVATIONS if w != "attention_edge"])
@pytest.mark.parametrize("name", ["gptj", "qwen3", "opt"])
def test_at_the_answer(tiny, name, activation):
    """Only the answer position is run again, and it is the same."""
    model, _ = tiny(name, "bridge")
    clean = shared_prompts(sets=1, tests=2)
    corrupted = other(clean)
    found = patch_labels(
        model,
        clean=clean,
        corrupted=corrupted,
        activation=activation,
        at="answer",
        progress=False,
        direction="noise",
    )
    assert "offset" not in found.places
    plain = Plain(name, hf_model(name))
    at = int(clean.answer_pos[1])
    for cell in found.values[1].isfinite().nonzero().tolist():
        layer, head = place_of(found, cell)
        logits = plain.patched(clean.tokens[1], corrupted.tokens[1], at, activation, layer, head, [at])
        scores = found.label_scores[(1, *cell)]
        torch.testing.assert_close(scores, logits[clean.label_tokens[1]], atol=1e-5, rtol=1e-5)


@needs_hooked
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", sorted(HOOKED))
def test_every_cell_equals_transformer_lens(tiny, name, activation):
    """`patching.generic_activation_patch` with a setter that does the same."""
    from transformer_lens import patching

    model, _ = tiny(name, "hooked")
    clean = uneven_prompts(count=2).select([1])
    corrupted = other(clean)
    at, positions = int(clean.answer_pos[0]), clean.label_pos[0]
    found = patch_labels(
        model, clean=clean, corrupted=corrupted, activation=activation, offsets=(0,), progress=False
    )
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
    }[activation]

    def setter(x, index, source):
        layer, part = index[0], index[-1]
        new = x.clone()
        if activation == "attention_edge":
            group = model.cfg.n_heads // (model.cfg.n_key_value_heads or model.cfg.n_heads)
            for run, sign in ((base, -1), (cache, 1)):
                a = run["pattern", layer][0, part, at, positions]
                v = run["v", layer][
                    0, positions, part // group if run["v", layer].shape[2] != model.cfg.n_heads else part
                ]
                new[0, at, part] += sign * (a[:, None] * v).sum(0)
        elif x.dim() == 4:
            new[0, positions, part] = source[0, positions, part]
        else:
            new[0, positions] = source[0, positions]
        return new

    import pandas as pd

    cells = found.values[0].isfinite().nonzero().tolist()
    frame = pd.DataFrame(cells, columns=list(found.places)).drop(columns="offset")
    expected = patching.generic_activation_patch(
        model,
        corrupted.tokens,
        cache,
        patching_metric=lambda logits: logits[0, at, clean.label_tokens[0, 0]],
        patch_setter=setter,
        activation_name=hook,
        index_df=frame,
    )
    scores = torch.stack([found.label_scores[(0, *cell, 0)] for cell in cells])
    torch.testing.assert_close(scores, expected.flatten(), atol=1e-5, rtol=1e-5)
    assert (scores - found.base_label_scores[0, 0]).abs().max() > 1e-3


FINAL_NORM = {
    "gpt2": "transformer.ln_f",
    "gptj": "transformer.ln_f",
    "llama": "model.norm",
    "gemma2": "model.norm",
    "falcon": "transformer.ln_f",
    "opt": "model.decoder.final_layer_norm",
}


@pytest.mark.parametrize("activation", ["attention_edge", "head_output"])
@pytest.mark.parametrize("name", sorted(FINAL_NORM))
def test_direct_effects_leave_everything_above_frozen(tiny, name, activation):
    """What the changed attention adds, added to the final residual of the plain Hugging Face run."""
    model, _ = tiny(name, "bridge")
    clean = shared_prompts(sets=1, tests=2)
    corrupted = other(clean)
    options = {"clean": clean, "corrupted": corrupted, "activation": activation, "path": "direct"}
    options |= {"offsets": (0,)} if activation == "attention_edge" else {"at": "answer"}
    found = patch_labels(model, progress=False, **options)
    plain, number = Plain(name, hf_model(name)), 1
    at = int(clean.answer_pos[number])
    base, source = corrupted.tokens[number, : at + 1], clean.tokens[number, : at + 1]
    norm = plain.hf.get_submodule(FINAL_NORM[name]), "input", slice(None)
    for layer, part in ((0, 2), (1, 0), (2, 3)):
        place = plain.place("attention_output", layer, part)
        seen = []
        with plain.hooked(place, lambda x, seen=seen: seen.append(x[0, at].clone())):
            positions = [at] if activation == "head_output" else clean.label_pos[number]
            plain.patched(base, source, at, activation, layer, part, positions)
        changed = seen[-1]
        _, plainly, _ = plain.run(base, watch=[("x", place)])
        moved = changed - plainly["x"][0, at]

        def add(x, moved=moved):
            x = x.clone()
            x[:, at] += moved
            return x

        logits = plain.run(base, changes=[(norm, add)])[0][at]
        scores = found.label_scores[number, layer, part].reshape(-1)
        torch.testing.assert_close(scores, logits[clean.label_tokens[number]], atol=1e-5, rtol=1e-5)
    assert found.title.endswith("layers above frozen")
    assert found.settings["path"] == "direct"
    last = patch_labels(model, heads=["L2H3"], progress=False, **options).values
    torch.testing.assert_close(last[:, 2, 3], found.values[:, 2, 3])
    assert last[:, 0].isnan().all(), "heads that were not asked for"


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["gptj", "llama", "falcon"])
def test_first_order_estimates_are_gradients(tiny, name, activation):
    """⟨difference, gradient⟩ taken once more on the plain model, activation by activation."""
    model, _ = tiny(name, "bridge")
    clean = shared_prompts(sets=1, tests=2)
    corrupted = other(clean)
    offsets = (0, 1)
    found = patch_labels(
        model,
        clean=clean,
        corrupted=corrupted,
        activation=activation,
        offsets=offsets,
        method="attribution",
        progress=False,
    )
    assert found.label_scores is None
    plain, number = Plain(name, hf_model(name)), 1
    at = int(clean.answer_pos[number])
    base, source = corrupted.tokens[number, : at + 1], clean.tokens[number, : at + 1]
    words, reference = clean.label_tokens[number], int(found.reference[number])
    inner = "head_output" if activation == "attention_edge" else activation
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
            if activation == "attention_edge":
                seen = []
                with plain.hooked(place, lambda x, seen=seen: seen.append(x[0, at].clone())):
                    plain.patched(base, source, at, activation, layer, part, positions)
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
            cell = (layer, number_of) if list(found.places)[1] == "offset" else (layer, part, number_of)
            estimate = found.effect()[(number, *cell)]
            torch.testing.assert_close(estimate, expected, atol=1e-4, rtol=1e-3)


def test_estimates_come_with_exact_effects(tiny):
    """Of a random sample, and of the largest; their correlation is the sample's."""
    model, _ = tiny("llama", "bridge")
    clean = uneven_prompts(count=4)
    corrupted = other(clean)
    options = {"clean": clean, "corrupted": corrupted, "activation": "value", "progress": False}
    options["offsets"] = (-1, 0, 1)
    estimated = patch_labels(model, method="attribution", seed=3, **options)
    exact = patch_labels(model, **options)
    for compared in (estimated.sample, estimated.largest):
        for number, cell in enumerate(compared.cells):
            torch.testing.assert_close(
                compared.exact[:, number], exact.effect()[(slice(None), *cell)], atol=1e-5, rtol=1e-5
            )
            torch.testing.assert_close(
                compared.estimate[:, number], estimated.effect()[(slice(None), *cell)], atol=1e-5, rtol=1e-5
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
