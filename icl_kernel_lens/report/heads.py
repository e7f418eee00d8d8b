"""The report shows what one scoring or locating run found, on one page that opens offline; it computes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.charts.page import Page
from icl_kernel_lens.charts.token_view import MOST_HEADS
from icl_kernel_lens.files import write_atomically
from icl_kernel_lens.report.parts import capital, in_context, score_table, settings_of, words
from icl_kernel_lens.results.ablation_curves import AblationCurves
from icl_kernel_lens.results.criteria import CLASS_MEANS, KERNEL_CLASSES
from icl_kernel_lens.results.evidence import Evidence
from icl_kernel_lens.results.head_ranking import HeadRanking
from icl_kernel_lens.results.head_scores import HeadScores
from icl_kernel_lens.results.label_part import name_of
from icl_kernel_lens.results.task_accuracy import TaskAccuracy
from icl_kernel_lens.scores.in_context import accuracy_of
from icl_kernel_lens.scores.notes import notes_of

READING = (
    "Each attention head is read as a kernel regression: its attention from the answer position to the "
    "demonstrations ({pooling}) is taken as the weights of a vote over their labels. The number is how often "
    "that vote is {whose}. Compare it with the head's strongest control, never with one over the number "
    "of labels."
)
POOLINGS = {
    "label": "to the first token of their labels",
    "label_sum": "to all tokens of their labels, summed",
    "edges": "to the tokens at offsets {offsets} from their labels, summed",
    "span_max": "the largest weight on any of their tokens, text or label",
    "span_sum": "to all of their tokens, summed",
    "span_mean": "to all of their tokens, the mean",
}
LIMITS = (
    "What this does not show: that the answer depends on the head (nothing was changed in the model); "
    "that its weights come from the inputs rather than from the label words; that the best head is as good "
    "on new prompts, since the best of many is too good on the prompts it was chosen on. Intervals are per "
    "head and hold for a head chosen beforehand."
)
LOCATING = (
    "Heads are held against the model's own kernel: how far the answer moves when one demonstration's label is replaced, and what "
    "of that belongs to the pair of test input and demonstration (label influence, on {few} prompts). One half of the prompts "
    "({choosing}) singled heads out, and the map of fits is of it; every other number here, class and the band come from the other "
    "half ({prompts} prompts in {sets} demonstration sets)."
)
LOCATING_BY = (
    "Six conditions hold of a kernel head: (1) its weights follow the model's own kernel, fit above {fit:g}; (2) they go with the "
    "inputs of two demonstrations that are swapped, their slope (-1: with the inputs, +1: with places and labels) less than {slope:g} above the model's own, {own}; (3) they change "
    "with the test input, by more than {shift:g}; (4) its values carry labels to the answer, transport above {effect:g} of the label "
    "part, and as much of the kernel; (5) so much is gone without its label edges, too, zeroed, renormalised and mean-replaced; (6) with the label edges of "
    "all earlier layers cut, half of its fit is left. A condition holds where its whole interval lies there, and does not where "
    "its whole interval lies beyond; else it is undetermined. A pair kernel is as a kernel head, but its weights also go with the label or the place."
)
OFFSETS = (
    "What counts as a label here are the tokens at offsets {offsets} from it (0 is the label itself, -1 the token before it, "
    "+1 the one behind); the next line says why."
)
BESIDE_LOCATED = (
    "All {prompts} prompts are counted here; the located heads above were measured on {half} of them, with attention on "
    "{edges}, so that their numbers differ."
)
NO_BAND = "It is of located heads alone, and says nothing of where labels are read (see above)."
LOOKING = (
    "The labels get the largest share of its attention in layer {most}: {share:.0%}, the mean over heads and prompts; they get "
    "at least half of that in {layers}. To look is not to use: what the answer needs is told by cuts ({where})."
)
NEEDING = (
    "What is cut are the edges {why}. In one head at a time, on the half that singles heads out, {heads}. What each head is, is "
    "said below."
)
MOST_NAMED = 5
"""Heads that are named by what their cut takes."""
LOCATED_LIMITS = (
    "What this does not show: that other heads could not take over; that a head is a kernel regression on other "
    "tasks, templates or demonstrations; which features of the inputs its kernel compares; that a head writes labels to the answer "
    "directly, since what later heads make of them is in its part. Heads that share one kernel so finely that each carries less "
    "than the smallest effect are shadows here, and where the model has no kernel part, it is only said which heads read labels. A "
    "head that was not measured (–) has no known part, which is not a part of zero."
)
TOGETHER = (
    "What located heads carry together: share of the label part that is gone with the values of all of them averaged over "
    "relabellings, weights fixed. Shapley: a head's mean part over all orders of taking them out; interaction: what two carry beyond "
    "the sum of each."
)
CUTS = ("zeroed", "renormalised", "mean_replaced")
CURVES = (
    "Necessity: the answer position's edges to the labels are cut in the first k located heads. Sufficiency: they are "
    "cut in all heads but these. Measured on {prompts} other prompts (seed {seed}); an answer counts as right if it "
    "is {right}."
)


def write_report(
    path: str | Path,
    evidence: Evidence,
    scores: Sequence[HeadScores],
    accuracy: TaskAccuracy | None,
    *,
    ranking: HeadRanking | None = None,
    curves: AblationCurves | None = None,
) -> Path:
    """Write `report.html`; the first of `scores` is the main one, others are shown as tables.

    It begins with whether there is anything to explain: `accuracy`, or what the ranking or else the evidence says of it; and
    with where the answer position looks.
    With a `ranking`, the located heads stand before the scores; with `curves`, necessity and sufficiency after them.

    Raises: RunError: the file cannot be written.
    """
    main, run = scores[0], evidence.run
    title = (
        "Kernel-regression heads of" if ranking is None or ranking.heads else "The kernel and the heads of"
    )
    page = Page(f"{title} {run.model} on {run.prompts.task}")
    in_context(page, accuracy or (ranking.accuracy if ranking else accuracy_of(evidence)))
    _looking(page, evidence, ranking)
    if ranking is not None:
        _located(page, ranking)
    if curves is not None:
        _curves(page, curves)
    beside = () if ranking is None else (_beside(ranking, len(main.values)),)
    _votes(page, scores, (*notes_of(evidence, main), *beside))
    if evidence.prompts.strings and not main.mean().isnan().all():
        page.tokens(evidence.token_view(list(main.top(MOST_HEADS)["head"])))
    settings = [*settings_of(evidence), *main.settings.items(), *_criteria(ranking)]
    page.heading("How it was measured").table(["setting", "value"], settings)
    return write_atomically(path, page.html())


def _looking(page: Page, evidence: Evidence, ranking: HeadRanking | None) -> None:
    page.heading("Where does the answer position look?")
    cut = None if ranking is None else ranking.settings.get("edges")
    on_labels = evidence.on_labels().nan_to_num(0)
    if len(on_labels) and (most := float(on_labels.max())) > 0:
        layers = (on_labels >= most / 2).nonzero()[:, 0].tolist()
        where = "next" if cut else "icl-kernel-lens patch and locate"
        page.text(LOOKING.format(most=int(on_labels.argmax()), share=most, layers=_runs(layers), where=where))
    if ranking is not None and cut:
        page.text(NEEDING.format(why=cut, heads=_needing(ranking)))
    page.chart(evidence.figure())


def _needing(ranking: HeadRanking) -> str:
    """The heads whose label edges the label part goes with, in words."""
    share = ranking.choosing["label_part"].nan_to_num(0)
    of_size = sorted((share >= ranking.criteria.effect).nonzero().tolist(), key=lambda at: -share[tuple(at)])
    if not of_size:
        return f"none takes {ranking.criteria.effect:g} of the label part with it"
    named = [f"{HeadRef(*at)} {_rounded(float(share[tuple(at)]))}" for at in of_size[:MOST_NAMED]]
    more = len(of_size) - len(named)
    others = f" and {more} more heads at least {ranking.criteria.effect:g}" if more else ""
    return f"they take of the label part, in shares that overlap: {', '.join(named)}{others}"


def _runs(layers: Sequence[int]) -> str:
    """Layers in words: "layers 17–18 and 20–26"."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    names = [f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    listed = ", ".join(names[:-1]) + (" and " if names[:-1] else "") + names[-1]
    return f"{'layers' if len(layers) > 1 else 'layer'} {listed}"


