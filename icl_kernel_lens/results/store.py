"""Results on disk: tensors as safetensors, everything else as JSON in its header. Never pickle.

One file holds one result. What is read back is checked before it is believed: the kind of result, the
format's version, and the names of the tensors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from icl_kernel_lens.errors import LoadError

FORMAT = 1
"""Version of the format; raised whenever an older reader would misread a file."""
_KEY = "icl_kernel_lens"


def write(path: str | Path, kind: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
    """Write one result; the file appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"kind": kind, "format": FORMAT, "meta": dict(meta)})
    partial = path.with_name(f".{path.name}.{uuid4().hex}.partial")
    try:
        save_file(
            {
                name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, tensor in tensors.items()
            },
            partial,
            metadata={_KEY: header},
        )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read_header(path: str | Path) -> dict[str, Any]:
    """The kind, format and metadata of a saved result.

    Raises: LoadError: no such file, not one of ours, or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise LoadError(f"a saved result must be a file; there is none at {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
    except (SafetensorError, OSError) as error:
        raise LoadError(
            f"a saved result must be a safetensors file; {path} is not ({error}). Was it cut short, or "
            "written by another program?"
        ) from error
    if text is None:
        raise LoadError(
            f"{path} is a safetensors file without this library's header, perhaps a model's weights. "
            "Results are written by their own save() method."
        )
    try:
        header = json.loads(text)
        kind, version, meta = header["kind"], header["format"], dict(header["meta"])
    except (ValueError, KeyError, TypeError) as error:
        raise LoadError(f"the header of {path} cannot be read ({error!r}); the file is damaged.") from error
    if version != FORMAT:
        raise LoadError(
            f"{path} has format version {version}; this library reads version {FORMAT}. Read it with the "
            f"version that wrote it ({_written_by(meta)})."
        )
    return {"kind": kind, "meta": meta}


def _written_by(meta: dict[str, Any]) -> str:
    try:
        return str(meta["run"]["versions"]["icl-kernel-lens"])
    except (KeyError, TypeError):
        return "unknown"


def read(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a saved result of the kind asked for."""
    header = read_header(path)
    if header["kind"] != kind:
        raise LoadError(f"{path} holds a {header['kind']}, and a {kind} was asked for.")
    with safe_open(Path(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors, header["meta"]


def missing_field(path: str | Path, kind: str, error: Exception) -> LoadError:
    """The error for a file whose header is right and whose content is not."""
    return LoadError(f"{path} does not hold a whole {kind}: {error}. The file is damaged; make it anew.")
