"""Locates the heads that carry the model's own kernel: chosen on half of the prompts, measured on the other.

Prompts are halved with their demonstration sets whole (`split_in_halves`), and the search may be repeated on several
sets of prompts (`stability`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.errors import PromptError, ResultError
from icl_kernel_lens.interventions.cuts import knock_out
from icl_kernel_lens.interventions.validate import check_intervened
from icl_kernel_lens.locate.classes import classify
from icl_kernel_lens.locate.conditions import FEWEST, pooling_of, read_edges, shares_sets
from icl_kernel_lens.locate.edges import CELLS, LABEL, PROMPTS, LabelEdges, choose_edges, named
from icl_kernel_lens.locate.identify import (
    Identification,
    Identified,
    candidates,
    expected_conditions,
    expected_kernel,
)
from icl_kernel_lens.locate.measure import Fidelity, find_band, report, select
from icl_kernel_lens.models.adapter import ModelAdapter, as_adapter, attention_layers
from icl_kernel_lens.numbers.groups import first_half
from icl_kernel_lens.numbers.intervals import sets_for
from icl_kernel_lens.prompts.corruptions import corrupt
from icl_kernel_lens.prompts.crossed import check_crossed
from icl_kernel_lens.prompts.label_edges import check_offsets
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.results.criteria import KERNEL_CLASSES, Criteria, HeadClass
from icl_kernel_lens.results.evidence import Evidence
from icl_kernel_lens.results.head_ranking import MEASURED_AGAIN, HeadRanking
from icl_kernel_lens.results.label_part import Offsets
from icl_kernel_lens.results.patch_effects import PatchEffects
from icl_kernel_lens.results.run_info import RunInfo
from icl_kernel_lens.results.stability import Stability
from icl_kernel_lens.results.task_accuracy import TaskAccuracy
from icl_kernel_lens.run.progress import ROW, work
from icl_kernel_lens.run.runner import tokens_to_run
from icl_kernel_lens.scores.in_context import in_context_accuracy

ENOUGH = 32
"""Demonstration sets a half should have; `FEWEST` it must have."""
SELECTED = 32
"""Heads that are expected to be measured again, for the estimate of time."""
STEPS = ("edges", "read", "accuracy", "reread", "choosing", "kernel", "reporting")


@checked
def locate_heads(
    model: Any,
    prompts: PromptSet,
    *,
    evidence: Evidence | None = None,
    accuracy: TaskAccuracy | None = None,
    offsets: Sequence[int] | None = None,
    criteria: Criteria | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> HeadRanking:
    """Find the heads that carry the model's own kernel, and say of every head what it is; long, for it is its steps in order.

    The kernel is that of `label_influence`; I is its pair part. Where it has no kernel part (p > 0.05), it is only said
    which heads read labels. The prompts are split in two, demonstration sets whole. The *choosing half* singles out, of all heads,
    those whose weights fit I, whose cut takes part of the label part with it, whose votes agree with the answer
    (`numbers.permutations`), whose label edges the logit difference needs (`knock_out`), or whose weights move with permuted labels. Of at most 32 of them the *reporting half* tells whether

        fits         their weights follow I as the test input alone varies
        with_input   their weights go with inputs that are swapped: the slope lies below that of G itself + `criteria.slope`
        looks        their weights change with the test input, and (ranks) not only in how sharp they are
        transports   the label part goes when their values, not their weights, are averaged over relabellings,
                     (carries_kernel) what their values carry of each label's influence is part of I, (own) each edge
                     brings its own demonstration's label, (gives) a label put in another's place gains its half, and
                     (alone) more of it stays than goes when other demonstrations are changed
        needed       it goes without their label edges: zeroed, renormalised and mean-replaced
        no_echo      more than half of the fit is left with the label edges of all earlier layers cut

    each by an interval against `Criteria`, the smallest effects of interest (equations: `docs/locate.md`; rules of the classes:
    `classes.py`). A kernel head passes all, and permuted labels do not move its weights; a *pair kernel*'s weights go with more than the
    input. What could not be measured is not passed. `ranking.joint` says what these heads carry together; the band, the votes and the
    drops are of the reporting half, too. Han et al. (TMLR 2025, section 5.2) take the head of the best agreement on the data it is
    reported on; all of this is ours.

    Prompts should share demonstration sets: `task.prompts(..., count=256, sets=32)`. Where none do, those of each half are crossed with
    one another (`prompts.crossed.cross`), which leaves fewer sets.

    What is read of a label stands at some `offsets` from it: weights are the attention there (for 0 alone, on its first
    token), and cuts are of these edges. Without `offsets`, they are the smallest set that `label_coverage` finds on 32 prompts of
    the choosing half; where there is none, the label itself is taken, and a note says so.

    What is printed begins with whether there is anything to explain (`in_context_accuracy`), measured on all prompts.
    `accuracy`, where it was measured before, and `evidence`, a reading of these prompts with the label pooling (or that of
    the `offsets`), are used instead of running the model for them anew.
    `checkpoint` names a folder in which finished prompts of each step are kept; the same call goes on from there.

    Does not show: that all that a head carries is part of the kernel (compare `kernel_share` with `transport`); that other heads
    could not take over (see `ablation_curves`); that a head is a kernel on other tasks (`stability`); which features its kernel compares. A kernel whose labels enter elsewhere than by the
    answer's own label edges is not located, nor are heads that share one so finely that each carries less than
    `criteria.effect`.

    Raises: PromptError: fewer than 8 demonstration sets a half; no sets are shared, and label words differ between prompts;
                labels of unequal token counts, which cannot be permuted in place; prompts scored on whole labels; an
                offset holds no token. ModelError: attention cannot be changed exactly.
            ResultError: the evidence or the accuracy is of other prompts or another model.
    """
    criteria = criteria or Criteria()
    _check_request(model, prompts, evidence, accuracy, offsets)
    first, second = split_in_halves(prompts.demo_set, seed=seed)
    if not shares_sets(prompts, (first, second)):
        check_crossed(prompts)
    permuted = corrupt(prompts, "permute_labels", seed=seed)
    place = {step: None if checkpoint is None else Path(checkpoint) / step for step in STEPS}
    expected = expected_work(as_adapter(model), prompts, offsets, evidence=evidence, accuracy=accuracy)
    with work("locating heads", expected, progress):
        edges = _edges(offsets) or choose_edges(
            model, prompts, first, seed=seed, checkpoint=place["edges"], progress=progress
        )
        evidence = _whole(model, prompts, evidence, edges.offsets, place["read"], progress)
        reread = read_edges(model, permuted, edges.offsets, place["reread"], progress)
        accuracy = accuracy or in_context_accuracy(
            model,
            prompts,
            evidence=evidence,
            permuted=reread,
            checkpoint=place["accuracy"],
            progress=progress,
        )
        chosen = Fidelity.of(evidence, reread, first, seed, pooling_of(edges.offsets))
        cuts = _Cuts(model, edges.offsets, seed, progress)
        cut = cuts.of_every_head(prompts.select(first.tolist()), place["choosing"])
        evidence.check_scores(first, cut.base_label_scores)
        own = Identification.of(
            model,
            prompts,
            (first, second),
            evidence,
            accuracy,
            offsets=edges.offsets,
            criteria=criteria,
            seed=seed,
            checkpoint=place["kernel"],
            progress=progress,
        )
        selected, choosing = _singled_out(chosen, cut, own, prompts, first)
        drop, equal_mass, base = cuts.of_some(prompts.select(second.tolist()), selected, place["reporting"])
        ranked = (choosing[name] for name in ("fit", "logit_diff_drop", "label_part"))
        identified = own.of_heads(candidates(selected, *ranked))
        found = Fidelity.of(evidence, reread, second, seed + 10, pooling_of(edges.offsets))
        columns, strongest = report(found, selected, drop, equal_mass, base, identified.columns, criteria)
        classes = _classes(columns, selected, own, identified)
        joint = own.together([head for head, name in classes.items() if name in KERNEL_CLASSES])
    others = torch.tensor([name not in KERNEL_CLASSES for name in classes.values()]).reshape(drop.shape[1:])
    effect = drop.masked_fill(others, 0).sum(2)
    notes = _notes(evidence, columns, len(found.demo_set.unique()), criteria, effect, edges)
    return HeadRanking(
        classes=classes,
        band=find_band(effect, base, found.demo_set, criteria.band_share, level=criteria.level, seed=seed),
        columns=columns,
        strongest=strongest,
        choosing=choosing,
        selected=selected,
        agreement=found.agreement,
        logit_diff_drop=drop,
        base=base,
        demo_set=found.demo_set,
        numbers=second,
        offsets=edges.offsets,
        criteria=criteria,
        accuracy=accuracy,
        influence=own.influence,
        slope_of_model=identified.slope_of_model,
        joint=joint,
        run=evidence.run,
        settings=_settings(prompts, chosen, edges, seed),
        notes=(*notes, *identified.notes),
    )


def _singled_out(
    chosen: Fidelity,
    cut: PatchEffects,
    own: Identification,
    prompts: PromptSet,
    first: Int[Tensor, " choosing"],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the choosing half gives reason to measure again, by the reason; and the numbers it goes by."""
    selected, numbers = select(chosen, -cut.effect(), cut.base, own.criteria)
    selected["fit"], fits = own.fitting()
    assert cut.label_scores is not None  # cuts are runs, whose scores are kept
    selected["carries"], parts = own.carrying(prompts, first, cut.label_scores, cut.base_label_scores)
    return selected, numbers | fits | parts


