"""How far each head's attention follows the model's own kernel."""

from __future__ import annotations

from dataclasses import replace

import torch

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.axes import Pooling
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.numbers.identification import next_of_set
from icl_kernel_lens.numbers.influence import DRAWS, exchanged, fit, tail, varying_part
from icl_kernel_lens.numbers.votes import normalised
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.results.evidence import Evidence
from icl_kernel_lens.results.head_scores import HeadScores
from icl_kernel_lens.results.label_influence import LabelInfluence, Scale
from icl_kernel_lens.scores.attention import label_attention
from icl_kernel_lens.scores.common import score_heads


@checked
def influence_fidelity(
    influence: LabelInfluence,
    evidence: Evidence,
    *,
    pooling: Pooling = "label",
    scale: Scale = "log_odds",
    draws: int = DRAWS,
    seed: int = 0,
) -> HeadScores:
    """How far each head's weights follow the model's own kernel, within demonstration sets.

        w_i = a_i / Σ_j a_j,    W, I: the pair parts of w and of G (`numbers.influence.pair_part`)
        r = Σ W I / √(Σ W² Σ I²)          sums over prompts and demonstrations

    a is the attention from the answer position on demonstration i under `pooling`. Only the test input varies within a set,
    and what a set's test inputs have in common (place, demonstration, gain) is out of both: r is of the kernel alone. The
    values are linearised: their mean over prompts is r, their spread between sets that of r.
    Control: I of the next test input of the same set (`exchanged_inputs`).
    Companions: `p_family`, the probability that the best of all heads fits as well with test inputs exchanged within sets;
    `null_95`, the fit that this best exceeds in 5 % of them, the same for all heads; `slope` of I on W; `other_order`, r with
    I of another order of the same demonstrations, which place cannot explain;
    `with_influence`, the plain correlation of weights with G within prompts; `label_attention`.

    Does not show: that what both follow hangs on the demonstration: test inputs that lean to late or to early places make them
    vary alike, too (`other_order` is free of that). Nor that anything goes through the head. A head may copy a kernel that others carry (an echo): see
    `carried_influence` and `locate_heads`.
    Source: ours.

    Raises: EvidenceMissing: `evidence` was read without this pooling.
            ResultError: the evidence is of other prompts, no two prompts share their demonstrations, or no draws.
    """
    _check(influence, evidence, draws)
    prompts = evidence.prompts
    weights = evidence.pooled(pooling)
    kernel = normalised(weights.double())
    mine, theirs = varying_part(kernel, prompts.demo_set), influence.pair(scale)
    still = mine.isnan().all(-1).all(0) & ~kernel.isnan().all(-1).all(0)
    found = fit(mine, theirs)
    null = exchanged(mine, theirs, prompts.demo_set, draws=draws, seed=seed)
    size = mine.square().nansum((0, -1)).sqrt()
    share = (null / size).nan_to_num(nan=-torch.inf, posinf=-torch.inf)
    unknown = found.correlation.isnan()
    chance = share.flatten(1).amax(1).quantile(0.95) / theirs.square().nansum().sqrt()
    centred = (
        x - x.nanmean(-1, keepdim=True) for x in (weights.double(), influence.influence(scale).double())
    )
    companions = {
        "p_family": tail(share, together=True).masked_fill(unknown, torch.nan),
        "null_95": chance.expand_as(found.correlation).masked_fill(unknown, torch.nan),
        "slope": found.slope,
        "with_influence": fit(*centred).correlation,
        "label_attention": label_attention(evidence, pooling=pooling).mean(),
    }
    if len(influence.places) > 1:
        companions["other_order"] = fit(mine, influence.pair(scale, 1)).correlation
    control = fit(mine, theirs[next_of_set(prompts.demo_set)]).by_prompt
    scores = score_heads(
        evidence,
        pooling,
        found.by_prompt.float(),
        name="influence_fit",
        title="fit of the head's weights to the model's own kernel",
        unit="correlation",
        controls={"exchanged_inputs": control.float()},
        companions={name: x.float() for name, x in companions.items()},
        accuracy=influence.accuracy,
    )
    if not still.any():
        return scores
    return replace(scores, reasons={**scores.reasons, Reason.SET_ALIKE: int(still.sum()) * len(prompts)})


def _check(influence: LabelInfluence, evidence: Evidence, draws: int) -> None:
    """Refuse influence and evidence of different prompts or models, prompts whose test input never varies alone, and no draws."""
    if draws < 1:
        raise ResultError(
            f"draws must be at least 1, the observed one; got {draws}. p-values are counted on them: leave 2000.",
            code="number-range",
        )
    influence.check_evidence(evidence)
    if not influence.shares_sets:
        raise ResultError(
            "weights are compared with the model's kernel within demonstration sets, and no two of these prompts share one. "
            "Draw prompts with task.prompts(..., sets=32), so that each set has several test inputs.",
            code="not-comparable",
        )
