"""The probe tells real attention from what only looks like it, and says where and why."""

from __future__ import annotations

import re
from operator import attrgetter
from types import SimpleNamespace

import pytest
import torch
from architectures import VOCAB, hf_model
from support import needs_hooked, same_evidence, uneven_prompts

from benchmarks.architecture_configs import ENTRIES
from benchmarks.architectures import BRIDGE, measure
from benchmarks.architectures import hf_model as bench_model
from icl_kernel_lens import head_vote, knock_out, read
from icl_kernel_lens.errors import LensError, LoadError, ModelError
from icl_kernel_lens.interventions.verify import verify_interventions
from icl_kernel_lens.models import attention_passes, takeover, verify
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.models.load import bridge_from_hf, hooked_from_hf
from icl_kernel_lens.models.transformer_lens_adapters import HookedAdapter
from icl_kernel_lens.models.verify import cross_check, verify_model


def fresh(name="gptj", **options):
    return as_adapter(bridge_from_hf(hf_model(name), **options))


@pytest.mark.filterwarnings("ignore:A hook on attn.hook_pattern returned")  # TransformerLens 4 says so itself
def test_an_edited_pattern_that_does_not_reach_the_output_is_refused():
    """On GPT-J the bridge discards pattern edits: the hook shows weights that the layer does not use."""
    adapter = fresh("gptj")
    adapter.model.blocks[1].attn.hook_pattern.add_hook(lambda pattern, hook: pattern.flip(1))
    with pytest.raises(ModelError, match=r"that of blocks\.1\.attn of unnamed differs from A·V"):
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
            assert verify_model(adapter).row_sum[2] < 1e-6
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


def test_each_model_is_verified_once(monkeypatch):
    adapter = fresh("gpt2")
    runs, forward = [], type(adapter)._forward
    monkeypatch.setattr(type(adapter), "_forward", lambda *args: runs.append(1) or forward(*args))
    first = verify_model(adapter)
    assert verify_model(as_adapter(adapter.model)) is first
    # Plain, without what stands behind, with other last digits, fast, a prefix and what follows it, all but the last token and this one.
    assert len(runs) == 8
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


@pytest.mark.filterwarnings("ignore")  # of transformers' own, about such configurations
@pytest.mark.parametrize("name", ["afmoe", "bitnet", "gemma4", "deepseek_v3"])
def test_attention_is_read_where_its_own_code_multiplies(name):
    """A gate or a norm behind z, a norm of v, values made of a latent vector: hook_v and hook_z show something else."""
    found = measure(name, BRIDGE)
    assert found["outcome"] == "exact", found["parts"]


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_chooses_keys_by_the_length_of_what_is_run_is_refused():
    """An index chooses keys; among those it gives the same score, the choice depends on how many stand behind."""
    found = measure("glm_moe_dsa", BRIDGE)
    assert found["outcome"] == "refused", found["parts"]
    assert "what stands behind a prompt must not change" in found["parts"]["answers"]["message"]


def test_values_that_reach_z_otherwise_are_refused(monkeypatch):
    """Whatever the layer multiplies, the pattern hook must show it."""
    monkeypatch.setattr(takeover._Products, "__torch_function__", _halved)
    with pytest.raises(ModelError, match="must be the attention-weighted sum"):
        verify_model(fresh("llama"))


def _halved(self, func, types, args=(), kwargs=None):
    """A layer whose weights change between the pattern hook and the product."""
    out = func(*args, **(kwargs or {}))
    if getattr(func, "__name__", "").strip("_") == "matmul" and args[0].shape[-1] == args[0].shape[-2]:
        self.found.append({"v": args[1].transpose(1, 2), "z": out.transpose(1, 2) / 2})
    return out


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zamba2", r"Hugging Face's code does attend \(Zamba2Attention\)"),
        ("mamba", "State-space and recurrent models cannot be scored"),
        ("rwkv", "State-space and recurrent models cannot be scored"),
    ],
)
def test_a_model_that_shows_no_attention_is_told_whether_it_has_any(name, message):
    with pytest.raises(ModelError, match=message) as found:
        verify_model(as_adapter(bridge_from_hf(bench_model(ENTRIES[name]))))
    assert found.value.code == "no-attention"


@pytest.mark.filterwarnings("ignore")
def test_a_model_without_blocks_is_refused():
    """Two stacks that run in cycles: TransformerLens has no list of blocks of them."""
    with pytest.raises(LensError):
        read(bridge_from_hf(bench_model(ENTRIES["hrm_text"])), uneven_prompts(), progress=False)
    without = SimpleNamespace(cfg=SimpleNamespace(n_layers=1, n_heads=1, d_vocab=9, d_model=4))
    with pytest.raises(ModelError, match="must show its layers as blocks") as found:
        HookedAdapter(without).missing_attention()
    assert found.value.code == "hook-missing"


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, KeyError, TypeError])
def test_an_architecture_that_transformer_lens_fails_on_is_a_load_error(monkeypatch, error):
    from transformer_lens.model_bridge.sources import _bridge_builder

    def fail(*_args, **_kwargs):
        raise error("split_sizes")

    monkeypatch.setattr(_bridge_builder, "build_bridge_from_module", fail)
    with pytest.raises(
        LoadError, match=f"does not support LlamaForCausalLM: {error.__name__}: .*split_sizes"
    ):
        bridge_from_hf(hf_model("llama"))


