"""One small instance of every kind of result of the theory."""

from __future__ import annotations

from icl_kernel_lens.results.base import Result
from icl_kernel_lens.theory.bayes import posterior_concentration, task_divergences
from icl_kernel_lens.theory.experiments.labels import label_noise
from icl_kernel_lens.theory.presets import preset
from icl_kernel_lens.theory.regression import compare_variants
from icl_kernel_lens.theory.theorem import measure_theorem, theorem_terms


def theory_examples() -> dict[str, Result]:
    """By the name of the class."""
    world = preset("sparse")
    made = (
        theorem_terms(world),
        measure_theorem(world, (1, 4, 8), trials=6),
        label_noise(world, (0.0, 0.5), 4, trials=6),
        posterior_concentration(world, (0, 2, 4), trials=6),
        task_divergences(world),
        compare_variants(world),
    )
    return {type(one).__name__: one for one in made}
