"""How a labelled text is written: `{text}` (and `{text2}`), `{label}`, and what stands between examples."""

from __future__ import annotations

import re
from dataclasses import dataclass

from icl_kernel_lens.errors import TaskError

_PIECE = re.compile(r"\{(text2|text|label)\}")


@dataclass(frozen=True)
class Template:
    """The shape of one demonstration; the test input is the same text cut where the label would begin.

    Spaces before `{label}` belong to the label, as tokenizers see it: with
    `"Input: {text}\\nOutput: {label}"` the test input ends in `Output:` and the label is `" positive"`.
    """

    demo: str = "Input: {text}\nOutput: {label}"
    separator: str = "\n"
    prefix: str = ""

    def __post_init__(self) -> None:
        names = _PIECE.findall(self.demo)
        if sorted(names) not in (["label", "text"], ["label", "text", "text2"]):
            raise TaskError(
                "a template must hold {text} once, {label} once and at most one {text2}; "
                f"{self.demo!r} holds {names}.",
                code="task-template",
            )
        if names[-1] != "label":
            raise TaskError(
                f"a template must show the label after the texts; {self.demo!r} does not. "
                "A model reads left to right and must see the text before it answers.",
                code="task-template",
            )
        if self.separator == "" and not self.demo[self.demo.index("{label}") + 7 :]:
            raise TaskError(
                "demonstrations must be separated by something, or a label runs into the next text; "
                "the separator is empty. Choose, for example, '\\n'.",
                code="task-template",
            )

    @classmethod
    def from_text(cls, demo: str) -> Template:
        """The template that writes a demonstration so, with the usual separator."""
        return cls(demo)

    @property
    def fields(self) -> int:
        """Number of text fields, one or two."""
        return 2 if "{text2}" in self.demo else 1

    def pieces(self, texts: tuple[str, ...], label_word: str | None) -> list[tuple[str, str]]:
        """The demonstration as (role, string) pieces; without a label word, cut before the label.

        Roles are `template`, `text`, `text2` and `label`; joining the strings gives the text.
        """
        values: dict[str, str] = dict(zip(("text", "text2"), texts, strict=False))
        before, after = self.demo.split("{label}")
        stem = before.rstrip(" ")
        parts = enumerate(_PIECE.split(stem))  # the template and the names of the texts take turns
        found = [(part, values[part]) if turn % 2 else ("template", part) for turn, part in parts]
        if label_word is not None:
            found += [("label", before[len(stem) :] + label_word), ("template", after)]
        return [(role, string) for role, string in found if string]
