"""The result object: summaries, intervals, frames, and files that say what is wrong with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import uneven_prompts

from icl_kernel_lens import HeadRef, HeadScores, head_vote, read
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.numbers.intervals import cluster_bootstrap
from icl_kernel_lens.reasons import Reason


@pytest.fixture(scope="module")
def scores(request):
    model, _ = request.getfixturevalue("tiny")("llama")
    return head_vote(read(model, uneven_prompts(count=24, demos=5), progress=False))


def test_above_control_uses_the_strongest_of_each_head(scores):
    means = {name: control.expand_as(scores.values).nanmean(0) for name, control in scores.controls.items()}
    strongest, names = scores.strongest_control()
    for layer, head in np.ndindex(3, 4):
        best = max(means, key=lambda name: means[name][layer, head].item())
        assert strongest[layer, head] == means[best][layer, head]
        assert means[names[layer][head]][layer, head] == means[best][layer, head]
    torch.testing.assert_close(scores.above_control(), scores.values.mean(0) - strongest)
    table = scores.table()
    assert len(table) == 12
    reads = table["label_attention"] >= 0.05
    assert table.loc[reads, "above_control_low"].is_monotonic_decreasing
    assert (table["above_control_low"] <= table["above_control"]).all()
    assert table["head"][0] == str(scores.best())


def test_controls_are_averaged_over_the_prompts_the_head_was_scored_on(scores):
    values = scores.values.clone()
    values[:10, 1, 2] = float("nan")
    part = replace(scores, values=values)
    prior = scores.controls["label_prior"][:, 0, 0]
    assert part.control_means()["label_prior"][1, 2] == prior[10:].mean()
    assert part.control_means()["label_prior"][0, 0] == prior.mean()


def test_long_form(scores):
    frame = scores.to_dataframe()
    assert list(frame.columns[:4]) == ["prompt", "layer", "head", "value"]
    assert len(frame) == 24 * 12
    row = frame[(frame["prompt"] == 7) & (frame["layer"] == 2) & (frame["head"] == 3)].iloc[0]
    assert row["value"] == scores.values[7, 2, 3].item()
    assert row["shuffled_labels"] == scores.controls["shuffled_labels"][7, 2, 3].item()
    assert row["label_prior"] == scores.controls["label_prior"][7, 0, 0].item()


def test_the_interval_goes_by_the_unit(scores):
    """Fractions of prompts get the exact interval, other units the bootstrap, both as scipy's on independent prompts."""
    from scipy.stats import binomtest, bootstrap

    votes = (scores.values > 0.5).float()
    low, high = replace(scores, values=votes).interval(0.9)
    exact = binomtest(int(votes[:, 1, 1].sum()), 24).proportion_ci(0.9)
    assert low[1, 1].item() == pytest.approx(exact.low, abs=1e-6)
    assert high[1, 1].item() == pytest.approx(exact.high, abs=1e-6)
    low, high = replace(scores, unit="logits").interval(0.9, draws=20000)
    reference = bootstrap(
        (scores.values[:, 1, 1].numpy(),),
        np.mean,
        confidence_level=0.9,
        n_resamples=20000,
        method="percentile",
        rng=0,
    )
    assert low[1, 1].item() == pytest.approx(reference.confidence_interval.low, abs=0.02)
    assert high[1, 1].item() == pytest.approx(reference.confidence_interval.high, abs=0.02)


def made(scores, agreement, attention, control=0.5, prompts=40):
    """Scores of one layer: how often each head agrees, and how much attention it pays the labels."""
    order = torch.arange(prompts)[:, None, None]
    share = torch.tensor([agreement])
    return replace(
        scores,
        values=(order < (share * prompts).round()).float(),
        controls={"label_prior": (order < control * prompts).float()},
        companions={"label_attention": torch.tensor([attention])},
        reasons={},
        demo_set=torch.arange(prompts),
        shown=None,
    )


def test_a_head_that_hardly_reads_the_labels_is_not_the_best(scores):
    found = made(scores, [0.7, 0.95, 0.8, 0.4], [0.3, 0.004, 0.06, 0.9])
    assert found.best() == HeadRef(0, 2)
    assert list(found.top(4)["head"]) == ["L0H2", "L0H0", "L0H3", "L0H1"]
    assert found.best(least_attention=0.1) == HeadRef(0, 0)
    assert found.best(least_attention=0.001) == HeadRef(0, 1)
    spec = found.figure().spec()
    assert [row["reads"] for row in spec["datasets"]["heads"]] == [True, False, True, True]
    assert spec["title"]["subtitle"][-1] == "grey: attention on labels below 0.05, where a vote is noise"
    (pick,) = [p for p in spec["params"] if p["name"] == "pick"]
    assert pick["value"] == [{"layer": 0, "head": 2}]


