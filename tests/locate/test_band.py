"""The band: against brute force, and what it does where there is nothing to hold."""

from __future__ import annotations

import pytest
import torch

from icl_kernel_lens.locate.band import find_band, smallest_run


def test_smallest_run_by_brute_force():
    effect = torch.rand(40, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
    for share in (0.5, 0.9, 0.999):
        found = smallest_run(effect, share)
        for row, (first, last) in zip(effect, found.tolist(), strict=True):
            runs = [
                (b - a, -float(row[a : b + 1].sum()), a, b)
                for a in range(7)
                for b in range(a, 7)
                if row[a : b + 1].sum() >= share * row.sum()
            ]
            assert (first, last) == min(runs)[2:]
    assert smallest_run(torch.tensor([[0.0, -1.0, 0.5]]), 0.9).tolist() == [[-1, -1]]


def test_the_band_and_its_intervals():
    g = torch.Generator().manual_seed(0)
    drop = torch.zeros(120, 28)
    drop[:, 18:22] = 1 + 0.2 * torch.randn(120, 4, generator=g)
    base = torch.full((120,), 5.0)
    band = find_band(drop, base, torch.arange(120), 0.9)
    assert (band.first, band.last) == (18, 21)
    assert band.first_interval == (18, 18)
    assert band.last_interval == (21, 21)
    assert band.depth == pytest.approx((18 / 27, 21 / 27))
    assert band.by_layer[18] == pytest.approx(float(drop[:, 18].mean()) / 5)
    assert band.share == pytest.approx(1.0)
    text = str(band)
    assert "layers 18–21 of 28" in text
    assert "counted from 0" in text
    # A layer that holds about what is asked for is in in some draws and out in others.
    drop[:, 22] = 0.42 * torch.rand(120, generator=g) * 2
    unsure = find_band(drop, base, torch.arange(120) // 10, 0.9)
    assert unsure.last_interval == (21, 22)
    assert find_band(torch.zeros(120, 28), base, torch.arange(120), 0.9) is None
