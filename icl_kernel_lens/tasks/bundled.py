"""The tasks that come with the package: short English texts that were written for it, so that no network is needed.

    opinions     sentiment, 2 classes, 320 texts
    subjects     topic, 4 classes, 320 texts
    questions    what kind of answer is asked for, 6 classes, 360 texts

For trying things out, and for tests. Does not show: what a model does on text of other hands; a result about a model is
one on public data sets (`tasks.presets`). "topics" is another thing: the made-up language of the bundled model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from icl_kernel_lens.prompts.template import Template
from icl_kernel_lens.tasks.task import Task

TEXTS = Path(__file__).parent / "texts"
TEMPLATES: Mapping[str, Template] = {
    "opinions": Template("Opinion: {text}\nSentiment: {label}"),
    "subjects": Template("Text: {text}\nTopic: {label}"),
    "questions": Template("Question: {text}\nAsks for: {label}"),
}


def bundled_task(
    name: str, template: Template | None, label_words: Sequence[str] | Mapping[Any, str] | None
) -> Task:
    """A bundled task: half of its texts feed the demonstrations, the other half are test inputs, always the same."""
    return Task.from_files(
        TEXTS / f"{name}.jsonl",
        name=name,
        template=template or TEMPLATES[name],
        label_words=label_words,
        origin="written for this package",
        licence="MIT",
    )
