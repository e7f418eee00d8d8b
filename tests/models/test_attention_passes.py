"""A pass with attention in the caller's hands: nothing changed is the model's own pass, and changes are what they say."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from architectures import hf_model
from support import KINDS, shared_prompts

from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.models.attention_passes import AttentionUnderWay, attention_pass, read_prefix
from icl_kernel_lens.models.load import bridge_from_hf
from icl_kernel_lens.models.stand_in import CannotIntercept
from icl_kernel_lens.run.forward import next_token_logits


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_a_prefix_behind_a_prefix(tiny, name, kind):
    """Leading tokens run in three pieces give the rows and logits of the whole prompt."""
    adapter = as_adapter(tiny(name, kind)[0])
    prompts = shared_prompts().select([1, 0, 2])
    tokens, lengths, at = prompts.tokens, prompts.lengths, prompts.answer_pos
    whole, pieces = {}, {}
    expected = next_token_logits(adapter, tokens, lengths, at[:, None], fast=True, look=whole.__setitem__)
    prefix = None
    for start, end in ((0, 5), (5, 22), (22, 24)):
        prefix = read_prefix(adapter, tokens[0, start:end], prefix)
    assert prefix.end == 24
    kept = {sum(block.k.shape[2] for block in blocks) for blocks in prefix.blocks.values()}
    assert kept == {24}, "nothing beside the leading tokens is kept"
    assert {blocks[0].k.shape[1] for blocks in prefix.blocks.values()} == {adapter.shape.kv_heads}
    found = next_token_logits(
        adapter, tokens, lengths, at[:, None], prefix, fast=True, look=pieces.__setitem__
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for layer, rows in whole.items():
        torch.testing.assert_close(pieces[layer], rows, atol=1e-5, rtol=0)
    positions = torch.stack([at - 1, at], 1)
    later = next_token_logits(adapter, tokens, lengths, positions, prefix, fast=True)
    torch.testing.assert_close(later[:, 1:], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_a_change_before_attention_is_an_edit_of_the_hook(part):
    """Learned positions: no rotary embedding stands between the hook and q, k, v."""
    adapter = as_adapter(bridge_from_hf(hf_model("gpt2")))
    prompts = shared_prompts().select([0, 1])
    tokens, lengths, at = prompts.tokens, prompts.lengths, prompts.answer_pos[:, None]

    def double(x):
        """Head 2 at position 5, of (batch, pos, head, d_head)."""
        x = x.clone()
        x[:, 5, 2] *= 2
        return x

    def handle(attention):
        x = getattr(attention, part).clone()
        x[:, 2, 5] *= 2
        changed = replace(attention, **{part: x}) if attention.layer == 1 else attention
        return changed.attend()

    found = attention_pass(adapter, tokens, lengths, at, handle)
    edited = attention_pass(adapter, tokens, lengths, at, edits={(1, f"hook_{part}"): double})
    with adapter.editing({(1, f"hook_{part}"): double}):
        plain = adapter.forward(tokens, lengths, at)
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(edited, plain, atol=1e-5, rtol=1e-5)
    assert (plain - adapter.forward(tokens, lengths, at)).abs().max() > 1e-4


def test_modules_are_seen_for_one_pass():
    adapter = as_adapter(bridge_from_hf(hf_model("llama")))
    prompts, seen = shared_prompts().select([0]), []
    arguments = adapter, prompts.tokens, prompts.lengths, prompts.answer_pos[:, None]
    norm = adapter.model.ln_final
    attention_pass(*arguments, watched={norm: lambda x, y: seen.append((x.shape, y.shape))})
    attention_pass(*arguments)
    assert seen == [(torch.Size([1, prompts.tokens.shape[1], 32]),) * 2]


def test_a_pass_in_which_nothing_is_taken_over_is_an_error(monkeypatch):
    """A change must reach every layer; the model's own attention would give logits all the same."""
    adapter = as_adapter(bridge_from_hf(hf_model("gpt2")))
    arguments = torch.arange(3, 20)[None], torch.tensor([17]), torch.tensor([[16]])
    attention_pass(adapter, *arguments, AttentionUnderWay.attend)
    monkeypatch.setattr(adapter, "intercepting", lambda handler, start: nullcontext())
    with pytest.raises(CannotIntercept, match="layer 0 of unnamed ran its attention 0 times"):
        attention_pass(adapter, *arguments)
