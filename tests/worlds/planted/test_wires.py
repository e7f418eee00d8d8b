"""The tables of what heads read and write agree with that of roles."""

from __future__ import annotations

from icl_kernel_lens.worlds.planted.roles import ROLES
from icl_kernel_lens.worlds.planted.wires import CARRIERS, COPIES, NEEDS, WIRES


def test_every_role_reads_in_one_way():
    assert not set(WIRES) & set(COPIES)
    assert set(ROLES) - set(WIRES) - set(COPIES) == {"uniform", "first_token", "idle"}
    assert {carrier for needed in NEEDS.values() for carrier in needed} == set(CARRIERS) - {"carrier"}


def test_steps_grow_with_the_tokens_between():
    def back(role, separator, trailing):
        return COPIES[role].back(separator=separator, trailing=trailing)

    assert [back("last_label", s, t) for s in (False, True) for t in (False, True)] == [1, 2, 2, 3]
    assert [back("misbinder", s, True) for s in (False, True)] == [3, 4]
    assert back("carrier", True, True) == 1
