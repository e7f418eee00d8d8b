"""Gradients of attention through Hugging Face's own eager attention, pair by pair."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from architectures import hf_model
from support import KINDS, needs_hooked, shared_prompts, uneven_prompts, verified_otherwise

from icl_kernel_lens import PromptSet
from icl_kernel_lens.errors import ModelError, PromptError
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.models.load import bridge_from_hf, hooked_from_hf
from icl_kernel_lens.models.verify import verify_model
from icl_kernel_lens.numbers import attention
from icl_kernel_lens.readouts.gradients import saliency
from icl_kernel_lens.results.saliency import Saliency


def by_hand(hf, tokens, label_pos, label_tokens, label):
    """(layer, head and their sum, flow) from the patterns that Hugging Face gives, and autograd's gradient of them."""
    with torch.enable_grad():
        out = hf(tokens[None], output_attentions=True)
        for a in out.attentions:
            a.retain_grad()
        chosen = out.logits[0, -1, label_tokens]
        loss = torch.nn.functional.cross_entropy(chosen[None], torch.tensor([label]))
        gradients = torch.autograd.grad(loss, out.attentions)
    answer, found = len(tokens) - 1, []
    for a, gradient in zip(out.attentions, gradients, strict=True):
        terms = (a * gradient)[0].detach().double()
        terms = torch.cat([terms, terms.sum(0, keepdim=True)]).abs()
        wp = [terms[:, p, j] for p in label_pos for j in range(p)]
        pq = [terms[:, answer, p] for p in label_pos]
        ww = [
            terms[:, q, k]
            for q in range(answer + 1)
            for k in range(q)
            if q not in label_pos and not (q == answer and k in label_pos)
        ]
        found.append(torch.stack([torch.stack(pairs).mean(0) for pairs in (wp, pq, ww)], -1))
    return torch.stack(found)


@pytest.mark.parametrize(("name", "kind"), KINDS)
@pytest.mark.parametrize("made", ["uneven", "shared"])
def test_every_head_by_autograd_through_the_pattern(tiny, monkeypatch, name, kind, made):
    """Windows, soft caps, ALiBi and grouped heads; queries a few at a time; prompts that would be shared."""
    (model, hf) = tiny(name, kind)
    prompts = {"uneven": uneven_prompts, "shared": shared_prompts}[made]()
    if made == "shared":
        monkeypatch.setitem(
            attention.LARGEST_STRETCH, "cpu", 7 * 4 * int(prompts.lengths.max()) * len(prompts)
        )
    found = saliency(model, prompts, progress=False)
    assert "of finite differences; prompts read whole" in found.run.reading
    for number, length in enumerate(prompts.lengths.tolist()):
        expected = by_hand(
            hf,
            prompts.tokens[number, :length],
            prompts.label_pos[number].tolist(),
            prompts.label_tokens[number],
            int(prompts.test_labels[number]),
        ).float()
        for at, flow in enumerate(("wp", "pq", "ww")):
            torch.testing.assert_close(
                getattr(found, flow)[number], expected[:, :-1, at], atol=1e-6, rtol=1e-4
            )
        torch.testing.assert_close(found.layers[number], expected[:, -1], atol=1e-6, rtol=1e-4)
    assert found.pq.min() >= 0
    assert found.pq.max() > 1e-3


@pytest.mark.parametrize("name", ["gemma2", "gpt_neo", "llama", "bloom"])
def test_no_square_is_kept_for_the_way_back(tiny, name):
    """Heads are 8 wide here: a wider tensor with an axis of heads holds rows of attention."""
    model, prompts = tiny(name)[0], shared_prompts()
    saliency(model, prompts, progress=False)
    kept = []
    pack = torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x)
    with pack:
        saliency(model, prompts, progress=False)
    assert len(kept) > 20
    assert not [shape for shape in kept if len(shape) == 4 and shape[1] == 4 and shape[-1] > 16]


def test_toward_the_models_own_answer(tiny):
    (model, hf), prompts = tiny("gpt2"), uneven_prompts()
    found = saliency(model, replace(prompts, test_labels=None), toward="model", progress=False)
    for number, length in enumerate(prompts.lengths.tolist()):
        tokens = prompts.tokens[number, :length]
        with torch.no_grad():
            label = int(hf(tokens[None]).logits[0, -1, prompts.label_tokens[number]].argmax())
        expected = by_hand(
            hf, tokens, prompts.label_pos[number].tolist(), prompts.label_tokens[number], label
        )
        torch.testing.assert_close(found.pq[number], expected[:, :-1, 1].float(), atol=1e-6, rtol=1e-4)


def test_batches_checkpoints_and_outer_contexts_change_nothing(tiny, tmp_path):
    (model, _), prompts = tiny("llama"), shared_prompts()
    found = saliency(model, prompts, progress=False)
    others = [
        saliency(model, prompts, progress=False, batch_size=2, checkpoint=tmp_path / "kept"),
        saliency(model, prompts, progress=False, checkpoint=tmp_path / "kept"),
    ]
    with torch.no_grad():
        others.append(saliency(model, prompts, progress=False))
    with torch.inference_mode():
        others.append(saliency(model, prompts, progress=False))
    for other in others:
        for name in ("wp", "pq", "ww", "layers"):
            torch.testing.assert_close(getattr(other, name), getattr(found, name), atol=1e-7, rtol=1e-4)


def state(model):
    """Modes, hooks and attributes of every module."""
    inner = getattr(model, "original_model", model)
    modules = [*model.modules(), *inner.modules()]
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return (
        [m.training for m in modules],
        [list(getattr(m, kind)) for m in modules for kind in kinds],
        [sorted(vars(m)) for m in modules],
    )


