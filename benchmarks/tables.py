"""Tables for the terminal and for markdown, and what was run on what."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Table:
    """A title, columns, rows of text, and a sentence on how to read it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""

    def text(self) -> str:
        """In columns, for a terminal."""
        lines = [list(self.columns), *([str(cell) for cell in row] for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        drawn = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines]
        drawn.insert(1, "  ".join("-" * w for w in widths))
        return "\n".join([self.title, self.note, *drawn] if self.note else [self.title, *drawn])

    def markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        drawn = ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]
        return "\n".join([f"### {self.title}", "", *([self.note, ""] if self.note else []), *drawn])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"rows": [[str(cell) for cell in row] for row in self.rows]}


def environment() -> dict[str, str]:
    """Date, processor, threads, versions."""
    found = {"date": date.today().isoformat(), "processor": _processor()}
    found["threads"] = str(torch.get_num_threads())
    found["python"] = platform.python_version()
    for package in ("torch", "transformers", "transformer-lens", "nnsight", "icl-kernel-lens"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def save(folder: Path, name: str, title: str, tables: Sequence[Table], **more: Any) -> None:
    """Write tables with what they ran on as NAME.md and NAME.json, the latter with `more`."""
    about = environment()
    says = "; ".join(f"{key} {value}" for key, value in about.items())
    text = "\n\n".join([f"# {title}\n\n{says}", *(table.markdown() for table in tables)])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    found = {"environment": about, "tables": [table.to_dict() for table in tables], **more}
    (folder / f"{name}.json").write_text(
        json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
    return f"{names[0]}, {len(names)} logical cores" if names else platform.machine()


def size(count: float) -> str:
    """Bytes in MiB or GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
