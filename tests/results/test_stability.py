"""Rankings side by side: overlaps, correlations and bands, by hand and on the bundled model."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

from icl_kernel_lens import (
    load_task,
)
from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.locate.search import stability
from icl_kernel_lens.prompts.corruptions import corrupt
from icl_kernel_lens.results.criteria import Band
from icl_kernel_lens.results.stability import Stability


@pytest.fixture(scope="module")
def measured(mini):
    """Twice on few prompts: enough for every number, not for a class."""
    prompts = load_task("topics").prompts(mini, demos=4, count=40, sets=20, seed=0)
    reordered = corrupt(prompts, "reorder_demos", seed=1, model=mini)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*demonstration sets a half are few")
        return stability(mini, {"as drawn": prompts, "reordered": reordered}, offsets=(0,), progress=False)


@pytest.fixture(scope="module")
def found(measured):
    """The same with the head located that more prompts locate, and its band."""

    def located(ranking):
        classes = {**dict.fromkeys(ranking.classes, "neither"), HeadRef(2, 1): "pair kernel"}
        band = Band(2, 2, 1.0, 0.9, (2, 2), (2, 2), 3, (0.0, 0.0, 0.6))
        return replace(ranking, classes=classes, band=band)

    return Stability({name: located(ranking) for name, ranking in measured.rankings.items()})


def test_orders_agree_on_the_bundled_model(measured, found):
    """Both halves of both: the same head loses most when cut, and fits best."""
    for ranking in measured.rankings.values():
        for column in (ranking.choosing["logit_diff_drop"], ranking.choosing["fit"], ranking.columns["fit"]):
            assert int(column.nan_to_num(-1).argmax()) == 2 * 4 + 1
    table = found.table()
    assert table["head"][0] == "L2H1"
    assert int(table["kernel_head_in"][0]) == 2
    pair = found.pairs().iloc[0]
    assert pair["overlap"] == 1
    assert pair["depth_overlap"] == pytest.approx(1)
    assert pair["logit_diff_drop_rank_correlation"] > 0.3
    assert "L2H1" in repr(found)
    for name, ranking in found.rankings.items():
        assert f"  {name}: {ranking.accuracy.verdict()}" in repr(found)
    spec = found.figure().spec()
    assert "2/2" not in str(spec)
    assert "1/1" in str(spec)
    assert f"{pair['logit_diff_drop_rank_correlation']:.2f}" in str(spec)


def test_comparisons_are_saved_and_loaded(found, tmp_path):
    again = Stability.load(found.save(tmp_path / "both.safetensors"))
    assert again.pairs().equals(found.pairs())
    assert list(again.rankings) == ["as drawn", "reordered"]
    assert len(again.to_dataframe()) == 2 * 20 * 12
    assert set(again.to_dataframe()["ranking"]) == {"as drawn", "reordered"}


def test_comparisons_by_hand(found):
    """Rank correlation against scipy, overlaps by counting, models of another shape by their bands alone."""
    from scipy.stats import spearmanr

    a, b = found.rankings.values()
    pair = a.compare(b)
    margin = [r.columns["margin"].flatten().numpy() for r in (a, b)]
    assert pair.correlation["margin"] == pytest.approx(spearmanr(*margin).statistic)
    assert (pair.both, pair.only_first, pair.only_second) == (((2, 1),), (), ())
    other = replace(b, classes={**b.classes, HeadRef(2, 1): "shadow", HeadRef(1, 0): "kernel head"})
    pair = a.compare(other)
    assert (pair.both, pair.only_first, pair.only_second) == ((), ((2, 1),), ((1, 0),))
    assert pair.overlap == 0
    whole = torch.zeros(len(b.base), 6, 4)
    wide = replace(
        b,
        classes={HeadRef(layer, head): "neither" for layer in range(6) for head in range(4)},
        columns=dict.fromkeys(b.columns, whole[0]),
        choosing=dict.fromkeys(b.choosing, whole[0]),
        selected={name: whole[0].bool() for name in b.selected},
        agreement=whole,
        logit_diff_drop=whole,
        strongest=("label_prior",) * 24,
        run=replace(b.run, layers=6),
        band=replace(b.band, first=2, last=4, layers=6, by_layer=(0.0,) * 6),
    )
    pair = a.compare(wide)
    assert not pair.same_shape
    assert pair.overlap != pair.overlap, "NaN"
    # Layer 2 of 3 is the last third of the depth; layers 2 to 4 of 6 are the middle half: a sixth in common.
    assert pair.depth_overlap == pytest.approx((1 / 6) / (5 / 6 - 1 / 3 + 1 / 3 - 1 / 6))
    assert "do not correspond" in str(pair)
    assert a.compare(replace(b, band=None)).depth_overlap != 0


def test_one_ranking_is_no_comparison(mini, found):
    with pytest.raises(ResultError, match="at least two sets of prompts"):
        stability(mini, {})
    with pytest.raises(ResultError, match="at least two rankings"):
        Stability({"a": found.rankings["as drawn"]})
