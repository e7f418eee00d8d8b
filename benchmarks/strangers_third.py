"""A third round of impostors of kinds that no rule was made for: what is said of each.

    python -m benchmarks.strangers_third [--out FOLDER]

Five impostors, each planted beside a kernel head (gain 3, bandwidth 0.35); three labels and eight demonstrations, all
labels right. `locate_heads` is given 128 prompts in 32 sets; `kernel head` and `pair kernel` are wrong. What is claimed
of each head is compared with the attention and the output of the model itself, on prompts with random labels; the table
has the largest difference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.strangers import SHOWN, Edited, beside
from benchmarks.strangers_more import (
    Claim,
    Shown,
    Stranger,
    alike,
    brings,
    empty_helper,
    keeps_its_label,
    late,
    report,
    set_helper,
)
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


if __name__ == "__main__":
    title = "A third round of strangers: five impostors"
    report(STRANGERS, __doc__ or "", title, "strangers_third", COLUMNS)
