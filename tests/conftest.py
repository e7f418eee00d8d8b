"""Tiny random models, built once per session; the package is imported under jaxtyping and beartype."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
_hook = install_import_hook("icl_kernel_lens", "beartype.beartype")

SHARED = Path(__file__).parents[1] / "shared"
if not SHARED.exists():
    SHARED = Path(__file__).parents[2] / "shared"


def has_hooked_transformer() -> bool:
    """Whether this TransformerLens still has the class (up to 3.9)."""
    return find_spec("transformer_lens.HookedTransformer") is not None


needs_hooked = pytest.mark.skipif(
    not has_hooked_transformer(), reason="this TransformerLens has no HookedTransformer (removed in 4.0)"
)
needs_shared = pytest.mark.skipif(
    not SHARED.exists(), reason="development data and weights (a folder `shared` beside the project) are absent"
)
chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(chromium is None, reason="no Chromium on this machine")

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
