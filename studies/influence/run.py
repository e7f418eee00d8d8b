"""The model's own kernel on pretrained models and public tasks, and the heads that are held against it.

    python -m studies.influence.run                  tasks from the Hugging Face Hub
    python -m studies.influence.run --data FOLDER    from NAME.train.jsonl and NAME.test.jsonl in a folder

A cell is a model, a task, a template and a seed: 8 demonstrations, 32 demonstration sets of 8 test inputs each (of the larger
model 4). Heads are located (`locate_heads`, edges at the labels), which measures label influence on 4 test inputs of each set
in two orders, and asks up to 32 heads the six conditions on one half of the sets. Cells that are finished are not run again, and
one that was cut short goes on from where it was; --only picks some. A row a cell goes into OUT/summary.csv, its heads, its numbers
and the fit of every layer's best head into OUT; `python -m studies.influence.page` puts them into docs/kernel_part.md.

The pretrained models are quantised (SmolLM2-135M-Instruct Q4_1, Gemma-3-270M base Q4_K_M, Qwen2.5-Coder-0.5B-Instruct Q4_K_M) and
dequantised to float32; `mini` is the bundled model on the world it was trained on. Does not show: what unquantised models do, or
larger ones; what other templates and seeds give, beyond the cells that vary them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import icl_kernel_lens as ikl
from icl_kernel_lens.numbers.influence import Estimate
from studies.cells import OTHER_TEMPLATE, name_of, print_cells, run_cells
from studies.sources import add_data_option, find_task

MODELS = {"smollm2": 8, "gemma3": 8, "qwen": 4}
"""Test inputs of a set."""
TASKS = ("sst2", "ag_news", "trec", "subj")
FEW = ("sst2", "subj", "ag_news")
"""Tasks of the larger model."""
VARIED = "sst2"
"""The task whose template and seed are varied, on every model."""
DEMOS, SETS = 8, 32
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, order=True)
class Cell:
    """One condition of the study."""

    model: str
    task: str
    template: str = "usual"
    seed: int = 0

    @property
    def name(self) -> str:
        return name_of([self.model, self.task], self.template, self.seed)


def cells() -> Iterator[Cell]:
    """All of them: the same task on every model first, then the others."""
    yield from (Cell("mini", "topics", seed=seed) for seed in range(3))
    for model in MODELS:
        yield from (Cell(model, VARIED, seed=seed) for seed in range(3))
        yield Cell(model, VARIED, template="other")
        yield from (Cell(model, task) for task in (FEW if model == "qwen" else TASKS) if task != VARIED)


def prompts_of(cell: Cell, model: Any, data: Path | None) -> ikl.PromptSet:
    """The cell's prompts; inputs of equally many tokens, so that they can be swapped."""
    template = OTHER_TEMPLATE if cell.template == "other" else None
    task = ikl.load_task("topics") if cell.task == "topics" else find_task(cell.task, data, template)
    each = MODELS.get(cell.model, 4)
    return task.prompts(model, demos=DEMOS, count=SETS * each, sets=SETS, seed=cell.seed, match_lengths=True)


def measured(cell: Cell, model: Any, data: Path | None, work: Path, out: Path) -> dict[str, Any]:
    """Runs one cell; its row of the summary."""
    ranking = ikl.locate_heads(model, prompts_of(cell, model, data), offsets=(0,), checkpoint=work)
    influence, name = ranking.influence, cell.name

    def kept(frame: pd.DataFrame, folder: str) -> None:
        frame.insert(0, "cell", name)
        frame.to_csv(out / folder / f"{name}.csv", index=False, float_format="%.4f")

    notable = ranking.notable()
    kept(notable[notable["transport"].notna() | notable["class"].ne("neither")].copy(), "heads")
    kept(influence.summary(), "numbers")
    kept(influence.profile(), "places")
    kept(ranking.joint_table(), "joint")
    fit = ranking.choosing["fit"]
    kept(pd.DataFrame({"layer": range(len(fit)), "best_fit": fit.nan_to_num(-1).amax(1).tolist()}), "layers")
    kernel = influence.kernel_part()
    numbers = {
        "within": kernel.within,
        "across": kernel.across,
        "additivity": influence.additivity(influence.scale).r2,
    }
    numbers |= {"label_part": influence.label_part(), "last_place": influence.at_place(-1)}
    return {
        **asdict(cell),
        **{f"{of}{end}": x for of, e in numbers.items() for end, x in _ends(e)},
        "null": kernel.null,
        "p": kernel.p,
        "found": kernel.found,
        "kernel_heads": " ".join(map(str, ranking.of("kernel head"))),
        "pair_kernels": " ".join(map(str, ranking.of("pair kernel"))),
        "verdict": ranking.verdict(),
        "accuracy": ranking.accuracy.verdict(),
        "quantisation": ranking.run.quantisation,
    }


def _ends(estimate: Estimate) -> list[tuple[str, float]]:
    return [("", estimate.value), ("_low", estimate.low), ("_high", estimate.high)]


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_data_option(parser)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the tables")
    parser.add_argument("--only", nargs="+", default=[], help="names of cells")
    parser.add_argument("--list", action="store_true", help="print the cells and whether they are finished")
    given = parser.parse_args()
    wanted = [cell for cell in cells() if not given.only or cell.name in given.only]
    if given.list:
        print_cells(wanted, given.out)
        return
    run_cells(
        wanted,
        given.out,
        ("heads", "numbers", "places", "joint", "layers"),
        lambda cell, model, work: measured(cell, model, given.data, work, given.out),
        work="influence-",
    )


if __name__ == "__main__":
    main()
