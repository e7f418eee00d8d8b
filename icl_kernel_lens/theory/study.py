"""Everything the theory says of one world: Theorem 1 measured, its variants and terms, the posterior, the experiments.

Of the paper's world also Table 3 in others of the same law.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from tqdm import tqdm

from icl_kernel_lens.charts.figure import Figure
from icl_kernel_lens.errors import LoadError
from icl_kernel_lens.results.base import Result
from icl_kernel_lens.theory.bayes import Concentration, posterior_concentration
from icl_kernel_lens.theory.checks import at_least
from icl_kernel_lens.theory.experiment import Experiment
from icl_kernel_lens.theory.experiments.attention_kernels import softmax_kernels
from icl_kernel_lens.theory.experiments.chosen_demos import representative, retrieve_similar
from icl_kernel_lens.theory.experiments.labels import label_noise, output_format
from icl_kernel_lens.theory.kernel import fit_kernel
from icl_kernel_lens.theory.mixture import TaskMixture
from icl_kernel_lens.theory.presets import han2025, preset
from icl_kernel_lens.theory.regression import VariantTable, compare_variants
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
THEOREM_MEASURES = {
    "l1": "L1 distance to exact Bayes",
    "agree": "same first answer",
    "linf": "L∞ distance to exact Bayes",
}


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
        titles: dict[Distance, str] = {"l1": "L1", "linf": "L∞"}
        theorem = self.theorem
        return [
            *(self._beside_the_paper() if theorem.world.name == "han2025" else ()),
            *(
                f"Slope of our log {title} distance: {theorem.rate(name)}; the theorem's is −0.5."
                for name, title in titles.items()
            ),
            f"The bound of Eq. 7: {self.terms}.",
            *(
                f"No prediction, because {why.message}: {cells} of {theorem.l1.numel()} cells."
                for why, cells in theorem.reasons.items()
            ),
        ]

    def _beside_the_paper(self) -> list[str]:
        said, table = [], self.theorem.beside_paper().set_index("n")
        columns: tuple[tuple[Literal["l1", "agree"], str, str, str], ...] = (
            ("l1", "L1 distance", "l1", "paper_distance"),
            ("agree", "agreement", "agreement", "paper_accuracy"),
        )
        for name, title, ours, papers in columns:
            edges = torch.stack(self.theorem.interval(name), 1).tolist()
            for n, (low, high) in zip(self.theorem.counts, edges, strict=True):
                if n in (1, 8, 128):
                    mean, paper = table[ours][n], table[papers][n]
                    where = "within" if low <= paper <= high else "outside"
                    said.append(
                        f"n = {n}, {title}: ours {mean:.3f} [{low:.3f}, {high:.3f}], the paper's {paper:.3f}, {where} "
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
        parts = [found for found in self.tabled().values() if not isinstance(found, TheoremResult)]
        lines = [
            f"{world.name}: {world.sizes}, inputs of {world.input_length}; {len(theorem.l1)} trials, seed "
            f"{theorem.settings.seed}; design of rank {theorem.rank}, condition {theorem.condition:.3g}",
            "",
            table.to_string(index=False, float_format=lambda x: f"{x:.3f}"),
            "",
            *self.differences(),
            *(text for found in parts for text in ("", repr(found))),
        ]
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


def worlds_of_the_paper(
    seeds: Sequence[int] = range(6), counts: Sequence[int] = COUNTS, *, trials: int = 100, seed: int = 0
) -> Experiment:
    """Table 3 again in other worlds of the same law: how much of it is the world's draw? A trial is a world."""
    seeds = tuple(seeds)
    at_least(len(seeds), 2, "worlds")

    def runs(world_seed: int) -> list[TheoremResult]:
        world = han2025(world_seed)
        kernel = fit_kernel(world)
        return [measure_theorem(world, counts, trials, seed, kernel=kernel, **how) for how in ({}, LETTER)]

    means = [
        [{"l1": run.mean("l1"), "agree": run.agreement(), "linf": run.mean("linf")} for run in runs(one)]
        for one in seeds
    ]
    values = {
        name: torch.stack([torch.stack([run[name] for run in world], -1) for world in means])
        for name in THEOREM_MEASURES
    }
    findings = []
    for name, row in (("l1", PAPER["distance"]), ("agree", PAPER["accuracy"])):
        for k in (0, len(counts) - 1):
            column = values[name][:, k, 1]
            low, high = float(column.min()), float(column.max())
            text = f"n = {counts[k]}, {THEOREM_MEASURES[name]}, nothing refused: {low:.3f} to {high:.3f} over {len(seeds)} worlds"
            if counts[k] in COUNTS:
                paper = row[COUNTS.index(counts[k])]
                side = "below" if paper < low else "above" if paper > high else "within"
                text += f"; the paper's {paper:.3f} lies {side}"
            findings.append(text + ".")
    return Experiment(
        name="worlds_of_the_paper",
        question="How much of Table 3 is the draw of the world?",
        axis="demonstrations n",
        settings=tuple(float(n) for n in counts),
        series=("refusing noise", "nothing refused"),
        measures=THEOREM_MEASURES,
        values=values,
        findings=tuple(findings),
        world=han2025(seeds[0]).describe(),
        options={"seeds": seeds, "trials": trials, "seed": seed},
        unit="worlds",
    )
