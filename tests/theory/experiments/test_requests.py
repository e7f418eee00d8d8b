"""What experiments refuse."""

from __future__ import annotations

import pytest

from icl_kernel_lens import theory as e


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("retrieve_similar", {"sizes": (2, 4)}, "sizes must fall"),
        ("retrieve_similar", {"draws": 1}, "draws must be at least 2"),
        ("representative", {"sets": 2}, "sets must be at least 3"),
        ("softmax_kernels", {"temperatures": (0.0,)}, "temperatures be above 0"),
        ("softmax_kernels", {"counts": (4, 2)}, "counts must rise"),
        ("worlds_of_the_paper", {"seeds": (1,)}, "worlds must be at least 2"),
    ],
)
def test_bad_requests_are_refused(world_of, name, options, message):
    world = () if name == "worlds_of_the_paper" else (world_of("block"),)
    with pytest.raises(e.TheoryError, match=message):
        getattr(e, name)(*world, **options)
