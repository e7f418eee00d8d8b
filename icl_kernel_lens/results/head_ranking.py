"""Where the kernel-regression heads are: every head's class, chosen on one half of the prompts and measured on the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

import pandas as pd
from jaxtyping import Bool, Float, Int
from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.axes import Head, HeadRef
from icl_kernel_lens.charts.figure import Figure
from icl_kernel_lens.charts.ranking import ranking_figure
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.fields import unit
from icl_kernel_lens.numbers.correlation import spearman
from icl_kernel_lens.numbers.intervals import RATE, sets_for
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.results.base import Result, broken, head_table, long_form
from icl_kernel_lens.results.criteria import CLASS_MEANS, HEAD_CLASSES, Band, Criteria, HeadClass
from icl_kernel_lens.results.run_info import RunInfo
from icl_kernel_lens.results.task_accuracy import TaskAccuracy

By = Literal["margin", "logit_diff_drop"]
"""What heads are ranked by: agreement above the strongest control (reporting half), or the logit difference that cutting
their label edges costs (choosing half, where every head's is measured)."""

COLUMNS: Mapping[str, str] = {
    "agreement": "how often the head's vote is the model's answer",
    "agreement_low": "lower end of Clopper–Pearson's interval, on the prompts that the sets are worth",
    "agreement_high": "its upper end",
    "control": "the same of its strongest control",
    "margin": "agreement minus control",
    "margin_low": "the lowest of the intervals' lower ends, one against each control",
    "margin_high": "the lowest of their upper ends",
    "p": "p of agreement by chance: the largest of the tests in `numbers.permutations`; NaN for heads not tested again",
    "p_adjusted": "Benjamini–Hochberg, over the heads selected for their votes or effects",
    "label_shift": "total variation of the weights when labels are permuted",
    "label_shift_low": "lower end of its interval",
    "label_shift_high": "upper end",
    "word_bound_shift": "`label_shift`, had each weight gone where its label word went",
    "within_class_shift": "`label_shift`, of weights shuffled within classes",
    "words": "share of the weights that gathers on some label word",
    "words_low": "lower end of its interval",
    "preferred": "share of the weights that goes to the word preferred in other prompts",
    "preferred_low": "lower end of its interval",
    "echo": "share of the weights that follows the answer",
    "echo_low": "lower end of its interval",
    "label_attention": "attention on label positions",
    "logit_diff_drop": "how far the logit difference drops without its label edges, as a share of it",
    "logit_diff_drop_low": "lower end of its interval",
    "logit_diff_drop_high": "upper end",
    "logit_diff_drop_p_adjusted": "p of a drop no larger than `Criteria.effect`, Benjamini–Hochberg over the selected heads",
    "equal_mass_drop": "the drop without other edges of the same head and as much attention",
    "equal_mass_covers": "share of the logit difference in prompts where such edges could be cut",
    "beyond_equal_mass_low": "lower end of the interval of the difference between the two drops; NaN: too few such prompts",
    "votes": "1 yes, 0 no, NaN undetermined",
    "invariant": "1: its weights follow the inputs; 0 no, NaN undetermined",
    "matters": "1 yes, −1 yes but against the answer, 0 no, NaN undetermined or not measured",
}
"""What each column of a ranking is."""
SELECTED = ("votes", "label_shift", "matters")
"""Why a head was measured again."""
DESCRIBED = [
    "head",
    "class",
    "agreement",
    "control",
    "margin_low",
    "margin_high",
    "label_shift",
    "word_bound_shift",
    "logit_diff_drop",
    "logit_diff_drop_low",
    "logit_diff_drop_high",
]
"""What a ranking's description shows of its table."""
CHOOSING = ("p", "p_adjusted", "logit_diff_drop", "logit_diff_drop_p_adjusted")
"""Of the choosing half, beside the tests: the largest p-value, adjusted; the drop as a share, and its p-value."""
UNSURE = {
    "votes": (Reason.VOTES_UNSURE, "margin", "margin"),
    "invariant": (Reason.INPUTS_UNSURE, "label_shift", "least_label_shift"),
    "matters": (Reason.MATTERS_UNSURE, "logit_diff_drop", "effect"),
}
"""The three questions: what is said where the answer is NaN, the number it hangs on, and the smallest of interest."""


class HeadClasses(dict[HeadRef, HeadClass]):
    """Every head's class; a head is looked up as a pair or by its name, `classes["L2H1"]`."""

    def __missing__(self, head: Head | str) -> HeadClass:
        if (found := self.get(HeadRef.of(head))) is None:
            raise ResultError(
                f"these heads run from {min(self)} to {max(self)}; there is no {HeadRef.of(head)}.",
                code="head-outside",
            )
        return found


@dataclass(frozen=True)
class Comparison:
    """What two rankings have in common."""

    both: tuple[HeadRef, ...]
    """Kernel heads of both."""
    only_first: tuple[HeadRef, ...]
    only_second: tuple[HeadRef, ...]
    correlation: Mapping[By, float]
    """Spearman's rank correlation over all heads; NaN where the models have not the same layers and heads, or all heads
    are tied."""
    same_shape: bool
    bands: tuple[Band | None, Band | None]

    @property
    def either(self) -> int:
        """How many heads are kernel heads in one ranking or both."""
        return len(self.both) + len(self.only_first) + len(self.only_second)

    @property
    def overlap(self) -> float:
        """Kernel heads of both over those of either (Jaccard); NaN where neither has any, or the shapes differ."""
        return len(self.both) / self.either if self.either and self.same_shape else float("nan")

    @property
    def depth_overlap(self) -> float:
        """Of the depth that either band covers, the share that both do; NaN where a band is missing.

        A layer covers 1/layers of the depth, so that bands of models of different shape can be compared.
        """
        first, second = self.bands
        if first is None or second is None:
            return float("nan")
        (a, b), (c, d) = (
            (band.first / band.layers, (band.last + 1) / band.layers) for band in (first, second)
        )
        shared = max(0.0, min(b, d) - max(a, c))
        return shared / (b - a + d - c - shared)

    def __str__(self) -> str:
        named = {"both": self.both, "first only": self.only_first, "second only": self.only_second}
        heads = "; ".join(f"{name}: {' '.join(map(str, h)) or 'none'}" for name, h in named.items())
        if not self.same_shape:
            return (
                "heads of models of different shape do not correspond; bands, in relative depth: "
                + " and ".join("none" if b is None else b.depth_words for b in self.bands)
                + f", overlap {self.depth_overlap:.2f}"
            )
        by = ", ".join(f"{name} {value:.2f}" for name, value in self.correlation.items())
        return f"kernel heads of {heads}; rank correlation by {by}"


@dataclass(frozen=True, eq=False, repr=False)
class HeadRanking(Result):
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
    """Choosing half: the p-values by name, and `CHOOSING`."""
    selected: Mapping[str, Bool[Tensor, "layer head"]]
    """What the choosing half gave reason to measure again, by the reason: `SELECTED`."""
    agreement: Float[Tensor, "prompt layer head"] = field(metadata=unit(RATE))
    """Credit of each head's vote, per prompt."""
    logit_diff_drop: Float[Tensor, "prompt layer head"] = field(metadata=unit("logits"))
    """How far each prompt's logit difference drops when the head's label edges are cut; NaN for heads not selected."""
    base: Float[Tensor, " prompt"] = field(metadata=unit("logits"))
    """The logit difference, uncut."""
    demo_set: Int[Tensor, " prompt"]
    numbers: Int[Tensor, " prompt"]
    """Which of the prompts given are the reporting half."""
    criteria: Criteria
    accuracy: TaskAccuracy
    """Whether there is anything to explain, on all prompts given, both halves: what is said first."""
    run: RunInfo
    offsets: tuple[int, ...] = (0,)
    """Which tokens' edges count as a label's, by their distance from it; 0 the label itself."""
    settings: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What must be said beside the numbers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "classes", HeadClasses(self.classes))

    def _problems(self) -> Iterator[str]:
        layers, heads = self.agreement.shape[1:]
        every = [HeadRef(layer, head) for layer in range(layers) for head in range(heads)]
        return broken(
            {
                f"classes must be of all {layers} × {heads} heads, in order; they are of {len(self.classes)}": (
                    list(self.classes) == every
                ),
                f"every head has a strongest control; there are {len(every)} heads and {len(self.strongest)}": (
                    len(self.strongest) == len(every)
                ),
                f"columns must be those of COLUMNS, in order; they are {list(self.columns)}": (
                    list(self.columns) == list(COLUMNS)
                ),
                f"choosing holds p-values by their tests' names, and {', '.join(CHOOSING)}; it is {list(self.choosing)}": (
                    set(CHOOSING) <= set(self.choosing)
                    and not any(name == "head" or "selected" in name for name in self.choosing)
                ),
                f"selected must be {', '.join(SELECTED)}; it is {', '.join(self.selected)}": (
                    set(self.selected) == set(SELECTED)
                ),
                f"the band is of {self.band and self.band.layers} layers, and there are {layers}": (
                    self.band is None or self.band.layers == layers
                ),
                f"offsets must be some, each once and in ascending order; they are {self.offsets}": (
                    self.offsets != () and self.offsets == tuple(sorted(set(self.offsets)))
                ),
                "numbers must tell the prompts apart": (
                    bool((self.numbers >= 0).all()) and len(self.numbers.unique()) == len(self.numbers)
                ),
            }
        )

    @property
    def heads(self) -> tuple[HeadRef, ...]:
        """The confirmed kernel heads, the largest effect first."""
        return self.of("kernel head")

    def of(self, name: HeadClass) -> tuple[HeadRef, ...]:
        """The heads of one class, the largest effect first, as in `table()`."""
        if name not in HEAD_CLASSES:
            raise ResultError(f"classes are {', '.join(HEAD_CLASSES)}; got {name!r}.", code="unknown-choice")
        table = self.table()
        return tuple(HeadRef.of(head) for head in table.loc[table["class"] == name, "head"])

    def table(self) -> pd.DataFrame:
        """One row a head: its class, why if that is not all, and every number of the reporting half (`COLUMNS`).

        Kernel heads first, then the largest effects.
        """
        about = {
            "class": list(self.classes.values()),
            "why": ["; ".join(map(str, self.reasons(head))) for head in self.classes],
        }
        frame = head_table({**about, **self.columns, **self._selected()})
        frame.insert(list(frame).index("control") + 1, "strongest_control", self.strongest)
        order = pd.DataFrame(
            {
                "kernel": frame["class"] == "kernel head",
                "size": frame["logit_diff_drop"].abs().fillna(-1),
                "margin": frame["margin"],
            }
        ).sort_values(["kernel", "size", "margin"], ascending=False, kind="stable")
        return frame.loc[order.index].reset_index(drop=True)

    def notable(self) -> pd.DataFrame:
        """The rows of `table()` of the heads that are more than neither, or that were cut in the reporting half."""
        table = self.table()
        return table.loc[table["class"].ne("neither") | table["logit_diff_drop"].notna()]

    def reasons(self, head: Head | str) -> tuple[Reason, ...]:
        """What kept a head from a clearer class; none where its class says it all."""
        at = HeadRef.of(head)
        if (name := self.classes[at]) not in ("undetermined", "neither"):
            return ()
        if not any(chosen[at] for chosen in self.selected.values()):
            return (Reason.NOT_SINGLED_OUT,)
        if name == "neither":
            return ()
        unknown = tuple(why for column, (why, *_) in UNSURE.items() if self.columns[column][at].isnan())
        return unknown or (Reason.SHIFT_UNEXPLAINED,)

    def why(self, head: Head | str) -> str:
        """A head's class, what it means or what kept the head from a clearer one, and what was measured, in words.

        Of what an interval leaves open it says how many sets would narrow it to the smallest effect of interest.
        """
        at = HeadRef.of(head)
        name = self.classes[at]
        article = {"neither": "", "undetermined": "", "echo": "an "}.get(name, "a ")
        wanted = {why: self._wanted(at, *of) for why, *of in UNSURE.values()}
        means = "; ".join(f"{why}{wanted.get(why, '')}" for why in self.reasons(at)) or CLASS_MEANS[name]
        measured = ("agreement", "control", "label_shift", "word_bound_shift", "logit_diff_drop")
        known = {of: float(self.columns[of][at]) for of in measured}
        numbers = ", ".join(f"{of.replace('_', ' ')} {x:.3f}" for of, x in known.items() if x == x)
        return f"{at} is {article}{name}: {means}" + (f" ({numbers})" if numbers else "")

    def _wanted(self, head: HeadRef, column: str, criterion: str) -> str:
        low, high = (float(self.columns[f"{column}_{end}"][head]) for end in ("low", "high"))
        within, reach = getattr(self.criteria, criterion), (high - low) / 2
        if not reach > within:
            return ""
        sets = sets_for(reach, len(self.demo_set.unique()), within, self.criteria.level)
        return f" (about {sets} sets a half for ± {within:g})"

    def to_dataframe(self) -> pd.DataFrame:
        """Long form of the reporting half: prompt (its number among those given), layer, head, class, agreement, and in
        logits the drop of the logit difference, and `base`, the logit difference uncut."""
        frame = long_form(
            ("prompt", "layer", "head"),
            {
                "agreement": self.agreement,
                "logit_diff_drop": self.logit_diff_drop,
                "base": self.base[:, None, None],
            },
            coords=self.coords(),
        )
        frame.insert(3, "class", list(self.classes.values()) * len(self.agreement))
        return frame

    def coords(self) -> Mapping[str, list[int]]:
        """The numbers of the prompts among those given."""
        return {"prompt": self.numbers.tolist()}

    @checked
    def compare(self, other: HeadRanking) -> Comparison:
        """What this and another ranking share: of one model on other prompts, of another checkpoint, or of another model.

        Heads are matched by layer and number, which means something within one model and its checkpoints; models of
        different shape are compared by their bands' relative depth alone. Equal shapes of different models are matched
        all the same, and agree no better than by chance.
        """
        same = self.agreement.shape[1:] == other.agreement.shape[1:]
        a, b = set(self.heads), set(other.heads)
        ranked: dict[By, list[Tensor]] = {
            "margin": [r.columns["margin"] for r in (self, other)],
            "logit_diff_drop": [r.choosing["logit_diff_drop"] for r in (self, other)],
        }
        return Comparison(
            both=tuple(sorted(a & b)) if same else (),
            only_first=tuple(sorted(a - b if same else a)),
            only_second=tuple(sorted(b - a if same else b)),
            correlation={by: spearman(x, y) if same else float("nan") for by, (x, y) in ranked.items()},
            same_shape=same,
            bands=(self.band, other.band),
        )

    def choosing_table(self) -> pd.DataFrame:
        """One row a head: what the choosing half said, every p-value by its name, and what it was selected for."""
        return head_table({**self.choosing, **self._selected()}).sort_values(
            "p", kind="stable", ignore_index=True
        )

    def _selected(self) -> dict[str, Tensor]:
        return {f"selected_{name}": chosen for name, chosen in self.selected.items()}

    def figure(self) -> Figure:
        """Fidelity against causal effect, one point a head, coloured by class; beside it the effect over the layers."""
        band, criteria = self.band, self.criteria
        return ranking_figure(
            self.table().to_dict("records"),
            of=self.run.about,
            prompts=len(self.agreement),
            margin=criteria.margin,
            effect=criteria.effect,
            level=criteria.level,
            band=band and asdict(band) | {"where": band.where, "depth": band.depth_words},
        )

    def __repr__(self) -> str:
        return f"{self.accuracy.opening()}\n{self.describe(8)}"

    def describe(self, top: int) -> str:
        """The located heads, the band, how many heads are of each class, and what must be said beside them."""
        prompts, layers, heads = self.agreement.shape
        count = Counter(self.classes.values())
        lines = [
            f"HeadRanking({self.run.about}: {layers} layers × {heads} heads; chosen on "
            f"{self.settings.get('choosing', '?')}, reported on {prompts} prompts in {len(self.demo_set.unique())} "
            "demonstration sets)",
            "  kernel heads: " + (", ".join(map(str, self.heads)) or "none"),
            *([f"  band: {self.band}"] if self.band else []),
            "  " + ", ".join(f"{count[name]} {name}" for name in HEAD_CLASSES if count[name]),
        ]
        lines += [f"  {note}" for note in self.notes]
        if len(rows := self.notable().head(top)[DESCRIBED]):
            lines.append(rows.to_string(index=False, float_format=lambda x: f"{x:.3f}", na_rep="–"))
        lines += [f"  {self.why(head)}" for head in rows["head"] if self.reasons(head)]
        return "\n".join(lines)
