"""One tiny configuration for every decoder that TransformerLens registers and transformers can build from memory.

The list is fixed: `CONFIGS` holds one entry for each decoder-only causal language model in TransformerLens 4.3.0's registry
(85 classes), and 18 variants within families, so that every kind of attention occurs: full, grouped and multi-query; sliding,
chunked; sinks, soft caps, norms of queries and keys; ALiBi, learned, rotary and no positions; gates, latent attention,
experts, hybrids with recurrent layers, and models without any attention. `ADDED` came later and is counted apart.
Left out: encoder-decoders, models of images or sound around a listed decoder, and classes whose code is not in transformers.

Sizes: 2 to 4 layers, width 32, a vocabulary of 89, a context of 96, windows of 12, shorter than every prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

VOCAB, CONTEXT, WINDOW = 89, 96, 12


@dataclass(frozen=True)
class Entry:
    """A model class and a configuration class of transformers, and the fields that make it tiny."""

    model: str
    config: str
    about: str
    """The kind of attention, and what it has that others do not."""
    fields: dict[str, Any] = field(default_factory=dict)


TOKENS = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MODERN = {
    **TOKENS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
}
GROUPED = {**MODERN, "num_key_value_heads": 2}
HEADS = {**GROUPED, "head_dim": 8}
GPT = {
    **TOKENS,
    "n_layer": 3,
    "n_head": 4,
    "n_embd": 32,
    "n_positions": CONTEXT,
    "attn_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
}
SLIDING, FULL, LINEAR = "sliding_attention", "full_attention", "linear_attention"
MIXED = [SLIDING, FULL, SLIDING]
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "qk_nope_head_dim": 8,
}
LATENT_HEADS = {**MODERN, "num_key_value_heads": 4, **LATENT}
DELTA = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}


def _of(name: str, about: str, base: dict[str, Any], **fields: Any) -> Entry:
    """An entry whose classes are called `<name>ForCausalLM` and `<name>Config`."""
    return Entry(f"{name}ForCausalLM", f"{name}Config", about, {**base, **fields})


CONFIGS: dict[str, Entry] = {
    "afmoe": _of(
        "Afmoe",
        "grouped, sliding and full without positions, gated, norms of q and k, experts",
        HEADS,
        **EXPERTS,
        num_shared_experts=1,
        num_dense_layers=1,
        sliding_window=WINDOW,
        layer_types=MIXED,
    ),
    "apertus": _of("Apertus", "grouped, norms of q and k", GROUPED),
    "arcee": _of("Arcee", "grouped", GROUPED),
    "bamba": _of(
        "Bamba",
        "hybrid: one layer of grouped attention, two of Mamba-2",
        GROUPED,
        **MAMBA2,
        attn_layer_indices=[1],
    ),
    "bert": Entry(
        "BertLMHeadModel",
        "BertConfig",
        "an encoder's layers, made causal by is_decoder; learned positions",
        {
            **MODERN,
            "is_decoder": True,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
    ),
    "bitnet": _of("BitNet", "grouped, a norm inside attention's output", GROUPED),
    "bloom": _of("Bloom", "ALiBi", TOKENS, hidden_size=32, n_layer=3, n_head=4),
    "codegen": _of("CodeGen", "fused q, k and v in blocks, parallel MLP", GPT, n_ctx=CONTEXT, rotary_dim=4),
    "cohere": _of("Cohere", "grouped, parallel MLP", GROUPED, logit_scale=1.0),
    "cohere_qk_norm": _of(
        "Cohere", "grouped, norms of q and k, parallel MLP", GROUPED, logit_scale=1.0, use_qk_norm=True
    ),
    "cohere2": _of(
        "Cohere2",
        "grouped, sliding, and full without positions",
        GROUPED,
        head_dim=8,
        logit_scale=1.0,
        sliding_window=WINDOW,
        layer_types=MIXED,
    ),
    "deepseek_v2": _of(
        "DeepseekV2", "latent attention, experts", LATENT_HEADS, **ROUTED, first_k_dense_replace=1, head_dim=4
    ),
    "deepseek_v3": _of(
        "DeepseekV3", "latent attention, experts", LATENT_HEADS, **ROUTED, first_k_dense_replace=1
    ),
    "deepseek_v4": _of(
        "DeepseekV4",
        "multi-query, sinks, sliding, compressed keys, hyper-connections, experts",
        MODERN,
        num_key_value_heads=1,
        head_dim=16,
        q_lora_rank=16,
        moe_intermediate_size=16,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        sliding_window=WINDOW,
        layer_types=[SLIDING, "compressed_sparse_attention", "heavily_compressed_attention"],
        compress_rates={"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        mlp_layer_types=["moe", "moe", "moe"],
        hc_mult=2,
        o_groups=2,
        o_lora_rank=8,
        index_n_heads=2,
        index_head_dim=8,
        index_topk=4,
        partial_rotary_factor=0.5,
    ),
    "ernie4_5": _of("Ernie4_5", "grouped, rotary in adjacent pairs", HEADS),
    "ernie4_5_moe": _of(
        "Ernie4_5_Moe",
        "grouped, rotary in adjacent pairs, experts",
        GROUPED,
        moe_intermediate_size=16,
        moe_k=2,
        moe_num_experts=4,
        moe_num_shared_experts=1,
        moe_layer_start_index=1,
    ),
    "exaone4": _of(
        "Exaone4",
        "grouped, sliding, and full without positions, norms of q and k",
        GROUPED,
        head_dim=8,
        sliding_window=WINDOW,
        layer_types=MIXED,
    ),
    "falcon": _of(
        "Falcon",
        "multi-query, parallel MLP",
        TOKENS,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
    ),
    "falcon_alibi": _of(
        "Falcon",
        "every head its own keys, ALiBi added before scaling, MLP after attention",
        TOKENS,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        multi_query=False,
        parallel_attn=False,
        alibi=True,
        bias=True,
    ),
    "falcon_gqa": _of(
        "Falcon",
        "grouped (the later decoder), two norms",
        TOKENS,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        new_decoder_architecture=True,
        num_kv_heads=2,
    ),
    "falcon_h1": _of(
        "FalconH1",
        "hybrid: grouped attention beside Mamba-2 in every layer",
        GROUPED,
        **MAMBA2,
        mamba_d_ssm=64,
    ),
    "falcon_mamba": _of(
        "FalconMamba",
        "no attention",
        TOKENS,
        hidden_size=32,
        state_size=8,
        num_hidden_layers=3,
        time_step_rank=4,
    ),
    "flex_olmo": _of(
        "FlexOlmo", "grouped, norms of q and k, experts", GROUPED, **LOCAL_EXPERTS | {"num_experts": 4}
    ),
    "gemma": _of("Gemma", "grouped", HEADS),
    "gemma2": _of(
        "Gemma2",
        "grouped, sliding and full, soft cap of 5",
        HEADS,
        sliding_window=WINDOW,
        query_pre_attn_scalar=8,
        attn_logit_softcapping=5.0,
        layer_types=MIXED,
    ),
    "gemma3": Entry(
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        "grouped, sliding and full with rotary bases of their own, norms of q and k",
        {**HEADS, "sliding_window": WINDOW, "query_pre_attn_scalar": 8, "layer_types": MIXED},
    ),
    "gemma4": Entry(
        "Gemma4ForCausalLM",
        "Gemma4TextConfig",
        "grouped, sliding and full, norms of q, k and v, scale 1, per-layer inputs",
        {
            **HEADS,
            "global_head_dim": 8,
            "sliding_window": WINDOW,
            "layer_types": [SLIDING, SLIDING, FULL],
            "vocab_size_per_layer_input": VOCAB,
            "hidden_size_per_layer_input": 8,
        },
    ),
    "glm": _of("Glm", "grouped, half rotary in adjacent pairs", HEADS),
    "glm4": _of("Glm4", "grouped, half rotary, norms before and after", HEADS),
    "glm4_moe": _of("Glm4Moe", "grouped, norms of q and k, experts", HEADS, **ROUTED, use_qk_norm=True),
    "glm4_moe_lite": _of(
        "Glm4MoeLite",
        "latent attention, experts",
        LATENT_HEADS,
        **ROUTED,
        mlp_layer_types=["dense", "sparse", "sparse"],
    ),
    "glm_moe_dsa": _of(
        "GlmMoeDsa",
        "latent attention, keys chosen by an indexer, experts",
        LATENT_HEADS,
        **ROUTED,
        mlp_layer_types=["dense", "sparse", "sparse"],
        index_topk=8,
        index_head_dim=8,
        index_n_heads=2,
    ),
    "gpt2": Entry("GPT2LMHeadModel", "GPT2Config", "learned positions", GPT),
    "gpt2_scaled": Entry(
        "GPT2LMHeadModel",
        "GPT2Config",
        "scores divided by the layer's number, upcast",
        {**GPT, "scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    ),
    "gpt_bigcode": _of("GPTBigCode", "multi-query, learned positions", GPT),
    "gpt_bigcode_mha": _of(
        "GPTBigCode", "every head its own keys, learned positions", GPT, multi_query=False
    ),
    "gpt_neo": _of(
        "GPTNeo",
        "sliding and full, scores not scaled",
        TOKENS,
        num_layers=4,
        num_heads=4,
        hidden_size=32,
        max_position_embeddings=CONTEXT,
        attention_types=[[["global", "local"], 2]],
        window_size=WINDOW,
        attention_dropout=0.0,
        embed_dropout=0.0,
        resid_dropout=0.0,
    ),
    "gpt_neox": _of("GPTNeoX", "a quarter rotary, parallel MLP", MODERN, rotary_pct=0.5),
    "gpt_neox_sequential": _of(
        "GPTNeoX", "MLP after attention", MODERN, rotary_pct=0.5, use_parallel_residual=False
    ),
    "gpt_oss": _of(
        "GptOss",
        "grouped, sinks, sliding and full, experts",
        HEADS,
        **LOCAL_EXPERTS,
        sliding_window=WINDOW,
        layer_types=MIXED,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "gptj": _of("GPTJ", "rotary in adjacent pairs, parallel MLP", GPT, rotary_dim=4),
    "granite": _of(
        "Granite",
        "grouped, scores and residuals multiplied",
        GROUPED,
        attention_multiplier=0.2,
        residual_multiplier=0.5,
        embedding_multiplier=2.0,
        logits_scaling=0.5,
    ),
    "granitemoe": _of("GraniteMoe", "grouped, experts", GROUPED, **LOCAL_EXPERTS, attention_multiplier=0.2),
    "granitemoehybrid": _of(
        "GraniteMoeHybrid",
        "hybrid: grouped attention without positions, Mamba-2, experts",
        GROUPED,
        **LOCAL_EXPERTS,
        **MAMBA2,
        shared_intermediate_size=16,
        attention_multiplier=0.2,
        layer_types=["mamba", "attention", "mamba"],
    ),
    "hrm_text": _of(
        "HrmText",
        "gated, two stacks of layers run in cycles",
        MODERN | {"num_hidden_layers": 2},
        head_dim=8,
        H_cycles=1,
        L_cycles=2,
        prefix_lm=False,
    ),
    "hunyuan_v1_dense": _of("HunYuanDenseV1", "grouped, norms of q and k after rotary", HEADS),
    "jais2": _of("Jais2", "grouped, biases", HEADS),
    "jamba": _of(
        "Jamba",
        "hybrid: grouped attention without positions, Mamba, experts",
        GROUPED,
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=4,
        num_experts_per_tok=2,
        mamba_d_state=8,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    "jetmoe": _of(
        "JetMoe",
        "mixture of attention heads: queries and outputs by experts",
        {k: v for k, v in MODERN.items() if k != "num_attention_heads"},
        num_key_value_heads=2,
        kv_channels=8,
        **LOCAL_EXPERTS,
    ),
    "laguna": _of(
        "Laguna",
        "grouped, sliding and full, gated, norms of q and k, experts",
        HEADS,
        **EXPERTS,
        shared_expert_intermediate_size=16,
        sliding_window=WINDOW,
        layer_types=MIXED,
        mlp_layer_types=["dense", "sparse", "sparse"],
    ),
    "lfm2": _of(
        "Lfm2",
        "hybrid: grouped attention with norms of q and k, short convolutions",
        GROUPED,
        layer_types=["conv", FULL, "conv"],
        block_auto_adjust_ff_dim=False,
    ),
    "lfm2_moe": _of(
        "Lfm2Moe",
        "hybrid: grouped attention, short convolutions, experts",
        GROUPED,
        **EXPERTS,
        num_dense_layers=1,
        layer_types=["conv", FULL, "conv"],
    ),
    "llama": _of("Llama", "grouped", GROUPED),
    "llama_mha": _of(
        "Llama",
        "every head its own keys, rotary of Llama 3, biases",
        MODERN,
        attention_bias=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "llama_mqa": _of("Llama", "multi-query", MODERN, num_key_value_heads=1),
    "llama4": Entry(
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        "grouped, chunked, full without positions and with scaled queries, norms of q and k, experts",
        {
            **HEADS,
            **LOCAL_EXPERTS,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 48,
            "attention_chunk_size": 16,
            "no_rope_layers": [1, 0, 1],
            "interleave_moe_layer_step": 2,
            "floor_scale": 16,
        },
    ),
    "mamba": _of(
        "Mamba", "no attention", TOKENS, hidden_size=32, state_size=8, num_hidden_layers=3, time_step_rank=4
    ),
    "mamba2": _of(
        "Mamba2",
        "no attention",
        TOKENS,
        hidden_size=32,
        state_size=8,
        num_hidden_layers=3,
        num_heads=8,
        head_dim=8,
        n_groups=1,
        chunk_size=16,
    ),
    "minimax_m2": _of(
        "MiniMaxM2", "grouped, norms of q and k over all heads, experts", HEADS, **LOCAL_EXPERTS
    ),
    "ministral3": _of(
        "Ministral3",
        "grouped, queries scaled by position",
        HEADS,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 24,
            "llama_4_scaling_beta": 0.1,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
    ),
    "mistral": _of("Mistral", "grouped, sliding", GROUPED, sliding_window=WINDOW),
    "mistral_full": _of("Mistral", "grouped", GROUPED, sliding_window=None),
    "mixtral": _of("Mixtral", "grouped, experts", GROUPED, **LOCAL_EXPERTS),
    "mixtral_sliding": _of(
        "Mixtral", "grouped, sliding, experts", GROUPED, **LOCAL_EXPERTS, sliding_window=WINDOW
    ),
    "modernbert_decoder": _of(
        "ModernBertDecoder",
        "sliding and full with rotary bases of their own",
        MODERN,
        local_attention=2 * WINDOW,
        layer_types=MIXED,
        cls_token_id=1,
        sep_token_id=2,
    ),
    "mpt": _of("Mpt", "ALiBi", TOKENS, d_model=32, n_heads=4, n_layers=3, max_seq_len=CONTEXT),
    "nanochat": _of("NanoChat", "grouped, norms of q and k after rotary, soft cap of logits", GROUPED),
    "nemotron": _of("Nemotron", "grouped, half rotary", GROUPED),
    "nemotron_h": _of(
        "NemotronH",
        "hybrid: grouped attention without positions, Mamba-2, MLPs as layers",
        HEADS,
        layers_block_type=["mamba", "attention", "moe", "attention"],
        num_hidden_layers=4,
        ssm_state_size=8,
        mamba_num_heads=8,
        mamba_head_dim=8,
        n_groups=1,
        chunk_size=16,
        n_routed_experts=4,
        moe_intermediate_size=16,
        moe_shared_expert_intermediate_size=16,
        use_mamba_kernels=False,
    ),
    "olmo": _of("Olmo", "grouped, norms without weights", GROUPED),
    "olmo_clip": _of("Olmo", "grouped, q, k and v clipped", GROUPED, clip_qkv=0.5),
    "olmo2": _of("Olmo2", "grouped, norms of q and k over all heads, norms after", GROUPED),
    "olmo3": _of(
        "Olmo3",
        "grouped, sliding and full, norms of q and k",
        GROUPED,
        sliding_window=WINDOW,
        layer_types=MIXED,
    ),
    "olmo_hybrid": _of(
        "OlmoHybrid",
        "hybrid: full attention, gated delta networks",
        GROUPED,
        **DELTA | {"linear_num_key_heads": 4},
        layer_types=[LINEAR, LINEAR, LINEAR, FULL],
        num_hidden_layers=4,
    ),
    "olmoe": _of(
        "Olmoe", "grouped, norms of q and k, experts", GROUPED, num_experts=4, num_experts_per_tok=2
    ),
    "openai_gpt": Entry("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", "learned positions, norms after", GPT),
    "opt": _of("OPT", "learned positions", MODERN, ffn_dim=48, word_embed_proj_dim=32, dropout=0.0),
    "opt_post_norm": _of(
        "OPT",
        "norms after, embeddings projected (as in OPT-350M)",
        MODERN,
        ffn_dim=48,
        word_embed_proj_dim=16,
        dropout=0.0,
        do_layer_norm_before=False,
    ),
    "phi": _of("Phi", "half rotary, parallel MLP", MODERN),
    "phi_qk_norm": _of("Phi", "half rotary, norms of q and k, parallel MLP", MODERN, qk_layernorm=True),
    "phi3": _of("Phi3", "grouped, fused q, k and v", GROUPED),
    "phi3_sliding": _of("Phi3", "grouped, sliding", GROUPED, sliding_window=WINDOW),
    "qwen2": _of("Qwen2", "grouped, biases", GROUPED),
    "qwen2_sliding": _of(
        "Qwen2",
        "grouped, sliding from layer 1",
        GROUPED,
        use_sliding_window=True,
        sliding_window=WINDOW,
        max_window_layers=1,
    ),
    "qwen2_moe": _of(
        "Qwen2Moe",
        "grouped, experts and a gated shared one",
        GROUPED,
        **EXPERTS,
        shared_expert_intermediate_size=16,
    ),
    "qwen3": _of("Qwen3", "grouped, norms of q and k", HEADS),
    "qwen3_sliding": _of(
        "Qwen3",
        "grouped, sliding from layer 1, norms of q and k",
        HEADS,
        use_sliding_window=True,
        sliding_window=WINDOW,
        max_window_layers=1,
    ),
    "qwen3_moe": _of("Qwen3Moe", "grouped, norms of q and k, experts", HEADS, **EXPERTS),
    "qwen3_5": Entry(
        "Qwen3_5ForCausalLM",
        "Qwen3_5TextConfig",
        "hybrid: gated grouped attention, gated delta networks",
        {**HEADS, **DELTA, "layer_types": [LINEAR, FULL, LINEAR]},
    ),
    "qwen3_5_moe": Entry(
        "Qwen3_5MoeForCausalLM",
        "Qwen3_5MoeTextConfig",
        "hybrid: gated grouped attention, gated delta networks, experts",
        {
            **HEADS,
            **DELTA,
            **EXPERTS,
            "shared_expert_intermediate_size": 16,
            "layer_types": [LINEAR, FULL, LINEAR],
        },
    ),
    "qwen3_next": _of(
        "Qwen3Next",
        "hybrid: gated grouped attention, gated delta networks, experts",
        HEADS,
        **DELTA,
        **EXPERTS,
        shared_expert_intermediate_size=16,
        layer_types=[LINEAR, FULL, LINEAR],
    ),
    "recurrent_gemma": _of(
        "RecurrentGemma",
        "hybrid: grouped sliding attention, gated linear recurrences",
        GROUPED,
        attention_window_size=WINDOW,
        block_types=["recurrent", "attention"],
        num_hidden_layers=4,
    ),
    "rwkv": _of("Rwkv", "no attention", TOKENS, context_length=CONTEXT, hidden_size=32, num_hidden_layers=3),
    "seed_oss": _of("SeedOss", "grouped, biases", HEADS, attention_dropout=0.0, residual_dropout=0.0),
    "smollm3": _of(
        "SmolLM3", "grouped, every second layer without positions", GROUPED, no_rope_layers=[1, 0, 1]
    ),
    "stablelm": _of("StableLm", "grouped, a quarter rotary", GROUPED),
    "stablelm_parallel": _of(
        "StableLm",
        "grouped, norms of q and k head by head, parallel MLP, biases",
        GROUPED,
        use_qkv_bias=True,
        qk_layernorm=True,
        use_parallel_residual=True,
    ),
    "starcoder2": _of("Starcoder2", "grouped, biases", GROUPED),
    "starcoder2_sliding": _of("Starcoder2", "grouped, sliding", GROUPED, sliding_window=WINDOW),
    "vaultgemma": _of(
        "VaultGemma",
        "grouped, sliding and full, soft cap of 5",
        HEADS,
        sliding_window=WINDOW,
        query_pre_attn_scalar=8,
        attn_logit_softcapping=5.0,
        layer_types=MIXED,
    ),
    "xglm": _of(
        "XGLM",
        "sinusoidal positions",
        TOKENS,
        d_model=32,
        ffn_dim=48,
        num_layers=3,
        attention_heads=4,
        dropout=0.0,
        attention_dropout=0.0,
        max_position_embeddings=CONTEXT,
    ),
    "youtu": _of("Youtu", "latent attention", LATENT_HEADS),
    "zamba2": _of(
        "Zamba2",
        "hybrid: shared attention on the residual and the embedding together, Mamba-2",
        MODERN,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
        num_hidden_layers=4,
        num_key_value_heads=4,
        n_mamba_heads=8,
        mamba_d_state=8,
        mamba_ngroups=1,
        chunk_size=16,
        adapter_rank=4,
        use_mamba_kernels=False,
    ),
}
"""The fixed list, by name."""

ADDED: dict[str, Entry] = {
    "deepseek_v3_full_q": _of(
        "DeepseekV3",
        "latent keys and values, queries projected whole, experts",
        LATENT_HEADS | {"q_lora_rank": None},
        **ROUTED,
        first_k_dense_replace=1,
    ),
    "gemma2_uncapped": _of(
        "Gemma2",
        "grouped, sliding and full, no soft caps",
        HEADS,
        sliding_window=WINDOW,
        query_pre_attn_scalar=8,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        layer_types=MIXED,
    ),
    "gemma4_shared": Entry(
        "Gemma4ForCausalLM",
        "Gemma4TextConfig",
        "keys and values of two layers taken from layers below, global heads wider",
        {
            **HEADS,
            "global_head_dim": 16,
            "sliding_window": WINDOW,
            "num_hidden_layers": 4,
            "layer_types": [SLIDING, FULL, SLIDING, FULL],
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": VOCAB,
            "hidden_size_per_layer_input": 8,
        },
    ),
    "granitemoehybrid_rope": _of(
        "GraniteMoeHybrid",
        "hybrid: grouped attention, Mamba-2, experts",
        CONFIGS["granitemoehybrid"].fields,
        position_embedding_type="rope",
    ),
}
"""What came after the list was fixed; counted apart."""

ENTRIES = CONFIGS | ADDED
