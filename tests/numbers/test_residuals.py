"""An undefined number is never overlooked."""

from __future__ import annotations

from itertools import permutations
from math import isnan, nan

import pytest
import torch

from icl_kernel_lens.numbers.residuals import gap, largest


def test_the_largest_of_numbers_among_which_one_is_undefined():
    assert all(isnan(largest(order)) for order in permutations([0.0, nan, 1.0]))
    assert largest([0.5, -2.0]) == 0.5
    assert isnan(largest([]))


def test_a_gap_is_relative_to_what_is_expected():
    assert gap(torch.tensor([1.0, 4.0]), torch.tensor([1.0, -5.0])) == pytest.approx(9 / 5)
    assert isnan(gap(torch.tensor([1.0, nan]), torch.tensor([1.0, 2.0])))
