"""What annotations declare: values are checked by them, and stored and read back as they were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Literal, NamedTuple

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from icl_kernel_lens import fields


class Colour(Enum):
    RED = "r"


class Point(NamedTuple):
    x: int
    note: str | None


@dataclass(frozen=True, eq=False)
class Whole:
    """A field of each kind."""

    values: Float[Tensor, "prompt head"] = field(metadata=fields.unit("logits"))
    shared: Mapping[str, Float[Tensor, "prompt #head"]]
    where: Point
    colour: Colour
    side: Literal["left", "right"]
    numbers: tuple[int, ...]
    cache: Any = field(default=None, metadata=fields.TRANSIENT)


@pytest.fixture
def whole():
    shared = {"prior": torch.tensor([[1.0], [2.0]])}
    return Whole(torch.arange(6.0).reshape(2, 3), shared, Point(4, None), Colour.RED, "left", (7, 8), "kept")


def test_what_is_encoded_is_written_out(whole):
    data, tensors = fields.encode(whole)
    assert data == {
        "values": "tensor",
        "shared": [["prior", "tensor"]],
        "where": [4, None],
        "colour": "r",
        "side": "left",
        "numbers": [7, 8],
    }
    assert set(tensors) == {"values", "shared.prior"}
    again = fields.decode(data, Whole, tensors)
    assert (again.where, again.colour, again.side, again.numbers) == (
        Point(4, None),
        Colour.RED,
        "left",
        (7, 8),
    )
    assert torch.equal(again.shared["prior"], whole.shared["prior"])
    assert again.cache is None, "not stored"


def test_what_is_decoded_is_not_believed(whole):
    data, tensors = fields.encode(whole)
    with pytest.raises(fields.Mismatch, match="the tensor values is missing"):
        fields.decode(data, Whole, {"shared.prior": tensors["shared.prior"]})
    with pytest.raises(fields.Mismatch, match="nothing declares the tensors another"):
        fields.decode(data, Whole, tensors | {"another": torch.ones(1)})
    with pytest.raises(fields.Mismatch, match="where must have 2 members; it has 1"):
        fields.decode(data | {"where": [4]}, Whole, tensors)
    with pytest.raises(fields.Mismatch):
        fields.decode({name: part for name, part in data.items() if name != "side"}, Whole, tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"side": "up"}, "side must be one of 'left', 'right'; it is 'up'"),
        ({"numbers": (7, "8")}, r"numbers\[1\] must be int; it is '8' \(str\)"),
        ({"numbers": (7, True)}, r"numbers\[1\] must be int; it is True \(bool\)"),
        ({"where": Point(1.5, None)}, r"where\.x must be int; it is 1.5"),  # pyright: ignore[reportArgumentType]
        ({"shared": {"prior": torch.ones(2, 2)}}, r"shared\['prior'\] must be Float over \(prompt, #head\)"),
        ({"shared": {3: torch.ones(2, 1)}}, "a key of shared must be str; it is 3"),
        ({"values": torch.ones(2, 3).half()}, "it is torch.float16 on cpu"),
    ],
)
def test_what_is_not_as_declared_is_refused(whole, change, message):
    fields.check(whole)
    with pytest.raises(fields.Mismatch, match=message):
        fields.check(replace(whole, **change))


def test_leaves_have_their_axes_and_units(whole):
    values, prior = fields.leaves(whole)
    assert (values.path, values.axes, values.unit) == ("values", ("prompt", "head"), "logits")
    assert (prior.path, prior.axes, prior.unit) == ("shared.prior", ("prompt", "#head"), "")
    tensor, axes = prior.varying()
    assert (tuple(tensor.shape), axes) == ((2,), ("prompt",)), "the same of every head"
    full = fields.Leaf("x", torch.ones(2, 3), ("prompt", "#head"), "")
    assert full.varying()[1] == ("prompt", "head")


def test_a_digest_sees_names_types_shapes_and_bytes():
    x = torch.tensor([1.0, 2.0])
    kept = fields.digest({"a": 1, "b": 2}, {"x": x})
    assert fields.digest({"b": 2, "a": 1}, {"x": x.clone()}) == kept
    others = [
        fields.digest({"a": 1, "b": 3}, {"x": x}),
        fields.digest({"a": 1, "b": 2}, {"y": x}),
        fields.digest({"a": 1, "b": 2}, {"x": x.reshape(1, 2)}),
        fields.digest({"a": 1, "b": 2}, {"x": x.view(torch.int32)}),
        fields.digest({"a": 1, "b": 2}, {"x": torch.tensor([1.0, 2.0 + 2**-22])}),
    ]
    assert len({kept, *others}) == 6
