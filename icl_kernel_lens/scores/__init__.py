"""Scores: evidence in, head scores out; one analyzer a file."""

from icl_kernel_lens.scores.bandwidth import effective_demos, label_mass
from icl_kernel_lens.scores.head_vote import head_vote
from icl_kernel_lens.scores.in_context import TaskAccuracy, in_context_accuracy
from icl_kernel_lens.scores.soft_agreement import soft_agreement

__all__ = [
    "TaskAccuracy",
    "effective_demos",
    "head_vote",
    "in_context_accuracy",
    "label_mass",
    "soft_agreement",
]
