"""Puts weights written by hand into TransformerLens's and Hugging Face's models.

One neutral set of weights (`HandWeights`) goes into a `HookedTransformer`, or into the Hugging Face model of its
form, whose MLPs are there and write nothing unless they are given:

    plain      GPT-2: learned positions                        GPT2LMHeadModel
    rotary     GPT-NeoX, sequential: rotary on part of a head   GPTNeoXForCausalLM
    parallel   GPT-J: the same, attention and MLP in parallel   GPTJForCausalLM
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from icl_kernel_lens.errors import ModelError
from icl_kernel_lens.models.load import bridge_from_hf, unwritten
from icl_kernel_lens.models.transformer_lens_adapters import transformer_lens_classes

Form = Literal["plain", "rotary", "parallel"]
"""GPT-2's, GPT-NeoX's (sequential), GPT-J's."""
Kind = Literal["HookedTransformer", "TransformerBridge"]

MLP_WIDTH = 4
"""Hidden units of an MLP."""
EPS = 1e-5
"""Added to the variance by every norm."""


@dataclass(frozen=True)
class HandMLP:
    """Weights of every layer's MLP, without biases; its activation is the form's own."""

    read: Float[Tensor, "layer width hidden"]
    write: Float[Tensor, "layer hidden width"]


@dataclass(frozen=True)
class HandWeights:
    """All weights of a transformer, heads apart; norms have weight 1 and bias 0."""

    form: Form
    norm: bool
    rotary_dim: int
    embed: Float[Tensor, "vocab width"]
    positions: Float[Tensor, "context width"]
    """Learned positions; in the rotary forms only their number counts."""
    q: Float[Tensor, "layer head width d_head"]
    k: Float[Tensor, "layer head width d_head"]
    v: Float[Tensor, "layer head width d_head"]
    o: Float[Tensor, "layer head d_head width"]
    unembed: Float[Tensor, "width vocab"]
    mlp: HandMLP | None = None
    """None: MLPs write nothing."""


def default_kind(norm: bool) -> Kind:
    """HookedTransformer where TransformerLens has it and where norms are off; else the bridge."""
    return (
        "HookedTransformer" if transformer_lens_classes()[0] is not None or not norm else "TransformerBridge"
    )


