"""What a planted head can be, and the numbers that the world of planted models is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from icl_kernel_lens.axes import HeadRef

PlantedClass = Literal[
    "kernel head",
    "pair kernel",
    "shadow",
    "driver",
    "echo",
    "word preference",
    "salience",
    "addressing",
    "misbound",
    "label-blind",
    "sink",
    "recency",
    "cancelling",
    "neither",
]
"""What a head is by what its weights go with and what it writes: those classes of `locate_heads` that can be planted."""
HeadRole = Literal[
    "kernel",
    "unread_kernel",
    "cancelled_kernel",
    "canceller",
    "opposed_kernel",
    "opposing_kernel",
    "anti_kernel",
    "pair_kernel",
    "after_kernel",
    "early_kernel",
    "mover",
    "salience",
    "addressing",
    "misbound",
    "label_blind",
    "harmful_key",
    "recency",
    "driver",
    "uniform",
    "last_label",
    "first_token",
    "echo",
    "word_preference",
    "carrier",
    "misbinder",
    "input_carrier",
    "label_carrier",
    "idle",
]

MATTERS = 0.10
"""Smallest share that a head must carry to matter: of the label part, and of the kernel part to be findable."""
CLEAR = (0.05, 0.15)
"""Shares below the first and above the second are clear of `MATTERS`, sampling error and all."""
FOLLOWS = 0.2
"""Weights whose correlation with the model's own kernel is at least this clearly follow it."""

SAMPLE = 1500
"""Prompts that classes are told by."""
RELABELLED = 400
"""Those of them that shares of the label part are told by: each is computed once a class and head."""
ROWS = 2048
"""Prompts with a label replaced, about, that shares of the kernel part are told by."""
EACH = 4
"""Test inputs of a demonstration set among them."""

BOS = 1
FIRST_LABEL = 2
FEATURES = 8
"""Dimensions of φ."""
SPREAD = 0.8
"""Length of an input's own part of φ, beside a class centre of length 1, before φ is scaled to length 1."""
ROTARY = 8
"""Dimensions of a head that positions use, in every form."""
SCRATCH = 4
"""Dimensions of what idle heads read."""
ABOVE = 30.0
"""How far the scores of label positions stand above those of other positions."""
BALLAST = 4096.0
"""Of the pair that fixes the norm's scale, beside contents of order 1."""
VOTE_UNIT = 1 / 64
"""A logit of 1 in the stream."""


class RoleWords(NamedTuple):
    """What a role does, in words; its class where it matters; its default gain and bandwidth (NaN: has none)."""

    does: str
    what: PlantedClass
    gain: float = math.nan
    bandwidth: float = math.nan


