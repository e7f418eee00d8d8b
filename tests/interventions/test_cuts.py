"""Knock-outs: against the plain Hugging Face model, algebra, and the bundled model."""

from __future__ import annotations

import warnings

import pytest
import torch
from architectures import ARCHITECTURES, hf_model
from interventions.huggingface import Plain, own_text, rows_changed, without
from support import needs_hooked, shared_prompts, uneven_prompts

from icl_kernel_lens import PromptSet, knock_out, load_task, patch_labels, read, substitute_kernel
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.interventions.cuts import EdgeCuts
from icl_kernel_lens.models.load import bridge_from_hf
from icl_kernel_lens.reasons import Reason


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("edges", ["answer_reads_labels", "answer_reads_text", "label_reads_text"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_knock_outs_equal_the_plain_model(tiny, name, edges, renormalise):
    model, _ = tiny(name, "bridge")
    prompts = shared_prompts(sets=1, tests=2).select([1, 2])
    heads = [(0, 1), (2, 3)]
    found = knock_out(
        model, prompts, edges, heads=heads, renormalise=renormalise, controls=False, progress=False
    )
    sets = [[(0, 0), (0, 3), (1, 2), (2, 1)]]
    together = knock_out(
        model, prompts, edges, heads=sets, renormalise=renormalise, controls=False, progress=False
    )
    assert found.values.isfinite().sum() == 4
    plain, number = Plain(name, hf_model(name)), 1
    at, words = int(prompts.answer_pos[number]), prompts.label_tokens[number]
    tokens = prompts.tokens[number, : at + 1]

    def edit(head):
        if edges == "label_reads_text":
            return [
                (
                    head,
                    int(prompts.label_pos[number, i]),
                    without(own_text(prompts, number, i), renormalise=renormalise),
                )
                for i in range(prompts.demos)
            ]
        keys = prompts.label_pos[number].tolist()
        if edges == "answer_reads_text":
            keys = [k for i in range(prompts.demos) for k in own_text(prompts, number, i)]
        return [(head, at, without(keys, renormalise=renormalise))]

    for layer, head in heads:
        logits = rows_changed(plain, tokens, {layer: edit(head)})[at]
        torch.testing.assert_close(
            found.label_scores[number, layer, head], logits[words], atol=1e-5, rtol=1e-5
        )
    edits = {}
    for layer, head in sets[0]:
        edits.setdefault(layer, []).extend(edit(head))
    logits = rows_changed(plain, tokens, edits)[at]
    torch.testing.assert_close(together.label_scores[number, 0], logits[words], atol=1e-5, rtol=1e-5)
    assert together.places == {"set": ("L0H0 L0H3 L1H2 L2H1",)}


@pytest.mark.parametrize("renormalise", [True, False])
def test_what_counts_as_a_label(tiny, renormalise):
    """The label and the token behind it, for all demonstrations or one; the test input is none of theirs."""
    model, _ = tiny("llama", "bridge")
    prompts, plain, number = uneven_prompts(), Plain("llama", hf_model("llama")), 1
    at, labels = int(prompts.answer_pos[number]), prompts.label_pos[number].tolist()
    for demo, keys in (("all", [*labels, *(k + 1 for k in labels[:-1])]), (0, [labels[0], labels[0] + 1])):
        found = knock_out(
            model, prompts, heads=[(1, 2)], offsets=(0, 1), demo=demo, renormalise=renormalise, progress=False
        )
        change = without(keys, renormalise=renormalise)
        logits = rows_changed(plain, prompts.tokens[number, : at + 1], {1: [(2, at, change)]})[at]
        torch.testing.assert_close(
            found.label_scores[number, 1, 2], logits[prompts.label_tokens[number]], atol=1e-5, rtol=1e-5
        )
    with pytest.raises(ResultError, match="offsets= belong to answer_reads_labels"):
        knock_out(model, prompts, "answer_reads_text", offsets=(0, 1), progress=False)


def test_one_demonstration_at_a_time(tiny):
    model, _ = tiny("llama", "bridge")
    prompts = uneven_prompts(count=2)
    each = knock_out(model, prompts, heads=[(1, 2)], demo="each", progress=False)
    assert each.places["demo"] == (0, 1, 2)
    plain, at = Plain("llama", hf_model("llama")), int(prompts.answer_pos[0])
    for demo in range(3):
        alone = knock_out(model, prompts, heads=[(1, 2)], demo=demo, progress=False)
        torch.testing.assert_close(alone.values[:, 1, 2], each.values[:, 1, 2, demo])
        change = without([int(prompts.label_pos[0, demo])], renormalise=True)
        logits = rows_changed(plain, prompts.tokens[0, : at + 1], {1: [(2, at, change)]})[at]
        scores = each.label_scores[0, 1, 2, demo]
        torch.testing.assert_close(scores, logits[prompts.label_tokens[0]], atol=1e-5, rtol=1e-5)


def test_controls_cut_other_keys(tiny, monkeypatch):
    """As many, or of as much attention; never position 0, a label, a key that is cut, or the answer itself."""
    model, _ = tiny("gptj", "bridge")
    prompts, seen = uneven_prompts(count=4), []
    for kind in ("random_keys", "equal_mass"):
        original = getattr(EdgeCuts, kind)

        def noting(self, row, option, original=original, kind=kind):
            new = original(self, row, option)
            seen.append(
                (kind, row, new, self.keys[row.prompts, 0, row.column], self.free[row.prompts, row.column])
            )
            return new

        monkeypatch.setattr(EdgeCuts, kind, noting)
    effects = knock_out(model, prompts, progress=False, renormalise=False)
    assert set(effects.controls) == {"random_keys", "equal_mass"}
    assert {kind for kind, *_ in seen} == {"random_keys", "equal_mass"}
    for kind, row, new, keys, free in seen:
        good = ~new.isnan().any(-1)
        lost = row.weights[good] - new[good]
        changed = lost != 0
        assert not (changed & ~free[good]).any()
        assert not free[:, 0].any(), "position 0"
        assert not free[:, -1].any(), "the answer itself"
        assert not (free & keys).any()
        if kind == "random_keys":
            assert (changed.sum(-1) == keys[good].sum(-1)).all()
        else:
            mass = (row.weights * keys)[good].sum(-1)
            torch.testing.assert_close(lost.sum(-1), mass, atol=1e-6, rtol=1e-4)


def test_labels_of_other_demonstrations_are_no_control_keys(tiny, monkeypatch):
    model, _ = tiny("gptj", "bridge")
    prompts, free = uneven_prompts(count=3).select([1]), []
    original = EdgeCuts.random_keys

    def noting(self, row, group):
        free.append(self.free[0])
        return original(self, row, group)

    monkeypatch.setattr(EdgeCuts, "random_keys", noting)
    knock_out(model, prompts, demo=0, progress=False)
    assert free
    assert all(keys.any() and not keys[:, prompts.label_pos[0]].any() for keys in free)


def test_too_few_other_keys_are_nan_with_a_reason():
    """A prompt of labels almost alone has no others to cut."""
    tokens = torch.tensor([[5, 10, 20, 10, 20, 7]])
    prompts = PromptSet.from_tokens(
        tokens, torch.tensor([[1, 2, 3, 4]]), torch.tensor([[0, 1, 0, 1]]), torch.tensor([10, 20])
    )
    effects = knock_out(bridge_from_hf(hf_model("llama")), prompts, progress=False)
    assert effects.values.isfinite().all()
    assert effects.controls["random_keys"].isnan().all()
    assert effects.reasons[Reason.RANDOM_KEYS] == 12
    assert "too few other keys to cut as many (12 of 12 cells)" in repr(effects)


@needs_hooked
def test_effects_on_a_hand_written_model_are_what_algebra_says():
    """One layer without norms: H0 a kernel regression, H1 the same attention writing nothing, H2 uniform."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    inputs, beta, gain, demos = 6, 2.0, 3.0, 5
    # Tokens: (input, label) pairs, then the inputs alone, then the two label words.
    vocab = 2 * inputs + inputs + 2
    cfg = HookedTransformerConfig(
        n_layers=1,
        n_heads=3,
        d_model=inputs * 2 + 3,
        d_head=inputs * 2 + 3,
        d_vocab=vocab,
        n_ctx=16,
        attn_only=True,
        normalization_type=None,
        positional_embedding_type="standard",
        seed=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = HookedTransformer(cfg)
    key, query, sign, test, out = (
        slice(0, inputs),
        slice(inputs, 2 * inputs),
        2 * inputs,
        2 * inputs + 1,
        2 * inputs + 2,
    )
    features = torch.randn(inputs, inputs, generator=torch.Generator().manual_seed(1)) * 0.5
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for x in range(inputs):
            for y in (0, 1):
                model.W_E[2 * x + y, key] = features[x]
                model.W_E[2 * x + y, sign] = 2.0 * y - 1
            model.W_E[2 * inputs + x, query] = features[x]
            model.W_E[2 * inputs + x, test] = 1.0
        block = model.blocks[0].attn
        scale = cfg.d_head**0.5
        for head in (0, 1):
            for d in range(inputs):
                block.W_Q[head, inputs + d, d] = beta * scale
                block.W_K[head, d, d] = 1.0
            block.W_Q[head, test, test] = scale
            block.W_K[head, test, test] = -60.0  # the test input does not read itself
        block.W_Q[2, test, test] = scale
        block.W_K[2, test, test] = -60.0
        for head in range(3):
            block.W_V[head, sign, sign] = 1.0
        block.W_O[0, sign, out] = gain
        block.W_O[2, sign, out] = 0.5
        model.W_U[out, 3 * inputs], model.W_U[out, 3 * inputs + 1] = -1.0, 1.0
    model.eval()
    generator = torch.Generator().manual_seed(2)
    xs = torch.randint(inputs, (7, demos + 1), generator=generator)
    ys = torch.randint(2, (7, demos), generator=generator)
    tokens = torch.cat([2 * xs[:, :-1] + ys, 2 * inputs + xs[:, -1:]], 1)
    label_pos = torch.arange(demos).expand(7, -1).contiguous()
    words = torch.tensor([3 * inputs, 3 * inputs + 1])

    def prompts_of(labels):
        with pytest.warns(UserWarning, match="at no label position"):
            return PromptSet.from_tokens(
                torch.cat([2 * xs[:, :-1] + labels, tokens[:, -1:]], 1), label_pos, labels, words
            )

    clean, corrupted = prompts_of(ys), prompts_of(1 - ys)
    kernel = (beta * torch.einsum("nd,nid->ni", features[xs[:, -1]], features[xs[:, :-1]])).softmax(-1)
    s = 2.0 * ys - 1
    vote, mean = (kernel * s).sum(1), s.mean(1)
    difference = 2 * (gain * vote + 0.5 * mean)
    side = torch.where(difference > 0, 1.0, -1.0)
    evidence = read(model, clean, progress=False)
    torch.testing.assert_close(evidence.weights["label"][:, 0, 0], kernel, atol=1e-5, rtol=1e-4)
    edge = patch_labels(
        model, clean=clean, corrupted=corrupted, offsets=(0,), direction="noise", progress=False
    )
    torch.testing.assert_close(edge.base, difference * side, atol=1e-5, rtol=1e-5)
    expected = torch.stack([-4 * gain * vote * side, torch.zeros(7), -4 * 0.5 * mean * side], 1)
    torch.testing.assert_close(edge.effect()[:, 0, :, 0], expected, atol=1e-5, rtol=1e-4)
    cut = knock_out(model, clean, renormalise=False, controls=False, progress=False)
    expected = torch.stack([-2 * gain * vote * side, torch.zeros(7), -mean * side], 1)
    torch.testing.assert_close(cut.effect()[:, 0], expected, atol=1e-5, rtol=1e-4)
    assert (cut.effect()[:, 0, 1] == 0).all(), "the disconnected head: 0, and no complaint"


def test_the_bundled_models_answer_goes_through_two_heads(mini):
    """Their edges cut, accuracy is that of all edges cut; those of the ten others, it hardly moves."""
    prompts = load_task("topics").prompts(mini, demos=16, count=120, seed=1)
    kernel = [(2, 1), (2, 3)]
    every = [(layer, head) for layer in range(3) for head in range(4)]
    rest = [head for head in every if head not in kernel]
    cut = knock_out(mini, prompts, heads=[kernel, rest, rest[:2], every], controls=False, progress=False)
    accuracy = cut.accuracy(prompts.test_labels).tolist()
    before = (cut.base_label_scores.argmax(1) == prompts.test_labels).float().mean().item()
    assert before > 0.9
    assert 0.4 < accuracy[3] < 0.6, "the floor is chance"
    assert 0.4 < accuracy[0] < 0.6
    assert accuracy[1] > before - 0.06
    assert accuracy[2] > before - 0.02


def windowed():
    """A model whose heads see twelve tokens back."""
    import transformers

    config = transformers.MistralConfig(
        vocab_size=89,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        sliding_window=12,
        attn_implementation="eager",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in hf.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return bridge_from_hf(hf)


def test_what_a_head_cannot_see_is_not_cut_instead():
    """Random keys are drawn from the window, so that cutting them is a change at all."""
    model = windowed()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(40, 80, (6, 41), generator=generator)
    label_pos, labels = torch.tensor([[34, 36, 38]] * 6), torch.tensor([[0, 1, 0]] * 6)
    words = torch.tensor([10, 20])
    prompts = PromptSet.from_tokens(tokens.scatter(1, label_pos, words[labels]), label_pos, labels, words)
    effects = knock_out(model, prompts, progress=False)
    control = effects.controls["random_keys"] - effects.base[:, None, None]
    assert (control.abs() > 1e-6).all()
    # Labels outside the window of every head: nothing to share out, and nothing changed.
    far = PromptSet.from_tokens(
        tokens.scatter(1, label_pos - 30, words[labels]), label_pos - 30, labels, words
    )
    same = substitute_kernel(model, far, "own", progress=False)
    assert same.effect().abs().max() < 1e-5
    power = substitute_kernel(model, far, lambda number, own: own**2, progress=False, controls=False)
    assert power.values.isfinite().all()


def test_controls_are_asked_for_by_name(tiny):
    model, _ = tiny("llama", "bridge")
    prompts = uneven_prompts()
    both = knock_out(model, prompts, progress=False)
    one = knock_out(model, prompts, controls=("equal_mass",), progress=False)
    assert set(one.controls) == {"equal_mass"}
    torch.testing.assert_close(one.controls["equal_mass"], both.controls["equal_mass"], equal_nan=True)
    torch.testing.assert_close(one.values, both.values)
    assert not knock_out(model, prompts, controls=False, progress=False).controls
    with pytest.raises(ResultError, match="random_keys"):
        knock_out(model, prompts, controls=("mass",), progress=False)
