"""Which dimensions of a head's queries and keys hold what; values have theirs apart."""

from __future__ import annotations

from icl_kernel_lens.worlds.planted.roles import FEATURES, ROTARY, SCRATCH
from icl_kernel_lens.worlds.planted.world import PlantedWorld

CONTENT = slice(ROTARY, ROTARY + FEATURES)
"""What is matched, behind what positions use."""
BIAS = ROTARY + FEATURES
"""The score that all labels, and the sink, have in common."""
SWING = BIAS + 1
WORD = BIAS + 2
SECOND = BIAS + 3
"""An echo's classes, where the content holds a kernel's features."""


def least_d_head(world: PlantedWorld) -> int:
    """The smallest head that holds what its heads need."""
    least = BIAS + 1
    if any(head.swing or head.word_pull for head in world.heads):
        least = SECOND
    if any(head.echo_share for head in world.heads):
        least = SECOND + world.labels
    # The carrier's values hold a feature, what nothing reads, and the classes that a test input's own token votes for.
    return max(least, FEATURES + SCRATCH + world.labels if world.trailing else 0)
