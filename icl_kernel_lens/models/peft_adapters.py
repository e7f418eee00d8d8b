"""Merges a PEFT adapter into its base model, whose unmerged logits stay the reference.

    W' = W + scale · B A        for LoRA, and what PEFT itself does for its other methods

The comparison (`comparison.py`) is with the unmerged model, run by PEFT's own code before anything is merged. Does not show:
an adapter that adds no weights to weights (prompt tuning, prefix tuning), which cannot be merged and is refused.
"""

from __future__ import annotations

import json
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from icl_kernel_lens.errors import LoadError
from icl_kernel_lens.models.comparison import Reference, reference
from icl_kernel_lens.models.copies import copy_of

CONFIG = "adapter_config.json"


def needs_peft(what: object) -> None:
    """Raises LoadError where the package is absent."""
    if find_spec("peft") is None:
        raise LoadError(
            f'an adapter is read with the package peft, which is not installed: {what}. Run pip install "icl-kernel-lens[peft]".',
            code="package-missing",
        )


def base_named(folder: Path) -> tuple[str, str | None]:
    """The base model that an adapter's configuration names, a folder or a name on the Hub, and its revision.

    Raises: LoadError: it names none.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())
        base, revision = config["base_model_name_or_path"], config.get("revision")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(
            f"{folder / CONFIG} must name the base model; it cannot be read: {type(error).__name__}: {error}.",
            code="model-adapter",
        ) from error
    if not base:
        raise LoadError(
            f"{folder / CONFIG} must name the adapter's base model, and names none. Write its folder or its name on the Hub "
            'as "base_model_name_or_path", or give load_model the PeftModel itself.',
            code="model-adapter",
        )
    return str(base), revision


def with_adapter(hf: Any, folder: Path) -> Any:
    """A PeftModel of a base model, into which it is built, and the adapter of a folder.

    Raises: LoadError: the adapter is damaged, or of another base model.
    """
    from peft import PeftModel

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            model = PeftModel.from_pretrained(hf, str(folder))
        except Exception as error:  # as many ways as there are methods
            raise LoadError(
                f"the adapter {str(folder)!r} does not go with its base model {hf.config.name_or_path!r}: "
                f"{type(error).__name__}: {error}. Is the copy whole, and the base model the one it was trained on?",
                code="model-adapter",
            ) from error
    absent = [str(one.message) for one in said if "missing" in str(one.message).lower()]
    if absent:
        raise LoadError(
            f"every weight of an adapter must be in its file; {folder} lacks some: {absent[0][:300]}",
            code="model-adapter",
        )
    return model.eval()


def is_peft_model(model: Any) -> bool:
    """Whether an object is a PeftModel; PEFT is not imported for it."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def tuned_modules(model: Any) -> list[Any]:
    """The modules that PEFT put in place of a model's own, whoever did so."""
    if "peft" not in sys.modules:
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return [part for part in model.modules() if isinstance(part, BaseTunerLayer | AuxiliaryTrainingWrapper)]


def merged(model: Any, *, keep: bool) -> tuple[Any, Reference]:
    """The base model with its adapters merged into its weights, and the logits of the unmerged one.

    `keep` leaves the weights of `model` as they are: what is merged into is copied before.

    Raises: LoadError: its adapters cannot be merged.
    """
    wrapped = is_peft_model(model)
    base = model.get_base_model() if wrapped else model
    theirs = reference(base, run=model)
    model = copy_of(model, apart=tuned_modules(model)) if keep else model
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # PEFT warns of what the comparison decides: rounding, tied weights
            plain = model.merge_and_unload() if wrapped else _merged_in_place(model)
    except Exception as error:  # as many ways as there are methods
        raise LoadError(
            f"an adapter must be merged into its base model's weights to be read; this one cannot be: "
            f"{type(error).__name__}: {error}. Prompt and prefix tuning add tokens, not weights; "
            "other methods can be merged in float32, without quantisation.",
            code="model-adapter",
        ) from error
    if left := tuned_modules(plain):
        raise LoadError(
            f"an adapter must be merged into its base model's weights to be read; {len(left)} parts of this one are left "
            f"({type(left[0]).__name__} the first).",
            code="model-adapter",
        )
    return plain, theirs


def _merged_in_place(hf: Any) -> Any:
    """Of a model into which transformers put an adapter (`load_adapter`): every part merged and its own module again."""
    tuned = set(tuned_modules(hf))
    for parent in list(hf.modules()):
        for name, part in list(parent.named_children()):
            if part not in tuned or parent in tuned:
                continue
            if hasattr(part, "unload_and_optionally_merge_module"):
                plain = part.unload_and_optionally_merge_module(
                    merge=True, safe_merge=False, adapter_names=None
                )
            else:
                part.merge()
                plain = part.get_base_layer()
            setattr(parent, name, plain)
    vars(hf).pop("peft_config", None)
    hf._hf_peft_config_loaded = False
    return hf
