"""Does a head, read as a kernel regression over the demonstrations' labels, give the model's answer?"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.axes import Pooling, Reference
from icl_kernel_lens.numbers.control_votes import shuffled_credit, simple_votes
from icl_kernel_lens.numbers.intervals import RATE
from icl_kernel_lens.numbers.votes import cohen_kappa, credit, hard_vote, kernel_regression
from icl_kernel_lens.results.evidence import Evidence
from icl_kernel_lens.results.head_scores import HeadScores
from icl_kernel_lens.results.task_accuracy import TaskAccuracy
from icl_kernel_lens.scores.attention import effective_demos, label_attention
from icl_kernel_lens.scores.common import reference, score_heads
from icl_kernel_lens.scores.soft import soft_agreement

COMPANIONS = (soft_agreement, label_attention, effective_demos)
"""Scores whose mean is read beside every vote."""


@checked
def head_vote(
    evidence: Evidence,
    *,
    against: Reference = "model",
    pooling: Pooling = "label",
    accuracy: TaskAccuracy | None = None,
) -> HeadScores:
    """How often a head, read as a kernel regression over the labels, gives the model's own answer.

        answer_h = argmax_y  Σ_i a_i [y_i = y]        Han et al. (TMLR 2025), section 5.2

    where a_i is the attention from the answer position to demonstration i's label token
    (`pooling="span_max"`: the largest weight in the demonstration, as in the paper). k labels tied
    within 1e-6 earn 1/k. `against="truth"` compares with the true labels instead (the paper's Fig. 3b).
    What it prints begins with whether there is anything to explain: `accuracy`, if it was measured
    (`in_context_accuracy`), else what evidence alone says of it, and that the rest was not measured.

    Reads as: 1 always the model's answer; compare with `controls`, not with 1/labels.
    Companions: `kappa` (Cohen's, beyond both label frequencies), `soft_agreement`, `label_attention`
    (attention on the demonstrations), `effective_demos` (how many share the vote); and for a span
    pooling `without_first`, the same vote without position 0, because an attention sink inside
    the first demonstration makes every head vote y₁.
    Does not show: that the head causes the answer, nor that its weights come from the inputs
    rather than from the label words. The best of many heads is better here than on new prompts.

    Raises:   EvidenceMissing: `evidence` was read without this pooling.
              ResultError: no demonstrations, no true labels to compare with, or an accuracy of others.
    Example:
              >>> from icl_kernel_lens.evidence.small import small_evidence
              >>> head_vote(small_evidence()).mean()
              tensor([[1.0000, 0.0000],
                      [0.5000,    nan]])
    """
    answer, prompts = reference(evidence, against), evidence.prompts
    labels, classes, weights = prompts.demo_labels, prompts.labels, evidence.pooled(pooling)

    def vote(kernel: Float[Tensor, "prompt layer head demo"]) -> Float[Tensor, "prompt layer head label"]:
        return hard_vote(kernel_regression(kernel, labels, classes))

    controls = {name: credit(v, answer) for name, v in simple_votes(labels, answer, classes).items()}
    controls["shuffled_labels"] = shuffled_credit(
        weights, labels, answer, classes, seed=(prompts.info.seed or 0) % 2**63
    )
    companions = {"kappa": cohen_kappa(vote(weights), answer)}
    companions |= {score.name: score.mean() for score in (of(evidence, pooling=pooling) for of in COMPANIONS)}
    if (bare := evidence.weights.get(f"{pooling}_without_first")) is not None:
        companions["without_first"] = credit(vote(bare), answer).nanmean(0)
    whose = "the model's answer" if against == "model" else "the true label"
    return score_heads(
        evidence,
        pooling,
        credit(vote(weights), answer),
        name="head_vote",
        title=f"agreement of the head's vote with {whose}",
        unit=RATE,
        controls=controls,
        companions=companions,
        against=against,
        accuracy=accuracy,
    )
