"""The page on label influence: what kind of answer the model gives, the numbers behind that, and the heads that follow it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from icl_kernel_lens.charts.figure import Figure
from icl_kernel_lens.charts.page import Page
from icl_kernel_lens.files import write_atomically
from icl_kernel_lens.report.parts import capital, in_context, score_table, settings_of
from icl_kernel_lens.results.evidence import Evidence
from icl_kernel_lens.results.head_scores import HeadScores
from icl_kernel_lens.results.label_influence import LabelInfluence

MEASURED = (
    "The label of one demonstration is replaced at a time, and the model is run: G is how many logits its answer leaned "
    "towards that label. Nothing is assumed of heads, and what labels do not touch cancels. Under a kernel regression G is "
    "proportional to the kernel weight, never negative, and additive."
)
ADDS = (
    "If demonstrations act on their own, replacing several labels does what the single replacements do together. Where it "
    "does not, how one demonstration is read depends on the labels of others, or the scale is not the one on which they add "
    "up."
)
FITS = (
    "Each head's kernel weights beside the model's own kernel, within demonstration sets, so that the test input alone varies; "
    "what all test inputs of a set have in common, by place, demonstration or gain, is out of both. p family: the probability that the best of all heads fits as well "
    "with test inputs exchanged within sets. other order: the fit to the influence under another order of the same "
    "demonstrations, which place cannot explain."
)
UNRANKED = (
    "No head is ranked: without a kernel part there is nothing that a head could follow, and the best of many fits would be "
    "the best of chance."
)
LIMITS = (
    "What this does not show: that anything goes through a head that fits (it may copy a kernel that others carry); why a "
    "demonstration pulls; what happens on other tasks, templates or demonstrations. A share of the variance depends on "
    "everything else that varies: a strong habit of a place makes the kernel part small."
)
BESIDE = 3
"""Heads whose weights are drawn beside the influence in one prompt."""


def write_influence_report(
    path: str | Path, evidence: Evidence, influence: LabelInfluence, fit: HeadScores | None
) -> Path:
    """Write the page; `fit` is how far heads follow the kernel, None where no two prompts share their demonstrations.

    Raises: RunError: the file cannot be written.
    """
    run = influence.run
    page = Page(f"The model's own kernel: {run.model} on {run.prompts.task}")
    in_context(page, influence.accuracy)
    page.heading("What kind of answer is it?").text(influence.verdict(), MEASURED)
    rows = [
        [row["what"], row["on"], f"{row['value']:.4f}", _between(row["low"], row["high"])]
        for row in influence.summary().to_dict("records")
    ]
    page.table(["what", "on", "value", "95 % interval"], rows, "Intervals are between demonstration sets.")
    page.text(*(f"{capital(note)}." for note in influence.notes))
    page.heading("How far does each demonstration pull?").chart(influence.figure())
    page.heading("Do they add up?").chart(influence.additivity_figure()).text(ADDS)
    page.heading("Which heads follow it?")
    if fit is None:
        page.text(f"Not measured: {influence.kernel_part().undefined}.")
    elif not ranks_heads(influence):
        page.text(influence.verdict(), unranked(influence)).chart(fit.layer_figure())
    else:
        page.text(FITS).chart(fit.layer_figure()).chart(fit.figure())
        page.chart(best_beside(influence, evidence, fit))
        score_table(page, fit)
    page.text(LIMITS)
    settings = [*settings_of(evidence), *influence.settings.items(), *(fit.settings.items() if fit else ())]
    page.heading("How it was measured").table(["setting", "value"], settings)
    return write_atomically(path, page.html())


def ranks_heads(influence: LabelInfluence) -> bool:
    """Whether there is a kernel part, so that its heads can be ranked."""
    return influence.kernel_part().found in ("tiny", "real")


def unranked(influence: LabelInfluence) -> str:
    """Why heads are not ranked."""
    undefined = influence.kernel_part().undefined
    return (
        UNRANKED
        if undefined is None
        else f"No head is ranked: whether there is a kernel part is not known, as {undefined}."
    )


def best_beside(influence: LabelInfluence, evidence: Evidence, fit: HeadScores) -> Figure:
    """The first prompt's influences beside the weights of the best heads."""
    pooling: Any = fit.settings["pooling"]
    return influence.prompt_figure(evidence, list(fit.top(BESIDE)["head"]), pooling=pooling)


def _between(low: float, high: float) -> str:
    return "–" if low != low else f"{low:.4f} to {high:.4f}"
