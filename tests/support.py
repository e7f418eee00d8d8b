"""What several test files need: where development data are, what is installed, uneven prompts."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from architectures import VOCAB

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
    not SHARED.exists(),
    reason="development data and weights (a folder `shared` beside the project) are absent",
)
chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(chromium is None, reason="no Chromium on this machine")


def uneven_prompts(count: int = 5, demos: int = 3):
    """Random prompts of different lengths, with demonstrations of different sizes."""
    from icl_kernel_lens import PromptSet

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
