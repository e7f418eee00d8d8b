"""The parts that pages share: whether there is anything to explain, a table of heads, how it was measured."""

from __future__ import annotations

from icl_kernel_lens.charts.page import Page
from icl_kernel_lens.results.evidence import Evidence
from icl_kernel_lens.results.head_scores import HeadScores
from icl_kernel_lens.results.task_accuracy import CONDITIONS, RULES, TaskAccuracy

ANYTHING = (
    "Share of the answers: of the model's own, those that a rule gives which does not look at the inputs, the last "
    "demonstration's label or always the model's commonest answer. What such a rule gives, a head may give for the same "
    "reason."
)


def in_context(page: Page, accuracy: TaskAccuracy) -> None:
    """Whether there is anything to explain: the verdict, and the accuracies and rules that it rests on."""
    rows = [
        [
            f"{row['what']}, {(CONDITIONS | RULES)[row['name']]}",
            f"{row['mean']:.1%}",
            "–" if row["low"] != row["low"] else f"{row['low']:.1%} – {row['high']:.1%}",
        ]
        for row in accuracy.to_dataframe().to_dict("records")
    ]
    page.heading("Is there anything to explain?").text(accuracy.verdict())
    page.table(["of the prompts", "share", "95 % interval"], rows, ANYTHING)
    page.text(
        *(f"Accuracy {CONDITIONS[name]}: not measured ({why})." for name, why in accuracy.reasons.items())
    )


def score_table(page: Page, scores: HeadScores, k: int = 12) -> None:
    """The first heads of a score's table, with a heading and a caption."""
    rows = [
        [
            row["head"],
            f"{row[scores.name]:.3f}",
            f"{row['low']:.3f} – {row['high']:.3f}",
            f"{row['control']:.3f} ({words(row['strongest_control'])})",
            f"{row['above_control']:+.3f}",
            *(f"{row[name]:.3f}" for name in scores.companions),
        ]
        for row in scores.top(k).to_dict("records")
    ]
    settings = ", ".join(f"{name} {value}" for name, value in scores.settings.items())
    reasons = "".join(f" Not scored: {why} ({count} cells)." for why, count in scores.reasons.items())
    page.heading(f"{capital(scores.title)} (pooling {scores.settings['pooling']})").table(
        [
            "head",
            words(scores.name),
            "95 % interval",
            "strongest control",
            "above it",
            *map(words, scores.companions),
        ],
        rows,
        f"{capital(scores.unit)}; {len(scores.values)} prompts; {settings}. "
        f"The {len(rows)} heads most surely above their controls; those that hardly read the labels last.{reasons}",
    )


def words(name: str) -> str:
    """A name as it is read."""
    return name.replace("_", " ")


def capital(text: str) -> str:
    """A sentence's beginning."""
    return text[:1].upper() + text[1:]


def settings_of(evidence: Evidence) -> list[tuple[str, str]]:
    """How evidence was read, of which model, on which prompts."""
    run, prompts = evidence.run, evidence.prompts
    info, template = run.prompts, run.prompts.template
    return [
        ("model", f"{run.model} ({run.layers} layers × {run.heads} heads)"),
        ("loaded from", f"{run.source or 'an object of the user'}" + (f" @ {run.revision}" if run.revision else "")),
        ("class", run.kind + (f": {run.loaded_because}" if run.loaded_because else "")),
        ("dtype, device", f"{run.dtype}, {run.device}"),
        ("quantisation", run.quantisation or "none known"),
        ("verification", run.verification),
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
