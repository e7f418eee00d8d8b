"""Finished prompts on disk, so that an interrupted run goes on where it stopped.

A checkpoint is a folder of shards: safetensors files, each with the results of some prompts and their
numbers, written whole or not at all. Their header says which model, prompts and settings they belong to,
and another run's are refused. Several processes write into one folder.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icl_kernel_lens.errors import LoadError, RunError
from icl_kernel_lens.models import Lens
from icl_kernel_lens.prompts import PromptSet
from icl_kernel_lens.results import store

SAVE_EVERY = 5.0
"""Seconds of work a kill can cost, at most, beside the batch under way."""
_KIND = "Shard"
SUM = "sum."
"""Results so named are added up over prompts; all others have one row a prompt."""


def fingerprint(lens: Lens, prompts: PromptSet, settings: Mapping[str, Any]) -> dict[str, str]:
    """What a run is: its model, its prompts, its settings. Two runs with the same one give the same numbers."""
    return {
        "model": f"{lens.name}, {lens.kind}, {lens.dtype}, weights {_weights(lens)}",
        "prompts": f"{len(prompts)} prompts, seed {prompts.info.seed}, tokens {_tokens(prompts)}",
        "settings": ", ".join(f"{name}={value}" for name, value in sorted(settings.items())),
    }


def _weights(lens: Lens) -> str:
    """A digest of a few numbers of every parameter."""
    digest = hashlib.sha256()
    model: Any = lens.model
    parameters = dict(model.named_parameters()) if hasattr(model, "named_parameters") else {}
    for name, parameter in sorted(parameters.items()):
        flat = parameter.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // 31)][:32].float().cpu()
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()[:16]


def _tokens(prompts: PromptSet) -> str:
    digest = hashlib.sha256(prompts.score_on.encode())
    for name in ("tokens", "lengths", "roles", "answer_pos", "demo_spans", "label_spans", "demo_labels"):
        digest.update(getattr(prompts, name).contiguous().numpy().tobytes())
    for name in ("label_sequences", "label_lengths"):
        digest.update(getattr(prompts, name).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class Checkpoint:
    """The shards of one run in a folder; without a folder, nothing is written."""

    def __init__(self, folder: str | Path | None, identity: Mapping[str, str]) -> None:
        self.folder = Path(folder) if folder is not None else None
        self.identity = dict(identity)
        self.pending: list[tuple[Tensor, dict[str, Tensor]]] = []
        self.saved = time.monotonic()

    def load(self) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """What earlier runs finished: prompt numbers and their results.

        Raises: RunError: the folder is another run's. LoadError: a shard is damaged.
        """
        if self.folder is None:
            return []
        if self.folder.exists() and not self.folder.is_dir():
            raise RunError(f"a checkpoint is a folder; {self.folder} is a file. Choose another name.")
        self.folder.mkdir(parents=True, exist_ok=True)
        found: list[tuple[Tensor, dict[str, Tensor]]] = []
        for path in sorted(self.folder.glob("*.safetensors")):
            tensors, meta = store.read(path, _KIND)
            self._check(path, meta.get("run"))
            if "numbers" not in tensors:
                raise LoadError(f"{path} lacks the numbers of its prompts; delete it and run again.")
            found.append((tensors.pop("numbers"), tensors))
        return found

    def _check(self, path: Path, run: Any) -> None:
        if not isinstance(run, dict):
            raise LoadError(f"{path} does not say which run it is of; delete it and run again.")
        for part, mine in self.identity.items():
            if run.get(part) != mine:
                raise RunError(
                    f"a checkpoint can only be resumed by the run that began it; {self.folder} was written with other "
                    f"{part} ({run.get(part)}) than now ({mine}). Give the same arguments, or another folder."
                )

    def add(self, numbers: list[int], results: dict[str, Tensor]) -> None:
        """Keep the results of some prompts; they are written every few seconds."""
        if self.folder is None:
            return
        self.pending.append((torch.tensor(numbers), results))
        if time.monotonic() - self.saved >= SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write what is kept as one more shard."""
        if self.folder is None or not self.pending:
            return
        numbers = torch.cat([n for n, _ in self.pending])
        joined: dict[str, Tensor] = {"numbers": numbers}
        for name in dict.fromkeys(name for _, results in self.pending for name in results):
            parts = [results[name] for _, results in self.pending if name in results]
            joined[name] = sum(parts[1:], parts[0]) if name.startswith(SUM) else torch.cat(parts)
        which = hashlib.sha256(numbers.numpy().tobytes()).hexdigest()[:16]
        store.write(self.folder / f"{which}.safetensors", _KIND, joined, {"run": self.identity})
        self.pending, self.saved = [], time.monotonic()
