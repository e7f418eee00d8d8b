"""The line by least squares against scipy, where numbers are missing and where nothing varies."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import linregress

from icl_kernel_lens.numbers.correlation import line_through


def test_the_line_is_scipys():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 20, 3, generator=generator)
    y = 2 * x - 3 + y / 2
    x[3, 0], y[5, 0] = torch.nan, torch.nan
    x[:, 2] = 1
    found = line_through(x, y)
    for cell in (0, 1):
        there = ~(x[:, cell].isnan() | y[:, cell].isnan())
        expected = linregress(x[there, cell].double().numpy(), y[there, cell].double().numpy())
        assert float(found.slope[cell]) == pytest.approx(expected.slope, rel=1e-9)
        assert float(found.r2[cell]) == pytest.approx(expected.rvalue**2, rel=1e-9)
    assert found.slope[2].isnan()
    assert found.r2[2].isnan()
