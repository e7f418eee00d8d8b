"""A seed, and what is drawn from it."""

from __future__ import annotations

import torch

from icl_kernel_lens.numbers.draws import generator


def test_every_seed_gives_a_generator():
    for seed in (0, -1, 2**63, 2**70 + 1, -(2**70)):
        first, again = (torch.rand(3, generator=generator(seed)) for _ in range(2))
        assert torch.equal(first, again)
    assert torch.equal(
        torch.rand(3, generator=generator(2, 5)), torch.rand(3, generator=generator(2 * 1_000_003 + 5))
    )
