"""One score per prompt and head, beside the same score under its controls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.charts.figure import Figure
from icl_kernel_lens.charts.head_map import head_map_figure
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.numbers.intervals import cluster_bootstrap
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.results.base import Result, broken, first_rows, head_table, long_form
from icl_kernel_lens.results.run_info import RunInfo

_OWN_COLUMNS = {
    "prompt",
    "layer",
    "head",
    "value",
    "low",
    "high",
    "strongest_control",
    "control",
    "above_control",
}
"""What the tables call columns of their own."""


@dataclass(frozen=True)
class ShownDemos:
    """The first prompts' kernel weights with their texts, so that a figure needs no model."""

    weights: Float[Tensor, "shown layer head demo"]
    """Not renormalised: attention on the demonstrations."""
    demo_labels: Int[Tensor, "shown demo"]
    answers: Int[Tensor, " shown"]
    """The answer the votes are compared with."""
    label_words: tuple[tuple[str, ...], ...]
    texts: tuple[tuple[str, ...], ...]

    def rows(self) -> list[dict[str, Any]]:
        """One row a prompt and demonstration, in order."""
        return [
            {
                "label": words[label].strip(),
                "rank": label,
                "text": text if len(text) <= 200 else text[:199] + "…",
                "answer": words[answer].strip(),
            }
            for words, texts, labels, answer in zip(
                self.label_words, self.texts, self.demo_labels.tolist(), self.answers.tolist(), strict=True
            )
            for label, text in zip(labels, texts, strict=True)
        ]


