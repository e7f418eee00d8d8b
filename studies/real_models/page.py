"""Puts the tables of a study's results into docs/real_models.md, between the marks that name them.

    python -m studies.real_models.page

A line `<!-- table: NAME -->` begins a table, `<!-- end -->` ends it; the text around them is written by hand.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.tables import Table
from studies.cells import in_words
from studies.real_models.run import RESULTS, VARIED, Cell, cells

PAGE = Path(__file__).parents[2] / "docs" / "real_models.md"
NAMES: Mapping[str, str] = {"smollm2": "SmolLM2-135M-Instruct", "gemma3": "Gemma 3 270M"}
Row = Mapping[str, Any]


def finished(results: Path) -> list[tuple[Cell, Row]]:
    """The cells that there are results of, in the study's order, each with its row."""
    rows = {path.stem: json.loads(path.read_text()) for path in (results / "cells").glob("*.json")}
    return [(cell, rows[cell.name]) for cell in cells() if cell.name in rows]


def accuracy(results: Path) -> Table:
    """Whether there is anything to explain."""
    columns = ["demonstrations", "permuted_labels", "no_demonstrations", "majority"]
    rules = ["last_label", "commonest_answer"]
    return Table(
        "Accuracy, and the simple rules",
        ["cell", *(name.replace("_", " ") for name in columns), "last label gives", "commonest answer gives"],
        [
            [*_named(cell), *(_percent(row, name) for name in (*columns, *rules))]
            for cell, row in finished(results)
        ],
        "Percent of 256 prompts in 32 demonstration sets, with 95 % intervals between sets; the rules, of the model's answers.",
    )


def votes(results: Path) -> Table:
    """The head whose vote is surest above its strongest control."""
    return Table(
        "The surest head of each cell",
        [
            "cell",
            "head",
            "votes as the model answers",
            "strongest control",
            "control does",
            "surely above it by",
        ],
        [
            [
                *_named(cell),
                row["best_head"],
                f"{row['head_vote']:.1%}",
                str(row["strongest_control"]).replace("_", " "),
                f"{row['control']:.1%}",
                f"{100 * row['above_control_low']:+.1f} points",
            ]
            for cell, row in finished(results)
        ],
        "The lower end of the interval of the difference, of all heads the largest; not corrected for having been chosen.",
    )


def coverage(results: Path) -> Table:
    """Where labels enter, of the tasks that are varied."""

    def rows() -> Iterator[list[str]]:
        for cell, row in finished(results):
            if cell.task not in VARIED:
                continue
            table = pd.read_csv(results / "coverage" / f"{cell.name}.csv")
            table = table[table["cut"] == "zeroed"].set_index("offsets")
            single = [name for name in table.index if "," not in name]
            every = max(table.index, key=len)
            part = f"{row['label_part']:.2f} [{row['label_part_low']:.2f}, {row['label_part_high']:.2f}]"
            for name in (*single, every):
                of = table.loc[name]
                shares = [
                    f"{of[word]:.2f} [{of[f'{word}_low']:.2f}, {of[f'{word}_high']:.2f}]"
                    for word in ("lost", "kept")
                ]
                yield [*_named(cell), part, "all" if name == every else name, *shares]

    return Table(
        "Where labels enter",
        ["cell", "label part t, logits", "offset", "lost when cut", "kept alone"],
        list(rows()),
        "Shares of the label part t, signed by the model's answer, with the answer's edges to that offset zeroed in all heads, "
        "or all edges to the demonstrations but these; 95 % intervals between sets.",
    )


def layers(results: Path) -> Table:
    """Which layers look at labels, and in which the loss of these edges is felt."""

    def rows() -> Iterator[list[str]]:
        for cell, _ in finished(results):
            profile = pd.read_csv(results / "layers" / f"{cell.name}.csv").set_index("layer")
            most = profile["label_attention"].nlargest(5)
            cut = ""
            if cell.chosen:
                table = pd.read_csv(results / "coverage" / f"{cell.name}-layers.csv")
                table = table[(table["cut"] == "zeroed") & (table["offset"] == 0)].set_index("layer")
                cut = _listed(table["lost"].nlargest(5))
            yield [*_named(cell), _listed(most), cut]

    return Table(
        "Layers",
        [
            "cell",
            "most attention on labels (share of a row, mean over heads)",
            "largest loss without its label edges",
        ],
        list(rows()),
        "The five largest of each, layers from 0; losses as shares of the label part, one layer's label edges zeroed.",
    )


def _named(cell: Cell) -> list[str]:
    return [
        ", ".join(
            [
                NAMES[cell.model],
                cell.task,
                f"{cell.demos} demonstrations",
                *in_words(cell.template, cell.seed),
            ]
        )
    ]


def _percent(row: Row, name: str) -> str:
    value, low, high = (100 * row[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _listed(values: pd.Series) -> str:
    return ", ".join(f"{layer}: {value:.2f}" for layer, value in values.items())


TABLES: Mapping[str, Callable[[Path], Table]] = {
    "accuracy": accuracy,
    "votes": votes,
    "coverage": coverage,
    "layers": layers,
}


def drawn(page: str, results: Path, tables: Mapping[str, Callable[[Path], Table]] = TABLES) -> str:
    """The page with the tables of these results."""

    def table(found: re.Match[str]) -> str:
        return f"{found[1]}\n{tables[found[2]](results).markdown()}\n\n<!-- end -->"

    return re.sub(r"(<!-- table: (\w+) -->).*?<!-- end -->", table, page, flags=re.DOTALL)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    PAGE.write_text(drawn(PAGE.read_text(), given.results))
    print(PAGE)


if __name__ == "__main__":
    main()
