"""How time and memory are measured.

Time: the cases of one comparison are run in turns, A B A B …, in one process, each after an untimed run of its model;
ratios are taken within a round, so that a machine that slows down slows both. A ratio is shown as the median
over rounds, with the smallest and the largest.

Memory on a CPU: each case runs in a process of its own, where glibc gives every tensor above 64 KiB back as soon
as it is freed (MALLOC_MMAP_THRESHOLD_), so that what is seen is what is held. It builds the one model it needs, runs the case on
short prompts, returns freed pages to the system (`malloc_trim`, where there is one), notes the resident
memory, sets the kernel's record of its peak back (5 into /proc/self/clear_refs), runs the case and reports how
far the peak (VmHWM in /proc/self/status) rose above the note. So the model itself is not counted. Where
/proc/self/clear_refs cannot be written, the record is `ru_maxrss` of the whole life of the process, and where
there is no /proc at all, the rise of `ru_maxrss` over its value before the run; the last is too low if the
model's construction held more than the run.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
Seconds = dict[str, list[float]]
"""Case → seconds in each round."""


@dataclass(frozen=True)
class Ratio:
    """Median over rounds, with the smallest and the largest."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 1 if self.median >= 10 else 2
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}–{self.high:.{digits}f})"


def interleave(
    runs: Mapping[str, Callable[[], object]], rounds: int, *, each: Mapping[str, float] | None = None
) -> Seconds:
    """Seconds of each run in each round; every run's model has been run before, untimed.

    `each` multiplies the seconds of runs that do a part of the work.
    """
    seconds: Seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            gc.collect()
            start = time.perf_counter()
            run()
            seconds[name].append((time.perf_counter() - start) * (each or {}).get(name, 1))
    return seconds


def once(run: Callable[[], object], rounds: int = 1) -> float:
    """The shortest of a few runs, without a run beforehand."""

    def timed() -> float:
        gc.collect()
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return min(timed() for _ in range(rounds))


def ratio(seconds: Seconds, over: str, under: str) -> Ratio:
    """`over` / `under`, round by round."""
    found = [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]
    return Ratio(statistics.median(found), min(found), max(found))


def median(numbers: Sequence[float]) -> float:
    return statistics.median(numbers)


def peak_rise(run: Callable[[], object]) -> int:
    """Bytes by which a run raises the peak of resident memory; see the top of this file."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    if not STATUS.exists():
        before = _ru_maxrss()
        run()
        return _ru_maxrss() - before
    before = _status("VmRSS")
    try:
        CLEAR.write_text("5")
        cleared = True
    except OSError:
        cleared = False
    run()
    return (_status("VmHWM") if cleared else _ru_maxrss()) - before


def _status(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def _ru_maxrss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_subprocess(*arguments: str) -> dict[str, Any]:
    """What `python -m benchmarks.read` with these arguments prints last, as JSON."""
    command = [sys.executable, "-m", "benchmarks.read", *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


class _Created(TorchDispatchMode):
    """Counts tensors whose storage is new and holds at least so many elements."""

    def __init__(self, at_least: int) -> None:
        super().__init__()
        self.at_least, self.count, self.largest = at_least, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and _storage(leaf) not in given:
                elements = leaf.untyped_storage().nbytes() // leaf.element_size()
                self.count += elements >= self.at_least
                self.largest = max(self.largest, elements)
        return result


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def created(run: Callable[[], object], at_least: int) -> tuple[int, int]:
    """How many tensors of at least so many elements a run creates, and the elements of the largest of all.

    Views of what was there before do not count. What one fused kernel uses inside is not seen.
    """
    with torch.no_grad(), _Created(at_least) as counter:
        run()
    return counter.count, counter.largest
