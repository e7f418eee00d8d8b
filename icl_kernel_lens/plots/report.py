"""The report: everything one scoring run found, on one page that opens offline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.evidence import Evidence
from icl_kernel_lens.plots.page import Page
from icl_kernel_lens.plots.token_view import MOST_HEADS, token_view
from icl_kernel_lens.results.head_scores import HeadScores
from icl_kernel_lens.scores.in_context import TaskAccuracy
from icl_kernel_lens.scores.notices import notices

READING = (
    "Each attention head is read as a kernel regression: its attention from the answer position to the "
    "demonstrations ({pooling}) is taken as the weights of a vote over their labels. The number is how often "
    "that vote is {whose}. Compare it with the head's strongest control, never with one over the number "
    "of labels."
)
POOLINGS = {
    "label": "to the first token of their labels",
    "label_sum": "to all tokens of their labels, summed",
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


def write_report(
    path: str | Path, evidence: Evidence, scores: Sequence[HeadScores], accuracy: TaskAccuracy | None
) -> Path:
    """Write `report.html`; the first of `scores` is the main one, others are shown as tables."""
    path = Path(path)
    main, run = scores[0], evidence.run
    page = Page(f"Kernel-regression heads of {run.model} on {run.prompts.task}")
    page.heading("Is there in-context learning?")
    if accuracy is None:
        page.text("Not measured: the prompts have no true labels.")
    else:
        page.text(accuracy.verdict())
        intervals = accuracy.interval()
        rows = [
            [name.replace("_", " "), f"{mean:.1%}", "{:.1%} – {:.1%}".format(*intervals[name])]
            for name, mean in accuracy.mean().items()
        ]
        page.table(["condition", "accuracy", "95 % interval"], rows)
        for name, why in accuracy.reasons.items():
            page.text(f"{name.replace('_', ' ')}: not measured ({why}).")
    page.heading("Which heads vote like the answer?")
    pooling = main.settings["pooling"]
    what = POOLINGS[pooling.removesuffix("_without_first")]
    page.text(
        READING.format(
            pooling=what + (", position 0 left out" if pooling.endswith("_without_first") else ""),
            whose="the model's own answer" if main.settings["against"] == "model" else "the true label",
        )
    )
    for notice in notices(evidence, main):
        page.text(notice)
    page.chart(main.figure())
    for result in scores:
        _score_table(page, result)
    page.text(LIMITS)
    page.heading("Where does the answer position look?")
    page.chart(evidence.figure())
    if evidence.prompts.strings and not main.mean().isnan().all():
        best = main.table()["head"].head(MOST_HEADS)
        view = token_view(evidence, [_parse(name) for name in best])
        page.tokens(view.props, view.caption)
    page.heading("How it was measured")
    page.table(
        ["setting", "value"],
        [[name, value] for name, value in [*_settings(evidence), *main.settings.items()]],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page.html(), encoding="utf-8")
    return path


def _score_table(page: Page, scores: HeadScores, k: int = 12) -> None:
    table = scores.top(k)
    columns = ["head", scores.name, "95 % interval", "strongest control", "above it", *scores.companions]
    rows = [
        [
            str(row["head"]),
            f"{row[scores.name]:.3f}",
            f"{row['low']:.3f} – {row['high']:.3f}",
            f"{row['control']:.3f} ({row['strongest_control'].replace('_', ' ')})",
            f"{row['above_control']:+.3f}",
            *(f"{row[name]:.3f}" for name in scores.companions),
        ]
        for row in table.to_dict("records")
    ]
    settings = ", ".join(f"{name} {value}" for name, value in scores.settings.items())
    reasons = "".join(f" Not scored: {why} ({count} cells)." for why, count in scores.reasons.items())
    page.heading(f"{scores.title[0].upper()}{scores.title[1:]} (pooling {scores.settings['pooling']})")
    page.table(
        [c.replace("_", " ") for c in columns],
        rows,
        f"{scores.unit[0].upper()}{scores.unit[1:]}; {len(scores.values)} prompts; {settings}. "
        f"The {len(rows)} heads furthest above their controls.{reasons}",
    )


def _settings(evidence: Evidence) -> list[tuple[str, str]]:
    run, prompts = evidence.run, evidence.prompts
    info = run.prompts
    template = info.template
    return [
        ("model", f"{run.model} ({run.layers} layers × {run.heads} heads)"),
        ("loaded from", f"{run.source or 'an object of the user'}" + (f" @ {run.revision}" if run.revision else "")),
        ("class", run.kind + (f": {run.loaded_because}" if run.loaded_because else "")),
        ("dtype, device", f"{run.dtype}, {run.device}"),
        ("probe", run.probe),
        ("reading", run.reading),
        ("task", f"{info.task}; {info.origin}"),
        ("template", repr(template.demo) + f", then {template.separator!r}" if template else "token ids"),
        ("prompts", f"{len(prompts)} of {info.demos} demonstrations, {int(prompts.lengths.min())}–"
         f"{int(prompts.lengths.max())} tokens, seed {info.seed}"),
        ("demonstration sets", "fresh for every test input" if info.sets is None else str(info.sets)),
        ("demonstrations balanced", "yes" if info.balanced else "no"),
        ("beginning-of-sequence token", {True: "yes", False: "no", None: "not known"}[info.prepend_bos]),
        ("labels scored on", run.score_on.replace("_", " ")),
        ("template tokens in spans", "counted" if run.template_tokens else "left out"),
        ("versions", ", ".join(f"{name} {version}" for name, version in run.versions.items())),
    ]  # fmt: skip


def _parse(name: str) -> HeadRef:
    layer, head = name[1:].split("H")
    return HeadRef(int(layer), int(head))
