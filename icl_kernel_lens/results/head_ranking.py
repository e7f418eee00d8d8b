"""Which heads carry the model's own kernel: every head's class, chosen on one half of the prompts and measured on the other."""

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
from icl_kernel_lens.charts.head_map import head_map_figure
from icl_kernel_lens.charts.ranking import ranking_figure
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.fields import unit
from icl_kernel_lens.numbers.correlation import spearman
from icl_kernel_lens.numbers.intervals import RATE, sets_for
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.results.base import Result, broken, head_table, long_form
from icl_kernel_lens.results.criteria import (
    CLASS_MEANS,
    HEAD_CLASSES,
    KERNEL_CLASSES,
    Band,
    Criteria,
    HeadClass,
)
from icl_kernel_lens.results.joint_effects import JointEffect, interactions, shapley
from icl_kernel_lens.results.label_influence import LabelInfluence
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
    "fit": "correlation of the weights' pair part with that of the model's own kernel (condition 1)",
    "fit_low": "lower end of its interval",
    "fit_high": "upper end",
    "fit_p": "probability that the best of the heads measured fits as well with test inputs exchanged within sets",
    "within_labels": "how much of its fit lies among demonstrations of one label, against the model's own kernel: 0 for an echo",
    "within_labels_low": "lower end of its interval",
    "within_labels_high": "upper end",
    "other_order": "the fit to the kernel under another order of the same demonstrations",
    "other_order_low": "lower end of its interval",
    "other_order_high": "upper end",
    "swap_slope": "−1: weights go with inputs that are swapped; +1: they stay with the place (condition 2)",
    "swap_slope_low": "lower end of its interval",
    "swap_slope_high": "upper end",
    "behind_slope": "the same of the demonstrations behind those swapped: −1 where weights go with the input before",
    "behind_slope_low": "lower end of its interval",
    "behind_slope_high": "upper end",
    "input_shift": "total variation of the weights between test inputs of a set (condition 3)",
    "input_shift_low": "lower end of its interval",
    "input_shift_high": "upper end",
    "ranking_fit": "the fit of what of its weights is no sharpening of one ranking of the demonstrations (condition 3)",
    "ranking_fit_low": "lower end of its interval",
    "ranking_fit_high": "upper end",
    "place_shift": "total variation from what the weights are at each place on average",
    "place_shift_low": "lower end of its interval",
    "place_shift_high": "upper end",
    "uneven": "total variation from equal weights",
    "uneven_low": "lower end of its interval",
    "uneven_high": "upper end",
    "transport": "share of the label part that is gone with its values averaged over relabellings (condition 4)",
    "transport_low": "lower end of its interval",
    "transport_high": "upper end",
    "kernel_share": "share of the model's own kernel, its pair part, that its values carry (condition 4); NaN: it need not be known",
    "kernel_share_low": "lower end of its interval",
    "kernel_share_high": "upper end",
    "direct_share": "the part of it that its values write to the logits themselves, with everything above frozen (condition 4)",
    "direct_share_low": "lower end of its interval",
    "direct_share_high": "upper end",
    "others": "what its label edges bring of other demonstrations' labels, over that and what they bring of their own (condition 4)",
    "others_low": "lower end of its interval",
    "others_high": "upper end",
    "gained": "what of the kernel in its values the new label gains, directly if that is known: half, where they carry any label (condition 4)",
    "gained_low": "lower end of its interval",
    "gained_high": "upper end",
    "company": "how far shares of demonstrations in it shift when half of the demonstrations, not these, are changed; 0 to 1 (condition 4)",
    "company_low": "lower end of its interval",
    "company_high": "upper end",
    "zeroed": "share of the label part that is gone without its label edges, not renormalised (condition 5)",
    "zeroed_low": "lower end of its interval",
    "zeroed_high": "upper end",
    "renormalised": "the same, renormalised",
    "renormalised_low": "lower end of its interval",
    "renormalised_high": "upper end",
    "mean_replaced": "the same, every edge bringing the mean of all",
    "mean_replaced_low": "lower end of its interval",
    "mean_replaced_high": "upper end",
    "lead_zeroed": "share of the answer's lead that is gone without its label edges, not renormalised",
    "lead_zeroed_low": "lower end of its interval",
    "lead_zeroed_high": "upper end",
    "lead_renormalised": "the same, renormalised",
    "lead_renormalised_low": "lower end of its interval",
    "lead_renormalised_high": "upper end",
    "fit_cut_below": "the fit with the label edges of all earlier layers cut (condition 6)",
    "fit_cut_below_low": "lower end of its interval",
    "fit_cut_below_high": "upper end",
    "beyond_half_fit": "that fit minus half of the uncut one",
    "beyond_half_fit_low": "lower end of its interval",
    "beyond_half_fit_high": "upper end",
    "fits": "condition 1: 1 holds, 0 does not, NaN undetermined or not measured",
    "with_input": "condition 2",
    "looks": "condition 3",
    "ranks": "condition 3: another test input does not only sharpen its weights",
    "transports": "condition 4; −1: against the label part",
    "carries_kernel": "condition 4: what it carries is part of the kernel",
    "own": "condition 4: each label edge brings its own demonstration's label",
    "gives": "condition 4: and gives to the new label what it takes from the old one",
    "alone": "condition 4: more of it stays than goes when other demonstrations are changed",
    "needed": "condition 5; −1: against the label part",
    "no_echo": "condition 6",
    "votes": "1 yes, 0 no, NaN undetermined",
    "invariant": "1: its weights follow the inputs; 0 no, NaN undetermined",
    "matters": "1 yes, −1 yes but against the answer, 0 no, NaN undetermined or not measured",
}
"""What each column of a ranking is."""
IDENTIFYING = tuple(COLUMNS)[tuple(COLUMNS).index("fit") : tuple(COLUMNS).index("votes")]
"""Those of them that hold a head against the model's own kernel; NaN for heads that were not so measured."""
CONDITIONS = (
    *("fits", "with_input", "looks", "ranks", "transports", "carries_kernel", "own", "gives", "alone"),
    *("needed", "no_echo"),
)
"""The answers to the six that all hold of a kernel head (the third has two, the fourth five); of a pair kernel `with_input`
need not."""
SELECTED = ("votes", "label_shift", "matters", "fit", "carries")
"""Why a head was measured again."""
MEASURED_AGAIN = ("votes", "matters", "fit", "carries")
"""Those of them for which it is cut again, and held against the model's own kernel."""
DESCRIBED = [
    *(
        "head",
        "class",
        "fit",
        "fit_low",
        "other_order",
        "swap_slope",
        "input_shift",
        "transport",
        "transport_low",
    ),
    *(
        "transport_high",
        "kernel_share",
        "zeroed",
        "fit_cut_below",
        "label_shift",
        "logit_diff_drop",
        "agreement",
        "control",
    ),
]
"""What a ranking's description shows of its table."""
CHOOSING = (
    *("p", "p_adjusted", "logit_diff_drop", "logit_diff_drop_p_adjusted", "fit", "fit_p"),
    *("label_part", "label_part_p_adjusted"),
)
"""Of the choosing half, beside the tests: the largest p-value, adjusted; the drop as a share, and its p-value; the fit to the
model's own kernel, and the probability that the best of all heads fits so well by chance; what of the label part goes with the
head's label edges, and its p-value."""
UNSURE: Mapping[str, tuple[Reason, str, str]] = {
    "fits": (Reason.FIT_UNSURE, "fit", "fit"),
    "with_input": (Reason.SWAP_UNSURE, "swap_slope", "slope"),
    "looks": (Reason.LOOKS_UNSURE, "input_shift", "shift"),
    "ranks": (Reason.RANKS_UNSURE, "ranking_fit", "fit"),
    "transports": (Reason.TRANSPORT_UNSURE, "transport", "effect"),
    "carries_kernel": (Reason.KERNEL_SHARE_UNSURE, "kernel_share", "effect"),
    "own": (Reason.OWN_UNSURE, "others", "effect"),
    "gives": (Reason.GIVES_UNSURE, "gained", "effect"),
    "alone": (Reason.COMPANY_UNSURE, "company", "effect"),
    "needed": (Reason.CUTS_UNSURE, "zeroed", "effect"),
    "no_echo": (Reason.ECHO_UNSURE, "beyond_half_fit", "fit"),
    "invariant": (Reason.INPUTS_UNSURE, "label_shift", "least_label_shift"),
}
"""What a class hangs on: what is said where the answer is NaN, the number it goes by, and the smallest of interest."""


