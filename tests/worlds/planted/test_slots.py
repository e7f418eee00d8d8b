"""A head has the dimensions that its plan needs, and no more."""

from __future__ import annotations

from worlds.planted.plans import one

from icl_kernel_lens.worlds.planted.roles import PlantedHead
from icl_kernel_lens.worlds.planted.slots import BIAS, least_d_head


def test_dimensions_are_those_needed():
    assert least_d_head(one(PlantedHead(1, 0, "kernel"))) == BIAS + 1
    assert least_d_head(one(PlantedHead(1, 0, "pair_kernel"))) == BIAS + 3
    assert least_d_head(one(PlantedHead(1, 0, "kernel", swing=1.0))) == BIAS + 3
    assert least_d_head(one(PlantedHead(1, 0, "kernel", echo_share=0.5), labels=3)) == BIAS + 6
    assert least_d_head(one(PlantedHead(1, 0, "kernel"), labels=8, trailing=True)) == 20
