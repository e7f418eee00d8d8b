"""Carried influence: against hooks on the plain Hugging Face model, where a changed key gets its score from the model itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from architectures import hf_model
from interventions.huggingface import HEADS, Plain
from interventions.test_coverage import long_labels
from models.left_as_found import build, same, state
from support import needs_hooked, shared_prompts

from icl_kernel_lens import PromptSet, carried_influence, label_influence, load, load_task
from icl_kernel_lens.errors import PromptError, ResultError, RunError
from icl_kernel_lens.interventions import carried, engine

LAYERS = 3


def patched_by_hand(plain, base, source, at, cells, positions, carrier):
    """Logits at the answer with the label edges of cells (layer, head) read from `source`, layer after layer.

    A key of the source is put where the projection puts it out, before any rotary embedding, and the model's own attention
    then shows the row: queries of that layer are as they were.
    """
    group, changes = HEADS // plain.kv_heads(), []
    for layer in sorted({layer for layer, _ in cells}):
        added = []
        for head in sorted(h for one, h in cells if one == layer):
            places = {name: plain.place(name, layer, head // group) for name in ("key", "value")}
            watch = list(places.items())
            _, theirs, _ = plain.run(source[: at + 1], watch=watch)
            _, own, attentions = plain.run(base[: at + 1], changes=changes, watch=watch)
            row = attentions[layer][0, head, at]
            new = row
            if carrier != "values":

                def put(x, key=theirs["key"]):
                    x = x.clone()
                    x[:, positions] = key[:, positions]
                    return x

                _, _, hybrid = plain.run(base[: at + 1], changes=[*changes, (places["key"], put)])
                new = hybrid[layer][0, head, at]
            moved = (new - row) @ own["value"][0]
            if carrier != "keys":
                moved = moved + new[positions] @ (theirs["value"][0, positions] - own["value"][0, positions])
            added.append((plain.place("head_output", layer, head), moved))
        for place, moved in added:

            def add(z, moved=moved):
                z = z.clone()
                z[:, at] += moved
                return z

            changes.append((place, add))
    return plain.run(base[: at + 1], changes=changes)[0][at]


def carried_by_hand(plain, prompts, number, demo, cells, carrier, positions=None):
    """The mean over replacements of what these heads carry of one demonstration's influence."""
    at, base = int(prompts.answer_pos[number]), prompts.tokens[number]
    start, end = prompts.label_spans[number, demo].tolist()
    own, words = int(prompts.demo_labels[number, demo]), prompts.label_tokens[number]
    before = plain.run(base[: at + 1])[0][at][words]
    pulls = []
    for label in set(range(prompts.labels)) - {own}:
        source = base.clone()
        source[start:end] = prompts.label_sequences[number, label, : end - start]
        where = list(range(start, end)) if positions is None else positions
        after = patched_by_hand(plain, base, source, at, cells, where, carrier)[words]
        pulls.append((before[own] - before[label]) - (after[own] - after[label]))
    return float(torch.stack(pulls).mean())


