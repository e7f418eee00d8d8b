"""Where the kernel-regression heads are: every head's class, chosen on one half of the prompts and measured on the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from icl_kernel_lens.axes import Head, HeadRef
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.results import store
from icl_kernel_lens.results.run_info import RunInfo

if TYPE_CHECKING:
    import pandas as pd

    from icl_kernel_lens.plots.figure import Figure

HeadClass = Literal["kernel head", "shadow", "driver", "echo", "word preference", "neither", "undetermined"]
"""What a head is, by the intervals of three questions (see `locate_heads`).

    kernel head        votes, its weights follow the inputs, and the answer needs its label edges
    shadow             votes, its weights follow the inputs, and the answer does not need them
    driver             the answer needs its label edges, and it is no kernel head
    echo               its weights follow the model's answer
    word preference    its weights follow the label words
    neither            none of these; also every head that the choosing half gave no reason to look at
    undetermined       intervals too wide to say
"""
HEAD_CLASSES: tuple[HeadClass, ...] = get_args(HeadClass)


@dataclass(frozen=True)
class Criteria:
    """The smallest effects of interest, and how sure to be: what is smaller is not looked for."""

    margin: float = 0.05
    """A head votes if its agreement is further than this above its strongest control; fraction of prompts."""
    effect: float = 0.05
    """A head matters if cutting its label edges costs more than this share of the logit difference."""
    moved: float = 0.5
    """Weights follow the inputs if permuted labels move them by less than this share of what words would carry."""
    least_moved: float = 0.02
    """Total variation; weights that move less are not moved, however even they are."""
    follows: float = 0.1
    """Weights follow words or answers if they give them more than this share beyond the label's number."""
    label_mass: float = 0.02
    """Least mean attention on label positions of a head that can vote."""
    false_discovery: float = 0.05
    """Rate q of Benjamini & Hochberg's procedure over the candidates, in the reporting half."""
    candidates: float = 0.2
    """The same over all heads, in the choosing half, whose candidates are tested again."""
    level: float = 0.95
    """Of all intervals."""
    band_share: float = 0.9
    """How much of the confirmed effect the band holds."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value < 1:
                raise ResultError(f"Criteria.{name} must lie between 0 and 1; got {value}.")


@dataclass(frozen=True)
class Band:
    """The smallest run of layers that holds a share of the confirmed kernel heads' effect.

    Layers are counted from 0; relative depth is layer / (layers − 1), 0 the first layer and 1 the last.
    """

    first: int
    last: int
    share: float
    """What it holds."""
    wanted: float
    """What it had to hold (`Criteria.band_share`)."""
    first_interval: tuple[int, int]
    last_interval: tuple[int, int]
    """Bootstrap intervals over demonstration sets."""
    layers: int
    """Of the whole model."""
    by_layer: tuple[float, ...]
    """Effect of the confirmed heads, summed over each layer, as a share of the logit difference."""

    @property
    def depth(self) -> tuple[float, float]:
        """First and last layer as relative depth."""
        deepest = max(1, self.layers - 1)
        return self.first / deepest, self.last / deepest

    def __str__(self) -> str:
        (a, b), (c, d) = self.first_interval, self.last_interval
        low, high = self.depth
        one = self.first == self.last
        return (
            (f"layer {self.first}" if one else f"layers {self.first}–{self.last}")
            + f" of {self.layers} (counted from 0; relative depth {low:.2f}"
            + ("" if one else f"–{high:.2f}")
            + f") hold{'s' * one} {self.share:.0%} of the confirmed effect (asked: {self.wanted:.0%}); intervals: first "
            f"{a}–{b}, last {c}–{d}"
        )


@dataclass(frozen=True, eq=False, repr=False)
class HeadRanking:
    """Every head's class; all numbers from the reporting half, but those under `choosing`."""

    classes: Mapping[HeadRef, HeadClass]
    """Of every head, in order of layer and head."""
    band: Band | None
    """None: no kernel head was confirmed, or those that were lose nothing together."""
    columns: Mapping[str, Float[Tensor, "layer head"]]
    """Numbers per head, in the order of `COLUMNS`; NaN where not measured."""
    strongest: tuple[str, ...]
    """The name of each head's strongest control."""
    choosing: Mapping[str, Float[Tensor, "layer head"]]
    """Choosing half: the p-values by name, `p` (the largest of them), `p_adjusted`, `loss`, `loss_p_adjusted`."""
    selected: Mapping[str, Bool[Tensor, "layer head"]]
    """What the choosing half gave reason to measure again, by the reason: votes, moved, matters."""
    agreement: Float[Tensor, "prompt layer head"]
    """Credit of each head's vote, per prompt."""
    loss: Float[Tensor, "prompt layer head"]
    """What each prompt's logit difference loses when the head's label edges are cut; NaN for heads not selected."""
    base: Float[Tensor, " prompt"]
    """The logit difference, uncut."""
    demo_set: Int[Tensor, " prompt"]
    numbers: Int[Tensor, " prompt"]
    """Which of the prompts given are the reporting half."""
    criteria: Criteria
    run: RunInfo
    settings: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What must be said beside the numbers."""

    @property
    def heads(self) -> tuple[HeadRef, ...]:
        """The confirmed kernel heads, the largest effect first."""
        return self.of("kernel head")

    def of(self, name: HeadClass) -> tuple[HeadRef, ...]:
        """The heads of one class, the largest effect first."""
        if name not in HEAD_CLASSES:
            raise ResultError(f"classes are {', '.join(HEAD_CLASSES)}; got {name!r}.")
        loss = self.columns["loss"].nan_to_num()
        return tuple(
            sorted((h for h, c in self.classes.items() if c == name), key=lambda h: (-float(loss[h]), h))
        )

    def table(self) -> pd.DataFrame:
        """One row a head: its class, why if that is not all, and every number of the reporting half (`COLUMNS`).

        Kernel heads first, then the largest effects.
        """
        import pandas as pd

        frame = pd.DataFrame(
            {
                "head": [str(h) for h in self.classes],
                "class": list(self.classes.values()),
                "why": [self.why(head) for head in self.classes],
            }
        )
        for name, values in self.columns.items():
            frame[name] = values.flatten().numpy()
            if name == "control":
                frame["strongest_control"] = self.strongest
        for name, chosen in self.selected.items():
            frame[f"selected_{name}"] = chosen.flatten().numpy()
        frame = frame.assign(_other=frame["class"] != "kernel head", _size=-frame["loss"].abs().fillna(-1))
        frame = frame.sort_values(["_other", "_size", "margin"], ascending=[True, True, False], kind="stable")
        return frame.drop(columns=["_other", "_size"]).reset_index(drop=True)

    def why(self, head: Head) -> str:
        """What kept a head from a clearer class; empty where its class says it all."""
        layer, number = head
        if (name := self.classes[HeadRef(layer, number)]) not in ("undetermined", "neither"):
            return ""
        if not any(bool(chosen[layer, number]) for chosen in self.selected.values()):
            return "the choosing half gave no reason to look"
        if name == "neither":
            return ""
        unknown = {
            "votes": "whether it votes",
            "invariant": "whether its weights follow the inputs",
            "matters": "whether the answer needs it",
        }
        lacking = [words for name, words in unknown.items() if self.columns[name][layer, number].isnan()]
        if not lacking:
            return "its weights move with the labels, and follow neither words nor answers by much"
        return "not sure " + ", ".join(lacking) + ": more prompts would say"

    def to_dataframe(self) -> pd.DataFrame:
        """Long form of the reporting half: prompt (its number among those given), layer, head, class, agreement, and in
        logits `loss` and `base`, the logit difference uncut."""
        import pandas as pd

        prompts, layers, heads = self.agreement.shape
        index = torch.cartesian_prod(*(torch.arange(n) for n in (prompts, layers, heads))).reshape(-1, 3)
        frame = pd.DataFrame(index.numpy(), columns=["prompt", "layer", "head"])
        frame["class"] = list(self.classes.values()) * prompts
        frame["agreement"] = self.agreement.flatten().numpy()
        frame["loss_logits"] = self.loss.flatten().numpy()
        frame["base_logits"] = self.base[index[:, 0]].numpy()
        frame["prompt"] = self.numbers[index[:, 0]].numpy()
        return frame

    def choosing_table(self) -> pd.DataFrame:
        """One row a head: what the choosing half said, every p-value by its name, and what it was selected for."""
        import pandas as pd

        frame = pd.DataFrame({"head": [str(h) for h in self.classes]})
        for name, values in self.choosing.items():
            frame[name] = values.flatten().numpy()
        for name, chosen in self.selected.items():
            frame[f"selected_{name}"] = chosen.flatten().numpy()
        return frame.sort_values("p", kind="stable", ignore_index=True)

    def save(self, path: str | Path) -> Path:
        """Write the whole result; `load` reads it back."""
        tensors: dict[str, Tensor] = {name: getattr(self, name) for name in _TENSORS}
        for group in _GROUPS:
            tensors |= {f"{group}.{name}": tensor for name, tensor in getattr(self, group).items()}
        meta = {
            "classes": list(self.classes.values()),
            "band": None if self.band is None else asdict(self.band),
            "strongest": self.strongest,
            "criteria": asdict(self.criteria),
            "settings": dict(self.settings),
            "notes": self.notes,
            "order": {group: list(getattr(self, group)) for group in _GROUPS},
            "run": self.run.to_json(),
        }
        return store.write(path, "HeadRanking", tensors, meta)

    @classmethod
    def load(cls, path: str | Path) -> HeadRanking:
        """Read what `save` wrote.

        Raises: LoadError: another kind of file, another format version, or a damaged one.
        """
        tensors, meta = store.read(path, "HeadRanking")
        try:
            groups = {g: {name: tensors[f"{g}.{name}"] for name in meta["order"][g]} for g in _GROUPS}
            shape = tuple(tensors["agreement"].shape[1:])
            refs = [HeadRef(layer, head) for layer in range(shape[0]) for head in range(shape[1])]
            if (
                len(meta["classes"]) != len(refs)
                or len(meta["strongest"]) != len(refs)
                or not set(meta["classes"]) <= set(HEAD_CLASSES)
                or set(groups["columns"]) != set(COLUMNS)
                or any(tuple(t.shape) != shape for group in groups.values() for t in group.values())
                or tensors["loss"].shape != tensors["agreement"].shape
                or "loss" not in groups["choosing"]
                or not groups["selected"]
                or not isinstance(meta["settings"], dict)
                or any(len(tensors[n]) != len(tensors["agreement"]) for n in ("base", "demo_set", "numbers"))
            ):
                raise ValueError("classes, columns and prompts are not those of one ranking")
            band = meta["band"]
            if band is not None:
                pairs = {n: (int(band[n][0]), int(band[n][1])) for n in ("first_interval", "last_interval")}
                band = Band(**(band | pairs | {"by_layer": tuple(map(float, band["by_layer"]))}))
            return cls(
                classes=dict(zip(refs, meta["classes"], strict=True)),
                band=band,
                columns=groups["columns"],
                strongest=tuple(meta["strongest"]),
                choosing=groups["choosing"],
                selected={name: chosen.bool() for name, chosen in groups["selected"].items()},
                **{name: tensors[name] for name in _TENSORS},
                criteria=Criteria(**meta["criteria"]),
                run=RunInfo.from_json(meta["run"]),
                settings=meta["settings"],
                notes=tuple(meta["notes"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, ResultError) as error:
            raise store.missing_field(path, "HeadRanking", error) from error

    def figure(self) -> Figure:
        """Fidelity against causal effect, one point a head, coloured by class; beside it the effect over the layers."""
        from icl_kernel_lens.plots.ranking import ranking_figure

        return ranking_figure(self)

    def __repr__(self) -> str:
        return self.describe(8)

    def describe(self, top: int) -> str:
        """The located heads, the band, how many heads are of each class, and what must be said beside them."""
        prompts, layers, heads = self.agreement.shape
        sets = len(self.demo_set.unique())
        count = Counter(self.classes.values())
        lines = [
            f"HeadRanking({self.run.model} on {self.run.prompts.task}: {layers} layers × {heads} heads; chosen on "
            f"{self.settings.get('choosing', '?')}, reported on {prompts} prompts in {sets} demonstration sets)",
            "  kernel heads: " + (", ".join(map(str, self.heads)) or "none"),
            *([f"  band: {self.band}"] if self.band else []),
            "  " + ", ".join(f"{count[name]} {name}" for name in HEAD_CLASSES if count[name]),
        ]
        shown = self.table()
        measured = shown["class"].ne("neither") | shown["loss"].notna()
        names = ["head", "class", "agreement", "control", "margin_low", "margin_high", "moved", "carried"]
        names += ["loss", "loss_low", "loss_high"]
        lines += [f"  {note}" for note in self.notes]
        if len(rows := shown[measured].head(top)[names]):
            lines.append(rows.to_string(index=False, float_format=lambda x: f"{x:.3f}", na_rep="–"))
        lines += [f"  {head}: {self.why(head)}" for head in self.of("undetermined")[:top]]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>{self.figure()._repr_html_()}"


COLUMNS: Mapping[str, str] = {
    "agreement": "how often the head's vote is the model's answer",
    "agreement_low": "lower end of Wilson's interval, on the effective number of prompts",
    "agreement_high": "its upper end",
    "control": "the same of its strongest control",
    "margin": "agreement minus control",
    "margin_low": "the lowest of the intervals' lower ends, one against each control",
    "margin_high": "the lowest of their upper ends",
    "p": "p of agreement by chance: the largest of the tests in `locate.nulls`; NaN for heads not tested again",
    "p_adjusted": "Benjamini–Hochberg, over the heads selected for their votes or effects",
    "moved": "total variation of the weights when labels are permuted",
    "moved_low": "lower end of its interval",
    "moved_high": "upper end",
    "carried": "`moved`, had each weight gone where its label word went",
    "within": "`moved`, of weights shuffled within classes",
    "words": "share of the weights that gathers on some label word",
    "words_low": "lower end of its interval",
    "preferred": "share of the weights that goes to the word preferred in other prompts",
    "preferred_low": "lower end of its interval",
    "echo": "share of the weights that follows the answer",
    "echo_low": "lower end of its interval",
    "label_mass": "attention on label positions",
    "loss": "what cutting its label edges costs, as a share of the logit difference",
    "loss_low": "lower end of its interval",
    "loss_high": "upper end",
    "loss_p_adjusted": "p of a loss no larger than `Criteria.effect`, Benjamini–Hochberg over the selected heads",
    "equal_mass_loss": "what cutting other edges of the same head and as much attention costs",
    "equal_mass_covers": "share of the logit difference in prompts where such edges could be cut",
    "beyond_equal_mass_low": "lower end of the interval of the difference between the two losses; NaN: too few such prompts",
    "votes": "1 yes, 0 no, NaN undetermined",
    "invariant": "1: its weights follow the inputs; 0 no, NaN undetermined",
    "matters": "1 yes, −1 yes but against the answer, 0 no, NaN undetermined or not measured",
}
"""What each column of a ranking is."""
_TENSORS = ("agreement", "loss", "base", "demo_set", "numbers")
_GROUPS = ("columns", "choosing", "selected")
