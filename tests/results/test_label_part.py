"""The label part by hand: shares, and the smallest set that is found on one half and told from the other."""

from __future__ import annotations

import pytest
import torch

from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.numbers.groups import first_half
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.results.label_part import LabelPart, name_of

SETS = ((-1,), (0,), (1,), (-1, 0), (0, 1), (-1, 0, 1))
DEMO_SET = torch.arange(16) // 2
WHOLE = 2 + torch.randn(16, generator=torch.Generator().manual_seed(0)) / 4
PART = LabelPart(WHOLE, DEMO_SET)
HALF = first_half(DEMO_SET, seed=3)


def left(lost: list[float], kept: list[float]) -> dict:
    """t under each set's cut, and alone, where these shares of it are lost and kept in every prompt."""
    return {
        "necessity": WHOLE[:, None] * (1 - torch.tensor(lost)),
        "sufficiency": WHOLE[:, None] * torch.tensor(kept),
    }


def smallest(given: dict, lose: float = 0.8, keep: float = 0.5, part: LabelPart = PART):
    return part.smallest_set(given, SETS, lose=lose, keep=keep, seed=3)


def test_shares():
    cut = torch.rand(16, 2, 3, generator=torch.Generator().manual_seed(1))
    lost, kept = (PART.share(side, cut) for side in ("necessity", "sufficiency"))
    expected = cut.double().sum(0) / WHOLE.double().sum()
    torch.testing.assert_close(kept[0], expected)
    torch.testing.assert_close(lost[0], 1 - expected)
    torch.testing.assert_close(lost[2] - lost[1], kept[2] - kept[1])
    assert (kept[1] < kept[0]).all()
    some = PART.share("sufficiency", cut, half=HALF)[0]
    torch.testing.assert_close(some, cut[HALF].double().sum(0) / WHOLE[HALF].double().sum())
    mean = PART.mean()
    assert mean.value == pytest.approx(float(WHOLE.double().mean()))
    assert mean.low < mean.value < mean.high


def test_the_smallest_set_that_does():
    found = smallest(left([0.1, 0.5, 0.9, 0.6, 1.0, 1.0], [0.0, 0.5, 0.6, 0.5, 1.0, 1.0]))
    assert (found.offsets, found.confirmed) == ((1,), True)
    assert found.lost is not None
    assert found.lost.value == pytest.approx(0.9)
    pair = smallest(left([0.9, 0.7, 0.3, 0.9, 0.9, 1.0], [0.4, 0.7, 0.3, 0.6, 0.7, 1.0]))
    assert pair.offsets == (0, 1), "of two pairs the one that keeps more"
    assert "offset 0, +1 loses at least 80% when cut and alone keeps at least 50%: on the other" in pair.why
    none = smallest(left([0.1, 0.7, 0.3, 0.7, 0.7, 0.7], [0.2] * 6))
    assert none.offsets is None
    assert "no set of the offsets -1, 0, +1 loses at least 80%" in none.why
    assert "offset 0 loses 0.70 and keeps 0.20" in none.why, "the first of those that help most"


def test_the_other_half_decides():
    given = left([0.1, 0.9, 0.1, 0.9, 0.9, 0.9], [0.1, 0.9, 0.1, 0.9, 0.9, 0.9])
    given["necessity"][~HALF] = WHOLE[~HALF, None]
    refuted = smallest(given)
    assert refuted.offsets is None
    assert "on the half of the sets that it was found on; on the other half it loses 0.00" in refuted.why
    given = left([0.1] * 6, [0.1] * 6)
    given["necessity"][~HALF], given["sufficiency"][~HALF] = 0, WHOLE[~HALF, None]
    assert "no set of the offsets" in smallest(given).why, "what only the other half shows is not looked for"


def test_without_a_label_part():
    centred, alone = LabelPart(WHOLE - WHOLE.mean(), DEMO_SET), LabelPart(WHOLE, DEMO_SET * 0)
    given = left([0.9] * 6, [0.9] * 6)
    for part, reason in ((centred, Reason.NO_LABEL_PART), (alone, Reason.NO_LABEL_INTERVAL)):
        assert part.undefined is reason
        assert part.share("necessity", given["necessity"])[0].isnan().all()
        assert str(reason) in smallest(given, part=part).why
    assert LabelPart(-WHOLE, DEMO_SET).undefined is None


def test_words_and_refusals():
    assert name_of((-1, 0, 12)) == "-1, 0, +12"
    for wrong in ({"lose": 80.0}, {"keep": 0.0}):
        with pytest.raises(ResultError, match=r"For 80 %, pass 0\.8"):
            smallest(left([1.0] * 6, [1.0] * 6), **wrong)
