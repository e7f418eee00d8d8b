"""The probe tells real attention from what only looks like it, and says where and why."""

from __future__ import annotations

import re

import pytest
import torch
from architectures import hf_model
from support import uneven_prompts

from icl_kernel_lens import head_vote, read
from icl_kernel_lens.errors import LoadError, ModelError
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.models.load import bridge_from_hf
from icl_kernel_lens.models.verify import cross_check, verify_model


def fresh(name="gptj", **options):
    return as_adapter(bridge_from_hf(hf_model(name), **options))


@pytest.mark.filterwarnings("ignore:A hook on attn.hook_pattern returned")  # TransformerLens 4 says so itself
def test_an_edited_pattern_that_does_not_reach_the_output_is_refused():
    """On GPT-J the bridge discards pattern edits: the hook shows weights that the layer does not use."""
    adapter = fresh("gptj")
    adapter.model.blocks[1].attn.hook_pattern.add_hook(lambda pattern, hook: pattern.flip(1))
    with pytest.raises(ModelError, match=r"blocks\.1\.attn\.hook_z of unnamed differs from A·V"):
        verify_model(adapter)


def test_rows_that_do_not_sum_to_one_are_refused():
    adapter = fresh("llama")
    adapter.model.blocks[2].attn.hook_pattern.add_hook(lambda pattern, hook: pattern * 0.5)
    with pytest.raises(ModelError, match=r"blocks\.2\.attn\.hook_pattern of unnamed are off by 5\.0e-01"):
        verify_model(adapter)


def test_a_declared_sink_may_take_its_share():
    """Rows below 1 pass in a layer with a parameter named `sinks`, rows above 1 never do."""
    for factor, passes in ((0.5, True), (1.5, False)):
        adapter = fresh("llama")
        block = adapter.model.blocks[2]
        block.register_parameter("sinks", torch.nn.Parameter(torch.zeros(4)))
        block.attn.hook_pattern.add_hook(lambda pattern, hook, f=factor: pattern * f)
        if passes:
            assert verify_model(adapter).row_sum[2] == 0
        else:
            with pytest.raises(ModelError, match="must sum to 1"):
                verify_model(adapter)


def test_a_silent_hook_is_named():
    """Fused attention shows no weights; the error names the first silent hook and how to reload."""
    hf = hf_model("opt")
    bridge = bridge_from_hf(hf)
    hf.config._attn_implementation = "sdpa"
    message = (
        "blocks.0.attn.hook_pattern did not fire (0 of 3 layers seen) in unnamed. The model may use fused "
        'attention; reload it with attn_implementation="eager".'
    )
    with pytest.raises(ModelError, match=re.escape(message)):
        verify_model(as_adapter(bridge))


def test_fused_attention_is_refused_before_bridging():
    hf = hf_model("opt")
    hf.config._attn_implementation = "sdpa"
    with pytest.raises(
        LoadError, match="must use eager attention to show its weights; this OPTForCausalLM uses 'sdpa'"
    ):
        bridge_from_hf(hf)


def test_each_model_is_verified_once():
    adapter = fresh("gpt2")
    runs = []
    adapter.model.embed.register_forward_hook(lambda *_: runs.append(1))
    first = verify_model(adapter)
    assert verify_model(as_adapter(adapter.model)) is first
    assert len(runs) == 6  # plain, fast, a prefix and what follows it, all but the last token and this one
    assert "3 attention layers verified" in str(first)


def test_layers_without_attention_are_nan_with_their_reason():
    """A hybrid of convolution and attention layers: only the attention layers are scored."""
    import transformers

    config = transformers.Lfm2Config(
        vocab_size=89,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        full_attn_idxs=[1],
        layer_types=["conv", "full_attention", "conv"],
        attn_implementation="eager",
    )
    hf = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model = bridge_from_hf(hf)
    report = verify_model(as_adapter(model))
    assert sorted(report.missing) == [0, 2]
    assert "no attention in layer 0" in report.missing[0]
    evidence = read(model, uneven_prompts(), progress=False)
    assert evidence.weights["label"][:, [0, 2]].isnan().all()
    assert evidence.profile[[0, 2]].isnan().all()
    assert not evidence.weights["label"][:, 1].isnan().any()
    scores = head_vote(evidence)
    assert scores.mean()[[0, 2]].isnan().all()
    assert not scores.mean()[1].isnan().any()
    assert scores.reasons["no_attention_layer"] == 2 * 5 * 4
    assert scores.figure().png()[:4] == b"\x89PNG"


def test_attention_that_sees_the_future_is_refused():
    """A bidirectional model would see the padding: the result would depend on the batch."""
    adapter = fresh("llama")
    adapter.model.blocks[0].attn.hook_pattern.add_hook(lambda pattern, hook: torch.ones_like(pattern) / 13)
    with pytest.raises(ModelError, match=r"must be causal .* blocks\.0\.attn\.hook_pattern of unnamed"):
        verify_model(adapter)


def test_a_model_without_hooks_is_refused():
    with pytest.raises(
        ModelError, match=r"must be a HookedTransformer, a TransformerBridge.*GPT2LMHeadModel"
    ):
        read(hf_model("gpt2"), uneven_prompts(), progress=False)


def test_mps_is_warned_about_and_cross_checked():
    """The cross-check itself, on tensors that stand in for the device's."""

    class Wrong(torch.Tensor):
        """A tensor whose `.cpu()` is not what it shows, as on a device that computes wrongly."""

        def cpu(self):
            return torch.Tensor.cpu(self).as_subclass(torch.Tensor) + 1

    adapter = fresh("llama")
    a, v = torch.softmax(torch.randn(2, 4, 5, 5), -1), torch.randn(2, 5, 2, 8)
    with pytest.warns(UserWarning, match=r"runs on MPS.* differs by at most 0\.0e\+00"):
        cross_check(adapter, {0: (a, v)})
    with (
        pytest.warns(UserWarning, match="runs on MPS"),
        pytest.raises(ModelError, match="MPS and CPU must agree on A·V"),
    ):
        cross_check(adapter, {0: (a.as_subclass(Wrong), v)})


def test_values_stored_otherwise_are_refused():
    """Multi-head latent attention: what the value hook shows is not one vector a head."""
    import transformers

    config = transformers.DeepseekV3Config(
        vocab_size=89,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        max_position_embeddings=64,
        first_k_dense_replace=2,
    )
    hf = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with pytest.raises(ModelError, match=r"values must be|z must be|hook_v"):
        verify_model(as_adapter(bridge_from_hf(hf)))


def test_what_is_found_under_a_hook_is_not_kept():
    """A refusal because of a hook ends with the hook; hooks added after the probe change nothing."""
    adapter = fresh("llama")
    adapter.model.blocks[0].attn.hook_pattern.add_hook(lambda pattern, hook: pattern)
    assert "hook_pattern has a hook" in str(verify_model(adapter).not_fast)
    assert verify_model(as_adapter(adapter.model)) is verify_model(adapter)
    adapter.model.blocks[0].attn.hook_pattern.remove_hooks()
    report = verify_model(adapter)
    assert report.not_fast is None
    adapter.model.blocks[0].attn.hook_z.add_hook(lambda z, hook: z[:, :1])
    assert verify_model(adapter) is report
