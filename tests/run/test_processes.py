"""Two processes are one: the same numbers, each prompt read once, and a lost process is named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch
from support import same_evidence

from icl_kernel_lens import Evidence, load, load_model, load_task, read
from icl_kernel_lens.cli import main
from icl_kernel_lens.results import codec
from icl_kernel_lens.run import processes

SCORE = ["-m", "icl_kernel_lens", "score", "--no-progress", "--device", "cpu"]


def environment():
    """One thread a process, no proxy for the loopback, and Python as it is here."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def torchrun(*command, count=2):
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(count),
        "--standalone",
        *command,
    ]


def finished(*command):
    """What two processes came to."""
    return subprocess.run(
        torchrun(*command), env=environment(), capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("sets", ["1", "3"])
def test_two_processes_equal_one(tmp_path, sets):
    """With three sets of demonstrations, and with one, which both processes run."""
    options = ["--prompts", "30", "--demos", "16", "--sets", sets]
    out = finished(*SCORE, "--out", str(tmp_path / "two"), *options)
    assert out.returncode == 0, out.stderr[-3000:]
    assert out.stdout.count("head_vote  ") <= 2, "one process prints"
    assert out.stdout.count("Written to") == 1
    assert main(["score", "--no-progress", "--device", "cpu", "--out", str(tmp_path / "one"), *options]) == 0
    one, two = (Evidence.load(tmp_path / name / "evidence.safetensors") for name in ("one", "two"))
    same_evidence(two, one, atol=1e-6)
    for name in ("head_vote.safetensors", "accuracy.safetensors"):
        assert (tmp_path / "two" / name).exists()


@pytest.mark.parametrize(
    ("command", "results", "options"),
    [
        ("locate", ("ranking", "evidence"), ["--prompts", "32", "--sets", "16", "--demos", "4"]),
        ("influence", ("influence", "fit"), ["--prompts", "12", "--sets", "4", "--demos", "3"]),
        ("patch", ("patch_labels", "knock_out"), ["--prompts", "6", "--sets", "2", "--demos", "4"]),
    ],
)
def test_two_processes_equal_one_in_commands_of_many_steps(tmp_path, command, results, options):
    given = [command, "--no-progress", "--device", "cpu", *options]
    out = finished("-m", "icl_kernel_lens", *given, "--out", str(tmp_path / "two"))
    assert out.returncode == 0, out.stderr[-3000:]
    assert out.stdout.count("Written to") == 1, "one process prints"
    assert main([*given, "--out", str(tmp_path / "one")]) == 0
    for name in results:
        one, two = (load(tmp_path / run / f"{name}.safetensors") for run in ("one", "two"))
        assert type(one) is type(two)
        torch.testing.assert_close(
            two.to_dataframe().select_dtypes("number").to_numpy(),
            one.to_dataframe().select_dtypes("number").to_numpy(),
            atol=1e-5,
            rtol=1e-4,
            equal_nan=True,
        )
    assert not (tmp_path / "two" / "unfinished").exists()


LOST = """
import os, sys, time
from icl_kernel_lens import load_model, load_task, read
from icl_kernel_lens.run import checkpoint, processes, runner

checkpoint.SAVE_EVERY = 0
in_pieces = runner.in_pieces

def dying(numbers, size, run):
    yield from in_pieces(numbers, size, run)
    if os.environ["RANK"] == "1" and sys.argv[2].startswith("dies"):
        os.kill(os.getpid(), 9)
    if sys.argv[2] == "dies while another works":
        time.sleep(200)

runner.in_pieces = dying
with processes.joined() as group:
    model = load_model("mini", device="cpu")
    prompts = load_task("topics").prompts(model, demos=4, count=int(sys.argv[3]) + (group.rank if sys.argv[2] == "other" else 0))
    evidence = read(model, prompts, batch_size=2, checkpoint=sys.argv[1], progress=False)
    if group.first:
        print("finished", float(evidence.weights["label"].sum()))
"""


def run_lost(tmp_path, how, count=12):
    script = tmp_path / "lost.py"
    script.write_text(LOST)
    return finished(str(script), str(tmp_path / "run"), how, str(count))


def test_a_lost_process_ends_the_run_and_keeps_the_checkpoint(tmp_path):
    lost = run_lost(tmp_path, "dies")
    assert lost.returncode != 0
    assert "SIGKILL" in lost.stderr, "torchrun names the process and its end"
    assert "[process-lost]" in lost.stderr, "the other one says why it ends"
    shards = list((tmp_path / "run").glob("*.safetensors"))
    assert shards

    kept = sum(len(codec.read(path).tensors["numbers"]) for path in shards)
    assert 2 <= kept < 12
    shutil.copytree(tmp_path / "run", tmp_path / "alone")
    whole = run_lost(tmp_path, "lives")
    assert whole.returncode == 0, whole.stderr[-2000:]

    model = load_model("mini", device="cpu")
    prompts = load_task("topics").prompts(model, demos=4, count=12)
    expected = read(model, prompts, progress=False)
    found = float(whole.stdout.split("finished")[1].split()[0])
    assert found == pytest.approx(float(expected.weights["label"].sum()), abs=1e-4)
    # One process goes on from what two have left.
    alone = read(model, prompts, batch_size=2, checkpoint=tmp_path / "alone", progress=False)
    same_evidence(alone, expected, atol=1e-6)


def test_a_process_at_work_says_that_another_one_was_lost(tmp_path):
    """It is told to stop before it waits for the other."""
    lost = run_lost(tmp_path, "dies while another works")
    assert lost.returncode != 0
    assert "process 0 was told to stop (SIGTERM)" in lost.stderr
    assert "[process-lost]" in lost.stderr


def test_processes_must_be_given_the_same(tmp_path):
    other = run_lost(tmp_path, "other")
    assert other.returncode != 0
    assert "every process must be given the same model, prompts and settings" in other.stderr


def test_more_processes_than_prompts_are_refused(tmp_path):
    few = run_lost(tmp_path, "lives", count=1)
    assert few.returncode != 0
    assert "every process needs a prompt" in few.stderr


def test_alone_nothing_is_joined():
    """Outside torchrun there is one process, the first; sums are what they were."""
    with processes.joined() as group:
        assert (group.rank, group.size, group.first) == (0, 1, True)
        assert not torch.distributed.is_initialized()
    numbers = {"a": torch.tensor([1.0, float("nan")])}
    assert group.add(numbers)["a"] is numbers["a"]
