"""The ranking's own rules, on numbers made by hand: lookups by name, reasons, comparison, what it must hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from charts.located import accuracy, ranking

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.numbers.correlation import spearman
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.results.criteria import Band, Criteria


@pytest.fixture(scope="module")
def found():
    return ranking(
        classes={(2, 1): "kernel head", (3, 0): "shadow", (1, 1): "undetermined", (0, 0): "neither"}
    )


def test_heads_are_found_by_pair_and_by_name(found):
    for head in ("L2H1", (2, 1), HeadRef(2, 1)):
        assert found.classes[head] == "kernel head"
        assert found.reasons(head) == ()
    assert found.heads == ((2, 1),)
    for wrong in ("L9H0", (9, 0)):
        with pytest.raises(ResultError, match="these heads run from L0H0 to L3H2; there is no L9H0"):
            found.classes[wrong]
    with pytest.raises(ResultError, match="a head is a pair"):
        found.why("the best one")


def test_it_begins_with_whether_there_is_anything_to_explain(found):
    hurt = replace(found, accuracy=accuracy(before=0.9, after=0.3))
    assert repr(hurt).startswith("The demonstrations hurt: accuracy falls from 90.0% to 30.0% with them, ")
    assert repr(hurt).splitlines()[2].startswith("HeadRanking(")
    assert not hurt.describe(3).startswith("The demonstrations"), "where it was said before"


def test_why_is_a_reason(found):
    assert found.reasons("L0H1") == (Reason.NOT_SINGLED_OUT,)
    assert found.reasons("L0H0") == ()
    assert found.reasons("L1H1") == (Reason.VOTES_UNSURE, Reason.INPUTS_UNSURE, Reason.MATTERS_UNSURE)
    sure = {name: torch.ones(4, 3) for name in ("votes", "invariant", "matters")}
    known = replace(found, columns={**found.columns, **sure})
    assert known.reasons("L1H1") == (Reason.SHIFT_UNEXPLAINED,)
    part = replace(found, columns={**found.columns, "votes": torch.ones(4, 3)})
    assert part.why("L1H1").startswith(
        "L1H1 is undetermined: more prompts must say whether its weights follow the inputs; "
        "more prompts must say whether the answer needs it"
    )
    said = found.why("L2H1")
    assert said.startswith(
        "L2H1 is a kernel head: votes, its weights follow the inputs, and the answer needs its label edges (agreement 0.900,"
    )
    assert "nan" not in said, "what was not measured is not said"
    for head, name in found.classes.items():
        assert name in found.why(head), "every class is said in words"
    table = found.table().set_index("head")
    assert table.loc["L2H1", "why"] == ""
    assert table.loc["L0H1", "why"] == "the choosing half gave no reason to look"


def test_what_a_ranking_must_hold(found):
    few = dict(list(found.classes.items())[:-1])
    for change, words in (
        ({"classes": few}, r"classes must be of all 4 × 3 heads, in order; they are of 11"),
        ({"classes": dict(reversed(found.classes.items()))}, "in order"),
        ({"strongest": ()}, "there are 12 heads and 0"),
        ({"columns": {**found.columns, "more": found.columns["p"]}}, "columns must be those of COLUMNS"),
        ({"choosing": {}}, "choosing holds p-values"),
        (
            {"selected": {"votes": found.selected["votes"]}},
            "selected must be votes, label_shift, matters; it is votes",
        ),
        (
            {"band": replace(found.band, layers=5, by_layer=(0.0,) * 5)},
            "the band is of 5 layers, and there are 4",
        ),
        ({"numbers": found.numbers * 0}, "numbers must tell the prompts apart"),
    ):
        with pytest.raises(ResultError, match=words):
            replace(found, **change)


def test_comparison_by_hand(found):
    other = ranking(classes={(2, 1): "kernel head", (3, 1): "kernel head"})
    pair = found.compare(other)
    assert (pair.both, pair.only_first, pair.only_second) == (((2, 1),), (), ((3, 1),))
    assert pair.overlap == 0.5
    assert pair.correlation["margin"] == spearman(found.columns["margin"], other.columns["margin"])
    assert pair.correlation["logit_diff_drop"] != pair.correlation["logit_diff_drop"], "NaN: nothing measured"
    small = found.compare(ranking(layers=3, classes={(2, 1): "kernel head"}))
    assert not small.same_shape
    assert "do not correspond" in str(small)


def test_the_long_form_has_the_prompts_numbers(found):
    frame = found.to_dataframe()
    assert list(frame.columns) == ["prompt", "layer", "head", "class", "agreement", "logit_diff_drop", "base"]
    row = frame.iloc[12 + 7]
    assert (row["prompt"], row["layer"], row["head"], row["class"]) == (2, 2, 1, "kernel head")
    assert row["logit_diff_drop"] == found.logit_diff_drop[1, 2, 1].item()


def test_bands_and_criteria_are_checked():
    band = {"share": 0.9, "wanted": 0.9, "layers": 3, "by_layer": (0.0, 0.1, 0.9)}
    whole = {"first": 1, "last": 2, "first_interval": (1, 2), "last_interval": (2, 2)}
    assert Band(**whole, **band).depth == (0.5, 1.0)
    for change in ({"first": -1}, {"last": 3}, {"first": 2, "last": 1}, {"first_interval": (2, 1)}):
        with pytest.raises(ResultError, match="runs upward within layers 0…2"):
            Band(**{**whole, **change}, **band)
    with pytest.raises(ResultError, match="a band of 3 layers has 2 effects"):
        Band(**whole, **{**band, "by_layer": (0.0, 1.0)})
    with pytest.raises(ResultError, match="Criteria.label_shift must lie between 0 and 1; got nan"):
        Criteria(label_shift=float("nan"))


def test_reasons_stand_in_the_order_of_the_table_for_its_rows():
    """A reason for each row that has one, none without a row; several undetermined heads, cut to a few rows."""
    unsure = dict.fromkeys([(0, 0), (1, 2), (2, 0), (3, 0), (3, 1)], "undetermined")
    drop = {(0, 0): 0.01, (1, 2): -0.3, (2, 0): 0.2, (3, 0): 0.1, (3, 1): -0.02}
    found = ranking(classes={(2, 1): "kernel head", **unsure})
    drops = found.columns["logit_diff_drop"].clone()
    for head, value in drop.items():
        drops[head] = value
    found = replace(found, columns={**found.columns, "logit_diff_drop": drops})
    for top in (1, 3, 4, 12):
        rows = found.notable().head(top)
        lines = [line.split()[0] for line in found.describe(top).splitlines() if "more prompts" in line]
        assert lines == list(rows.loc[rows["why"] != "", "head"])
    assert [str(head) for head in found.of("undetermined")] == ["L1H2", "L2H0", "L3H0", "L3H1", "L0H0"]


def test_why_says_how_many_sets_would_tell(found):
    """As many as a margin within ± 0.05 needs; nothing where the interval is as narrow as that."""
    wide = {"margin_low": torch.full((4, 3), -0.11), "margin_high": torch.full((4, 3), 0.11)}
    known = {name: torch.ones(4, 3) for name in ("invariant", "matters")}
    said = replace(found, columns={**found.columns, **wide, **known}).why("L1H1")
    assert "more prompts must say whether it votes (about 150 sets a half for ± 0.05)" in said
    assert "sets a half" not in replace(found, columns={**found.columns, **known}).why("L1H1")


def test_the_notable_heads_are_those_of_a_class_and_those_that_were_cut(found):
    """Also those that the choosing half did not select; and a report says of them what they are."""
    rows = found.notable().set_index("head")
    assert set(rows.index) == {
        str(head)
        for head, name in found.classes.items()
        if name != "neither" or not found.columns["logit_diff_drop"][head].isnan()
    }