def test_the_best_is_the_surest_and_not_the_largest(scores):
    """A head scored on few prompts is far above its control, and not surely."""
    found = made(scores, [0.8, 1.0], [0.5, 0.5])
    few = found.values.clone()
    few[4:, 0, 1] = float("nan")
    found = replace(found, values=few, controls={"label_prior": torch.zeros(40, 1, 1)}, reasons={})
    assert found.mean()[0, 1] > found.mean()[0, 0]
    assert found.best() == HeadRef(0, 0)
    low = found.surely_above()
    assert low[0, 1] < low[0, 0] < found.above_control()[0, 0]


def test_the_interval_covers_and_clusters_widen_it():
    """95 % intervals over independent prompts cover about 95 %; copies of a prompt add no certainty."""
    generator = torch.Generator().manual_seed(0)
    data = (torch.rand(100, 500, generator=generator) < 0.7).float()
    low, high = cluster_bootstrap(data, torch.arange(100), draws=1000)
    assert 0.92 < ((low <= 0.7) & (high >= 0.7)).float().mean() < 0.98
    copied, sets = data.repeat_interleave(4, 0), torch.arange(100).repeat_interleave(4)
    torch.testing.assert_close(cluster_bootstrap(copied, sets, draws=1000), (low, high))
    naive_low, naive_high = cluster_bootstrap(copied, torch.arange(400), draws=1000)
    assert ((naive_high - naive_low) < 0.6 * (high - low)).float().mean() > 0.95


def test_the_interval_leaves_nan_out():
    """And says nothing where all that is left agrees, or is of one set."""
    nan = float("nan")
    data = torch.tensor(
        [[1.0, 0.0, 1.0, 0.5], [1.0, nan, 0.0, nan], [1.0, 1.0, 1.0, nan], [1.0, nan, 0.0, nan]]
    )
    low, high = cluster_bootstrap(data, torch.arange(4))
    assert (low[1], high[1], low[2], high[2]) == (0, 1, 0, 1)
    assert torch.stack([low, high])[:, [0, 3]].isnan().all()
    many = torch.ones(40, 1)
    assert cluster_bootstrap(many, torch.arange(40)) == (torch.ones(1), torch.ones(1))
    many[0] = torch.inf
    assert not torch.cat(cluster_bootstrap(many, torch.arange(40))).isfinite().any()


def test_a_single_demonstration_set_gives_no_interval():
    low, high = cluster_bootstrap(torch.rand(30, 2), torch.zeros(30, dtype=torch.long))
    assert low.isnan().all()
    assert high.isnan().all()


def test_an_impossible_level_is_refused(scores):
    with pytest.raises(
        ResultError, match=r"level must lie between 0 and 1; got 95\.0\. For 95 %, pass 0\.95"
    ):
        scores.interval(95.0)


def test_scores_survive_a_file(scores, tmp_path):
    back = HeadScores.load(scores.save(tmp_path / "s.safetensors"))
    assert back.run == scores.run
    assert dict(back.settings) == dict(scores.settings)
    assert back.shown.texts == scores.shown.texts
    assert list(back.controls) == list(scores.controls)
    torch.testing.assert_close(back.values, scores.values, equal_nan=True)
    assert back.table().equals(scores.table())
    assert back.figure().spec() == scores.figure().spec()


def test_names_and_shown_demonstrations_must_fit(scores):
    """A constructed result is checked as a loaded one is."""
    shown = scores.shown
    for change, words in (
        ({"companions": {"low": scores.mean()}}, "names of their own; not low"),
        ({"controls": {"head_vote": scores.values}}, "names of their own; not head_vote"),
        ({"title": ""}, "must say something"),
        ({"reasons": {Reason.NO_TOKEN: -1}}, "reasons count cells"),
        ({"shown": replace(shown, texts=shown.texts[:1])}, "must have their label words and texts"),
        ({"shown": replace(shown, answers=shown.answers + 9)}, "their texts and label words"),
    ):
        with pytest.raises(ResultError, match=words):
            replace(scores, **change)
