"""All that needs a GPU, in one go and under 12 minutes on an H100.

    python -m benchmarks.gpu_all --out benchmarks/results       make gpu
    python -m benchmarks.gpu_all --only study types             some of the parts

    study        `studies.gptj.run` on a folder of GPT-J-6B's exact shape, random weights in float16, read from its
                 `pytorch_model.bin` as the real one is. The rest of the device's memory is taken, so that as much is free as
                 on a card of 16 GB
    types        weights and label scores in float32, float16 and bfloat16 beside those of float32 on the CPU, on a small shape
    processes    two processes, nccl between them, beside one; where there are two GPUs
    read         `benchmarks.read --gpu`, which writes gpu.json and gpu.md

Without a GPU all of it runs on a tiny shape on the CPU, says so in its first line, and writes nothing. With one, tables go into
gptj.json and gptj.md after each part. Does not show: anything about GPT-J's own weights.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

import icl_kernel_lens as ikl
from benchmarks import gpu
from benchmarks.setup import Setup, make_prompts
from benchmarks.tables import Table, environment, size
from icl_kernel_lens.models.load import bridge_from_hf
from studies.gptj import run as study
from studies.gptj.random_weights import SMALL, Shape, build, write_folder

Part = Literal["study", "types", "processes", "read"]
PARTS: tuple[Part, ...] = ("study", "types", "processes", "read")
FREE = 14 * 2**30
"""Bytes that are free on a card of 16 GB, the least of those in use (a T4 has 14.6 GiB), beside CUDA's own."""
MODEST = Shape(layers=4, heads=8, width=256, rotary=16, vocab=1024, context=1024)
TOLERANCES = {torch.float32: (1e-4, 1e-3), torch.float16: (5e-3, 2e-2), torch.bfloat16: (4e-2, 2e-1)}
"""Largest differences allowed: of attention weights, and of label scores in their standard deviations."""


@contextmanager
def only_free(count: int) -> Iterator[int]:
    """Takes the device's memory but for so many bytes; gives the bytes taken, which count as allocated."""
    if not torch.cuda.is_available():
        yield 0
        return
    gc.collect()
    torch.cuda.empty_cache()
    taken = max(0, torch.cuda.mem_get_info()[0] - count)
    held = torch.empty(taken, dtype=torch.uint8, device="cuda")
    try:
        yield held.numel()
    finally:
        del held
        gc.collect()
        torch.cuda.empty_cache()


def run_study() -> Table:
    """The study from end to end, on few prompts of a bundled task; its peak memory is that of the weights and what it adds."""
    on_gpu = torch.cuda.is_available()
    shape = Shape() if on_gpu else SMALL
    device = torch.device("cuda" if on_gpu else "cpu")
    arguments = ["--only", "opinions", *(("--prompts", "80", "60") if on_gpu else ("--tiny", "--demos", "4"))]
    with tempfile.TemporaryDirectory() as place:
        folder, out = Path(place) / "gpt-j", Path(place) / "results"
        written = _seconds(lambda: write_folder(folder, shape, device, study.DTYPE, spread=0.02))
        gc.collect()
        with only_free(FREE) as taken:
            seconds = _seconds(lambda: study.main([*arguments, "--model", str(folder), "--out", str(out)]))
        row = json.loads((out / "opinions.json").read_text())
    rows = [
        ["layers × heads × width", f"{shape.layers} × {shape.heads} × {shape.width}"],
        ["prompts", f"{row['setting']['choose']} + {row['setting']['report']}"],
        ["tokens of the longest prompt", f"{row['longest_prompt']}"],
        ["seconds to write the folder", f"{written:.0f}"],
        ["seconds of the whole command, loading included", f"{seconds:.0f}"],
        ["seconds of the task", f"{row['seconds']:.0f}"],
    ]
    if on_gpu:
        rows += [
            ["free before loading", size(FREE)],
            ["peak while loading", size(row["peak_memory_loading"] - taken)],
            ["peak of the task, weights included", size(row["peak_memory"] - taken)],
        ]
    return Table("The GPT-J study, random weights in float16", ["what", "found"], rows)