def _located(page: Page, ranking: HeadRanking) -> None:
    count, criteria = Counter(ranking.classes.values()), ranking.criteria
    page.heading("Located heads").text(
        ranking.verdict(),
        LOCATING.format(
            few=len(ranking.influence.prompts),
            choosing=ranking.settings.get("choosing", "not recorded"),
            prompts=len(ranking.agreement),
            sets=len(ranking.demo_set.unique()),
        ),
        LOCATING_BY.format(
            fit=criteria.fit,
            slope=criteria.slope,
            own=_rounded(ranking.slope_of_model)
            if ranking.slope_of_model == ranking.slope_of_model
            else "not measured",
            shift=criteria.shift,
            effect=criteria.effect,
        ),
        *(f"{capital(name)}s: {', '.join(map(str, ranking.of(name))) or 'none'}." for name in KERNEL_CLASSES),
        f"The band: {ranking.band or 'none'}." + ("" if ranking.band else f" {NO_BAND}"),
        *(() if ranking.offsets == (0,) else (OFFSETS.format(offsets=name_of(ranking.offsets)),)),
        *(f"{capital(note)}." for note in ranking.notes),
    ).table(
        ["class", "heads"],
        [[f"{name}: {means}", str(count[name])] for name, means in CLASS_MEANS.items() if count[name]],
    )
    page.chart(ranking.figure()).chart(ranking.fit_map())
    _located_table(page, ranking)
    if ranking.joint:
        _together(page, ranking)
    page.text(LOCATED_LIMITS)


