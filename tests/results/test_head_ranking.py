"""The ranking's own rules, on numbers made by hand: lookups by name, reasons, comparison, what it must hold."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from charts.located import accuracy, ranking
from results.influence_made import kernel_of, made_influence

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.numbers.correlation import spearman
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.results.criteria import CLASS_MEANS, Band, Criteria
from icl_kernel_lens.results.head_ranking import OF_VALUES, UNSURE


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
    of_carried = {*OF_VALUES}
    unasked = tuple(why for why, *_ in UNSURE.values() if why not in of_carried)
    swapped = {**found.columns, "swap_slope": torch.zeros(4, 3)}
    assert replace(found, columns=swapped).reasons("L1H1") == unasked
    unmeasured = [Reason.SWAP_UNMEASURED if why == Reason.SWAP_UNSURE else why for why in unasked]
    assert found.reasons("L1H1") == tuple(unmeasured), "no more prompts would say it"
    kept = {**swapped, "beyond_half_fit_low": torch.full((4, 3), 0.1)}
    elsewhere = [Reason.READ_ELSEWHERE if why == Reason.ECHO_UNSURE else why for why in unasked]
    assert replace(found, columns=kept).reasons("L1H1") == tuple(elsewhere), "an echo is not ruled out there"
    once = [Reason.LABELS_ONCE if why == Reason.READ_ELSEWHERE else why for why in elsewhere]
    few = replace(found, columns=kept, influence=made_influence(kernel_of(demos=3)))
    assert few.reasons("L1H1") == tuple(once), "no label was shown twice"
    more = replace(found, columns={**swapped, "transport_low": torch.full((4, 3), 1.2)}).reasons("L1H1")
    assert Reason.MORE_THAN_ALL in more
    assert Reason.TRANSPORT_UNSURE not in more
    share = replace(found, columns={**swapped, "kernel_share": torch.ones(4, 3)}).reasons("L1H1")
    assert set(share) - set(unasked) == of_carried
    known = {**found.columns, **dict.fromkeys(UNSURE, torch.ones(4, 3))}
    assert replace(found, columns=known).reasons("L1H1") == (Reason.NO_CLASS_FITS,)
    missing = {**known, "transport": torch.full((4, 3), torch.nan)}
    assert replace(found, columns=missing).reasons("L1H1") == (Reason.NOT_AMONG_MOST,)
    undefined = {**missing, "uneven": torch.ones(4, 3), "transports": torch.full((4, 3), torch.nan)}
    assert replace(found, columns=undefined).reasons("L1H1") == (Reason.TRANSPORT_UNSURE,), (
        "no share is defined"
    )
    part = replace(found, columns={**swapped, "fits": torch.ones(4, 3)})
    assert part.why("L1H1").startswith(
        "L1H1 is undetermined: more prompts must say whether its weights go with swapped inputs; "
        "more prompts must say whether its weights change with the test input; "
    )
    said = found.why("L2H1")
    assert said.startswith(f"L2H1 is a kernel head: {CLASS_MEANS['kernel head']} (fit 0.594,")
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
            "selected must be votes, label_shift, matters, fit, carries; it is votes",
        ),
        (
            {"band": replace(found.band, layers=5, by_layer=(0.0,) * 5)},
            "the band is of 5 layers, and there are 4",
        ),
        (
            {"choosing": {n: x for n, x in found.choosing.items() if n != "fit_p"}},
            "fit, fit_p, label_part, label_part_p_adjusted; it is ",
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
    carried = {(0, 0): 0.01, (1, 2): -0.3, (2, 0): 0.2, (3, 0): 0.1, (3, 1): -0.02}
    found = ranking(classes={(2, 1): "kernel head", **unsure})
    transport = found.columns["transport"].clone()
    for head, value in carried.items():
        transport[head] = value
    found = replace(found, columns={**found.columns, "transport": transport})
    for top in (1, 3, 4, 12):
        rows = found.notable().head(top)
        lines = [line.split()[0] for line in found.describe(top).splitlines() if "more prompts" in line]
        assert lines == list(rows.loc[rows["why"] != "", "head"])
    assert [str(head) for head in found.of("undetermined")] == ["L1H2", "L2H0", "L3H0", "L3H1", "L0H0"]


def test_the_table_begins_with_the_located_heads_then_with_what_is_carried():
    """Kernel heads and pair kernels, whatever they carry; then the largest part, of those without any the largest drop."""
    found = ranking(
        classes={(2, 1): "kernel head", (2, 2): "pair kernel", (0, 1): "driver", (0, 2): "shadow"},
        measured=[(2, 1), (2, 2), (0, 1), (0, 2), (1, 0), (1, 1)],
    )
    changed = {name: found.columns[name].clone() for name in ("transport", "logit_diff_drop")}
    carried = {(2, 1): 0.1, (2, 2): 0.2, (0, 1): -0.9, (0, 2): 0.02}
    for head, value in carried.items():
        changed["transport"][head] = value
    for head, drop in (((1, 0), 0.1), ((1, 1), -0.5)):
        changed["transport"][head], changed["logit_diff_drop"][head] = torch.nan, drop
    found = replace(found, columns={**found.columns, **changed})
    assert list(found.table()["head"][:6]) == ["L2H2", "L2H1", "L0H1", "L0H2", "L1H1", "L1H0"]
    assert found.heads == ((2, 1), (2, 2)), "kernel heads first"
    assert found.of("pair kernel") == ((2, 2),)


def test_the_verdict_says_the_models_kernel_and_who_carries_it(found):
    """Without a kernel part, how many heads read labels, and that alone."""
    assert found.influence.kernel_part().found == "real", "made by hand so"
    assert found.verdict() == f"{found.influence.verdict()} It is carried by L2H1."
    assert found.verdict() in found.describe(3)
    nobody = replace(found, classes=dict.fromkeys(found.classes, "neither"))
    assert nobody.verdict().endswith(" No head is sure to carry it.")
    other = made_influence(later=kernel_of(seed=4), layers=4, heads=3)
    assert other.kernel_part().found == "none", "another kernel in the other order"
    readers = {**found.classes, HeadRef(2, 1): "reads labels", HeadRef(3, 0): "reads labels"}
    blank = replace(found, influence=other, classes=readers)
    assert blank.verdict().endswith(" Of the heads it is said only whether they read labels: 2 do.")
    assert "carried by" not in blank.verdict()
    assert blank.reasons("L1H1") == (Reason.TRANSPORT_UNSURE,), "all that its class goes by"


def test_what_located_heads_carry_together(found):
    """A single head's Shapley value is its share; of two, what both carry beyond the sum."""
    one = found.joint_table()
    assert one["heads"].tolist() == ["L2H1"]
    assert one["shapley"][0] == one["share"][0] == found.joint[0].value
    two = ranking(classes={(2, 1): "kernel head", (2, 2): "pair kernel"})
    table = two.joint_table()
    a, b, both = two.joint
    assert table["heads"].tolist() == ["L2H1", "L2H2", "L2H1 L2H2"]
    assert table["interaction"][2] == pytest.approx(both.value - a.value - b.value)
    assert table["interaction"][:2].isna().all()
    assert table["shapley"][:2].sum() == pytest.approx(both.value)
    assert math.isnan(table["shapley"][2])
    assert two.together() == (
        f"together they carry {both.value:.2f} [{both.low:.2f}, {both.high:.2f}] of the label part "
        f"(alone: L2H1 {a.value:.2f}, L2H2 {b.value:.2f})"
    )
    assert two.together() in repr(two)
    none = ranking(classes={(3, 0): "shadow"})
    assert none.joint_table().empty
    assert "together they carry" not in repr(none)


