"""What each role's head reads and writes: a table of heads that attend to labels, and one of heads that copy.

A head of `WIRES` has, from the answer position to label i, the score

    (1 − d) · φ(x)·k_i / h² + d · echo + b · c(y_i) + what its role alone adds (`scores.py`)

where k_i is what it matches, and a sink takes the share that is not for labels. A head of `COPIES` attends to one
position, a fixed number of steps before its own, and adds a subspace of that position to one of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from icl_kernel_lens.worlds.planted.roles import HeadRole

Values = Literal["label", "told_label", "previous", "feature"]


class Wires(NamedTuple):
    """What a head that attends to labels matches, reads and writes."""

    matches: Literal["", "previous", "before", "told_input"] = ""
    """The subspace of keys that holds what the test input's feature is matched with; none for other scores."""
    values: Values = "label"
    """What is read of the tokens attended to: their labels, or the classes that features are of."""
    into: Literal["vote", "taken", "moved"] = "vote"
    toward: int = 1
    """−1: alike inputs have low scores."""
    sign: int = 1
    """−1: writes against what it reads."""
    at: Literal["is_label", "is_separator"] = "is_label"
    """The tokens of a demonstration that are attended to."""
    rest: Literal["is_bos", "is_input"] = "is_bos"
    """The tokens that have the sink's score."""


WIRES: Mapping[HeadRole, Wires] = {
    "kernel": Wires("previous"),
    "unread_kernel": Wires("previous"),
    "cancelled_kernel": Wires("previous", into="taken"),
    "opposed_kernel": Wires("previous"),
    "opposing_kernel": Wires("previous", sign=-1),
    "anti_kernel": Wires("previous", toward=-1, sign=-1),
    "pair_kernel": Wires("previous"),
    "after_kernel": Wires("told_input", values="told_label", at="is_separator"),
    "early_kernel": Wires("previous", into="moved"),
    "misbound": Wires("before"),
    "label_blind": Wires("previous", values="previous"),
    "harmful_key": Wires("previous", values="feature", sign=-1, rest="is_input"),
    "salience": Wires(),
    "addressing": Wires(),
    "recency": Wires(),
    "driver": Wires(),
    "echo": Wires(),
    "word_preference": Wires(),
}
SUNK = tuple(WIRES)
"""Roles that attend to labels and leave a share on a sink."""


class Copy(NamedTuple):
    """How far back a copying head looks, what it copies where, and with which sign."""

    steps: int
    source: str
    into: str
    sign: int = 1
    behind_separator: bool = False
    """One step more where the world has separators."""
    behind_trailing: bool = False
    """One step more where a token follows the test input."""

    def back(self, *, separator: bool, trailing: bool) -> int:
        """Steps back in a world with these tokens."""
        return self.steps + (separator and self.behind_separator) + (trailing and self.behind_trailing)


COPIES: Mapping[HeadRole, Copy] = {
    "carrier": Copy(1, "feature", "previous"),
    "misbinder": Copy(3, "feature", "before", behind_separator=True),
    "input_carrier": Copy(2, "feature", "told_input"),
    "label_carrier": Copy(1, "label", "told_label"),
    "mover": Copy(1, "moved", "vote"),
    "canceller": Copy(0, "taken", "taken", sign=-1),
    "last_label": Copy(1, "label", "vote", behind_separator=True, behind_trailing=True),
}
NEEDS: Mapping[HeadRole, tuple[HeadRole, ...]] = {
    "misbound": ("misbinder",),
    "after_kernel": ("input_carrier", "label_carrier"),
}
"""Carriers in layer 0 that a role needs beside the first."""
CARRIERS: tuple[HeadRole, ...] = ("carrier", "misbinder", "input_carrier", "label_carrier")
