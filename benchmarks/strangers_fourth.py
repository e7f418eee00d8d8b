"""A fourth round of impostors of kinds that no rule was made for: what is said of each.

    python -m benchmarks.strangers_fourth [--out FOLDER]

Five impostors, each planted beside a kernel head (gain 3, bandwidth 0.35); three labels and eight demonstrations, all
labels right. `locate_heads` is given 128 prompts in 32 sets; `kernel head` and `pair kernel` are wrong. What other
demonstrations show enters by one place each: the values, the query, the keys, the share that is left for labels. What is
claimed of each head is compared with the attention and the output of the model itself, on prompts with random labels; the
table has the largest difference.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.strangers import KERNEL, SHOWN, Edited
from benchmarks.strangers_more import (
    HELPER,
    Claim,
    Shown,
    Stranger,
    alike,
    empty_helper,
    keeps_its_label,
    late,
    report,
    set_helper,
)
from benchmarks.strangers_third import one_before
from icl_kernel_lens.worlds.planted import PlantedPlan
from icl_kernel_lens.worlds.planted.roles import ABOVE, FEATURES
from icl_kernel_lens.worlds.planted.slots import BIAS, CONTENT, SWING

COLUMNS = (*SHOWN, "behind_slope", "gained", "others", "company", "ranking_fit", "within_labels", "zeroed")
SHARP = KERNEL["bandwidth"] ** -2
"""1 / h²."""
LESS = 10.0
"""How far a label's score falls, at most, the more often it was shown."""
BOS_COUNTS = 2.0
"""As how many labels BOS counts where labels are counted."""
SHUT = 40.0
"""How far BOS stands above its usual score where a head does not look at labels."""
TILT = 1.5 * SHARP
"""What the labels shown count in a query, against `SHARP` of the test input."""


def silenced_by_another_input() -> Edited:
    """It looks by K(x, x_i) and brings y_i only where x_{i−1} is of another class than x_i, else nothing: how far y_i counts
    hangs on another demonstration's input."""
    made = Edited(*late(gain=4.0))
    labels = made.plan.labels
    known, known_before = made.spare(labels), made.spare(labels)
    made.copies(0, 1, 1, made.stream["vote"], known)
    made.copies(0, 2, 3, made.stream["vote"], known_before)
    kept = keeps_its_label(made, known, known_before, made.plan.direct**2)
    v = made.weights.v[2, 1]
    v[kept, :labels] = -v[made.stream["label"], :labels]
    return made


def second_hand() -> Edited:
    """It looks at label i by K(m, x_i), m = Σ_j K(x, x_j) x_j / Σ_j K(x, x_j): its query holds the demonstrations like x and not
    x, so that what two demonstrations weigh against one another hangs on all the others' inputs."""
    made = Edited(*late(), separator=True)
    s, labelled = made.stream, made.spare(FEATURES)
    found = made.spare(FEATURES)
    made.copies(0, 1, 2, s["feature"], labelled)  # Separators alone stand two tokens behind an input.
    q, k = empty_helper(made)
    q[s["feature"], CONTENT] = SHARP * torch.eye(FEATURES, dtype=torch.float64)
    k[labelled, CONTENT] = torch.eye(FEATURES, dtype=torch.float64)
    q[s["const"], BIAS], k[s["is_separator"], BIAS] = ABOVE + SHARP, 1.0
    set_helper(made, q, k, labelled, found)
    q_of_head = made.weights.q[2, 1]
    q_of_head[found, CONTENT] = q_of_head[s["feature"], CONTENT].clone()
    q_of_head[s["feature"], CONTENT] = 0
    return made


def rarer_louder() -> Edited:
    """Its weights are K(x, x_i) e^{−b n_i / (n_i + 2)}, n_i how many of y_1 … y_i are y_i: no function of x, x_i and y_i, as
    other demonstrations' labels, permuted among themselves, move it."""
    made = Edited(*late())
    s, labels, often = made.stream, made.plan.labels, made.spare(1)
    q, k = empty_helper(made)
    slots = slice(CONTENT.start, CONTENT.start + labels)
    q[s["label"], slots] = 40.0 * torch.eye(labels, dtype=torch.float64)
    k[s["label"], slots] = torch.eye(labels, dtype=torch.float64)
    q[s["const"], BIAS], k[s["is_bos"], BIAS] = 40.0 + math.log(BOS_COUNTS), 1.0
    set_helper(made, q, k, s["is_label"], often)
    k_of_head = made.weights.k[2, 1]
    k_of_head[often, BIAS] = -LESS
    k_of_head[s["is_label"], BIAS] += LESS / 2  # Of a label shown twice, so that BOS keeps about its share.
    return made


