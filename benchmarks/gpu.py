"""The cost of reading on a GPU, with a model of GPT-J-6B's exact shape and random weights in bfloat16.

28 layers, 16 heads, width 4,096, rotary_dim 64, vocabulary 50,400. The context is 4,096 instead of GPT-J's
2,048: 128 demonstrations of 16 tokens and a test input of 24 make 2,072 tokens, and rotary embeddings cost the
same at any context. 1,000 test inputs, with 32 and with 128 demonstrations, shared and fresh.

Ours (`icl_kernel_lens.read` on a TransformerBridge, `batch_size="auto"`) runs all prompts. Peers run as many as
they manage in a time limit; compare seconds per prompt. transformers has no sdpa attention for GPT-J, so the
plain forward pass is eager, without `output_attentions`.

    seconds   wall clock between two torch.cuda.synchronize()
    memory    torch.cuda.max_memory_allocated, weights included
    rate      (2 · parameters · tokens + 4 · layers · width · pairs) / seconds, over the rate of a large matrix
              product in the same precision, measured before. `parameters` are those of the blocks; `pairs` of
              positions that attend are counted once each (causal); the output layer is counted for one token a
              prompt. Only work that is needed is counted: a square computed in full gains nothing.

Peers' weights are compared with ours on the first prompts; in bfloat16 the patterns themselves are rounded to
three digits, and so the difference is shown and must stay below 0.02.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import batches, cached, eager, last_logits, ours, traced
from benchmarks.setup import BATCH, Setup, make_prompts
from benchmarks.tables import Table, environment, size
from icl_kernel_lens import PromptSet
from icl_kernel_lens.models.load import bridge_from_hf
from studies.gptj import random_weights
from studies.gptj.random_weights import build

TOLERANCE = 0.02


@dataclass(frozen=True)
class Shape(random_weights.Shape):
    """Model and prompts of one run."""

    context: int = 4096
    demos: tuple[int, ...] = (32, 128)
    tests: int = 1000
    product: int = 8192
    """Rows and columns of the matrices whose product measures the device's rate."""


TINY = Shape(2, 4, 64, 16, 512, 512, (4, 8), 24, 512)


@dataclass(frozen=True)
class Run:
    """What one case took."""

    prompts: int
    seconds: float
    memory: int | None
    weights: Tensor | None


def main(out: Path | None, *, tiny: bool, peer_seconds: float) -> None:
    """Measure, print, and write gpu.json and gpu.md."""
    if not torch.cuda.is_available() and not tiny:
        raise SystemExit(
            "no GPU: --gpu measures a 6-billion-parameter model on a CUDA device, and torch.cuda.is_available() is "
            "False. Run it on a machine with one (the weights alone take 12 GB), or add --tiny to try the code here."
        )
    shape = TINY if tiny else Shape()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rate = matmul_rate(shape.product, device, dtype)
    tables = []
    for demos in shape.demos:
        setup = Setup(demos=demos, demo_tokens=16, tests=shape.tests)
        table = _compare(setup, shape, device, dtype, rate, peer_seconds)
        print(table.text(), end="\n\n", flush=True)
        tables.append(table)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU; a tiny shape on the CPU"
    where = environment() | {"device": name, "dtype": str(dtype), "matmul": f"{rate / 1e12:.2f} TFLOP/s"}
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        result = {"environment": where, "tables": [table.to_dict() for table in tables]}
        (out / "gpu.json").write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
        lines = [", ".join(f"{key} {value}" for key, value in where.items())]
        text = "\n\n".join([*lines, *(table.markdown() for table in tables)])
        (out / "gpu.md").write_text(text + "\n", encoding="utf-8")


