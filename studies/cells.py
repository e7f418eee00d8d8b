"""What studies of several cells share: a cell's name, what takes the usual template's place, and the running of what is not finished.

A cell's row is kept in OUT/cells, and all rows in OUT/summary.csv; a cell that was cut short goes on from where it was.
"""

from __future__ import annotations

import datetime
import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pandas as pd

import icl_kernel_lens as ikl
from icl_kernel_lens.results.run_info import versions
from studies.fetch import cache_folder, fetch

OTHER_TEMPLATE = ikl.Template("{text}\nAnswer: {label}", separator="\n\n")
"""That of cells which vary it."""


class AnyCell(Protocol):
    """One condition of a study."""

    @property
    def model(self) -> str: ...

    @property
    def name(self) -> str: ...


C = TypeVar("C", bound=AnyCell)


def name_of(parts: Sequence[object], template: str, seed: int) -> str:
    """A cell's name: what it is of, and what of it is not as usual."""
    more = [template] * (template != "usual") + [f"seed{seed}"] * (seed != 0)
    return "-".join([*map(str, parts), *more])


def in_words(template: str, seed: int) -> list[str]:
    """What of a cell is not as usual."""
    return [f"{template} template"] * (template != "usual") + [f"seed {seed}"] * (seed != 0)


def run_cells(
    wanted: Iterable[C],
    out: Path,
    folders: Sequence[str],
    measured: Callable[[C, Any, Path], dict[str, Any]],
    work: str = "",
) -> None:
    """Run the cells that have no row yet; `measured(cell, model, folder of unfinished work)` gives one."""
    rows = out / "cells"
    for folder in ("cells", *folders):
        (out / folder).mkdir(parents=True, exist_ok=True)
    loaded: tuple[str, Any] = ("", None)
    for cell in wanted:
        if (rows / f"{cell.name}.json").exists():
            continue
        if loaded[0] != cell.model:
            source = cell.model if cell.model == "mini" else fetch(cell.model, cache_folder())
            loaded = cell.model, ikl.load_model(source)
        place = cache_folder() / "studies" / f"{work}{cell.name}"
        print(cell.name, flush=True)
        begun = time.process_time()
        row = measured(cell, loaded[1], place)
        row |= {"cpu_seconds": round(time.process_time() - begun), "date": datetime.date.today().isoformat()}
        row |= versions()
        (rows / f"{cell.name}.json").write_text(json.dumps(row, indent=1, default=float) + "\n")
        shutil.rmtree(place, ignore_errors=True)
    summary = [json.loads(path.read_text()) for path in sorted(rows.glob("*.json"))]
    pd.DataFrame(summary).to_csv(out / "summary.csv", index=False, float_format="%.4f")
    print(out / "summary.csv")


def print_cells(wanted: Iterable[AnyCell], out: Path) -> None:
    """The cells and whether they are finished."""
    for cell in wanted:
        print(cell.name, "finished" if (out / "cells" / f"{cell.name}.json").exists() else "")
