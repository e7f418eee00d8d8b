"""Substituted kernels, against the plain Hugging Face model."""

from __future__ import annotations

import torch
from architectures import hf_model
from interventions.huggingface import Plain, rows_changed
from support import shared_prompts, uneven_prompts

from icl_kernel_lens import substitute_kernel


def test_own_weights_substituted_change_nothing(tiny):
    """And a kernel given as a tensor or a function is the one that is used."""
    model, _ = tiny("qwen3", "bridge")
    prompts = shared_prompts(sets=1, tests=2)
    same = substitute_kernel(model, prompts, "own", progress=False)
    assert same.effect().abs().max() < 2e-5
    assert same.controls["uniform"].isfinite().all()
    kernel = torch.rand(len(prompts), prompts.demos, generator=torch.Generator().manual_seed(0))
    given = substitute_kernel(model, prompts, kernel, heads=[(1, 3)], progress=False)
    made = substitute_kernel(
        model,
        prompts,
        lambda number, own: kernel[number].expand_as(own),
        heads=[(1, 3)],
        progress=False,
    )
    torch.testing.assert_close(given.values[:, 1, 3], made.values[:, 1, 3])
    plain, at = Plain("qwen3", hf_model("qwen3")), int(prompts.answer_pos[1])
    places = prompts.label_pos[1]

    def change(a):
        a[places] = a[places].sum() * kernel[1] / kernel[1].sum()
        return a

    logits = rows_changed(plain, prompts.tokens[1, : at + 1], {1: [(3, at, change)]})[at]
    scores = given.label_scores[1, 1, 3]
    torch.testing.assert_close(scores, logits[prompts.label_tokens[1]], atol=1e-5, rtol=1e-5)


def test_a_kernel_of_tiny_weights_is_the_same_kernel(tiny):
    """Of which only the ratios count, far below what float32 holds."""
    model, _ = tiny("llama", "bridge")
    prompts = uneven_prompts(count=3)
    kernel = torch.rand(3, prompts.demos, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, two = (
        substitute_kernel(model, prompts, kernel * size, progress=False).values for size in (1.0, 1e-60)
    )
    torch.testing.assert_close(one, two)