def _classes(
    columns: Mapping[str, Tensor], selected: Mapping[str, Tensor], own: Identification, found: Identified
) -> dict[HeadRef, HeadClass]:
    """Every head's class, in order."""
    names = classify(
        columns,
        selected,
        own.criteria,
        kernel_part=own.influence.has_kernel_part,
        cancelling=found.cancelling,
    )
    heads = columns["fit"].shape[1]
    return {HeadRef(*divmod(at, heads)): name for at, name in enumerate(names)}


@checked
def stability(
    model: Any,
    prompts: Mapping[str, PromptSet],
    *,
    offsets: Sequence[int] | None = None,
    criteria: Criteria | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Stability:
    """`locate_heads` on several sets of prompts, by name, and how far they agree.

        stability(model, {
            "seed 0": task.prompts(model, demos=16, count=256, sets=32, seed=0),
            "seed 1": task.prompts(model, demos=16, count=256, sets=32, seed=1),
            "reordered": corrupt(prompts, "reorder_demos", seed=0, model=model),
            "other task": other.prompts(model, demos=16, count=256, sets=32, seed=0),
        })

    Another template is another task: `dataclasses.replace(task, template=...)`. Each ranking chooses its own `offsets`, or takes
    those given.

    `checkpoint` names a folder in which finished prompts are kept, one folder a ranking; the same call goes on.
    Does not show: more than the prompts given can; a kernel head in all of them may be none on another task.

    Raises: as `locate_heads`, before anything is lost: a checkpoint keeps the rankings' finished prompts.
            ResultError: fewer than two sets of prompts.
    """
    if len(prompts) < 2:
        raise ResultError(
            'at least two sets of prompts can be compared, each with its name: {"seed 0": prompts, "seed 1": others}; got '
            f"{len(prompts)}.",
            code="not-comparable",
        )
    adapter = as_adapter(model)
    expected = [sum(expected_work(adapter, some, offsets)) for some in prompts.values()]
    with work("stability", expected, progress):
        rankings = {
            name: locate_heads(
                model,
                some,
                offsets=offsets,
                criteria=criteria,
                seed=seed,
                checkpoint=None if checkpoint is None else Path(checkpoint) / f"{at}",
                progress=progress,
            )
            for at, (name, some) in enumerate(prompts.items())
        }
    return Stability(rankings)


def _check_request(
    model: Any,
    prompts: PromptSet,
    evidence: Evidence | None,
    accuracy: TaskAccuracy | None,
    offsets: Sequence[int] | None,
) -> None:
    """Refuse what cannot be located on, and what was measured on other prompts or another model, before anything is run.

    Raises: PromptError, ResultError: see `locate_heads`.
    """
    check_intervened(prompts, "model")
    if prompts.demos < 2:
        raise PromptError(
            f"heads can be located with at least 2 demonstrations; these prompts have {prompts.demos}.",
            code="too-few-demonstrations",
        )
    if offsets is not None:
        check_offsets(prompts, offsets)
    adapter = as_adapter(model)
    if evidence is not None:
        evidence.check_of(adapter, prompts)
    if accuracy is not None:
        accuracy.check_of(RunInfo.of(adapter, prompts.info, prompts.score_on), prompts)
    check_sets(prompts)


def expected_work(
    adapter: ModelAdapter,
    prompts: PromptSet,
    offsets: Sequence[int] | None = None,
    *,
    evidence: Evidence | None = None,
    accuracy: TaskAccuracy | None = None,
) -> list[float]:
    """About how many tokens each step runs: label coverage, reading, rereading, accuracy, cuts of all heads, the model's own
    kernel, cuts of some heads, their conditions."""
    once, heads = float(tokens_to_run(prompts, adapter)), adapter.shape.layers * adapter.shape.heads
    few = min(1.0, PROMPTS / len(prompts))
    coverage = prompts.labels * (few * once + ROW * CELLS * PROMPTS)
    cuts = [once / 2 + ROW * len(prompts) / 2 * variants for variants in (heads, SELECTED * 2)]
    return [
        *([coverage] if offsets is None else []),
        *([once] if evidence is None else []),
        once,
        *([once / 2] if accuracy is None else []),
        cuts[0],
        expected_kernel(prompts),
        cuts[1],
        sum(expected_conditions(prompts)) / 2,
    ]


def _edges(offsets: Sequence[int] | None) -> LabelEdges | None:
    """Those that were given."""
    return None if offsets is None else LabelEdges(tuple(sorted(offsets)), "they were given", True)


def _whole(
    model: Any,
    prompts: PromptSet,
    evidence: Evidence | None,
    offsets: Offsets,
    checkpoint: Path | None,
    progress: bool,
) -> Evidence:
    """The reading of all prompts, both halves, as given or made now."""
    there = evidence is not None and (
        "label" in evidence.weights if offsets == LABEL else evidence.offsets == offsets
    )
    if evidence is None or not there:
        evidence = read_edges(model, prompts, offsets, checkpoint, progress)
    return replace(evidence, prompts=prompts)


@dataclass(frozen=True)
class _Cuts:
    """What the answer loses without the label edges of single heads."""

    model: Any
    offsets: Offsets
    seed: int
    progress: bool

    def of_every_head(self, prompts: PromptSet, checkpoint: Path | None) -> PatchEffects:
        """The cut of each head, without controls."""
        return self._cut(prompts, checkpoint, controls=False)

    def of_some(
        self, prompts: PromptSet, why: Mapping[str, Bool[Tensor, "layer head"]], checkpoint: Path | None
    ) -> tuple[
        Float[Tensor, "prompt layer head"], Float[Tensor, "prompt layer head"], Float[Tensor, " prompt"]
    ]:
        """Per prompt: the drop without the label edges of each selected head, that without equal mass, the base."""
        selected = torch.stack([why[name] for name in MEASURED_AGAIN]).any(0)
        # Without any, one head is run all the same, for the base; its effect is not kept.
        heads = [HeadRef(*head) for head in selected.nonzero().tolist()]
        heads = heads or [HeadRef(attention_layers(as_adapter(self.model))[0], 0)]
        cut = self._cut(prompts, checkpoint, heads=heads, controls=("equal_mass",))
        changed = (cut.values, cut.controls["equal_mass"])
        drop, equal = ((cut.base[:, None, None] - x).masked_fill(~selected, torch.nan) for x in changed)
        return drop, equal, cut.base

    def _cut(self, prompts: PromptSet, checkpoint: Path | None, **which: Any) -> PatchEffects:
        how: dict[str, Any] = {"offsets": self.offsets, "seed": self.seed, "progress": self.progress}
        return knock_out(self.model, prompts, checkpoint=checkpoint, **how, **which)


def check_sets(prompts: PromptSet) -> None:
    """Warn of prompts that show the same demonstrations under different numbers: they would be taken for independent."""
    seen: dict[bytes, int] = {}
    for number, end in enumerate(prompts.demo_spans[:, -1, 1].tolist()):
        shown = prompts.tokens[number, :end].numpy().tobytes()
        before = seen.setdefault(shown, number)
        if prompts.demo_set[before] != prompts.demo_set[number]:
            warnings.warn(
                f"prompts {before} and {number} show the same demonstrations and are counted as different sets; intervals "
                "and p-values take them for independent. Give them one number in demo_set.",
                stacklevel=4,
            )
            return


def _settings(prompts: PromptSet, chosen: Fidelity, edges: LabelEdges, seed: int) -> dict[str, str]:
    return {
        "seed": str(seed),
        "choosing": f"{len(chosen.demo_set)} prompts in {len(chosen.demo_set.unique())} demonstration sets",
        "prompts": prompts.digest(),
        "edges": f"of {named(edges.offsets)}: {edges.why}",
    }


def _notes(
    evidence: Evidence,
    columns: dict[str, Tensor],
    sets: int,
    criteria: Criteria,
    effect: Float[Tensor, "prompt layer"],
    edges: LabelEdges,
) -> tuple[str, ...]:
    notes = []
    if edges.offsets != LABEL or not edges.found:
        notes.append(f"edges of {named(edges.offsets)} count as the label's: {edges.why}")
    answers = evidence.answers.bincount(minlength=evidence.prompts.labels)
    share = float(answers.max() / answers.sum())
    if share > 0.9:
        notes.append(
            f"the model gives one answer in {share:.0%} of the prompts: no vote can be told from always giving it"
        )
    if sets < ENOUGH:
        wanted = sets_for(0.0, sets, criteria.margin, criteria.level)
        notes.append(
            f"{sets} demonstration sets a half are few: intervals are wide; where every prompt says the same, about "
            f"{wanted} a half tell ± {criteria.margin:g}"
        )
    if missing := int(effect.isnan().any(1).sum()):
        notes.append(
            f"{missing} of the {len(effect)} prompts are left out of the band: without its label edges nothing is left of "
            "a confirmed head's row"
        )
    low, high = columns["logit_diff_drop_low"], columns["logit_diff_drop_high"]
    causes = (low > criteria.effect) | (high < -criteria.effect)
    lacking = [
        str(HeadRef(*head)) for head in (causes & columns["beyond_equal_mass_low"].isnan()).nonzero().tolist()
    ]
    if lacking:
        notes.append(
            "the drop was not compared with that of other edges of equal mass, of which there were too few: "
            + ", ".join(lacking[:8])
            + (f" and {len(lacking) - 8} more" if len(lacking) > 8 else "")
        )
    return tuple(notes)


def split_in_halves(
    demo_set: Int[Tensor, " prompt"], *, seed: int
) -> tuple[Int[Tensor, " choosing"], Int[Tensor, " reporting"]]:
    """Split prompts into a choosing and a reporting half, by number; sets are dealt out at random, about equal in prompts.

    Raises: PromptError: fewer than 8 demonstration sets a half. Warns: fewer than 32.
    """
    count = len(demo_set.unique())
    chosen = first_half(demo_set, seed=seed)
    few = min(int(_effective(demo_set[side])) for side in (chosen, ~chosen)) if count > 1 else 0
    if few < FEWEST:
        raise PromptError(
            f"each half needs at least {FEWEST} demonstration sets, because prompts of one set are not independent; "
            f"there are {count} sets in all, worth {few} of equal size a half. Draw {2 * FEWEST} prompts or more "
            f"with demonstrations of their own, or sets={2 * FEWEST} or more; {2 * ENOUGH} are better.",
            code="too-few-sets",
        )
    if few < ENOUGH:
        warnings.warn(
            f"{few} demonstration sets a half are few: intervals are wide, and heads may stay undetermined. "
            f"{ENOUGH} or more are better.",
            stacklevel=3,
        )
    return chosen.nonzero()[:, 0], (~chosen).nonzero()[:, 0]


def _effective(demo_set: Int[Tensor, " prompt"]) -> float:
    """How many sets of equal size these are worth: (Σ n)² / Σ n²."""
    _, sizes = demo_set.unique(return_counts=True)
    return float(sizes.sum()) ** 2 / float(sizes.square().sum()) + 1e-9