def test_a_model_that_fails_in_its_first_run_says_why(monkeypatch):
    adapter = fresh("llama")

    def fail(*_args, **_kwargs):
        raise AttributeError("no attribute 'causal_conv1d_fn'")

    monkeypatch.setattr(adapter, "forward", fail)
    with pytest.raises(
        ModelError, match=r"must run on tokens; unnamed does not: AttributeError: no attribute"
    ):
        verify_model(adapter)


HOOKS = {
    "z": ("attn.hook_z", lambda z, hook: z * 0.5),
    "z at a position": ("attn.hook_z", lambda z, hook: z.index_fill(1, torch.tensor([14]), 0.0)),
    "v": ("attn.hook_v", lambda v, hook: v.flip(-1)),
    "q": ("attn.hook_q", lambda q, hook: q * 2),
    "mlp": ("hook_mlp_out", lambda x, hook: x * 0),
    "pattern": ("attn.hook_pattern", lambda pattern, hook: pattern),
    "scores": ("attn.hook_attn_scores", lambda scores, hook: scores),
}


@pytest.mark.parametrize("kind", ["bridge", pytest.param("hooked", marks=needs_hooked)])
@pytest.mark.parametrize("name", HOOKS)
def test_a_users_hook_is_read_alike_on_a_fresh_model_and_a_known_one(name, kind):
    """Verified without it, read with it, and both said; afterwards it is where it was."""
    place, edit = HOOKS[name]
    prompts, found = uneven_prompts(), []
    prompts = prompts.select([int(prompts.lengths.argmax())])
    assert int(prompts.lengths[0]) > 15 > verify.VERIFY_TOKENS
    for known in (False, True):
        model = {"bridge": bridge_from_hf, "hooked": hooked_from_hf}[kind](hf_model("llama"))
        if known:
            plain = read(model, prompts, progress=False)
        point = attrgetter(place)(model.blocks[1])
        point.add_hook(edit)
        before = list(point._forward_hooks)
        found.append(read(model, prompts, progress=False))
        assert list(point._forward_hooks) == before
    same_evidence(found[0], found[1], atol=0)
    assert found[0].run == found[1].run
    (where,) = as_adapter(model).hooks_in_place()
    assert f"verified without the hooks on {where}, which run in every" in found[0].run.verification
    assert "verified without" not in plain.run.verification
    changed = (found[0].label_scores - plain.label_scores).abs().max() > 1e-3
    assert bool(changed) == (name not in ("pattern", "scores"))


@pytest.mark.filterwarnings("ignore:A hook on attn.hook_pattern returned")
def test_an_edit_of_a_pattern_is_looked_at_whenever_it_comes():
    """Also on a model that was verified before, and beside an edit of z, which is no reason to refuse."""
    adapter = fresh("gptj")
    verify_model(adapter)
    point = adapter.model.blocks[1].attn.hook_pattern
    adapter.model.blocks[1].attn.hook_z.add_hook(lambda z, hook: z * 2)
    point.add_hook(lambda pattern, hook: pattern)
    assert verify_model(adapter).not_fast is None
    with pytest.raises(
        ModelError, match=r"hook_pattern has a hook, and what it would see is never written out"
    ):
        knock_out(adapter.model, uneven_prompts(), progress=False)
    point.remove_hooks()
    point.add_hook(lambda pattern, hook: pattern.flip(1))
    with pytest.raises(ModelError, match=r"that of blocks\.1\.attn of unnamed differs from A·V"):
        read(adapter.model, uneven_prompts(), progress=False)
    point.remove_hooks()
    point.add_hook(lambda pattern, hook: pattern[:, :, 40])
    with pytest.raises(ModelError, match="hooks on patterns must let a prompt of 13 tokens through"):
        verify_model(adapter)


def test_a_forward_in_place_of_a_modules_own_is_the_model():
    """What is found with it is not kept for when it is gone."""
    adapter = fresh("llama")
    mlp = adapter.model.blocks[0].mlp.original_component
    forward, report = mlp.forward, verify_model(adapter)
    mlp.forward = lambda *args, **kwargs: forward(*args, **kwargs) * 2
    changed = verify_model(adapter)
    assert changed is not report
    assert verify_model(adapter) is changed
    del mlp.forward
    assert verify_model(adapter) is not changed


