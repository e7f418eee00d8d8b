"""The rules of locating can be read without torch, and refuse what is no share."""

from __future__ import annotations

import subprocess
import sys

import pytest

from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.results.criteria import Criteria


def test_it_needs_no_torch():
    script = "import sys, icl_kernel_lens.results.criteria; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("wrong", [0.0, 1.0, -0.1])
def test_what_is_no_share_is_refused(wrong):
    with pytest.raises(ResultError, match=r"Criteria\.effect must lie between 0 and 1"):
        Criteria(effect=wrong)
