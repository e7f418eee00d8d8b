"""What a prompt is made of before any token exists: labelled texts, and the label words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


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

    def with_labels(self, labels: Iterable[int]) -> Episode:
        """The same texts, with these labels on the demonstrations."""
        return replace(
            self, demos=tuple(replace(d, label=y) for d, y in zip(self.demos, labels, strict=True))
        )
