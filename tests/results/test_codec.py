"""The file format: what is written is read back, and everything else is refused by its name."""

from __future__ import annotations

import json
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from icl_kernel_lens.errors import LoadError, RunError
from icl_kernel_lens.results import codec
from icl_kernel_lens.results.codec import Stored

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "flags": torch.tensor([True, False]),
    "none": torch.zeros(0, 3),
}


@pytest.fixture
def path(tmp_path):
    return codec.write(tmp_path / "deep" / "x.safetensors", Stored("Thing", {"b": [1, None, "é"]}, TENSORS))


def rewrite(path, change, drop=()):
    """The header changed as text, without a new digest."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["icl_kernel_lens"])
        tensors = {k: file.get_tensor(k) for k in file.keys() if k not in drop}  # noqa: SIM118
    change(header)
    save_file(tensors, path, {"icl_kernel_lens": json.dumps(header)})
    return path


def test_what_is_written_is_read(path, tmp_path):
    found = codec.read(path)
    assert (found.kind, found.data) == ("Thing", {"b": [1, None, "é"]})
    assert set(found.tensors) == set(TENSORS)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in TENSORS.items())
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"], "nothing partial is left"
    assert stat.S_IMODE(path.stat().st_mode) & 0o400


def test_what_is_no_result(path, tmp_path):
    with pytest.raises(LoadError, match="there is none at"):
        codec.read(tmp_path / "absent.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(LoadError, match="must be a safetensors file"):
        codec.read(tmp_path / "text.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(LoadError, match="without this library's header, perhaps a model's weights"):
        codec.read(tmp_path / "weights.safetensors")


@pytest.mark.parametrize(
    ("change", "drop", "reason"),
    [
        (lambda h: h.update(format=99), (), "has format 99; this library reads format 4"),
        (lambda h: h.pop("kind"), (), "cannot be read"),
        (lambda h: h.pop("digest"), (), "cannot be read"),
        (lambda h: h.pop("data"), (), "cannot be read"),
        (lambda h: h["data"].update(b=[1, None, "e"]), (), "not what was written"),
        (lambda h: h.update(kind="Other"), (), "not what was written"),
        (lambda h: None, ("flags",), "not what was written"),
    ],
)
def test_a_changed_header_or_tensor_is_refused(path, change, drop, reason):
    with pytest.raises(LoadError, match=reason):
        codec.read(rewrite(path, change, drop))


def test_format_3_is_refused_by_name(tmp_path, monkeypatch):
    """The last before results of heads held the task accuracy."""
    monkeypatch.setattr(codec, "FORMAT", 3)
    path = codec.write(tmp_path / "old.safetensors", Stored("HeadScores", {}, {}))
    monkeypatch.undo()
    with pytest.raises(LoadError, match=r"format 3 \(of icl-kernel-lens 0.1 before .* the task accuracy\)"):
        codec.read(path)


def test_format_1_is_refused_by_name(tmp_path):
    """As it was written before results were declared."""
    text = json.dumps({"kind": "HeadScores", "format": 1, "meta": {"name": "head_vote", "run": {}}})
    save_file({"values": torch.zeros(2, 1, 1)}, tmp_path / "old.safetensors", {"icl_kernel_lens": text})
    with pytest.raises(
        LoadError, match=r"has format 1 \(of icl-kernel-lens 0.1 before results were declared\)"
    ):
        codec.read(tmp_path / "old.safetensors")


def test_what_cannot_be_written_leaves_what_was_there(path, tmp_path):
    before = path.read_bytes()
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError):
        codec.write(tmp_path / "file" / "x.safetensors", Stored("Thing", {}, TENSORS))
    assert path.read_bytes() == before
