"""One score per prompt and head, beside the same score under its controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.results import store
from icl_kernel_lens.results.resample import cluster_bootstrap
from icl_kernel_lens.results.run_info import RunInfo

if TYPE_CHECKING:
    import pandas as pd

    from icl_kernel_lens.plots.figure import Figure


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


@dataclass(frozen=True, eq=False, repr=False)
class HeadScores:
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
    reasons: Mapping[str, int]
    """Why cells are NaN, and how many (prompt, head) cells each reason took."""
    demo_set: Int[Tensor, " prompt"]
    run: RunInfo
    settings: Mapping[str, str] = field(default_factory=dict)
    shown: ShownDemos | None = None

    @cached_property
    def _mean(self) -> Float[Tensor, "layer head"]:
        return self.values.nanmean(0)

    def mean(self) -> Float[Tensor, "layer head"]:
        """The mean over prompts that could be scored."""
        return self._mean.clone()

    def interval(
        self, level: float = 0.95, *, draws: int = 2000, seed: int = 0
    ) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"]]:
        """Bootstrap interval of the mean, over prompts, demonstration sets drawn whole.

        Per head and pointwise: the best of many heads is better than its interval says.
        """
        if not 0 < level < 1:
            raise ResultError(f"level must lie between 0 and 1; got {level}. For 95 %, pass 0.95.")
        low, high = cluster_bootstrap(
            self.values.flatten(1), self.demo_set, level=level, draws=draws, seed=seed
        )
        return low.reshape(self._mean.shape), high.reshape(self._mean.shape)

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
            raise ResultError(f"{self.name} has no controls to compare with; look at its values.")
        means = self.control_means()
        names = list(means)
        stacked = torch.stack([m.nan_to_num(nan=-torch.inf) for m in means.values()])
        best, which = stacked.max(0)
        return (
            best.masked_fill(self._mean.isnan(), float("nan")),
            [[names[i] for i in row] for row in which.tolist()],
        )

    def above_control(self) -> Float[Tensor, "layer head"]:
        """The mean minus that of the head's strongest control: above 0, the head knows more."""
        return self._mean - self.strongest_control()[0]

    def best(self) -> HeadRef:
        """The head furthest above its strongest control (with no controls: the largest mean).

        The largest of many is too good: choose on one half of the prompts and report on the other.
        """
        margin = self.above_control() if self.controls else self._mean
        if margin.isnan().all():
            raise ResultError(f"no head could be scored on {self.name}: {dict(self.reasons)}.")
        layer, head = divmod(int(margin.nan_to_num(nan=-torch.inf).argmax()), margin.shape[1])
        return HeadRef(layer, head)

    def table(self) -> pd.DataFrame:
        """One row per head, furthest above its strongest control first."""
        import pandas as pd

        low, high = self.interval()
        layers, heads = self._mean.shape
        refs = [HeadRef(layer, head) for layer in range(layers) for head in range(heads)]
        frame = pd.DataFrame({"head": [str(ref) for ref in refs]})
        frame[self.name] = self._mean.flatten().numpy()
        frame["low"], frame["high"] = low.flatten().numpy(), high.flatten().numpy()
        order = self.name
        if self.controls:
            strongest, names = self.strongest_control()
            frame["strongest_control"] = [names[ref.layer][ref.head] for ref in refs]
            frame["control"] = strongest.flatten().numpy()
            frame["above_control"] = self.above_control().flatten().numpy()
            order = "above_control"
        for name, companion in self.companions.items():
            frame[name] = companion.flatten().numpy()
        return frame.sort_values(order, ascending=False, kind="stable", ignore_index=True)

    def top(self, k: int = 10) -> pd.DataFrame:
        """The first `k` rows of `table()`."""
        return self.table().head(k)

    def to_dataframe(self) -> pd.DataFrame:
        """Long form: prompt, layer, head, value, and one column a control."""
        import pandas as pd

        prompts, layers, heads = self.values.shape
        index = torch.cartesian_prod(*(torch.arange(n) for n in (prompts, layers, heads)))
        frame = pd.DataFrame(index.reshape(-1, 3).numpy(), columns=["prompt", "layer", "head"])
        frame["value"] = self.values.flatten().numpy()
        for name, control in self.controls.items():
            frame[name] = control.expand_as(self.values).flatten().numpy()
        return frame

    def save(self, path: str | Path) -> Path:
        """Write the whole result; `load` reads it back."""
        tensors = {"values": self.values, "demo_set": self.demo_set}
        tensors |= {f"controls.{name}": control for name, control in self.controls.items()}
        tensors |= {f"companions.{name}": companion for name, companion in self.companions.items()}
        meta = {
            "name": self.name,
            "title": self.title,
            "unit": self.unit,
            "reasons": dict(self.reasons),
            "settings": dict(self.settings),
            "order": {"controls": list(self.controls), "companions": list(self.companions)},
            "run": self.run.to_json(),
            "shown": None,
        }
        if self.shown is not None:
            tensors |= {
                "shown.weights": self.shown.weights,
                "shown.demo_labels": self.shown.demo_labels,
                "shown.answers": self.shown.answers,
            }
            meta["shown"] = {"label_words": self.shown.label_words, "texts": self.shown.texts}
        return store.write(path, "HeadScores", tensors, meta)

    @classmethod
    def load(cls, path: str | Path) -> HeadScores:
        """Read what `save` wrote.

        Raises: LoadError: another kind of file, another format version, or a damaged one.
        """
        tensors, meta = store.read(path, "HeadScores")
        try:
            shown = meta["shown"]
            return cls(
                name=meta["name"],
                title=meta["title"],
                unit=meta["unit"],
                values=tensors["values"],
                controls={name: tensors[f"controls.{name}"] for name in meta["order"]["controls"]},
                companions={name: tensors[f"companions.{name}"] for name in meta["order"]["companions"]},
                reasons=meta["reasons"],
                demo_set=tensors["demo_set"],
                run=RunInfo.from_json(meta["run"]),
                settings=meta["settings"],
                shown=None
                if shown is None
                else ShownDemos(
                    weights=tensors["shown.weights"],
                    demo_labels=tensors["shown.demo_labels"],
                    answers=tensors["shown.answers"],
                    label_words=tuple(tuple(row) for row in shown["label_words"]),
                    texts=tuple(tuple(row) for row in shown["texts"]),
                ),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise store.missing_field(path, "HeadScores", error) from error

    def figure(self) -> Figure:
        """The layer × head map beside the map of its strongest control; a click on a head shows its
        weights over the demonstrations of a prompt."""
        from icl_kernel_lens.plots.head_map import head_map

        return head_map(self)

    def __repr__(self) -> str:
        layers, heads = self._mean.shape
        lines = [
            f"HeadScores({self.name}: {self.title}; {len(self.values)} prompts × {layers} layers × {heads} "
            f"heads; {self.run.model} on {self.run.prompts.task})"
        ]
        if not self._mean.isnan().all():
            lines.append(self.top(5).to_string(float_format=lambda x: f"{x:.3f}"))
        lines += [f"  NaN: {why} ({count} cells)" for why, count in self.reasons.items()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self).splitlines()[0])}</p>{self.figure()._repr_html_()}"
