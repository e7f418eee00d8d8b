"""Holds what an intervention does to the answer: the metric with each change, beside that of the unchanged runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.charts.effect_map import cell_name, effect_map_figure
from icl_kernel_lens.charts.figure import Figure
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.fields import Leaf, unit
from icl_kernel_lens.numbers.correlation import line_through
from icl_kernel_lens.numbers.intervals import cluster_bootstrap
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.results.base import Result, broken, first_rows, head_table, long_form
from icl_kernel_lens.results.run_info import RunInfo

Metric = Literal["logit_difference", "probability", "kl"]
"""logit_difference: label logit of the reference class minus the mean of the others'. probability: of the reference
class's label token among all tokens. kl: KL(P ‖ P_changed) of all next tokens, in nats, P being the unchanged run's."""
Places = Mapping[str, tuple[int | str, ...]]
"""The places on each axis of the cells, by the axis's name and in its order.

    layer, head, kv_head    numbers from 0
    set                     sets of heads, by name
    offset                  token positions relative to the first label token
    demo                    demonstrations, from 0
"""
AXES = {("layer",), ("layer", "head"), ("layer", "kv_head"), ("set",)}
"""What is changed; an axis `offset` or `demo` may follow."""
_COLUMNS = ("", "prompt", "base", "logit_difference", "effect", "low", "high")


@dataclass(frozen=True)
class Estimates:
    """First-order estimates beside exact effects of the same cells."""

    cells: tuple[tuple[int, ...], ...]
    """The number of the place on each axis."""
    estimate: Float[Tensor, "prompt _"]
    exact: Float[Tensor, "prompt _"]

    @property
    def correlation(self) -> float:
        """Pearson's, of mean effects over the cells; NaN for fewer than three."""
        a, b = self.estimate.mean(0).double(), self.exact.mean(0).double()
        if len(a) < 3:
            return float("nan")
        return float(torch.corrcoef(torch.stack([a, b]))[0, 1])

    @property
    def ratio(self) -> float:
        """Exact effects over estimates, by least squares over the cells: 1, the estimates have the right size."""
        a, b = self.estimate.mean(0).double(), self.exact.mean(0).double()
        return float((a @ b) / (a @ a)) if float(a @ a) > 0 else float("nan")


