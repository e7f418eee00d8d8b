"""More impostors of kinds that no rule was made for, and a true kernel made strange: what is said of each.

    python -m benchmarks.strangers_more [--out FOLDER]

Four impostors, each planted beside a kernel head (gain 3, bandwidth 0.35), and one kernel regression that three heads
share, a class each; three labels and eight demonstrations. `locate_heads` is given 128 prompts in 32 sets. Of an
impostor, `kernel head` and `pair kernel` are wrong; of the true one, everything else is. What is claimed of each head
is compared with the attention and the output of the model itself, on prompts with random labels; the table has the
largest difference.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

import icl_kernel_lens as ikl
from benchmarks.strangers import EACH, KERNEL, PROMPTS, SHOWN, Edited, beside
from benchmarks.tables import Table, save
from icl_kernel_lens.models.planted_build import build
from icl_kernel_lens.worlds.planted import PlantedHead, PlantedPlan
from icl_kernel_lens.worlds.planted.roles import FEATURES, FIRST_LABEL, ROTARY
from icl_kernel_lens.worlds.planted.slots import BIAS, CONTENT, SWING
from icl_kernel_lens.worlds.planted.write import look_back

HELPER = (1, 2)
"""The head of layer 1 that writes at the labels what an impostor of layer 2 reads there."""
AGREE = 40.0
"""How far a token's score rises where it may keep its label; other places lie at least as far below a token's own."""
OFF_CLASS = 60.0
"""How far the labels of other classes stand below those that a head of one class reads."""


class Shown(NamedTuple):
    """Prompts as the claims take them."""

    x: Tensor
    """φ of the test input, (prompt, feature)."""
    inputs: Tensor
    """φ of the demonstrations' inputs, (prompt, demo, feature)."""
    labels: Tensor
    """The demonstrations' labels, one-hot, (prompt, demo, label)."""
    known: Tensor
    """The classes of their inputs, one-hot, the same."""


class Claim(NamedTuple):
    """What a head does: the labels' scores but for what all have in common, and what it brings of each."""

    scores: Tensor
    values: Tensor


def empty_helper(made: Edited) -> tuple[Tensor, Tensor]:
    """Queries and keys for the helper, whose other weights are set to 0."""
    w = made.weights
    w.v[HELPER], w.o[HELPER] = 0, 0
    shape = w.q[HELPER].shape
    return torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)


def set_helper(made: Edited, q: Tensor, k: Tensor, source: slice, into: slice) -> None:
    """Write the helper's queries and keys, and let it bring one subspace into another."""
    w, size = made.weights, into.stop - into.start
    w.q[HELPER], w.k[HELPER] = (q * q.shape[-1] ** 0.5).float(), k.float()
    w.v[HELPER][source, :size] = torch.eye(size)
    w.o[HELPER][:size, into] = torch.eye(size)


