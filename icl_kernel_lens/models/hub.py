"""Finds the local folder of a model on the Hugging Face Hub, and downloads what it needs: configuration, tokenizer, weights.

One question is asked first, without a second try: which files are there? If there is no answer, what an earlier download
left in the cache is taken, and without it loading fails at once. From there on a model of the Hub is a local folder, so that
no part of transformers opens the network or starts a conversion of its weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from icl_kernel_lens.errors import LoadError
from icl_kernel_lens.models.weights import PICKLED, SAFE

PATIENCE = 10.0
"""Seconds to wait for the Hub's answer."""
_SHARD = r"-\d+-of-\d+"


@dataclass(frozen=True)
class Fetched:
    """Where a model lies here."""

    folder: Path
    revision: str | None
    """The Hub's commit; None of a folder of the user's."""
    hint: str
    """What to say if a file is missing: that the Hub could not be asked."""


def fetch(name: str, revision: str | None = None) -> Fetched:
    """The model's folder in the Hub's cache, with everything in it that loading needs.

    Raises: LoadError: there is no such model, it may not be read, or it cannot be downloaded now and was not before.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        found = HfApi().model_info(name, revision=revision, timeout=PATIENCE)
    except HFValidationError as error:
        raise _absent(name, f"as a name it is not possible: {error}") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        why = f"the Hub has none of this name, or it may not be read without logging in (hf auth login): {error}"
        raise _absent(name, why) from error
    except Exception as error:  # no network shows as errors of several libraries
        return _cached(name, revision, error)
    there = [file.rfilename for file in found.siblings or []]
    files = wanted(there)
    blocks = [file for file in there if file.endswith(".gguf")]
    if blocks and not any(file.endswith((".safetensors", ".bin")) for file in files):
        raise LoadError(
            f"a model on the Hub must have weights as safetensors or pytorch_model.bin; {name!r} has them as .gguf files "
            f"alone: {', '.join(blocks[:8])}. Download one, `hf download {name} {blocks[0]}`, and give its path.",
            code="model-hub",
        )
    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=files)
    except Exception as error:
        raise LoadError(
            f"the model {name!r} could not be downloaded from the Hub: {type(error).__name__}: {error}. Is there space on "
            "the disk, and may the model be read (hf auth login)? The same call goes on with what is there.",
            code="model-hub",
        ) from error
    return Fetched(Path(folder), Path(folder).name, "")


def _cached(name: str, revision: str | None, error: Exception) -> Fetched:
    from huggingface_hub import try_to_load_from_cache

    why = f"{type(error).__name__}: {str(error).strip() or 'no answer'}".split("\n")[0]
    for file in ("config.json", "adapter_config.json"):
        if isinstance(path := try_to_load_from_cache(name, file, revision=revision), str):
            folder = Path(path).parent
            return Fetched(folder, folder.name, f" The Hub could not be asked for more: {why}.")
    raise _absent(
        name, f"the Hub cannot be asked ({why}), and no earlier download is in the cache"
    ) from error


def _absent(name: str, why: str) -> LoadError:
    return LoadError(
        f'a model must be "mini", a folder or a .gguf file here, or a name on the Hugging Face Hub; {name!r} is '
        f'neither "mini", nor a folder here, nor readable on the Hub: {why}. Check the spelling and the network, or copy the '
        "model's folder here and give its path.",
        code="model-hub",
    )


def wanted(files: Sequence[str]) -> list[str]:
    """Of a repository's files, what loading reads: one set of weights (safetensors if there are any), no subfolders, no code."""
    top = [file for file in files if "/" not in file]
    small = [file for file in top if file.endswith((".json", ".txt", ".model", ".jinja", ".tiktoken"))]
    sets = (
        [file for file in top if file == SAFE[0]],
        [file for file in top if re.fullmatch(rf"model{_SHARD}\.safetensors", file)],
        [file for file in top if file.endswith(".safetensors") and not file.startswith("adapter")],
        [file for file in top if file == PICKLED[0]],
        [file for file in top if re.fullmatch(rf"pytorch_model{_SHARD}\.bin", file)],
    )
    adapters = ("adapter_model.safetensors", "adapter_model.bin")
    adapter = [file for file in adapters if file in top][:1]
    return [*small, *next(filter(None, sets), []), *adapter]
