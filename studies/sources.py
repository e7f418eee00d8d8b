"""Where a study's tasks come from: the Hugging Face Hub or the package by their names, or files in a folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import icl_kernel_lens as ikl
from icl_kernel_lens.tasks.task import Task


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """`--data FOLDER`, the same for every study."""
    parser.add_argument(
        "--data", type=Path, help="folder of NAME.train.jsonl and NAME.test.jsonl; default: the Hub"
    )


def find_task(name: str, data: Path | None, template: ikl.Template | None = None) -> Task:
    """The task of this name; from the folder, where one is given."""
    task: Any = ikl.load_task(data / f"{name}.train.jsonl" if data else name, template=template)
    return task
