"""Notes on a run: sentences that a reader must know before believing its numbers."""

from __future__ import annotations

from icl_kernel_lens.results.evidence import Evidence
from icl_kernel_lens.results.head_scores import HeadScores


def notes_of(evidence: Evidence, scores: HeadScores) -> list[str]:
    """The notes that apply: no head above its control, a model that always gives one answer, or hardly ever a label."""
    found = []
    mean = scores.mean()
    if mean.isnan().all():
        found.append("No head could be scored.")
    elif not ((scores.above_control() > 0) & scores.reads_labels()).any():
        found.append(
            "No head that reads the labels is above its strongest control: nothing here votes like a kernel regression."
        )
    answers = evidence.answers.bincount(minlength=evidence.prompts.labels)
    if answers.max() == len(evidence.answers):
        found.append(
            "The model gives the same answer to every prompt, so there is nothing for a head to agree with."
        )
    said = (evidence.model_tokens[:, None] == evidence.prompts.label_tokens).any(1).float().mean().item()
    if said < 0.5:
        found.append(
            f"In {said:.1%} of the prompts the model's likeliest next token begins a label word: it hardly answers "
            "with a label, and its choice among them may mean little."
        )
    return found
