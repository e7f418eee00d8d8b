"""Does a head, read as a kernel regression over the demonstrations' labels, give the model's answer?"""

from __future__ import annotations

from icl_kernel_lens.axes import Pooling, Reference
from icl_kernel_lens.evidence import Evidence
from icl_kernel_lens.kernels.regression import (
    cohen_kappa,
    credit,
    effective_number,
    hard_vote,
    kernel_regression,
)
from icl_kernel_lens.results.head_scores import HeadScores
from icl_kernel_lens.scores.common import reasons_for, reference, shown_demos
from icl_kernel_lens.scores.controls import shuffled_credit, simple_votes
from icl_kernel_lens.scores.soft_agreement import soft_agreement_values


def head_vote(evidence: Evidence, *, against: Reference = "model", pooling: Pooling = "label") -> HeadScores:
    """How often a head, read as a kernel regression over the labels, gives the model's own answer.

        answer_h = argmax_y  Σ_i a_i [y_i = y]        Han et al. (TMLR 2025), section 5.2

    where a_i is the attention from the answer position to demonstration i's label token
    (`pooling="span_max"`: the largest weight in the demonstration, as in the paper). k labels tied
    within 1e-6 earn 1/k. `against="truth"` compares with the true labels instead (the paper's Fig. 3b).

    Reads as: 1 always the model's answer; compare with `controls`, not with 1/labels.
    Companions: `kappa` (Cohen's, beyond both label frequencies), `soft_agreement`, `label_mass`
    (attention on the demonstrations), `effective_demos` (how many share the vote); and for a span
    pooling `without_first`, the same vote without position 0, because an attention sink inside
    the first demonstration makes every head vote y₁.
    Does not show: that the head causes the answer, nor that its weights come from the inputs
    rather than from the label words. The best of many heads is better here than on new prompts.

    Raises:   EvidenceMissing: `evidence` was read without this pooling.
              ResultError: no demonstrations, or no true labels to compare with.
    Example:
              >>> from icl_kernel_lens.evidence.small import small_evidence
              >>> head_vote(small_evidence()).mean()
              tensor([[1.0000, 0.0000],
                      [0.5000,    nan]])
    """
    answer = reference(evidence, against)
    prompts = evidence.prompts
    weights = evidence.pooled(pooling)
    shares = kernel_regression(weights, prompts.demo_labels, prompts.labels)
    vote = hard_vote(shares)
    values = credit(vote, answer)
    controls = {
        name: credit(simple, answer)
        for name, simple in simple_votes(prompts.demo_labels, answer, prompts.labels).items()
    }
    controls["shuffled_labels"] = shuffled_credit(
        weights, prompts.demo_labels, answer, prompts.labels, seed=(prompts.info.seed or 0) % 2**63
    )
    companions = {
        "kappa": cohen_kappa(vote, answer),
        "soft_agreement": soft_agreement_values(shares, evidence.label_probabilities).nanmean(0),
        "label_mass": weights.sum(-1).nanmean(0),
        "effective_demos": effective_number(weights).nanmean(0),
    }
    if f"{pooling}_without_first" in evidence.weights:
        bare = evidence.weights[f"{pooling}_without_first"]
        votes = hard_vote(kernel_regression(bare, prompts.demo_labels, prompts.labels))
        companions["without_first"] = credit(votes, answer).nanmean(0)
    whose = "the model's answer" if against == "model" else "the true label"
    return HeadScores(
        name="head_vote",
        title=f"agreement of the head's vote with {whose}",
        unit="fraction of prompts",
        values=values,
        controls=controls,
        companions=companions,
        reasons=reasons_for(evidence, weights),
        demo_set=prompts.demo_set,
        run=evidence.run,
        settings={"against": against, "pooling": pooling},
        shown=shown_demos(evidence, weights, answer),
    )