OF_VALUES = (
    Reason.KERNEL_SHARE_UNSURE,
    Reason.OWN_UNSURE,
    Reason.GIVES_UNSURE,
    Reason.COMPANY_UNSURE,
)
"""Those of what values carry, which need not be known."""


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
    """Every head's class by the conditions that it passes, and what the located heads carry together.

    All numbers are of the reporting half but those under `choosing`; `accuracy` and `influence` are of both halves.
    """

    classes: Mapping[HeadRef, HeadClass]
    """Of every head, in order of layer and head."""
    band: Band | None
    """None: no head was located, or the logit difference loses nothing with those that were."""
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
    influence: LabelInfluence
    """The model's own kernel, on some of the prompts, or on prompts crossed from them."""
    slope_of_model: float
    """Of swapped inputs, of the model's own kernel: what `swap_slope` is held against; NaN: not measured."""
    joint: tuple[JointEffect, ...] = ()
    """What the located heads carry, each and together."""
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
        """The located heads, kernel heads and pair kernels, the largest part of the labels first."""
        return self.of("kernel head") + self.of("pair kernel")

    def of(self, name: HeadClass) -> tuple[HeadRef, ...]:
        """The heads of one class, in the order of `table()`."""
        if name not in HEAD_CLASSES:
            raise ResultError(f"classes are {', '.join(HEAD_CLASSES)}; got {name!r}.", code="unknown-choice")
        table = self.table()
        return tuple(HeadRef.of(head) for head in table.loc[table["class"] == name, "head"])

    def table(self) -> pd.DataFrame:
        """One row a head: its class, why if that is not all, and every number of the reporting half (`COLUMNS`).

        Kernel heads and pair kernels first, then those that carry most of the label part, then the largest effects.
        """
        about = {
            "class": list(self.classes.values()),
            "why": ["; ".join(map(str, self.reasons(head))) for head in self.classes],
        }
        frame = head_table({**about, **self.columns, **self._selected()})
        frame.insert(list(frame).index("control") + 1, "strongest_control", self.strongest)
        order = pd.DataFrame(
            {
                "kernel": frame["class"].isin(KERNEL_CLASSES),
                "part": frame["transport"].abs().fillna(-1),
                "size": frame["logit_diff_drop"].abs().fillna(-1),
                "margin": frame["margin"],
            }
        ).sort_values(["kernel", "part", "size", "margin"], ascending=False, kind="stable")
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
        # Of a head that was looked at, weights are known even where shares of the label part are undefined.
        if self.columns["transport"][at].isnan() and self.columns["uneven"][at].isnan():
            return (Reason.NOT_AMONG_MOST,)
        asked = UNSURE if self.influence.has_kernel_part else ("transports",)
        unknown = [UNSURE[column][0] for column in asked if self.columns[column][at].isnan()]
        # What was not measured, or is not believed, is not for want of prompts.
        instead = {}
        if self.columns["swap_slope"][at].isnan():
            instead[Reason.SWAP_UNSURE] = Reason.SWAP_UNMEASURED
        if self.columns["beyond_half_fit_low"][at] > 0:
            twice = self.influence.prompts.repeat_labels
            instead[Reason.ECHO_UNSURE] = Reason.READ_ELSEWHERE if twice else Reason.LABELS_ONCE
        if self.columns["transport_low"][at] > self.criteria.effect:
            instead[Reason.TRANSPORT_UNSURE] = Reason.MORE_THAN_ALL
        # It is measured of heads that pass the others or may.
        if self.columns["kernel_share"][at].isnan():
            unknown = [why for why in unknown if why not in OF_VALUES]
        return tuple(instead.get(why, why) for why in unknown) or (Reason.NO_CLASS_FITS,)

    def why(self, head: Head | str) -> str:
        """A head's class, what it means or what kept the head from a clearer one, and what was measured, in words.

        Of what an interval leaves open it says how many sets would narrow it to the smallest effect of interest.
        """
        at = HeadRef.of(head)
        name = self.classes[at]
        article = {"neither": "", "undetermined": "", "echo": "an "}.get(name, "a ")
        wanted = {why: self._wanted(at, *of) for why, *of in UNSURE.values()}
        means = "; ".join(f"{why}{wanted.get(why, '')}" for why in self.reasons(at)) or CLASS_MEANS[name]
        measured = (
            "fit",
            "swap_slope",
            "input_shift",
            "transport",
            "kernel_share",
            "zeroed",
            "label_shift",
            "logit_diff_drop",
        )
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

    def joint_table(self) -> pd.DataFrame:
        """One row a set of located heads: the share of the label part that is gone with what they carry, with its interval.

        `shapley`: a single head's mean part over all orders of taking heads out; `interaction`: of two, what both carry beyond
        the sum of each; NaN where not every subset was measured.
        """
        parts, pairs = shapley(self.joint), interactions(self.joint)
        nan = float("nan")
        return pd.DataFrame(
            [
                {
                    "heads": " ".join(map(str, one.heads)),
                    "share": one.value,
                    "low": one.low,
                    "high": one.high,
                    "shapley": parts.get(one.heads[0], nan) if len(one.heads) == 1 else nan,
                    "interaction": pairs.get(one.heads, nan) if len(one.heads) == 2 else nan,  # pyright: ignore[reportArgumentType]
                }
                for one in self.joint
            ],
            columns=["heads", "share", "low", "high", "shapley", "interaction"],
        )

    def together(self) -> str:
        """What the located heads carry of the label part, all and each."""
        whole = max(self.joint, key=lambda one: len(one.heads))
        each = ", ".join(f"{one.heads[0]} {one.value:.2f}" for one in self.joint if len(one.heads) == 1)
        return f"together they carry {whole.value:.2f} [{whole.low:.2f}, {whole.high:.2f}] of the label part (alone: {each})"

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
        """Fit to the model's own kernel against what its values carry of the label part, one point a head, coloured by class;
        beside it the effect over the layers."""
        band, criteria, fits = self.band, self.criteria, self.choosing["fit"]
        table = self.table()
        table["choosing_fit"] = [float(fits[HeadRef.of(head)]) for head in table["head"]]
        return ranking_figure(
            table.to_dict("records"),
            of=self.run.about,
            prompts=len(self.agreement),
            fit=criteria.fit,
            effect=criteria.effect,
            level=criteria.level,
            band=band and asdict(band) | {"where": band.where, "depth": band.depth_words},
        )

    def fit_map(self) -> Figure:
        """The layer × head map of the fit to the model's own kernel in the choosing half, which says so of every head.

        Where no kernel part was found, the largest fits are the best of many to what no head is a kernel of.
        """
        rows = head_table({"fit": self.choosing["fit"], "fit_p": self.choosing["fit_p"]})
        rows = rows.sort_values("fit", ascending=False, kind="stable", na_position="last")
        return head_map_figure(
            rows.to_dict("records"),
            score="fit",
            title="fit to the model's own kernel",
            of=self.run.about,
            measured=f"correlation with what belongs to the pair of test input and demonstration; {self.settings.get('choosing', 'choosing half')}",
        )

    def __repr__(self) -> str:
        return f"{self.accuracy.opening()}\n{self.describe(8)}"

    def verdict(self) -> str:
        """One sentence: what the model's own kernel is, and which heads carry it."""
        if not self.influence.has_kernel_part:
            readers = len(self.of("reads labels"))
            heads = f"Of the heads it is said only whether they read labels: {readers} do"
        else:
            names = ", ".join(map(str, self.heads))
            heads = f"It is carried by {names}" if names else "No head is sure to carry it"
        return f"{self.influence.verdict()} {heads}."

    def describe(self, top: int) -> str:
        """The located heads, the band, how many heads are of each class, and what must be said beside them."""
        prompts, layers, heads = self.agreement.shape
        count = Counter(self.classes.values())
        lines = [
            f"HeadRanking({self.run.about}: {layers} layers × {heads} heads; chosen on "
            f"{self.settings.get('choosing', '?')}, reported on {prompts} prompts in {len(self.demo_set.unique())} "
            "demonstration sets)",
            f"  {self.verdict()}",
            "  kernel heads: " + (", ".join(map(str, self.of("kernel head"))) or "none"),
            *([f"  pair kernels: {', '.join(map(str, pairs))}"] if (pairs := self.of("pair kernel")) else []),
            *([f"  {self.together()}"] if self.joint else []),
            *([f"  band: {self.band}"] if self.band else []),
            "  " + ", ".join(f"{count[name]} {name}" for name in HEAD_CLASSES if count[name]),
        ]
        lines += [f"  {note}" for note in self.notes]
        if len(rows := self.notable().head(top)[DESCRIBED]):
            lines.append(rows.to_string(index=False, float_format=lambda x: f"{x:.3f}", na_rep="–"))
        lines += [f"  {self.why(head)}" for head in rows["head"] if self.reasons(head)]
        return "\n".join(lines)
