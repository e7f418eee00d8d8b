"""Every head's weights and every label score, against Hugging Face's own attentions and logits."""

from __future__ import annotations

import pytest
import torch
from architectures import hf_model
from support import KINDS, uneven_prompts

from icl_kernel_lens import read
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.models.load import bridge_from_hf
from icl_kernel_lens.models.verify import verify_model


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_weights_and_scores_equal_hugging_face(tiny, name, kind):
    model, hf = tiny(name, kind)
    prompts = uneven_prompts()
    keep = ("label", "label_sum", "span_max", "span_sum", "span_mean")
    evidence = read(model, prompts, keep=keep, batch_size=3, progress=False)
    scores = []
    for i in range(len(prompts)):
        length = int(prompts.lengths[i])
        with torch.no_grad():
            out = hf(prompts.tokens[i : i + 1, :length], output_attentions=True)
        rows = torch.stack([a[0, :, -1] for a in out.attentions])  # layer head pos
        for demo in range(prompts.demos):
            start, end = prompts.demo_spans[i, demo].tolist()
            span = rows[..., start:end]
            bare = rows[..., max(start, 1) : end]
            expected = {
                "label": rows[..., int(prompts.label_pos[i, demo])],
                "label_sum": rows[..., int(prompts.label_pos[i, demo])],
                "span_max": span.amax(-1),
                "span_sum": span.sum(-1),
                "span_mean": span.mean(-1),
                "span_max_without_first": bare.amax(-1),
                "span_sum_without_first": bare.sum(-1),
                "span_mean_without_first": bare.mean(-1),
            }
            assert set(expected) == set(evidence.weights)
            for pooling, reference in expected.items():
                torch.testing.assert_close(
                    evidence.weights[pooling][i, ..., demo], reference, atol=1e-5, rtol=0, msg=pooling
                )
        torch.testing.assert_close(evidence.sink[i], rows[..., 0], atol=1e-5, rtol=0)
        if i < len(evidence.rows):
            torch.testing.assert_close(evidence.rows[i, ..., :length], rows, atol=1e-5, rtol=0)
            assert (evidence.rows[i, ..., length:] == 0).all()
        assert int(evidence.model_tokens[i]) == int(out.logits[0, -1].argmax())
        scores.append(out.logits[0, -1, [10, 20, 30]])
    reference = torch.stack(scores)
    differences = evidence.label_scores[:, :1] - evidence.label_scores[:, 1:]
    torch.testing.assert_close(differences, reference[:, :1] - reference[:, 1:], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_batching_changes_nothing(tiny, name, kind):
    model, _ = tiny(name, kind)
    prompts = uneven_prompts(count=7)
    single = read(model, prompts, batch_size=1, progress=False)
    together = read(model, prompts, batch_size=7, progress=False)
    for pooling, weights in single.weights.items():
        torch.testing.assert_close(together.weights[pooling], weights, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.label_scores, single.label_scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(together.profile, single.profile, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_probe_residuals_are_rounding(tiny, name, kind):
    model, _ = tiny(name, kind)
    report = verify_model(as_adapter(model))
    layers = as_adapter(model).shape.layers
    assert list(report.row_sum) == list(range(layers)) == list(report.values)
    assert report.worst < 1e-5
    assert not report.missing


@pytest.mark.parametrize("name", ["llama", "gptj"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name, dtype):
    """Rounding apart, half precision reads what float32 reads; weights are float32."""

    prompts = uneven_prompts()
    half = read(bridge_from_hf(hf_model(name).to(dtype)), prompts, progress=False)
    full = read(bridge_from_hf(hf_model(name)), prompts, progress=False)
    assert half.weights["label"].dtype == torch.float32
    assert half.run.dtype == str(dtype).removeprefix("torch.")
    torch.testing.assert_close(half.weights["label"], full.weights["label"], atol=0.05, rtol=0)
