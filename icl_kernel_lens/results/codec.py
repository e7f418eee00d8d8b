"""The file format of every result: tensors as safetensors, everything else as JSON in its header. Never pickle.

One file holds one result. What is stored is what the annotations of its class declare (`fields.py`), under a digest
of all of it, so that a changed byte is refused. The format has a version of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from icl_kernel_lens import fields
from icl_kernel_lens.errors import LoadError
from icl_kernel_lens.files import replacing

FORMAT = 4
"""Version of the format; raised whenever an older reader would misread a file."""
_KEY = "icl_kernel_lens"
_BEFORE = {
    1: "icl-kernel-lens 0.1 before results were declared",
    3: "icl-kernel-lens 0.1 before results of heads began with the task accuracy",
}
"""Who wrote the formats that are no longer read."""


@dataclass(frozen=True)
class Stored:
    """What a file holds: the name of a kind of result, its JSON, its tensors."""

    kind: str
    data: Any
    tensors: Mapping[str, Tensor]


def write(path: str | Path, stored: Stored) -> Path:
    """Write one result; the file appears whole or not at all.

    Raises: RunError: it cannot be written; what stood there before is as it was.
    """
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in stored.tensors.items()
    }
    digest = fields.digest([stored.kind, FORMAT, stored.data], tensors)
    header = {"kind": stored.kind, "format": FORMAT, "data": stored.data, "digest": digest}
    with replacing(path) as partial:
        try:
            save_file(tensors, partial, metadata={_KEY: json.dumps(header)})
        except SafetensorError as error:  # which is how it tells of a full disk
            raise OSError(str(error)) from error
    return Path(path)


def read(path: str | Path) -> Stored:
    """What a file holds.

    Raises: LoadError: no such file, not one of ours, of another format, or changed since it was written.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise LoadError(f"a saved result must be a file; there is none at {path}.", code="file-absent")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()} if text else {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise LoadError(
            f"a saved result must be a safetensors file; {path} is not ({error}). Was it cut short, or written by "
            "another program?",
            code="file-foreign",
        ) from error
    if text is None:
        raise LoadError(
            f"{path} is a safetensors file without this library's header, perhaps a model's weights. Results are written "
            "by their own save() method.",
            code="file-foreign",
        )
    try:
        header = json.loads(text)
        kind, version = str(header["kind"]), header["format"]
        data, digest = (header["data"], header["digest"]) if version == FORMAT else (None, None)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise LoadError(
            f"the header of {path} cannot be read ({error!r}); the file is damaged.", code="file-damaged"
        ) from error
    if version != FORMAT:
        by = _BEFORE.get(version) if isinstance(version, int) else None
        raise LoadError(
            f"{path} has format {version!r}{f' (of {by})' if by else ''}; this library reads format {FORMAT}. Read it with "
            "the version that wrote it, or make it anew.",
            code="file-format",
        )
    if fields.digest([kind, FORMAT, data], tensors) != digest:
        raise LoadError(
            f"{path} is not what was written: its digest does not match its contents. Make it anew.",
            code="file-damaged",
        )
    return Stored(kind, data, tensors)