def keeps_its_label(made: Edited, asks: slice, holds: slice, unit: float, *, bos_holds: float = 0.0) -> slice:
    """A token keeps its own label, in spare coordinates, where ⟨asks, holds⟩ is a unit; else it sees BOS and has 0."""
    s, kept = made.stream, made.spare(made.plan.labels)
    q, k = empty_helper(made)
    look_back(made.plan, s, q, k, steps=0)
    itself = ROTARY // 2 * float(q[s["position"].start, 0])
    k[s["is_bos"], : ROTARY // 2] = -1.0  # The cosines of place 0: BOS is as far from all places.
    q[s["const"], BIAS], k[s["is_bos"], BIAS] = itself + AGREE / 2, 1.0
    size = holds.stop - holds.start
    slots = slice(CONTENT.start, CONTENT.start + size)
    q[asks, slots] = AGREE / unit * torch.eye(size, dtype=torch.float64)
    k[holds, slots] = torch.eye(size, dtype=torch.float64)
    k[s["is_bos"], slots] = -bos_holds
    set_helper(made, q, k, s["label"], kept)
    return kept


def late(**dose: Any) -> tuple[PlantedHead, PlantedHead]:
    """A kernel head, and one in the layer behind it to be edited."""
    return PlantedHead(1, 0, "kernel", **KERNEL), PlantedHead(2, 1, "kernel", **(KERNEL | dose))


def brings(made: Edited, kept: slice) -> None:
    """The head of layer 2 brings these coordinates of the labels it looks at, and no longer the labels themselves."""
    v, labels = made.weights.v[2, 1], made.plan.labels
    v[kept, :labels] = v[made.stream["label"], :labels].clone()
    v[made.stream["label"], :labels] = 0


def only_if_right() -> Edited:
    """It looks by K(x, x_i) and brings y_i only where the model knows it for the class of x_i: it learns no label."""
    made = Edited(*late())
    known = made.spare(made.plan.labels)
    made.copies(0, 1, 1, made.stream["vote"], known)
    brings(made, keeps_its_label(made, made.stream["label"], known, made.plan.direct))
    return made


def one_ear() -> Edited:
    """It looks by K(x, x_i) at all labels and brings the first one alone, whose value is the only one that is not 0."""
    made = Edited(*late(gain=6.0))
    first = made.spare(1)
    made.copies(0, 1, 2, made.stream["is_bos"], first)
    # BOS looks back to itself, so that it holds the mark of the first label, too.
    brings(made, keeps_its_label(made, made.stream["const"], first, 1.0, bos_holds=1.0))
    return made


def temperature() -> Edited:
    """It ranks demonstrations by a taste for x_i; x sets only how sharply, and is not compared with any x_i."""
    made = Edited(*beside("kernel", share=1.0))
    s, q, k = made.stream, made.weights.q[1, 1], made.weights.k[1, 1]
    sharp = q.shape[-1] ** 0.5 / KERNEL["bandwidth"] ** 2
    q[s["feature"], CONTENT], k[s["previous"], CONTENT] = 0, 0
    q[s["const"], CONTENT.start] = sharp
    q[s["feature"], CONTENT.start] = sharp * warmth(made.plan).float()
    k[s["previous"], CONTENT.start] = made.plan.taste.float()
    return made


def warmth(plan: PlantedPlan) -> Tensor:
    """The direction of φ(x) that sets how sharply: of length 1, from the second class to the first."""
    return (plan.centres[0] - plan.centres[1]) / 2**0.5


def class_mean() -> Edited:
    """It looks at label i by K(x, m_i), m_i the mean of earlier inputs of the same label: x_i is not looked at."""
    made = Edited(*late(), separator=True)
    s, labels = made.stream, made.plan.labels
    label_before, input_before, mean = made.spare(labels), made.spare(FEATURES), made.spare(FEATURES)
    made.copies(0, 1, 1, s["label"], label_before)
    made.copies(0, 2, 2, s["feature"], input_before)
    # Separators alone stand behind a label; a label sees the earlier ones, and BOS where none is of its kind.
    q, k = empty_helper(made)
    slots = slice(CONTENT.start, CONTENT.start + labels)
    q[s["label"], slots] = 40.0 * torch.eye(labels, dtype=torch.float64)
    k[label_before, slots] = torch.eye(labels, dtype=torch.float64)
    q[s["const"], BIAS], k[s["is_bos"], BIAS] = 20.0, 1.0
    set_helper(made, q, k, input_before, mean)
    k_of_head = made.weights.k[2, 1]
    k_of_head[s["previous"], CONTENT] = 0
    k_of_head[mean, CONTENT] = torch.eye(FEATURES)
    return made


def a_class_each() -> Edited:
    """A kernel regression, Σ y_i K(x, x_i) over a constant: the labels of each class have a head of their own."""
    made = Edited(*(PlantedHead(1, c, "kernel", gain=40.0, bandwidth=0.35, share=0.05) for c in range(3)))
    for c in range(3):
        q, k = made.weights.q[1, c], made.weights.k[1, c]
        q[made.stream["const"], SWING] = q.shape[-1] ** 0.5
        k[made.stream["label"], SWING] = OFF_CLASS * (torch.eye(3)[c] - 1)
    return made


def alike(shown: Shown) -> Tensor:
    """φ(x)·φ(x_i) / h²."""
    return (shown.inputs @ shown.x[..., None]).squeeze(-1) / KERNEL["bandwidth"] ** 2


def claim_only_if_right(_: PlantedPlan, shown: Shown) -> Claim:
    """See `only_if_right`."""
    return Claim(alike(shown), shown.labels * shown.known)


def claim_one_ear(_: PlantedPlan, shown: Shown) -> Claim:
    """See `one_ear`."""
    first = torch.arange(shown.labels.shape[1]) == 0
    return Claim(alike(shown), shown.labels * first[:, None])


def claim_temperature(plan: PlantedPlan, shown: Shown) -> Claim:
    """See `temperature`; the test input's factor is above 0, so that the order of demonstrations is always the same."""
    sharpness = (1 + shown.x @ warmth(plan))[:, None] / KERNEL["bandwidth"] ** 2
    assert sharpness.min() > 0
    return Claim(sharpness * (shown.inputs @ plan.taste), shown.labels)


def claim_class_mean(_: PlantedPlan, shown: Shown) -> Claim:
    """See `class_mean`; 0 where no demonstration bore the label before."""
    same = (shown.labels @ shown.labels.mT).tril(-1)
    means = same @ shown.inputs / same.sum(-1, keepdim=True).clamp(min=1)
    return Claim(alike(shown._replace(inputs=means)), shown.labels)


def claim_of_class(plan: PlantedPlan, shown: Shown) -> Claim:
    """See `a_class_each`: the head of the first class."""
    other = shown.labels[..., 0] == 0
    return Claim(alike(shown).masked_fill(other, -torch.inf), shown.labels)


class Stranger(NamedTuple):
    """How it is made, which head is meant, which ones stand beside it, and what is claimed."""

    make: Callable[[], Edited]
    head: str
    beside: tuple[str, ...]
    claim: Callable[[PlantedPlan, Shown], Claim]
    true: bool = False


STRANGERS: dict[str, Stranger] = {
    "only if right": Stranger(only_if_right, "L2H1", ("L1H0",), claim_only_if_right),
    "one ear": Stranger(one_ear, "L2H1", ("L1H0",), claim_one_ear),
    "temperature": Stranger(temperature, "L1H1", ("L1H0",), claim_temperature),
    "class mean": Stranger(class_mean, "L2H1", ("L1H0",), claim_class_mean),
    "a class each": Stranger(a_class_each, "L1H0", ("L1H1", "L1H2"), claim_of_class, true=True),
}


def off_by(made: Edited, model: Any, head: str, claim: Callable[[PlantedPlan, Shown], Claim]) -> float:
    """The largest difference of the head's weights, or of what it adds to a label's logit, from what is claimed."""
    plan, layer, index = made.plan, int(head[1]), int(head[3])
    at = plan.label_positions(plan.demos)
    tokens = plan.prompts(count=PROMPTS, tests_per_set=EACH, seed=1).tokens.clone()
    drawn = torch.randint(plan.labels, (len(tokens), len(at)), generator=torch.Generator().manual_seed(0))
    tokens[:, at] = FIRST_LABEL + drawn
    labels, known = (
        one_hot(drawn, plan.labels).double(),
        one_hot(plan.classes[tokens[:, at - 1]], plan.labels),
    )
    shown = Shown(plan.features[tokens[:, -1]], plan.features[tokens[:, at - 1]], labels, known.double())

    names = [f"blocks.{layer}.attn.hook_{name}" for name in ("pattern", "z")]
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=lambda name: name in names)
    row = cache[names[0]][:, index, -1, at].double()
    written = cache[names[1]][:, -1, index] @ made.weights.o[layer, index][:, made.stream["vote"]]
    scores, values = claim(plan, shown)
    sees = scores.isfinite().any(-1)
    weights = (row / row.sum(-1, keepdim=True) - scores.softmax(-1))[sees]
    gain = next(planted.strength for planted in plan.heads if str(planted.ref) == head)
    brought = written.double() - gain * (row[..., None] * values).sum(1)
    return max(float(weights.abs().max()), float(brought.abs().max()))


