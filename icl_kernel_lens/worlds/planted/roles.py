"""What a planted head can be, and the numbers that the world of planted models is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from icl_kernel_lens.axes import HeadRef

PlantedClass = Literal["kernel head", "shadow", "driver", "echo", "word preference", "neither"]
HeadRole = Literal[
    "kernel",
    "unread_kernel",
    "cancelled_kernel",
    "canceller",
    "anti_kernel",
    "driver",
    "uniform",
    "last_label",
    "first_token",
    "echo",
    "word_preference",
    "carrier",
    "idle",
]

MATTERS = 0.10
"""Smallest share of the clean logit difference that a head must carry to matter."""
CLEAR = (0.05, 0.15)
"""Shares below the first and above the second are clear of `MATTERS`, sampling error and all."""
FINDABLE = 0.25
"""A findable kernel head agrees with the model's answer this much oftener than the best simple explanation."""

SAMPLE = 1500
"""Prompts that classes are told by."""
PERMUTATIONS = 4
"""Of a prompt's labels, for the agreement that weights have with permuted labels."""

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
    """What a role does, in words, and its default gain and bandwidth (NaN: has none)."""

    does: str
    gain: float = math.nan
    bandwidth: float = math.nan


ROLES: Mapping[HeadRole, RoleWords] = {
    "kernel": RoleWords("attends to labels by a Gaussian kernel of their inputs, writes them", 3.0, 0.35),
    "unread_kernel": RoleWords(
        "attends to labels by a Gaussian kernel of their inputs, writes nothing", bandwidth=0.35
    ),
    "cancelled_kernel": RoleWords("is a kernel head whose output a later head takes back", 3.0, 0.35),
    "canceller": RoleWords("attends to its own position, takes back what cancelled kernels wrote"),
    "anti_kernel": RoleWords("attends to labels of unlike inputs, writes against them", 3.0, 0.35),
    "driver": RoleWords("attends to all labels alike, writes them", 6.0),
    "uniform": RoleWords("attends to all positions alike", 0.0),
    "last_label": RoleWords("attends to the last label", 0.0),
    "first_token": RoleWords("attends to the first token, writes nothing"),
    "echo": RoleWords("attends to labels that equal the answer formed so far", 0.0, 0.3),
    "word_preference": RoleWords("attends to one fixed label word", 0.0, 0.4),
    "carrier": RoleWords("copies the previous token's feature, no vote"),
    "idle": RoleWords("has small random weights on subspaces that nothing else reads"),
}
KERNELS = ("kernel", "unread_kernel", "cancelled_kernel")
SUNK = (*KERNELS, "anti_kernel", "driver", "echo", "word_preference")
"""Roles that attend to labels and leave a share on BOS."""


@dataclass(frozen=True)
class PlantedHead:
    """One head and what it shall do; `None` takes the role's default from `ROLES`."""

    layer: int
    head: int
    role: HeadRole
    gain: float | None = None
    """Logits that a whole vote for a label adds to it; 0: the head is not read."""
    bandwidth: float | None = None
    """h of a kernel; of an echo and a word preference, how sharply they choose (smaller is sharper)."""
    label: int | None = None
    """The label of a word preference."""

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
