"""Table 3 in other worlds: a trial is a world."""

from __future__ import annotations

import torch

from icl_kernel_lens.theory.experiments import other_worlds
from icl_kernel_lens.theory.presets import random_world
from icl_kernel_lens.theory.theorem import measure_theorem


def test_worlds(monkeypatch):
    def small(seed):
        return random_world("small", 2, 3, 6, 2, seed=seed)

    monkeypatch.setattr(other_worlds, "han2025", small)
    found = other_worlds.worlds_of_the_paper((3, 4), (1, 8), trials=12)
    assert found.trials == 2
    for j, options in enumerate(({}, other_worlds.LETTER)):
        same = measure_theorem(small(4), (1, 8), trials=12, **options)
        torch.testing.assert_close(found.values["l1"][1, :, j], same.mean("l1"))
        torch.testing.assert_close(found.values["agree"][1, :, j], same.agreement())
    assert "the paper's 1.322 lies" in found.findings[0]
    assert "2 worlds" in repr(found)
