"""Variants run at once are the model with one hook each, whole and behind kept keys and values."""

from __future__ import annotations

import pytest
import torch
from support import KINDS, uneven_prompts

from icl_kernel_lens.errors import ModelError
from icl_kernel_lens.run.variants import Changes, editable, keep, look_at, own_tokens, run_variants

FEW = [param for param in KINDS if param.values[0] in ("llama", "gpt2")]
AT = 20


def hooked(model, tokens, hooks):
    """The logits at the answer, by TransformerLens's own hooks."""
    with torch.no_grad():
        return model.run_with_hooks(tokens[None, : AT + 1], return_type="logits", fwd_hooks=hooks)[0, -1]


@pytest.mark.parametrize(("name", "kind"), FEW)
@pytest.mark.parametrize("apart", [True, False])
def test_each_variant_is_the_model_with_its_hook(tiny, name, kind, apart):
    """At the answer position: nothing, a head of layer 1 cut, another scaled."""
    model, _ = tiny(name, kind)
    adapter, tokens = editable(model), uneven_prompts(count=1).tokens[0]

    def edit(layer, z):
        z = z.clone()
        if layer == 1:
            z[1, 2, -1] = 0
            z[2, 3, -1] *= -2
        return z

    prefix = keep(adapter, tokens, AT, None, own_tokens(adapter, AT + 1) if apart else None)
    assert (prefix is not None) is apart
    found = run_variants(adapter, tokens, AT, 3, Changes(vectors={"head_output": edit}), prefix)

    def changed(head, factor):
        def hook(z, hook):
            z = z.clone()
            z[:, -1, head] *= factor
            return z

        return [("blocks.1.attn.hook_z", hook)]

    expected = [hooked(model, tokens, hooks) for hooks in ([], changed(2, 0), changed(3, -2))]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-4)
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_what_is_looked_at_is_what_a_cache_holds(tiny):
    model, _ = tiny("llama")
    tokens, positions = uneven_prompts(count=1).tokens[0], torch.tensor([3, AT])
    seen = look_at(editable(model), tokens, AT, positions, ["head_output", "residual"], None)
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens[None, : AT + 1])
    torch.testing.assert_close(seen.logits, logits[0, -1], atol=1e-5, rtol=1e-4)
    for layer in range(model.cfg.n_layers):
        z = cache[f"blocks.{layer}.attn.hook_z"][0, positions].transpose(0, 1)
        torch.testing.assert_close(seen.vectors["head_output"][layer], z, atol=1e-5, rtol=1e-4)
        stream = (
            cache[f"blocks.{layer}.hook_in"] if "blocks.0.hook_in" in cache else cache["resid_pre", layer]
        )
        torch.testing.assert_close(
            seen.vectors["residual"][layer], stream[0, positions], atol=1e-5, rtol=1e-4
        )
        row = cache[f"blocks.{layer}.attn.hook_pattern"][0, :, AT]
        torch.testing.assert_close(seen.weights[layer], row, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_changed_is_refused():
    with pytest.raises(ModelError):
        editable(torch.nn.Linear(2, 2))
