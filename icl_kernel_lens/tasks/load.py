"""Load a task by its name: a bundled one, a file, or a data set on the Hugging Face Hub."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.errors import TaskError
from icl_kernel_lens.prompts.template import Template
from icl_kernel_lens.tasks.bundled import TEMPLATES, bundled_task
from icl_kernel_lens.tasks.presets import PRESETS, Preset
from icl_kernel_lens.tasks.records import READERS
from icl_kernel_lens.tasks.task import Task
from icl_kernel_lens.tasks.topics import TopicsTask


@checked
def load_task(
    name: str | Path,
    *,
    template: Template | str | None = None,
    label_words: Sequence[str] | Mapping[Any, str] | None = None,
    text_fields: Sequence[str] | None = None,
    label_field: str = "label",
) -> Task | TopicsTask:
    """The task of this name, or from this file.

    A `template` may be given as its text. Bundled are `"opinions"`, `"subjects"` and `"questions"` (English texts; see
    `tasks.bundled`) and, for the bundled model, `"topics"` (held-out pairs of topics and label words of the topics world)
    and `"topics-unseen-labels"` (label words that never were labels in training). A path to a jsonl, csv, tsv
    or parquet file is read with `Task.from_files`: half of its rows feed the demonstrations, the other half are
    test inputs; `NAME.train.jsonl` brings `NAME.test.jsonl` along and is not split. `text_fields` and
    `label_field` name a file's columns. Other names (`sst2`, `mnli`, …; see `tasks.presets`) are fetched from the
    Hugging Face Hub.

    Raises: TaskError: an unknown name, an unreadable file, fields or classes that do not fit.
    """
    text = str(name)
    if text in ("topics", "topics-unseen-labels"):
        if template or label_words or text_fields or label_field != "label":
            raise TaskError(
                f"{text!r} brings its own template, label words and fields; they cannot be changed.",
                code="task-fixed",
            )
        return TopicsTask(words="seen" if text == "topics" else "unseen")
    path = Path(name)
    if path.suffix.lower() in READERS or os.path.isfile(path):
        sibling = path.with_name(path.name.replace(".train.", ".test."))
        return Task.from_files(
            path,
            sibling if sibling != path and sibling.exists() else None,
            text_fields=text_fields,
            label_field=label_field,
            template=template,
            label_words=label_words,
        )
    if text in TEMPLATES:
        return bundled_task(text, template, label_words)  # pyright: ignore[reportArgumentType] (the door turned a text)
    if text in PRESETS:
        return _from_hub(text, PRESETS[text], template, label_words)
    raise TaskError(
        f"unknown task {text!r}. Known names: topics, topics-unseen-labels, {', '.join([*TEMPLATES, *PRESETS])}; or give the "
        f"path of a file ({', '.join(READERS)}).",
        code="task-unknown",
    )


def _from_hub(
    name: str,
    preset: Preset,
    template: Template | str | None,
    label_words: Sequence[str] | Mapping[Any, str] | None,
) -> Task:
    """A preset's task, its data fetched from the Hub through `datasets`."""
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
                "load_task('path/to/file.jsonl') or Task.from_files(train, test).",
                code="hub",
            ) from error
        kept = data.select_columns([*preset.text_fields, preset.label_field])
        rows = [dict(row) for row in kept]  # pyright: ignore[reportArgumentType, reportCallIssue]
        pools.append([row for row in rows if 0 <= row[preset.label_field] < len(classes)])
    return Task.from_records(
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
