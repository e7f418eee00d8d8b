"""What a prompt is made of before any token exists: labelled texts, and the label words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import Any

from icl_kernel_lens.errors import TaskError


@dataclass(frozen=True)
class Example:
    """One labelled text; natural-language-inference tasks have two text fields.

    A single text may be given without its tuple.
    """

    texts: tuple[str, ...]
    label: int

    def __post_init__(self) -> None:
        texts = [self.texts] if isinstance(self.texts, str) else self.texts
        whole = isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts)
        if not whole or not hasattr(self.label, "__index__"):
            raise TaskError(
                'an example must be its texts and the number of its class, as in Example(("a gripping film",), 1); '
                f"got {self.texts!r:.60} and {self.label!r:.60}.",
                code="wrong-type",
            )
        object.__setattr__(self, "texts", tuple(texts))
        object.__setattr__(self, "label", index(self.label))


def one_word_each(words: Any, classes: Sequence[str], what: str = "label words") -> tuple[str, ...]:
    """Label words, or names, in the order of the classes; a dictionary is read by the classes' names, or their numbers.

    Raises: TaskError: one text for all of them, words without an order, or keys that are no classes.
    """
    if isinstance(words, Mapping):
        named = {str(name): word for name, word in words.items()}
        numbers = [str(number) for number in range(len(named))]
        order = next((keys for keys in (list(classes), numbers) if set(keys) == set(named)), None)
        if order is None:
            raise TaskError(
                f"a dictionary of {what} must name every class; its keys are {list(words)} and the classes "
                f"{list(classes)}.",
                code="label-words",
            )
        words = [named[name] for name in order]
    ordered = isinstance(words, Iterable) and not isinstance(words, str | set | frozenset)
    words = tuple(words) if ordered else words
    if not ordered or not all(isinstance(word, str) for word in words):
        raise TaskError(
            f"{what} must be a list of texts, one a class, in the order of the classes; got "
            f"{words!r:.80} ({type(words).__name__}).",
            code="label-words",
        )
    return words


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
