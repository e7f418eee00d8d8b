"""A run that is killed goes on where it stopped; another run's checkpoint is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from architectures import hf_model
from models.test_copies import Packed
from support import same_evidence, shared_prompts, uneven_prompts

from icl_kernel_lens import read
from icl_kernel_lens.cli import main
from icl_kernel_lens.errors import LoadError, RunError
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.models.load import bridge_from_hf
from icl_kernel_lens.results import codec
from icl_kernel_lens.run import runner
from icl_kernel_lens.run.checkpoint import fingerprint

KILLED = """
import sys, time
sys.path.insert(0, sys.argv[2])
from architectures import hf_model
from support import shared_prompts
from icl_kernel_lens import read
from icl_kernel_lens.run import checkpoint, runner
from icl_kernel_lens.models import bridge_from_hf

checkpoint.SAVE_EVERY = 0
in_pieces = runner.in_pieces

def slowly(numbers, size, run):
    yield from in_pieces(numbers, size, run)
    time.sleep(0.3)

runner.in_pieces = slowly
read(bridge_from_hf(hf_model("llama")), shared_prompts(), batch_size=1, checkpoint=sys.argv[1], progress=False)
"""


@pytest.mark.once
def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    """SIGKILL in the middle: the same result, and finished prompts are not run again."""
    folder = tmp_path / "run"
    tests = os.path.dirname(os.path.dirname(__file__))
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", KILLED, str(folder), tests])
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*.safetensors"))) < 3:
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path.name for path in folder.glob("*.safetensors")}
    assert 3 <= len(finished) < 7

    model, prompts, read_now = bridge_from_hf(hf_model("llama")), shared_prompts(), []
    in_pieces = runner.in_pieces

    def counted(pieces, size, run):
        read_now.extend(
            one for one in pieces if isinstance(one, int)
        )  # prompts, not the beginnings they share
        return in_pieces(pieces, size, run)

    monkeypatch.setattr(runner, "in_pieces", counted)
    found = read(model, prompts, checkpoint=folder, progress=False)
    assert len(read_now) == len(prompts) - len(finished)
    assert finished < {path.name for path in folder.glob("*.safetensors")}
    read_now.clear()
    again = read(model, prompts, checkpoint=folder, progress=False)
    assert read_now == []
    expected = read(model, prompts, progress=False)
    same_evidence(found, expected)
    same_evidence(again, expected)


def build(seed=0, name="llama"):
    return bridge_from_hf(hf_model(name, seed))


def test_another_runs_checkpoint_is_refused(tmp_path):
    """Another model, other weights, another type, other prompts, another seed, other settings."""
    prompts = uneven_prompts()
    read(build(), prompts, checkpoint=tmp_path, progress=False)
    read(build(), prompts, checkpoint=tmp_path, progress=False, batch_size=2)
    seeded = replace(prompts, info=replace(prompts.info, seed=5))
    words = replace(prompts, label_sequences=prompts.label_sequences.flip(1))
    others = {
        "model": [
            (build(seed=1), prompts, {}),
            (build(name="gpt2"), prompts, {}),
            (build().to(torch.bfloat16), prompts, {}),
        ],
        "prompts": [(build(), uneven_prompts(count=4), {}), (build(), seeded, {}), (build(), words, {})],
        "settings": [
            (build(), prompts, {"keep": ("label",)}),
            (build(), prompts, {"template_tokens": False}),
        ],
    }
    before = sorted(path.name for path in tmp_path.iterdir())
    for part, runs in others.items():
        for model, which, options in runs:
            with pytest.raises(RunError, match=rf"was written with other {part} \("):
                read(model, which, checkpoint=tmp_path, progress=False, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("change", ["a weight", "a bias", "a buffer", "a setting"])
def test_one_changed_number_is_another_model(change):
    """Every parameter is looked at whole, and so is what is not learned."""
    model, prompts = build(name="gpt_neox"), uneven_prompts()
    first = fingerprint(as_adapter(model), prompts, {})
    assert fingerprint(as_adapter(build(name="gpt_neox")), prompts, {}) == first
    layer = model.original_model.gpt_neox.layers[1]
    with torch.no_grad():
        match change:
            case "a weight":
                layer.mlp.dense_h_to_4h.weight[17, 21] += 1e-6
            case "a bias":
                layer.mlp.dense_h_to_4h.bias[17] += 1e-6
            case "a buffer":
                model.original_model.gpt_neox.rotary_emb.inv_freq[1] *= 1.001
            case "a setting":
                model.original_model.config.layer_norm_eps = 0.1
    assert fingerprint(as_adapter(model), prompts, {}) != first


def test_a_hooked_model_is_not_checkpointed(tmp_path):
    """An ablated model must not resume the results of the whole one."""
    model = build()
    read(model, uneven_prompts(), checkpoint=tmp_path, progress=False)
    model.blocks[1].attn.hook_z.add_hook(lambda z, hook: z * 0)
    with pytest.raises(RunError, match="cannot tell one hook from another"):
        read(model, uneven_prompts(), checkpoint=tmp_path, progress=False)


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(codec, "save_file", full)
    with pytest.raises(RunError, match="a checkpoint must be writable.*No space left"):
        read(build(), uneven_prompts(), checkpoint=tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_damaged_and_foreign_files_are_named(tmp_path):
    model, prompts = build(), uneven_prompts()
    evidence = read(model, prompts, checkpoint=tmp_path, progress=False)
    (shard,) = tmp_path.glob("*.safetensors")
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LoadError, match=shard.name):
        read(model, prompts, checkpoint=tmp_path, progress=False)
    flipped = bytearray(whole)
    flipped[-3] ^= 16
    shard.write_bytes(flipped)
    with pytest.raises(LoadError, match=f"{shard.name} is not what was written: its digest"):
        read(model, prompts, checkpoint=tmp_path, progress=False)
    shard.write_bytes(whole)
    (tmp_path / "again.safetensors").write_bytes(whole)
    with pytest.raises(RunError, match="holds prompt 0 twice"):
        read(model, prompts, checkpoint=tmp_path, progress=False)
    (tmp_path / "again.safetensors").unlink()
    evidence.save(tmp_path / "evidence.safetensors")
    with pytest.raises(LoadError, match="holds a Evidence, and a Shard"):
        read(model, prompts, checkpoint=tmp_path, progress=False)
    (tmp_path / "evidence.safetensors").unlink()
    identity = codec.read(shard).data
    for data, tensors in (
        ({}, {"numbers": torch.tensor([0])}),
        (None, {"numbers": torch.tensor([0])}),
        (identity, {"sink": torch.tensor([0])}),
        (identity, {"numbers": torch.tensor([0.5])}),
        (identity, {name: rows for name, rows in codec.read(shard).tensors.items() if name != "sink"}),
    ):
        codec.write(tmp_path / "odd.safetensors", codec.Stored("Shard", data, tensors))
        with pytest.raises((LoadError, RunError), match="does not. Delete it|with other model"):
            read(model, prompts, checkpoint=tmp_path, progress=False)
    with pytest.raises(RunError, match="a checkpoint is a folder"):
        read(model, prompts, checkpoint=shard, progress=False)


def test_an_error_on_the_way_keeps_what_was_finished(tmp_path, monkeypatch):
    """Bad input loses nothing computed: here the user's Ctrl-C, long before shards are due."""
    model, prompts = build(), uneven_prompts()
    in_pieces, steps = runner.in_pieces, []

    def interrupted(numbers, size, run):
        if len(steps) == 3:
            raise KeyboardInterrupt
        steps.append(numbers)
        return in_pieces(numbers, size, run)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "in_pieces", interrupted)
        with pytest.raises(KeyboardInterrupt):
            read(model, prompts, batch_size=1, checkpoint=tmp_path, progress=False)
    (shard,) = tmp_path.glob("*.safetensors")
    steps.clear()
    monkeypatch.setattr(runner, "in_pieces", lambda *a: steps.append(a[0]) or in_pieces(*a))
    read(model, prompts, batch_size=1, checkpoint=tmp_path, progress=False)
    assert len(steps) == 2
    assert shard.exists()