_BY_KERNEL = "attends to labels by a Gaussian kernel of their inputs"
ROLES: Mapping[HeadRole, RoleWords] = {
    "kernel": RoleWords(f"{_BY_KERNEL}, writes them", "kernel head", 3.0, 0.35),
    "unread_kernel": RoleWords(f"{_BY_KERNEL}, writes nothing", "shadow", bandwidth=0.35),
    "cancelled_kernel": RoleWords(
        "is a kernel head whose output a later head takes back", "shadow", 3.0, 0.35
    ),
    "canceller": RoleWords("attends to its own position, takes back what cancelled kernels wrote", "neither"),
    "opposed_kernel": RoleWords(
        "is a kernel head beside another that writes against it", "cancelling", 3.0, 0.35
    ),
    "opposing_kernel": RoleWords(f"{_BY_KERNEL}, writes against them", "cancelling", 3.0, 0.35),
    "anti_kernel": RoleWords("attends to labels of unlike inputs, writes against them", "driver", 3.0, 0.35),
    "pair_kernel": RoleWords(
        "attends to labels by a kernel of their inputs and by their words, writes them",
        "pair kernel",
        3.0,
        0.35,
    ),
    "after_kernel": RoleWords(
        "attends to the tokens after labels by a kernel of the inputs, writes the labels",
        "kernel head",
        3.0,
        0.35,
    ),
    "early_kernel": RoleWords(
        "is a kernel head at the test input, one token before the answer", "kernel head", 3.0, 0.35
    ),
    "mover": RoleWords("moves what early kernels wrote to the answer position", "neither"),
    "salience": RoleWords(
        "attends to labels by their inputs alone, whatever the test input", "salience", 3.0, 0.35
    ),
    "addressing": RoleWords("attends to labels at places that the test input picks", "addressing", 3.0, 0.5),
    "misbound": RoleWords(
        "attends to labels by a kernel of the input of the demonstration before", "misbound", 3.0, 0.35
    ),
    "label_blind": RoleWords(f"{_BY_KERNEL}, writes the inputs' classes", "label-blind", 3.0, 0.35),
    "harmful_key": RoleWords(
        "attends to labels and to inputs by a kernel, writes against the inputs' classes and no label",
        "sink",
        3.0,
        0.35,
    ),
    "recency": RoleWords("attends to labels the more the later they stand, writes them", "recency", 3.0, 6.0),
    "driver": RoleWords("attends to all labels alike, writes them", "driver", 6.0),
    "uniform": RoleWords("attends to all positions alike", "driver", 0.0),
    "last_label": RoleWords("attends to the last label", "recency", 0.0),
    "first_token": RoleWords("attends to the first token, writes nothing", "neither"),
    "echo": RoleWords("attends to labels that equal the answer formed so far", "echo", 0.0, 0.3),
    "word_preference": RoleWords("attends to one fixed label word", "word preference", 0.0, 0.4),
    "carrier": RoleWords("copies the previous token's feature, no vote", "neither"),
    "misbinder": RoleWords("copies to labels the feature of the demonstration before, no vote", "neither"),
    "input_carrier": RoleWords("copies the feature of the token before the previous one, no vote", "neither"),
    "label_carrier": RoleWords("copies the previous token's label, no vote", "neither"),
    "idle": RoleWords("has small random weights on subspaces that nothing else reads", "neither"),
}
KERNELS = ("kernel", "unread_kernel", "cancelled_kernel", "opposed_kernel")
"""Roles that vote by a kernel of the inputs, from the answer position to the labels."""
KERNEL_LIKE: tuple[PlantedClass, ...] = (
    "kernel head",
    "pair kernel",
    "shadow",
    "cancelling",
    "label-blind",
    "sink",
)
"""Classes of heads whose weights are a kernel of the inputs, whatever they write."""
OTHER_EDGES = ("after_kernel", "early_kernel")
"""Kernels that read labels by other edges than those from the answer position to the labels."""
PULL = 2.0
"""b of a pair kernel that names none."""


@dataclass(frozen=True)
class PlantedHead:
    """One head and what it shall do; `None` takes the role's default from `ROLES`."""

    layer: int
    head: int
    role: HeadRole
    gain: float | None = None
    """Logits that a whole vote for a label adds to it; 0: the head is not read."""
    bandwidth: float | None = None
    """h of a kernel, of salience and of addressing; of an echo and a word preference, how sharply they choose
    (smaller is sharper); of recency, the tokens over which weights fall by e."""
    label: int | None = None
    """The label of a word preference."""
    share: float | None = None
    """Share of attention on labels in the median prompt, above 0 and up to 1; `None`: what the world's sink leaves."""
    swing: float = 0.0
    """How the sink's score moves with the test input, so that what is left for labels does."""
    echo_share: float = 0.0
    """d of a kernel whose scores are (1 − d) · kernel + d · echo."""
    pull: float | None = None
    """b of a pair kernel, whose scores are kernel + b · c(yᵢ)."""

    @property
    def ref(self) -> HeadRef:
        return HeadRef(self.layer, self.head)

    @property
    def strength(self) -> float:
        """The gain, the role's own where none was given; 0 for roles that have none."""
        given = ROLES[self.role].gain if self.gain is None else self.gain
        return 0.0 if math.isnan(given) else given

    @property
    def width(self) -> float:
        """The bandwidth, the role's own where none was given; NaN for roles that have none."""
        return ROLES[self.role].bandwidth if self.bandwidth is None else self.bandwidth

    @property
    def word_pull(self) -> float:
        """b of a pair kernel; 0 for other roles."""
        if self.role != "pair_kernel":
            return 0.0
        return PULL if self.pull is None else self.pull
