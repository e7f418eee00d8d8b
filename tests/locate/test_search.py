"""Locating heads: what was planted and nothing else; the bundled model; nothing where nothing is."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from interventions.label_readers import label_reader, reader_prompts
from support import has_hooked_transformer, shared_prompts, uneven_prompts

from icl_kernel_lens import (
    Criteria,
    corrupt,
    head_vote,
    in_context_accuracy,
    knock_out,
    load_task,
    locate_heads,
    planted_model,
    read,
)
from icl_kernel_lens.errors import PromptError, ResultError
from icl_kernel_lens.locate import search
from icl_kernel_lens.locate.search import check_sets, split_in_halves
from icl_kernel_lens.results.criteria import KERNEL_CLASSES
from icl_kernel_lens.results.head_ranking import IDENTIFYING, MEASURED_AGAIN, HeadRanking
from icl_kernel_lens.worlds.planted.model import PlantedModel
from icl_kernel_lens.worlds.planted.roles import PlantedHead

SWEEP = (5, 35)
"""Random planted models with kernel heads, small enough for a test; 200 and more are in `benchmarks/locate.py`."""


def planted(seed):
    from benchmarks.planted import random_plan

    # Without norms there is HookedTransformer alone.
    plan = random_plan(seed, norm=None if has_hooked_transformer() else True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return plan, PlantedModel.of(plan)


@pytest.mark.parametrize("seed", SWEEP)
def test_what_was_planted_is_found_and_nothing_else(seed):
    """By the closed form's classes: every head that is clear is of its kind, or too few prompts were there to say."""
    plan, made = planted(seed)
    ranking = locate_heads(made.model, plan.prompts(count=200, seed=1), progress=False)
    assert ranking.influence.kernel_part().found == "real"
    assert set(plan.findable) <= set(ranking.heads)
    assert all(plan.expected[head] in KERNEL_CLASSES for head in ranking.heads)
    wrong = {
        str(head): (plan.all_heads[head].role, found)
        for head, found in ranking.classes.items()
        if plan.clear[head] and found not in (plan.expected[head], "undetermined")
    }
    assert not wrong
    layers = {head.layer for head in ranking.heads}
    assert ranking.band is not None
    assert min(layers) <= ranking.band.first <= ranking.band.last <= max(layers)
    assert {one.heads for one in ranking.joint} >= {(head,) for head in ranking.heads}
    together = max(ranking.joint, key=lambda one: len(one.heads))
    assert set(together.heads) == set(ranking.heads)


