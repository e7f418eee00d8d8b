"""What several test files need: where development data are, what is installed, uneven prompts."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, HOOKED, VOCAB

from icl_kernel_lens import PromptSet
from icl_kernel_lens.models import verify
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.models.verify import verify_model
from icl_kernel_lens.run import runner

SHARED = Path(__file__).parents[1] / "shared"
if not SHARED.exists():
    SHARED = Path(__file__).parents[2] / "shared"


def unchecked(function):
    """A function as users call it: around the type check, where it is checked."""
    return getattr(function, "__wrapped__", function)


def has_hooked_transformer() -> bool:
    """Whether this TransformerLens still has the class (up to 3.9)."""
    return find_spec("transformer_lens.HookedTransformer") is not None


needs_hooked = pytest.mark.skipif(
    not has_hooked_transformer(), reason="this TransformerLens has no HookedTransformer (removed in 4.0)"
)
needs_shared = pytest.mark.skipif(
    not SHARED.exists(),
    reason="development data and weights (a folder `shared` beside the project) are absent",
)
chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(chromium is None, reason="no Chromium on this machine")


KINDS = [
    pytest.param(
        name,
        kind,
        id=f"{name}-{kind}",
        marks=pytest.mark.skipif(
            kind == "hooked" and not has_hooked_transformer(),
            reason="this TransformerLens has no HookedTransformer (removed in 4.0)",
        ),
    )
    for name in ARCHITECTURES
    for kind in ("bridge", "hooked")
    if kind == "bridge" or name in HOOKED
]
"""Every architecture under every model class that holds it."""


@contextmanager
def verified_otherwise(monkeypatch, model, **changes):
    """Within, verifying this model gives a report that differs in these fields."""
    report = replace(verify_model(as_adapter(model)), **changes)
    with monkeypatch.context() as patch:
        for module in (verify, runner):
            patch.setattr(module, "verify_model", lambda _: report)
        yield


def uneven_prompts(count: int = 5, demos: int = 3):
    """Random prompts of different lengths, with demonstrations of different sizes."""
    generator = torch.Generator().manual_seed(7)
    width = 60
    tokens = torch.randint(3, VOCAB, (count, width), generator=generator)
    labels = torch.randint(0, 3, (count, demos), generator=generator)
    gaps = torch.randint(2, 9, (count, demos), generator=generator)
    label_pos = gaps.cumsum(1)
    answer_pos = label_pos[:, -1] + torch.randint(1, 10, (count,), generator=generator)
    words = torch.tensor([10, 20, 30])
    return PromptSet.from_tokens(
        tokens.scatter(1, label_pos, words[labels]),
        label_pos,
        labels,
        words,
        answer_pos=answer_pos,
        test_labels=torch.randint(0, 3, (count,), generator=generator),
    )


def shared_prompts(sets: int = 2, tests: int = 3, demos: int = 4):
    """Random prompts that share demonstrations, 40 tokens or so (longer than any test model's window), with
    test inputs of different lengths; and one prompt of its own."""
    generator = torch.Generator().manual_seed(11)
    count, width = sets * tests + 1, 70
    demo_set = torch.arange(sets).repeat_interleave(tests)
    demo_set = torch.cat([demo_set, torch.tensor([sets])])
    gaps = torch.randint(7, 12, (sets + 1, demos), generator=generator)
    label_pos = gaps.cumsum(1)[demo_set]
    labels = torch.randint(0, 3, (sets + 1, demos), generator=generator)[demo_set]
    tokens = torch.randint(3, VOCAB, (sets + 1, width), generator=generator)[demo_set]
    own = torch.randint(3, VOCAB, (count, width), generator=generator)
    tokens = torch.where(torch.arange(width) > label_pos[:, -1:], own, tokens)
    words = torch.tensor([10, 20, 30])
    return PromptSet.from_tokens(
        tokens.scatter(1, label_pos, words[labels]),
        label_pos,
        labels,
        words,
        answer_pos=label_pos[:, -1] + torch.randint(3, 16, (count,), generator=generator),
        test_labels=torch.randint(0, 3, (count,), generator=generator),
        demo_set=demo_set,
    )


def same_evidence(found, expected, atol: float = 1e-5) -> None:
    """Every number of two readings of the same prompts."""
    assert set(found.weights) == set(expected.weights)
    for name, weights in expected.weights.items():
        torch.testing.assert_close(
            found.weights[name],
            weights,
            atol=atol,
            rtol=0,
            equal_nan=True,
            msg=lambda m, name=name: f"{name}: {m}",
        )
    for name in ("sink", "profile", "rows"):
        numbers = getattr(expected, name)
        torch.testing.assert_close(
            getattr(found, name),
            numbers,
            atol=atol,
            rtol=0,
            equal_nan=True,
            msg=lambda m, name=name: f"{name}: {m}",
        )
    torch.testing.assert_close(found.label_scores, expected.label_scores, atol=10 * atol, rtol=0)
    assert torch.equal(found.model_tokens, expected.model_tokens)
