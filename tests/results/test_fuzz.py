"""Damaged files of every kind of result: refused with an error of this library, or the result is whole in every respect."""

from __future__ import annotations

import copy
import json
import random
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from results.examples import EXAMPLES

from icl_kernel_lens import fields
from icl_kernel_lens.errors import LensError
from icl_kernel_lens.results import codec
from icl_kernel_lens.results.base import Result
from icl_kernel_lens.saved import load

MUTATIONS = 300
DRAWN = 100
"""One in so many results that load is drawn too."""
VALUES = (
    None,
    True,
    -1,
    0,
    3,
    2**70,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "votes",
    "L0H0",
    [],
    [1],
    {},
    {"a": 1},
)
NUMBERS = (-1, 0, 1, 7, 2**40, float("nan"), float("inf"))


def digest(result: Result) -> str:
    return fields.digest(*fields.encode(result))


@pytest.mark.parametrize("name", EXAMPLES)
def test_changed_bytes_are_refused(name, tmp_path):
    """A byte of the safetensors header may be changed without a change of meaning; nothing else may."""
    made = EXAMPLES[name]()
    path = made.save(tmp_path / "whole.safetensors")
    whole, rng, alike = path.read_bytes(), random.Random(name), 0
    for _ in range(MUTATIONS):
        path.write_bytes(changed_bytes(whole, rng))
        try:
            found = load(path)
        except LensError:
            continue
        assert digest(found) == digest(made)
        alike += 1
    assert alike < MUTATIONS / 10


def changed_bytes(whole: bytes, rng: random.Random) -> bytes:
    data, at = bytearray(whole), rng.randrange(len(whole))
    match rng.randrange(6):
        case 0:
            return bytes(data[:at])
        case 1:
            del data[at : at + rng.randrange(1, 9)]
        case 2:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        case 3:  # in the header, most of which is text
            at = rng.randrange(min(len(whole), 3000))
            data[at] ^= 1 << rng.randrange(8)
        case _:
            data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


@pytest.mark.parametrize("name", EXAMPLES)
def test_changed_contents_are_refused_or_whole(name, tmp_path):
    """Fields, shapes, values and header changed under a digest of their own: what loads can do all that a result can."""
    path = EXAMPLES[name]().save(tmp_path / "whole.safetensors")
    stored, rng, loaded = codec.read(path), random.Random(name), 0
    for number in range(MUTATIONS):
        change, changed = changed_contents(stored, rng)
        codec.write(path, changed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = load(path)
            except LensError:
                continue
            try:
                use(found, loaded, path)
            except Exception as error:
                raise AssertionError(f"mutation {number}: {change}") from error
        loaded += 1
    assert 0 < loaded < 0.7 * MUTATIONS, "most changes are seen, and some are other results"


def use(result: Result, number: int, path: Path) -> None:
    """Everything a result can be asked for; what it refuses, it refuses by an error of the library."""
    assert repr(result)
    assert len(result.to_dataframe())
    if number % 5 == 0:
        result.to_xarray()
        assert digest(load(result.save(path))) == digest(result)
        for method in ("table", "pairs", "choosing_table", "verdict", "regression"):
            with suppress(LensError):
                getattr(result, method, str)()
    if number % DRAWN == 0 and hasattr(result, "figure"):
        result.figure().spec()


def changed_contents(stored: codec.Stored, rng: random.Random) -> tuple[str, codec.Stored]:
    """One thing changed, and what."""
    data, tensors = copy.deepcopy(stored.data), dict(stored.tensors)
    name = rng.choice(sorted(tensors))
    kind = rng.randrange(8)
    if kind == 0:
        del tensors[name]
        return f"{name} gone", codec.Stored(stored.kind, data, tensors)
    if kind == 1:
        other = rng.choice(["x", *tensors])
        tensors[other] = tensors[name]
        return f"{name} under {other}", codec.Stored(stored.kind, data, tensors)
    if kind in (2, 3, 4):
        how, tensors[name] = changed_tensor(tensors[name], rng)
        return f"{name} {how}", codec.Stored(stored.kind, data, tensors)
    how = changed_json(data, rng)
    return how, codec.Stored(stored.kind, data, tensors)


def changed_tensor(tensor: torch.Tensor, rng: random.Random) -> tuple[str, torch.Tensor]:
    axis = rng.randrange(max(1, tensor.dim()))
    match rng.randrange(7):
        case 0:
            return f"without the last of axis {axis}", tensor.narrow(axis, 0, tensor.shape[axis] - 1).clone()
        case 1:
            return f"without axis {axis}", tensor.select(axis, 0).clone()
        case 2:
            return "with one more axis", tensor[None].clone()
        case 3:
            return f"empty in axis {axis}", tensor.narrow(axis, 0, 0).clone()
        case 4:
            dtype = rng.choice(
                [torch.bool, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float64]
            )
            return f"as {dtype}", tensor.to(dtype)
        case _:
            flat, value = tensor.clone().flatten(), rng.choice(NUMBERS)
            if (not tensor.dtype.is_floating_point and value != value) or value == float("inf"):
                value = -(2**60)
            where = slice(None) if rng.random() < 0.3 else rng.randrange(len(flat)) if len(flat) else 0
            if len(flat):
                flat[where] = value
            return f"with {value} at {where}", flat.reshape(tensor.shape)


def changed_json(data: object, rng: random.Random) -> str:
    """Change one node of the JSON in place."""
    nodes: list[tuple[str, object]] = []

    def walk(node: object, at: str) -> None:
        if isinstance(node, dict | list) and node:
            nodes.append((at, node))
            for key, part in node.items() if isinstance(node, dict) else enumerate(node):
                walk(part, f"{at}.{key}")

    walk(data, "")
    at, node = rng.choice(nodes)
    key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))  # pyright: ignore
    match rng.randrange(5):
        case 0:
            del node[key]  # pyright: ignore
            return f"{at}.{key} gone"
        case 1:
            value = copy.deepcopy(rng.choice([n for _, n in nodes]))
        case 2 if isinstance(node, list):
            node.insert(key, copy.deepcopy(node[key]))
            return f"{at}.{key} twice"
        case 3 if isinstance(node, dict):
            node["more"] = 1
            return f"{at}.more"
        case _:
            value = rng.choice(VALUES)
    node[key] = value  # pyright: ignore
    return f"{at}.{key} = {value!r:.80}"


@pytest.mark.parametrize(
    "change",
    [
        {"kind": []},
        {"kind": "Nothing"},
        {"format": "2"},
        {"format": None},
        {"data": None},
        {"digest": 1},
        {"kind": None},
    ],
    ids=str,
)
def test_changed_headers_are_refused(change, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = EXAMPLES["Saliency"]().save(tmp_path / "whole.safetensors")
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["icl_kernel_lens"]) | change
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, {"icl_kernel_lens": json.dumps(header)})
    with pytest.raises(LensError):
        load(path)
