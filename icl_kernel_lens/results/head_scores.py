"""One score per prompt and head, beside the same score under its controls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.charts.figure import Figure
from icl_kernel_lens.charts.head_map import head_map_figure
from icl_kernel_lens.charts.layers import layer_profile_figure
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.numbers.intervals import cluster_bootstrap, cluster_t, interval_of
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.results.base import Result, broken, first_rows, head_table, long_form
from icl_kernel_lens.results.run_info import RunInfo
from icl_kernel_lens.results.task_accuracy import TaskAccuracy

_OWN_COLUMNS = {
    *("prompt", "layer", "head", "value"),
    *("low", "high", "strongest_control", "control", "above_control", "above_control_low"),
}
"""What the tables call columns of their own."""
LEAST_ATTENTION = 0.05
"""Mean attention on labels, below which a head's vote is noise: such heads stand after all others."""


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
    accuracy: TaskAccuracy | None = None
    """Whether there is anything to explain: what is said first."""

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
        """Interval of the mean over prompts, of which those of one demonstration set may be alike.

        Of fractions of prompts Clopper–Pearson's, on the prompts that the sets are worth; else a bootstrap in which sets
        are drawn whole. Per head and pointwise: the best of many heads is better than its interval says.
        """
        bootstrap = partial(cluster_bootstrap, draws=draws, seed=seed)
        return interval_of(self.unit, self.values, self.demo_set, level=level, otherwise=bootstrap)

    def control_means(self) -> dict[str, Float[Tensor, "layer head"]]:
        """The mean of each control, over the prompts that the head itself could be scored on."""
        scored = ~self.values.isnan()
        return {
            name: control.expand_as(self.values).masked_fill(~scored, float("nan")).nanmean(0)
            for name, control in self.controls.items()
        }

    def strongest_control(self) -> tuple[Float[Tensor, "layer head"], list[list[str]]]:
        """For each head, the largest control mean and its name."""
        best, which = self._strongest()
        names = list(self.controls)
        return best, [[names[i] for i in row] for row in which.tolist()]

    def _strongest(self) -> tuple[Float[Tensor, "layer head"], Int[Tensor, "layer head"]]:
        """For each head, the largest control mean and which control it is."""
        if not self.controls:
            raise ResultError(
                f"{self.name} has no controls to compare with; look at its values.", code="not-in-result"
            )
        best, which = torch.stack(list(self.control_means().values())).nan_to_num(nan=-torch.inf).max(0)
        return best.masked_fill(self.mean().isnan(), float("nan")), which

    def above_control(self) -> Float[Tensor, "layer head"]:
        """The mean minus that of the head's strongest control: above 0, the head knows more."""
        return self.mean() - self.strongest_control()[0]

    def surely_above(self, level: float = 0.95) -> Float[Tensor, "layer head"]:
        """The lower end of the interval of score − strongest control, prompt by prompt; with no controls, the mean."""
        if not self.controls:
            return self.mean()
        controls = torch.stack([control.expand_as(self.values) for control in self.controls.values()])
        strongest = controls.gather(0, self._strongest()[1].expand(1, *self.values.shape))[0]
        low, _ = interval_of(
            self.unit,
            self.values - strongest,
            self.demo_set,
            difference=True,
            level=level,
            otherwise=cluster_t,
        )
        return low

    def reads_labels(self, least_attention: float = LEAST_ATTENTION) -> Bool[Tensor, "layer head"]:
        """Whether a head pays the labels at least this much attention, in the mean; all do, if it is not known."""
        attention = self.companions.get("label_attention", torch.ones(self.values.shape[1:]))
        return attention >= least_attention

    def best(self, *, least_attention: float = LEAST_ATTENTION) -> HeadRef:
        """The head most surely above its strongest control (with no controls: of the largest mean): the first of `table`.

        The best of many is too good: choose on one half of the prompts and report on the other.
        """
        if self.mean().isnan().all():
            raise ResultError(
                f"no head could be scored on {self.name}: {'; '.join(map(str, self.reasons))}.",
                code="nothing-scored",
            )
        return HeadRef.of(str(self.table(least_attention=least_attention)["head"][0]))

    def table(self, *, least_attention: float = LEAST_ATTENTION) -> pd.DataFrame:
        """One row per head, the most surely above its strongest control first.

        Heads that pay the labels less attention than `least_attention` stand after all others, in the same order.
        """
        low, high = self.interval()
        columns: dict[str, Any] = {self.name: self.mean(), "low": low, "high": high}
        surely = self.surely_above()
        if self.controls:
            strongest, names = self.strongest_control()
            columns["strongest_control"] = list(chain(*names))
            columns |= {
                "control": strongest,
                "above_control": self.mean() - strongest,
                "above_control_low": surely,
            }
        order = head_table(
            {"reads": self.reads_labels(least_attention), "surely": surely, "mean": self.mean()}
        )
        order = order.sort_values(["reads", "surely", "mean"], ascending=False, kind="stable")
        return head_table(columns | dict(self.companions)).loc[order.index].reset_index(drop=True)

    @checked
    def top(self, k: int = 10, *, least_attention: float = LEAST_ATTENTION) -> pd.DataFrame:
        """The first `k` rows of `table()`."""
        return first_rows(self.table(least_attention=least_attention), k)

    def describe(self, top: int) -> str:
        """What was scored and how, with the first `top` rows of the table, as text."""
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        table = self.top(top).to_string(index=False, float_format=lambda x: f"{x:.3f}")
        return f"{self.title}, {settings}:\n{table}"

    def to_dataframe(self) -> pd.DataFrame:
        """Long form: prompt, layer, head, value, and one column a control."""
        return long_form(("prompt", "layer", "head"), {"value": self.values, **self.controls})

    def _measured(self) -> str:
        """On how many prompts of which kind, and how."""
        pooling = self.settings.get("pooling")
        return (
            f"{len(self.values)} prompts of {self.run.prompts.demos} demonstrations; {self.unit}"
            + f"; pooling {pooling}" * bool(pooling)
        )

    @checked
    def layer_figure(self, *, least_attention: float = LEAST_ATTENTION) -> Figure:
        """The score over the layers: every head beside its strongest control, and the best head of each layer.

        With a companion `null_95`, what the best of all heads exceeds by chance in 5 %. Heads that pay the labels less than
        `least_attention` are grey.
        """
        null = self.companions.get("null_95")
        known = null[~null.isnan()] if null is not None else torch.zeros(0)
        return layer_profile_figure(
            self.table(least_attention=least_attention).to_dict("records"),
            score=self.name,
            title=self.title,
            of=self.run.about,
            measured=self._measured(),
            null=float(known.max()) if len(known) else None,
            least_attention=least_attention,
        )

    @checked
    def figure(self, *, least_attention: float = LEAST_ATTENTION) -> Figure:
        """The layer × head map beside the map of its strongest control; a click on a head shows its attention on the
        demonstrations of a prompt. Heads that pay the labels less than `least_attention` are grey."""
        return head_map_figure(
            self.table(least_attention=least_attention).to_dict("records"),
            score=self.name,
            title=self.title,
            of=self.run.about,
            measured=self._measured(),
            weights=self.shown and self.shown.weights,
            demos=self.shown.rows() if self.shown else (),
            least_attention=least_attention,
        )

    def __repr__(self) -> str:
        prompts, layers, heads = self.values.shape
        lines = [self.accuracy.opening()] if self.accuracy else []
        lines += [
            f"HeadScores({self.name}: {self.title}; {prompts} prompts × {layers} layers × {heads} "
            f"heads; {self.run.about})"
        ]
        if not self.values.isnan().all():
            lines.append(self.top(5).to_string(float_format=lambda x: f"{x:.3f}"))
        lines += [f"  NaN: {why} ({count} cells)" for why, count in self.reasons.items()]
        return "\n".join(lines)
