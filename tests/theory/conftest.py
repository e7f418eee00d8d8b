"""Small worlds, built once: other numbers of tasks, states, symbols and lengths; with and without leaks."""

from __future__ import annotations

from functools import cache

import pytest


@pytest.fixture(scope="session")
def world_of():
    from icl_kernel_lens.theory import preset

    return cache(preset)


@pytest.fixture(params=["block", "leaky", "short", "long", "sparse"])
def world(request, world_of):
    return world_of(request.param)


@pytest.fixture(scope="session")
def han(world_of):
    return world_of("han2025")
