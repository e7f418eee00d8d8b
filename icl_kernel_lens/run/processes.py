"""Splits prompts over the processes of torchrun; each reads some of them, and all end with the whole result.

Outside `joined()` nothing is split, also in a program that uses torch.distributed for itself.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from icl_kernel_lens.errors import RunError


@dataclass(frozen=True)
class Processes:
    """This process among its fellows."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    """Where tensors must lie to be exchanged."""

    @property
    def first(self) -> bool:
        """Whether this process prints, draws its bar and writes the results."""
        return self.rank == 0

    def add(self, results: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sum over all processes: each holds zeros where another one has the numbers."""
        if self.size == 1:
            return dict(results)
        return {
            name: self._reduced(results[name].to(self.device)).to(results[name].device)
            for name in sorted(results)
        }

    def check_same(self, what: str, fingerprint: str) -> None:
        """Refuses to share work that is not the same in every process."""
        if self.size == 1:
            return
        digest = int.from_bytes(hashlib.sha256(fingerprint.encode()).digest()[:7], "big")
        total = self._reduced(torch.tensor([digest, -digest], device=self.device), dist.ReduceOp.MAX)
        if total[0] != -total[1]:
            raise RunError(
                f"every process must be given the same {what}; process {self.rank} of {self.size} has others. Is a "
                "seed or a file different from process to process?",
                code="processes-differ",
            )

    def _reduced(self, tensor: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
        """The tensor itself, with what all processes hold of it put together."""
        try:
            dist.all_reduce(tensor, op)
        except RuntimeError as error:
            raise RunError(
                f"all {self.size} processes must reach the end; process {self.rank} lost another one "
                f"({str(error).splitlines()[0]}). See the output of the one that failed. With a checkpoint, the "
                "same command goes on from what was finished.",
                code="process-lost",
            ) from error
        return tensor


def _ending_with_a_word() -> Any:
    """Let SIGTERM, with which torchrun ends the others when one process is lost, raise an error that says so.

    Returns what answered the signal before; None where that is the program's own function, which stays, or outside of
    the main thread.
    """
    inside = threading.current_thread() is threading.main_thread()
    if not inside or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return None

    def end(_signal: int, _frame: Any) -> None:
        rank = here().rank
        raise RunError(
            f"all processes must reach the end; process {rank} was told to stop (SIGTERM), as torchrun does when another one "
            "has failed or was killed. See the output of that one. With a checkpoint, the same command goes on from what "
            "was finished.",
            code="process-lost",
        )

    return signal.signal(signal.SIGTERM, end)


_here: ContextVar[Processes] = ContextVar("processes")


def here() -> Processes:
    """This process; alone outside `joined()`."""
    return _here.get(Processes())


@contextmanager
def joined() -> Iterator[Processes]:
    """Splits what is read within the context over the processes of torchrun; without torchrun, changes nothing.

    Every process must do the same calls with the same prompts, and ends with the whole result; what only one shall do
    (print, save) goes behind `if group.first`. gloo joins them on CPUs, nccl on GPUs; each process loads the model on
    its own `group.device`.

        with joined() as group:
            evidence = read(load_model("gpt2", device=group.device), prompts)
            if group.first:
                evidence.save("evidence.safetensors")
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or here().size > 1:
        yield here()
        return
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    before = _ending_with_a_word()
    own = not dist.is_initialized()
    if own:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    token = _here.set(Processes(dist.get_rank(), dist.get_world_size(), device))
    try:
        yield here()
    finally:
        _here.reset(token)
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        if own:
            dist.destroy_process_group()
