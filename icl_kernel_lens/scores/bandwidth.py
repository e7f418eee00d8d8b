"""How much a head looks at the demonstrations' labels, and at how many of them."""

from __future__ import annotations

from icl_kernel_lens.axes import Pooling
from icl_kernel_lens.evidence import Evidence
from icl_kernel_lens.kernels.regression import effective_number
from icl_kernel_lens.results.head_scores import HeadScores
from icl_kernel_lens.scores.common import reasons_for, reference, shown_demos


def label_mass(evidence: Evidence, *, pooling: Pooling = "label") -> HeadScores:
    """The attention on the demonstrations' labels, Σ_i a_i: the denominator of the kernel regression.

    Between 0 and 1 for `label`; a head with next to none votes with noise.
    Does not show: which labels, nor what the head writes.

    Raises:   EvidenceMissing: `evidence` was read without this pooling.
    """
    return _describe(evidence, pooling, "label_mass", "attention on the demonstrations", "attention")


def effective_demos(evidence: Evidence, *, pooling: Pooling = "label") -> HeadScores:
    """How many demonstrations share the head's vote: 1 / Σ_i w_i², w_i = a_i / Σ_j a_j.

    Between 1 (one demonstration decides) and their number (uniform): the kernel's bandwidth as a count.
    Does not show: whether the demonstrations it looks at are the similar ones.

    Raises:   EvidenceMissing: `evidence` was read without this pooling.
    """
    return _describe(
        evidence, pooling, "effective_demos", "demonstrations sharing the vote", "demonstrations"
    )


def _describe(evidence: Evidence, pooling: Pooling, name: str, title: str, unit: str) -> HeadScores:
    answer = reference(evidence, "model")
    weights = evidence.pooled(pooling)
    values = weights.sum(-1) if name == "label_mass" else effective_number(weights)
    return HeadScores(
        name=name,
        title=title,
        unit=unit,
        values=values,
        controls={},
        companions={"sink": evidence.sink.nanmean(0)},
        reasons=reasons_for(evidence, weights) if values.isnan().any() else {},
        demo_set=evidence.prompts.demo_set,
        run=evidence.run,
        settings={"pooling": pooling},
        shown=shown_demos(evidence, weights, answer),
    )