def matmul_rate(side: int, device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a product of two square matrices: the median of twenty."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(23):
        seconds.append(_timed(lambda: a @ b)[0])
    return 2 * side**3 / statistics.median(seconds[3:])


def flops(shape: Shape, parameters: int, setup: Setup, *, shared: bool) -> float:
    """What must be computed for all prompts; see the top of this file."""
    start = setup.shared if shared else 0
    own = setup.length - start
    tokens = start + setup.tests * own
    pairs = start * (start + 1) / 2 + setup.tests * (own * start + own * (own + 1) / 2)
    output = 2 * shape.vocab * shape.width * setup.tests
    return 2 * parameters * tokens + 4 * shape.layers * shape.width * pairs + output


def _compare(
    setup: Setup, shape: Shape, device: torch.device, dtype: torch.dtype, rate: float, peer_seconds: float
) -> Table:
    hf = build(shape, device, dtype)
    parameters = sum(p.numel() for name, p in hf.named_parameters() if ".h." in name)
    shared = make_prompts(setup, shared=True, vocab=shape.vocab)
    fresh = make_prompts(setup, shared=False, vocab=shape.vocab)
    rows: list[list[object]] = []
    found: dict[str, Run | str] = {}

    def peer(name: str, run: Callable[[Any, PromptSet], Tensor | None], model: Any, size_: int) -> None:
        found[name] = _within(peer_seconds, lambda part: run(model, part), fresh, size_)

    # The bridge builds itself into the model, so Hugging Face's own ways come first.
    peer("Hugging Face output_attentions, per prompt", eager(1), hf, 1)
    peer("Hugging Face output_attentions, batches of 8", eager(BATCH), hf, BATCH)
    peer("Hugging Face forward, reads nothing, batches of 8", last_logits, hf, BATCH)
    bridge = bridge_from_hf(hf)
    peer("run_with_cache, TransformerBridge, per prompt", cached, bridge, 1)
    mine = {}
    for name, prompts in (("ours, fresh", fresh), ("ours, shared", shared)):
        ours()(bridge, make_prompts(replace(setup, tests=2), shared=False, vocab=shape.vocab))
        mine[name] = found[name] = _whole(lambda prompts=prompts: ours()(bridge, prompts), len(prompts))

    hf.to("meta")  # frees its memory; nnsight gets a model that nothing has been built into
    renewed = build(shape, device, dtype)
    peer("nnsight, per prompt", traced(1), renewed, 1)
    renewed.to("meta")

    reference = mine["ours, fresh"].weights
    assert reference is not None
    for name, run in found.items():
        if isinstance(run, str):
            rows.append([name, "", run, "", "", "", ""])
            continue
        each = run.seconds / run.prompts
        work = flops(shape, parameters, setup, shared=name == "ours, shared") * run.prompts / setup.tests
        difference = ""
        if run.weights is not None and name not in mine:
            gap = (run.weights - reference[: len(run.weights)]).abs().max().item()
            if not gap <= TOLERANCE:
                raise RuntimeError(
                    f"every reader must find the same weights to {TOLERANCE}; {name} differs by {gap}."
                )
            difference = f"{gap:.1e}"
        memory = "" if run.memory is None else size(run.memory)
        share = f"{work / run.seconds / rate:.0%}"
        rows.append(
            [name, run.prompts, f"{run.seconds:.2f}", f"{each * 1000:.2f}", memory, share, difference]
        )
    title = f"{setup.demos} demonstrations ({setup.length:,} tokens a prompt), {setup.tests:,} test inputs"
    columns = ["case", "prompts", "seconds", "ms a prompt", "peak memory", "of matmul rate", "difference"]
    return Table(title, columns, rows, f"Peers stop after {peer_seconds:g} seconds.")


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = run()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def _whole(run: Callable[[], Tensor | None], prompts: int) -> Run:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds, weights = _timed(run)
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return Run(prompts, seconds, memory, weights)


def _within(
    limit: float, run: Callable[[PromptSet], Tensor | None], prompts: PromptSet, size_: int
) -> Run | str:
    """Batches until the time is up; or why there are none. The first batch runs once beforehand, untimed."""
    try:
        run(prompts.select(range(min(size_, len(prompts)))))
        parts: list[Tensor | None] = []
        done, seconds, memory = 0, 0.0, 0
        for part in batches(prompts, size_):
            ran = _whole(lambda part=part: run(part), len(part))
            done, seconds, memory = done + len(part), seconds + ran.seconds, max(memory, ran.memory or 0)
            parts.append(ran.weights)
            if seconds > limit:
                break
    except torch.OutOfMemoryError:
        return "ran out of memory"
    except ImportError as error:
        return str(error)
    kept = [part for part in parts if part is not None]
    return Run(done, seconds, memory or None, torch.cat(kept) if kept else None)
