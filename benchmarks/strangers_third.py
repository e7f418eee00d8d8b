"""A third round of impostors of kinds that no rule was made for: what is said of each.

    python -m benchmarks.strangers_third [--out FOLDER]

Five impostors, each planted beside a kernel head (gain 3, bandwidth 0.35); three labels and eight demonstrations, all
labels right. `locate_heads` is given 128 prompts in 32 sets; `kernel head` and `pair kernel` are wrong. What is claimed
of each head is compared with the attention and the output of the model itself, on prompts with random labels; the table
has the largest difference.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor

import icl_kernel_lens as ikl
from benchmarks.strangers import EACH, PROMPTS, SHOWN, Edited, beside
from benchmarks.strangers_more import (
    Claim,
    Shown,
    Stranger,
    alike,
    brings,
    empty_helper,
    keeps_its_label,
    late,
    off_by,
    set_helper,
)
from benchmarks.tables import Table, save
from icl_kernel_lens.models.planted_build import build
from icl_kernel_lens.worlds.planted import PlantedPlan
from icl_kernel_lens.worlds.planted.roles import ABOVE, FEATURES
from icl_kernel_lens.worlds.planted.slots import BIAS, CONTENT

COLUMNS = (*SHOWN, "behind_slope", "gained", "ranking_fit", "within_labels", "zeroed", "lead_zeroed")


def label_changes() -> Edited:
    """It looks by K(x, x_i) and brings y_i − y_{i−1}: what weighs on y_i is K_i − K_{i+1}, no average of labels."""
    made = Edited(*beside("kernel"))
    before, labels = made.spare(made.plan.labels), made.plan.labels
    made.copies(0, 1, 2, made.stream["label"], before)
    v = made.weights.v[1, 1]
    v[before, :labels] = -v[made.stream["label"], :labels]
    return made


def running_tally() -> Edited:
    """It looks by K(x, x_i) and brings the even mean of y_1 … y_i, of which y_i is one part in i."""
    made = Edited(*late())
    tally = made.spare(made.plan.labels)
    q, k = empty_helper(made)
    q[made.stream["const"], BIAS], k[made.stream["is_label"], BIAS] = ABOVE, 1.0
    set_helper(made, q, k, made.stream["label"], tally)
    brings(made, tally)
    return made


def only_if_repeated() -> Edited:
    """It looks by K(x, x_i) and brings y_i only where y_{i−1} is the same: no label counts but by another one."""
    made = Edited(*late(gain=6.0))
    before = made.spare(made.plan.labels)
    made.copies(0, 1, 2, made.stream["label"], before)
    brings(made, keeps_its_label(made, made.stream["label"], before, 1.0))
    return made


def only_if_wrong() -> Edited:
    """It looks by K(x, x_i) and brings y_i only where the model knows another class for x_i: here it writes 0."""
    made = Edited(*late())
    known, labels = made.spare(made.plan.labels), made.plan.labels
    made.copies(0, 1, 1, made.stream["vote"], known)
    kept = keeps_its_label(made, made.stream["label"], known, made.plan.direct)
    v = made.weights.v[2, 1]
    v[kept, :labels] = -v[made.stream["label"], :labels]
    return made


def against_the_input_before() -> Edited:
    """Its weights are K(x, x_i) / K(x, x_{i−1}): the input of another demonstration counts as much as its own."""
    made = Edited(*beside("kernel"))
    before = made.spare(FEATURES)
    made.copies(0, 1, 3, made.stream["feature"], before)
    made.weights.k[1, 1][before, CONTENT] = -torch.eye(FEATURES)
    return made


def one_before(of_demos: Tensor) -> Tensor:
    """The same of the demonstration before; 0 for the first."""
    return torch.cat([torch.zeros_like(of_demos[:, :1]), of_demos[:, :-1]], 1)


def claim_changes(_: PlantedPlan, shown: Shown) -> Claim:
    """See `label_changes`."""
    return Claim(alike(shown), shown.labels - one_before(shown.labels))


def claim_tally(_: PlantedPlan, shown: Shown) -> Claim:
    """See `running_tally`."""
    count = torch.arange(1, shown.labels.shape[1] + 1)
    return Claim(alike(shown), shown.labels.cumsum(1) / count[:, None])


def claim_repeated(_: PlantedPlan, shown: Shown) -> Claim:
    """See `only_if_repeated`."""
    return Claim(alike(shown), shown.labels * one_before(shown.labels))


def claim_wrong(_: PlantedPlan, shown: Shown) -> Claim:
    """See `only_if_wrong`."""
    return Claim(alike(shown), shown.labels * (1 - shown.known))


def claim_against(_: PlantedPlan, shown: Shown) -> Claim:
    """See `against_the_input_before`."""
    return Claim(alike(shown) - alike(shown._replace(inputs=one_before(shown.inputs))), shown.labels)


STRANGERS: dict[str, Stranger] = {
    "label changes": Stranger(label_changes, "L1H1", ("L1H0",), claim_changes),
    "running tally": Stranger(running_tally, "L2H1", ("L1H0",), claim_tally),
    "only if repeated": Stranger(only_if_repeated, "L2H1", ("L1H0",), claim_repeated),
    "only if wrong": Stranger(only_if_wrong, "L2H1", ("L1H0",), claim_wrong),
    "against the input before": Stranger(against_the_input_before, "L1H1", ("L1H0",), claim_against),
}


def said(name: str, *, judged: bool = True) -> tuple[list[str], str, bool]:
    """What is said of one stranger and of the heads beside it; why; whether that is right. Or the error alone."""
    stranger = STRANGERS[name]
    made = stranger.make()
    model = build(made.weights, "HookedTransformer", name)
    wrong_by = off_by(made, model, stranger.head, stranger.claim)
    if not judged:
        return [name, f"{wrong_by:.0e}"], "", True
    prompts = made.plan.prompts(count=PROMPTS, tests_per_set=EACH, seed=0)
    ranking = ikl.locate_heads(model, prompts, progress=False)
    rows = ranking.table().set_index("head")
    row = rows.loc[stranger.head]
    others = ", ".join(str(rows.loc[other]["class"]) for other in stranger.beside)
    shown = [f"{row[column]:.2f}" for column in COLUMNS]
    for column in COLUMNS:
        if f"{column}_low" in row:
            print(f"    {column} {row[column]:.2f} [{row[column + '_low']:.2f}, {row[column + '_high']:.2f}]")
    right = (row["class"] in ("kernel head", "pair kernel")) == stranger.true
    return (
        [name, str(row["class"]), others, *shown, f"{wrong_by:.0e}"],
        f"{ranking.why(stranger.head)} | model: {ranking.verdict()}",
        right,
    )


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="folder for strangers_third.md and strangers_third.json")
    parser.add_argument(
        "--claims", action="store_true", help="compare the claims with the models, and locate nothing"
    )
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    rows, wrong = [], 0
    for name in STRANGERS:
        row, why, right = said(name, judged=not given.claims)
        rows.append(row)
        wrong += not right
        print(*row, sep="; ", flush=True)
        print(f"  {why}", flush=True)
    if given.claims:
        sys.exit()
    columns = ["stranger", "said", "heads beside it", *(name.replace("_", " ") for name in COLUMNS), "off by"]
    table = Table(f"{wrong} of {len(rows)} called what they are not", columns, rows)
    print(table.text())
    if given.out:
        save(given.out, "strangers_third", "A third round of strangers: five impostors", [table])


if __name__ == "__main__":
    main()
