"""Which heads answer like a kernel regression: chosen on half of the prompts, confirmed causally on the other half."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.errors import PromptError, ResultError
from icl_kernel_lens.evidence import Evidence, read
from icl_kernel_lens.interventions.knock_out import knock_out
from icl_kernel_lens.interventions.patch import check_intervened
from icl_kernel_lens.locate.band import find_band
from icl_kernel_lens.locate.halves import ENOUGH, halves
from icl_kernel_lens.locate.measure import Fidelity, classify, report, select
from icl_kernel_lens.prompts import PromptSet
from icl_kernel_lens.prompts.corrupt import corrupt
from icl_kernel_lens.results.head_ranking import Criteria, HeadRanking
from icl_kernel_lens.results.patch_effects import PatchEffects


def locate_heads(
    model: Any,
    prompts: PromptSet,
    *,
    evidence: Evidence | None = None,
    criteria: Criteria | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> HeadRanking:
    """Find the kernel-regression heads, and say of every head what it is.

    The prompts are split in two, demonstration sets whole. In the *choosing half*, for all heads:

        votes      agreement with the model's answer, its p-value the largest of those in `locate.nulls`;
                   Benjamini–Hochberg over the heads, and at least some attention on labels
        moved      weights that move when the labels of every prompt are permuted (`locate.invariance`)
        matters    logit difference lost when the answer position no longer reads any label (`knock_out`)

    What any of these singles out is measured again in the *reporting half*, tested over these alone, and cut beside other
    edges of equal mass (but for heads that were only moved: their class needs no cut); every number, interval, class and
    the band come from there. Classes go by
    intervals against `Criteria`, the smallest effects of interest:

        votes      the interval of agreement − strongest control lies above `criteria.margin`, and p_adjusted ≤ q
        invariant  that of moved − ½ carried lies below 0 (half of what would move if weights went with label words)
        matters    that of the loss lies beyond `criteria.effect` of the logit difference, and of what equal mass costs

    Kernel head: all three. Han et al. (TMLR 2025, section 5.2) take the head of the best agreement on the data it is
    reported on; halves, controls, invariance and the causal test are ours.

    `evidence`, a reading of these prompts with the label pooling, is used instead of reading them anew.
    `checkpoint` names a folder in which finished prompts of each step are kept; the same call goes on from there.

    Does not show: that other heads could not take over (see `necessity_and_sufficiency`); that a head is a kernel
    on other tasks (`stability`); which features its kernel compares. Heads that share one vote so finely that each
    carries less than `criteria.effect` are shadows here.

    Raises: PromptError: fewer than 8 demonstration sets a half; labels of unequal token counts, which cannot be
                permuted in place; prompts scored on whole labels. ModelError: attention cannot be changed exactly.
            ResultError: the evidence is of other prompts or another model.
    """
    criteria = criteria or Criteria()
    check_intervened(prompts, "model")
    if prompts.labels < 2 or prompts.demos < 2:
        raise PromptError(
            f"heads can be located with at least 2 labels and 2 demonstrations; these prompts have {prompts.labels} and "
            f"{prompts.demos}."
        )
    _check_sets(prompts)
    first, second = halves(prompts.demo_set, seed=seed)
    permuted = corrupt(prompts, "permute_labels", seed=seed)
    folder = None if checkpoint is None else Path(checkpoint)

    def place(name: str) -> Path | None:
        return None if folder is None else folder / name

    if evidence is None:
        evidence = read(model, prompts, keep=("label",), checkpoint=place("read"), progress=progress)
    _check_evidence(evidence, prompts)
    reread = read(model, permuted, keep=("label",), checkpoint=place("reread"), progress=progress)
    if (
        evidence.run.model != reread.run.model
        or evidence.pooled("label").shape != reread.pooled("label").shape
    ):
        raise ResultError(
            f"evidence must be a reading of this model; it is of {evidence.run.model}, and the model is "
            f"{reread.run.model}. Leave evidence= out, or read these prompts with read(model, prompts)."
        )
    chosen = Fidelity.of(evidence, reread, first, seed)
    cut = knock_out(
        model, prompts.select(first.tolist()), controls=False, checkpoint=place("choosing"), progress=progress
    )
    _check_answers(evidence, first, cut)
    selected, choosing = select(chosen, -cut.effect()[..., 0], cut.base, criteria)
    loss, equal_mass, base = _losses(
        model,
        prompts.select(second.tolist()),
        selected["votes"] | selected["matters"],
        seed,
        place("reporting"),
        progress,
    )
    found = Fidelity.of(evidence, reread, second, seed + 10)
    columns, strongest = report(found, selected, loss, equal_mass, base, criteria)
    layers, heads = loss.shape[1:]
    refs = [HeadRef(layer, head) for layer in range(layers) for head in range(heads)]
    classes = dict(zip(refs, classify(columns, selected, criteria), strict=True))
    confirmed = torch.tensor([c == "kernel head" for c in classes.values()]).reshape(layers, heads)
    band = None
    if confirmed.any():
        by_layer = loss.masked_fill(~confirmed, 0).sum(2)
        band = find_band(by_layer, base, found.demo_set, criteria.band_share, level=criteria.level, seed=seed)
    return HeadRanking(
        classes=classes,
        band=band,
        columns=columns,
        strongest=strongest,
        choosing=choosing,
        selected=selected,
        agreement=found.agreement,
        loss=loss,
        base=base,
        demo_set=found.demo_set,
        numbers=second,
        criteria=criteria,
        run=evidence.run,
        settings={
            "seed": str(seed),
            "choosing": f"{len(first)} prompts in {len(chosen.demo_set.unique())} demonstration sets",
            "prompts": prompts_digest(prompts),
        },
        notes=_notes(evidence, columns, selected, len(found.demo_set.unique())),
    )


def _losses(
    model: Any,
    prompts: PromptSet,
    selected: Bool[Tensor, "layer head"],
    seed: int,
    checkpoint: Path | None,
    progress: bool,
) -> tuple[Float[Tensor, "prompt layer head"], Float[Tensor, "prompt layer head"], Float[Tensor, " prompt"]]:
    """Per prompt: what cutting the label edges of each selected head costs, what equal mass costs, the base."""
    heads = [(layer, head) for layer, head in selected.nonzero().tolist()]
    # With nothing selected one head is run all the same, for the base; its effect is not kept.
    cut = knock_out(
        model,
        prompts,
        heads=heads or [_first_head(model)],
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
    )
    base = cut.base[:, None, None]
    lost = (base - cut.values[..., 0]).masked_fill(~selected, torch.nan)
    equal = (base - cut.controls["equal_mass"][..., 0]).masked_fill(~selected, torch.nan)
    return lost, equal, cut.base


def _first_head(model: Any) -> tuple[int, int]:
    from icl_kernel_lens.models import as_lens, probe

    lens = as_lens(model)
    return next(layer for layer in range(lens.shape.layers) if layer not in probe(lens).missing), 0


def _check_sets(prompts: PromptSet) -> None:
    """Prompts that show the same demonstrations under different numbers would be taken for independent."""
    seen: dict[bytes, int] = {}
    for number, end in enumerate(prompts.demo_spans[:, -1, 1].tolist()):
        shown = prompts.tokens[number, :end].numpy().tobytes()
        before = seen.setdefault(shown, number)
        if prompts.demo_set[before] != prompts.demo_set[number]:
            warnings.warn(
                f"prompts {before} and {number} show the same demonstrations and are counted as different sets; intervals "
                "and p-values take them for independent. Give them one number in demo_set.",
                stacklevel=3,
            )
            return


def _check_evidence(evidence: Evidence, prompts: PromptSet) -> None:
    same = len(evidence.prompts) == len(prompts) and all(
        torch.equal(getattr(evidence.prompts, name), getattr(prompts, name))
        for name in ("tokens", "answer_pos", "label_spans", "demo_labels", "label_tokens", "demo_set")
    )
    if not same:
        raise ResultError(
            f"evidence must be a reading of these {len(prompts)} prompts; it is of {len(evidence.prompts)} others. Leave "
            "evidence= out, or read them with read(model, prompts)."
        )
    evidence.pooled("label")


def _check_answers(evidence: Evidence, numbers: Tensor, cut: PatchEffects) -> None:
    """Evidence of other weights under the same name would be believed otherwise."""
    read, found = evidence.label_scores[numbers], cut.base_label_scores
    off = float((read - found).abs().mean() / found.std().clamp(min=1e-12))
    if off > (0.01 if evidence.run.dtype == "float32" else 0.1):
        raise ResultError(
            f"evidence must be a reading of this model; its label scores differ from the model's by {off:.0%} of their "
            "spread. Is it of another checkpoint, or of other settings? Leave evidence= out, or read these prompts anew."
        )


def prompts_digest(prompts: PromptSet) -> str:
    """Tells prompts apart."""
    return hashlib.sha256(prompts.tokens.numpy().tobytes()).hexdigest()


def _notes(
    evidence: Evidence, columns: dict[str, Tensor], selected: dict[str, Tensor], sets: int
) -> tuple[str, ...]:
    notes = []
    answers = evidence.answers.bincount(minlength=evidence.prompts.labels)
    share = float(answers.max() / answers.sum())
    if share > 0.9:
        notes.append(
            f"the model gives one answer in {share:.0%} of the prompts: no vote can be told from always giving it, and "
            '"neither" here says nothing about the heads'
        )
    if (truth := evidence.prompts.test_labels) is not None:
        right = float((evidence.answers == truth).float().mean())
        notes.append(f"the model answers {right:.1%} of the test inputs right")
    if sets < ENOUGH:
        notes.append(f"{sets} demonstration sets a half are few: intervals are wide")
    causes = (selected["votes"] | selected["matters"]) & (columns["matters"] == 1)
    lacking = [
        str(HeadRef(*head)) for head in (causes & columns["beyond_equal_mass_low"].isnan()).nonzero().tolist()
    ]
    if lacking:
        notes.append(
            f"without the comparison with other edges of equal mass, of which there were too few: {', '.join(lacking[:8])}"
            + (f" and {len(lacking) - 8} more" if len(lacking) > 8 else "")
        )
    return tuple(notes)
