"""Does the model learn in context at all? Its accuracy with demonstrations, without them, and with permuted labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
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
from icl_kernel_lens.results.task_accuracy import CONDITIONS, TaskAccuracy, rules_of
from icl_kernel_lens.run.progress import work
from icl_kernel_lens.run.runner import BatchSize, tokens_to_run


@checked
def in_context_accuracy(
    model: Any,
    prompts: PromptSet,
    *,
    evidence: Evidence | None = None,
    permuted: Evidence | None = None,
    scores: Float[Tensor, "prompt label"] | None = None,
    batch_size: BatchSize = "auto",
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> TaskAccuracy:
    """The model's accuracy with demonstrations, beside that with permuted labels, without any, and of the majority class.

    Beside them, how often the last label and the commonest answer give the model's answer. `evidence` of the same prompts
    saves one of the three runs, or their label `scores` do, and `permuted`, a reading of `corrupt(prompts, "permute_labels", ...)`, another; in each, leading tokens that prompts share are run once, and prompts that share
    demonstrations share permuted ones. Prompts made from token ids cannot be written anew: for them only the accuracy and
    the majority class are measured; without true labels, only the two rules are. `reasons` says so. `checkpoint` names a
    folder in which finished prompts are kept, a folder inside for each run; see `read`.
    Does not show: what the model learns from the demonstrations, labels or format.

    Raises: ResultError: the prompts have no demonstrations, or the evidence or `permuted` is of others.
    """
    if prompts.demos == 0:
        raise ResultError(
            "in-context learning needs demonstrations; these prompts have none.",
            code="too-few-demonstrations",
        )
    adapter = as_adapter(model)
    if evidence is not None:
        check_reading(evidence, model, prompts)
    asked, reasons = _conditions(model, prompts)
    answers = {} if evidence is None else {"demonstrations": evidence.answers}
    if scores is not None:
        answers["demonstrations"] = scores.argmax(1)
    if permuted is not None:
        permuted.check_of(adapter, permuted.prompts)
        _check_permuted(permuted, prompts)
        if "permuted_labels" in asked:
            answers["permuted_labels"] = permuted.answers
    run_now = {name: which for name, which in asked.items() if name not in answers}
    with work("in-context accuracy", [tokens_to_run(x, adapter) for x in run_now.values()], progress):
        for name, which in run_now.items():
            folder = Path(checkpoint) / name if checkpoint is not None else None
            answers[name] = answer(
                model, which, batch_size=batch_size, checkpoint=folder, progress=progress
            ).argmax(1)
    run = evidence.run if evidence else RunInfo.of(adapter, prompts.info, prompts.score_on)
    return _accuracy(prompts, {name: answers[name] for name in asked}, run, reasons)


@checked
def accuracy_of(evidence: Evidence) -> TaskAccuracy:
    """What evidence alone says of the model's accuracy: with demonstrations, and of the majority class; and the two rules.

    Does not show: whether demonstrations help. That needs the model (`in_context_accuracy`), and `reasons` says so.

    Example:
              >>> from icl_kernel_lens.evidence.small import small_evidence
              >>> accuracy_of(small_evidence()).mean()
              {'demonstrations': 0.75, 'majority': 0.75}
    """
    why = Reason.NOT_RUN if evidence.prompts.test_labels is not None else Reason.NO_TRUTH
    names = ("permuted_labels", "no_demonstrations")
    return _accuracy(
        evidence.prompts, {"demonstrations": evidence.answers}, evidence.run, dict.fromkeys(names, why)
    )


def _check_permuted(permuted: Evidence, prompts: PromptSet) -> None:
    """Refuse what is no reading of these prompts with labels permuted in each.

    Raises: ResultError.
    """
    given = permuted.prompts
    same = given.tokens.shape == prompts.tokens.shape and given.score_on == prompts.score_on
    if same:
        here = torch.arange(prompts.tokens.shape[1])
        spans = prompts.label_spans[..., None]
        at_labels = ((here >= spans[:, :, 0]) & (here < spans[:, :, 1])).any(1)
        counts = [one.demo_labels.sort(1).values for one in (given, prompts)]
        same = torch.equal(*counts) and torch.equal(
            given.tokens.masked_fill(at_labels, 0), prompts.tokens.masked_fill(at_labels, 0)
        )
    if not same or torch.equal(given.demo_labels, prompts.demo_labels):
        raise ResultError(
            f"permuted must be a reading of these {len(prompts)} prompts with nothing but the labels permuted in each; it is "
            f'of {len(given)} others, or of these as they are. Read corrupt(prompts, "permute_labels", seed=0), or leave '
            "permuted= out.",
            code="evidence-of-others",
        )


def _conditions(model: Any, prompts: PromptSet) -> tuple[dict[str, PromptSet], dict[str, Reason]]:
    """The prompts of each condition that is run, and why others are not."""
    asked, names = {"demonstrations": prompts}, ("permuted_labels", "no_demonstrations")
    if prompts.test_labels is None:
        return asked, dict.fromkeys(names, Reason.NO_TRUTH)
    if not prompts.from_text:
        return asked, dict.fromkeys(names, Reason.NOT_FROM_TEXT)
    asked["permuted_labels"] = rebuilt(model, prompts, labels="permuted")
    asked["no_demonstrations"] = rebuilt(model, prompts, labels="none")
    if torch.equal(asked["permuted_labels"].demo_labels, prompts.demo_labels):
        del asked["permuted_labels"]
        return asked, {"permuted_labels": Reason.NOTHING_PERMUTED}
    return asked, {}


def _accuracy(
    prompts: PromptSet,
    answers: Mapping[str, Int[Tensor, " prompt"]],
    run: RunInfo,
    reasons: Mapping[str, Reason],
) -> TaskAccuracy:
    """What the answers under each condition come to."""
    correct: dict[str, Tensor] = {}
    if (truth := prompts.test_labels) is None:
        reasons = dict.fromkeys(CONDITIONS, Reason.NO_TRUTH)
    else:
        majority = truth.bincount(minlength=prompts.labels).argmax()
        given = {**answers, "majority": majority.expand(len(prompts))}
        correct = {name: (said == truth).float() for name, said in given.items()}
    rules = rules_of(prompts.demo_labels, answers["demonstrations"])
    return TaskAccuracy(correct, rules, prompts.demo_set, run, prompts.digest(), reasons)