def only_after_a_hit() -> Edited:
    """It looks by K(x, x_i) where the last label is the class that the model knows x to be of, else at BOS alone: whether any
    label counts hangs on y_n, so that what it writes is y_n's doing and no sum over labels."""
    made = Edited(*late(gain=6.0))
    s, labels = made.stream, made.plan.labels
    last = made.spare(labels)
    made.copies(0, 1, 1, s["label"], last)
    hit = keeps_its_label(made, last, s["vote"], made.plan.direct)
    w = made.weights
    w.v[HELPER] = 0
    w.v[HELPER][s["vote"], :labels] = torch.eye(
        labels
    )  # The test input keeps its class, for want of a label.
    q, k = w.q[2, 1], w.k[2, 1]
    unit = SHUT * q.shape[-1] ** 0.5
    q[s["const"], SWING], k[s["is_bos"], SWING] = unit, 1.0
    q[hit, SWING] = -unit / made.plan.direct
    return made


def with_the_majority() -> Edited:
    """Its weights are K(x, x_i) e^{Σ_j c(y_j)·φ(x_i) t / n}, c(y) the centre of a class: the labels of all demonstrations stand in
    its query, and each of them moves what all inputs weigh."""
    made = Edited(*late())
    s, tally = made.stream, made.spare(made.plan.labels)
    q, k = empty_helper(made)
    q[s["const"], BIAS], k[s["is_label"], BIAS] = ABOVE, 1.0
    set_helper(made, q, k, s["label"], tally)
    q_of_head = made.weights.q[2, 1]
    q_of_head[tally, CONTENT] = TILT * q_of_head.shape[-1] ** 0.5 * made.plan.centres.float()
    return made


def claim_silenced(_: PlantedPlan, shown: Shown) -> Claim:
    """See `silenced_by_another_input`; the first label is always brought."""
    same = (shown.known * one_before(shown.known)).sum(-1, keepdim=True)
    return Claim(alike(shown), shown.labels * (1 - same))


def claim_second_hand(_: PlantedPlan, shown: Shown) -> Claim:
    """See `second_hand`."""
    mean = (alike(shown).softmax(-1)[..., None] * shown.inputs).sum(1)
    return Claim(alike(shown._replace(x=mean)), shown.labels)


def claim_rarer(_: PlantedPlan, shown: Shown) -> Claim:
    """See `rarer_louder`."""
    count = (shown.labels @ shown.labels.mT).tril().sum(-1)
    return Claim(alike(shown) - LESS * count / (count + BOS_COUNTS), shown.labels)


def hits(plan: PlantedPlan, shown: Shown) -> Tensor:
    """Where the last label is the class of x."""
    token = (plan.features[None] == shown.x[:, None]).all(-1).double().argmax(-1)
    return plan.classes[token] == shown.labels[:, -1].argmax(-1)


def claim_after_a_hit(plan: PlantedPlan, shown: Shown) -> Claim:
    """See `only_after_a_hit`: nothing is brought without a hit."""
    return Claim(alike(shown), shown.labels * hits(plan, shown)[:, None, None])


def claim_majority(plan: PlantedPlan, shown: Shown) -> Claim:
    """See `with_the_majority`."""
    tilt = TILT * (shown.labels.mean(1, keepdim=True) @ plan.centres @ shown.inputs.mT).squeeze(1)
    return Claim(alike(shown) + tilt, shown.labels)


STRANGERS: dict[str, Stranger] = {
    "silenced by another input": Stranger(silenced_by_another_input, "L2H1", ("L1H0",), claim_silenced),
    "second hand": Stranger(second_hand, "L2H1", ("L1H0",), claim_second_hand),
    "rarer louder": Stranger(rarer_louder, "L2H1", ("L1H0",), claim_rarer),
    "only after a hit": Stranger(only_after_a_hit, "L2H1", ("L1H0",), claim_after_a_hit),
    "with the majority": Stranger(with_the_majority, "L2H1", ("L1H0",), claim_majority),
}


if __name__ == "__main__":
    title = "A fourth round of strangers: five impostors"
    report(STRANGERS, __doc__ or "", title, "strangers_fourth", COLUMNS)
