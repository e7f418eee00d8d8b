"""Subspaces of the residual stream: what is written is what is read, behind a norm and without one."""

from __future__ import annotations

import pytest
import torch

from icl_kernel_lens.models.planted_build import EPS
from icl_kernel_lens.worlds.planted.stream import Stream


def test_subspaces_lie_side_by_side():
    stream = Stream(3, paired=True)
    places = [at for part in stream.subspaces.values() for at in range(part.start, part.stop)]
    assert places == list(range(stream.size))
    assert stream["label"].stop - stream["label"].start == 3
    assert stream.coordinates == 2 * stream.size
    assert Stream(3, paired=False).coordinates == stream.size


@pytest.mark.parametrize("paired", [True, False])
def test_what_is_written_is_read(paired):
    stream, g = Stream(3, paired=paired), torch.Generator().manual_seed(0)
    width = stream.coordinates + 5
    meaning = torch.randn(4, stream.size, generator=g, dtype=torch.float64)
    meaning[:, stream["const"]] = 1
    wanted = torch.randn(stream.size, 6, generator=g, dtype=torch.float64)
    x, read = stream.write(meaning, width), stream.read(wanted, width)
    assert (x[:, stream.coordinates :] == 0).all()
    if paired:
        assert x.double().mean(-1).abs().max() < 1e-9, "a norm subtracts nothing"
        x = torch.nn.functional.layer_norm(x, (width,), eps=EPS)
    torch.testing.assert_close((x @ read).double(), meaning @ wanted, atol=2e-3, rtol=1e-3)