CARRIED = (("carries_kernel", "kernel_share"), ("gives", "gained"), ("alone", "company"))
"""Answers about what values carry, and the numbers they go by."""


def _located_table(page: Page, ranking: HeadRanking, k: int = 24) -> None:
    measured = ranking.notable()
    rows = [
        [
            row["head"],
            f"{row['class']}: {row['why']}" if row["why"] else row["class"],
            _held(row, "fits", "fit"),
            _number(row, "other_order"),
            _held(row, "with_input", "swap_slope"),
            f"{_held(row, 'looks', 'input_shift')} / {_held(row, 'ranks', 'ranking_fit')}",
            _held(row, "transports", "transport"),
            " / ".join(_held(row, *of) for of in CARRIED),
            " / ".join(_number(row, name) for name in CUTS) + _mark(row, "needed", "zeroed"),
            _held(row, "no_echo", "fit_cut_below"),
            _held(row, "invariant", "label_shift"),
            _with_interval(row, "logit_diff_drop"),
            f"{_number(row, 'agreement')} ({_number(row, 'control')}, {words(row['strongest_control'])})",
        ]
        for row in measured.head(k).to_dict("records")
    ]
    page.table(
        [
            "head",
            "class",
            "fit",
            "other order",
            "swap slope",
            "looks: input shift / fit beyond one ranking",
            "transport",
            "kernel share / gained by the new label / shift in other company",
            "cuts: zeroed / renormalised / mean",
            "fit, cut below",
            "label shift",
            "drop",
            "agreement (control)",
        ],
        rows,
        f"{len(rows)} of the {len(measured)} heads that are more than neither, or were cut in the reporting half; the others "
        "are in the table of all heads (heads.csv, or HeadRanking.table()). ✓ holds, ✗ does not, ✗ − holds of the opposite, ? "
        "undetermined. Other order: the fit to the kernel under another order of the same demonstrations. Transport and cuts: shares of "
        "the label part. Kernel share: of the model's own kernel, what its values carry. Label shift: total variation of the weights when labels are permuted, ✓ where they follow the inputs. Drop: of "
        "the logit difference without the head's label edges, as a share. Agreement: of its vote with the answer, beside its strongest "
        f"control. {ranking.criteria.level:.0%} intervals.",
    )


