"""Small worlds, built once: other numbers of tasks, states, symbols and lengths; with and without leaks."""

from __future__ import annotations

from functools import cache

import pytest

from icl_kernel_lens import theory as e
from icl_kernel_lens.theory.presets import preset


@pytest.fixture(scope="session")
def world_of():
    return cache(preset)


@pytest.fixture(params=["block", "leaky", "short", "long", "sparse"])
def world(request, world_of):
    return world_of(request.param)


@pytest.fixture(scope="session")
def han(world_of):
    return world_of("han2025")


@pytest.fixture(scope="session")
def ran(world_of):
    """Each experiment once, small."""
    world = world_of("sparse")
    return {
        "retrieve_similar": e.retrieve_similar(world, (8, 3), trials=6, draws=5, seed=1),
        "output_format": e.output_format(world, 6, trials=12, seed=1),
        "representative": e.representative(world, 6, trials=6, sets=4, seed=1),
        "label_noise": e.label_noise(world, (0.0, 0.5, 1.0), 6, trials=12, seed=1),
        "softmax_kernels": e.softmax_kernels(world, (2, 6), temperatures=(0.1, 1.0, 1e6), trials=12, seed=1),
    }