@pytest.mark.filterwarnings("ignore:.*demonstration sets a half are few")
def test_where_the_model_has_no_kernel_part_it_is_only_said_which_heads_read_labels():
    """The head reads all labels alike, whatever the test input is."""
    found = locate_heads(label_reader("label", 3), reader_prompts(64, 3), progress=False)
    assert found.influence.kernel_part().found == "none"
    assert found.heads == found.joint == ()
    assert found.of("reads labels") == ((1, 0),)
    assert set(found.classes.values()) == {"reads labels", "neither"}
    assert float(found.columns["transport"][1, 0]) == pytest.approx(1, abs=0.01)
    assert found.band is None
    assert "Of the heads it is said only whether they read labels: 1 do." in repr(found)


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:.*demonstration sets a half are few")
def test_layers_18_to_21_of_gptjs_form():
    """28 layers of 16 heads, rotary on part of the head, attention beside the MLP; as the class there is."""
    places = [(18, 3), (19, 7), (20, 0), (21, 12)]
    heads = [PlantedHead(*place, role="kernel", gain=1.5, bandwidth=0.35) for place in places]
    heads += [
        PlantedHead(12, 5, "unread_kernel"),
        PlantedHead(23, 2, "echo"),
        PlantedHead(9, 9, "word_preference", label=1),
        PlantedHead(4, 4, "last_label"),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        made = planted_model(
            heads, layers=28, heads_per_layer=16, form="parallel", direct=0.3, demos=4, seed=3
        )
    ranking = locate_heads(made.model, made.prompts(count=48, seed=1), offsets=(0,), progress=False)
    assert sorted(ranking.heads) == places
    band = ranking.band
    assert (band.first, band.last) == (18, 21)
    assert band.first_interval == (18, 18)
    assert band.last_interval == (21, 21)
    assert ranking.classes["L12H5"] == "shadow"
    assert ranking.classes[23, 2] == "echo"
    assert ranking.classes[9, 9] == "word preference"
    assert "layers 18–21 of 28 (counted from 0" in repr(ranking)


@pytest.fixture(scope="module")
def topics(mini):
    return load_task("topics").prompts(mini, demos=8, count=128, sets=64, seed=0)


@pytest.fixture(scope="module")
def ranking(mini, topics):
    return locate_heads(mini, topics, progress=False)


@pytest.fixture(scope="module")
def few(mini):
    """Prompts on which locating takes little time; few heads are told there."""
    return load_task("topics").prompts(mini, demos=4, count=40, sets=20, seed=0)


@pytest.fixture(scope="module")
def of_few(mini, few):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return locate_heads(mini, few, progress=False)


def test_the_bundled_models_heads(ranking):
    """One head carries the kernel; its weights go with the label beside an input or with the place, too."""
    assert ranking.heads == ((2, 1),)
    assert ranking.classes[2, 1] == "pair kernel"
    assert ranking.classes[2, 3] == "driver", "it votes for the other label"
    assert (ranking.band.first, ranking.band.last) == (2, 2)
    table = ranking.table().set_index("head")
    row = table.loc["L2H1"]
    assert all(row[name] == 1 for name in ("fits", "looks", "transports", "needed", "no_echo"))
    assert row["with_input"] != 1
    assert row["swap_slope_low"] > -0.5, "above what a head of inputs alone has"
    assert row["votes"] == row["invariant"] == 1
    assert row["fit_low"] > 0.8
    assert row["fit_cut_below_low"] > 0.8
    assert row["fit_p"] < 0.01
    assert row["transport_low"] > 0.4
    assert row["agreement_low"] < row["agreement"] < row["agreement_high"]
    assert row["margin_low"] > 0.2
    assert row["label_shift_high"] < 0.1 < row["word_bound_shift"]
    assert row["logit_diff_drop_low"] > 0.5
    assert row["p_adjusted"] < 1e-4
    assert table.loc["L2H3", "fit_high"] < 0, "against the kernel"
    selected = table[[f"selected_{name}" for name in MEASURED_AGAIN]].any(axis=1)
    assert (table["logit_diff_drop"].isna() == ~selected).all()
    assert "driver" in repr(ranking)
    (alone,) = ranking.joint
    assert alone.heads == ((2, 1),)
    assert alone.value == pytest.approx(row["transport"], rel=1e-4), "the same, measured once more"
    assert ranking.influence.kernel_part().found == "real"
    assert "It is carried by L2H1." in ranking.verdict()


def test_more_measured_than_neither_is_said_of_the_heads_looked_at_alone(ranking):
    """The conditions are of candidates; all others have none of their numbers."""
    looked_at = ~ranking.columns["transport"].isnan()
    wanted = torch.stack([ranking.selected[name] for name in MEASURED_AGAIN]).any(0)
    assert torch.equal(looked_at, wanted), "fewer than are measured at most"
    for name in IDENTIFYING:
        assert ranking.columns[name][~looked_at].isnan().all(), name
    assert not ranking.choosing["fit"].isnan().any(), "of every head"
    assert -1 < ranking.slope_of_model < -0.3


def test_every_number_is_the_reporting_halfs(mini, topics, ranking):
    """Against `head_vote` and `knock_out` on that half, which the splitting names."""
    first, second = split_in_halves(topics.demo_set, seed=0)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(128))
    half = topics.select(second.tolist())
    vote = head_vote(read(mini, half, progress=False))
    torch.testing.assert_close(ranking.columns["agreement"], vote.mean(), equal_nan=True)
    torch.testing.assert_close(ranking.agreement, vote.values, equal_nan=True)
    cut = knock_out(mini, half, heads=[(2, 1)], controls=False, progress=False)
    lost = -cut.effect()[:, 2, 1]
    torch.testing.assert_close(ranking.logit_diff_drop[:, 2, 1], lost, atol=1e-4, rtol=1e-4)
    share = float(lost.sum() / cut.base.sum())
    assert float(ranking.columns["logit_diff_drop"][2, 1]) == pytest.approx(share, rel=1e-4)
    other = head_vote(read(mini, topics.select(first.tolist()), progress=False)).mean()
    assert not torch.equal(other, ranking.columns["agreement"])


