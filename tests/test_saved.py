"""Any saved result is read back without naming its class."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from results.examples import EXAMPLES

import icl_kernel_lens
from icl_kernel_lens.errors import LoadError
from icl_kernel_lens.results import codec
from icl_kernel_lens.results.base import Result
from icl_kernel_lens.saved import load

ROOT = Path(icl_kernel_lens.__file__).parents[1]


def test_every_class_of_the_package_is_known_and_has_an_example():
    known = {name for name, kind in Result.kinds.items() if kind.__module__.startswith("icl_kernel_lens.")}
    assert known == {name.split()[0] for name in EXAMPLES}


def test_the_reader_knows_every_class_by_itself():
    """Whatever else was imported before, as in a program that only loads."""
    code = "from icl_kernel_lens.saved import load; from icl_kernel_lens.results.base import Result; print(*Result.kinds)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {name.split()[0] for name in EXAMPLES} <= set(out.stdout.split())


def test_what_cannot_be_loaded(tmp_path):
    with pytest.raises(LoadError, match=r"is a folder.*icl-kernel-lens show"):
        load(tmp_path)
    path = codec.write(tmp_path / "x.safetensors", codec.Stored("Shard", {}, {"a": torch.ones(1)}))
    with pytest.raises(LoadError, match="holds a Shard, and a Result was asked for"):
        load(path)
