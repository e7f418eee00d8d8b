"""The material of one prompt, before any token exists: labelled texts and label words."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Example:
    """One labelled text; natural-language-inference tasks have two text fields."""

    texts: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Episode:
    """The material of one prompt: answered demonstrations, one test input, and the label words.

    Episodes with the same `demo_set` show the same demonstrations in the same order, and are therefore not
    independent of each other.
    """

    demos: tuple[Example, ...]
    test: Example
    label_words: tuple[str, ...]
    demo_set: int

    def without_demos(self) -> Episode:
        """The same test input with no demonstration before it."""
        return replace(self, demos=())

    def with_permuted_labels(self, rng: random.Random) -> Episode:
        """The same demonstrations with their labels permuted among them, uniformly."""
        labels = [demo.label for demo in self.demos]
        rng.shuffle(labels)
        return replace(
            self,
            demos=tuple(replace(d, label=y) for d, y in zip(self.demos, labels, strict=True)),
        )


def each_changed(
    episodes: tuple[Episode, ...] | None, change: Callable[[Episode, Any], Episode], by: Iterable[Any]
) -> tuple[Episode, ...] | None:
    """The episodes, each changed by one of `by`; None where they are not known."""
    if episodes is None:
        return None
    return tuple(change(episode, one) for episode, one in zip(episodes, by, strict=True))
