"""First-order estimates, against gradients of the plain Hugging Face model and against exact effects."""

from __future__ import annotations

import pytest
import torch
from architectures import hf_model
from interventions.huggingface import ACTIVATIONS, HEADS, Plain, other
from support import shared_prompts, uneven_prompts

from icl_kernel_lens import patch_labels


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
