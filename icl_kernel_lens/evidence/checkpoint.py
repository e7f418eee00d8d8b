"""Finished prompts on disk, so that an interrupted run goes on where it stopped.

A checkpoint is a folder of shards: safetensors files, each with the results of some prompts and their
numbers, written whole or not at all. Their header says which model, prompts and settings they belong to,
and another run's are refused. Several processes write into one folder.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

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
        "prompts": f"{len(prompts)} prompts, seed {prompts.info.seed}, tokens {prompt_digest(prompts)}",
        "settings": ", ".join(f"{name}={value}" for name, value in sorted(settings.items())),
    }


def _weights(lens: Lens) -> str:
    """A digest of every parameter, every buffer and the configuration."""
    digest, model = hashlib.sha256(), lens.model
    if not isinstance(model, nn.Module):
        return "unknown"
    digest.update(_configuration(model).encode())
    parameters = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, parameter in sorted(parameters.items()):
        _update(digest, name, parameter)
    return digest.hexdigest()[:16]


def _configuration(model: nn.Module) -> str:
    """The settings of a model that are plain values, but for where it lives."""
    found: dict[str, Any] = {}
    for owner in (model, getattr(model, "original_model", None)):
        for name in ("cfg", "config"):
            config = getattr(owner, name, None)
            for key, value in sorted(getattr(config, "__dict__", {}).items()):
                if key not in _PLACES and isinstance(value, str | int | float | bool | list | tuple | dict):
                    found[f"{name}.{key}"] = value
    for name, module in model.named_modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, float)}
        if plain:
            found[f"module {name}"] = plain
    return json.dumps(found, sort_keys=True, default=str)


_PLACES = {"device", "n_devices", "_name_or_path", "_attn_implementation_internal"}
"""Settings that do not change what is computed; processes and resumed runs may differ in them."""


def _update(digest: Any, name: str, tensor: Tensor) -> None:
    numbers = tensor.detach().cpu().contiguous()
    digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
    digest.update(numbers.reshape(-1).view(torch.uint8).numpy().data)


def prompt_digest(prompts: PromptSet) -> str:
    """A digest of the tokens and of every position."""
    digest = hashlib.sha256(prompts.score_on.encode())
    for name in ("tokens", "lengths", "roles", "answer_pos", "demo_spans", "label_spans", "demo_labels"):
        digest.update(getattr(prompts, name).contiguous().numpy().tobytes())
    for name in ("label_sequences", "label_lengths"):
        digest.update(getattr(prompts, name).contiguous().numpy().tobytes())
    if prompts.test_labels is not None:
        digest.update(prompts.test_labels.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _contents(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        _update(digest, name, tensor)
    return digest.hexdigest()


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
            if "numbers" not in tensors or _contents(tensors) != meta.get("contents"):
                raise LoadError(
                    f"a shard must hold what was written; {path} holds something else: it is damaged. Delete it and "
                    "run again: its prompts are run anew."
                )
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
        meta = {"run": self.identity, "contents": _contents(joined)}
        try:
            store.write(self.folder / f"{which}.safetensors", _KIND, joined, meta)
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"a checkpoint must be writable; {self.folder} is not ({error}). Is the disk full? What was written "
                "before is kept; the same call goes on from there."
            ) from error
        self.pending, self.saved = [], time.monotonic()
