"""Labelled rows as a task's fields: read from files, their classes found, their texts made plain."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from icl_kernel_lens.errors import TaskError
from icl_kernel_lens.prompts.example import Example, one_word_each
from icl_kernel_lens.prompts.template import Template
from icl_kernel_lens.tasks.presets import PRESETS, Preset

READERS = (".jsonl", ".csv", ".tsv", ".parquet")
PAIR_OF_TEXTS = Template("First: {text}\nSecond: {text2}\nOutput: {label}")
Rows = list[Mapping[str, Any]]


def read_pools(train: Path, test: Path | None) -> tuple[Rows, Rows, str]:
    """The rows of both pools, and where they are from; one file feeds both, a fixed half of its rows each.

    Raises: TaskError: no such file, or an unreadable one.
    """
    rows = _read_rows(train)
    if test is not None:
        return rows, _read_rows(test), f"{train.name}, {test.name}"
    order = random.Random(0).sample(range(len(rows)), len(rows))
    held = frozenset(order[: len(rows) // 2])
    halves = ([row for i, row in enumerate(rows) if (i in held) is half] for half in (False, True))
    return *halves, f"{train.name} (split in halves)"  # pyright: ignore[reportReturnType]


def task_fields(
    train: Iterable[Mapping[str, Any]],
    test: Iterable[Mapping[str, Any]],
    *,
    name: str = "records",
    text_fields: Sequence[str] | str | None = None,
    label_field: str = "label",
    classes: Sequence[str] | Mapping[Any, str] | None = None,
    label_words: Sequence[str] | Mapping[Any, str] | None = None,
    template: Template | None = None,
    origin: str = "given in memory",
    licence: str = "unknown",
) -> dict[str, Any]:
    """The fields of a `Task`, from the rows of its pools; see `Task.from_records`.

    Raises: TaskError: an empty pool, a row without its fields, an empty text, labels that are no classes.
    """
    pools: dict[str, Rows] = {"train": list(train), "test": list(test)}
    for split, rows in pools.items():
        if not rows:
            raise TaskError(
                f"both pools need examples; the {split} pool of {name!r} is empty.", code="task-pool"
            )
    preset = PRESETS.get(name)
    text_fields = (text_fields,) if isinstance(text_fields, str) else text_fields
    fields = tuple(text_fields or (("text", "text2") if "text2" in pools["train"][0] else ("text",)))
    for split, rows in pools.items():
        for number, row in enumerate(rows):
            if missing := [f for f in (*fields, label_field) if f not in row]:
                raise TaskError(
                    f"every example needs the fields {[*fields, label_field]}; row {number} of the {split} pool of "
                    f"{name!r} lacks {missing} and has {sorted(row)}. Name them with text_fields and label_field.",
                    code="task-field",
                )
    if classes is None:
        known, numbers = _classes(pools, label_field, name)
    else:
        known = one_word_each(classes, (), "classes")
        # A label is a class's name or, failing that, its number: names that are digits come first.
        numbers = {i: i for i in range(len(known))} | {_as_number(word): i for i, word in enumerate(known)}
    usual = Template() if len(fields) == 1 else PAIR_OF_TEXTS
    return {
        "name": name,
        "classes": known,
        "label_words": _words(preset, known) if label_words is None else one_word_each(label_words, known),
        "template": template or (preset.template if preset else usual),
        "origin": origin,
        "licence": licence,
    } | {
        split: _examples(rows, split, fields, label_field, known, numbers, name)
        for split, rows in pools.items()
    }


def _read_rows(path: Path) -> Rows:
    import pandas as pd

    if not path.is_file():
        raise TaskError(f"a task file must exist; there is none at {path}.", code="task-file")
    if path.suffix not in READERS:
        raise TaskError(
            f"a task file must be one of {', '.join(READERS)}; {path.name} ends in {path.suffix!r}.",
            code="task-file",
        )
    try:
        match path.suffix:
            case ".jsonl":
                return _json_lines(path)
            case ".csv":
                frame = pd.read_csv(path, dtype=str, keep_default_na=False)
            case ".tsv":
                frame = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=3)
            case _:
                frame = pd.read_parquet(path)
    except (ValueError, OSError) as error:
        raise TaskError(f"{path} cannot be read as {path.suffix[1:]}: {error}", code="task-file") from error
    return frame.to_dict("records")  # pyright: ignore[reportReturnType]


def _json_lines(path: Path) -> Rows:
    rows: Rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is not an object: {line.strip()[:60]!r}")
            rows.append(row)
    return rows


def _classes(
    pools: Mapping[str, Rows], label_field: str, name: str
) -> tuple[tuple[str, ...], dict[Any, int]]:
    """The classes in the order of their numbers (named by `label_name`, where given) or else of the alphabet, and the
    class of each label."""
    names: dict[Any, str] = {}
    for row in chain(*pools.values()):
        names.setdefault(_as_number(row[label_field]), str(row.get("label_name", row[label_field])))
    numbers = [label for label in names if isinstance(label, int)]
    if numbers and len(numbers) == len(names):
        missing = sorted(set(range(max(numbers) + 1)) - set(numbers))
        if min(numbers) < 0 or missing:
            raise TaskError(
                f"label numbers must count up from 0 without gaps; {name!r} has {sorted(numbers)}. Give the "
                "labels as names, or pass classes.",
                code="task-label",
            )
        return tuple(names[label] for label in range(len(names))), {n: n for n in range(len(names))}
    ordered = sorted(names, key=str)
    return tuple(str(label) for label in ordered), {label: i for i, label in enumerate(ordered)}


def _as_number(label: Any) -> Any:
    """A label written in digits as a number, any other as text."""
    text = str(label).strip()
    return int(text) if text.isascii() and text.removeprefix("-").isdecimal() else text


def _words(preset: Preset | None, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The preset's word for each class, found by the class's name; the names themselves if one is not there."""
    words = {_plain(name): word for name, word in preset.words.items()} if preset else {}
    plain = [_plain(name) for name in classes]
    return tuple(words[name] for name in plain) if words.keys() >= set(plain) else classes


def _plain(name: str) -> str:
    return name.lower().replace("not-", "non-").replace("non_", "non-")


def _examples(
    rows: Rows,
    split: str,
    fields: tuple[str, ...],
    label_field: str,
    classes: tuple[str, ...],
    numbers: Mapping[Any, int],
    name: str,
) -> tuple[Example, ...]:
    found = []
    for number, row in enumerate(rows):
        where = f"row {number} of the {split} pool of {name!r}"
        index = numbers.get(_as_number(row[label_field]))
        if index is None:
            raise TaskError(
                f"every label must be a class; {where} has {row[label_field]!r} and the classes are "
                f"{list(classes)}. Add it to classes, or drop the row.",
                code="task-label",
            )
        # White space becomes single spaces, so that a line break in a text cannot look like the template's.
        texts = tuple(
            " ".join(str(row[f]).split()) if row[f] == row[f] and row[f] is not None else "" for f in fields
        )
        if "" in texts:
            raise TaskError(
                f"every text must hold something; {where} is empty. Drop the row.", code="empty-text"
            )
        found.append(Example(texts, index))
    return tuple(found)
