"""Holds where labels enter: the label part of the answer, with the edges at some offsets from the labels cut or alone kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Literal, get_args

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.charts.coverage import coverage_figure
from icl_kernel_lens.charts.figure import Figure
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.fields import unit
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.results.ablation_curves import Side
from icl_kernel_lens.results.base import Result, broken
from icl_kernel_lens.results.label_part import LabelPart, Offsets, Share, SmallestSet, name_of
from icl_kernel_lens.results.run_info import RunInfo

EdgeCut = Literal["zeroed", "renormalised"]
"""What takes the place of cut edges: nothing, or the rest of the row, scaled up."""
CUTS: tuple[EdgeCut, ...] = get_args(EdgeCut)
CutRows = Literal["answer", "test_input"]
"""Whose edges are cut: the answer position's, or those of every token of the test input."""
ROWS: Mapping[CutRows, str] = {
    "answer": "the answer's edges",
    "test_input": "the edges of all test-input tokens",
}
WORDS: Mapping[str, Side] = {"lost": "necessity", "kept": "sufficiency"}
"""What is said of the label part, and which side says it."""


@dataclass(frozen=True, eq=False, repr=False)
class LabelCoverage(Result):
    """The label part t of the answer, prompt by prompt, whole and under cuts of the edges at offsets from the labels."""

    main = "left"

    rows: CutRows
    """Whose edges are cut."""
    offsets: Offsets
    sets: tuple[Offsets, ...]
    """What is cut, or alone kept, together: each offset, all of them, and sets between."""
    part: Float[Tensor, " prompt"] = field(metadata=unit("logits"))
    """t with nothing cut."""
    left: Mapping[Side, Float[Tensor, "prompt cut edges"]] = field(metadata=unit("logits"))
    """necessity: t with these edges cut. sufficiency: t with all edges to the demonstrations cut but these."""
    reference: Int[Tensor, " prompt"]
    """The class that t speaks for: the true one, or the model's own answer."""
    demo_set: Int[Tensor, " prompt"]
    run: RunInfo
    lose: float
    """The share that the smallest set must lose when cut."""
    keep: float
    """The share that it must keep alone."""
    seed: int = 0
    """Deals out the demonstration sets to the half on which the smallest set is found, and the other one."""
    by_layer: Mapping[Side, Float[Tensor, "prompt cut offset layer"]] = field(
        default_factory=dict, metadata=unit("logits")
    )
    """The same with the edges of one layer cut, or of all layers' only these kept; empty where it was not asked for."""
    test_input: LabelCoverage | None = None
    """The same with the rows of all test-input tokens cut; measured where the answer's own do not hold what labels bring."""
    settings: Mapping[str, str] = field(default_factory=dict)

    def _problems(self) -> Iterator[str]:
        sides, singles = set(get_args(Side)), tuple((offset,) for offset in self.offsets)
        offsets = set(self.offsets)
        tensors = [*self.left.values(), *self.by_layer.values()]
        return broken(
            {
                f"offsets must be some, each once and in ascending order; they are {self.offsets}": (
                    self.offsets != () and self.offsets == tuple(sorted(offsets))
                ),
                f"sets must be each offset, all of them, and others of these, each once; they are {self.sets}": (
                    self.sets[: len(singles)] == singles
                    and self.offsets in self.sets
                    and len(set(self.sets)) == len(self.sets)
                    and all(one and one == tuple(sorted(offsets & set(one))) for one in self.sets)
                ),
                f"left must be of {' and '.join(sorted(sides))}, and by_layer of both or neither": (
                    set(self.left) == sides and set(self.by_layer) in (sides, set())
                ),
                f"there must be a label part for each of {len(CUTS)} cuts, {len(self.sets)} sets and {len(offsets)} offsets": (
                    all(tensor.shape[1] == len(CUTS) for tensor in tensors)
                    and all(tensor.shape[2] == len(self.sets) for tensor in self.left.values())
                    and all(tensor.shape[2] == len(offsets) for tensor in self.by_layer.values())
                ),
                "the label part of the unchanged run must be finite": bool(self.part.isfinite().all()),
                f"lose and keep must be shares above 0; they are {self.lose} and {self.keep}": (
                    0 < self.lose <= 1 and 0 < self.keep <= 1
                ),
                "reference classes must be labels": bool((self.reference >= 0).all()),
                "what stands under test_input must be of the same prompts, with the rows of the test input cut": (
                    self.test_input is None
                    or (
                        (self.rows, self.test_input.rows) == ("answer", "test_input")
                        and len(self.test_input.part) == len(self.part)
                    )
                ),
            }
        )

    def coords(self) -> Mapping[str, Sequence[int | str]]:
        """Names of the cuts, of the sets of offsets, and the offsets."""
        return {"cut": CUTS, "edges": [name_of(one) for one in self.sets], "offset": self.offsets}

    @checked
    def label_part(self, level: float = 0.95) -> Share:
        """The mean of t in logits, and its interval between demonstration sets."""
        return self._whole.mean(level)

    @property
    def undefined(self) -> Reason | None:
        """Why there are no shares; None: there are."""
        return self._whole.undefined

    @property
    def _whole(self) -> LabelPart:
        return LabelPart(self.part, self.demo_set)

    @checked
    def lost(self, level: float = 0.95) -> tuple[Tensor, Tensor, Tensor]:
        """1 − Σ t_cut / Σ t over (cut, edges), the lower and the upper end of its interval; NaN where `undefined`."""
        return self._whole.share("necessity", self.left["necessity"], level)

    @checked
    def kept(self, level: float = 0.95) -> tuple[Tensor, Tensor, Tensor]:
        """Σ t_keep / Σ t over (cut, edges), the lower and the upper end of its interval; NaN where `undefined`."""
        return self._whole.share("sufficiency", self.left["sufficiency"], level)

    @checked
    def smallest_set(
        self, lose: float | None = None, keep: float | None = None, *, cut: EdgeCut = "zeroed"
    ) -> SmallestSet:
        """The smallest measured set of offsets whose cut loses at least `lose`, and which alone keeps at least `keep`.

        Found on one half of the demonstration sets; of equally small ones that with the largest sum of both shares (each at
        most 1). On the other half both shares must reach what is asked again, or there is none; `confirmed` says whether
        their intervals do, too. Without `lose` and `keep`, those of the result.

        Raises: ResultError: `lose` or `keep` is no share.
        """
        return self._whole.smallest_set(
            {side: left[:, CUTS.index(cut)] for side, left in self.left.items()},
            self.sets,
            lose=self.lose if lose is None else lose,
            keep=self.keep if keep is None else keep,
            seed=self.seed,
        )

    def table(self) -> pd.DataFrame:
        """One row a cut and set of offsets: t left, and the shares lost and kept with their intervals."""
        return self._table(self.left, self.coords()["edges"], "offsets")

    def layer_table(self) -> pd.DataFrame:
        """One row a cut, offset and layer: the same with one layer's edges cut, or of all layers' only these kept.

        Raises: ResultError: it was not measured.
        """
        if not self.by_layer:
            raise ResultError(
                "layers were not cut apart; ask for it with label_coverage(..., layers=True).",
                code="not-in-result",
            )
        layers = range(next(iter(self.by_layer.values())).shape[-1])
        frames = [
            self._table({side: x[..., layer] for side, x in self.by_layer.items()}, self.offsets, "offset")
            for layer in layers
        ]
        return pd.concat(
            [f.assign(layer=layer) for layer, f in zip(layers, frames, strict=True)], ignore_index=True
        )

    def _table(
        self, left: Mapping[Side, Float[Tensor, "prompt cut edges"]], names: Sequence[int | str], title: str
    ) -> pd.DataFrame:
        columns: dict[str, Tensor] = {}
        for word, side in WORDS.items():
            value, low, high = self._whole.share(side, left[side])
            columns |= {f"t_{'cut' if word == 'lost' else 'kept'}": left[side].double().nanmean(0)}
            columns |= {word: value, f"{word}_low": low, f"{word}_high": high}
        rows = product(enumerate(CUTS), enumerate(names))
        return pd.DataFrame(
            [
                {"cut": cut, title: name} | {key: float(x[i, j]) for key, x in columns.items()}
                for (i, cut), (j, name) in rows
            ]
        )

    def figure(self) -> Figure:
        """The shares lost and kept over the offsets, one panel a cut."""
        parts = [self, *([] if self.test_input is None else [self.test_input])]
        return coverage_figure(
            {ROWS[one.rows]: one.table().to_dict("records") for one in parts},
            offsets=[name_of((offset,)) for offset in self.offsets],
            of=self.run.about,
            about=self._about(),
            says=[f"{ROWS[one.rows]}: {one.smallest_set().why}" for one in parts],
            asked=(self.lose, self.keep),
        )

    def _about(self) -> str:
        about = f"{len(self.part)} prompts, {ROWS[self.rows]}; label part t = {self.label_part()} logits"
        if self.undefined is None:
            return about
        other = (
            '; against="model" asks for the model\'s own answer'
            if self.settings.get("against") == "truth"
            else ""
        )
        return f"{about}; shares are undefined: {self.undefined}{other}"

    def __repr__(self) -> str:
        lines = [
            f"LabelCoverage({self.run.about}: {self._about()})",
            self.table().to_string(index=False, float_format=lambda x: f"{x:.3f}"),
            f"  smallest set: {self.smallest_set().why}",
        ]
        if self.test_input is not None:
            lines += ["with the rows of all test-input tokens:", repr(self.test_input)]
        return "\n".join(lines)
