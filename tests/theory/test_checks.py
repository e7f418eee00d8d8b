"""What must hold before anything is computed: where it does not, the first place is named."""

from __future__ import annotations

import pytest
import torch

from icl_kernel_lens.theory.checks import TheoryError, at_least, probabilities, rising, tokens_in_range


def test_probabilities_are_copied_in_float64():
    given = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    found = probabilities(given, "transition", 2)
    assert found.dtype == torch.float64
    found[0, 0] = 9
    assert given[0, 0] == 0.5


@pytest.mark.parametrize(
    ("values", "dims", "message"),
    [
        ([[0.5, 0.5]], 1, r"p must be a vector with at least one entry; its shape is \(1, 2\)"),
        ([], 1, r"its shape is \(0,\)"),
        ([0.5, float("nan"), float("inf")], 1, r"2 entries are not, the first at \(1,\)"),
        ([[0.5, 0.5], [1.5, -0.5]], 2, r"must not be negative; at \(1, 1\) it is -0.5"),
        ([0.5, 0.4], 1, "p must sum to 1; it sums to 0.9"),
        ([[0.5, 0.5], [0.5, 0.6], [0.1, 0.1]], 2, r"row 1 sums to 1.1 \(2 of 3 rows are off\)"),
        ([1 / 3] * 2 + [1 / 3 + 1e-8], 1, "p must sum to 1"),
    ],
)
def test_what_is_no_probability_is_refused(values, dims, message):
    with pytest.raises(TheoryError, match=message) as caught:
        probabilities(values, "p", dims)
    assert caught.value.code == "theory-numbers"


def test_tokens_are_symbols():
    tokens_in_range(torch.tensor([[0, 2]]), 3)
    for tokens, where in (([[0, 3]], r"at \(0, 1\) stands 3"), ([[1, 0], [-1, 0]], r"at \(1, 0\) stands -1")):
        with pytest.raises(TheoryError, match=f"between 0 and 2; {where}"):
            tokens_in_range(torch.tensor(tokens), 3)
    with pytest.raises(TheoryError, match="at least one sequence") as caught:
        tokens_in_range(torch.zeros(2, 0, dtype=torch.long), 3)
    assert caught.value.code == "theory-prompts"


def test_sizes_and_order():
    at_least(2, 2, "trials")
    with pytest.raises(TheoryError, match="trials must be at least 2; got 1") as caught:
        at_least(1, 2, "trials")
    assert caught.value.code == "number-range"
    assert rising((1, 4, 8))
    assert not rising((1, 4, 4))
    assert not rising((4, 1))
