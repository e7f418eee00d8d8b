"""What is said of carried influence: shares of sums by hand, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from icl_kernel_lens import carried_influence, label_influence, load_task
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.numbers.influence import pair_part


@pytest.fixture(scope="module")
def carried(mini):
    prompts = load_task("topics").prompts(mini, demos=4, count=16, sets=8, seed=0)
    return carried_influence(mini, label_influence(mini, prompts, progress=False), progress=False)


def test_shares_are_ratios_of_sums(carried):
    whole = carried.influence.double()
    share, _, _ = carried.share()
    expected = float((carried.of("L2H1").double() * whole).sum() / whole.square().sum())
    assert float(share[2, 1]) == pytest.approx(expected)
    one, two = (pair_part(x.double(), carried.demo_set) for x in (carried.of((2, 1)), whole))
    pair = float((one * two).sum() / two.square().sum())
    assert float(carried.share("pair")[0][2, 1]) == pytest.approx(pair)
    wide, narrow = (carried.share("pair", level=level) for level in (0.95, 0.5))
    assert wide[1][2, 1] < narrow[1][2, 1] < narrow[2][2, 1] < wide[2][2, 1]
    together = float((carried.together.double() * whole).sum() / whole.square().sum())
    assert carried.coverage().value == pytest.approx(together)


def test_what_new_labels_gain_is_a_share_of_what_is_carried(carried):
    """Half of it with two labels; and a ratio of sums of pair parts, whatever was gained."""
    assert carried.gained_share()[0][2, 1] == pytest.approx(0.5, abs=1e-6)
    gained = carried.values * torch.linspace(0.1, 0.4, len(carried.values))[:, None, None, None]
    value, low, high = replace(carried, gained=gained).gained_share()
    parts = [pair_part(x[:, 2, 1].double(), carried.demo_set) for x in (gained, carried.values)]
    own = pair_part(carried.influence.double(), carried.demo_set)
    expected = float((parts[0] * own).sum() / (parts[1] * own).sum())
    assert float(value[2, 1]) == pytest.approx(expected)
    assert low[2, 1] < value[2, 1] < high[2, 1]


def test_what_all_of_it_carries_has_a_share_of_one(carried):
    values = carried.influence[:, None, None].expand_as(carried.values).clone()
    values[:, 0, 0] = torch.nan
    found = replace(carried, values=values, together=carried.influence)
    share, _low, _high = found.share()
    assert share[0, 0].isnan()
    assert float(share[1, 1]) == pytest.approx(1)
    assert found.coverage("pair").value == pytest.approx(1)
    assert len(found.table()) == values.shape[1] * values.shape[2] - 1
    assert "L0H0" not in set(found.table()["head"])


def test_what_is_not_whole_is_refused(carried):
    with pytest.raises(ResultError, match="a head must be there"):
        replace(carried, values=carried.values * torch.nan)
    with pytest.raises(ResultError, match="what new labels gain"):
        replace(carried, gained=carried.gained * torch.nan)
    with pytest.raises(ResultError, match="ascending order"):
        replace(carried, offsets=())
    with pytest.raises(ResultError, match="wherever the influence is"):
        replace(carried, together=carried.together * torch.nan)
