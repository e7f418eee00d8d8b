"""That types and shapes are checked at all: at the first calls in every test, of functions, methods, closures, classes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from beartype import beartype
from first_calls import CALLS, jaxtyped
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from icl_kernel_lens.numbers.influence import fit
from icl_kernel_lens.run.progress import Work

checked = jaxtyped(typechecker=beartype)
WRONG = torch.zeros(2, 3)


@checked
def twice(row: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    return 2 * row


@checked
def longer(row: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    return torch.cat([row, row])


def closure():
    @checked
    def inside(row: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        return row

    return inside


@checked
@dataclasses.dataclass(frozen=True)
class Row:
    values: Float[Tensor, "n"]


@pytest.mark.parametrize("again", range(2))
def test_the_first_calls_of_every_test_are_checked(again):
    for _ in range(CALLS - 1):
        twice(WRONG[0])
    with pytest.raises(TypeCheckError):
        twice(WRONG)
    assert twice(WRONG).shape == (2, 3), "these were its first calls"


def test_what_comes_back_is_checked():
    with pytest.raises(TypeCheckError):
        longer(WRONG[0])


def test_closures_of_one_text_count_together():
    for _ in range(CALLS):
        with pytest.raises(TypeCheckError):
            closure()(WRONG)
    assert closure()(WRONG) is WRONG
    assert not hasattr(closure(), "__wrapped__"), "not wrapped any more"


def test_fields_of_dataclasses_are_checked():
    with pytest.raises(TypeCheckError):
        Row(WRONG)
    assert Row(WRONG[0]).values.shape == (3,)


def test_the_package_is_checked():
    """A function and the fields of a dataclass that take what they are given without looking."""
    with pytest.raises(TypeCheckError):
        fit(object(), object())
    with pytest.raises(TypeCheckError):
        Work("much")
