"""What every analyzer takes from an `Evidence`: answers to compare with, reasons for NaN, prompts to show."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.axes import Reference, check_reference
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.evidence import Evidence
from icl_kernel_lens.results.head_scores import ShownDemos

SHOWN_PROMPTS = 4
"""Prompts whose weights travel with the scores, to be looked at."""


def reference(evidence: Evidence, against: Reference) -> Int[Tensor, " prompt"]:
    """The answers to compare with."""
    if not isinstance(evidence, Evidence):
        raise ResultError(
            f"a score is computed from Evidence; got a {type(evidence).__name__}. Read the model first: "
            "read(model, prompts)."
        )
    check_reference(against)
    prompts = evidence.prompts
    if prompts.demos == 0:
        raise ResultError(
            "a vote needs demonstrations; these prompts have none. Draw them with demos=16, for example."
        )
    if against == "model":
        return evidence.answers
    if prompts.test_labels is None:
        raise ResultError(
            'against="truth" needs true labels; these prompts have none. Pass test_labels to '
            'PromptSet.from_tokens, or compare against="model".'
        )
    return prompts.test_labels


def reasons_for(evidence: Evidence, weights: Float[Tensor, "prompt layer head demo"]) -> dict[str, int]:
    """Why cells cannot be scored, counted over (prompt, head)."""
    prompts, layers, heads = weights.shape[:3]
    found: dict[str, int] = {}
    for why in evidence.missing.values():
        found[why] = found.get(why, 0) + prompts * heads
    there = torch.ones(layers, dtype=torch.bool)
    there[list(evidence.missing)] = False
    seen = weights[:, there]
    blank = seen.isnan().any(-1)
    counts = {
        "a demonstration without a token that counts": blank.sum(),
        "no attention on the demonstrations": ((seen.sum(-1) <= 0) & ~blank).sum(),
    }
    return found | {why: int(count) for why, count in counts.items() if count}


def shown_demos(
    evidence: Evidence, weights: Float[Tensor, "prompt layer head demo"], answer: Int[Tensor, " prompt"]
) -> ShownDemos:
    """The first prompts' weights with their texts."""
    prompts = evidence.prompts
    count = min(SHOWN_PROMPTS, len(prompts.strings))
    return ShownDemos(
        weights=weights[:count].clone(),
        demo_labels=prompts.demo_labels[:count].clone(),
        answers=answer[:count].clone(),
        label_words=prompts.label_words[:count],
        texts=tuple(prompts.demo_texts(prompt) for prompt in range(count)),
    )
