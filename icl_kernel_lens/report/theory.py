"""The page on a study of the theory: its numbers beside the paper's, and what follows from them."""

from __future__ import annotations

from icl_kernel_lens.charts.page import Page
from icl_kernel_lens.theory.study import Study


def study_page(study: Study) -> Page:
    """The page on a study."""
    figures, theorem = study.figures(), study.theorem
    page = Page(f"The theory on {theorem.world.name}")

    page.heading("Theorem 1 measured")
    page.text(
        "Han et al. (TMLR 2025): kernel regression with the operators' kernel approaches exact Bayesian prediction "
        "as demonstrations are added. Both are computed here without a language model, in float64, on the same prompts."
    )
    page.chart(figures["theorem"]).text(*study.differences())
    table = theorem.beside_paper() if theorem.world.name == "han2025" else theorem.table()
    page.table(
        list(table), [[f"{n:.0f}", *(f"{x:.3f}" for x in row)] for n, *row in table.to_numpy().tolist()]
    )
    page.heading("Which operator, moment and readout")
    for name in ("variants", "variants_small"):
        if name in figures:
            page.chart(figures[name])
    page.heading("How demonstrations tell the task").chart(figures["concentration"])
    for name, found in study.experiments.items():
        page.heading(found.question).chart(figures[name]).text(*found.findings)
    return page
