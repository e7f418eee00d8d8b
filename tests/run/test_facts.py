"""What holds of a model is measured on it: whether the logits of some tokens alone are those among all."""

from __future__ import annotations

import pytest
import torch
from architectures import VOCAB
from models.left_as_found import KINDS
from models.test_unembedding import Weights, logits
from support import shared_prompts

from icl_kernel_lens import HeadRef, read
from icl_kernel_lens.evidence.reading import answer
from icl_kernel_lens.interventions.coverage import Relabelled
from icl_kernel_lens.interventions.label_routes import take_out
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.models.transformer_lens_adapters import TransformerLensAdapter
from icl_kernel_lens.run import facts
from icl_kernel_lens.run.facts import narrows


@pytest.mark.parametrize("kind", KINDS)
def test_answers_take_the_labels_logits_alone(tiny, kind):
    """The same numbers as a reading has, which asks for the likeliest of all tokens."""
    model, _ = tiny("llama", kind)
    prompts = shared_prompts()
    answer(model, prompts, progress=False)  # what is measured once
    with Weights() as seen:
        scores = answer(model, prompts, progress=False)
    assert VOCAB not in seen.rows
    assert len(prompts.label_tokens.unique()) in seen.rows
    torch.testing.assert_close(scores, read(model, prompts, progress=False).label_scores, atol=1e-5, rtol=0)


def test_a_model_whose_logits_hang_on_one_another_is_not_narrowed(tiny, monkeypatch):
    """What it does behind its unembedding counts on all of them; interventions then run to all, with the same numbers."""
    model, _ = tiny("llama", "bridge")
    prompts, heads = shared_prompts(), [[HeadRef(1, 2)], [HeadRef(0, 1), HeadRef(2, 3)]]
    forward = type(as_adapter(model))._forward

    def normalised(adapter, tokens, mask):
        return forward(adapter, tokens, mask).log_softmax(-1)

    monkeypatch.setattr(type(as_adapter(model)), "_forward", normalised)
    facts._narrows.clear()

    def taken():
        runs = Relabelled.of(model, prompts, (0,), "model", progress=False)
        return take_out(runs, heads, checkpoint=None)

    assert not narrows(as_adapter(model))
    found = taken()
    expected = logits(model)[0].exp().sum(-1)
    torch.testing.assert_close(expected, torch.ones_like(expected), atol=1e-4, rtol=0)
    narrowed = []
    whole = TransformerLensAdapter.forward

    def seen(adapter, *args, columns=None, **options):
        narrowed.append(
            columns is not None and len(columns) > 1
        )  # of leading tokens nothing is asked: they give one
        return whole(adapter, *args, columns=columns, **options)

    monkeypatch.setattr(TransformerLensAdapter, "forward", seen)
    torch.testing.assert_close(taken().scores, found.scores, atol=1e-5, rtol=0)
    assert narrowed
    assert not any(narrowed)
    monkeypatch.setattr(type(as_adapter(model)), "_forward", forward)
    facts._narrows.clear()
    taken()
    assert any(narrowed), "else they are"
