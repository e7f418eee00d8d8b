"""Any saved result is read back without naming its class."""

from __future__ import annotations

import pytest
import torch
from results.examples import EXAMPLES

from icl_kernel_lens.errors import LoadError
from icl_kernel_lens.results import codec
from icl_kernel_lens.results.base import Result
from icl_kernel_lens.saved import load


def test_every_class_of_the_package_is_known_and_has_an_example():
    known = {name for name, kind in Result.kinds.items() if kind.__module__.startswith("icl_kernel_lens.")}
    assert known == {name.split()[0] for name in EXAMPLES}


def test_what_cannot_be_loaded(tmp_path):
    with pytest.raises(LoadError, match=r"is a folder.*icl-kernel-lens show"):
        load(tmp_path)
    path = codec.write(tmp_path / "x.safetensors", codec.Stored("Shard", {}, {"a": torch.ones(1)}))
    with pytest.raises(LoadError, match="holds a Shard, and a Result was asked for"):
        load(path)
