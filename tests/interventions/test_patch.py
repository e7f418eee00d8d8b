"""Patching, against the same intervention written once more: on the plain Hugging Face model, and by TransformerLens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from architectures import ARCHITECTURES, HOOKED, hf_model
from interventions.huggingface import Plain
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