class Broken(RuntimeError):
    pass


@pytest.mark.parametrize("kind", ["bridge", pytest.param("hooked", marks=needs_hooked)])
def test_the_model_is_as_before_also_after_an_exception(kind):
    """Some parameters with a gradient of their own, some that ask for none."""
    model = {"bridge": bridge_from_hf, "hooked": hooked_from_hf}[kind](hf_model("gpt2"))
    verify_model(as_adapter(model))
    model.train()
    parameters = list(model.parameters())
    for at, parameter in enumerate(parameters):
        if at % 3 == 0:
            parameter.requires_grad_(False)
        elif at % 3 == 1:
            parameter.grad = torch.ones_like(parameter)
    prompts, before = shared_prompts(), state(model)
    graded = [None if p.grad is None else p.grad.clone() for p in parameters]

    def same():
        assert state(model) == before
        for parameter, gradient in zip(parameters, graded, strict=True):
            assert (parameter.grad is None) == (gradient is None)
            assert gradient is None or torch.equal(parameter.grad, gradient)

    requires = [p.requires_grad for p in parameters]
    saliency(model, prompts, progress=False)
    same()

    def fail(x, hook):
        raise Broken

    model.blocks[2].hook_resid_pre.add_hook(fail)
    with pytest.raises(Broken):
        saliency(model, prompts, progress=False)
    model.reset_hooks()
    same()
    assert [p.requires_grad for p in parameters] == requires


def test_a_model_without_trainable_parameters(tiny):
    """A gradient by attention needs none by weights."""
    prompts = uneven_prompts()
    frozen = bridge_from_hf(hf_model("llama").requires_grad_(False))
    found, expected = (saliency(m, prompts, progress=False) for m in (frozen, tiny("llama")[0]))
    torch.testing.assert_close(found.pq, expected.pq, atol=1e-7, rtol=1e-5)


class _Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def test_refusals(monkeypatch):
    """Whatever would not be the gradient of the loss."""
    model, prompts = bridge_from_hf(hf_model("llama")), uneven_prompts()
    with pytest.raises(PromptError, match='saliency with toward="truth" needs true labels'):
        saliency(model, replace(prompts, test_labels=None), progress=False)
    with pytest.raises(PromptError, match="scored on whole labels"):
        saliency(model, replace(prompts, score_on="sequence"), progress=False)
    bare = replace(
        prompts,
        demo_spans=prompts.demo_spans[:, :0],
        label_spans=prompts.label_spans[:, :0],
        demo_labels=prompts.demo_labels[:, :0],
    )
    with pytest.raises(PromptError, match="no demonstrations"):
        saliency(model, bare, progress=False)
    with (
        verified_otherwise(monkeypatch, model, not_fast="the test says so"),
        pytest.raises(ModelError, match="must be taken over exactly.*the test says so"),
    ):
        saliency(model, prompts, progress=False)
    with pytest.raises(ModelError, match="in float16.*small ones do"):
        saliency(bridge_from_hf(hf_model("llama").half()), prompts, progress=False)

    for cut, message in (
        (lambda x, hook: x.detach(), "must reach every layer; z of layer 0"),
        (lambda x, hook: _Twice.apply(x), "differ from finite differences by"),
        (lambda x, hook: x.detach() + 0.7 * (x - x.detach()), "differ from finite differences by"),
    ):
        model.blocks[2].hook_resid_pre.add_hook(cut)
        with pytest.raises(ModelError, match=message):
            saliency(model, prompts, progress=False)
        model.reset_hooks()
    with torch.inference_mode():
        made = bridge_from_hf(hf_model("llama"))
    with pytest.raises(ModelError, match="inference_mode"):
        saliency(made, prompts, progress=False)


def test_bfloat16_stays_near(tiny):
    prompts = shared_prompts()
    exact = saliency(tiny("gpt2")[0], prompts, progress=False)
    found = saliency(bridge_from_hf(hf_model("gpt2").bfloat16()), prompts, progress=False)
    assert "not compared with differences" in found.run.reading
    near = (found.pq - exact.pq).abs().mean() / exact.pq.mean()
    assert float(near) < 0.1


def test_what_the_result_can_do(tiny, tmp_path):
    found = saliency(tiny("falcon")[0], shared_prompts(), progress=False)
    table = found.table()
    assert len(table) == 12
    assert table["pq_above_ww"].is_monotonic_decreasing
    assert table["pq"].max() == found.mean()["pq"].max().item()
    assert (table["low"] <= table["pq_above_ww"]).all()
    frame = found.to_dataframe()
    row = frame[(frame["prompt"] == 3) & (frame["layer"] == 1) & (frame["head"] == 2)].iloc[0]
    assert [row["wp"], row["pq"], row["ww"]] == [
        getattr(found, n)[3, 1, 2].item() for n in ("wp", "pq", "ww")
    ]
    assert "loss of truth; falcon" in repr(found)
    again = Saliency.load(found.save(tmp_path / "found.safetensors"))
    assert repr(again) == repr(found)
    for name in ("wp", "pq", "ww", "layers", "demo_set"):
        assert torch.equal(getattr(again, name), getattr(found, name))


def test_a_label_word_with_nothing_before_it(tiny):
    """No text flows into it: NaN, not 0."""
    tokens = torch.tensor([[10, 5, 6, 7], [5, 20, 6, 7]])
    prompts = PromptSet.from_tokens(
        tokens, torch.tensor([[0], [1]]), torch.tensor([[0], [1]]), torch.tensor([10, 20])
    )
    found = saliency(tiny("gpt2")[0], prompts, toward="model", progress=False)
    assert found.wp[0].isnan().all()
    assert not found.wp[1].isnan().any()
    assert not found.pq.isnan().any()
