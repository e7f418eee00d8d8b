"""Heads, poolings and references by name: what is taken, and what is refused."""

from __future__ import annotations

import pytest
from support import unchecked

from icl_kernel_lens import HeadRef
from icl_kernel_lens.axes import check_pooling, check_reference
from icl_kernel_lens.errors import ResultError


def test_head_refs_print_as_the_field_writes_them():
    assert str(HeadRef(3, 7)) == repr(HeadRef(3, 7)) == "L3H7"


def test_a_head_is_a_name_or_a_pair():
    assert HeadRef.of("L10H2") == HeadRef.of((10, 2)) == HeadRef(10, 2)


@pytest.mark.parametrize("name", ["10.2", "L10", "l1h2", " L1H2", "L1H2 ", "L-1H2", (1, 2, 3)])
def test_what_is_no_head_is_no_head_ref(name):
    taken = unchecked(HeadRef.of.__func__)
    with pytest.raises(ResultError, match="both from 0; got") as caught:
        taken(HeadRef, name)
    assert caught.value.code == "head-name"


def test_words_that_are_no_choice_are_refused():
    check_pooling("span_max")
    check_reference("truth")
    for check, message in ((check_pooling, "label, label_sum, .*; got 'gold'"), (check_reference, "'gold'")):
        with pytest.raises(ResultError, match=message) as caught:
            check("gold")
        assert caught.value.code == "unknown-choice"
