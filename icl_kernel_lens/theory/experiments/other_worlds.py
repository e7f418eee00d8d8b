"""How much of Table 3 is the draw of the world?"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from icl_kernel_lens.theory.checks import at_least
from icl_kernel_lens.theory.experiment import Experiment
from icl_kernel_lens.theory.kernel import fit_kernel
from icl_kernel_lens.theory.presets import han2025
from icl_kernel_lens.theory.theorem import COUNTS, LETTER, PAPER, TheoremResult, measure_theorem

MEASURES = {
    "l1": "L1 distance to exact Bayes",
    "agree": "same first answer",
    "linf": "L∞ distance to exact Bayes",
}


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
        for name in MEASURES
    }
    findings = []
    for name, row in (("l1", PAPER["distance"]), ("agree", PAPER["accuracy"])):
        for k in (0, len(counts) - 1):
            column = values[name][:, k, 1]
            low, high = float(column.min()), float(column.max())
            text = f"n = {counts[k]}, {MEASURES[name]}, nothing refused: {low:.3f} to {high:.3f} over {len(seeds)} worlds"
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
        measures=MEASURES,
        values=values,
        findings=tuple(findings),
        world=han2025(seeds[0]).describe(),
        options={"seeds": seeds, "trials": trials, "seed": seed},
        unit="worlds",
    )
