"""What curves must hold, and what they call their places; made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from charts.located import curves

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.errors import ResultError


@pytest.fixture(scope="module")
def found():
    return curves(draws=4, cuts=("zeroed", "mean"))


def test_what_curves_must_hold(found):
    answers, random = dict(found.answers), dict(found.random)
    for change, words in (
        ({"answers": {"necessity": answers["necessity"]}}, "must be of necessity and sufficiency"),
        ({"heads": ()}, "heads must be some, each once"),
        ({"heads": (HeadRef(0, 0),) * 2}, "heads must be some, each once"),
        ({"heads": (HeadRef(0, 0), HeadRef(6, 0))}, "heads must be among 6 × 8"),
        ({"heads": found.heads[:1]}, r"an answer for each of 2 cuts and 0…1 heads"),
        ({"cuts": ("zeroed", "zeroed")}, "cuts must be different"),
        ({"base": found.base - 1}, "base must be labels; one is -1"),
        ({"labels": 1}, "answers must be among 1 labels"),
        (
            {"random": {side: a + 5 for side, a in random.items()}},
            "answers must be among 2 labels; they run from 5",
        ),
    ):
        with pytest.raises(ResultError, match=words):
            replace(found, **change)
    unanswered = {side: a.clone().fill_(-1) for side, a in answers.items()}
    assert replace(found, answers=unanswered).ceiling() == 0, "nothing is left of the rows: not right"


def test_places_have_names(found):
    data = found.to_xarray()
    one = data["answers.necessity"].sel(cut="mean", step="none")
    assert torch.equal(torch.from_numpy(one.values), found.answers["necessity"][1, :, 0])
    assert data["k"].values.tolist() == ["L0H0", "L1H0"]
    frame = found.to_dataframe()
    assert list(frame.columns[:5]) == ["cut", "prompt", "step", "answers.necessity", "answers.sufficiency"]
