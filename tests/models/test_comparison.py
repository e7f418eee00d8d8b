"""No model is believed: its logits are compared with Hugging Face's, also a bridge's, also one that the user built."""

from __future__ import annotations

import pytest
import torch
import transformers
from architectures import VOCAB, hf_model
from support import KINDS, has_hooked_transformer, uneven_prompts

from icl_kernel_lens import load_model, read
from icl_kernel_lens.errors import LoadError
from icl_kernel_lens.models.comparison import comparison_of
from icl_kernel_lens.models.load import bridge_from_hf, load_record

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
}


def made(config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def users_bridge(hf):
    """A bridge as TransformerLens itself builds it."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    return build_bridge_from_module(
        hf, type(hf).__name__, hf_config=hf.config, tokenizer=None, model_name="mine"
    )


def spoilt(bridge):
    """What a wrong conversion does: numbers in another order than in the Hugging Face model."""
    mlp = bridge.blocks[1].mlp.original_component
    forward = mlp.forward
    mlp.forward = lambda *args, **kwargs: forward(*args, **kwargs).flip(-1)
    return bridge


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_every_architecture_has_hugging_faces_logits(tiny, name, kind):
    found = comparison_of(tiny(name, kind)[0])
    assert found.residual is not None
    assert found.residual < 1e-4
    assert found.says.startswith("logits equal Hugging Face's within")


def test_a_bridge_with_other_logits_is_refused(monkeypatch):
    from transformer_lens.model_bridge.sources import _bridge_builder

    build = _bridge_builder.build_bridge_from_module
    monkeypatch.setattr(
        _bridge_builder, "build_bridge_from_module", lambda *args, **kwargs: spoilt(build(*args, **kwargs))
    )
    with pytest.raises(LoadError, match=r"differ by .* converts this architecture wrongly.*\[other-logits\]"):
        bridge_from_hf(hf_model("llama"))
    with pytest.raises(LoadError, match="other-logits"):
        load_model("mini", device="cpu", backend="bridge")


@pytest.mark.skipif(not has_hooked_transformer(), reason="TransformerLens 4 scales Cohere's logits")
def test_a_family_that_this_transformer_lens_gets_wrong():
    with pytest.raises(LoadError, match="those of CohereForCausalLM under a TransformerBridge differ by"):
        bridge_from_hf(made(transformers.CohereConfig(**SIZES, pad_token_id=0)))


def test_a_lost_causal_mask_is_named():
    """GPT-1 in a bridge drops its causal mask when it is given one that says that every token is text."""
    config = transformers.OpenAIGPTConfig(vocab_size=VOCAB, n_positions=96, n_embd=32, n_layer=2, n_head=4)
    with pytest.raises(LoadError, match="change with the tokens behind it: the causal mask was lost"):
        bridge_from_hf(made(config))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj", "gemma2", "bloom", "opt"])
def test_a_users_bridge_is_compared_with_what_it_wraps(name):
    """By the Hugging Face class, run again on the very tensors; what is wrong is refused when it is read."""
    before = {key: x.clone() for key, x in hf_model(name).state_dict().items()}
    bridge, prompts = users_bridge(hf_model(name)), uneven_prompts(count=1)
    evidence = read(bridge, prompts, progress=False)
    assert "; logits equal Hugging Face's within" in evidence.run.verification
    held = {k.replace("_original_component.", ""): x for k, x in bridge.original_model.state_dict().items()}
    assert all(torch.equal(held[key], x) for key, x in before.items() if key in held)
    with pytest.raises(LoadError, match="those of mine differ by"):
        read(spoilt(users_bridge(hf_model(name))), prompts, progress=False)


def test_what_cannot_be_compared_is_said():
    processed = users_bridge(hf_model("llama"))
    processed.compatibility_mode = True
    assert (
        comparison_of(processed).says == "not compared with Hugging Face's logits: its weights were processed"
    )
    hf = hf_model("llama")
    with torch.no_grad():
        hf.lm_head.weight[3] = float("nan")
    found = comparison_of(bridge_from_hf(hf))
    assert (found.residual, found.says.split(": ")[1]) == (
        None,
        "Hugging Face's own are infinite or undefined",
    )


@pytest.mark.parametrize(("window", "tokens"), [(40, 64), (1100, 1124), (5000, 32)])
def test_a_window_is_left_where_it_can_be(window, tokens):
    """Random tokens beyond the window, or the words that say that they are not beyond it."""
    config = transformers.MistralConfig(
        **SIZES, num_key_value_heads=2, sliding_window=window, max_position_embeddings=8192
    )
    says = comparison_of(bridge_from_hf(made(config))).says
    assert f" on {tokens:,} tokens" in says
    beyond = "; not compared beyond 32 tokens, while it has a window of 5,000"
    assert says.endswith(beyond) == (window == 5000)


def test_the_record_and_every_result_say_it(mini):
    record = load_record(mini)
    assert record is not None
    assert record.compared.startswith("logits equal Hugging Face's within")
    assert record.logit_residual == comparison_of(mini).residual
