"""One small instance of every kind of saved result, made without a model: what the fuzz and round-trip tests go through."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from charts.located import curves, ranking, run_info
from results.influence_made import made_influence
from theory.examples import theory_examples

from icl_kernel_lens.evidence.small import small_evidence
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.results.base import Result
from icl_kernel_lens.results.carried_influence import CarriedInfluence
from icl_kernel_lens.results.label_coverage import CutRows, LabelCoverage
from icl_kernel_lens.results.logit_attribution import LogitAttribution
from icl_kernel_lens.results.patch_effects import Estimates, PatchEffects
from icl_kernel_lens.results.saliency import Saliency
from icl_kernel_lens.results.stability import Stability
from icl_kernel_lens.results.task_accuracy import TaskAccuracy
from icl_kernel_lens.scores.vote import head_vote

P, L, H, D = 6, 2, 2, 3


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def task_accuracy() -> TaskAccuracy:
    right = (drawn(4, P) > 0).float()
    return TaskAccuracy(
        correct={"demonstrations": torch.ones(P), "no_demonstrations": right[0], "majority": right[1]},
        rules={"last_label": right[2], "commonest_answer": right[3]},
        demo_set=torch.arange(P) // 2,
        run=run_info(L, H),
        digest="of the prompts",
        reasons={"permuted_labels": Reason.NOTHING_PERMUTED},
    )


def logit_attribution() -> LogitAttribution:
    weights, read_outs = drawn(P, L, H, D).softmax(-1), drawn(P, L, H, D)
    return LogitAttribution(
        heads=(weights * read_outs).sum(-1),
        demos=weights * read_outs,
        weights=weights,
        read_outs=read_outs,
        mlps=drawn(P, L),
        embedding=drawn(P),
        attention_biases=drawn(P, L),
        biases=drawn(P),
        total=drawn(P),
        residual=1e-6,
        toward=torch.arange(P) % 2,
        demo_labels=torch.arange(P * D).reshape(P, D) % 2,
        labels=2,
        demo_set=torch.arange(P) // 2,
        run=run_info(L, H),
        settings={"toward": "model"},
    )


def saliency() -> Saliency:
    wp, pq, ww = drawn(3, P, L, H).abs()
    return Saliency(
        wp, pq, ww, drawn(P, L, 3).abs(), torch.arange(P) // 2, run_info(L, H), {"toward": "truth"}
    )


def stability() -> Stability:
    return Stability(
        {"first": ranking(2, 2, {(1, 1): "kernel head"}), "other": ranking(2, 3, {(1, 1): "driver"})}
    )


def patch_effects() -> PatchEffects:
    places = {"layer": (0, 1), "head": (0, 1, 2), "offset": (-1, 0)}
    shape = tuple(map(len, places.values()))
    compared = Estimates(
        tuple((0,) * (len(shape) - 1) + (i % shape[-1],) for i in range(3)), drawn(P, 3), drawn(P, 3)
    )
    values = drawn(P, *shape).index_fill(1, torch.tensor(0), float("nan"))
    return PatchEffects(
        intervention="knock_out of answer_reads_labels",
        title="edges cut",
        places=places,
        values=values,
        base=drawn(P),
        source=drawn(P) + 5,
        reference=torch.arange(P) % 2,
        label_scores=drawn(P, *shape, 2),
        base_label_scores=drawn(P, 2),
        others={"probability": drawn(P, *shape), "kl": drawn(P, *shape).abs()},
        base_others={"probability": drawn(P), "kl": torch.zeros(P)},
        controls={"random_keys": drawn(P, *shape)},
        demo_set=torch.arange(P) // 2,
        run=run_info(L, H),
        settings={"against": "model"},
        reasons={Reason.NOTHING_LEFT: 3},
        sample=compared,
        largest=compared,
    )


def label_coverage(*, t: float = 2.0) -> LabelCoverage:
    """Labels read at 0 and, half as much, at +1; with the rows of the test input at 0 alone."""
    offsets = (-1, 0, 1)
    sets = ((-1,), (0,), (1,), offsets, (-1, 0), (0, 1))
    part = t + drawn(2 * P) / 4
    there = {-1: 0.0, 0: 0.6, 1: 0.3}
    share = torch.tensor([sum(there[offset] for offset in one) for one in sets])

    def left(share: torch.Tensor, noise: float = 0.02) -> torch.Tensor:
        return part[:, None, None] * share + noise * drawn(2 * P, 2, len(share))

    def made(rows: CutRows, share: torch.Tensor, **more: LabelCoverage) -> LabelCoverage:
        return LabelCoverage(
            rows=rows,
            offsets=offsets,
            sets=sets,
            part=part,
            left={"necessity": left(1 - share), "sufficiency": left(share)},
            reference=torch.arange(2 * P) % 2,
            demo_set=torch.arange(2 * P) // 2,
            run=run_info(L, H),
            lose=0.8,
            keep=0.5,
            by_layer={side: drawn(2 * P, 2, 3, L) for side in ("necessity", "sufficiency")},
            settings={"against": "truth"},
            **more,
        )

    return made("answer", share, test_input=made("test_input", share.clamp(max=0.6) / 0.6))


def carried_influence() -> CarriedInfluence:
    """Half of every influence goes through one head, and a tenth through each other that was asked for."""
    made = made_influence()
    whole, share = made.values, torch.full((L, H), 0.1)
    share[1, 1], share[0, 0] = 0.5, torch.nan
    return CarriedInfluence(
        values=share[..., None] * whole[:, None, None],
        gained=share[..., None] * whole[:, None, None] / 2,
        together=0.9 * whole,
        influence=whole,
        numbers=torch.arange(len(whole)),
        demo_labels=made.prompts.demo_labels,
        demo_set=made.demo_set,
        carrier="both",
        path="total",
        offsets=(0,),
        later=False,
        run=run_info(L, H),
    )


EXAMPLES: dict[str, Callable[[], Result]] = {
    "Evidence": small_evidence,
    "HeadScores": lambda: head_vote(small_evidence()),
    "TaskAccuracy": task_accuracy,
    "HeadRanking": lambda: ranking(3, 2, {(1, 1): "kernel head", (2, 0): "undetermined", (0, 0): "neither"}),
    "AblationCurves": lambda: curves(draws=4, cuts=("zeroed", "mean")),
    "Stability": stability,
    "LogitAttribution": logit_attribution,
    "Saliency": saliency,
    "PatchEffects": patch_effects,
    "LabelCoverage": label_coverage,
    "LabelInfluence": made_influence,
    "CarriedInfluence": carried_influence,
}
"""By the name of the class."""
theory = cache(theory_examples)
KINDS_OF_THEORY = "Concentration Experiment TaskDivergences TheoremResult TheoremTerms VariantTable".split()
EXAMPLES |= {kind: lambda kind=kind: theory()[kind] for kind in KINDS_OF_THEORY}
