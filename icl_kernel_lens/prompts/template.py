"""How a labelled text is written: `{text}` (and `{text2}`), `{label}`, and what stands between examples."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from icl_kernel_lens.arguments import check_fields
from icl_kernel_lens.errors import TaskError
from icl_kernel_lens.prompts.chat import PLACEHOLDER, ChatTemplate, split_at_names

_NAME = re.compile(r"\{(\w+)\}")
_UNFILLED = re.compile(r"(?<![\w\\])\{(\w+)\}")
"""A name in braces where nothing is filled in; `\\boxed{answer}` is none."""


@dataclass(frozen=True)
class Template:
    """The shape of one demonstration; the test input is the same text cut where the label would begin.

    Spaces before `{label}` belong to the label, as tokenizers see it: with
    `"Input: {text}\\nOutput: {label}"` the test input ends in `Output:` and the label is `" positive"`. Special
    tokens that are written here are special; in texts and label words they are text.
    """

    demo: str = "Input: {text}\nOutput: {label}"
    separator: str = "\n"
    prefix: str = ""
    test: str = ""
    """The test input and its label, where they are not written as a demonstration is."""
    whole: bool = False
    """Whether it writes all special tokens itself, so that the tokenizer shall add none unless asked to."""

    def __post_init__(self) -> None:
        check_fields(self)
        for shape in (self.demo, self.test or self.demo):
            _check_shape(shape)
        if PLACEHOLDER.findall(self.test or self.demo) != PLACEHOLDER.findall(self.demo):
            raise TaskError(
                f"a test input must show what a demonstration shows, in its order; {self.test!r} and {self.demo!r} "
                "differ in it.",
                code="task-template",
            )
        if not self.whole:  # a chat template's own words are as they are
            check_filled(prefix=self.prefix, separator=self.separator)
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

    @classmethod
    def chat(
        cls,
        tokenizer: Any,
        written: Template | str | None = None,
        *,
        turns: bool = True,
        system: str | None = None,
        date: str = "2024-07-26",
        **variables: Any,
    ) -> Template:
        """The tokenizer's own chat template around examples that are `written` so; default: as `Template()`.

        With `turns`, each demonstration is a user's turn up to the label and the assistant's turn with the label.
        Otherwise all demonstrations and the test input are one user's turn, and what `written` has on the label's
        line before it (`Output:`) begins the assistant's turn. `system=None` gives what the chat template writes by
        itself, `date` the day it is told, `variables` what it is given beside (`enable_thinking=False`). The prompts
        are those of `tokenizer.apply_chat_template(..., add_generation_prompt=True)`.

        Raises:   TaskError: no chat template, or one whose turns depend on how many there are.
        Example:  >>> Template.chat(tokenizer, "Review: {text}\\nSentiment: {label}")  # doctest: +SKIP
        """
        if not isinstance(written, Template):
            written = cls() if written is None else cls(written)
        check_filled(system=system or "")
        chat = ChatTemplate(tokenizer, system, date, variables)
        return _in_turns(chat, written) if turns else _in_one_turn(chat, written)

    @property
    def fields(self) -> int:
        """Number of text fields, one or two."""
        return 2 if "{text2}" in self.demo else 1

    @property
    def gap(self) -> str:
        """The spaces before the label in the test input."""
        return _cut(self.test or self.demo)[1]

    def bare(self, word: str) -> str:
        """A label word without the spaces that are not its own: where the template has one, or a turn begins."""
        before = (self.test or self.demo).split("{label}")[0]
        return word.strip() if self.whole or before[-1:].isspace() else word.rstrip()

    def pieces(self, texts: tuple[str, ...], label_word: str | None) -> list[tuple[str, str]]:
        """The demonstration as (role, string) pieces; without a label word, the test input cut before the label.

        Roles are `template`, `text`, `text2` and `label`; joining the strings gives the text.

        Raises: TaskError: not as many texts as the template shows.
        """
        if len(texts) != self.fields:
            raise TaskError(
                f"an example must have as many texts as the template shows, {self.fields}; {texts!r:.80} has "
                f"{len(texts)}.",
                code="task-field",
            )
        values: dict[str, str] = dict(zip(("text", "text2"), texts, strict=False))
        stem, gap, after = _cut(self.test or self.demo if label_word is None else self.demo)
        parts = enumerate(PLACEHOLDER.split(stem))  # the template and the names of the texts take turns
        found = [(part, values[part]) if turn % 2 else ("template", part) for turn, part in parts]
        if label_word is not None:
            found += [("label", gap + label_word), ("template", after)]
        return [(role, string) for role, string in found if string]


def _cut(shape: str) -> tuple[str, str, str]:
    """What stands before the label, the spaces that belong to it, and what stands behind."""
    before, after = shape.split("{label}")
    stem = before.rstrip(" ")
    return stem, before[len(stem) :], after


def _check_shape(shape: str) -> None:
    names = PLACEHOLDER.findall(shape)
    if sorted(names) not in (["label", "text"], ["label", "text", "text2"]):
        raise TaskError(
            "a template must hold {text} once, {label} once and at most one {text2}; "
            f"{shape!r} holds {names}. (A tokenizer's chat template: Template.chat(tokenizer).)",
            code="task-template",
        )
    if names[-1] != "label":
        raise TaskError(
            f"a template must show the label after the texts; {shape!r} does not. "
            "A model reads left to right and must see the text before it answers.",
            code="task-template",
        )
    if unknown := [name for name in _NAME.findall(shape) if name not in names]:
        raise TaskError(
            f"a template must name only {{text}}, {{text2}} and {{label}} in braces; {shape!r} also holds "
            f"{unknown}, which would stand in every prompt as it is. Write its value there.",
            code="task-template",
        )


def check_filled(**parts: str) -> None:
    """Refuse a name in braces in a part of the template that nothing is filled into.

    Raises: TaskError.
    """
    for what, part in parts.items():
        if names := _UNFILLED.findall(part):
            raise TaskError(
                f"nothing is filled into a template's {what}; {part!r} holds {names} in braces, which would stand in "
                "every prompt as it is. Write the value there.",
                code="task-template",
            )


def _in_turns(chat: ChatTemplate, written: Template) -> Template:
    """Every demonstration a user's turn and an assistant's."""
    names = PLACEHOLDER.findall(written.demo)
    stem, _, after = _cut(written.demo)
    user, reply = stem.rstrip(), "{label}" + after
    first = written.prefix + user

    def conversation(demos: int) -> str:
        return chat.write([first, *[reply, user] * demos], answer=True)

    found = split_at_names(conversation(2), [*names, *names, *names[:-1]])
    opening, inner, between, asked = found[0], found[1 : len(names)], found[len(names)], found[-1]
    closing = split_at_names(chat.write([first, reply], answer=False), names)[-1]
    closing = closing if between.startswith(closing) else ""
    start = between[len(closing) :]
    # Where the first turn is written otherwise (a system prompt inside it), turns begin at their texts.
    separator = "" if opening.endswith(start) else start
    start = "" if separator else start
    texts = "".join(f"{gap}{{{name}}}" for gap, name in zip([start, *inner[:-1]], names[:-1], strict=True))
    template = Template(
        demo=texts + inner[-1] + "{label}" + closing,
        separator=separator,
        prefix=opening.removesuffix(start),
        test="" if asked.rstrip(" ") == inner[-1].rstrip(" ") else texts + asked + "{label}",
        whole=True,
    )
    _check_written(template, conversation)
    return template


def _in_one_turn(chat: ChatTemplate, written: Template) -> Template:
    """All demonstrations and the test input in one user's turn; the assistant goes on behind the label's line."""
    stem, gap, _ = _cut(written.demo)
    last = stem.rindex("}") + 1
    *lines, begun = stem[last:].split("\n")
    user = stem[:last] + "\n".join(lines)
    opening, asked = split_at_names(chat.write(["{text}"], answer=True), ["text"])
    reply = split_at_names(chat.write(["{text}", "{label}"], answer=False), ["text", "label"])[1]
    asked = reply if asked.rstrip(" ") == reply.rstrip(" ") else asked
    begun = begun.lstrip()
    template = Template(
        demo=written.demo,
        separator=written.separator,
        prefix=opening + written.prefix,
        test=user + asked + begun + (gap if begun or not asked.endswith(" ") else "") + "{label}",
        whole=True,
    )

    def conversation(demos: int) -> str:
        shown = (written.demo + written.separator) * demos
        asks = chat.write([written.prefix + shown + user], answer=True).rstrip(" ")
        return asks + asked[len(asked.rstrip(" ")) :] + begun

    _check_written(template, conversation)
    return template


def _check_written(template: Template, conversation: Callable[[int], str]) -> None:
    """The template must write conversations of any number of demonstrations as the chat template does.

    Raises: TaskError: it does not.
    """
    for demos in range(5):
        stem = _cut(template.test or template.demo)[0]
        ours = template.prefix + (template.demo + template.separator) * demos + stem
        theirs = conversation(demos).rstrip(" ")  # spaces before a label belong to it
        if ours != theirs:
            at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(theirs))
            raise TaskError(
                "a chat template must write each turn alike, however many there are; with "
                f"{demos} demonstrations this one writes {theirs[max(0, at - 30) : at + 30]!r} where "
                f"{ours[max(0, at - 30) : at + 30]!r} was expected. Show the demonstrations in one turn (turns=False), "
                "or put the instruction into the template's prefix in place of system=.",
                code="chat-template",
            )