@pytest.mark.parametrize(
    ("dtype", "where", "message"),
    [
        (
            torch.float32,
            "weight",
            r"first in blocks\.1\.attn\.hook_v\. Weights are so themselves \(1 of its tensors",
        ),
        (
            torch.float16,
            "weight",
            r"Weights are so themselves \(1 of its tensors, among them .*blocks\.1.*Get the",
        ),
        (
            torch.float16,
            "overflow",
            r"Its weights are finite: numbers overflow in float16\. Load .* bfloat16",
        ),
        (
            torch.float32,
            "overflow",
            r"Its weights are finite: numbers overflow in torch.float32, as those of wrong",
        ),
    ],
)
def test_numbers_that_are_not_finite_have_their_cause(dtype, where, message):
    """Never a sink or fused attention: the advice belongs to the cause."""
    hf = hf_model("llama").to(dtype)
    layer = hf.model.layers[1 if where == "weight" else 0]
    with torch.no_grad():
        if where == "weight":
            layer.self_attn.v_proj.weight[0, 0] = float("nan")
        else:
            most = torch.finfo(dtype).max / 8
            layer.mlp.up_proj.weight.mul_(most)
            layer.mlp.down_proj.weight.mul_(most)
            layer.mlp.down_proj.weight.clamp_(-most, most)
            layer.mlp.up_proj.weight.clamp_(-most, most)
    with pytest.raises(ModelError, match=message) as caught:
        read(bridge_from_hf(hf), uneven_prompts(), progress=False)
    assert caught.value.code == "not-finite"
    assert "sink" not in str(caught.value)
    assert "eager" not in str(caught.value)


def test_a_hook_that_makes_them_is_named():
    model = bridge_from_hf(hf_model("llama"))
    model.blocks[1].hook_mlp_out.add_hook(lambda x, hook: x / 0)
    (where,) = as_adapter(model).hooks_in_place()
    with pytest.raises(
        ModelError, match=re.escape(f"it has hooks ({where}), which may make them. Remove these")
    ):
        read(model, uneven_prompts(), progress=False)


def sharp(scale, seed):
    """Nine layers whose attention scores reach about 5 times `scale`: rounding is a thousand times what it is elsewhere."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=9, num_attention_heads=4,
        max_position_embeddings=96, initializer_range=0.15,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for layer in hf.model.layers:
            layer.self_attn.q_proj.weight.mul_(scale)
    return hf


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("scale", [1, 5, 10, 20])
def test_rounding_is_no_reason_to_refuse(scale, seed):
    """The limit is the model's own rounding; where that is small, so is the limit."""
    model = bridge_from_hf(sharp(scale, seed))
    report = verify_model(as_adapter(model))
    assert report.not_fast is report.not_shared is report.not_alone is None
    assert report.taken_over <= report.limit
    assert report.limit == min(max(8 * report.rounding, 1e-5), 1e-2)
    assert (report.limit > 1e-4) == (scale >= 10) or scale == 5
    assert f"(limit {report.limit:.1e}: 8 times its own rounding" in str(report)
    assert set(verify_interventions(model)["verdict"]) == {"exact"}


def test_it_is_read_right_although_it_rounds():
    """Beside Hugging Face's own attentions; not to the last digit, which the model itself does not hold."""
    prompts, hf = uneven_prompts(), sharp(10, 0)
    rows = []
    for tokens, length in zip(prompts.tokens, prompts.lengths.tolist(), strict=True):
        with torch.no_grad():
            out = hf(tokens[None, :length], output_attentions=True)
        rows.append(torch.stack([a[0, :, -1] for a in out.attentions]))
    evidence = read(bridge_from_hf(sharp(10, 0)), prompts, progress=False)
    for number, row in enumerate(rows):
        expected = row[..., prompts.label_pos[number]]
        torch.testing.assert_close(evidence.weights["label"][number], expected, atol=5e-3, rtol=0)


@pytest.mark.parametrize("scale", [1, 10])
def test_what_is_really_different_is_still_refused(scale, monkeypatch):
    model, attend = bridge_from_hf(sharp(scale, 0)), attention_passes.attend
    monkeypatch.setattr(attention_passes, "attend", lambda q, k, v, rule: attend(q, k, v, rule) * 1.05)
    reason = str(verify_model(as_adapter(model)).not_fast)
    assert re.match(
        r"what it gives differs from the plain run by .* \(limit .*: 8 times its own rounding", reason
    )


def test_undefined_rows_are_refused(monkeypatch):
    """Of the middle layer alone: a maximum that drops NaN would let them pass."""
    model, row = bridge_from_hf(hf_model("llama")), attention_passes.AttentionUnderWay.row

    def undefined(attention, positions):
        return row(attention, positions) * (float("nan") if attention.layer == 1 else 1)

    monkeypatch.setattr(attention_passes.AttentionUnderWay, "row", undefined)
    assert "differs from the plain run by nan" in str(verify_model(as_adapter(model)).not_fast)


@needs_hooked
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named_where_the_pattern_hides_them(number):
    """A HookedTransformer puts zeros where its scores are undefined."""
    adapter = as_adapter(hooked_from_hf(hf_model("gpt2")))
    adapter.model.blocks[1].attn.W_Q.data[0, 0, 0] = number
    with pytest.raises(ModelError, match=r"weights that are not.*blocks\.1\.attn\.W_Q") as found:
        verify_model(adapter)
    assert found.value.code == "not-finite"
