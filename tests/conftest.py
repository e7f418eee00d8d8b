"""Tiny random models, built once per session.

The package is imported under jaxtyping and beartype (pytest's option in pyproject.toml), and so not here at the top.
"""

from __future__ import annotations

import os
import sys

import pytest

pytest_plugins = ["first_calls"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def _one_door():
    """Over the whole session, only `run/`, verification and loading run a model; each process of the tests asserts it."""
    from icl_kernel_lens.models.transformer_lens_adapters import TransformerLensAdapter

    forward, others = TransformerLensAdapter.forward, set()

    def recorded(adapter, *args, **kwargs):
        frame = sys._getframe(1)
        while frame is not None and not _asks_for_a_run(frame.f_globals.get("__name__", "")):
            frame = frame.f_back
        caller = "" if frame is None else frame.f_globals["__name__"]
        if caller and not caller.startswith(DOOR):
            others.add(caller)
        return forward(adapter, *args, **kwargs)

    TransformerLensAdapter.forward = recorded
    yield
    TransformerLensAdapter.forward = forward
    assert not others, f"only {', '.join(DOOR)} may run a model; {', '.join(sorted(others))} did, too"


DOOR = ("icl_kernel_lens.run.", "icl_kernel_lens.models.verify", "icl_kernel_lens.models.comparison")


def _asks_for_a_run(module: str) -> bool:
    """Whether a module of the package runs the model, and not the function that every run goes through."""
    return module.startswith("icl_kernel_lens.") and module != "icl_kernel_lens.models.attention_passes"


@pytest.fixture(scope="session")
def tiny():
    """`tiny(architecture, kind)`: the model and a separate Hugging Face copy with the same weights."""
    from architectures import hf_model

    from icl_kernel_lens.models.load import bridge_from_hf, hooked_from_hf

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
