"""Impostors of kinds that no rule was made for: what is said of heads that a reader invented who had not seen the code.

    python -m benchmarks.strangers [--out FOLDER]

Each is planted beside a kernel head (gain 3, bandwidth 0.35; the last one without), three labels and eight demonstrations where
not said otherwise, and its weights are then edited by hand. `locate_heads` is given 128 prompts in 32 sets. None of them is what
carries the model's kernel regression over inputs; `kernel head` and `pair kernel` are wrong.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import icl_kernel_lens as ikl
from benchmarks.tables import Table, save
from icl_kernel_lens.models.planted_build import build
from icl_kernel_lens.worlds.planted import PlantedHead, PlantedPlan
from icl_kernel_lens.worlds.planted.roles import FEATURES
from icl_kernel_lens.worlds.planted.slots import CONTENT
from icl_kernel_lens.worlds.planted.write import look_back, written

PROMPTS, EACH = 128, 4
KERNEL: dict[str, Any] = {"gain": 3.0, "bandwidth": 0.35}
SHOWN = ("fit", "other_order", "transport", "kernel_share", "swap_slope", "fit_cut_below", "label_shift")


class Edited:
    """A plan without norms, as weights that can be edited; some coordinates of the stream are to spare."""

    def __init__(self, *heads: PlantedHead, **settings: Any) -> None:
        shape: dict[str, Any] = {"layers": 3, "heads_per_layer": 4, "labels": 3, "demos": 8, "direct": 0.3}
        shape |= {"norm": False, "form": "plain", "d_head": 32}
        self.plan = PlantedPlan(heads, **(shape | settings))
        self.stream, self.weights = self.plan.stream, written(self.plan)
        self.used = self.stream.size

    def spare(self, width: int) -> slice:
        """Coordinates that nothing reads or writes."""
        found = slice(self.used, self.used + width)
        self.used += width
        assert self.used <= self.weights.embed.shape[1]
        return found

    def copies(self, layer: int, head: int, steps: int, source: slice, into: slice) -> None:
        """Make a head copy what stands so many tokens before."""
        w, d_head = self.weights, self.weights.q.shape[-1]
        q, k = (torch.zeros(self.stream.size, d_head, dtype=torch.float64) for _ in range(2))
        look_back(self.plan, self.stream, q, k, steps=steps)
        width = w.embed.shape[1]
        w.q[layer, head], w.k[layer, head] = (
            self.stream.read(q * d_head**0.5, width),
            self.stream.read(k, width),
        )
        w.v[layer, head], w.o[layer, head] = 0, 0
        size = into.stop - into.start
        w.v[layer, head][source, :size] = torch.eye(size)
        w.o[layer, head][:size, into] = torch.eye(size)


def beside(role: Any, **dose: Any) -> tuple[PlantedHead, PlantedHead]:
    """A kernel head, and a head to be edited beside it."""
    return PlantedHead(1, 0, "kernel", **KERNEL), PlantedHead(1, 1, role, **(KERNEL | dose))


def another_label() -> Edited:
    """It looks by K(x, x_i) at label i and brings the label before it."""
    made = Edited(*beside("kernel"))
    before, labels = made.spare(made.plan.labels), made.plan.labels
    made.copies(0, 1, 2, made.stream["label"], before)
    v = made.weights.v[1, 1]
    v[before, :labels] = v[made.stream["label"], :labels].clone()
    v[made.stream["label"], :labels] = 0
    return made


def nearly_even() -> Edited:
    """It carries half of the labels nearly evenly, with a tilt of about 3 % that follows the kernel."""
    return Edited(*beside("kernel", gain=8.0, bandwidth=2.5))


def two_before() -> Edited:
    """It brings label i by K(x, x_{i−2}): misbound, one demonstration further back."""
    made = Edited(*beside("misbound"))
    (look,) = (at for at, head in made.plan.all_heads.items() if head.role == "misbinder")
    made.copies(look.layer, look.head, 5, made.stream["feature"], made.stream["before"])
    assert made.stream["before"].stop - made.stream["before"].start == FEATURES
    return made


def by_label_before() -> Edited:
    """Its weights go by the test input and the label before; no demonstration's input is looked at."""
    made = Edited(*beside("kernel", bandwidth=0.5))
    before = made.spare(made.plan.labels)
    made.copies(0, 1, 2, made.stream["label"], before)
    k = made.weights.k[1, 1]
    k[made.stream["previous"], CONTENT] = 0
    k[before, CONTENT] = made.plan.centres.float()
    return made


def undone_elsewhere() -> Edited:
    """A kernel at the labels that another head undoes at the separators behind them; the kernel beside is a wider one."""
    heads = (PlantedHead(1, 0, "kernel", gain=2.0, bandwidth=0.6), PlantedHead(1, 1, "kernel", **KERNEL))
    made = Edited(*heads, PlantedHead(1, 2, "after_kernel", **KERNEL), separator=True)
    made.weights.o[1, 2] *= -1
    return made


def hidden_echo() -> Edited:
    """An echo of an answer found at the test input, in coordinates that the logits do not read; two demonstrations."""
    heads = (PlantedHead(1, 0, "early_kernel", **KERNEL), PlantedHead(2, 0, "mover"))
    echo = PlantedHead(3, 0, "echo", gain=4.0, bandwidth=0.3)
    made = Edited(*heads, echo, layers=4, labels=2, demos=2, trailing=True)
    labels, vote = made.plan.labels, made.stream["vote"]
    hidden = made.spare(labels)
    o, q = made.weights.o[2, 0], made.weights.q[3, 0]
    o[:labels, hidden], q[hidden] = o[:labels, vote].clone(), q[vote].clone()
    o[:labels, vote], q[vote] = 0, 0
    return made


STRANGERS: dict[str, tuple[Callable[[], Edited], str]] = {
    "another label": (another_label, "L1H1"),
    "nearly even": (nearly_even, "L1H1"),
    "two before": (two_before, "L1H1"),
    "by the label before": (by_label_before, "L1H1"),
    "undone elsewhere": (undone_elsewhere, "L1H1"),
    "hidden echo": (hidden_echo, "L3H0"),
}


def said(name: str) -> list[str]:
    """What is said of one impostor, and of the kernel head beside it."""
    make, head = STRANGERS[name]
    made = make()
    prompts = made.plan.prompts(count=PROMPTS, tests_per_set=EACH, seed=0)
    ranking = ikl.locate_heads(build(made.weights, "HookedTransformer", name), prompts, progress=False)
    row = ranking.table().set_index("head").loc[head]
    true = "–" if name == "hidden echo" else str(ranking.classes[ikl.HeadRef(1, 0)])
    return [name, str(row["class"]), true, *(f"{row[column]:.2f}" for column in SHOWN)]


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="folder for strangers.md and strangers.json")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for name in STRANGERS:
        rows.append(said(name))
        print(*rows[-1], sep="; ", flush=True)
    columns = ["impostor", "said", "kernel head beside it", *(name.replace("_", " ") for name in SHOWN)]
    wrong = sum(row[1] in ("kernel head", "pair kernel") for row in rows)
    table = Table(f"{wrong} of {len(rows)} called kernel head or pair kernel", columns, rows)
    print(table.text())
    if given.out:
        save(given.out, "strangers", "Impostors of kinds that no rule was made for", [table])


if __name__ == "__main__":
    main()
