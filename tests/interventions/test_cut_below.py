"""Attention with the label edges of all earlier layers cut: against hooks on the plain model, layer after layer."""

from __future__ import annotations

import pytest
import torch
from architectures import hf_model
from interventions.huggingface import HEADS, Plain, without
from interventions.test_coverage import long_labels, where_the_test_begins
from models.left_as_found import build, same, state
from support import shared_prompts

from icl_kernel_lens import PromptSet, load_task, read
from icl_kernel_lens.errors import PromptError, RunError
from icl_kernel_lens.interventions.cut_below import weights_cut_below
from icl_kernel_lens.models.load import bridge_from_hf

LAYERS = 3


def few() -> PromptSet:
    """Three prompts, of which two share their demonstrations."""
    return shared_prompts(sets=1, tests=2, demos=3)


def edges_by_hand(prompts, number, offsets):
    """The keys of each demonstration: the label with all its tokens, and the tokens so far behind its first."""
    spans = prompts.label_spans[number].tolist()
    labels = {at for start, end in spans for at in range(start, end)}
    begin = where_the_test_begins(prompts, number)
    return [
        sorted(
            (set(range(start, end)) if 0 in offsets else set())
            | ({start + o for o in offsets if o and 0 <= start + o < begin} - labels)
        )
        for start, end in spans
    ]


def weights_by_hand(plain, prompts, number, offsets):
    """A layer's attention is looked at, then its label edges are cut, and the next layer sees that."""
    at, group, changes = int(prompts.answer_pos[number]), HEADS // plain.kv_heads(), []
    tokens, edges = prompts.tokens[number, : at + 1], edges_by_hand(prompts, number, offsets)
    cut = sorted(key for keys in edges for key in keys)
    pooled = [keys[:1] for keys in edges] if offsets == (0,) else edges
    found = torch.zeros(LAYERS, HEADS, prompts.demos)
    for layer in range(LAYERS):
        watch = [(h, plain.place("value", layer, h // group)) for h in range(HEADS)]
        _, values, attention = plain.run(tokens, changes=changes, watch=watch)
        for head in range(HEADS):
            row = attention[layer][0, head, at]
            found[layer, head] = torch.stack([row[keys].sum() for keys in pooled])
            moved = (without(cut, renormalise=False)(row.clone()) - row) @ values[head][0]

            def add(z, moved=moved):
                z = z.clone()
                z[:, at] += moved
                return z

            changes.append((plain.place("head_output", layer, head), add))
    return found


@pytest.mark.parametrize(
    ("name", "make", "offsets"),
    [
        ("llama", few, (0,)),
        ("llama", few, (0, 1)),
        ("gpt2", few, (-1, 0)),
        ("gptj", long_labels, (0,)),
        ("gemma2", long_labels, (0, 2)),
    ],
)
def test_the_weights_are_those_of_a_run_cut_layer_by_layer(tiny, name, make, offsets):
    model, _ = tiny(name, "bridge")
    prompts, plain = make(), Plain(name, hf_model(name))
    found = weights_cut_below(model, prompts, offsets, progress=False)
    assert found.shape == (len(prompts), LAYERS, HEADS, prompts.demos)
    for number in range(len(prompts)):
        expected = weights_by_hand(plain, prompts, number, offsets)
        torch.testing.assert_close(found[number], expected, atol=1e-5, rtol=0)
    keep = {"keep": ("label",)} if offsets == (0,) else {"keep": (), "offsets": offsets}
    whole = read(model, prompts, progress=False, **keep).pooled("label" if offsets == (0,) else "edges")
    torch.testing.assert_close(found[:, 0], whole[:, 0], atol=1e-5, rtol=0)
    assert (found[:, 1:] - whole[:, 1:]).abs().amax((0, 2, 3)).min() > 1e-4, "labels below are not cut"


def test_layers_without_attention_are_nan():
    """A convolution below two layers of attention; it is the same in both, and the second's labels are cut for the third."""
    import transformers

    config = transformers.Lfm2Config(
        vocab_size=89,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        full_attn_idxs=[1, 2],
        layer_types=["conv", "full_attention", "full_attention"],
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        for parameter in hf.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    model, prompts = bridge_from_hf(hf), few()
    found = weights_cut_below(model, prompts, progress=False)
    whole = read(model, prompts, keep=("label",), progress=False).pooled("label")
    assert found[:, 0].isnan().all()
    torch.testing.assert_close(found[:, 1], whole[:, 1], atol=1e-5, rtol=0)
    assert found[:, 2].isfinite().all()
    assert (found[:, 2] - whole[:, 2]).abs().max() > 1e-4


def test_the_model_and_its_hooks_are_as_before():
    model = build("bridge")
    weights_cut_below(model, few(), progress=False)
    before = state(model)
    weights_cut_below(model, few(), progress=False)
    assert same(before, state(model))


def test_a_hook_of_the_users_counts(tiny):
    """Layer 1 of a model whose first block's output is doubled by a hook is that of the hooked model."""
    model = build("bridge")
    plain = weights_cut_below(model, few(), progress=False)
    model.blocks[0].hook_resid_post.add_hook(lambda x, hook: x * torch.linspace(0, 2, x.shape[-1]))
    hooked = weights_cut_below(model, few(), progress=False)
    whole = read(model, few(), keep=("label",), progress=False).pooled("label")
    torch.testing.assert_close(hooked[:, 0], plain[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(hooked[:, 0], whole[:, 0], atol=1e-5, rtol=0)
    assert (hooked[:, 1] - plain[:, 1]).abs().max() > 1e-3


def test_what_was_finished_is_kept(tiny, tmp_path, monkeypatch):
    from icl_kernel_lens.interventions import cut_below

    model, _ = tiny("llama", "bridge")
    whole = weights_cut_below(model, few(), checkpoint=tmp_path, progress=False)
    monkeypatch.setattr(cut_below, "run_variants", lambda *_: pytest.fail("finished prompts are run again"))
    assert torch.equal(weights_cut_below(model, few(), checkpoint=tmp_path, progress=False), whole)
    with pytest.raises(RunError, match="offsets"):
        weights_cut_below(model, few(), (0, 1), checkpoint=tmp_path, progress=False)


def test_what_is_refused(tiny, mini):
    model, _ = tiny("llama", "bridge")
    with pytest.raises(PromptError, match=r"\+60 does not"):
        weights_cut_below(model, few(), (0, 60), progress=False)
    prompts = load_task("topics").prompts(mini, demos=4, count=4, sets=2, seed=0, score_on="sequence")
    with pytest.raises(PromptError, match="first token"):
        weights_cut_below(mini, prompts, progress=False)
