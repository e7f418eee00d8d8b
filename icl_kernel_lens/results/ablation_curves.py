"""The answer without some heads' label edges, and with theirs alone: necessity and sufficiency, beside random heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Literal, get_args

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.axes import HeadRef, Reference, check_reference
from icl_kernel_lens.charts.curves import curves_figure
from icl_kernel_lens.charts.figure import Figure
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.numbers.intervals import RATE, cluster_t, interval_of
from icl_kernel_lens.results.base import Result, broken
from icl_kernel_lens.results.run_info import RunInfo

Cut = Literal["renormalised", "zeroed", "mean"]
"""What stands in for cut label edges: the head's other weights, scaled up; nothing; their mean over the prompts."""
Side = Literal["necessity", "sufficiency"]
"""necessity: the label edges of the first k heads are cut. sufficiency: those of all other heads are."""


@dataclass(frozen=True, eq=False, repr=False)
class AblationCurves(Result):
    """Answers as the label edges of the first k heads are cut, and as only theirs are kept."""

    heads: tuple[HeadRef, ...]
    """In the order in which they are cut; entry k of a curve is of the first k."""
    cuts: tuple[Cut, ...]
    answers: Mapping[Side, Int[Tensor, "cut prompt step"]]
    """The label answered, −1 where nothing is left of a row; k runs from 0 to the number of heads."""
    random: Mapping[Side, Int[Tensor, "cut prompt k draw"]]
    """The same for random sets of as many heads; k runs from 1."""
    sets: Bool[Tensor, "k draw layer head"]
    """Those sets."""
    matched: Bool[Tensor, "k draw"]
    """Whether a set has as many heads in each layer as the first k heads; else it was drawn from all layers."""
    base: Int[Tensor, " prompt"]
    """The model's own answer."""
    truth: Int[Tensor, " prompt"] | None
    labels: int
    demo_set: Int[Tensor, " prompt"]
    run: RunInfo
    settings: Mapping[str, str] = field(default_factory=dict)

    def _problems(self) -> Iterator[str]:
        k, (layers, heads), sides = len(self.heads), self.sets.shape[2:], set(get_args(Side))
        shape = (len(self.cuts), len(self.base), k + 1)
        yield from broken(
            {
                f"answers and random must be of {' and '.join(get_args(Side))}": (
                    set(self.answers) == set(self.random) == sides
                ),
                f"heads must be some, each once; they are {self.heads}": 0 < k == len(set(self.heads)),
                f"heads must be among {layers} × {heads}; they are {self.heads}": all(
                    0 <= head.layer < layers and 0 <= head.head < heads for head in self.heads
                ),
                f"cuts must be different; they are {self.cuts}": len(set(self.cuts)) == len(self.cuts),
                f"there must be an answer for each of {shape[0]} cuts and 0…{k} heads, and random sets for 1…{k}": (
                    all(answers.shape == shape for answers in self.answers.values())
                    and len(self.sets) == k
                    and self.sets.shape[1] > 0
                ),
            }
        )
        least = {"base": self.base} | ({} if self.truth is None else {"truth": self.truth})
        for name, labels in least.items():
            if int(labels.min()) < 0:
                yield f"{name} must be labels; one is {int(labels.min())}"
        for labels in (*least.values(), *self.answers.values(), *self.random.values()):
            if not -1 <= int(labels.min()) <= int(labels.max()) < self.labels:
                yield f"answers must be among {self.labels} labels; they run from {int(labels.min())} to {int(labels.max())}"

    def coords(self) -> Mapping[str, Sequence[str]]:
        """Names of the cuts, of the head that each step adds, and of the last of each k heads."""
        names = [str(head) for head in self.heads]
        return {"cut": self.cuts, "step": ["none", *names], "k": names}

    @checked
    def right(
        self, side: Side = "necessity", *, cut: Cut | None = None, against: Reference = "truth"
    ) -> Float[Tensor, "prompt k"]:
        """1 where the answer is the true label (or `against="model"`: the model's own, uncut), per prompt and k."""
        return self._right(self.answers, side, cut, against)

    @checked
    def random_right(
        self, side: Side = "necessity", *, cut: Cut | None = None, against: Reference = "truth"
    ) -> Float[Tensor, "prompt k draw"]:
        """The same for the random sets; k runs from 1."""
        return self._right(self.random, side, cut, against)

    def floor(self, *, cut: Cut | None = None, against: Reference = "truth") -> float:
        """How often the answer is right with the label edges of every head cut."""
        return float(self.right("sufficiency", cut=cut, against=against)[:, 0].mean())

    def ceiling(self, *, against: Reference = "truth") -> float:
        """How often it is with nothing cut."""
        return float(self.right("necessity", against=against)[:, 0].mean())

    def chance(self, against: Reference = "truth") -> float:
        """How often always giving the commonest answer would be right."""
        return float(self._reference(against).bincount().max() / len(self.base))

    def sufficiency(
        self, *, cut: Cut | None = None, against: Reference = "truth", level: float = 0.95
    ) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"], Float[Tensor, " k"]]:
        """(accuracy − floor) / (ceiling − floor) with the first k heads' label edges alone; and its interval.

        A ratio of means; its interval is linearised, from the spread between demonstration sets.
        Raises: ResultError: the interval of ceiling − floor includes 0: there is nothing to restore.
        """
        kept = self.right("sufficiency", cut=cut, against=against)
        whole = self.right("necessity", cut=cut, against=against)[:, :1] - kept[:, :1]
        low, high = (float(x) for x in interval_of(RATE, whole, self.demo_set, difference=True, level=level))
        if not low > 0:
            raise ResultError(
                f"the ceiling must lie above the floor to divide by their difference; they are "
                f"{self.ceiling(against=against):.3f} and {self.floor(cut=cut, against=against):.3f} (interval of the "
                f"difference {low:.3f} to {high:.3f}). Cutting every label edge of the answer position changes too "
                "little here: the labels come in elsewhere, or the model does not use them.",
                code="nothing-to-divide",
            )
        value = (kept - kept[:, :1]).mean(0) / whole.mean(0)
        # A ratio's interval: of Σ (part − r · whole), linearised.
        left = (kept - kept[:, :1] - value * whole) / whole.mean(0)
        low, high = (value + edge for edge in cluster_t(left, self.demo_set, level=level))
        # Where all prompts say the same there is no spread: what is sure then is how rarely one could say otherwise.
        least, _ = interval_of(RATE, torch.ones(len(left)), self.demo_set, level=level)
        slack = (
            (1 - least) / whole.mean() * (torch.arange(len(value)) > 0)
        )  # the floor itself is 0 by definition
        same = ((left - left[:1]).abs() < 1e-6).all(0)
        return value, torch.where(same, value - slack, low), torch.where(same, value + slack, high)

    def table(self, *, against: Reference | None = None) -> pd.DataFrame:
        """One row a cut, side and k: how often right, its interval, and the random sets' middle and ends."""
        against = against or self.default_reference
        rows = []
        for cut, side in product(self.cuts, get_args(Side)):
            right = self.right(side, cut=cut, against=against)
            low, high = interval_of(RATE, right, self.demo_set)
            columns = {"right": right.mean(0), "low": low, "high": high}
            drawn = self.random_right(side, cut=cut, against=against).mean(0)  # (k, draw)
            for k, head in enumerate(["", *map(str, self.heads)]):
                row: dict[str, object] = {"cut": cut, "side": side, "k": k, "head": head}
                row |= {name: float(column[k]) for name, column in columns.items()}
                rows.append(row | (self._random_row(k, drawn[k - 1]) if k else {}))
        return pd.DataFrame(rows)

    def _random_row(self, k: int, right: Float[Tensor, " draw"]) -> dict[str, float]:
        """The middle and the ends of the different random sets of k heads, and how many these are."""
        first = self.different(k)
        low, middle, high = right[first].quantile(torch.tensor([0.025, 0.5, 0.975])).tolist()
        return {
            "random_low": low,
            "random": middle,
            "random_high": high,
            "random_sets": len(first),
            "matched_by_layer": float(self.matched[k - 1][first].float().mean()),
        }

    @property
    def default_reference(self) -> Reference:
        """The truth where it is known, else the model's own answer."""
        return "model" if self.truth is None else "truth"

    def different(self, k: int) -> Int[Tensor, " different"]:
        """Where each of the different random sets of k heads is drawn first."""
        _, which = self.sets[k - 1].flatten(1).unique(dim=0, return_inverse=True)
        return torch.stack([(which == at).nonzero()[0, 0] for at in range(int(which.max()) + 1)])

    def different_sets(self) -> str:
        """How many random sets of each number of heads differ: a small model does not hold as many as are drawn."""
        counts = [len(self.different(k + 1)) for k in range(len(self.heads))]
        least, most = min(counts), max(counts)
        return f"{least}" if least == most else f"{least}–{most}"

    def notes(self) -> list[str]:
        """What must be said beside the curves."""
        notes, against = [], self.default_reference
        if "located on" in self.settings:
            notes.append(
                "the heads were located on these very prompts: draw others for what is to be believed"
            )
        for cut in self.cuts:
            floor, chance = self.floor(cut=cut, against=against), self.chance(against)
            right = self.right("sufficiency", cut=cut, against=against)[:, :1]
            low, _ = (float(x) for x in interval_of(RATE, right, self.demo_set))
            if low > chance + 0.05:
                notes.append(
                    f"{cut}: with every label edge of the answer position cut, {floor:.1%} are still right (chance "
                    f"{chance:.1%}): the answer row is not where the labels enter, or not alone"
                )
        matched = torch.cat([each[self.different(k)] for k, each in enumerate(self.matched, start=1)])
        if not matched.all():
            notes.append(
                f"{int((~matched).sum())} of the {len(matched)} different random sets are drawn from all layers, as the "
                "heads' own layers do not hold enough others"
            )
        return notes

    def figure(self) -> Figure:
        """Both curves over k, beside the random sets, the floor, the ceiling and chance."""
        against = self.default_reference
        return curves_figure(
            self.table().to_dict("records"),
            of=self.run.about,
            prompts=len(self.base),
            sets=self.different_sets(),
            against=against,
            chance=self.chance(against),
            restored={cut: self._restored(cut) for cut in self.cuts},
        )

    def _restored(self, cut: Cut) -> tuple[float, float, float] | None:
        """What `sufficiency` says of all heads; None where it refuses."""
        try:
            value, low, high = self.sufficiency(cut=cut, against=self.default_reference)
        except ResultError:
            return None
        return float(value[-1]), float(low[-1]), float(high[-1])

    def __repr__(self) -> str:
        against, offsets = self.default_reference, self.settings.get("offsets", "(0,)")
        edges = "label edges" if offsets == "(0,)" else f"edges at offsets {offsets} from the label"
        return "\n".join(
            [
                f"AblationCurves({self.run.about}: {edges} of "
                f"{', '.join(map(str, self.heads))}; {len(self.base)} prompts of seed {self.run.prompts.seed}; against "
                f"{'the true label' if against == 'truth' else 'the uncut answer'})",
                self.table().to_string(index=False, float_format=lambda x: f"{x:.3f}"),
                *(f"  {note}" for note in self.notes()),
            ]
        )

    def _right(
        self,
        answers: Mapping[Side, Int[Tensor, "cut prompt *k"]],
        side: Side,
        cut: Cut | None,
        against: Reference,
    ) -> Float[Tensor, "prompt *k"]:
        cut = cut or self.cuts[0]
        if cut not in self.cuts:
            raise ResultError(
                f"these curves were run with the cuts {', '.join(self.cuts)}; got {cut!r}.",
                code="not-in-result",
            )
        found = answers[side][self.cuts.index(cut)]
        reference = self._reference(against).reshape(-1, *[1] * (found.dim() - 1))
        return (found == reference).float()

    def _reference(self, against: Reference) -> Int[Tensor, " prompt"]:
        check_reference(against)
        if against == "model":
            return self.base
        if self.truth is None:
            raise ResultError('these prompts have no true labels; use against="model".', code="no-truth")
        return self.truth
