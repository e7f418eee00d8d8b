"""Everything the theory says of one world: Theorem 1 measured, its variants and terms, the posterior, the experiments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from icl_kernel_lens.errors import LoadError
from icl_kernel_lens.theory.bayes import Concentration, posterior_concentration
from icl_kernel_lens.theory.experiment import Experiment
from icl_kernel_lens.theory.experiments import EXPERIMENTS, worlds_of_the_paper
from icl_kernel_lens.theory.kernel import VariantTable, compare_variants
from icl_kernel_lens.theory.mixture import TaskMixture
from icl_kernel_lens.theory.presets import preset
from icl_kernel_lens.theory.theorem import (
    COUNTS,
    LETTER,
    PAPER,
    Distance,
    TheoremResult,
    TheoremTerms,
    measure_theorem,
    theorem_terms,
)

if TYPE_CHECKING:
    from icl_kernel_lens.plots.figure import Figure

PARTS = ("theorem", "letter", "terms", "variants", "variants_small", "concentration")
MORE = ("worlds_of_the_paper", *EXPERIMENTS)
TABLE, REPORT = "theorem.csv", "report.html"
SMALL = "wide"
"""The world on which variants are compared too: with many inputs and a small condition, float64 tells exact from not."""
FEW_TASKS, MANY_INPUTS = 2, 2000
"""Variants are compared for so many tasks where there are more inputs than this."""
LEAST_TRIALS = 10
FILES: tuple[str, ...] = (
    *(f"{name}.safetensors" for name in (*PARTS, *MORE)),
    *(f"{name}.csv" for name in ("theorem", "variants", "variants_small", "concentration", *MORE)),
    *(
        f"{name}{suffix}"
        for name in ("theorem", "variants", "variants_small", "concentration", *MORE)
        for suffix in (".png", ".svg")
    ),
    REPORT,
)
"""Every file a study may leave in its folder."""


@dataclass(frozen=True, eq=False, repr=False)
class Study:
    """The results on one world."""

    theorem: TheoremResult
    letter: TheoremResult
    """Eq. 6 by its letter, nothing refused."""
    terms: TheoremTerms
    variants: VariantTable
    variants_small: VariantTable | None
    """On the world `wide`; None where that is the world itself."""
    concentration: Concentration
    experiments: Mapping[str, Experiment]

    def save(self, folder: str | Path) -> Path:
        """One file a result."""
        folder = Path(folder)
        for name in PARTS:
            if getattr(self, name) is not None:
                getattr(self, name).save(folder / f"{name}.safetensors")
        for name, found in self.experiments.items():
            found.save(folder / f"{name}.safetensors")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Study:
        """Read what `save` wrote.

        Raises: LoadError: a file is missing or damaged.
        """
        folder = Path(folder)
        if not (folder / "theorem.safetensors").exists():
            raise LoadError(f"a study of the theory holds theorem.safetensors; there is none in {folder}.")
        kinds: dict[str, Any] = {
            "theorem": TheoremResult,
            "letter": TheoremResult,
            "terms": TheoremTerms,
            "variants": VariantTable,
            "variants_small": VariantTable,
            "concentration": Concentration,
        }
        made: dict[str, Any] = {"variants_small": None}
        for name, kind in kinds.items():
            path = folder / f"{name}.safetensors"
            if name != "variants_small" or path.exists():
                made[name] = kind.load(path)
        paths = {name: folder / f"{name}.safetensors" for name in MORE}
        return cls(
            **made,
            experiments={name: Experiment.load(path) for name, path in paths.items() if path.exists()},
        )

    def figures(self) -> dict[str, Figure]:
        """By the name of their file."""
        made = {
            "theorem": self.theorem.figure(letter=self.letter, terms=self.terms),
            "variants": self.variants.figure(),
            "concentration": self.concentration.figure(),
        }
        if self.variants_small is not None:
            made["variants_small"] = self.variants_small.figure()
        return made | {name: found.figure() for name, found in self.experiments.items()}

    def differences(self) -> list[str]:
        """In words: ours and the paper's, the rate, the bound. Only what these numbers say."""
        said = []
        world = self.theorem.settings["world"]
        if world["name"] == "han2025":
            rows: tuple[tuple[Literal["l1", "agree"], str, str], ...] = (
                ("l1", "L1 distance", "distance"),
                ("agree", "agreement", "accuracy"),
            )
            for name, title, row in rows:
                mean = self.theorem.agreement() if name == "agree" else self.theorem.mean("l1")
                low, high = self.theorem.interval(name)
                for n in (1, 8, 128):
                    if n in self.theorem.counts:
                        i, paper = self.theorem.counts.index(n), PAPER[row][COUNTS.index(n)]
                        where = "within" if float(low[i]) <= paper <= float(high[i]) else "outside"
                        said.append(
                            f"n = {n}, {title}: ours {float(mean[i]):.3f} [{float(low[i]):.3f}, {float(high[i]):.3f}], the paper's "
                            f"{paper:.3f}, {where} our interval."
                        )
            log_n = torch.tensor(COUNTS).double().log()
            early = slice(0, 6)
            paper_slope = _slope(log_n[early], torch.tensor(PAPER["distance"]).double().log()[early])
            said.append(
                f"Slope of the paper's log distance on log n from n = 1 to 32: {paper_slope:.2f}, steeper than sampling noise falls "
                "(−0.5), then flat. Its HMMs' parameters, l, trials and norm are not stated: why is open."
            )
        norms: tuple[tuple[Distance, str], ...] = (("l1", "L1"), ("linf", "L∞"))
        for name, title in norms:
            rate = self.theorem.rate(name)
            said.append(
                f"Slope of our log {title} distance: {rate.slope:.2f} [{rate.low:.2f}, {rate.high:.2f}]; the theorem's is −0.5."
            )
        said.append(f"The bound of Eq. 7: {self.terms}.")
        for why, cells in self.theorem.reasons.items():
            said.append(f"No prediction, because {why}: {cells} of {self.theorem.l1.numel()} cells.")
        return said

    def describe(self) -> str:
        """What the command prints."""
        world = self.theorem.settings["world"]
        lines = [
            f"{world['name']}: {world['tasks']} tasks, {world['states']} states, {world['symbols']} symbols, inputs of "
            f"{world['input_length']}; {len(self.theorem.l1)} trials, seed {self.theorem.settings['seed']}; design of "
            f"rank {self.theorem.rank}, condition {self.theorem.condition:.3g}",
            "",
        ]
        if world["name"] == "han2025":
            table = self.theorem.beside_paper()
            table["l1_letter"] = self.letter.mean("l1").numpy()[[n in COUNTS for n in self.letter.counts]]
            table["scored"] = self.theorem.scored.numpy()[[n in COUNTS for n in self.theorem.counts]]
        else:
            table = self.theorem.table()
        lines += [table.to_string(index=False, float_format=lambda x: f"{x:.3f}"), ""]
        lines += self.differences()
        for found in (self.variants, self.variants_small, self.concentration):
            if found is not None:
                lines += ["", repr(found)]
        for found in self.experiments.values():
            lines += ["", repr(found)]
        return "\n".join(lines)

    def write(self, folder: str | Path) -> Path:
        """Tables, figures and report of these results."""
        from icl_kernel_lens.plots.page import Page

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tables = {"theorem": self.theorem, "variants": self.variants, "concentration": self.concentration}
        if self.variants_small is not None:
            tables["variants_small"] = self.variants_small
        for name, found in (tables | dict(self.experiments)).items():
            found.table().to_csv(folder / f"{name}.csv", index=False)
        figures = self.figures()
        for name, figure in figures.items():
            for suffix in (".png", ".svg"):
                figure.save(folder / f"{name}{suffix}")
        world = self.theorem.settings["world"]
        page = Page(f"The theory on {world['name']}")
        page.heading("Theorem 1 measured")
        page.text(
            "Han et al. (TMLR 2025): kernel regression with the operators' kernel approaches exact Bayesian prediction "
            "as demonstrations are added. Both are computed here without a language model, in float64, on the same prompts."
        )
        page.chart(figures["theorem"])
        for text in self.differences():
            page.text(text)
        shown = self.theorem.beside_paper() if world["name"] == "han2025" else self.theorem.table()
        page.table(*_cells(shown))
        page.heading("Which operator, moment and readout")
        for name in ("variants", "variants_small"):
            if name in figures:
                page.chart(figures[name])
        page.heading("How demonstrations tell the task")
        page.chart(figures["concentration"])
        for name, found in self.experiments.items():
            page.heading(found.question)
            page.chart(figures[name])
            for text in found.findings:
                page.text(text)
        (folder / REPORT).write_text(page.html(), encoding="utf-8")
        return folder

    def __repr__(self) -> str:
        return self.describe()


