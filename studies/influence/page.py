"""Puts the tables of the study's results into docs/kernel_part.md, between the marks that name them.

python -m studies.influence.page
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.tables import Table
from studies.cells import in_words
from studies.influence.run import RESULTS, Cell, cells
from studies.real_models.page import drawn

PAGE = Path(__file__).parents[2] / "docs" / "kernel_part.md"
NAMES: Mapping[str, str] = {
    "mini": "mini",
    "smollm2": "SmolLM2-135M-Instruct",
    "gemma3": "Gemma 3 270M",
    "qwen": "Qwen2.5-Coder-0.5B-Instruct",
}
Row = Mapping[str, Any]
SHOWN = 10
"""Heads of a cell."""
COLUMNS = ("fit", "other_order", "swap_slope", "input_shift", "transport", "kernel_share")
"""Their numbers that have an interval."""


def finished(results: Path) -> list[tuple[Cell, Row]]:
    """The cells that there are results of, in the study's order, each with its row."""
    rows = {path.stem: json.loads(path.read_text()) for path in (results / "cells").glob("*.json")}
    return [(cell, rows[cell.name]) for cell in cells() if cell.name in rows]


def kernel(results: Path) -> Table:
    """The kernel part of every cell, and what else the answer goes by."""
    return Table(
        "The kernel part",
        [
            "cell",
            "kernel part, across orders",
            "p",
            "null, 95 %",
            "within an order",
            "additivity R²",
            "at the last place",
            "gained by the label put in",
        ],
        [
            [
                named(cell),
                _ends(row, "across", 4),
                f"{row['p']:.4f}",
                f"{row['null']:.4f}",
                _ends(row, "within", 3),
                _ends(row, "additivity", 2),
                _ends(row, "last_place", 2),
                _ends(row, "gained", 2),
            ]
            for cell, row in finished(results)
        ],
        "Shares of the variance of label influence in log-odds, 4 test inputs of each demonstration set (32 of them, 16 of tasks with "
        "more than two labels), 8 demonstrations, two orders; 95 % intervals between sets. p: the larger of the exchanges of test "
        "inputs and of demonstrations. Additivity: on the scale on which effects add up better on one half.",
    )


def verdicts(results: Path) -> Table:
    """What is said of every cell."""
    rows: list[list[object]] = [
        [named(cell), row["accuracy"], row["verdict"]] for cell, row in finished(results)
    ]
    return Table("Verdicts", ["cell", "demonstrations", "kernel and heads"], rows)


def heads(results: Path) -> Table:
    """The heads that carry most of the label part, with their conditions."""

    def rows() -> Iterator[list[object]]:
        for cell in (cell for cell, _ in finished(results) if cell.locates):
            table = pd.read_csv(results / "heads" / f"{cell.name}.csv")
            for _, row in table[table["transport"].notna()].head(SHOWN).iterrows():
                yield [
                    named(cell),
                    row["head"],
                    row["class"],
                    *(_ends(row, of, 2) for of in COLUMNS),
                    " / ".join(f"{row[of]:.2f}" for of in ("zeroed", "renormalised", "mean_replaced")),
                    f"{row['fit_cut_below']:.2f}",
                ]

    return Table(
        "Heads",
        [
            *(
                "cell",
                "head",
                "class",
                "fit",
                "fit to the other order",
                "swap slope",
                "changes with the test input",
            ),
            *("carries (transport)", "kernel share", "cuts", "fit, cut below"),
        ],
        list(rows()),
        f"The {SHOWN} heads of each cell that carry most of the label part, measured on one half of the sets; 95 % intervals.",
    )


def named(cell: Cell) -> str:
    """A cell in words."""
    return ", ".join([NAMES[cell.model], cell.task, *in_words(cell.template, cell.seed)])


def _ends(row: Any, name: str, digits: int) -> str:
    value, low, high = (row.get(f"{name}{end}", float("nan")) for end in ("", "_low", "_high"))
    if value != value:
        return "–"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


TABLES: Mapping[str, Callable[[Path], Table]] = {"kernel": kernel, "verdicts": verdicts, "heads": heads}


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    PAGE.write_text(drawn(PAGE.read_text(), given.results, TABLES))
    print(PAGE)


if __name__ == "__main__":
    main()