def said(name: str, stranger: Stranger, columns: Sequence[str]) -> tuple[list[str], str, bool]:
    """What is said of one stranger and of the heads beside it; why; whether that is right."""
    made = stranger.make()
    model = build(made.weights, "HookedTransformer", name)
    wrong_by = off_by(made, model, stranger.head, stranger.claim)
    prompts = made.plan.prompts(count=PROMPTS, tests_per_set=EACH, seed=0)
    ranking = ikl.locate_heads(model, prompts, progress=False)
    rows = ranking.table().set_index("head")
    row = rows.loc[stranger.head]
    others = ", ".join(str(rows.loc[other]["class"]) for other in stranger.beside)
    shown = [f"{row[column]:.2f}" for column in columns]
    right = (row["class"] in ("kernel head", "pair kernel")) == stranger.true
    return (
        [name, str(row["class"]), others, *shown, f"{wrong_by:.0e}"],
        str(ranking.why(stranger.head)),
        right,
    )


def report(
    strangers: Mapping[str, Stranger], about: str, title: str, name: str, columns: Sequence[str] = SHOWN
) -> None:
    """Say it of each, print the table, and keep it as NAME.md and NAME.json where --out names a folder."""
    parser = argparse.ArgumentParser(description=about.split("\n")[0])
    parser.add_argument("--out", type=Path, help=f"folder for {name}.md and {name}.json")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    rows, wrong = [], 0
    for each, stranger in strangers.items():
        row, why, right = said(each, stranger, columns)
        rows.append(row)
        wrong += not right
        print(*row, sep="; ", flush=True)
        print(f"  {why}", flush=True)
    heads = ["stranger", "said", "heads beside it", *(one.replace("_", " ") for one in columns), "off by"]
    table = Table(f"{wrong} of {len(rows)} called what they are not", heads, rows)
    print(table.text())
    if given.out:
        save(given.out, name, title, [table])


if __name__ == "__main__":
    title = "More strangers: four impostors and a kernel in thirds"
    report(STRANGERS, __doc__ or "", title, "strangers_more")
