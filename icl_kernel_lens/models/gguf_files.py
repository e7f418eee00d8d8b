"""Reads a `.gguf` file: its weights dequantised by transformers, and which quantisation they came from.

A quantised number stands for a float, and that float is what is read: the model computes in float32 what llama.cpp computes
from the same blocks, up to rounding. Does not show: what quantisation cost, for which the unquantised model is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from icl_kernel_lens.errors import LoadError
from icl_kernel_lens.models.hooks import instead
from icl_kernel_lens.models.weights import read_model

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of tensors that are stored as they are."""


@dataclass(frozen=True)
class GgufFile:
    """What a file says of itself."""

    path: Path
    name: str
    """`general.name`, or the file's own name, and the type of most weights."""
    weights: Counter[str]
    """Numbers of each type of tensor."""
    has_tokenizer: bool

    @classmethod
    def of(cls, path: Path) -> GgufFile:
        """Reads the head of a file.

        Raises: LoadError: the package gguf is absent, or this is no such file, or one part of several.
        """
        if find_spec("gguf") is None:
            raise LoadError(
                f'a .gguf file is read with the package gguf, which is not installed: {path}. Run pip install "icl-kernel-lens[gguf]".',
                code="package-missing",
            )
        from gguf import GGUFReader

        try:
            reader = GGUFReader(path)
            said = {key: reader.fields[key].contents() for key in _SAID if key in reader.fields}
            weights: Counter[str] = Counter()
            for tensor in reader.tensors:
                weights[tensor.tensor_type.name] += int(tensor.n_elements)
            [(most, _)] = weights.most_common(1)
        except Exception as error:  # a damaged file fails in as many ways as it has fields
            raise LoadError(
                f"a .gguf file must hold a model in GGUF format; {path} cannot be read: {type(error).__name__}: {error}. Is the "
                "download or the copy whole?",
                code="model-folder",
            ) from error
        if int(said.get("split.count") or 1) > 1:
            raise LoadError(
                f"a model must be in one .gguf file; {path} is one of {said['split.count']}. Join them with llama.cpp's "
                "llama-gguf-split --merge.",
                code="model-folder",
            )
        name = f"{said.get('general.name') or path.stem} ({most})"
        return cls(path, name, weights, "tokenizer.ggml.tokens" in reader.fields)

    @property
    def quantisation(self) -> str | None:
        """In words; None where every weight is stored as a float."""
        if set(self.weights) <= set(FLOATS):
            return None
        kinds, (most, count) = (
            [kind for kind, _ in self.weights.most_common()],
            self.weights.most_common(1)[0],
        )
        listed = " and ".join(filter(None, [", ".join(kinds[:-1]), kinds[-1]]))
        return f"{listed}: {count / self.weights.total():.0%} of weights in {most}".replace("%", " %")

    @property
    def dtype(self) -> torch.dtype:
        """Half precision where the file's weights are, beside norms in float32; else float32, which holds every quantised number."""
        halves = [kind for kind in ("BF16", "F16") if kind in self.weights]
        return FLOATS[halves[0]] if self.quantisation is None and len(halves) == 1 else torch.float32


_SAID = ("general.name", "split.count")


def read_gguf(file: GgufFile, dtype: torch.dtype | None, *, spread: bool) -> Any:
    """The Hugging Face model of a file, dequantised.

    Raises: LoadError: an architecture that transformers does not read from GGUF, or a damaged file.
    """
    import transformers

    options: dict[str, Any] = {"gguf_file": file.path.name}
    if hasattr(transformers, "GgufConfig"):  # else blocks stay packed where a kernel for them is installed
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with _without_bar():
        hf = read_model(file.path, file.path.parent, dtype or file.dtype, spread=spread, **options)
    vars(hf.config).pop("quantization_config", None)  # the weights are floats now
    vars(hf).pop("hf_quantizer", None)
    return hf


@contextmanager
def _without_bar() -> Iterator[None]:
    """Within, transformers' older reader shows no progress bar: it is tqdm's own, which transformers' switch does not reach."""
    try:
        reader: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    except ImportError:  # of another transformers
        yield
        return
    if not hasattr(reader, "tqdm"):
        yield
        return
    with instead(reader, "tqdm", lambda tensors, **_: tensors):
        yield


def read_gguf_tokenizer(file: GgufFile) -> Any | None:
    """The tokenizer in a file; None where it has none.

    Raises: LoadError: transformers cannot read it.
    """
    from transformers import AutoTokenizer

    if not file.has_tokenizer:
        return None
    try:
        return AutoTokenizer.from_pretrained(
            file.path.parent, gguf_file=file.path.name, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # as many ways as there are kinds of tokenizers
        raise LoadError(
            f"the tokenizer in {file.path} cannot be read by transformers: {type(error).__name__}: {error}. Give the "
            "original model's: load_model(path, tokenizer=AutoTokenizer.from_pretrained(...)).",
            code="tokenizer",
        ) from error
