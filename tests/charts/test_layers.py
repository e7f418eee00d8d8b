"""The layer profile: a dot a head, the best of each layer, and what chance would reach."""

from __future__ import annotations

import torch
from charts.hostile import HOSTILE, SNEAKY, has_live_markup, texts
from charts.located import run_info

from icl_kernel_lens.evidence.small import small_evidence
from icl_kernel_lens.results.head_scores import HeadScores
from icl_kernel_lens.scores.vote import head_vote


def scores(values, *, null=0.3, attention=None, control=0.1, **names) -> HeadScores:
    values = torch.tensor(values)
    shape = values.shape
    companions = {} if null is None else {"null_95": torch.full(shape, null)}
    if attention is not None:
        companions["label_attention"] = torch.tensor(attention)
    return HeadScores(
        name="influence_fit",
        title="fit of weights",
        unit="correlation",
        values=values.expand(6, *shape) + torch.linspace(-0.01, 0.01, 6)[:, None, None],
        controls={} if control is None else {"exchanged_inputs": torch.full((6, *shape), control)},
        companions=companions,
        reasons={},
        demo_set=torch.arange(6) // 2,
        run=run_info(*shape, **names),
    )


def rows(figure, key):
    return [row for data in figure.spec()["datasets"].values() for row in data if key in row]


def line(figure):
    return {row["layer"]: row["value"] for row in rows(figure, "layer") if set(row) == {"layer", "value"}}


def named(figure):
    return {word for word in texts(figure.svg()) if word.startswith("L") and "H" in word}


def test_every_head_is_a_dot_and_the_best_of_each_layer_is_on_the_line():
    figure = scores([[0.1, 0.2], [0.9, 0.5], [0.4, float("nan")]]).layer_figure()
    dots = {row["name"]: round(row["value"], 4) for row in rows(figure, "low")}
    assert dots == {"L0H0": 0.1, "L0H1": 0.2, "L1H0": 0.9, "L1H1": 0.5, "L2H0": 0.4}
    assert {layer: round(value, 4) for layer, value in line(figure).items()} == {0: 0.2, 1: 0.9, 2: 0.4}
    crosses = [row for row in rows(figure, "series") if row["series"] == "its strongest control"]
    assert {round(row["value"], 4) for row in crosses} == {0.1}
    assert "L1H0: exchanged inputs" in {row["name"] for row in crosses}
    assert named(figure) == {"L1H0", "L2H0"}, "above chance"
    words = " ".join(texts(figure.svg()))
    assert "Fit of weights, by layer" in words
    assert "dashed: 0.300, which the best of all heads exceeds by chance in 5 %" in words
    assert [row["value"] for row in rows(figure, "value") if set(row) == {"value"}].count(0.3) == 1


def test_heads_that_hardly_read_the_labels_are_no_best():
    found = scores([[0.9, 0.2], [0.8, 0.7], [0.4, 0.5]], attention=[[0.01, 0.5], [0.0, 0.01], [0.5, 0.5]])
    figure = found.layer_figure()
    assert line(figure)[1] is None, "the line is broken"
    assert round(line(figure)[0], 4) == 0.2
    grey = [row for row in rows(figure, "series") if "hardly" in row["series"]]
    assert {row["name"] for row in grey} == {"L0H0", "L1H0", "L1H1"}
    assert round(line(found.layer_figure(least_attention=0.0))[1], 4) == 0.8


def test_any_score_has_one():
    """Without a null, without controls, with heads that could not be scored."""
    figure = head_vote(small_evidence()).layer_figure()
    assert "dashed" not in " ".join(texts(figure.svg()))
    assert line(figure) == {0: 1.0, 1: 0.5}
    bare = scores([[0.1, 0.2]], null=None, control=None).layer_figure()
    assert "its strongest control" not in texts(bare.svg())
    nothing = scores([[float("nan")] * 2], null=float("nan"), control=None)
    assert nothing.layer_figure().png().startswith(b"\x89PNG")


def test_names_are_text(tmp_path):
    figure = scores([[0.1, 0.2]], model=SNEAKY, task=HOSTILE).layer_figure()
    for suffix in (".html", ".svg"):
        assert not has_live_markup(figure.save(tmp_path / f"x{suffix}").read_text())
