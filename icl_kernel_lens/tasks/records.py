"""Labelled rows as a task's fields: read from files, their classes found, their texts made plain."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from icl_kernel_lens.arguments import argument, checked
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
    return *_halves(rows), f"{train.name} (split in halves)"


def pools_of(train: Any, test: Any, label_field: str) -> tuple[Rows, Rows, tuple[str, ...] | None]:
    """The rows of both pools, from whatever holds rows, and the names of the classes where it knows them.

    Raises: TaskError: it holds no rows.
    """
    if test is None and isinstance(train, Mapping):  # a DatasetDict
        left = next((name for name in ("test", "validation") if name in train), None)
        if "train" not in train or left is None:
            raise TaskError(
                f'a mapping of pools must have a "train" and a "test" (or "validation"); it has {sorted(map(str, train))}. '
                "Pass the two pools one after the other.",
                code="task-pool",
            )
        train, test = train["train"], train[left]
    label_field = argument("label_field", label_field, str)
    rows, names = _rows_of(train, "train", label_field)
    if test is None:
        return *_halves(rows), names
    others, theirs = _rows_of(test, "test", label_field)
    return rows, others, names or theirs


def _rows_of(given: Any, split: str, label_field: str) -> tuple[Rows, tuple[str, ...] | None]:
    """The rows of one pool, and the names of the classes if a Hugging Face `ClassLabel` has them: its numbers become names."""
    column = (getattr(given, "features", None) or {}).get(label_field)
    names = tuple(getattr(column, "names", None) or ())
    if type(given).__module__.startswith("pandas") and hasattr(given, "columns"):
        given = given.to_dict("records")
    rows: list[Any] = (
        list(given)
        if isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping)
        else [given]
    )
    if wrong := [(at, row) for at, row in enumerate(rows) if not isinstance(row, Mapping)]:
        at, row = wrong[0]
        raise TaskError(
            f"a pool must be rows, each a dictionary of its fields, a DataFrame, or a Dataset; the {split} pool is a "
            f"{type(given).__name__}, whose item {at} is {row!r:.60}. A file is read with Task.from_files.",
            code="wrong-type",
        )
    if not names:
        return rows, None
    # Not by their digits: a class may be named by another one's number. −1 stands for a row without a label.
    called = dict(enumerate(names)) | {-1: None}
    return [
        row | {label_field: called.get(_plain_value(row[label_field]), row[label_field])} for row in rows
    ], names


def _halves(rows: Rows) -> tuple[Rows, Rows]:
    order = random.Random(0).sample(range(len(rows)), len(rows))
    held = frozenset(order[: len(rows) // 2])
    first, second = ([row for i, row in enumerate(rows) if (i in held) is half] for half in (False, True))
    return first, second


@checked
def task_fields(
    train: Rows,
    test: Rows,
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
    pools: dict[str, Rows] = {"train": train, "test": test}
    for split, rows in pools.items():
        if not rows:
            raise TaskError(
                f"both pools need examples; the {split} pool of {name!r} is empty.", code="task-pool"
            )
    preset = PRESETS.get(name)
    text_fields = (text_fields,) if isinstance(text_fields, str) else text_fields
    fields = tuple(text_fields or (("text", "text2") if "text2" in pools["train"][0] else ("text",)))
    for split, rows in pools.items():
        plain: Rows = [{key: _plain_value(value) for key, value in row.items()} for row in rows]
        pools[split] = rows = plain
        for number, row in enumerate(rows):
            if missing := [f for f in (*fields, label_field) if f not in row]:
                raise TaskError(
                    f"every example needs the fields {[*fields, label_field]}; row {number} of the {split} pool of "
                    f"{name!r} lacks {missing} and has {sorted(map(str, row))}. Name them with text_fields and label_field "
                    "(--text-fields, --label-field).",
                    code="task-field",
                )
            if nested := [
                f for f in (*fields, label_field) if isinstance(row[f], Mapping | list | tuple | set)
            ]:
                raise TaskError(
                    f"a text or a label must be one value; in row {number} of the {split} pool of {name!r}, {nested[0]!r} is a "
                    f"{type(row[nested[0]]).__name__}: {row[nested[0]]!r:.60}. Write what shall be shown into a field of its own.",
                    code="task-field",
                )
    _check_labels(pools, label_field, name)
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

    if not os.path.isfile(path):
        raise TaskError(f"a task file must exist; there is none at {path}.", code="task-file")
    kind = path.suffix.lower()
    if kind not in READERS:
        raise TaskError(
            f"a task file must be one of {', '.join(READERS)}; {path.name} ends in {path.suffix!r}.",
            code="task-file",
        )
    try:
        match kind:
            case ".jsonl":
                return _json_lines(path)
            case ".csv":
                frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
            case ".tsv":
                frame = pd.read_csv(
                    path, sep="\t", dtype=str, keep_default_na=False, quoting=3, encoding="utf-8-sig"
                )
            case _:
                frame = pd.read_parquet(path)
        if not isinstance(frame.index, pd.RangeIndex) and kind in (".csv", ".tsv"):
            raise ValueError(
                "every row has more fields than the header names; is a comma in the texts without quotes?"
            )
    except (ValueError, OSError, RecursionError) as error:
        raise TaskError(f"{path} cannot be read as {kind[1:]}: {error}", code="task-file") from error
    return frame.to_dict("records")  # pyright: ignore[reportReturnType]


def _json_lines(path: Path) -> Rows:
    rows: Rows = []
    with path.open(encoding="utf-8-sig") as file:
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
        label = _as_number(row[label_field])
        text = str(label if isinstance(row[label_field], float) else row[label_field])
        names.setdefault(label, str(row.get("label_name", text)))
    numbers = [label for label in names if isinstance(label, int)]
    if numbers and len(numbers) == len(names):
        if min(numbers) < 0 or max(numbers) >= len(numbers):
            found = ", ".join(map(str, sorted(numbers)[:12])) + (" …" if len(numbers) > 12 else "")
            raise TaskError(
                f"label numbers must count up from 0 without gaps; {name!r} has [{found}]. Give the "
                "labels as names, or pass classes.",
                code="task-label",
            )
        return tuple(names[label] for label in range(len(names))), {n: n for n in range(len(names))}
    ordered = sorted(names, key=str)
    return tuple(str(label) for label in ordered), {label: i for i, label in enumerate(ordered)}


def _check_labels(pools: Mapping[str, Rows], label_field: str, name: str) -> None:
    """Refuse rows without a label."""
    for split, rows in pools.items():
        if lacking := [number for number, row in enumerate(rows) if _is_missing(row[label_field])]:
            more = f" and {len(lacking) - 8} more" if len(lacking) > 8 else ""
            raise TaskError(
                f"every row must have a label; in the {split} pool of {name!r}, {label_field!r} is empty or missing in the "
                f"rows {', '.join(map(str, lacking[:8]))}{more} of {len(rows)} (from 0). Drop these rows.",
                code="task-label",
            )


def _plain_value(value: Any) -> Any:
    """A number out of a tensor or an array that holds it alone; anything else as it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def _is_missing(value: Any) -> bool:
    """Whether there is nothing: None, NaN, pandas's NA and NaT, white space."""
    try:
        return value is None or value != value or not str(value).strip()
    except TypeError:  # of pd.NA, nothing is true or false
        return True


def _one_line(value: Any) -> str:
    """A text with its white space as single spaces, so that a line break in it cannot look like the template's."""
    return "" if _is_missing(value) else " ".join(str(value).split())


def _as_number(label: Any) -> Any:
    """A label written in digits as a number (1.0 is 1), any other as text."""
    text = str(label).strip()
    whole = re.fullmatch(r"(-?[0-9]{1,18})(\.0*)?", text)
    return int(whole[1]) if whole else text


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
        texts = tuple(_one_line(row[f]) for f in fields)
        if "" in texts:
            raise TaskError(
                f"every text must hold something; {where} is empty. Drop the row.", code="empty-text"
            )
        found.append(Example(texts, index))
    return tuple(found)
