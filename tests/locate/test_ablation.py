"""Necessity and sufficiency: against single knock-outs, the plain definition of the mean, and planted heads."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch
from interventions.label_readers import label_reader, reader_prompts
from support import uneven_prompts

from icl_kernel_lens import ablation_curves, knock_out, planted_model
from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.interventions.cuts import cutting
from icl_kernel_lens.interventions.engine import change_rows
from icl_kernel_lens.locate.ablation import draw_sets, mean_read
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.results.ablation_curves import AblationCurves
from icl_kernel_lens.worlds.planted.roles import PlantedHead


def test_curves_are_knock_outs(tiny):
    """Each point is one knock-out of a set of heads; the first is no cut at all, the floor is all of them."""
    model, _ = tiny("qwen3", "bridge")
    prompts = uneven_prompts(count=4)
    order = [(2, 1), (0, 3), (1, 0)]
    every = [(layer, head) for layer in range(3) for head in range(4)]
    curves = ablation_curves(
        model, prompts, order, cuts=("zeroed", "renormalised"), random_sets=5, progress=False
    )
    for cut in curves.cuts:
        for k in (0, 2):
            sets = [order[:k], [head for head in every if head not in order[:k]]]
            drawn = [] if k == 0 else [curves.sets[k - 1, 2].nonzero().tolist()]
            drawn += [[list(head) for head in every if list(head) not in drawn[0]]] if drawn else []
            for at, (side, members) in enumerate(
                zip(("necessity", "sufficiency") * 2, sets + drawn, strict=False)
            ):
                if not members:
                    expected = curves.base
                else:
                    effects = knock_out(
                        model,
                        prompts,
                        heads=[[tuple(head) for head in members]],
                        renormalise=cut == "renormalised",
                        controls=False,
                        progress=False,
                    )
                    expected = effects.answers()[:, 0]
                if at < 2:
                    found = curves.answers[side][curves.cuts.index(cut), :, k]
                else:
                    found = curves.random[side][curves.cuts.index(cut), :, k - 1, 2]
                assert torch.equal(found, expected), (cut, side, k, at)
    own = (curves.base == prompts.test_labels).float().mean()
    assert curves.ceiling() == pytest.approx(float(own))
    assert curves.ceiling(against="model") == 1


def test_mean_replaced_edges(tiny):
    """z' = z − Σ_i A_i v_i + its mean, computed from the bridge's own cache."""
    model, _ = tiny("gpt2", "bridge")
    prompts, read = uneven_prompts(count=3), []
    for number in range(3):
        length = int(prompts.lengths[number])
        _, cache = model.run_with_cache(prompts.tokens[number : number + 1, :length])
        at, places = int(prompts.answer_pos[number]), prompts.label_pos[number]
        layers = []
        for layer in range(3):
            weights = cache[f"blocks.{layer}.attn.hook_pattern"][0, :, at, places]
            values = cache[f"blocks.{layer}.attn.hook_v"][0, places]
            layers.append(torch.einsum("hk,khd->hd", weights, values))
        read.append(torch.stack(layers))
    expected = torch.stack(read).mean(0)
    mean = mean_read(as_adapter(model), prompts, None, progress=False)
    torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-4)

    effects = change_rows(
        model,
        prompts,
        cutting(prompts, "answer_reads_labels", [[0, 1, 2]], renormalise=False, seed=0),
        name="test",
        title="mean",
        heads=["L1H2"],
        settings={},
        checkpoint=None,
        progress=False,
        added=lambda row: mean[row.layer, row.heads],
    )
    number = 2
    length, at = int(prompts.lengths[number]), int(prompts.answer_pos[number])

    def replace_read(z, hook):
        z = z.clone()
        z[0, at, 2] += expected[1, 2] - read[number][1, 2]
        return z

    logits = model.run_with_hooks(
        prompts.tokens[number : number + 1, :length],
        fwd_hooks=[("blocks.1.attn.hook_z", replace_read)],
        return_type="logits",
    )
    torch.testing.assert_close(
        effects.label_scores[number, 1, 2],
        logits[0, at, prompts.label_tokens[number]],
        atol=1e-5,
        rtol=1e-5,
    )


def test_random_sets_match_layers_where_they_can():
    there = torch.ones(4, 8, dtype=torch.bool)
    there[0] = False
    order = [HeadRef(1, 0), HeadRef(1, 1), HeadRef(3, 5)]
    sets, matched = draw_sets(order, there, 100, seed=1)
    assert sets.shape == (3, 100, 4, 8)
    for k in range(1, 4):
        wanted = Counter(head.layer for head in order[:k])
        for mask, match in zip(sets[k - 1], matched[k - 1], strict=True):
            members = [HeadRef(*head) for head in mask.nonzero().tolist()]
            assert len(members) == k
            assert not set(members) & set(order[:k])
            assert all(there[head] for head in members)
            assert bool(match) == (Counter(head.layer for head in members) == wanted)
    assert 0.25 < float(matched[0].float().mean()) < 0.4, "layer 1 has seven of the 23 others"
    assert matched[2].all(), "fifteen pairs of six, times seven: enough to match a hundred times"
    again, _ = draw_sets(order, there, 100, seed=1)
    assert torch.equal(sets, again)
    assert len(sets[1].flatten(1).unique(dim=0)) == 100


@pytest.fixture(scope="module")
def planted():
    """Two planted heads that share the vote, one that is not read; and prompts."""
    heads = [PlantedHead(1, 0, "kernel", gain=4.0), PlantedHead(2, 1, "kernel", gain=3.0)]
    heads += [PlantedHead(2, 2, "unread_kernel")]
    made = planted_model(heads, layers=3, heads_per_layer=3, kind="TransformerBridge", demos=8)
    return made.model, made.prompts(count=60, seed=5)


@pytest.fixture(scope="module")
def curves(planted):
    return ablation_curves(*planted, [(1, 0), (2, 1)], random_sets=10, progress=False)


def test_planted_heads_are_needed_and_enough(planted, curves):
    value, low, high = curves.sufficiency()
    assert float(value[2]) == pytest.approx(1.0)
    assert float(value[0]) == 0
    assert (low <= value).all()
    assert (value <= high).all()
    right = curves.right("necessity").mean(0)
    # Without both heads the labels are as good as tied, like without any edge: rounding decides which one is answered.
    every = [(layer, head) for layer in range(3) for head in range(3)]
    cut = knock_out(*planted, heads=[[(1, 0), (2, 1)], every], controls=False, progress=False)
    assert cut.label_scores is not None
    assert float(cut.label_scores.diff(dim=-1).abs().max()) < 1e-3
    assert float(right[2]) < 0.75
    assert float(right[0]) == curves.ceiling() > 0.9
    assert curves.floor() < 0.75
    drawn = curves.random_right("necessity").mean(0)[1]
    assert float(drawn.median()) > float(right[2]) + 0.2
    table = curves.table()
    assert list(table["k"]) == [0, 1, 2] * 2
    assert table.loc[1, "random_sets"] == 8, "eight other heads, drawn ten times"
    assert re.search(
        r"\d+ of the \d+ different random sets are drawn from all layers", " ".join(curves.notes())
    )


def test_curves_are_saved_and_drawn(curves, tmp_path):
    path = curves.save(tmp_path / "curves.safetensors")
    again = AblationCurves.load(path)
    assert again.table().equals(curves.table())
    assert repr(again) == repr(curves)
    assert again.figure().png()[:4] == b"\x89PNG"


def test_what_has_no_curve_is_refused(tiny, curves):
    from dataclasses import replace

    model, _ = tiny("gpt2", "bridge")
    prompts = uneven_prompts(count=2)
    for heads, more, reason in (
        ([], {}, "there must be heads to cut"),
        ([(0, 1), (0, 1)], {}, "named once"),
        ([(9, 0)], {}, "layer"),
        ([(0, 0)], {"random_sets": 0}, "at least 1"),
        ([(0, 0)], {"cuts": ()}, "each once"),
        (
            [(layer, head) for layer in range(3) for head in range(3)],
            {},
            "compared with random sets of as many others",
        ),
    ):
        with pytest.raises(ResultError, match=reason):
            ablation_curves(model, prompts, heads, progress=False, **more)
    flat = {side: a[..., :1].expand_as(a).clone() for side, a in curves.answers.items()}
    flat["sufficiency"] = flat["necessity"].clone()
    same = replace(curves, answers=flat)
    with pytest.raises(ResultError, match="the ceiling must lie above the floor"):
        same.sufficiency()
    assert "the answer row is not where the labels enter" in " ".join(same.notes())
    with pytest.raises(ResultError, match="no true labels"):
        replace(curves, truth=None).right(against="truth")
    with pytest.raises(ResultError, match="were run with the cuts renormalised"):
        curves.right(cut="mean")


def test_a_head_that_reads_behind_the_label_is_cut_there():
    """Its edges to labels are nothing to it; those to the next token are all."""
    model, prompts = label_reader("after"), reader_prompts()
    at_label, behind = (
        ablation_curves(
            model, prompts, [(1, 0)], offsets=offsets, cuts=("zeroed",), random_sets=2, progress=False
        )
        for offsets in ((0,), (1,))
    )
    assert float(at_label.right(against="model")[:, 1].mean()) == 1
    assert float(behind.right(against="model")[:, 1].mean()) < 0.8
    assert behind.settings["offsets"] == "(1,)"
    mean = mean_read(as_adapter(model), prompts, None, False, (1,))
    assert mean[1, 0].abs().max() > 0.1
    assert mean_read(as_adapter(model), prompts, None, False)[1, 0].abs().max() < 0.01
