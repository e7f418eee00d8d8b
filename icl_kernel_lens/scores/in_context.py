"""Does the model learn in context at all? Its accuracy with demonstrations, without them, and with permuted labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.evidence.reading import answer, check_reading
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.prompts.build import rebuilt
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.results.evidence import Evidence
from icl_kernel_lens.results.run_info import RunInfo
from icl_kernel_lens.results.task_accuracy import TaskAccuracy
from icl_kernel_lens.run.runner import BatchSize


@checked
def in_context_accuracy(
    model: Any,
    prompts: PromptSet,
    *,
    evidence: Evidence | None = None,
    batch_size: BatchSize = "auto",
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> TaskAccuracy:
    """The model's accuracy with demonstrations, beside that with permuted labels, without any, and of the majority class.

    `evidence` of the same prompts saves one of the three runs. Prompts made from token ids cannot be written
    anew: for them only the accuracy and the majority class are measured, and `reasons` says so. `checkpoint`
    names a folder in which finished prompts are kept, a folder inside for each run; see `read`.
    Does not show: what the model learns from the demonstrations, labels or format.

    Raises: ResultError: the prompts have no true labels, or no demonstrations.
    """
    truth = prompts.test_labels
    if truth is None:
        raise ResultError(
            "accuracy needs true labels; these prompts have none. Pass test_labels to PromptSet.from_tokens.",
            code="no-truth",
        )
    if prompts.demos == 0:
        raise ResultError(
            "in-context learning needs demonstrations; these prompts have none.",
            code="too-few-demonstrations",
        )
    adapter = as_adapter(model)
    if evidence is not None:
        check_reading(evidence, model, prompts)

    asked: dict[str, PromptSet] = {"demonstrations": prompts}
    reasons: dict[str, Reason] = {}
    if not prompts.from_text:
        reasons["permuted_labels"] = reasons["no_demonstrations"] = Reason.NOT_FROM_TEXT
    else:
        permuted = rebuilt(model, prompts, labels="permuted")
        if torch.equal(permuted.demo_labels, prompts.demo_labels):
            reasons["permuted_labels"] = Reason.NOTHING_PERMUTED
        else:
            asked["permuted_labels"] = permuted
        asked["no_demonstrations"] = rebuilt(model, prompts, labels="none")
    answers: dict[str, Tensor] = {}
    for name, which in asked.items():
        if evidence is not None and which is prompts:
            answers[name] = evidence.answers
        else:
            folder = Path(checkpoint) / name if checkpoint is not None else None
            answers[name] = answer(
                model, which, batch_size=batch_size, checkpoint=folder, progress=progress
            ).argmax(1)
    answers["majority"] = truth.bincount(minlength=prompts.labels).argmax()
    found = {name: (given == truth).float() for name, given in answers.items()}
    run = evidence.run if evidence else RunInfo.of(adapter, prompts.info, prompts.score_on)
    return TaskAccuracy(found, prompts.demo_set, run, reasons)
