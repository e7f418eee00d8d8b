"""Parts that add up, and each of them against the same part taken from the Hugging Face model by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from architectures import hf_model
from support import KINDS, needs_hooked, shared_prompts, uneven_prompts, verified_otherwise

from icl_kernel_lens.errors import ModelError, PromptError
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.models.load import bridge_from_hf, hooked_from_hf
from icl_kernel_lens.models.verify import verify_model
from icl_kernel_lens.readouts.logit_attribution import direct_logit_attribution
from icl_kernel_lens.results.logit_attribution import LogitAttribution
from icl_kernel_lens.run import runner
from icl_kernel_lens.run.prefixes import unshared


def raw_logits(hf, prompts, number):
    """Logits at the answer position, before any soft cap."""
    length = int(prompts.lengths[number])
    with torch.no_grad():
        logits = hf(prompts.tokens[number : number + 1, :length]).logits[0, -1]
    cap = getattr(hf.config, "final_logit_softcapping", None)
    return torch.atanh(logits.double() / cap) * cap if cap else logits.double()


def difference(logits, tokens, label):
    others = [int(t) for at, t in enumerate(tokens) if at != label]
    return logits[int(tokens[label])] - logits[others].mean()


@pytest.mark.parametrize(("name", "kind"), KINDS)
@pytest.mark.parametrize("prompts", [uneven_prompts, shared_prompts])
def test_parts_add_up_to_the_logit_difference_of_hugging_face(tiny, name, kind, prompts):
    (model, hf), prompts = tiny(name, kind), prompts()
    found = direct_logit_attribution(model, prompts, progress=False)
    parts = [found.heads.sum((1, 2)), found.mlps.sum(1), found.attention_biases.sum(1)]
    total = sum(parts) + found.embedding + found.biases
    for number, tokens in enumerate(prompts.label_tokens.tolist()):
        logits = raw_logits(hf, prompts, number)
        label = int(logits[tokens].argmax())
        assert int(found.toward[number]) == label
        expected = difference(logits, tokens, label)
        assert float(total[number]) == pytest.approx(float(expected), abs=1e-4)
        assert float(found.total[number]) == pytest.approx(float(expected), abs=1e-4)
    assert found.residual < 1e-5
    assert found.residual == pytest.approx(float((total - found.total).abs().max()), abs=2e-6)


def _llama(hf):
    layers = [(x.self_attn.o_proj, x.self_attn.v_proj) for x in hf.model.layers]
    return layers, hf.model.norm


PLACES = {
    "llama": _llama,
    "qwen3": _llama,
    "gemma2": _llama,
    "gpt2": lambda hf: (
        [(x.attn.c_proj, x.attn.c_attn) for x in hf.transformer.h],
        hf.transformer.ln_f,
    ),
    "gptj": lambda hf: (
        [(x.attn.out_proj, x.attn.v_proj) for x in hf.transformer.h],
        hf.transformer.ln_f,
    ),
    "falcon": lambda hf: (
        [(x.self_attention.dense, x.self_attention.query_key_value) for x in hf.transformer.h],
        hf.transformer.ln_f,
    ),
    "opt": lambda hf: (
        [(x.self_attn.out_proj, x.self_attn.v_proj) for x in hf.model.decoder.layers],
        hf.model.decoder.final_layer_norm,
    ),
    "phi": lambda hf: (
        [(x.self_attn.dense, x.self_attn.v_proj) for x in hf.model.layers],
        hf.model.final_layernorm,
    ),
}
"""(output projection, projection that gives v) of every layer, and the final norm."""


def held(norm, at, o, rms):
    """A norm of Hugging Face's applied to o, with the scale it has at `at`; without its bias."""
    if rms:
        eps = getattr(norm, "variance_epsilon", None) or norm.eps
        gamma = norm.weight + 1 if "Gemma" in type(norm).__name__ else norm.weight
        return gamma * o / (at.square().mean() + eps).sqrt()
    return norm.weight * (o - o.mean(-1, keepdim=True)) / (at.var(unbiased=False) + norm.eps).sqrt()


