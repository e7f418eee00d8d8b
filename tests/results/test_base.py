"""What every result can do by its declaration: checks, files, long form, xarray."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from jaxtyping import Float, Int
from results.examples import EXAMPLES
from torch import Tensor

from icl_kernel_lens import axes, fields
from icl_kernel_lens.errors import LoadError, ResultError
from icl_kernel_lens.results import codec
from icl_kernel_lens.results.base import Result, long_form
from icl_kernel_lens.saved import load

DEFINED = re.findall(r"^    (\w+) +\S", axes.__doc__ or "", re.MULTILINE)
"""The axes that `axes.py` defines."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_files_of_every_class(name, tmp_path):
    """Saved, loaded under its own class and under any, it is the same in every bit; another class refuses it."""
    made = EXAMPLES[name]()
    kind = type(made).__name__
    assert kind == name.split()[0]
    path = made.save(tmp_path / "x.safetensors")
    for back in (type(made).load(path), load(path)):
        assert type(back) is type(made)
        assert fields.digest(*fields.encode(back)) == fields.digest(*fields.encode(made))
        assert repr(back) == repr(made)
    other = Result.kinds["Saliency" if kind != "Saliency" else "HeadScores"]
    with pytest.raises(LoadError, match=f"holds a {kind}, and a {other.__name__} was asked for"):
        other.load(path)


@pytest.mark.parametrize("name", EXAMPLES)
def test_axes_are_named(name):
    made = EXAMPLES[name]()
    found = made.to_xarray()
    leaves = {leaf.path: leaf for leaf in fields.leaves(made)}
    assert set(found.data_vars) == set(leaves)
    for path, leaf in leaves.items():
        assert found[path].size == leaf.tensor.numel()
        assert found[path].attrs.get("units", "") == leaf.unit
    assert found.attrs["kind"] == type(made).__name__
    assert json.loads(found.attrs["data"]) == json.loads(json.dumps(fields.encode(made)[0]))
    frame = made.to_dataframe()
    assert len(frame)
    assert frame.columns.is_unique
    used = {axis.rpartition(".")[2] for leaf in made.leaves() for axis in leaf.varying()[1]}
    assert used - {"2"} <= set(DEFINED), "every axis is defined in axes.py"


def test_the_notation_lists_every_axis():
    text = (Path(__file__).parents[2] / "docs" / "notation.md").read_text(encoding="utf-8")
    section = text.partition("## Axes\n")[2].partition(" are defined in")[0]
    assert re.findall(r"`(\w+)`", section) == DEFINED


@dataclass(frozen=True, eq=False)
class Thing(Result):
    """One of each kind of field."""

    values: Float[Tensor, "prompt head"] = field(metadata=fields.unit("logits"))
    shared: Mapping[str, Float[Tensor, "prompt #head"]]
    toward: Int[Tensor, " prompt"]
    limit: int

    def _problems(self) -> Iterator[str]:
        if int(self.toward.max()) > self.limit:
            yield f"toward must be at most {self.limit}"

    def coords(self):
        return {"head": ["a", "b", "c"]}


@pytest.fixture
def thing():
    prior = torch.tensor([[1.0], [2.0]])
    return Thing(torch.arange(6.0).reshape(2, 3), {"prior": prior}, torch.tensor([0, 1]), 1)


def test_checked_whenever_made(thing, tmp_path):
    for change, words in (
        ({"limit": 0}, "a Thing must be whole: toward must be at most 0"),
        ({"shared": {"prior": torch.ones(2, 2)}}, r"shared\['prior'\] must be Float over \(prompt, #head\)"),
        ({"values": thing.values[:0], "shared": {}, "toward": thing.toward[:0]}, "at least one prompt"),
        ({"values": thing.values.half()}, "numbers of 32 or 64 bits; it is torch.float16"),
        ({"values": thing.values.clone().requires_grad_()}, "without a gradient"),
        ({"toward": thing.toward.int()}, r"whole numbers \(int64\)"),
        ({"limit": 1.5}, "limit must be int; it is 1.5"),
    ):
        with pytest.raises(ResultError, match=words):
            replace(thing, **change)
    stored = codec.read(thing.save(tmp_path / "x.safetensors"))
    codec.write(
        tmp_path / "x.safetensors", codec.Stored("Thing", {**stored.data, "limit": 0}, stored.tensors)
    )
    with pytest.raises(LoadError, match="whole Thing: a Thing must be whole: toward must be at most 0"):
        Thing.load(tmp_path / "x.safetensors")


def test_long_form_and_xarray_follow_the_declaration(thing):
    frame = thing.to_dataframe()
    assert list(frame.columns) == ["prompt", "head", "values", "shared.prior", "toward"]
    assert frame["head"].tolist() == ["a", "b", "c"] * 2
    assert frame["shared.prior"].tolist() == [1, 1, 1, 2, 2, 2]
    assert frame["toward"].tolist() == [0, 0, 0, 1, 1, 1]
    data = thing.to_xarray()
    assert data["values"].dims == ("prompt", "head")
    assert data["values"].attrs == {"units": "logits"}
    assert data["shared.prior"].dims == ("prompt",)
    assert data["values"].sel(head="b").values.tolist() == [1, 4]


def test_long_form_of_some_cells():
    values = torch.tensor([[1.0, float("nan")], [2.0, 3.0]])
    frame = long_form(
        ("row", "place"), {"x": values}, coords={"place": ["left", "right"]}, where=~values.isnan()
    )
    assert frame.to_dict("list") == {"row": [0, 1, 1], "place": ["left", "left", "right"], "x": [1, 2, 3]}


def test_xarray_is_optional(thing, monkeypatch):
    import builtins

    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "xarray":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ResultError, match=r"pip install .icl-kernel-lens\[xarray\]"):
        thing.to_xarray()
