"""Small random models of eleven architectures, built from in-memory Hugging Face configurations.

Weights are drawn wide enough (std 0.15) that attention is uneven and no two heads agree by accident.
"""

from __future__ import annotations

import torch
import transformers
from transformers import PreTrainedModel

VOCAB = 89
CONTEXT = 96


def _config(name: str) -> transformers.PretrainedConfig:
    common = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    gpt = {
        "n_layer": 3,
        "n_head": 4,
        "n_embd": 32,
        "n_positions": CONTEXT,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
    }
    modern = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
    }
    match name:
        case "gpt2":
            return transformers.GPT2Config(**common, **gpt)
        case "gptj":
            return transformers.GPTJConfig(**common, **gpt, rotary_dim=4)
        case "gpt_neo":
            return transformers.GPTNeoConfig(
                **common,
                num_layers=4,
                num_heads=4,
                hidden_size=32,
                max_position_embeddings=CONTEXT,
                attention_types=[[["global", "local"], 2]],
                window_size=16,
                attention_dropout=0.0,
                embed_dropout=0.0,
                resid_dropout=0.0,
            )
        case "gpt_neox":
            return transformers.GPTNeoXConfig(**common, **modern, rotary_pct=0.5)
        case "llama":
            return transformers.LlamaConfig(**common, **modern, num_key_value_heads=2)
        case "qwen3":
            return transformers.Qwen3Config(**common, **modern, num_key_value_heads=2, head_dim=8)
        case "gemma2":
            return transformers.Gemma2Config(
                **common,
                **modern,
                num_key_value_heads=2,
                head_dim=8,
                sliding_window=16,
                query_pre_attn_scalar=8,
            )
        case "phi":
            return transformers.PhiConfig(**common, **modern, partial_rotary_factor=0.5)
        case "falcon":
            return transformers.FalconConfig(
                **common,
                hidden_size=32,
                num_hidden_layers=3,
                num_attention_heads=4,
                multi_query=True,
                parallel_attn=True,
                bias=False,
                max_position_embeddings=CONTEXT,
            )
        case "bloom":
            return transformers.BloomConfig(**common, hidden_size=32, n_layer=3, n_head=4)
        case "opt":
            return transformers.OPTConfig(
                **common,
                hidden_size=32,
                ffn_dim=48,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=CONTEXT,
                word_embed_proj_dim=32,
                dropout=0.0,
            )
    raise ValueError(name)


ARCHITECTURES = (
    "gpt2",
    "gptj",
    "gpt_neo",
    "gpt_neox",
    "llama",
    "qwen3",
    "gemma2",
    "phi",
    "falcon",
    "bloom",
    "opt",
)

HOOKED = frozenset(ARCHITECTURES) - {"falcon"}
"""Those that `HookedTransformer` can hold."""


def hf_model(name: str, seed: int = 0) -> PreTrainedModel:
    """A small random model with eager attention, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = _config(name)
        config._attn_implementation = "eager"
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
            elif "bias" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()
