"""Tiny random models, built once per session; the package is imported under jaxtyping and beartype."""

from __future__ import annotations

import os
import sys

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
_hook = install_import_hook("icl_kernel_lens", "beartype.beartype")

assert "icl_kernel_lens" not in sys.modules, "the package must be imported under the type-checking hook"


@pytest.fixture(scope="session")
def tiny():
    """`tiny(architecture, kind)`: the model and a separate Hugging Face copy with the same weights."""
    from architectures import hf_model

    from icl_kernel_lens.models import bridge_from_hf, hooked_from_hf

    made = {}

    def make(architecture: str, kind: str = "bridge"):
        if (architecture, kind) not in made:
            wrap = {"bridge": bridge_from_hf, "hooked": hooked_from_hf}[kind]
            made[architecture, kind] = wrap(hf_model(architecture), name=architecture), hf_model(architecture)
        return made[architecture, kind]

    return make


@pytest.fixture(scope="session")
def mini():
    """The bundled model."""
    from icl_kernel_lens import load_model

    return load_model("mini", device="cpu")