def build(weights: HandWeights, kind: Kind, name: str) -> Any:
    """The model in evaluation mode; the caller's random state is left as it was.

    Raises: ModelError: this TransformerLens has no HookedTransformer; no norm under the bridge.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        if kind == "HookedTransformer":
            return _hooked(weights, name)
        if not weights.norm:
            raise ModelError(
                "norm=False needs kind='HookedTransformer'; under TransformerBridge lies a Hugging Face model, and "
                "those all have norms. Use norm=True, or a HookedTransformer (TransformerLens 3).",
                code="model-backend",
            )
        return bridge_from_hf(_hugging_face(weights), name=name)


def _hooked(w: HandWeights, name: str) -> Any:
    if transformer_lens_classes()[0] is None:
        raise ModelError(
            "kind='HookedTransformer' needs a TransformerLens that has the class; it was removed in 4.0. Install "
            "\"transformer-lens<4\", or use kind='TransformerBridge' (norm=True).",
            code="model-backend",
        )
    layers, heads, width, d_head = w.q.shape
    fields = {
        "n_layers": layers,
        "n_heads": heads,
        "d_model": width,
        "d_head": d_head,
        "d_mlp": MLP_WIDTH,
        "d_vocab": len(w.embed),
        "n_ctx": len(w.positions),
        "act_fn": "gelu_new",
        "normalization_type": "LN" if w.norm else None,
        "eps": EPS,
        "positional_embedding_type": "standard" if w.form == "plain" else "rotary",
        "rotary_dim": None if w.form == "plain" else w.rotary_dim,
        "rotary_adjacent_pairs": w.form == "parallel",
        "parallel_attn_mlp": w.form == "parallel",
        "model_name": name,
        "device": "cpu",
        "init_weights": False,
    }
    model = unwritten(fields)
    for key, parameter in model.named_parameters():
        parameter.fill_(1.0 if key.endswith(("ln1.w", "ln2.w", "ln_final.w")) else 0.0)
    model.embed.W_E.copy_(w.embed)
    if w.form == "plain":
        model.pos_embed.W_pos.copy_(w.positions)
    for layer, block in enumerate(model.blocks):
        for own, given in zip("QKVO", (w.q, w.k, w.v, w.o), strict=True):
            getattr(block.attn, f"W_{own}").copy_(given[layer])
        if w.mlp is not None:
            block.mlp.W_in.copy_(w.mlp.read[layer])
            block.mlp.W_out.copy_(w.mlp.write[layer])
    model.unembed.W_U.copy_(w.unembed)
    return model.eval()


def _hugging_face(w: HandWeights) -> Any:
    import transformers

    layers, heads, width, d_head = w.q.shape
    common: dict[str, Any] = {
        "vocab_size": len(w.embed),
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "attn_implementation": "eager",
    }
    gpt = {
        "n_layer": layers,
        "n_head": heads,
        "n_embd": width,
        "n_positions": len(w.positions),
        "n_inner": MLP_WIDTH,
        "layer_norm_epsilon": EPS,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
    }
    match w.form:
        case "plain":
            config: Any = transformers.GPT2Config(**common, **gpt)
        case "rotary":
            # A quarter of a dimension more than asked for: the share is rounded down to whole dimensions.
            share: dict[str, Any] = {"rotary_pct": (w.rotary_dim + 0.25) / d_head}
            config = transformers.GPTNeoXConfig(
                **common,
                **share,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                hidden_size=width,
                intermediate_size=MLP_WIDTH,
                max_position_embeddings=len(w.positions),
                layer_norm_eps=EPS,
                use_parallel_residual=False,
            )
        case "parallel":
            config = transformers.GPTJConfig(**common, **gpt, rotary_dim=w.rotary_dim)
    hf: Any = transformers.AutoModelForCausalLM.from_config(config)
    for key, parameter in hf.named_parameters():
        is_norm = any(part in key for part in ("ln_", "layernorm", "layer_norm")) and key.endswith("weight")
        parameter.fill_(1.0 if is_norm else 0.0)
    hf.get_input_embeddings().weight.copy_(w.embed)
    hf.get_output_embeddings().weight.copy_(w.unembed.T)
    if w.form == "plain":
        hf.transformer.wpe.weight.copy_(w.positions)
    for layer, block in enumerate(hf.gpt_neox.layers if w.form == "rotary" else hf.transformer.h):
        _write_attention(block, w, layer)
        if w.mlp is not None:
            _write_mlp(block.mlp, w.form, w.mlp.read[layer], w.mlp.write[layer])
    return hf.eval()


def _write_attention(block: Any, w: HandWeights, layer: int) -> None:
    """Each form's own way of putting heads, and q, k and v, into one matrix."""
    q, k, v, o = (matrix[layer] for matrix in (w.q, w.k, w.v, w.o))
    match w.form:
        case "plain":
            block.attn.c_attn.weight.copy_(rearrange([q, k, v], "n h m d -> m (n h d)"))
            block.attn.c_proj.weight.copy_(rearrange(o, "h d m -> (h d) m"))
        case "rotary":
            block.attention.query_key_value.weight.copy_(rearrange([q, k, v], "n h m d -> (h n d) m"))
            block.attention.dense.weight.copy_(rearrange(o, "h d m -> m (h d)"))
        case "parallel":
            for own, given in (("q_proj", q), ("k_proj", k), ("v_proj", v)):
                getattr(block.attn, own).weight.copy_(rearrange(given, "h m d -> (h d) m"))
            block.attn.out_proj.weight.copy_(rearrange(o, "h d m -> m (h d)"))


def _write_mlp(mlp: Any, form: Form, read: Tensor, write: Tensor) -> None:
    """Each form's own names for the two matrices, and its own way round."""
    match form:
        case "plain":
            mlp.c_fc.weight.copy_(read)
            mlp.c_proj.weight.copy_(write)
        case "rotary":
            mlp.dense_h_to_4h.weight.copy_(read.T)
            mlp.dense_4h_to_h.weight.copy_(write.T)
        case "parallel":
            mlp.fc_in.weight.copy_(read.T)
            mlp.fc_out.weight.copy_(write.T)
