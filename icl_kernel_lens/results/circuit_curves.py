"""The answer without some heads' label edges, and with theirs alone: necessity and sufficiency, beside random heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from icl_kernel_lens.axes import HeadRef, Reference, check_reference
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.results import store
from icl_kernel_lens.results.resample import cluster_bootstrap, wilson
from icl_kernel_lens.results.run_info import RunInfo

if TYPE_CHECKING:
    import pandas as pd

    from icl_kernel_lens.plots.figure import Figure

Cut = Literal["renormalised", "zeroed", "mean"]
"""What stands in for cut label edges: the head's other weights, scaled up; nothing; their mean over the prompts."""
Side = Literal["necessity", "sufficiency"]
"""necessity: the label edges of the first k heads are cut. sufficiency: those of all other heads are."""


@dataclass(frozen=True, eq=False, repr=False)
class CircuitCurves:
    """Answers as the label edges of the first k heads are cut, and as only theirs are kept."""

    heads: tuple[HeadRef, ...]
    """In the order in which they are cut; entry k of a curve is of the first k."""
    cuts: tuple[Cut, ...]
    answers: Mapping[Side, Int[Tensor, "cut prompt step"]]
    """The label answered; k runs from 0 to the number of heads."""
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

    def right(
        self, side: Side = "necessity", *, cut: Cut | None = None, against: Reference = "truth"
    ) -> Float[Tensor, "prompt k"]:
        """1 where the answer is the true label (or `against="model"`: the model's own, uncut), per prompt and k."""
        return self._compare(self.answers[side][self._cut(cut)], against)

    def random_right(
        self, side: Side = "necessity", *, cut: Cut | None = None, against: Reference = "truth"
    ) -> Float[Tensor, "prompt k draw"]:
        """The same for the random sets; k runs from 1."""
        return self._compare(self.random[side][self._cut(cut)], against)

    def floor(self, *, cut: Cut | None = None, against: Reference = "truth") -> float:
        """How often the answer is right with the label edges of every head cut."""
        return float(self.right("sufficiency", cut=cut, against=against)[:, 0].mean())

    def ceiling(self, *, against: Reference = "truth") -> float:
        """How often it is with nothing cut."""
        return float(self.right("necessity", against=against)[:, 0].mean())

    def chance(self, against: Reference = "truth") -> float:
        """How often always giving the commonest answer would be right."""
        return float(self._reference(against).bincount(minlength=self.labels).max() / len(self.base))

    def sufficiency(
        self, *, cut: Cut | None = None, against: Reference = "truth", level: float = 0.95
    ) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"], Float[Tensor, " k"]]:
        """(accuracy − floor) / (ceiling − floor) with the first k heads' label edges alone; and its interval.

        A ratio of means, over demonstration sets drawn whole.
        Raises: ResultError: the interval of ceiling − floor includes 0: there is nothing to restore.
        """
        kept = self.right("sufficiency", cut=cut, against=against)
        whole = self.right("necessity", cut=cut, against=against)[:, :1] - kept[:, :1]
        low, high = (float(x) for x in cluster_bootstrap(whole, self.demo_set, level=level))
        if not low > 0:
            raise ResultError(
                f"the ceiling must lie above the floor to divide by their difference; they are "
                f"{self.ceiling(against=against):.3f} and {self.floor(cut=cut, against=against):.3f} (interval of the "
                f"difference {low:.3f} to {high:.3f}). Cutting every label edge of the answer position changes too "
                "little here: the labels come in elsewhere, or the model does not use them."
            )
        value = (kept - kept[:, :1]).mean(0) / whole.mean(0)
        # A ratio's interval: of Σ (part − r · whole), linearised.
        left = (kept - kept[:, :1] - value * whole) / whole.mean(0)
        low, high = (value + edge for edge in cluster_bootstrap(left, self.demo_set, level=level))
        # Where all prompts say the same there is no spread: what is sure then is how rarely one could say otherwise.
        least, _ = wilson(torch.ones(len(left), 1), self.demo_set, level=level)
        slack = float((1 - least) / whole.mean())
        same = ((left - left[:1]).abs() < 1e-6).all(0)
        same[0] = False  # the floor itself: 0 by definition
        return value, torch.where(same, value - slack, low), torch.where(same, value + slack, high)

    def table(self, *, against: Reference | None = None) -> pd.DataFrame:
        """One row a cut, side and k: how often right, its interval, and the random sets' middle and ends."""
        import pandas as pd

        against = against or self.default_reference
        rows = []
        for cut in self.cuts:
            for side in get_args(Side):
                right = self.right(side, cut=cut, against=against)
                low, high = wilson(right, self.demo_set)
                drawn = self.random_right(side, cut=cut, against=against).mean(0)  # (k, draw)
                for k in range(right.shape[1]):
                    row: dict[str, object] = {
                        "cut": cut,
                        "side": side,
                        "k": k,
                        "head": str(self.heads[k - 1]) if k else "",
                        "right": float(right[:, k].mean()),
                        "low": float(low[k]),
                        "high": float(high[k]),
                    }
                    if k:
                        different, first = self.different(k)
                        edges = drawn[k - 1][first].quantile(torch.tensor([0.025, 0.5, 0.975]))
                        names = ("random_low", "random", "random_high")
                        row |= dict(zip(names, map(float, edges), strict=True))
                        row["random_sets"] = different
                        row["matched_by_layer"] = float(self.matched[k - 1][first].float().mean())
                    rows.append(row)
        return pd.DataFrame(rows)

    @property
    def default_reference(self) -> Reference:
        """The truth where it is known, else the model's own answer."""
        return "model" if self.truth is None else "truth"

    def different(self, k: int) -> tuple[int, Int[Tensor, " different"]]:
        """How many different random sets of k heads there are, and where each is drawn first."""
        _, which = self.sets[k - 1].flatten(1).unique(dim=0, return_inverse=True)
        count = int(which.max()) + 1
        return count, torch.stack([(which == at).nonzero()[0, 0] for at in range(count)])

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
            low, _ = (float(x) for x in wilson(right, self.demo_set))
            if low > chance + 0.05:
                notes.append(
                    f"{cut}: with every label edge of the answer position cut, {floor:.1%} are still right (chance "
                    f"{chance:.1%}): the answer row is not where the labels enter, or not alone"
                )
        firsts = [self.different(k + 1)[1] for k in range(len(self.heads))]
        matched = torch.cat([self.matched[k][first] for k, first in enumerate(firsts)])
        if not matched.all():
            notes.append(
                f"{int((~matched).sum())} of the {len(matched)} different random sets are drawn from all layers, as the "
                "heads' own layers do not hold enough others"
            )
        return notes

    def save(self, path: str | Path) -> Path:
        """Write the whole result; `load` reads it back."""
        tensors: dict[str, Tensor] = {name: getattr(self, name) for name in _TENSORS}
        tensors |= {f"{g}.{side}": t for g in _GROUPS for side, t in getattr(self, g).items()}
        if self.truth is not None:
            tensors["truth"] = self.truth
        meta = {
            "heads": [list(h) for h in self.heads],
            "cuts": self.cuts,
            "labels": self.labels,
            "settings": dict(self.settings),
            "run": self.run.to_json(),
        }
        return store.write(path, "CircuitCurves", tensors, meta)

    @classmethod
    def load(cls, path: str | Path) -> CircuitCurves:
        """Read what `save` wrote.

        Raises: LoadError: another kind of file, another format version, or a damaged one.
        """
        tensors, meta = store.read(path, "CircuitCurves")
        try:
            sides: tuple[Side, ...] = get_args(Side)
            groups: dict[str, dict[Side, Tensor]] = {
                g: {side: tensors[f"{g}.{side}"] for side in sides} for g in _GROUPS
            }
            heads = tuple(HeadRef(int(layer), int(head)) for layer, head in meta["heads"])
            shape = (len(meta["cuts"]), len(tensors["base"]))
            for side in get_args(Side):
                if tuple(groups["answers"][side].shape) != (*shape, len(heads) + 1):
                    raise ValueError(f"answers of {side} have shape {tuple(groups['answers'][side].shape)}")
                if tuple(groups["random"][side].shape) != (*shape, *tensors["matched"].shape):
                    raise ValueError(
                        f"random sets of {side} have shape {tuple(groups['random'][side].shape)}"
                    )
            if (
                not set(meta["cuts"]) <= set(get_args(Cut))
                or tensors["sets"].shape[:2] != tensors["matched"].shape
            ):
                raise ValueError(f"cuts are {meta['cuts']}")
            whole = len(tensors["base"])
            layers, width = tensors["sets"].shape[2:]
            if (
                any(len(tensors[name]) != whole for name in ("demo_set", "truth") if name in tensors)
                or any(not (0 <= h.layer < layers and 0 <= h.head < width) for h in heads)
                or not 0 <= int(tensors["base"].min()) <= int(tensors["base"].max()) < int(meta["labels"])
                or len(set(meta["cuts"])) < len(meta["cuts"])
            ):
                raise ValueError("its prompts, heads and answers are not those of one run")
            return cls(
                heads=heads,
                cuts=tuple(meta["cuts"]),
                answers=groups["answers"],
                random=groups["random"],
                **{name: tensors[name] for name in _TENSORS},
                truth=tensors.get("truth"),
                labels=int(meta["labels"]),
                settings=meta["settings"],
                run=RunInfo.from_json(meta["run"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise store.missing_field(path, "CircuitCurves", error) from error

    def figure(self) -> Figure:
        """Both curves over k, beside the random sets, the floor, the ceiling and chance."""
        from icl_kernel_lens.plots.curves import curves_figure

        return curves_figure(self)

    def __repr__(self) -> str:
        against = self.default_reference
        lines = [
            f"CircuitCurves({self.run.model} on {self.run.prompts.task}: label edges of "
            f"{', '.join(map(str, self.heads))}; {len(self.base)} prompts; against "
            f"{'the true label' if against == 'truth' else 'the uncut answer'})",
            self.table().to_string(index=False, float_format=lambda x: f"{x:.3f}"),
            *(f"  {note}" for note in self.notes()),
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>{self.figure()._repr_html_()}"

    def _cut(self, cut: Cut | None) -> int:
        if cut is None:
            return 0
        if cut not in self.cuts:
            raise ResultError(f"these curves were run with the cuts {', '.join(self.cuts)}; got {cut!r}.")
        return self.cuts.index(cut)

    def _reference(self, against: Reference) -> Int[Tensor, " prompt"]:
        check_reference(against)
        if against == "model":
            return self.base
        if self.truth is None:
            raise ResultError('these prompts have no true labels; use against="model".')
        return self.truth

    def _compare(self, answers: Int[Tensor, "prompt *k"], against: Reference) -> Float[Tensor, "prompt *k"]:
        reference = self._reference(against).reshape(-1, *[1] * (answers.dim() - 1))
        return (answers == reference).float()


_TENSORS = ("sets", "matched", "base", "demo_set")
_GROUPS = ("answers", "random")
