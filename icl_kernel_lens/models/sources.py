"""Turns what a user has, a name, a folder, a file, a Hugging Face model or an adapter, into a Hugging Face model of our own.

    what is given                                   how it is read
    "mini", a folder, a name on the Hub             `weights.py` (a name's folder: `hub.py`)
    a .gguf file                                    `gguf_files.py`
    an adapter's folder, a PeftModel                `peft_adapters.py`, merged; the unmerged model's logits are kept
    a Hugging Face model                            `copies.py`: another copy of its modules over the same weights

Each gets a name that tells it from others: where it was read from, with its quantisation, its adapter, or for an object
in memory a short digest of its weights.
"""

from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from icl_kernel_lens.errors import LoadError
from icl_kernel_lens.models import gguf_files, hub, peft_adapters
from icl_kernel_lens.models.comparison import Reference
from icl_kernel_lens.models.copies import copy_of, digest_of, quantisation_of
from icl_kernel_lens.models.weights import read_folder, read_tokenizer

MINI = Path(__file__).parent / "mini"
"""Weights, tokenizer and training record of the bundled model."""


@dataclass(frozen=True)
class Source:
    """A Hugging Face model with eager attention that may be built into, and where it came from."""

    hf: Any
    tokenizer: Any | None
    name: str
    says: str
    """Where it came from, in words."""
    revision: str | None = None
    quantisation: str | None = None
    """What its weights were stored in, in words; None: in floats."""
    theirs: Reference | None = None
    """The logits it must have, where they are not those of `hf` itself: an unmerged adapter's."""


def source_of(
    given: Any,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    tokenizer: Any | None = None,
) -> Source:
    """Reads or copies the model that is given; `device="auto"` spreads what is read from files.

    Raises: LoadError: as `load_model`.
    """
    if isinstance(given, str | Path):
        found = _from_files(given, device, dtype, find_tokenizer=tokenizer is None)
    else:
        found = _from_object(given, device, dtype)
    if tokenizer is not None:
        found = replace(found, tokenizer=deepcopy(tokenizer))  # it will be told what pads
    if found.quantisation is None and (packed := quantisation_of(found.hf)):
        found = replace(found, name=f"{found.name} ({packed[0]})", quantisation=packed[1])
    return found


def _from_files(
    given: str | Path, device: str | torch.device | None, dtype: torch.dtype | None, *, find_tokenizer: bool
) -> Source:
    spread, path = device == "auto", MINI if given == "mini" else Path(given).expanduser()
    if os.path.isfile(path):
        found = _from_gguf(path, dtype, spread=spread, find_tokenizer=find_tokenizer)
    elif os.path.isdir(path):
        name = "mini" if path == MINI else _folder_name(path)
        place = hub.Fetched(path, None, "")
        found = _from_folder(place, name, str(given), dtype, spread=spread, find_tokenizer=find_tokenizer)
    elif isinstance(given, Path) or str(given).startswith((".", "/", "~")) or path.suffix == ".gguf":
        raise LoadError(
            f"there is no file or folder {str(given)!r} (looked for in {Path.cwd()}). Check the path.",
            code="model-folder",
        )
    else:
        place = hub.fetch(given)
        found = _from_folder(place, given, given, dtype, spread=spread, find_tokenizer=find_tokenizer)
    return found if spread else replace(found, hf=_moved(found.hf, device))


def _from_gguf(path: Path, dtype: torch.dtype | None, *, spread: bool, find_tokenizer: bool) -> Source:
    if path.suffix != ".gguf":
        raise LoadError(
            f"a local model is a folder in Hugging Face format or a .gguf file; {path} is another file. Give its folder.",
            code="model-folder",
        )
    file = gguf_files.GgufFile.of(path)
    tokenizer = gguf_files.read_gguf_tokenizer(file) if find_tokenizer else None
    hf = gguf_files.read_gguf(file, dtype, spread=spread)
    return Source(hf, tokenizer, file.name, str(path), quantisation=file.quantisation)


def _from_folder(
    place: hub.Fetched,
    name: str,
    says: str,
    dtype: torch.dtype | None,
    *,
    spread: bool,
    find_tokenizer: bool,
) -> Source:
    folder, tokenizer = place.folder, None
    adapted = (folder / peft_adapters.CONFIG).exists()
    if adapted:
        peft_adapters.needs_peft(folder)
    if find_tokenizer:
        tokenizer = read_tokenizer(folder)
    if adapted and not (folder / "config.json").exists():
        base, revision = peft_adapters.base_named(folder)
        under = _base(base, revision, folder, dtype, spread=spread)
        model = peft_adapters.with_adapter(under.hf, folder)
        hf, theirs = peft_adapters.merged(model, keep=False)
        both = f"{under.name} + {name}"
        return replace(
            under,
            hf=hf,
            theirs=theirs,
            name=both,
            tokenizer=tokenizer or under.tokenizer,
            says=f"{says}, an adapter of {under.says}",
        )
    hf, theirs = read_folder(folder, dtype, spread=spread, hint=place.hint), None
    if peft_adapters.tuned_modules(hf):  # of an adapter beside the weights, which transformers puts in
        hf, theirs = peft_adapters.merged(hf, keep=False)
    return Source(hf, tokenizer, name, says, place.revision, theirs=theirs)


def _base(
    base: str, revision: str | None, adapter: Path, dtype: torch.dtype | None, *, spread: bool
) -> Source:
    """An adapter's base model: a folder, also one beside the adapter's, or a name on the Hub."""
    for path in (Path(base).expanduser(), adapter / base):
        if path.is_dir():
            place, name = hub.Fetched(path, None, ""), _folder_name(path)
            return _from_folder(place, name, str(path), dtype, spread=spread, find_tokenizer=True)
    try:
        place = hub.fetch(base, revision)
    except LoadError as error:
        raise LoadError(
            f"the base model that {adapter / peft_adapters.CONFIG} names must be had: {error.message} Or write its folder "
            'there as "base_model_name_or_path".',
            code="model-adapter",
        ) from error
    return _from_folder(place, base, base, dtype, spread=spread, find_tokenizer=True)


def _from_object(given: Any, device: str | torch.device | None, dtype: torch.dtype | None) -> Source:
    if device == "auto":
        raise LoadError(
            'device="auto" lays out a model while it is read from files; this one is loaded already. Leave device= out: it '
            "stays where it is.",
            code="device",
        )
    adapted, theirs = peft_adapters.is_peft_model(given), None
    config = given.get_base_model().config if adapted else given.config
    says = f"a {type(given).__name__} that was given"
    name = f"{config.name_or_path or type(given).__name__}, {digest_of(given)}"
    hf = copy_of(given, device=device, dtype=dtype)
    if adapted or peft_adapters.tuned_modules(hf):
        hf, theirs = peft_adapters.merged(hf, keep=True)
    return Source(hf, None, name, says, getattr(config, "_commit_hash", None), theirs=theirs)


def _folder_name(path: Path) -> str:
    """A folder's last two names: the last alone is often "hf" or "checkpoint-500"."""
    return "/".join(path.resolve().parts[-2:]).lstrip("/")


def _moved(hf: Any, device: str | torch.device | None) -> Any:
    try:
        return hf.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (
        RuntimeError,
        AssertionError,
        ValueError,
    ) as error:  # transformers does not move some quantised models
        if device is None:
            return hf
        raise LoadError(
            f"the model cannot be moved to device {str(device)!r}: {error}", code="device"
        ) from error
