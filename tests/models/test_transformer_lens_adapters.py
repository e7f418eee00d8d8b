"""The user's model is left exactly as it was: hooks, modes, gradients, random state; after errors too."""

from __future__ import annotations

import pytest
import torch
from models.left_as_found import KINDS, build, same, state
from support import uneven_prompts

from icl_kernel_lens import read
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.models.load import bridge_from_hf
from icl_kernel_lens.models.verify import verify_model


@pytest.mark.parametrize("kind", KINDS)
def test_success_leaves_everything(kind):
    model = build(kind)
    model.train()
    before = state(model)
    prompts = uneven_prompts()
    tokens = prompts.tokens.clone()
    read(model, prompts, progress=False)
    assert same(before, state(model))
    assert torch.equal(prompts.tokens, tokens)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interruption_leaves_everything(kind, error):
    """Ctrl-C in the middle of a forward pass leaves no hook behind."""
    model = build(kind)
    verify_model(as_adapter(model))
    model.train()

    def stop(*_):
        raise error("stop")

    handle = model.blocks[2].attn.register_forward_pre_hook(stop)
    before = state(model)
    with pytest.raises(error, match="stop"):
        read(model, uneven_prompts(), progress=False)
    assert same(before, state(model))
    handle.remove()
    assert torch.isfinite(read(model, uneven_prompts(), progress=False).label_scores).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_users_own_hooks_run_first_and_stay(kind):
    """A user's edit of the pattern is what is read, and is still there afterwards."""
    model = build(kind)
    prompts = uneven_prompts()
    plain = read(model, prompts, progress=False)

    def look_at_first(pattern, hook):
        edited = torch.zeros_like(pattern)
        edited[..., 0] = 1
        return edited

    model.blocks[1].attn.hook_pattern.add_hook(look_at_first)
    before = state(model)
    edited = read(model, prompts, progress=False)
    assert same(before, state(model))
    assert (edited.sink[:, 1] == 1).all()
    torch.testing.assert_close(edited.sink[:, 0], plain.sink[:, 0])
    assert not torch.allclose(edited.label_scores, plain.label_scores)


def test_dropout_is_off_while_reading():
    """GPT-2's embedding dropout sits in a module that a bridge does not list among its own."""
    import transformers

    def model():
        config = transformers.GPT2Config(
            vocab_size=89,
            n_layer=2,
            n_head=4,
            n_embd=32,
            n_positions=96,
            embd_pdrop=0.5,
            resid_pdrop=0.5,
            attn_pdrop=0.5,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")

    prompts = uneven_prompts()
    expected = read(bridge_from_hf(model().eval()), prompts, progress=False)
    trained = bridge_from_hf(model().train())
    trained.train()
    before = torch.random.get_rng_state()
    modes = [m.training for m in trained.original_model.modules()]
    found = read(trained, prompts, progress=False)
    torch.testing.assert_close(found.label_scores, expected.label_scores)
    torch.testing.assert_close(found.weights["label"], expected.weights["label"])
    assert torch.equal(before, torch.random.get_rng_state())
    assert [m.training for m in trained.original_model.modules()] == modes
    assert any(modes)
