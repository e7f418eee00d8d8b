"""What a tokenizer's own chat template writes around the turns of a conversation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from icl_kernel_lens.errors import TaskError

PLACEHOLDER = re.compile(r"\{(text2|text|label)\}")


@dataclass(frozen=True)
class ChatTemplate:
    """Writes conversations as the tokenizer's `apply_chat_template` does, always on the same day."""

    tokenizer: Any
    system: str | None
    day: str
    variables: Mapping[str, Any]

    def write(self, contents: Sequence[str], *, answer: bool) -> str:
        """Turns of user and assistant with these contents; with `answer`, up to where the assistant would begin.

        Raises: TaskError: the tokenizer has no chat template, or it refuses these turns.
        """
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise TaskError(
                f"a tokenizer must have a chat template; this {type(self.tokenizer).__name__} has none. Is it a base "
                "model's, or the model in place of its tokenizer? Take the model's instruct version, or set "
                "tokenizer.chat_template.",
                code="chat-template",
            )
        roles = ["user", "assistant"] * len(contents)
        turns = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
        if self.system is not None:
            turns = [{"role": "system", "content": self.system}, *turns]
        today = _on_day(self.day)
        try:
            template = self.tokenizer.get_chat_template(tools=self.variables.get("tools"))
            return self.tokenizer.apply_chat_template(
                turns,
                chat_template=today + template if "strftime_now" in template else template,
                tokenize=False,
                add_generation_prompt=answer,
                **self.variables,
            )
        except Exception as error:  # the template's own words, in any class
            raise TaskError(
                f"a chat template must be able to write these turns; this tokenizer's says: {error}. If it knows no "
                "system prompt, leave system= out and put the instruction into the template's prefix.",
                code="chat-template",
            ) from error


def _on_day(day: str) -> str:
    """Jinja's own `strftime_now` for one day, so that prompts do not change overnight."""
    try:
        then = date.fromisoformat(day)
    except ValueError as error:
        raise TaskError(
            f'a date must be written as "2024-07-26"; got {day!r}.', code="number-range"
        ) from error
    codes = [*(f"%-{c}" for c in "dmyHIMSj"), *(f"%{c}" for c in "aAbBdmyYjUwHIMSpcxX")]
    steps = "".join(f"|replace('{code}', '{then.strftime(code)}')" for code in codes)
    return f"{{% macro strftime_now(format) %}}{{{{ format{steps} }}}}{{% endmacro %}}"


def split_at_names(text: str, names: Sequence[str]) -> list[str]:
    """What stands before, between and behind placeholders, which must be these in this order.

    Raises: TaskError: they are others; the chat template leaves out a turn, or repeats it.
    """
    parts = PLACEHOLDER.split(text)
    if parts[1::2] != list(names):
        raise TaskError(
            f"a chat template must write every turn once and in order; of {', '.join(names)} it writes "
            f"{', '.join(parts[1::2]) or 'none'}. Show the demonstrations in one turn (turns=False), or write a "
            "template of your own.",
            code="chat-template",
        )
    return parts[::2]