@dataclass(frozen=True, eq=False, repr=False)
class PatchEffects(Result):
    """The metric of every changed run, over prompts and the axes that `places` names."""

    intervention: str
    """What was called, and on what: "knock_out of answer_reads_labels"."""
    title: str
    """What was changed, in words."""
    places: Places
    values: Float[Tensor, "prompt *cell"] = field(metadata=unit("logits"))
    """Logit difference of the changed run; NaN: not asked for, or `reasons` says why."""
    base: Float[Tensor, " prompt"] = field(metadata=unit("logits"))
    """Logit difference of the run that is changed, unchanged."""
    source: Float[Tensor, " prompt"] | None = field(metadata=unit("logits"))
    """Logit difference of the run that activations come from; None: they come from the run itself."""
    reference: Int[Tensor, " prompt"]
    """The class that the metric is about."""
    label_scores: Float[Tensor, "prompt *cell label"] | None = field(metadata=unit("logits"))
    """Label logits of the changed run; None: a first-order estimate has none."""
    base_label_scores: Float[Tensor, "prompt label"] = field(metadata=unit("logits"))
    others: Mapping[str, Float[Tensor, "prompt *cell"]]
    """The other metrics of the changed run; of a swap, the direct effect and the predicted one too."""
    base_others: Mapping[str, Float[Tensor, " prompt"]]
    controls: Mapping[str, Float[Tensor, "prompt *cell"]] = field(metadata=unit("logits"))
    """Logit difference under another change that should matter less; named after what it is."""
    demo_set: Int[Tensor, " prompt"]
    run: RunInfo
    settings: Mapping[str, str] = field(default_factory=dict)
    reasons: Mapping[Reason, int] = field(default_factory=dict)
    """Why cells are NaN, and how many."""
    sample: Estimates | None = None
    """Exact effects of cells drawn at random, beside first-order estimates."""
    largest: Estimates | None = None
    """Exact effects of the cells with the largest estimates."""

    def _problems(self) -> Iterator[str]:
        axes, shape = tuple(self.places), tuple(self.values.shape[1:])
        labels = self.base_label_scores.shape[1]
        columns = [*_COLUMNS, *self.places, *self.others, *self.controls]
        compared = [one for one in (self.sample, self.largest) if one is not None]
        cells = [cell for one in compared for cell in one.cells]
        return broken(
            {
                f"its axes must be a layer, a head in it, or a set, and then perhaps offsets or demos; they are {axes}": (
                    (axes[:-1] if axes[-1:] in (("offset",), ("demo",)) else axes) in AXES
                ),
                f"places must be names of sets and otherwise numbers; they are {dict(self.places)}": all(
                    isinstance(name, str if axis == "set" else int)
                    for axis, names in self.places.items()
                    for name in names
                ),
                f"places must be as many as the cells, {shape}; there are {[*map(len, self.places.values())]}": (
                    tuple(map(len, self.places.values())) == shape and self.values.numel() > 0
                ),
                f"reference classes must be among two labels or more; there are {labels}": (
                    labels >= 2 and bool(((self.reference >= 0) & (self.reference < labels)).all())
                ),
                f"metrics and controls must have names of their own; they are {[*self.others, *self.controls]}": (
                    len(set(columns)) == len(columns)
                ),
                "the unchanged runs' logit differences and label scores must be finite": all(
                    bool(part.isfinite().all())
                    for part in (
                        self.base,
                        self.base_label_scores,
                        *(() if self.source is None else (self.source,)),
                    )
                ),
                "sample and largest must hold an estimate and an exact effect for each of their cells": all(
                    one.estimate.shape == one.exact.shape and one.estimate.shape[1] == len(one.cells)
                    for one in compared
                ),
                f"cells of sample and largest must be among those of {shape}; they are {cells}": all(
                    len(cell) == len(shape) and all(0 <= at < n for at, n in zip(cell, shape, strict=True))
                    for cell in cells
                ),
            }
        )

    def leaves(self) -> list[Leaf]:
        def named(leaf: Leaf) -> Leaf:
            # Each comparison has cells of its own.
            names = {"*cell": tuple(self.places), "_": (f"{leaf.path.partition('.')[0]}.cell",)}
            return leaf._replace(axes=tuple(chain(*(names.get(axis, (axis,)) for axis in leaf.axes))))

        return [named(leaf) for leaf in super().leaves()]

    def coords(self) -> Places:
        return self.places

    @checked
    def metric(self, name: Metric = "logit_difference") -> Float[Tensor, "prompt *cell"]:
        """One metric of the changed runs."""
        metrics = {"logit_difference": self.values, **self.others}
        if name not in metrics:
            raise ResultError(f"metrics here are {list(metrics)}; got {name!r}.", code="not-in-result")
        return metrics[name]

    @checked
    def effect(self, metric: Metric = "logit_difference") -> Float[Tensor, "prompt *cell"]:
        """The metric of the changed run minus that of the run unchanged, per prompt."""
        base = self.base if metric == "logit_difference" else self.base_others.get(metric)
        changed = self.metric(metric)
        return changed if base is None else changed - self._over_cells(base)

    @checked
    def mean(self, metric: Metric = "logit_difference") -> Float[Tensor, "*cell"]:
        """The mean effect over prompts."""
        return self.effect(metric).nanmean(0)

    @checked
    def interval(
        self,
        level: float = 0.95,
        *,
        metric: Metric = "logit_difference",
        draws: int = 2000,
        seed: int = 0,
    ) -> tuple[Float[Tensor, "*cell"], Float[Tensor, "*cell"]]:
        """Bootstrap interval of the mean effect, over prompts, demonstration sets drawn whole.

        Per cell and pointwise: the largest of many is larger than its interval says.
        """
        return cluster_bootstrap(self.effect(metric), self.demo_set, level=level, draws=draws, seed=seed)

    def normalised(self) -> Float[Tensor, "*cell"]:
        """mean(changed − base) / mean(source − base): the share of the whole difference that the cell carries.

        A ratio of means: ratios of single prompts explode where the two runs hardly differ.
        First-order estimates are divided by the exact difference, and share their error (see `largest.ratio`).
        Raises: ResultError: there is no source run, or the interval of the two runs' difference includes 0.
        """
        if self.source is None:
            raise ResultError(
                f"a normalised effect needs a second run; {self.intervention} takes activations from the run itself. "
                "Use mean() instead.",
                code="not-in-result",
            )
        difference = self.source - self.base
        whole, size = difference.mean(), self.base.abs().mean()
        low, high = map(float, cluster_bootstrap(difference, self.demo_set))
        if low <= 0 <= high or not whole.abs() > 1e-4 * size:
            raise ResultError(
                f"the two runs must differ in the mean to divide by it; their logit differences differ by "
                f"{float(whole):.2g} (95 % interval {low:.2g} to {high:.2g}): the corruption changes too little, or "
                "raises as many prompts as it lowers. Use mean(), more prompts, or a corruption that changes every "
                "label (map_labels).",
                code="nothing-to-divide",
            )
        return self.mean() / whole

    def control_means(self) -> dict[str, Float[Tensor, "*cell"]]:
        """The mean effect of each control."""
        base = self._over_cells(self.base)
        return {name: (control - base).nanmean(0) for name, control in self.controls.items()}

    def answers(self) -> Int[Tensor, "prompt *cell"]:
        """The label the changed run answers; −1 where it was not run."""
        if self.label_scores is None:
            raise ResultError(
                "a first-order estimate gives no answers; run with method='exact'.", code="not-in-result"
            )
        return self.label_scores.argmax(-1).masked_fill(self.label_scores.isnan().any(-1), -1)

    def flips(self) -> Float[Tensor, "*cell"]:
        """The share of prompts whose answer among the labels changes."""
        return 1 - self.accuracy(self.base_label_scores.argmax(-1))

    def accuracy(self, labels: Int[Tensor, " prompt"] | None) -> Float[Tensor, "*cell"]:
        """The share of prompts answered by these labels (`prompts.test_labels`) when changed."""
        if not isinstance(labels, Tensor) or labels.shape != self.values.shape[:1]:
            found = len(labels) if isinstance(labels, Tensor) and labels.dim() else f"none ({labels!r:.60})"
            raise ResultError(
                "accuracy needs the true label of every prompt (prompts.test_labels); there "
                f"are {found} for {len(self.values)} prompts. flips() needs none.",
                code="no-truth",
            )
        answers = self.answers()
        right = (answers == self._over_cells(labels)).float()
        return right.masked_fill(answers < 0, float("nan")).nanmean(0)

    def prediction(self) -> pd.DataFrame:
        """Per head: slope and R² of the direct change of a swap on the predicted one, by least squares over prompts.

        Raises: ResultError: these effects are not of `swap_values`.
        """
        if not {"direct", "predicted"} <= set(self.others) or tuple(self.places) != ("layer", "head"):
            raise ResultError(
                f"only swap_values makes predictions; these effects are of {self.intervention}.",
                code="not-in-result",
            )
        predicted, direct = self.others["predicted"], self.others["direct"]
        prompts = (~(predicted.isnan() | direct.isnan())).sum(0)
        line = line_through(predicted, direct)
        columns = {
            **{name: value.masked_fill(prompts <= 2, torch.nan) for name, value in line._asdict().items()},
            "direct": direct.nanmean(0),
            "total": self.mean(),
            "prompts": prompts,
        }
        frame = head_table(columns).dropna(subset="total")
        return frame.sort_values("direct", key=abs, ascending=False, kind="stable", ignore_index=True)

    def table(self) -> pd.DataFrame:
        """One row per cell that was run, the largest mean effect first; heads by name."""
        frame = self._cells().dropna(subset="effect")
        for axis in {"head", "kv_head"} & set(self.places):
            frame[axis] = [
                cell_name({"layer": at, axis: head})
                for at, head in zip(frame["layer"], frame[axis], strict=True)
            ]
        return frame.sort_values("effect", key=abs, ascending=False, kind="stable", ignore_index=True)

    @checked
    def top(self, k: int = 10) -> pd.DataFrame:
        """The first `k` rows of `table()`."""
        return first_rows(self.table(), k)

    def to_dataframe(self) -> pd.DataFrame:
        """Long form: the prompt, the place on each axis, and one column a metric and control; only cells that were run."""
        base = self._over_cells(self.base)
        return long_form(
            ("prompt", *self.places),
            {"base": base, "logit_difference": self.values, **self.others, **self.controls},
            coords=self.coords(),
            where=~self.values.isnan(),
        )

    def figure(self) -> Figure:
        """The map of mean effects beside its control: layer × head, or layer × offset."""
        about = "layers and heads from 0"
        if self.sample is not None:
            about = (
                f"to first order; correlation with exact effects of {len(self.sample.cells)} random cells "
                f"{self.sample.correlation:.2f}"
            )
            if self.largest is not None:
                about += f", exact ÷ estimate of the largest {self.largest.ratio:.2f}"
        return effect_map_figure(
            self._cells().to_dict("records"),
            self.places,
            tuple(self.controls),
            title=self.title[:1].upper() + self.title[1:],
            subtitle=[
                f"{self.run.about}: {len(self.values)} prompts of {self.run.prompts.demos} demonstrations; "
                "change of the label logit difference",
                f"{self.intervention}; {about}",
            ],
            short=f"{self.intervention}: {self.run.about}",
        )

    def __repr__(self) -> str:
        return self.describe(5)

    def describe(self, top: int) -> str:
        """What was done, the largest effects, and what could not be run, as text."""
        shape = " × ".join(f"{len(names)} {axis}s" for axis, names in self.places.items())
        base = f"  logit difference of the run that is changed: {float(self.base.mean()):.3f}"
        if self.source is not None:
            base += f"; of the run activations come from: {float(self.source.mean()):.3f}"
        table, sample, largest = self.top(top), self.sample, self.largest
        lines = [
            f"PatchEffects({self.intervention}: {self.title}; {len(self.values)} prompts × {shape}; {self.run.about})",
            base,
            table.to_string(index=False, float_format=lambda x: f"{x:.3f}") if len(table) else "",
            sample
            and f"  first-order estimates; against exact effects of {len(sample.cells)} random cells: "
            f"correlation {sample.correlation:.3f}, exact ÷ estimate {sample.ratio:.2f}",
            largest
            and f"  of the {len(largest.cells)} cells with the largest estimates: exact ÷ estimate {largest.ratio:.2f}",
            *(
                f"  NaN: {why} ({count} of {self.values.numel()} cells)"
                for why, count in self.reasons.items()
            ),
        ]
        return "\n".join(line for line in lines if line)

    def _over_cells(self, per_prompt: Tensor) -> Tensor:
        """A number of each prompt, alike for all its cells."""
        return per_prompt[(slice(None), *[None] * len(self.places))].expand(self.values.shape)

    def _cells(self) -> pd.DataFrame:
        """One row a cell: its places, its mean effect with the interval, and the controls' effects."""
        low, high = self.interval()
        columns = {"effect": self.mean(), "low": low, "high": high, **self.control_means()}
        return long_form(tuple(self.places), columns, coords=self.coords())