def test_why_says_how_many_sets_would_tell(found):
    """As many as a share within ± 0.05 needs; nothing where the interval is as narrow as that."""
    wide = {"transport_low": torch.full((4, 3), -0.11), "transport_high": torch.full((4, 3), 0.11)}
    known = dict.fromkeys(set(UNSURE) - {"transports"}, torch.ones(4, 3))
    said = replace(found, columns={**found.columns, **wide, **known}).why("L1H1")
    assert "more prompts must say whether its values carry labels (about 150 sets a half for ± 0.05)" in said
    assert "sets a half" not in replace(found, columns={**found.columns, **known}).why("L1H1")


def test_the_notable_heads_are_those_of_a_class_and_those_that_were_cut(found):
    """Also those that the choosing half did not select; and a report says of them what they are."""
    rows = found.notable().set_index("head")
    assert set(rows.index) == {
        str(head)
        for head, name in found.classes.items()
        if name != "neither" or not found.columns["logit_diff_drop"][head].isnan()
    }


def test_the_map_of_the_fit_is_of_every_head(found):
    """What the choosing half said; a head that has no weights is grey, not 0."""
    fits = found.choosing["fit"].clone()
    fits[0, 1] = float("nan")
    found = replace(found, choosing={**found.choosing, "fit": fits})
    figure = found.fit_map()
    rows = {(row["layer"], row["head"]): row["value"] for row in figure.spec()["datasets"]["heads"]}
    assert len(rows) == fits.numel()
    assert rows.pop((0, 1)) is None
    for (layer, head), value in rows.items():
        assert value == pytest.approx(float(fits[layer, head]), abs=1e-4)
    framed = max(rows, key=rows.__getitem__)
    assert figure.spec()["params"][0]["value"] == [{"layer": framed[0], "head": framed[1]}]
    assert "Fit to the model" in figure.svg()
