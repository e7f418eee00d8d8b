"""Label coverage by hand: shares against sums, the smallest set, what is undefined, what it must hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from results.examples import label_coverage

from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.numbers.groups import first_half
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.results.label_coverage import CUTS
from icl_kernel_lens.results.label_part import name_of


def test_shares_are_ratios_of_sums():
    found = label_coverage()
    (lost, lost_low, lost_high), (kept, kept_low, kept_high) = found.lost(), found.kept()
    for cut in range(2):
        for at in range(len(found.sets)):
            cuts = found.left["necessity"][:, cut, at].double().sum()
            keeps = found.left["sufficiency"][:, cut, at].double().sum()
            assert float(lost[cut, at]) == pytest.approx(float(1 - cuts / found.part.double().sum()))
            assert float(kept[cut, at]) == pytest.approx(float(keeps / found.part.double().sum()))
    assert (lost_low < lost).all()
    assert (kept > kept_low).all()
    narrow = found.lost(level=0.5)
    assert (narrow[1] > lost_low).all()
    assert (narrow[2] < lost_high).all()
    assert (kept_high > kept).all()
    table = found.table()
    assert len(table) == len(CUTS) * len(found.sets)
    row = table[(table["cut"] == "renormalised") & (table["offsets"] == "0, +1")].iloc[0]
    assert row["lost"] == pytest.approx(float(lost[1, 5]))
    assert row["kept_low"] == pytest.approx(float(kept_low[1, 5]))
    assert row["t_cut"] == pytest.approx(float(found.left["necessity"][:, 1, 5].mean()))


def test_the_smallest_set_is_found_on_one_half_and_told_from_the_other():
    found = label_coverage()
    smallest = found.smallest_set()
    assert smallest.offsets == (0, 1)
    assert smallest.confirmed
    other = ~first_half(found.demo_set, seed=found.seed)
    left, whole = found.left["necessity"][other, 0, 5].double(), found.part[other].double()
    assert smallest.lost is not None
    assert smallest.lost.value == pytest.approx(float(1 - left.sum() / whole.sum()))
    assert found.smallest_set(lose=0.5).offsets == (0,)
    strict = found.smallest_set(lose=0.99)
    assert strict.offsets is None
    assert "no set of the offsets -1, 0, +1 loses at least 99%" in strict.why
    assert found.test_input is not None
    assert found.test_input.smallest_set(cut="renormalised").offsets == (0,)
    with pytest.raises(ResultError, match="above 0 and at most 1"):
        found.smallest_set(lose=80)


def test_a_set_that_fails_on_the_other_half_is_none():
    found = label_coverage()
    other = ~first_half(found.demo_set, seed=found.seed)
    left = {side: x.clone() for side, x in found.left.items()}
    left["necessity"][other, :, 5] = found.part[other, None]
    left["necessity"][other, :, 3] = found.part[other, None]
    refuted = replace(found, left=left).smallest_set()
    assert refuted.offsets is None
    assert "on the half of the sets that it was found on; on the other half it loses 0.00" in refuted.why
    unsure = {side: x.clone() for side, x in found.left.items()}
    unsure["necessity"][:, :, 5] += torch.tensor([0.3, -0.3]).repeat_interleave(2).repeat(3)[:, None]
    wide = replace(found, left=unsure).smallest_set()
    assert (wide.offsets, wide.confirmed) == ((0, 1), False)
    assert "draw more demonstration sets" in wide.why


def test_undefined_shares():
    found = label_coverage()
    centred = replace(found, part=found.part - found.part.mean())
    assert centred.undefined is Reason.NO_LABEL_PART
    first = repr(centred).splitlines()[0]
    assert "shares are undefined: the interval of the label part reaches 0" in first
    assert 'against="model"' in first
    assert "reaches 0" in centred.smallest_set().why
    assert centred.lost()[0].isnan().all()
    assert centred.table()["kept"].isna().all()
    assert replace(found, demo_set=found.demo_set * 0).undefined is Reason.NO_LABEL_INTERVAL
    assert replace(found, part=-found.part).undefined is None, "labels may speak against the truth"


def test_layers_have_a_table_of_their_own():
    found = label_coverage()
    table = found.layer_table()
    assert len(table) == 2 * 3 * 2
    row = table[(table["cut"] == "zeroed") & (table["offset"] == 1) & (table["layer"] == 1)].iloc[0]
    left = found.by_layer["necessity"][:, 0, 2, 1].double()
    assert row["lost"] == pytest.approx(float(1 - left.sum() / found.part.double().sum()))
    with pytest.raises(ResultError, match="layers=True"):
        replace(found, by_layer={}).layer_table()


def test_names_and_long_form():
    assert name_of((-1, 0, 12)) == "-1, 0, +12"
    frame = label_coverage().to_dataframe()
    assert {"prompt", "cut", "edges", "part", "left.necessity", "left.sufficiency"} <= set(frame)
    assert set(frame["edges"]) == {"-1", "0", "+1", "-1, 0, +1", "-1, 0", "0, +1"}


def test_what_it_must_hold():
    found = label_coverage()
    for change, words in (
        ({"offsets": (0, -1, 1)}, "ascending order"),
        ({"sets": found.sets[::-1]}, "sets must be each offset, all of them"),
        ({"sets": (*found.sets[:-1], (0, 7))}, "sets must be each offset"),
        ({"left": {"necessity": found.left["necessity"]}}, "left must be of necessity and sufficiency"),
        ({"by_layer": {"necessity": found.by_layer["necessity"]}}, "by_layer of both or neither"),
        ({"left": {side: x[:, :1] for side, x in found.left.items()}, "by_layer": {}}, "for each of 2 cuts"),
        ({"part": found.part * torch.nan}, "must be finite"),
        ({"lose": 0.0}, "shares above 0"),
        ({"reference": found.reference - 1}, "reference classes"),
        ({"rows": "test_input"}, "under test_input"),
        ({"test_input": found}, "under test_input"),
    ):
        with pytest.raises(ResultError, match=words):
            replace(found, **change)
