"""Is what is measured what was planted, and is every head given its class? Random planted models, by closed form.

    python -m benchmarks.recovery [--models 200] [--out FOLDER]
    python -m benchmarks.recovery --classes [--each 6] [--kinds salience echo …] [--out FOLDER]

*Numbers*: a model has fifteen heads of roles and doses drawn at random beside idle ones, in a world drawn at random (`planted.mixed_plan`):
separators, trailing tokens, MLPs that carry noise, norms. Every number that `label_influence` and `carried_influence` give is
compared with its closed form, which is computed from the plan and not from the model, cell by cell; differences are over the
model's largest influence (1 logit, where that is less).

*Classes*: `locate_heads` on small models that hold a kernel head and one kind of impostor, or the impostor alone; see
`recovery_classes.py`. A run that was interrupted goes on from what is in FOLDER.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.planted import mixed_plan
from benchmarks.recovery_classes import KINDS, classes
from benchmarks.tables import Table, save
from icl_kernel_lens import carried_influence, label_influence
from icl_kernel_lens.numbers.influence import pair_part
from icl_kernel_lens.worlds.planted.model import PlantedModel

PROMPTS, EACH = 12, 4
LIMIT = 1e-4
NUMBERS = ("influence", "label part", "pair part", "carried, both", "carried, values", "carried, keys")


def differences(seed: int) -> dict[str, float]:
    """The largest difference of each number of one model, over its largest influence."""
    plan = mixed_plan(seed)
    prompts = plan.prompts(count=PROMPTS, tests_per_set=EACH, seed=seed)
    model = PlantedModel.of(plan).model
    found = label_influence(model, prompts, progress=False)
    closed = plan.influence(prompts)
    size = max(1.0, float(closed.abs().max()))
    pairs: dict[str, tuple[Tensor, Tensor]] = {
        "influence": (found.values, closed),
        "label part": (found.shifted[:, 0] - found.shifted.mean(1), plan.label_part(prompts)),
        "pair part": (found.pair(), pair_part(closed, prompts.demo_set)),
    }
    for factor in ("both", "values", "keys"):
        parts = carried_influence(model, found, carrier=factor, progress=False)
        pairs[f"carried, {factor}"] = (parts.values, plan.carried(prompts, factor))
    return {name: float((a.double() - b.double()).abs().max()) / size for name, (a, b) in pairs.items()}


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--out", type=Path, help="folder for tables and numbers")
    parser.add_argument("--classes", action="store_true", help="the classes of heads, and not the numbers")
    parser.add_argument(
        "--each", type=int, default=6, help="models of each kind, with and without a kernel head"
    )
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_grad_enabled(False)
    if given.classes:
        classes(given.each, given.kinds, given.out)
        return
    every = [differences(seed) for seed in range(given.models)]
    rows = [
        [
            name,
            f"{max(one[name] for one in every):.1e}",
            f"{sum(one[name] <= LIMIT for one in every)} of {len(every)}",
        ]
        for name in NUMBERS
    ]
    table = Table(
        f"Closed forms: {given.models} random planted models",
        ["number", "largest difference", f"models within {LIMIT:g}"],
        rows,
    )
    print(table.text())
    if given.out:
        save(given.out, "closed_forms", "What is measured is what was planted", [table], models=every)


if __name__ == "__main__":
    main()
