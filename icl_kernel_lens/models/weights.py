"""Reads a Hugging Face model and its tokenizer from a folder: safetensors, or a `pytorch_model.bin` as tensors and nothing else.

Nothing here opens the network (`hub.py` does, before), runs code that stands beside the weights, or unpickles an object:
PyTorch reads a `.bin` with `weights_only=True`, which refuses whatever is no tensor before it is built.
"""

from __future__ import annotations

import pickle
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from icl_kernel_lens.errors import LoadError

SAFE = ("model.safetensors", "model.safetensors.index.json")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
"""Whole or in shards, as transformers names them."""
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def read_folder(folder: Path, dtype: torch.dtype | None, *, spread: bool = False, hint: str = "") -> Any:
    """The model of a folder in Hugging Face format, in the type that its weights are stored in unless told otherwise.

    Safetensors are preferred where there are any. `hint` says what else may be the cause where a file is missing.

    Raises: LoadError: a file is missing or damaged, weights are missing, or a `.bin` holds what is no tensor.
    """
    holds = sorted(path.name for path in folder.iterdir())
    blocks = [name for name in holds if name.endswith(".gguf")]
    if blocks and not any(name.endswith((".safetensors", ".bin")) for name in holds):
        raise LoadError(
            f"a model folder must hold weights as model.safetensors or pytorch_model.bin; {folder} holds them as .gguf files "
            f"alone: {', '.join(blocks[:8])}. Give the path of one.",
            code="model-folder",
        )
    if "config.json" not in holds:
        raise LoadError(
            f"a model folder must hold config.json, model.safetensors or pytorch_model.bin, and a tokenizer; {folder} "
            f"holds {holds[:8]}.{hint} Save one with save_pretrained(folder); the path of a .gguf file can be given, too.",
            code="model-folder",
        )
    safe = any(name in holds for name in SAFE) or not any(name in holds for name in PICKLED)
    if safe and not any(name.endswith(".safetensors") for name in holds):
        raise LoadError(
            f"a model folder must hold weights, as model.safetensors or pytorch_model.bin (or shards of one with their "
            f"index); {folder} holds {holds[:8]}.{hint} Is the download or the copy whole?",
            code="model-folder",
        )
    return read_model(folder, folder, dtype, spread=spread, use_safetensors=safe)


def read_model(
    file: Path, folder: Path, dtype: torch.dtype | str | None, *, spread: bool, **options: Any
) -> Any:
    """transformers' own reading, without network and without remote code; `file` is what errors name."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    try:
        with ExitStack() as stack:
            if logging.is_progress_bar_enabled():  # mapping a file into memory needs none
                logging.disable_progress_bar()
                stack.callback(logging.enable_progress_bar)
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # the error says what matters
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                output_loading_info=True,
                dtype=dtype or "auto",
                attn_implementation="eager",
                trust_remote_code=False,
                local_files_only=True,
                **options,
                **({"device_map": "auto"} if spread else {}),
            )
    except pickle.UnpicklingError as error:
        raise LoadError(
            f"a pytorch_model.bin must hold tensors and nothing else; one in {file} holds another pickled object, which could "
            f"run code when it is read. It was refused and nothing in it was run. PyTorch said: {_first_line(error)} Get "
            "the model as safetensors, from someone you trust.",
            code="model-pickle",
        ) from error
    except ImportError as error:
        raise LoadError(
            f"the model {str(file)!r} needs a package that is not installed: {error}", code="package-missing"
        ) from error
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError, EOFError) as error:
        raise LoadError(
            f"could not load the model {str(file)!r}. Its files must be whole, and of an architecture that transformers "
            f"knows. The loader said: {type(error).__name__}: {error}",
            code="model-folder",
        ) from error
    hf, info = loaded
    if absent := sorted(info["missing_keys"]):
        raise LoadError(
            f"every weight must be in the files; {file} lacks {len(absent)}, among them {absent[:3]}, which would be "
            "random. Is the download or the copy whole, and is config.json of this model?",
            code="model-folder",
        )
    return hf.eval()


def read_tokenizer(folder: Path) -> Any | None:
    """The tokenizer of a folder; None where there is none: such a model still works, with PromptSet.from_tokens.

    Raises: LoadError: there is one, and it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # a damaged file fails in as many ways as there are parsers
        if any((folder / name).exists() for name in TOKENIZERS):
            raise LoadError(f"the tokenizer in {folder} cannot be read: {error}", code="tokenizer") from error
        return None


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