@pytest.mark.parametrize("carrier", ["both", "values", "keys"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj", "gemma2"])
def test_every_head_carries_what_hooks_say(tiny, name, carrier):
    model, _ = tiny(name, "bridge")
    prompts, plain = (long_labels() if name == "gptj" else shared_prompts()), Plain(name, hf_model(name))
    influence = label_influence(model, prompts, orders=1, progress=False)
    heads = ["L0H1", "L1H3", "L2H0", "L2H2"]
    found = carried_influence(model, influence, heads=heads, carrier=carrier, progress=False)
    number, demo = 1, 2
    for layer, head in ((0, 1), (1, 3), (2, 0)):
        expected = carried_by_hand(plain, prompts, number, demo, [(layer, head)], carrier)
        assert float(found.values[number, layer, head, demo]) == pytest.approx(expected, abs=1e-4)
    every = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    expected = carried_by_hand(plain, prompts, number, 0, every, carrier)
    assert float(found.together[number, 0]) == pytest.approx(expected, abs=1e-4)
    assert found.values[:, 1, 0].isnan().all(), "a head that was not asked for is not 0"
    assert found.values[:, 2, 2].isfinite().all()


def test_edges_behind_the_label_are_read_from_the_replaced_run(tiny):
    model, _ = tiny("llama", "bridge")
    prompts, plain = shared_prompts(), Plain("llama", hf_model("llama"))
    influence = label_influence(model, prompts, orders=1, progress=False)
    found = carried_influence(model, influence, heads=["L1H2"], offsets=(0, 2), progress=False)
    for demo in (0, 3):
        at = int(prompts.label_pos[2, demo])
        where = [at, at + 2] if at + 2 < int(prompts.demo_spans[2, -1, 1]) else [at]
        expected = carried_by_hand(plain, prompts, 2, demo, [(1, 2)], "both", where)
        assert float(found.values[2, 1, 2, demo]) == pytest.approx(expected, abs=1e-4)
    before = carried_influence(model, influence, heads=["L1H2"], offsets=(-1,), progress=False)
    assert before.values[:, 1, 2].abs().max() < 1e-5, "what stands before a label is the same in both runs"


@pytest.mark.parametrize("carrier", ["both", "values", "keys"])
def test_edges_of_later_demonstrations_are_read_from_the_replaced_run(tiny, carrier):
    model, _ = tiny("llama", "bridge")
    prompts, plain = shared_prompts(), Plain("llama", hf_model("llama"))
    influence = label_influence(model, prompts, orders=1, progress=False)
    heads = ["L1H2", "L2H0"]
    own, later = (
        carried_influence(model, influence, heads=heads, carrier=carrier, later=x, progress=False)
        for x in (False, True)
    )
    assert (own.later, later.later) == (False, True)
    number, last = 2, prompts.demos - 1
    for layer, head in ((1, 2), (2, 0)):
        for demo in (0, last):
            where = prompts.label_pos[number, demo:].tolist()
            expected = carried_by_hand(plain, prompts, number, demo, [(layer, head)], carrier, where)
            assert float(later.values[number, layer, head, demo]) == pytest.approx(expected, abs=1e-4)
        torch.testing.assert_close(
            later.values[:, layer, head, last], own.values[:, layer, head, last], atol=1e-5, rtol=0
        )  # nothing is behind the last one
    if carrier == "values":
        share, low, high = own.others_share(later)
        rest = (later.values - own.values).double()[:, 2, 0]
        expected = rest.square().sum() / (rest.square() + own.values.double()[:, 2, 0].square()).sum()
        assert float(share[2, 0]) == pytest.approx(float(expected))
        assert low[2, 0] <= share[2, 0] <= high[2, 0]
        assert share[0, 0].isnan()
    rolled = {name: getattr(later, name).roll(1, 2) for name in ("values", "gained")}
    for wrong in (own, replace(later, offsets=(0, 1)), replace(later, **rolled)):
        with pytest.raises(ResultError, match="with later=True"):
            own.others_share(wrong)
    with pytest.raises(ResultError, match="with later=True"):
        later.others_share(later)


def test_a_last_layer_beside_its_mlp_carries_all_directly(tiny):
    """GPT-J's MLP reads beside its attention, so that nothing stands above its last heads but the norm."""
    model, _ = tiny("gptj", "bridge")
    influence = label_influence(model, shared_prompts(), orders=1, progress=False)
    total, direct = (
        carried_influence(model, influence, path=path, progress=False) for path in ("total", "direct")
    )
    torch.testing.assert_close(total.values[:, -1], direct.values[:, -1], atol=1e-4, rtol=0)
    assert (total.values[:, 0] - direct.values[:, 0]).abs().max() > 1e-4
    torch.testing.assert_close(total.together, direct.together, atol=1e-4, rtol=0)
    assert "direct parts of these heads sum to" in repr(direct)


@needs_hooked
def test_both_model_classes_agree(tiny):
    found = []
    for kind in ("bridge", "hooked"):
        model, _ = tiny("llama", kind)
        influence = label_influence(model, shared_prompts(), orders=1, progress=False)
        found.append(carried_influence(model, influence, progress=False))
    torch.testing.assert_close(found[0].values, found[1].values, atol=1e-4, rtol=0)


def test_the_bundled_models_kernel_goes_through_its_one_head(mini):
    prompts = load_task("topics").prompts(mini, demos=8, count=32, sets=8, seed=0)
    influence = label_influence(mini, prompts, progress=False)
    found = carried_influence(mini, influence, progress=False)
    assert found.coverage().value == pytest.approx(1, abs=0.05)
    assert found.top(1)["head"].tolist() == ["L2H1"]
    assert float(found.top(1)["share"].iloc[0]) > 0.8
    assert float(found.top(1)["pair_share"].iloc[0]) > 0.6
    assert (found.table()["share"][1:].abs() < 0.2).all()
    share, low, high = found.share()
    assert bool((low <= share).all() and (share <= high).all())


def test_some_prompts_are_those_of_all(tiny, tmp_path):
    model, _ = tiny("gpt2", "bridge")
    influence = label_influence(model, shared_prompts(), orders=1, progress=False)
    whole = carried_influence(model, influence, progress=False)
    some = carried_influence(model, influence, prompts=[4, 1], checkpoint=tmp_path / "kept", progress=False)
    torch.testing.assert_close(some.values, whole.values[[4, 1]], atol=1e-5, rtol=0)
    assert some.coords() == {"prompt": [4, 1]}
    again = carried_influence(model, influence, prompts=[4, 1], checkpoint=tmp_path / "kept", progress=False)
    assert torch.equal(again.values, some.values)
    fewer = replace(influence, replaced=influence.replaced.clone())
    fewer.replaced[..., 2, :] = torch.nan
    with pytest.raises(RunError, match="replacements="):
        carried_influence(model, fewer, prompts=[4, 1], checkpoint=tmp_path / "kept", progress=False)
    loaded = load(some.save(tmp_path / "carried.safetensors"))
    assert torch.equal(loaded.values, some.values)
    assert repr(loaded) == repr(some)
    assert set(some.to_dataframe().columns) >= {"prompt", "layer", "head", "demo", "values"}


def test_direct_parts_of_prompts_run_together_are_what_each_is_alone(tiny, monkeypatch):
    """One unchanged run a prompt, which the variants join at its end; and where they may not, one for each of them."""
    model, _ = tiny("llama", "bridge")
    tokens = torch.randint(30, 60, (3, 14), generator=torch.Generator().manual_seed(1))
    at, words = torch.tensor([[3, 7, 11]]).expand(3, -1), torch.tensor([10, 20])
    labels = torch.tensor([[0, 1, 0], [1, 1, 0], [0, 0, 1]])
    prompts = PromptSet.from_tokens(tokens.scatter(1, at, words[labels]), at, labels, words)
    influence = label_influence(model, prompts, orders=1, progress=False)
    run, sizes = engine.run_variants, []
    monkeypatch.setattr(
        engine, "run_variants", lambda *a, **k: sizes.append((a[1].dim(), a[3])) or run(*a, **k)
    )

    def measured(batch_size):
        sizes.clear()
        return carried_influence(
            model, influence, path="direct", carrier="values", batch_size=batch_size, progress=False
        ), list(sizes)

    (alone, one), (together, many) = measured(1), measured("auto")
    assert {dim for dim, _ in one} == {1}
    assert [dim for dim, _ in many] == [2, 2], "all in one pass, and all unchanged in another"
    assert many[1][1] == 1 < many[0][1], "of which a prompt has one row"
    with monkeypatch.context() as patch:
        sources = carried.LabelEdges.sources

        def still(*a):
            found = sources(*a)
            found.moved[:, :, 1] = 0
            return found

        patch.setattr(carried.LabelEdges, "sources", still)
        nothing = measured("auto")[0].values[:, 1]
    assert nothing.abs().max() < 1e-6, "told against an unchanged row of the same pass"
    monkeypatch.setattr(engine, "ends_wider", lambda _: False)
    apart, every = measured("auto")
    assert every[1] == every[0]
    for other in (together, apart):
        torch.testing.assert_close(other.values, alone.values, atol=1e-5, rtol=0)
    assert (alone.values[0] - alone.values[1]).abs().max() > 1e-3


@pytest.mark.parametrize("later", [False, True])
def test_labels_without_replacements_are_not_run_and_the_others_are_as_ever(tiny, later, monkeypatch):
    """Another choice of demonstrations in every set: one of them, or two."""
    model, _ = tiny("llama", "bridge")
    influence = label_influence(model, shared_prompts(), orders=1, progress=False)
    kept = torch.tensor([[0, 0, 1, 0]] * 3 + [[1, 0, 0, 1]] * 3).bool()
    run_on, ran = carried.run_on, []
    monkeypatch.setattr(carried, "run_on", lambda *a: ran.append(a[1].numel()) or run_on(*a))

    def carried_by(some):
        ran.clear()
        replaced = influence.replaced.masked_fill(~some[None, :, :, None, None], torch.nan)
        given = replace(influence, replaced=replaced)
        found = carried_influence(
            model, given, prompts=range(6), carrier="values", later=later, progress=False
        )
        return found, sum(ran)

    every = torch.ones(len(influence.prompts), 4).bool()
    (whole, all_tokens), (few, tokens) = carried_by(every), carried_by(torch.cat([kept, every[:1]]))
    for one, other in ((few.values, whole.values), (few.gained, whole.gained)):
        assert one.isfinite().all((1, 2)).equal(kept)
        torch.testing.assert_close(one, other.masked_fill(~kept[:, None, None], torch.nan), equal_nan=True)
    assert tokens < all_tokens


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "bloom"])
def test_replaced_labels_run_together_are_what_each_is_alone(tiny, name, monkeypatch):
    """Behind kept keys and values of different lengths; of three labels, two at once even then."""
    model, _ = tiny(name, "bridge")
    influence = label_influence(model, shared_prompts(), orders=1, progress=False)
    found, rows = [], []
    for cost in (0, 10_000):
        monkeypatch.setattr(carried, "cost_of_pass", lambda _, cost=cost: cost)
        run_on, ran = carried.run_on, []
        monkeypatch.setattr(
            carried, "run_on", lambda *a, ran=ran, run=run_on: ran.append(a[1].dim()) or run(*a)
        )
        found.append(carried_influence(model, influence, progress=False))
        rows.append(ran.count(2))
    assert rows[0] > rows[1] > 0, "passes"
    torch.testing.assert_close(found[0].values, found[1].values, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0].together, found[1].together, atol=1e-5, rtol=0)