def test_saved_and_loaded(ranking, tmp_path):
    path = ranking.save(tmp_path / "ranking.safetensors")
    again = HeadRanking.load(path)
    assert again.table().equals(ranking.table())
    assert again.band == ranking.band
    assert again.heads == ranking.heads
    assert again.joint == ranking.joint
    assert again.influence.verdict() == ranking.influence.verdict()
    assert repr(again) == repr(ranking)
    frame = again.to_dataframe()
    assert len(frame) == 64 * 12
    assert sorted(set(frame["prompt"])) == ranking.numbers.tolist()
    assert frame.loc[13, "base"] == pytest.approx(float(ranking.base[1]))
    assert next(iter(again.choosing_table()["head"])) == "L2H1"


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:.*demonstration sets a half are few")
def test_an_interrupted_search_goes_on(mini, few, of_few, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(search._Cuts, "of_some", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            locate_heads(mini, few, checkpoint=tmp_path, progress=False)
    steps = {"edges", "read", "reread", "accuracy", "choosing", "kernel"}
    assert {p.name for p in tmp_path.iterdir()} == steps
    assert {p.name for p in (tmp_path / "kernel").iterdir()} == {"influence"}
    again = locate_heads(mini, few, checkpoint=tmp_path, progress=False)
    assert again.table().equals(of_few.table())
    assert {p.name for p in tmp_path.iterdir()} == {*steps, "reporting"}
    given = locate_heads(mini, few, evidence=read(mini, few, progress=False), progress=False)
    assert given.table().equals(of_few.table())


@pytest.mark.filterwarnings("ignore:.*demonstration sets a half are few")
def test_what_is_printed_begins_with_whether_there_is_anything_to_explain(mini, few, of_few, monkeypatch):
    """Measured on all prompts, and not again where it is given; not of others."""
    reread = read(mini, corrupt(few, "permute_labels", seed=0), progress=False)
    measured = in_context_accuracy(mini, few, permuted=reread, progress=False)
    assert repr(of_few).startswith(f"{measured.opening()}\nHeadRanking(mini on topics")
    monkeypatch.setattr(search, "in_context_accuracy", None)
    given = locate_heads(mini, few, accuracy=measured, progress=False)
    assert repr(given) == repr(of_few)
    with pytest.raises(ResultError, match="accuracy must be of these 40 prompts"):
        locate_heads(mini, few, accuracy=replace(measured, digest="of others"), progress=False)


def test_heads_are_located_where_the_truth_is_not_known():
    """The model repeats the last label: the first line says so, and that no accuracy was measured."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        made = planted_model(
            [PlantedHead(1, 0, "last_label", gain=6.0)], layers=2, heads_per_layer=2, demos=6
        )
        blind = replace(made.prompts(count=60), test_labels=None)
        found = locate_heads(made.model, blind, progress=False)
    assert repr(found).startswith(
        "Accuracy not measured (the prompts have no true labels); one rule explains nearly all of the answers: the last "
        "label gives 100.0% of them"
    )


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gptj"])
def test_nothing_is_located_where_nothing_is(tiny, architecture):
    """Random weights: attention and answers owe nothing to each other."""
    model, _ = tiny(architecture, "bridge")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        ranking = locate_heads(model, uneven_prompts(count=100, demos=6), progress=False)
    assert ranking.heads == ()
    assert ranking.band is None
    assert "kernel heads: none" in repr(ranking)


def test_shared_demonstrations_stay_whole():
    sets = torch.arange(40).repeat_interleave(torch.arange(40) % 5 + 1)
    with pytest.warns(UserWarning, match="demonstration sets a half are few"):
        first, second = split_in_halves(sets, seed=0)
    assert not set(sets[first].tolist()) & set(sets[second].tolist())
    assert len(sets[first].unique()) == len(sets[second].unique()) == 20
    assert abs(len(first) - len(second)) <= 5


def test_what_cannot_be_located_is_refused(mini, topics, tiny):
    with pytest.raises(
        PromptError, match="at least 8 demonstration sets.*3 sets in all, worth 1 of equal size a half"
    ):
        locate_heads(tiny("gpt2", "bridge")[0], shared_prompts(), progress=False)
    evidence = read(mini, topics.select(range(40)), progress=False)
    with pytest.raises(ResultError, match="a reading of these 128 prompts; it is of 40 others"):
        locate_heads(mini, topics, evidence=evidence, progress=False)
    read_anew = read(mini, topics, progress=False)
    others = replace(read_anew, label_scores=read_anew.label_scores.flip(1))
    with pytest.raises(ResultError, match="label scores differ from the model's"):
        locate_heads(mini, topics, evidence=others, progress=False)
    with pytest.raises(ResultError, match="Criteria.margin must lie between 0 and 1"):
        Criteria(margin=1.5)
    one = replace(topics, score_on="sequence")
    with pytest.raises(PromptError, match="first"):
        locate_heads(mini, one, progress=False)
    apart = load_task("topics").prompts(mini, demos=4, count=64, seed=0)
    with pytest.raises(PromptError, match="only if all have the same label words.*task.prompts"):
        locate_heads(mini, apart, progress=False)


def test_hidden_copies_of_demonstrations_are_seen():
    """The same demonstrations under different numbers are not independent, and are said not to be."""
    prompts = shared_prompts()
    check_sets(prompts)
    with pytest.warns(UserWarning, match="prompts 0 and 1 show the same demonstrations"):
        check_sets(replace(prompts, demo_set=torch.arange(len(prompts))))