def by_hand(name, hf, tokens, label_pos, label_tokens, label):
    """Contributions of every head, and through each label token, from hooks on the Hugging Face model alone."""
    layers, final = PLACES[name](hf)
    seen = {}
    handles = []

    def watch(key, module):
        handles.append(
            module.register_forward_hook(lambda m, args, out: seen.__setitem__(key, (args[0][0], out[0])))
        )

    for at, (out, values) in enumerate(layers):
        watch(("out", at), out)
        watch(("v", at), values)
        if name == "gemma2":
            watch(("post", at), hf.model.layers[at].post_attention_layernorm)
    watch("final", final)
    try:
        with torch.no_grad():
            patterns = hf(tokens[None], output_attentions=True).attentions
    finally:
        for handle in handles:
            handle.remove()
    rms = "RMS" in type(final).__name__
    unembed = hf.get_output_embeddings().weight
    others = [int(t) for at, t in enumerate(label_tokens) if at != label]
    delta = unembed[int(label_tokens[label])] - unembed[others].mean(0)
    x = seen["final"][0][-1]
    heads, width = 4, hf.config.hidden_size // 4
    values, through = torch.zeros(len(layers), heads), torch.zeros(len(layers), heads, len(label_pos))
    for at, (out, _) in enumerate(layers):
        weight = out.weight if name == "gpt2" else out.weight.T  # (in, out)
        v = seen["v", at][1]
        if name == "gpt2":
            v = v[:, -hf.config.hidden_size :]
        if name == "falcon":
            v = v[:, -width:]
        v = v.reshape(len(v), -1, width)
        v = v.repeat_interleave(heads // v.shape[1], 1)

        def to_logits(o, at=at):
            if name == "gemma2":
                o = held(hf.model.layers[at].post_attention_layernorm, seen["post", at][0][-1], o, True)
            return held(final, x, o, rms) @ delta

        for h in range(heads):
            rows = slice(h * width, (h + 1) * width)
            values[at, h] = to_logits(seen["out", at][0][-1, rows] @ weight[rows])
            for i, p in enumerate(label_pos):
                through[at, h, i] = to_logits(patterns[at][0, h, -1, p] * v[p, h] @ weight[rows])
    return values.detach(), through.detach()


@pytest.mark.parametrize(("name", "kind"), [p for p in KINDS if p.values[0] in PLACES])
def test_every_head_and_demonstration_by_hand(tiny, name, kind):
    """Hooks on the Hugging Face model's output projections, its norms by formula."""
    (model, hf), prompts = tiny(name, kind), shared_prompts()
    found = direct_logit_attribution(model, prompts, toward="truth", progress=False)
    assert "as prompts share the others" in found.run.reading
    assert torch.equal(found.toward, prompts.test_labels)
    for number, length in enumerate(prompts.lengths.tolist()):
        heads, demos = by_hand(
            name,
            hf,
            prompts.tokens[number, :length],
            prompts.label_pos[number].tolist(),
            prompts.label_tokens[number],
            int(prompts.test_labels[number]),
        )
        torch.testing.assert_close(found.heads[number], heads, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.demos[number], demos, atol=1e-6, rtol=1e-4)
    assert found.heads.abs().max() > 0.05
    assert found.demos.abs().max() > 0.02


def test_batches_and_what_is_shared_change_nothing(tiny, monkeypatch, tmp_path):
    (model, _), prompts = tiny("gemma2"), shared_prompts()
    found = direct_logit_attribution(model, prompts, progress=False)
    kept = direct_logit_attribution(
        model, prompts, progress=False, batch_size=2, checkpoint=tmp_path / "kept"
    )
    again = direct_logit_attribution(model, prompts, progress=False, checkpoint=tmp_path / "kept")
    monkeypatch.setattr(runner, "sharing_of", lambda prompts, *_: (unshared(len(prompts)), "whole"))
    whole = direct_logit_attribution(model, prompts, progress=False, batch_size=1)
    assert whole.run.reading.endswith("whole")
    for other in (kept, again, whole):
        for name in ("heads", "demos", "weights", "mlps", "embedding", "attention_biases", "biases", "total"):
            torch.testing.assert_close(getattr(other, name), getattr(found, name), atol=1e-5, rtol=1e-4)


def test_labels_that_differ_from_prompt_to_prompt(tiny):
    """Each prompt is compared on its own label tokens."""
    (model, hf), prompts = tiny("llama"), uneven_prompts()
    words = torch.stack([torch.tensor([10, 20, 30]).roll(n) + n for n in range(5)])
    prompts = replace(prompts, label_sequences=words[..., None])
    found = direct_logit_attribution(model, prompts, toward="truth", progress=False)
    for number, tokens in enumerate(words.tolist()):
        expected = difference(raw_logits(hf, prompts, number), tokens, int(prompts.test_labels[number]))
        assert float(found.total[number]) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gptj"])
def test_half_precision_stays_near(tiny, name, dtype):
    prompts = shared_prompts()
    exact = direct_logit_attribution(tiny(name)[0], prompts, toward="truth", progress=False)
    found = direct_logit_attribution(
        bridge_from_hf(hf_model(name).to(dtype)), prompts, toward="truth", progress=False
    )
    assert found.heads.dtype == torch.float32
    near = 0.02 if dtype == torch.float16 else 0.1
    torch.testing.assert_close(found.heads, exact.heads, atol=near, rtol=0)


def state(model):
    """Everything that a reading might leave behind."""
    inner = getattr(model, "original_model", model)
    modules = [*model.modules(), *inner.modules()]
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return (
        [m.training for m in modules],
        [list(getattr(m, kind)) for m in modules for kind in kinds],
        [sorted(vars(m)) for m in modules],
        [(p.requires_grad, p.grad, p._version) for p in inner.parameters()],
    )


class Broken(RuntimeError):
    pass


@pytest.mark.parametrize("kind", ["bridge", pytest.param("hooked", marks=needs_hooked)])
def test_the_model_is_as_before_also_after_an_exception(kind):
    model = {"bridge": bridge_from_hf, "hooked": hooked_from_hf}[kind](hf_model("gemma2"))
    verify_model(as_adapter(model))
    model.train()
    next(iter(model.parameters())).requires_grad_(False)
    prompts = shared_prompts()
    before = state(model)
    direct_logit_attribution(model, prompts, progress=False)
    assert state(model) == before

    def fail(x, hook):
        raise Broken

    model.blocks[2].hook_resid_pre.add_hook(fail)
    hooked = state(model)
    with pytest.raises(Broken):
        direct_logit_attribution(model, prompts, progress=False)
    assert state(model) == hooked
    model.reset_hooks()
    assert state(model) == before


def test_refusals(tiny, monkeypatch):
    model, prompts = bridge_from_hf(hf_model("llama")), uneven_prompts()
    with pytest.raises(PromptError, match='direct_logit_attribution with toward="truth" needs true labels'):
        direct_logit_attribution(model, replace(prompts, test_labels=None), toward="truth", progress=False)
    with pytest.raises(PromptError, match="scored on whole labels"):
        direct_logit_attribution(model, replace(prompts, score_on="sequence"), progress=False)
    with (
        verified_otherwise(monkeypatch, model, not_fast="the test says so"),
        pytest.raises(ModelError, match="must be taken over exactly.*the test says so"),
    ):
        direct_logit_attribution(model, prompts, progress=False)

    model.blocks[1].hook_resid_pre.add_hook(lambda x, hook: x + 1)
    with pytest.raises(ModelError, match="parts must add up.*has hooks.*blocks.1"):
        direct_logit_attribution(model, prompts, progress=False)
    model.reset_hooks()
    head = model.original_model.lm_head
    handle = head.register_forward_pre_hook(lambda m, args: (args[0] * 1.1,))
    with pytest.raises(ModelError, match="final norm's output times unembed.W_U"):
        direct_logit_attribution(model, prompts, progress=False)
    handle.remove()
    forward = model.ln_final.original_component.forward
    monkeypatch.setattr(model.ln_final.original_component, "forward", lambda x: forward(x).tanh())
    with pytest.raises(ModelError, match="ln_final is not: γ"):
        direct_logit_attribution(model, prompts, progress=False)


def test_the_value_side_of_a_head():
    """Values that carry labels, values that carry something else, and a head that writes nothing."""
    prompts = uneven_prompts(count=40, demos=6)
    found = direct_logit_attribution(bridge_from_hf(hf_model("gpt2")), prompts, progress=False)
    right = (prompts.demo_labels == found.toward[:, None])[:, None, None]
    demos = found.demos.clone()
    demos[:, 0, 0] = (found.weights * torch.where(right, 3.0, -1.5))[:, 0, 0]
    demos[:, 0, 1] = found.weights[:, 0, 1]
    demos[:, 0, 2] = 0
    side = replace(found, demos=demos).regression()
    assert float(side.slope[0, 0]) == pytest.approx(3.0, rel=1e-4)
    assert float(side.r2[0, 0]) == pytest.approx(1.0, abs=1e-4)
    assert float(side.r2[0, 1]) < 0.5
    assert side.slope[0, 2].isnan()
    assert side.r2[0, 2].isnan()
    x = (found.weights * torch.where(right, 1.0, -0.5))[:, 2, 3].flatten().numpy()
    from scipy.stats import linregress

    line = linregress(x, found.demos[:, 2, 3].flatten().numpy())
    assert float(side.slope[2, 3]) == pytest.approx(line.slope, rel=1e-3)
    assert float(side.r2[2, 3]) == pytest.approx(line.rvalue**2, rel=1e-3)


def test_what_the_result_can_do(tiny, tmp_path):
    found = direct_logit_attribution(tiny("falcon")[0], shared_prompts(), progress=False)
    table = found.table()
    assert len(table) == 12
    assert table["direct_logit_attribution"].is_monotonic_decreasing
    assert table["direct_logit_attribution"].max() == found.mean().max().item()
    assert (table["low"] <= table["direct_logit_attribution"]).all()
    frame = found.to_dataframe()
    row = frame[(frame["prompt"] == 3) & (frame["layer"] == 1) & (frame["head"] == 2)].iloc[0]
    assert row["value"] == found.heads[3, 1, 2].item()
    assert row["through_labels"] == found.demos[3, 1, 2].sum().item()
    assert "toward model; falcon" in repr(found)
    assert "parts add up within" in repr(found)
    again = LogitAttribution.load(found.save(tmp_path / "found.safetensors"))
    assert repr(again) == repr(found)
    assert again.run == found.run
    assert again.residual == found.residual
    for name in ("heads", "demos", "weights", "toward", "demo_labels", "demo_set", "biases"):
        assert torch.equal(getattr(again, name), getattr(found, name))
