"""Everything the theory says of one world: Theorem 1 measured, its variants and terms, the posterior, the experiments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from tqdm import tqdm

from icl_kernel_lens.charts.figure import Figure
from icl_kernel_lens.errors import LoadError
from icl_kernel_lens.results.base import Result
from icl_kernel_lens.theory.concentration import Concentration, posterior_concentration
from icl_kernel_lens.theory.experiment import Experiment
from icl_kernel_lens.theory.experiments.attention_kernels import softmax_kernels
from icl_kernel_lens.theory.experiments.labels import label_noise, output_format
from icl_kernel_lens.theory.experiments.other_worlds import worlds_of_the_paper
from icl_kernel_lens.theory.experiments.representative_demos import representative
from icl_kernel_lens.theory.experiments.similar_demos import retrieve_similar
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
    slope,
    theorem_terms,
)
from icl_kernel_lens.theory.variants import VariantTable, compare_variants

EXPERIMENTS: Mapping[str, Callable[..., Experiment]] = {
    function.__name__: function
    for function in (retrieve_similar, output_format, representative, label_noise, softmax_kernels)
}
"""By name, each with settings that take seconds."""
PARTS: Mapping[str, type[Result]] = {
    "theorem": TheoremResult,
    "letter": TheoremResult,
    "terms": TheoremTerms,
    "variants": VariantTable,
    "variants_small": VariantTable,
    "concentration": Concentration,
}
"""The results of every study, beside its experiments."""
SMALL = "wide"
"""The world on which variants are compared too: with many inputs and a small condition, float64 tells exact from not."""
FEW_TASKS, MANY_INPUTS = 2, 2000
"""Variants are compared for so many tasks where there are more inputs than this."""
LEAST_TRIALS = 10


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

    @classmethod
    def of(cls, results: Mapping[str, Result]) -> Study:
        """The study that consists of these results, by the names that `results` gives them.

        Raises: LoadError: one is missing, or of another class.
        """
        left, made = dict(results), {}
        for name, kind in PARTS.items():
            made[name] = left.pop(name, None)
            if not isinstance(made[name], kind) and (name, made[name]) != ("variants_small", None):
                raise LoadError(
                    f"a study of the theory holds a {kind.__name__} called {name}; here "
                    f"{'there is none' if made[name] is None else f'it is a {type(made[name]).__name__}'}. Compute it anew.",
                    code="file-kind",
                )
        return cls(**made, experiments={n: one for n, one in left.items() if isinstance(one, Experiment)})

    def results(self) -> dict[str, Result]:
        """Every result by its name."""
        found = {name: getattr(self, name) for name in PARTS}
        return {name: one for name, one in (found | dict(self.experiments)).items() if one is not None}

    def tabled(self) -> dict[str, TheoremResult | VariantTable | Concentration | Experiment]:
        """The results that stand in a table and a figure of their own, by name."""
        return {
            n: one for n, one in self.results().items() if n != "letter" and not isinstance(one, TheoremTerms)
        }  # pyright: ignore[reportReturnType]

    def figures(self) -> dict[str, Figure]:
        """By the name of the result that each is drawn of."""
        made = {"theorem": self.theorem.figure(letter=self.letter, terms=self.terms)}
        others = {name: one for name, one in self.tabled().items() if not isinstance(one, TheoremResult)}
        return made | {name: one.figure() for name, one in others.items()}

    def differences(self) -> list[str]:
        """In words: ours and the paper's, the rate, the bound. Only what these numbers say."""
        said = self._beside_the_paper() if self.theorem.world.name == "han2025" else []
        titles: dict[Distance, str] = {"l1": "L1", "linf": "L∞"}
        for name, title in titles.items():
            said.append(
                f"Slope of our log {title} distance: {self.theorem.rate(name)}; the theorem's is −0.5."
            )
        said.append(f"The bound of Eq. 7: {self.terms}.")
        for why, cells in self.theorem.reasons.items():
            said.append(f"No prediction, because {why.message}: {cells} of {self.theorem.l1.numel()} cells.")
        return said

    def _beside_the_paper(self) -> list[str]:
        said, table = [], self.theorem.beside_paper().set_index("n")
        columns: tuple[tuple[Literal["l1", "agree"], str, str, str], ...] = (
            ("l1", "L1 distance", "l1", "paper_distance"),
            ("agree", "agreement", "agreement", "paper_accuracy"),
        )
        for name, title, ours, papers in columns:
            low, high = (
                dict(zip(self.theorem.counts, edge.tolist(), strict=True))
                for edge in self.theorem.interval(name)
            )
            for n in (n for n in (1, 8, 128) if n in table.index):
                mean, paper = table[ours][n], table[papers][n]
                where = "within" if low[n] <= paper <= high[n] else "outside"
                said.append(
                    f"n = {n}, {title}: ours {mean:.3f} [{low[n]:.3f}, {high[n]:.3f}], the paper's {paper:.3f}, {where} "
                    "our interval."
                )
        log_n, log_distance = (torch.tensor(row[:6]).double().log() for row in (COUNTS, PAPER["distance"]))
        said.append(
            f"Slope of the paper's log distance on log n from n = 1 to 32: {float(slope(log_n, log_distance)):.2f}, steeper "
            "than sampling noise falls (−0.5), then flat. Its HMMs' parameters, l, trials and norm are not stated: why "
            "is open."
        )
        return said

    def describe(self) -> str:
        """What the command prints."""
        theorem, world = self.theorem, self.theorem.world
        table = theorem.table()
        if world.name == "han2025":
            table = theorem.beside_paper().merge(table[["n", "scored"]])
            table.insert(len(table.columns) - 1, "l1_letter", self.letter.beside_paper()["l1"])
        lines = [
            f"{world.name}: {world.sizes}, inputs of {world.input_length}; {len(theorem.l1)} trials, seed "
            f"{theorem.settings.seed}; design of rank {theorem.rank}, condition {theorem.condition:.3g}",
            "",
            table.to_string(index=False, float_format=lambda x: f"{x:.3f}"),
            "",
            *self.differences(),
        ]
        for found in self.tabled().values():
            if not isinstance(found, TheoremResult):
                lines += ["", repr(found)]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.describe()


def run_study(
    world: TaskMixture | None = None,
    *,
    trials: int = 300,
    seed: int = 0,
    experiments: bool = True,
    progress: bool = False,
) -> Study:
    """Measure all that this package measures on one world (None: the paper's)."""
    world = preset("han2025") if world is None else world
    few = range(min(FEW_TASKS, world.tasks)) if world.symbols**world.input_length > MANY_INPUTS else None
    steps: dict[str, Callable[[], Result]] = {
        "theorem": lambda: measure_theorem(world, trials=trials, seed=seed),
        "letter": lambda: measure_theorem(world, trials=trials, seed=seed, **LETTER),
        "terms": lambda: theorem_terms(world),
        "variants": lambda: compare_variants(world, tasks=few),
        "concentration": lambda: posterior_concentration(world, trials=trials, seed=seed),
    }
    if world.name != SMALL:
        steps["variants_small"] = lambda: compare_variants(preset(SMALL))
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
    return Study.of(found)
