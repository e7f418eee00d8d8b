"""What an intervention does to the answer: the metric with each change, beside the metric of the runs it compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

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

Parts = Literal["head", "kv_head", "whole", "set"]
"""What the axis `part` counts: query heads, key-value heads, the layer as a whole, or sets of heads."""
Metric = Literal["logit_difference", "probability", "kl"]
"""logit_difference: label logit of the reference class minus the mean of the others'. probability: of the reference
class's label token among all tokens. kl: KL(P ‖ P_changed) of all next tokens, in nats, P being the unchanged run's."""


@dataclass(frozen=True)
class Check:
    """First-order estimates beside exact effects of the same cells, drawn at random or largest."""

    cells: tuple[tuple[int, int, int], ...]
    """(layer, part, offset number)."""
    estimate: Float[Tensor, "prompt cell"]
    exact: Float[Tensor, "prompt cell"]

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
class PatchEffects:
    """The metric of every changed run, over prompt, layer, part and offset."""

    what: str
    title: str
    """What was changed, in words."""
    parts: Parts
    offsets: tuple[str, ...]
    """Positions relative to the labels (`"-1"`, `"0"`, …), or `"answer"`."""
    values: Float[Tensor, "prompt layer part offset"]
    """Logit difference of the changed run; NaN: not asked for, or `reasons` says why."""
    base: Float[Tensor, " prompt"]
    """Logit difference of the run that is changed, unchanged."""
    source: Float[Tensor, " prompt"] | None
    """Logit difference of the run that activations come from; None: they come from the run itself."""
    reference: Int[Tensor, " prompt"]
    """The class that the metric is about."""
    label_scores: Float[Tensor, "prompt layer part offset label"] | None
    """Label logits of the changed run; None: a first-order estimate has none."""
    base_label_scores: Float[Tensor, "prompt label"]
    others: Mapping[str, Float[Tensor, "prompt layer part offset"]]
    """The other metrics of the changed run."""
    base_others: Mapping[str, Float[Tensor, " prompt"]]
    controls: Mapping[str, Float[Tensor, "prompt layer part offset"]]
    """Logit difference under another change that should matter less; named after what it is."""
    demo_set: Int[Tensor, " prompt"]
    run: RunInfo
    settings: Mapping[str, str] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Why cells are NaN, and how many."""
    names: tuple[str, ...] = ()
    """Of the sets of heads, where `parts` is "set"."""
    sample: Check | None = None
    """Exact effects of cells drawn at random, beside first-order estimates."""
    largest: Check | None = None
    """Exact effects of the cells with the largest estimates."""

    def metric(self, name: Metric = "logit_difference") -> Float[Tensor, "prompt layer part offset"]:
        """One metric of the changed runs."""
        if name == "logit_difference":
            return self.values
        if name not in self.others:
            raise ResultError(f"metrics here are {['logit_difference', *self.others]}; got {name!r}.")
        return self.others[name]

    def effect(self, metric: Metric = "logit_difference") -> Float[Tensor, "prompt layer part offset"]:
        """The metric of the changed run minus that of the run unchanged, per prompt."""
        base = self.base if metric == "logit_difference" else self.base_others.get(metric)
        changed = self.metric(metric)
        return changed if base is None else changed - base[:, None, None, None]

    def mean(self, metric: Metric = "logit_difference") -> Float[Tensor, "layer part offset"]:
        """The mean effect over prompts."""
        return self.effect(metric).nanmean(0)

    def interval(
        self,
        level: float = 0.95,
        *,
        metric: Metric = "logit_difference",
        draws: int = 2000,
        seed: int = 0,
    ) -> tuple[Float[Tensor, "layer part offset"], Float[Tensor, "layer part offset"]]:
        """Bootstrap interval of the mean effect, over prompts, demonstration sets drawn whole.

        Per cell and pointwise: the largest of many is larger than its interval says.
        """
        if not 0 < level < 1 or draws < 1:
            raise ResultError(
                f"level must lie between 0 and 1 (for 95 %: 0.95), and draws be at least 1; got {level} and {draws}."
            )
        effect = self.effect(metric)
        low, high = cluster_bootstrap(effect.flatten(1), self.demo_set, level=level, draws=draws, seed=seed)
        return low.reshape(effect.shape[1:]), high.reshape(effect.shape[1:])

    def normalised(self) -> Float[Tensor, "layer part offset"]:
        """mean(changed − base) / mean(source − base): the share of the whole difference that the cell carries.

        A ratio of means: ratios of single prompts explode where the two runs hardly differ.
        First-order estimates are divided by the exact difference, and share their error (see `largest.ratio`).
        Raises: ResultError: there is no source run, or the interval of the two runs' difference includes 0.
        """
        if self.source is None:
            raise ResultError(
                f"a normalised effect needs a second run; {self.what} takes activations from the run itself. Use "
                "mean() instead."
            )
        difference = self.source - self.base
        whole, size = difference.mean(), self.base.abs().mean()
        low, high = (
            float(edge) for edge in cluster_bootstrap(difference[:, None], self.demo_set, level=0.95)
        )
        if low <= 0 <= high or not whole.abs() > 1e-4 * size:
            raise ResultError(
                f"the two runs must differ in the mean to divide by it; their logit differences differ by "
                f"{float(whole):.2g} (95 % interval {low:.2g} to {high:.2g}): the corruption changes too little, or "
                "raises as many prompts as it lowers. Use mean(), more prompts, or a corruption that changes every "
                "label (map_labels)."
            )
        return self.mean() / whole

    def control_means(self) -> dict[str, Float[Tensor, "layer part offset"]]:
        """The mean effect of each control."""
        base = self.base[:, None, None, None]
        return {name: (control - base).nanmean(0) for name, control in self.controls.items()}

    def answers(self) -> Int[Tensor, "prompt layer part offset"]:
        """The label the changed run answers; −1 where it was not run."""
        if self.label_scores is None:
            raise ResultError("a first-order estimate gives no answers; run with method='exact'.")
        missing = self.label_scores.isnan().any(-1)
        return self.label_scores.argmax(-1).masked_fill(missing, -1)

    def flips(self) -> Float[Tensor, "layer part offset"]:
        """The share of prompts whose answer among the labels changes."""
        answers, before = self.answers(), self.base_label_scores.argmax(-1)
        changed = (answers != before[:, None, None, None]).float()
        return changed.masked_fill(answers < 0, float("nan")).nanmean(0)

    def accuracy(self, labels: Int[Tensor, " prompt"] | None) -> Float[Tensor, "layer part offset"]:
        """The share of prompts answered by these labels (`prompts.test_labels`) when changed."""
        if labels is None or len(labels) != len(self.values):
            raise ResultError(
                "accuracy needs the true label of every prompt (prompts.test_labels); there are "
                f"{0 if labels is None else len(labels)} for {len(self.values)} prompts. flips() needs none."
            )
        answers = self.answers()
        right = (answers == labels[:, None, None, None]).float()
        return right.masked_fill(answers < 0, float("nan")).nanmean(0)

    def part_name(self, layer: int, part: int) -> str:
        """How a cell's part is called in tables."""
        match self.parts:
            case "head":
                return str(HeadRef(layer, part))
            case "kv_head":
                return f"L{layer}KV{part}"
            case "whole":
                return f"L{layer}"
            case "set":
                return self.names[part]

    def table(self) -> pd.DataFrame:
        """One row per cell that was run, the largest mean effect first."""
        import pandas as pd

        mean, (low, high) = self.mean(), self.interval()
        controls = self.control_means()
        rows = []
        for layer, part, at in (~mean.isnan()).nonzero().tolist():
            cell = (layer, part, at)
            row: dict[str, object] = {
                "part": self.part_name(layer, part),
                "offset": self.offsets[at],
                "effect": float(mean[cell]),
                "low": float(low[cell]),
                "high": float(high[cell]),
            }
            row |= {name: float(control[cell]) for name, control in controls.items()}
            rows.append(row)
        columns = ["part", "offset", "effect", "low", "high", *controls]
        frame = pd.DataFrame(rows, columns=columns)
        return frame.sort_values("effect", key=abs, ascending=False, kind="stable", ignore_index=True)

    def top(self, k: int = 10) -> pd.DataFrame:
        """The first `k` rows of `table()`."""
        return self.table().head(k)

    def to_dataframe(self) -> pd.DataFrame:
        """Long form: prompt, layer, part, offset, and one column a metric and control; only cells that were run."""
        import pandas as pd

        index = (~self.values.isnan()).nonzero()
        frame = pd.DataFrame(index.numpy(), columns=["prompt", "layer", "part", "offset"])
        where = tuple(index.unbind(1))
        frame["base"] = self.base[index[:, 0]].numpy()
        frame["logit_difference"] = self.values[where].numpy()
        for name, values in {**self.others, **self.controls}.items():
            frame[name] = values[where].numpy()
        frame["offset"] = [self.offsets[at] for at in frame["offset"]]
        return frame

    def save(self, path: str | Path) -> Path:
        """Write the whole result; `load` reads it back."""
        tensors: dict[str, Tensor] = {name: getattr(self, name) for name in _TENSORS}
        for name in ("source", "label_scores"):
            if getattr(self, name) is not None:
                tensors[name] = getattr(self, name)
        for group in _GROUPS:
            tensors |= {f"{group}.{name}": tensor for name, tensor in getattr(self, group).items()}
        checks = {}
        for name in ("sample", "largest"):
            check: Check | None = getattr(self, name)
            if check is not None:
                tensors |= {f"{name}.estimate": check.estimate, f"{name}.exact": check.exact}
                checks[name] = check.cells
        meta = {name: getattr(self, name) for name in _WORDS} | {
            "settings": dict(self.settings),
            "reasons": dict(self.reasons),
            "order": {group: list(getattr(self, group)) for group in _GROUPS},
            "checks": checks,
            "run": self.run.to_json(),
        }
        return store.write(path, "PatchEffects", tensors, meta)

    @classmethod
    def load(cls, path: str | Path) -> PatchEffects:
        """Read what `save` wrote.

        Raises: LoadError: another kind of file, another format version, or a damaged one.
        """
        tensors, meta = store.read(path, "PatchEffects")
        try:
            checks = {
                name: Check(
                    tuple((int(a), int(b), int(c)) for a, b, c in cells),
                    tensors[f"{name}.estimate"],
                    tensors[f"{name}.exact"],
                )
                for name, cells in meta["checks"].items()
            }
            fields: dict[str, Any] = {name: meta[name] for name in ("what", "title", "parts")}
            fields |= {name: tensors[name] for name in _TENSORS}
            fields |= {g: {name: tensors[f"{g}.{name}"] for name in meta["order"][g]} for g in _GROUPS}
            loaded = cls(
                **fields,
                offsets=tuple(meta["offsets"]),
                names=tuple(meta["names"]),
                source=tensors.get("source"),
                label_scores=tensors.get("label_scores"),
                settings=meta["settings"],
                reasons=meta["reasons"],
                run=RunInfo.from_json(meta["run"]),
                sample=checks.get("sample"),
                largest=checks.get("largest"),
            )
            _check_whole(loaded)
            return loaded
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise store.missing_field(path, "PatchEffects", error) from error

    def figure(self) -> Figure:
        """The map of mean effects beside its control: layer × head, or layer × offset."""
        from icl_kernel_lens.plots.effect_map import effect_map

        return effect_map(self)

    def __repr__(self) -> str:
        return self.describe(5)

    def describe(self, top: int) -> str:
        """What was done, the largest effects, and what could not be run, as text."""
        prompts, layers, parts, _ = self.values.shape
        kinds = {"head": "heads", "kv_head": "key-value heads", "whole": "whole layers", "set": "sets"}
        lines = [
            f"PatchEffects({self.what}: {self.title}; {prompts} prompts × {layers} layers × {parts} "
            f"{kinds[self.parts]} × offsets {', '.join(self.offsets)}; {self.run.model} on "
            f"{self.run.prompts.task})",
            f"  logit difference of the run that is changed: {float(self.base.mean()):.3f}"
            + (
                ""
                if self.source is None
                else f"; of the run activations come from: {float(self.source.mean()):.3f}"
            ),
        ]
        table = self.top(top)
        if len(table):
            lines.append(table.to_string(index=False, float_format=lambda x: f"{x:.3f}"))
        if self.sample is not None:
            lines.append(
                f"  first-order estimates; against exact effects of {len(self.sample.cells)} random cells: "
                f"correlation {self.sample.correlation:.3f}, exact ÷ estimate {self.sample.ratio:.2f}"
            )
        if self.largest is not None:
            lines.append(
                f"  of the {len(self.largest.cells)} cells with the largest estimates: exact ÷ estimate "
                f"{self.largest.ratio:.2f}"
            )
        lines += [f"  NaN: {why} ({count} cells)" for why, count in self.reasons.items()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>{self.figure()._repr_html_()}"


def _check_whole(effects: PatchEffects) -> None:
    """Every tensor has the shape that the others ask for."""
    cells = tuple(effects.values.shape)
    prompts, labels = effects.base_label_scores.shape
    if effects.parts not in get_args(Parts) or len(cells) != 4 or cells[0] != prompts:
        raise ValueError(f"values of {effects.parts!r} have shape {cells}")
    if cells[3] != len(effects.offsets) or not all(isinstance(o, str) for o in effects.offsets):
        raise ValueError(f"offsets are {effects.offsets!r}")
    if effects.parts == "set" and len(effects.names) != cells[2]:
        raise ValueError(f"{len(effects.names)} sets have names, and there are {cells[2]}")
    wanted: list[tuple[str, Tensor | None, tuple[int, ...]]] = [
        ("label_scores", effects.label_scores, (*cells, labels)),
        *((name, getattr(effects, name), (prompts,)) for name in ("base", "source", "reference", "demo_set")),
        *((name, x, cells) for group in (effects.others, effects.controls) for name, x in group.items()),
        *((name, x, (prompts,)) for name, x in effects.base_others.items()),
    ]
    for check in (effects.sample, effects.largest):
        if check is not None:
            size = (prompts, len(check.cells))
            wanted += [("estimate", check.estimate, size), ("exact", check.exact, size)]
    for name, tensor, shape in wanted:
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, not {shape}")


_TENSORS = ("values", "base", "reference", "base_label_scores", "demo_set")
_GROUPS = ("others", "base_others", "controls")
_WORDS = ("what", "title", "parts", "offsets", "names")