def test_prompts_that_begin_alike_may_have_other_label_words(tiny):
    """No demonstration shows the second class, whose word differs: prompt for prompt as when each is measured alone."""
    model, _ = tiny("gpt2", "bridge")
    tokens = torch.randint(30, 60, (1, 14), generator=torch.Generator().manual_seed(0)).expand(2, -1).clone()
    at, words = torch.tensor([[3, 7, 11]]).expand(2, -1), torch.tensor([[10, 20], [10, 25]])
    prompts = PromptSet.from_tokens(tokens.scatter(1, at, 10), at, torch.zeros_like(at), words)
    whole = carried_influence(
        model, label_influence(model, prompts, orders=1, progress=False), progress=False
    )
    for number in range(2):
        influence = label_influence(model, prompts.select([number]), orders=1, progress=False)
        alone = carried_influence(model, influence, progress=False)
        torch.testing.assert_close(whole.values[[number]], alone.values, atol=1e-5, rtol=0)
        torch.testing.assert_close(whole.together[[number]], alone.together, atol=1e-5, rtol=0)


def test_the_model_is_left_as_it_was():
    model = build("bridge")
    influence = label_influence(model, shared_prompts(), orders=1, progress=False)
    before = state(model)
    carried_influence(model, influence, progress=False)
    assert same(before, state(model))


def test_what_cannot_be_patched_is_refused(tiny, mini):
    model, _ = tiny("gpt2", "bridge")
    influence = label_influence(model, shared_prompts(), orders=1, progress=False)
    with pytest.raises(ResultError, match="influence must be of this model"):
        carried_influence(mini, influence, progress=False)
    with pytest.raises(ResultError, match="another checkpoint"):
        carried_influence(model, replace(influence, scores=2 * influence.scores), progress=False)
    with pytest.raises(ResultError, match="one of the model's"):
        carried_influence(model, influence, heads=["L9H9"], progress=False)
    with pytest.raises(PromptError, match="offset"):
        carried_influence(model, influence, offsets=(40,), progress=False)
    none = influence.replaced.clone()
    none[:, 1] = torch.nan
    with pytest.raises(PromptError, match="in the 1 prompts picked none could be"):
        carried_influence(model, replace(influence, replaced=none), prompts=[1], progress=False)
    prompts = load_task("topics").prompts(mini, demos=4, count=4, sets=2, seed=0, score_on="sequence")
    whole = label_influence(mini, prompts, progress=False)
    with pytest.raises(PromptError, match="first token"):
        carried_influence(mini, whole, progress=False)
