"""Roles: every one has its words, and a head's own numbers stand before the role's."""

from __future__ import annotations

from math import isnan
from typing import get_args

from icl_kernel_lens.worlds.planted.roles import KERNELS, ROLES, HeadRole, PlantedHead
from icl_kernel_lens.worlds.planted.wires import SUNK


def test_every_role_is_in_the_table():
    assert tuple(ROLES) == get_args(HeadRole)
    assert set(KERNELS) < set(SUNK) < set(ROLES)


def test_a_heads_numbers_are_its_own_or_its_roles():
    assert (PlantedHead(1, 2, "kernel").strength, PlantedHead(1, 2, "kernel").width) == (3.0, 0.35)
    own = PlantedHead(1, 2, "kernel", gain=0.0, bandwidth=2.0)
    assert (own.strength, own.width) == (0.0, 2.0), "a gain of 0 is a gain"
    assert PlantedHead(1, 2, "unread_kernel").strength == 0
    assert isnan(PlantedHead(1, 2, "driver").width)
    assert str(own.ref) == "L1H2"
