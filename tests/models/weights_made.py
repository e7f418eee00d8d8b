"""Models as people have them, written into folders by the tests: a tiny Llama as GGUF, as .bin, with an adapter, in int8."""

from __future__ import annotations

import json
from copy import deepcopy
from importlib.util import find_spec

import pytest
import torch
import transformers
from torch import nn

needs_gguf = pytest.mark.skipif(find_spec("gguf") is None, reason="the package gguf is not installed")
needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="the package peft is not installed")
VOCAB = 89


def llama(seed: int = 0, dtype: torch.dtype = torch.float32, vocab: int = VOCAB, context: int = 96):
    """Tiny, with grouped queries; widths are multiples of 32, the size of a block of quantised numbers."""
    config = transformers.LlamaConfig(
        vocab_size=vocab, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=context, initializer_range=0.2, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return hf.to(dtype).eval()


def tokens(count: int = 2, length: int = 20):
    return torch.randint(3, VOCAB, (count, length), generator=torch.Generator().manual_seed(0))


def logits(model):
    """Of a Hugging Face model or one of TransformerLens's."""
    given = tokens()
    with torch.no_grad():
        if isinstance(model, transformers.PreTrainedModel) or hasattr(model, "get_base_model"):
            return model(given).logits
        return model(given, return_type="logits", attention_mask=torch.ones_like(given))


def write_gguf(path, hf, kind: str = "Q8_0", name: str | None = "Tiny Llama", tokenizer=None, **said: int):
    """A Llama as llama.cpp writes it; matrices in `kind` but for the embedding in F32, a tokenizer of bytes where there is one.
    The model with the numbers that they stand for."""
    import gguf

    config, writer = hf.config, gguf.GGUFWriter(path, "llama")
    if name:
        writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    for key, value in said.items():
        writer.add_uint16(key.replace("_", "."), value)
    if tokenizer:
        _add_tokenizer(writer, tokenizer)
    held = {}
    for key, weight in hf.state_dict().items():
        kept = kind if weight.dim() > 1 and "embed" not in key else "F32"
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        turned = next((n for part, n in heads.items() if part in key), None)
        there = _turned(weight, turned) if turned else weight
        stored = gguf.quantize(there.float().numpy(), getattr(gguf.GGMLQuantizationType, kept))
        back = torch.from_numpy(gguf.dequantize(stored, getattr(gguf.GGMLQuantizationType, kept)).copy())
        held[key] = _turned_back(back, turned) if turned else back
        writer.add_tensor(_gguf_name(key), stored, raw_dtype=getattr(gguf.GGMLQuantizationType, kept))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = deepcopy(hf)
    expected.load_state_dict(held)
    return expected


def _add_tokenizer(writer, tokenizer) -> None:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(model["vocab"], key=model["vocab"].get))
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)


def _turned(weight, heads):
    """llama.cpp rotates neighbours, Hugging Face the halves of a head."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _turned_back(weight, heads):
    return weight.reshape(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _gguf_name(key: str) -> str:
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    stem = key.removesuffix(".weight")
    if stem in whole:
        return f"{whole[stem]}.weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{parts[part]}.weight"


def adapter_of(hf, seed: int = 1, **options):
    """A PeftModel over this very model, its LoRA drawn at random."""
    import warnings

    import peft

    settings = {"target_modules": ["q_proj", "v_proj", "down_proj"], "init_lora_weights": False} | options
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        return peft.get_peft_model(hf, peft.LoraConfig(**settings)).eval()


class Int8Linear(nn.Module):
    """A linear map with 8-bit weights and a scale a row, as libraries of quantisation store it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, None
        self.weight = nn.Parameter(
            (linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False
        )
        self.register_buffer("scale", scale)

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)


def in_int8(hf):
    """The model with every linear map of its layers in 8 bits."""
    for layer in hf.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, linear in list(part.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(part, name, Int8Linear(linear))
    return hf
