"""Keeps finished prompts on disk, so that an interrupted run goes on where it stopped.

A checkpoint is a folder of shards: files in the format of every result (`results/codec.py`), each with the results of
some prompts and the numbers of these prompts. A shard says which model, prompts and settings it belongs to, and another
run's are refused. Several processes write into one folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from icl_kernel_lens import fields
from icl_kernel_lens.errors import LoadError, RunError
from icl_kernel_lens.models.adapter import ModelAdapter
from icl_kernel_lens.models.copies import parts_of
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.results import codec
from icl_kernel_lens.run.folder import explained

SAVE_EVERY = 5.0
"""Seconds of work a kill can cost, at most, beside the batch under way."""
SHARD = "Shard"
"""The kind under which a shard is stored."""
SUM = "sum."
"""Results so named are added up over prompts; all others have one row a prompt."""


def fingerprint(adapter: ModelAdapter, prompts: PromptSet, settings: Mapping[str, Any]) -> dict[str, str]:
    """The identity of a run: its model, its prompts, its settings. Two runs with the same give the same numbers."""
    return {
        "model": f"{adapter.name}, {adapter.kind}, {adapter.dtype}, weights {_weights(adapter)}",
        "prompts": f"{len(prompts)} prompts, seed {prompts.info.seed}, tokens {prompts.digest()}",
        "settings": ", ".join(f"{name}={value}" for name, value in sorted(settings.items())),
    }


def _weights(adapter: ModelAdapter) -> str:
    """A digest of every parameter, every buffer and the configuration."""
    model = adapter.model
    if not isinstance(model, nn.Module):
        return "unknown"
    numbers = {
        f"{name}.{part}" if part else name: held
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        for part, held in enumerate(parts_of(tensor))
    }
    return fields.digest(_configuration(model), numbers)[:16]


def _configuration(model: nn.Module) -> Any:
    """The settings of a model that are plain values, but for where it lives."""
    owners = (model, getattr(model, "original_model", None))
    configs = [(name, getattr(owner, name, None)) for owner in owners for name in ("cfg", "config")]
    settings = {
        f"{name}.{key}": value
        for name, config in configs
        for key, value in getattr(config, "__dict__", {}).items()
        if key not in _PLACES and isinstance(value, str | int | float | bool | list | tuple | dict)
    }
    numbers = {
        f"module {name}": {k: v for k, v in vars(module).items() if isinstance(v, float)}
        for name, module in model.named_modules()
    }
    settings |= {name: plain for name, plain in numbers.items() if plain}
    return json.loads(json.dumps(settings, default=str))


_PLACES = {"device", "n_devices", "_name_or_path", "_attn_implementation_internal"}
"""Settings that do not change what is computed; processes and resumed runs may differ in them."""


_NAMES = "tensors"
_KEPT = "What was written before is kept."


def _names(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(sorted(tensors))


def _check_shard(
    path: Path, numbers: Tensor, tensors: Mapping[str, Tensor], count: int, shapes: dict[str, torch.Size]
) -> None:
    """Refuse a shard whose results are not one row for each of its prompts, in the shape that others of its run have.

    `shapes` holds those known so far, of one prompt's row or of a whole sum.
    """
    problem = None
    if len(numbers) == 0 or not 0 <= int(numbers.min()) <= int(numbers.max()) < count:
        problem = f"its prompts must be among the {count} of this run; it names {numbers.tolist()[:5]}"
    elif len(numbers.unique()) < len(numbers):
        problem = "it must name each prompt once; one is there twice"
    for name, tensor in tensors.items():
        summed = name.startswith(SUM)
        row = tensor.shape if summed else tensor.shape[1:]
        if not summed and (tensor.dim() == 0 or len(tensor) != len(numbers)):
            problem = f"{name} must have a row for each of its {len(numbers)} prompts; its shape is {tuple(tensor.shape)}"
        elif shapes.setdefault(name, row) != row:
            problem = f"{name} must have the shape {tuple(shapes[name])}, and has {tuple(row)}"
    if problem is not None:
        raise LoadError(
            f"{path} is no whole part of this run: {problem}. Delete it and run again.",
            code="checkpoint-damaged",
        )


class Checkpoint:
    """The shards of one run in a folder; without a folder, nothing is written."""

    def __init__(self, folder: str | Path | None, identity: Mapping[str, str]) -> None:
        self.folder = Path(folder) if folder is not None else None
        self.identity = dict(identity)
        self.pending: list[dict[str, Tensor]] = []
        self.saved = time.monotonic()

    def load(
        self, count: int, sums: Mapping[str, Tensor] | None = None
    ) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """What earlier runs finished: numbers of the `count` prompts, and their results; `sums` have known shapes.

        Raises: RunError: the folder is another run's. LoadError: a shard is damaged.
        """
        if self.folder is None:
            return []
        if os.path.exists(self.folder) and not os.path.isdir(self.folder):
            raise RunError(
                f"a checkpoint is a folder; {self.folder} is a file. Choose another name.",
                code="not-a-folder",
            )
        with explained(self.folder, _KEPT, what="a checkpoint"):
            self.folder.mkdir(parents=True, exist_ok=True)
        found, shapes = [], {SUM + name: zeros.shape for name, zeros in (sums or {}).items()}
        for path in sorted(self.folder.glob("*.safetensors")):
            numbers, tensors = self._shard(path)
            _check_shard(path, numbers, tensors, count, shapes)
            found.append((numbers, tensors))
        return found

    def _shard(self, path: Path) -> tuple[Tensor, dict[str, Tensor]]:
        """The prompt numbers and the results of one shard."""
        stored = codec.read(path)
        if stored.kind != SHARD:
            raise LoadError(
                f"{path} holds a {stored.kind}, and a {SHARD} of a checkpoint was expected.",
                code="checkpoint-damaged",
            )
        run, tensors = stored.data, dict(stored.tensors)
        known = isinstance(run, dict) and run.get(_NAMES) == _names(tensors)
        numbers = tensors.pop("numbers", None)
        if not known or numbers is None or numbers.dtype != torch.long or numbers.dim() != 1:
            raise LoadError(
                "a shard must say which run and which prompts it is of, and hold every tensor that it names; "
                f"{path} does not. Delete it and run again.",
                code="checkpoint-damaged",
            )
        for part, mine in self.identity.items():
            if run.get(part) != mine:
                raise RunError(
                    f"a checkpoint can only be resumed by the run that began it; {self.folder} was written with other "
                    f"{part} ({run.get(part)}) than now ({mine}). Give the same arguments, or another folder.",
                    code="checkpoint-other",
                )
        return numbers, tensors

    def add(self, numbers: Sequence[int], results: dict[str, Tensor]) -> None:
        """Keep the results of some prompts; they are written every few seconds."""
        if self.folder is None:
            return
        self.pending.append({"numbers": torch.tensor(numbers), **results})
        if time.monotonic() - self.saved >= SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write what is kept as one more shard."""
        if self.folder is None or not self.pending:
            return
        joined: dict[str, Tensor] = {}
        for name in dict.fromkeys(name for results in self.pending for name in results):
            parts = [results[name] for results in self.pending if name in results]
            joined[name] = sum(parts[1:], parts[0]) if name.startswith(SUM) else torch.cat(parts)
        which = hashlib.sha256(joined["numbers"].numpy().tobytes()).hexdigest()[:16]
        with explained(self.folder, _KEPT, what="a checkpoint"):
            codec.write(
                self.folder / f"{which}.safetensors",
                codec.Stored(SHARD, {**self.identity, _NAMES: _names(joined)}, joined),
            )
        self.pending, self.saved = [], time.monotonic()
