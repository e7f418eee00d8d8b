"""The parts that all scores share: the answers compared with, the reasons for NaN, and the result made of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.axes import Pooling, Reference, check_reference
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.results.evidence import Evidence
from icl_kernel_lens.results.head_scores import HeadScores, ShownDemos
from icl_kernel_lens.results.task_accuracy import TaskAccuracy
from icl_kernel_lens.scores.in_context import accuracy_of

SHOWN_PROMPTS = 4
"""Prompts whose weights are kept with the scores, to be looked at."""


def reference(evidence: Evidence, against: Reference) -> Int[Tensor, " prompt"]:
    """The answers that a score compares with: the model's own, or the true labels.

    Raises: ResultError: not an `Evidence`, no demonstrations, or no true labels.
    """
    if not isinstance(evidence, Evidence):
        raise ResultError(
            f"a score is computed from Evidence; got a {type(evidence).__name__}. Read the model first: "
            "read(model, prompts).",
            code="wrong-type",
        )
    check_reference(against)
    prompts = evidence.prompts
    if prompts.demos == 0:
        raise ResultError(
            "a vote needs demonstrations; these prompts have none. Draw them with demos=16, for example.",
            code="too-few-demonstrations",
        )
    if against == "model":
        return evidence.answers
    if prompts.test_labels is None:
        raise ResultError(
            'against="truth" needs true labels; these prompts have none. Pass test_labels to '
            'PromptSet.from_tokens, or compare against="model".',
            code="no-truth",
        )
    return prompts.test_labels


def score_heads(
    evidence: Evidence,
    pooling: Pooling,
    values: Float[Tensor, "prompt layer head"],
    *,
    name: str,
    title: str,
    unit: str,
    controls: Mapping[str, Tensor] | None = None,
    companions: Mapping[str, Tensor] | None = None,
    against: Reference | None = None,
    accuracy: TaskAccuracy | None = None,
) -> HeadScores:
    """A score's values as `HeadScores`, with reasons, provenance and prompts to show taken from the evidence.

    `against` names what the values were compared with, for scores that can choose it; `accuracy` is what its text begins
    with, by default what the evidence alone says.

    Raises: ResultError: the accuracy is of other prompts or of another model.
    """
    if accuracy is not None:
        accuracy.check_of(evidence.run, evidence.prompts)
    answer, weights = reference(evidence, against or "model"), evidence.pooled(pooling)
    return HeadScores(
        name=name,
        title=title,
        unit=unit,
        values=values,
        controls=controls or {},
        companions=companions or {},
        reasons=reasons_for(evidence, weights) if values.isnan().any() else {},
        demo_set=evidence.prompts.demo_set,
        run=evidence.run,
        settings=({"against": against} if against else {})
        | {"pooling": pooling}
        | ({"offsets": str(evidence.offsets)} if pooling == "edges" else {}),
        shown=shown_demos(evidence, weights, answer),
        accuracy=accuracy or accuracy_of(evidence),
    )


def reasons_for(evidence: Evidence, weights: Float[Tensor, "prompt layer head demo"]) -> dict[Reason, int]:
    """Why cells cannot be scored, counted over (prompt, head)."""
    prompts, layers, heads = weights.shape[:3]
    there = torch.ones(layers, dtype=torch.bool)
    there[list(evidence.missing)] = False
    seen = weights[:, there]
    blank = seen.isnan().any(-1)
    counts = {
        Reason.NO_ATTENTION_LAYER: prompts * heads * len(evidence.missing),
        Reason.NO_TOKEN: int(blank.sum()),
        Reason.NO_ATTENTION: int(((seen.sum(-1) <= 0) & ~blank).sum()),
    }
    return {why: count for why, count in counts.items() if count}


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
