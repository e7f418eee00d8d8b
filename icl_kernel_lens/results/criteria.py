"""The rules of locating heads: the classes, the smallest effects of interest, and the band of layers; without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from icl_kernel_lens.arguments import check_fields
from icl_kernel_lens.errors import ResultError

HeadClass = Literal[
    "kernel head",
    "pair kernel",
    "cancelling",
    "shadow",
    "echo",
    "salience",
    "addressing",
    "misbound",
    "recency",
    "label-blind",
    "sink",
    "word preference",
    "driver",
    "reads labels",
    "neither",
    "undetermined",
]
"""What a head is, by the intervals of its conditions (`locate_heads`); the rules: `locate/classes.py`."""
CLASS_MEANS: Mapping[HeadClass, str] = {
    "kernel head": "its weights follow the model's own kernel and go with the inputs, and its values carry labels to the answer",
    "pair kernel": "as a kernel head, but its weights go with more than the input: with the label beside it, or with its place",
    "cancelling": "one of two kernels that carry opposite parts, and next to nothing together",
    "shadow": "its weights follow the model's own kernel, and it carries no labels to the answer",
    "echo": "its weights follow an answer formed below it, or at least do not tell demonstrations of one label apart as the kernel does",
    "salience": "its weights go with the demonstrations' inputs, and the test input sets at most how sharply",
    "addressing": "the test input picks a place, and its weights stay there when inputs are swapped",
    "misbound": "its weights on a label go with the input of the demonstration before it",
    "recency": "its weights go by place alone, and are uneven",
    "label-blind": "the answer needs its label edges, which carry something else than the labels",
    "sink": "the answer changes when its attention on labels must go elsewhere, not when it is taken away",
    "word preference": "its weights follow the label words",
    "driver": "its values carry labels to the answer, or (below 0) against it, and it is none of the above",
    "reads labels": "its values carry labels to the answer, and the model has no kernel part that it could be part of",
    "neither": "none of these, or nothing in the choosing half gave reason to measure it",
    "undetermined": "intervals too wide to say, or a condition could not be measured",
}
"""Of each class. neither: also every head that the choosing half gave no reason to look at."""
KERNEL_CLASSES: tuple[HeadClass, ...] = ("kernel head", "pair kernel")
"""Those that carry a kernel regression."""
HEAD_CLASSES: tuple[HeadClass, ...] = get_args(HeadClass)


@dataclass(frozen=True)
class Criteria:
    """The smallest effects of interest, and how sure to be: what is smaller is not looked for.

    Conditions and classes go by `effect`, `fit`, `slope`, `shift` and `label_shift`; `margin` is of votes alone.
    """

    margin: float = 0.05
    """A head votes if its agreement is further than this above its strongest control; fraction of prompts."""
    effect: float = 0.05
    """A head carries labels if the label part loses more than this share with it, and matters if the logit difference does."""
    fit: float = 0.1
    """Weights follow the model's own kernel if their correlation with it is above this."""
    slope: float = 0.25
    """Weights go with swapped inputs if their swap slope is less than this above that of the model's own kernel."""
    shift: float = 0.02
    """Total variation; weights that change less with the test input do not look at it."""
    label_shift: float = 0.5
    """Weights follow the inputs if permuted labels shift them by less than this share of what words would carry."""
    least_label_shift: float = 0.02
    """Total variation; weights that shift less are not shifted, however even they are."""
    follows: float = 0.1
    """Weights follow words or answers if they give them more than this share beyond what chance gives."""
    label_attention: float = 0.02
    """Least mean attention on label positions of a head that can vote."""
    false_discovery: float = 0.05
    """Reporting half: rate q of Benjamini & Hochberg's procedure over the candidates; and the largest p of a fit, which is
    already that of the best of all heads measured."""
    candidates: float = 0.2
    """The same over all heads in the choosing half, whose candidates are tested again."""
    level: float = 0.95
    """Of all intervals."""
    band_share: float = 0.9
    """How much of the located heads' drop the band holds."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name, value in asdict(self).items():
            if not 0 < value < 1:
                raise ResultError(
                    f"Criteria.{name} must lie between 0 and 1; got {value}.", code="number-range"
                )


@dataclass(frozen=True)
class Band:
    """The smallest run of layers that holds a share of the located heads' drop of the logit difference.

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

    def __post_init__(self) -> None:
        for low, high in ((self.first, self.last), self.first_interval, self.last_interval):
            if not 0 <= low <= high < self.layers:
                raise ResultError(
                    f"a band runs upward within layers 0…{self.layers - 1}; got {low} to {high}.",
                    code="number-range",
                )
        if len(self.by_layer) != self.layers:
            raise ResultError(
                f"a band of {self.layers} layers has {len(self.by_layer)} effects by layer.", code="not-whole"
            )

    @property
    def depth(self) -> tuple[float, float]:
        """First and last layer as relative depth."""
        deepest = max(1, self.layers - 1)
        return self.first / deepest, self.last / deepest

    @property
    def where(self) -> str:
        """Its layers in words."""
        one = self.first == self.last
        return (f"layer {self.first}" if one else f"layers {self.first}–{self.last}") + f" of {self.layers}"

    @property
    def depth_words(self) -> str:
        """Its relative depth in words: one number where it is one layer."""
        low, high = self.depth
        return f"{low:.2f}" + f"–{high:.2f}" * (self.first < self.last)

    def __str__(self) -> str:
        (a, b), (c, d) = self.first_interval, self.last_interval
        one = self.first == self.last
        return (
            f"{self.where} (counted from 0; relative depth {self.depth_words}) hold{'s' * one} {self.share:.0%} of the confirmed effect (asked: {self.wanted:.0%}); intervals: first "
            f"{a}–{b}, last {c}–{d}"
        )
