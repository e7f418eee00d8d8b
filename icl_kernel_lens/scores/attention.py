"""How much attention a head pays to the demonstrations' labels, and to how many of them."""

from __future__ import annotations

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.axes import Pooling
from icl_kernel_lens.numbers.votes import effective_number
from icl_kernel_lens.results.evidence import Evidence
from icl_kernel_lens.results.head_scores import HeadScores
from icl_kernel_lens.scores.common import score_heads


@checked
def label_attention(evidence: Evidence, *, pooling: Pooling = "label") -> HeadScores:
    """The attention on the demonstrations' labels, Σ_i a_i: the denominator of the kernel regression.

    Between 0 and 1 for `label`; the vote of a head with next to none is noise.
    Does not show: which labels, nor what the head writes.

    Raises:   EvidenceMissing: `evidence` was read without this pooling.
    """
    return score_heads(
        evidence,
        pooling,
        evidence.pooled(pooling).sum(-1),
        name="label_attention",
        title="attention on the demonstrations",
        unit="attention",
        companions={"sink": evidence.sink.nanmean(0)},
    )


@checked
def effective_demos(evidence: Evidence, *, pooling: Pooling = "label") -> HeadScores:
    """The number of demonstrations that share the head's vote: 1 / Σ_i w_i², w_i = a_i / Σ_j a_j.

    Between 1 (one demonstration decides) and the number of demonstrations (uniform weights): the kernel's bandwidth
    as a count. Does not show: whether the demonstrations it looks at are the similar ones.

    Raises:   EvidenceMissing: `evidence` was read without this pooling.
    """
    return score_heads(
        evidence,
        pooling,
        effective_number(evidence.pooled(pooling)),
        name="effective_demos",
        title="demonstrations sharing the vote",
        unit="demonstrations",
        companions={"sink": evidence.sink.nanmean(0)},
    )