def _together(page: Page, ranking: HeadRanking, k: int = 24) -> None:
    rows = ranking.joint_table().to_dict("records")
    # All together first, then each, then pairs.
    rows = rows[-1:] + rows[:-1]
    page.table(
        ["heads", "share (interval)", "Shapley", "interaction"],
        [
            [
                row["heads"],
                f"{_rounded(row['share'])} ({_rounded(row['low'])} to {_rounded(row['high'])})",
                _number(row, "shapley"),
                _number(row, "interaction"),
            ]
            for row in rows[:k]
        ],
        f"{TOGETHER} {ranking.criteria.level:.0%} intervals.",
    )


def _curves(page: Page, curves: AblationCurves) -> None:
    rows = [
        [
            row["cut"],
            row["side"],
            f"{row['k']}" + (f" (+ {row['head']})" if row["k"] else ""),
            f"{row['right']:.1%} ({row['low']:.1%} – {row['high']:.1%})",
            f"{row['random']:.1%} ({row['random_low']:.1%} – {row['random_high']:.1%})" if row["k"] else "",
        ]
        for row in curves.table().to_dict("records")
    ]
    page.heading("Are they needed, and are they enough?").text(
        CURVES.format(
            prompts=len(curves.base),
            seed=curves.run.prompts.seed,
            right="the true label" if curves.default_reference == "truth" else "the uncut answer",
        ),
        *(f"{capital(note)}." for note in curves.notes()),
    )
    page.chart(curves.figure()).table(
        ["cut edges", "side", "heads", "right (interval)", "random sets: median (95 % of them)"],
        rows,
        f"Random sets for each number of heads: {curves.different_sets()} different.",
    )


def _beside(ranking: HeadRanking, prompts: int) -> str:
    edges = "the label" if ranking.offsets == (0,) else f"offsets {name_of(ranking.offsets)} from the label"
    return BESIDE_LOCATED.format(prompts=prompts, half=len(ranking.agreement), edges=edges)


def _votes(page: Page, scores: Sequence[HeadScores], notes: Sequence[str]) -> None:
    main = scores[0]
    pooling = main.settings["pooling"]
    what = POOLINGS[pooling.removesuffix("_without_first")].format(offsets=main.settings.get("offsets"))
    page.heading("Which heads vote like the answer?").text(
        READING.format(
            pooling=what + (", position 0 left out" if pooling.endswith("_without_first") else ""),
            whose="the model's own answer" if main.settings["against"] == "model" else "the true label",
        ),
        *notes,
    )
    page.chart(main.figure())
    for result in scores:
        score_table(page, result)
    page.text(LIMITS)


def _rounded(value: float) -> str:
    return f"{value:.2f}"


def _number(row: Mapping[Hashable, Any], name: str) -> str:
    return "–" if row[name] != row[name] else _rounded(row[name])


def _with_interval(row: Mapping[Hashable, Any], name: str) -> str:
    """A number and its interval, where it has one."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    known = low == low and high == high
    return _number(row, name) + (f" ({_rounded(low)} to {_rounded(high)})" if known else "")


def _mark(row: Mapping[Hashable, Any], condition: str, number: str) -> str:
    """Whether a condition holds; nothing where its number was not measured."""
    if row[number] != row[number]:
        return ""
    return " " + {1: "✓", 0: "✗", -1: "✗ −"}.get(row[condition], "?")


def _held(row: Mapping[Hashable, Any], condition: str, number: str) -> str:
    """A condition's number with its interval, and whether the condition holds."""
    return _with_interval(row, number) + _mark(row, condition, number)


def _criteria(ranking: HeadRanking | None) -> list[tuple[str, str]]:
    if ranking is None:
        return []
    named = [(f"criterion: {words(name)}", f"{value:g}") for name, value in asdict(ranking.criteria).items()]
    return [*named, *((f"locating: {name}", value) for name, value in ranking.settings.items())]
