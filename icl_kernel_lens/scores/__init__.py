"""Scores: one number per prompt and head, computed from an `Evidence` alone.

    vote.py        head_vote           agreement of the head's vote with the model's answer
    soft.py        soft_agreement      closeness of its label shares to the model's label probabilities
    attention.py   label_attention     attention on the demonstrations
                   effective_demos     number of demonstrations that share the vote
    in_context.py  in_context_accuracy whether the model learns in context at all (it runs the model)
    notes.py       notes_of            what a reader must know before believing the numbers

To add a score, write one file with one function, `(evidence, *, pooling) -> HeadScores`: take the weights from
`evidence.pooled(pooling)`, compute `values` (prompt × layer × head; NaN where a head cannot be scored), and the
same numbers under `controls` that know less than the head; hand them to `score_heads` (`common.py`), which adds reasons,
demonstration sets, provenance and the prompts to show. To read it beside every vote, add it to `COMPANIONS` (`vote.py`).
"""

from icl_kernel_lens.scores.attention import effective_demos, label_attention
from icl_kernel_lens.scores.in_context import in_context_accuracy
from icl_kernel_lens.scores.soft import soft_agreement
from icl_kernel_lens.scores.vote import head_vote

__all__ = ["effective_demos", "head_vote", "in_context_accuracy", "label_attention", "soft_agreement"]