def test_the_command_line_goes_on(tmp_path, monkeypatch, capsys):
    """An interrupted `score` keeps its prompts in OUT/unfinished; the same command ends the work."""
    arguments = [
        "score",
        "--out",
        str(tmp_path / "out"),
        "--prompts",
        "24",
        "--demos",
        "4",
        "--batch-size",
        "4",
        "--no-progress",
    ]
    in_pieces, steps = runner.in_pieces, []

    def interrupted(numbers, size, run):
        if len(steps) == 2:
            raise KeyboardInterrupt
        steps.append(numbers)
        return in_pieces(numbers, size, run)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "in_pieces", interrupted)
        assert main(arguments) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert list((tmp_path / "out" / "unfinished" / "finished" / "read").glob("*.safetensors"))
    assert main([*arguments, "--seed", "1"]) == 1
    refused = capsys.readouterr().err
    assert "an interrupted run of another (prompts: " in refused
    steps.clear()
    monkeypatch.setattr(runner, "in_pieces", lambda *a: steps.append(a[0]) or in_pieces(*a))
    assert main(arguments) == 0
    assert sum(map(len, steps)) == 24 - 8 + 4 + 2 * 24, (
        "the rest of the reading, four to compare, two controls"
    )
    assert (tmp_path / "out" / "accuracy.safetensors").is_file()
    assert not (tmp_path / "out" / "unfinished").exists()


def test_a_model_with_packed_weights_has_an_identity():
    """Of numbers and scales; the packed tensor itself allows nothing."""

    def identity(number):
        model = bridge_from_hf(hf_model("llama"))
        model.register_buffer(
            "packed", Packed(torch.full((4, 4), number, dtype=torch.int8), torch.ones(4, 1))
        )
        return fingerprint(as_adapter(model), uneven_prompts(), {})["model"]

    assert identity(1) == identity(1)
    assert identity(1) != identity(2)
