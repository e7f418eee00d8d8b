"""Writes an `Evidence` by hand, small enough to be checked by hand: for examples and tests."""

from __future__ import annotations

import torch

from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.results.evidence import Evidence
from icl_kernel_lens.results.run_info import RunInfo


def small_evidence() -> Evidence:
    """Four prompts of three demonstrations (labels 0, 1, 0), two layers of two heads.

    L0H0 looks at a demonstration with the model's answer, L0H1 at one with the other label, L1H0 at all
    alike, L1H1 at none: on `head_vote` they score 1, 0, chance and NaN.
    """
    answers = torch.tensor([0, 1, 1, 0])
    labels = torch.tensor([[0, 1, 0]]).repeat(4, 1)
    weights = torch.zeros(4, 2, 2, 3)
    right = labels == answers[:, None]
    weights[:, 0, 0] = torch.where(right, 0.3, 0.1)
    weights[:, 0, 1] = torch.where(right, 0.01, 0.4)
    weights[:, 1, 0] = 0.2
    prompts = PromptSet.from_tokens(
        torch.tensor([[1, 50, 2, 51, 3, 50, 4]]).repeat(4, 1),
        torch.tensor([[1, 3, 5]]).repeat(4, 1),
        labels,
        torch.tensor([50, 51]),
        test_labels=torch.tensor([0, 1, 0, 0]),
    )
    return Evidence(
        prompts=prompts,
        weights={"label": weights},
        sink=torch.zeros(4, 2, 2),
        label_scores=torch.nn.functional.one_hot(answers, 2) * 2.0,
        model_tokens=50 + answers,
        profile=torch.zeros(2, 2, 123),
        rows=torch.zeros(4, 2, 2, 7),
        missing={},
        run=RunInfo(
            model="by hand",
            kind="none",
            source=None,
            revision=None,
            loaded_because=None,
            dtype="float32",
            device="cpu",
            layers=2,
            heads=2,
            prompts=prompts.info,
            score_on="first_token",
            verification="not a model",
        ),
    )