def _slope(x: torch.Tensor, y: torch.Tensor) -> float:
    x = x - x.mean()
    return float(x @ y / (x @ x))


def _cells(table: Any) -> tuple[list[str], list[list[str]]]:
    columns = list(table.columns)
    return columns, [
        [str(int(row[c])) if c == "n" else f"{row[c]:.3f}" for c in columns]
        for row in table.to_dict("records")
    ]


def study(
    world: TaskMixture | None = None,
    *,
    trials: int = 300,
    seed: int = 0,
    experiments: bool = True,
    progress: bool = False,
) -> Study:
    """Measure all that this package measures on one world (None: the paper's)."""
    from tqdm import tqdm

    world = preset("han2025") if world is None else world
    few = range(min(FEW_TASKS, world.tasks)) if world.symbols**world.input_length > MANY_INPUTS else None
    steps: dict[str, Callable[[], Any]] = {
        "theorem": lambda: measure_theorem(world, trials=trials, seed=seed),
        "letter": lambda: measure_theorem(world, trials=trials, seed=seed, **LETTER),
        "terms": lambda: theorem_terms(world),
        "variants": lambda: compare_variants(world, tasks=few),
        "variants_small": lambda: None if world.name == SMALL else compare_variants(preset(SMALL)),
        "concentration": lambda: posterior_concentration(world, trials=trials, seed=seed),
    }
    if world.name == "han2025":
        steps["worlds_of_the_paper"] = lambda: worlds_of_the_paper(trials=min(100, trials), seed=seed)
    if experiments:
        for name, run in EXPERIMENTS.items():
            steps[name] = lambda run=run: run(world, seed=seed)
    found = {}
    with tqdm(steps.items(), disable=not progress, desc="theory", leave=False) as bar:
        for name, step in bar:
            bar.set_postfix_str(name)
            found[name] = step()
    return Study(
        **{name: found.pop(name) for name in PARTS},
        experiments=found,
    )
