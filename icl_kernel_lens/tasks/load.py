"""Load a task: the bundled one, a file, records in memory, or a name on the Hub."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icl_kernel_lens.errors import TaskError
from icl_kernel_lens.tasks.presets import PRESETS, Preset
from icl_kernel_lens.tasks.task import Example, Task
from icl_kernel_lens.tasks.template import Template

if TYPE_CHECKING:
    from icl_kernel_lens.worlds.topics import TopicsTask

READERS = (".jsonl", ".csv", ".tsv", ".parquet")


def load_task(
    name: str | Path,
    *,
    template: Template | str | None = None,
    label_words: Sequence[str] | None = None,
    text_fields: Sequence[str] | None = None,
    label_field: str = "label",
) -> Task | TopicsTask:
    """A task by name or from a file.

    `"topics"` is bundled (held-out pairs of topics and label words of the topics world);
    `"topics-unseen-labels"` uses label words that never were labels in training. A path to a jsonl, csv, tsv
    or parquet file is read with `Task.from_files`: half of its rows feed the demonstrations, the other half are
    test inputs; `NAME.train.jsonl` brings `NAME.test.jsonl` along and is not split. `text_fields` and
    `label_field` name a file's columns. Other names (`sst2`, `mnli`, …; see `tasks.presets`) are fetched from the Hugging Face Hub.

    Raises: TaskError: an unknown name, an unreadable file, fields or classes that do not fit.
    """
    from icl_kernel_lens.worlds.topics import TopicsTask

    if isinstance(template, str):
        template = Template(template)
    text = str(name)
    if text in ("topics", "topics-unseen-labels"):
        if template or label_words:
            raise TaskError(f"{text!r} brings its own template and label words; they cannot be changed.")
        return TopicsTask(words="seen" if text == "topics" else "unseen")
    path = Path(name)
    if path.suffix in READERS or path.exists():
        if not path.is_file():
            raise TaskError(f"a task file must exist; there is none at {path}.")
        train, test = path, None
        if ".train." in path.name:
            sibling = path.with_name(path.name.replace(".train.", ".test."))
            test = sibling if sibling.exists() else None
        return task_from_files(
            train,
            test,
            text_fields=text_fields,
            label_field=label_field,
            template=template,
            label_words=label_words,
        )
    if text in PRESETS:
        return _from_hub(text, PRESETS[text], template, label_words)
    raise TaskError(
        f"unknown task {text!r}. Known names: topics, topics-unseen-labels, {', '.join(PRESETS)}; or give the "
        f"path of a file ({', '.join(READERS)})."
    )


def task_from_files(
    train: str | Path,
    test: str | Path | None = None,
    *,
    name: str | None = None,
    text_fields: Sequence[str] | None = None,
    label_field: str = "label",
    classes: Sequence[str] | None = None,
    label_words: Sequence[str] | None = None,
    template: Template | None = None,
    licence: str = "unknown",
) -> Task:
    """See `Task.from_files`."""
    train = Path(train)
    name = name or train.name.split(".")[0]
    rows = _read_file(train)
    if test is None:
        # One file feeds both pools: a fixed half of the rows each.
        order = random.Random(0).sample(range(len(rows)), len(rows))
        held = frozenset(order[: len(rows) // 2])
        pools = [r for i, r in enumerate(rows) if i not in held], [r for i, r in enumerate(rows) if i in held]
    else:
        pools = rows, _read_file(Path(test))
    return task_from_records(
        *pools,
        name=name,
        text_fields=text_fields,
        label_field=label_field,
        classes=classes,
        label_words=label_words,
        template=template,
        origin=f"{train.name}" + (f", {Path(test).name}" if test else " (split in halves)"),
        licence=licence,
    )


def task_from_records(
    train: Iterable[Mapping[str, Any]],
    test: Iterable[Mapping[str, Any]],
    *,
    name: str = "records",
    text_fields: Sequence[str] | None = None,
    label_field: str = "label",
    classes: Sequence[str] | None = None,
    label_words: Sequence[str] | None = None,
    template: Template | None = None,
    origin: str = "given in memory",
    licence: str = "unknown",
) -> Task:
    """See `Task.from_records`."""
    pools = list(train), list(test)
    for split, rows in zip(("train", "test"), pools, strict=True):
        if not rows:
            raise TaskError(f"both pools need examples; the {split} pool of {name!r} is empty.")
    preset = PRESETS.get(name)
    fields = tuple(text_fields or (("text", "text2") if "text2" in pools[0][0] else ("text",)))
    if classes is None:
        known, numbers = _classes(pools, label_field, name)
    else:
        known = tuple(classes)
        # A label is a class's name or, failing that, its number: names that are digits come first.
        numbers = {i: i for i in range(len(known))}
        numbers |= {_as_number(word): i for i, word in enumerate(known)}
    if template is None:
        template = (
            preset.template
            if preset
            else Template(
                "Input: {text}\nOutput: {label}"
                if len(fields) == 1
                else "First: {text}\nSecond: {text2}\nOutput: {label}"
            )
        )
    if label_words is None:
        label_words = _preset_words(preset, known) or known
    return Task(
        name=name,
        classes=known,
        label_words=tuple(label_words),
        template=template,
        train=_examples(pools[0], "train", fields, label_field, known, numbers, name),
        test=_examples(pools[1], "test", fields, label_field, known, numbers, name),
        origin=origin,
        licence=licence,
    )


def _read_file(path: Path) -> list[dict[str, Any]]:
    import pandas as pd

    if not path.is_file():
        raise TaskError(f"a task file must exist; there is none at {path}.")
    try:
        match path.suffix:
            case ".jsonl":
                return _json_lines(path)
            case ".csv":
                frame = pd.read_csv(path, dtype=str, keep_default_na=False)
            case ".tsv":
                frame = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=3)
            case ".parquet":
                frame = pd.read_parquet(path)
            case other:
                raise TaskError(
                    f"a task file must be one of {', '.join(READERS)}; {path.name} ends in {other!r}."
                )
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error
    return frame.to_dict("records")


def _json_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
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
    pools: tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]], label_field: str, name: str
) -> tuple[tuple[str, ...], dict[Any, int]]:
    """The classes in order: of their numbers (named by `label_name` where there is one), or of the alphabet;
    and which label is which class."""
    names: dict[Any, str] = {}
    for split, rows in zip(("train", "test"), pools, strict=True):
        for number, row in enumerate(rows):
            if label_field not in row:
                raise TaskError(
                    f"every example needs the label field {label_field!r}; row {number} of the {split} pool of "
                    f"{name!r} has {sorted(row)}. Name the field with label_field."
                )
            label = _as_number(row[label_field])
            names.setdefault(label, str(row.get("label_name", row[label_field])))
    numbers = [label for label in names if isinstance(label, int)]
    if numbers and len(numbers) == len(names):
        missing = sorted(set(range(max(numbers) + 1)) - set(numbers))
        if min(numbers) < 0 or missing:
            raise TaskError(
                f"label numbers must count up from 0 without gaps; {name!r} has {sorted(numbers)}. Give the "
                "labels as names, or pass classes."
            )
        return tuple(names[label] for label in range(len(names))), {n: n for n in range(len(names))}
    ordered = sorted(names, key=str)
    return tuple(str(label) for label in ordered), {label: i for i, label in enumerate(ordered)}


def _as_number(label: Any) -> Any:
    """Labels written as digits count as numbers."""
    text = str(label).strip()
    return int(text) if text.isascii() and text.removeprefix("-").isdecimal() else text


def _preset_words(preset: Preset | None, classes: tuple[str, ...]) -> tuple[str, ...] | None:
    """The preset's word for each class, found by the class's name; None if one is not there."""
    if preset is None:
        return None
    words = {_plain(name): word for name, word in preset.words.items()}
    found = [words.get(_plain(name)) for name in classes]
    return None if None in found else tuple(word for word in found if word is not None)


def _plain(name: str) -> str:
    return name.lower().replace("not-", "non-").replace("non_", "non-")


def _examples(
    rows: list[Mapping[str, Any]],
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
        if missing := [f for f in (*fields, label_field) if f not in row]:
            raise TaskError(
                f"every example needs the fields {[*fields, label_field]}; {where} lacks {missing} and has "
                f"{sorted(row)}. Name them with text_fields and label_field."
            )
        index = numbers.get(_as_number(row[label_field]))
        if index is None:
            raise TaskError(
                f"every label must be a class; {where} has {row[label_field]!r} and the classes are "
                f"{list(classes)}. Add it to classes, or drop the row."
            )
        # White space is made plain, so that a line break in a text cannot look like the template's.
        texts = tuple(
            " ".join(str(row[f]).split()) if row[f] == row[f] and row[f] is not None else "" for f in fields
        )
        if "" in texts:
            raise TaskError(f"every text must hold something; {where} is empty. Drop the row.")
        found.append(Example(texts, index))
    return tuple(found)


def _from_hub(
    name: str, preset: Preset, template: Template | None, label_words: Sequence[str] | None
) -> Task:
    """A preset's data from the Hub, through `datasets`."""
    from datasets import load_dataset

    classes = tuple(preset.words)
    pools: list[list[dict[str, Any]]] = []
    for split in (preset.train, preset.test):
        try:
            data = load_dataset(preset.path, preset.config, split=split, revision=preset.revision)
        except Exception as error:  # the loader's own errors are many and share no base
            raise TaskError(
                f"could not load {name!r} ({preset.path}, split {split!r}) from the Hub: "
                f"{type(error).__name__}: {error}. Is there a network? A local copy works too: "
                "load_task('path/to/file.jsonl') or Task.from_files(train, test)."
            ) from error
        kept = data.select_columns([*preset.text_fields, preset.label_field])
        rows = [dict(row) for row in kept]  # pyright: ignore[reportArgumentType, reportCallIssue]
        pools.append([row for row in rows if 0 <= row[preset.label_field] < len(classes)])
    return task_from_records(
        *pools,
        name=name,
        text_fields=preset.text_fields,
        label_field=preset.label_field,
        classes=classes,
        label_words=label_words,
        template=template,
        origin=f"Hugging Face Hub, {preset.path}" + (f" ({preset.config})" if preset.config else ""),
        licence=preset.licence,
    )