def compare_types() -> Table:
    """One model in three types, on the device, beside float32 on the CPU; its weights are rounded to the type in both.

    Raises: RuntimeError: a difference is beyond `TOLERANCES`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prompts = make_prompts(Setup(demos=32, demo_tokens=16, tests=16), shared=False, vocab=MODEST.vocab)
    rows: list[list[object]] = []
    for dtype, limits in TOLERANCES.items():
        hf = build(MODEST, torch.device("cpu"), torch.float32, spread=0.12).to(dtype)
        there, here = bridge_from_hf(deepcopy(hf).to(device)), bridge_from_hf(hf.float())
        found, expected = (ikl.read(model, prompts, progress=False) for model in (there, here))
        gaps = (
            float((found.weights["label"] - expected.weights["label"]).abs().max()),
            float((found.label_scores - expected.label_scores).abs().max() / expected.label_scores.std()),
        )
        name = str(dtype).removeprefix("torch.")
        if not all(gap <= limit for gap, limit in zip(gaps, limits, strict=True)):
            raise RuntimeError(
                f"weights and label scores must be those of float32 on the CPU to {limits} in {name}; they differ by {gaps}."
            )
        beside = [f"{gap:.1e} (≤ {limit:.0e})" for gap, limit in zip(gaps, limits, strict=True)]
        rows.append([name, f"{expected.weights['label'].max():.2f}", *beside])
    columns = ["type", "largest weight", "weights on labels", "label scores, in standard deviations"]
    note = (
        f"{device.type}, {MODEST.layers} layers × {MODEST.heads} heads × {MODEST.width}, {len(prompts)} prompts of "
        f"{int(prompts.lengths.max())} tokens; the largest difference."
    )
    return Table("Types, beside float32 on the CPU", columns, rows, note)


def compare_processes() -> Table:
    """`icl-kernel-lens score` in two processes beside one.

    Raises: RuntimeError: it fails, or the numbers differ by more than rounding.
    """
    gpus = torch.cuda.device_count()
    if gpus == 1:
        return Table("Two processes", ["what", "found"], [["nccl", "not run: there is one GPU"]])
    score = ["-m", "icl_kernel_lens", "score", "--no-progress", "--prompts", "64", "--out"]
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with tempfile.TemporaryDirectory() as place:
        for name, before in (("one", []), ("two", two)):
            done = subprocess.run(
                [sys.executable, *before, *score, f"{place}/{name}"],
                capture_output=True,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                check=False,
            )
            if done.returncode:
                raise RuntimeError(f"{name} process(es) ended with {done.returncode}: {done.stderr[-2000:]}")
        one, both = (ikl.Evidence.load(f"{place}/{name}/evidence.safetensors") for name in ("one", "two"))
    gap = float((one.weights["label"] - both.weights["label"]).abs().max())
    if not gap <= TOLERANCES[torch.float32][0]:
        raise RuntimeError(f"two processes must give the numbers of one; their weights differ by {gap}.")
    how = "nccl, two GPUs" if gpus else "gloo on the CPU; nccl not run: there is no GPU"
    return Table(
        "Two processes", ["what", "found"], [[how, f"weights of one process within {gap:.1e}, bundled model"]]
    )


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


TABLES: dict[Part, Callable[[], Table]] = {
    "study": run_study,
    "types": compare_types,
    "processes": compare_processes,
}


def main(
    out: Path | None = None,
    only: Annotated[tuple[Part, ...], tyro.conf.arg(metavar="PART")] = PARTS,
    peer_seconds: float = 6,
) -> None:
    """Run what needs a GPU.

    Args:
        out: Folder to write gptj.json, gptj.md, gpu.json and gpu.md into; only from a GPU.
        only: Parts to run.
        peer_seconds: Seconds that each peer gets in `read`.
    """
    on_gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if on_gpu else "no GPU: a tiny shape on the CPU, nothing is written"
    print(name, end="\n\n", flush=True)
    if not on_gpu:
        out = None
    start, tables = time.perf_counter(), []
    for part in only:
        if part == "read":
            torch.set_num_threads(1)
            with torch.no_grad():
                gpu.main(out, tiny=not on_gpu, peer_seconds=peer_seconds)
            continue
        tables.append(TABLES[part]())
        print(tables[-1].text(), end="\n\n", flush=True)
        if out is not None:
            _write(out, environment() | {"device": name}, tables)
    print(f"took {(time.perf_counter() - start) / 60:.1f} minutes")


def _write(out: Path, where: dict[str, str], tables: list[Table]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    result = {"environment": where, "tables": [table.to_dict() for table in tables]}
    (out / "gptj.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    parts = [", ".join(f"{key} {value}" for key, value in where.items()), *(t.markdown() for t in tables)]
    (out / "gptj.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main)