@dataclass(frozen=True, eq=False, repr=False)
class HeadScores(Result):
    """One score per prompt and head, beside the same score under its controls."""

    name: str
    title: str
    """What the score is, in words, for tables and figures."""
    unit: str
    values: Float[Tensor, "prompt layer head"]
    """NaN: could not be scored; `reasons` says why."""
    controls: Mapping[str, Float[Tensor, "prompt #layer #head"]]
    """The same score with the head replaced by something that knows less; named after what it is."""
    companions: Mapping[str, Float[Tensor, "layer head"]]
    """Numbers to read beside the score, one per head."""
    reasons: Mapping[Reason, int]
    """Why cells are NaN, and how many (prompt, head) cells each reason took."""
    demo_set: Int[Tensor, " prompt"]
    run: RunInfo
    settings: Mapping[str, str] = field(default_factory=dict)
    shown: ShownDemos | None = None

    def _problems(self) -> Iterator[str]:
        columns = [self.name, *self.controls, *self.companions]
        clash = sorted({c for c in columns if c in _OWN_COLUMNS or columns.count(c) > 1})
        yield from broken(
            {
                "name, title and unit must say something": all((self.name, self.title, self.unit)),
                f"score, controls and companions must have names of their own; not {', '.join(clash)}": not clash,
                f"reasons count cells; they are {dict(self.reasons)}": (
                    min(self.reasons.values(), default=0) >= 0
                ),
                "reasons must say why cells are NaN": bool(self.reasons)
                or not bool(self.values.isnan().any()),
            }
        )
        if (shown := self.shown) is None:
            return
        count, demos = shown.demo_labels.shape
        if (len(shown.label_words), len(shown.texts)) != (count, count):
            yield f"the {count} prompts shown must have their label words and texts"
        for words, texts, labels, answer in zip(
            shown.label_words, shown.texts, shown.demo_labels, shown.answers, strict=True
        ):
            if len(texts) != demos or any(not 0 <= int(y) < len(words) for y in (*labels, answer)):
                yield "demonstrations and answers shown must have their texts and label words"

    def mean(self) -> Float[Tensor, "layer head"]:
        """The mean over prompts that could be scored."""
        return self.values.nanmean(0)

    @checked
    def interval(
        self, level: float = 0.95, *, draws: int = 2000, seed: int = 0
    ) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"]]:
        """Bootstrap interval of the mean, over prompts, demonstration sets drawn whole.

        Per head and pointwise: the best of many heads is better than its interval says.
        """
        return cluster_bootstrap(self.values, self.demo_set, level=level, draws=draws, seed=seed)

    def control_means(self) -> dict[str, Float[Tensor, "layer head"]]:
        """The mean of each control, over the prompts that the head itself could be scored on."""
        scored = ~self.values.isnan()
        return {
            name: control.expand_as(self.values).masked_fill(~scored, float("nan")).nanmean(0)
            for name, control in self.controls.items()
        }

    def strongest_control(self) -> tuple[Float[Tensor, "layer head"], list[list[str]]]:
        """For each head, the largest control mean and its name."""
        if not self.controls:
            raise ResultError(
                f"{self.name} has no controls to compare with; look at its values.", code="not-in-result"
            )
        means = self.control_means()
        names = list(means)
        best, which = torch.stack(list(means.values())).nan_to_num(nan=-torch.inf).max(0)
        best = best.masked_fill(self.mean().isnan(), float("nan"))
        return best, [[names[i] for i in row] for row in which.tolist()]

    def above_control(self) -> Float[Tensor, "layer head"]:
        """The mean minus that of the head's strongest control: above 0, the head knows more."""
        return self.mean() - self.strongest_control()[0]

    def best(self) -> HeadRef:
        """The head furthest above its strongest control (with no controls: the largest mean).

        The largest of many is too good: choose on one half of the prompts and report on the other.
        """
        margin = self.above_control() if self.controls else self.mean()
        if margin.isnan().all():
            raise ResultError(
                f"no head could be scored on {self.name}: {'; '.join(map(str, self.reasons))}.",
                code="nothing-scored",
            )
        return HeadRef(*divmod(int(margin.nan_to_num(nan=-torch.inf).argmax()), margin.shape[1]))

    def table(self) -> pd.DataFrame:
        """One row per head, furthest above its strongest control first."""
        low, high = self.interval()
        columns: dict[str, Any] = {self.name: self.mean(), "low": low, "high": high}
        if self.controls:
            strongest, names = self.strongest_control()
            columns["strongest_control"] = list(chain(*names))
            columns |= {"control": strongest, "above_control": self.mean() - strongest}
        order = "above_control" if self.controls else self.name
        return head_table(columns | dict(self.companions)).sort_values(
            order, ascending=False, kind="stable", ignore_index=True
        )

    @checked
    def top(self, k: int = 10) -> pd.DataFrame:
        """The first `k` rows of `table()`."""
        return first_rows(self.table(), k)

    def describe(self, top: int) -> str:
        """What was scored and how, with the first `top` rows of the table, as text."""
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        table = self.top(top).to_string(index=False, float_format=lambda x: f"{x:.3f}")
        return f"{self.title}, {settings}:\n{table}"

    def to_dataframe(self) -> pd.DataFrame:
        """Long form: prompt, layer, head, value, and one column a control."""
        return long_form(("prompt", "layer", "head"), {"value": self.values, **self.controls})

    def figure(self) -> Figure:
        """The layer × head map beside the map of its strongest control; a click on a head shows its
        weights over the demonstrations of a prompt."""
        prompts, pooling = self.run.prompts, self.settings.get("pooling")
        return head_map_figure(
            self.table().to_dict("records"),
            score=self.name,
            title=self.title,
            of=self.run.about,
            measured=f"{len(self.values)} prompts of {prompts.demos} demonstrations; {self.unit}"
            + (f"; pooling {pooling}" if pooling else ""),
            weights=self.shown and self.shown.weights,
            demos=self.shown.rows() if self.shown else (),
        )

    def __repr__(self) -> str:
        prompts, layers, heads = self.values.shape
        lines = [
            f"HeadScores({self.name}: {self.title}; {prompts} prompts × {layers} layers × {heads} "
            f"heads; {self.run.about})"
        ]
        if not self.values.isnan().all():
            lines.append(self.top(5).to_string(float_format=lambda x: f"{x:.3f}"))
        lines += [f"  NaN: {why} ({count} cells)" for why, count in self.reasons.items()]
        return "\n".join(lines)
