"""The model's own kernel on pretrained models and public tasks, and the heads that are held against it.

    python -m studies.influence.run                  tasks from the Hugging Face Hub
    python -m studies.influence.run --data FOLDER    from NAME.train.jsonl and NAME.test.jsonl in a folder

A cell is a model, a task, a template and a seed: 8 demonstrations, 32 demonstration sets (16 of tasks with more than two labels, each
of which is put in place of the others) of 8 test inputs each (of the larger model 4). Heads are located (`locate_heads`, edges at
the labels), which measures label influence on 4 test inputs of each set in two orders, and asks up to 32 heads the six conditions on one half of the sets. Of pretrained models, cells that vary the template or
the seed measure label influence alone, on as many prompts. Cells that are finished are not run again, and one that was cut short goes on
from where it was; --only picks some. A row a cell goes into OUT/summary.csv, its heads, its numbers and the fit of every layer's best
head into OUT; `python -m studies.influence.page` puts them into docs/kernel_part.md.

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
from icl_kernel_lens.results.criteria import HeadClass
from studies.cells import OTHER_TEMPLATE, name_of, print_cells, run_cells
from studies.sources import add_data_option, find_task

MODELS = {"smollm2": 8, "gemma3": 8, "qwen": 4}
"""Test inputs of a set."""
TASKS = ("sst2", "ag_news", "trec", "subj")
FEW = ("sst2", "subj", "ag_news")
"""Tasks of the larger model."""
VARIED = "sst2"
"""The task whose template and seed are varied, on every model."""
DEMOS, SETS, EACH = 8, 32, 4
"""Demonstrations, sets of them, and the test inputs of a set whose influence is measured."""
FEWER = {"ag_news": 16, "trec": 16}
"""Sets of tasks with more than two labels: what is run grows with their number."""
LOCATED: dict[str, HeadClass] = {"kernel_heads": "kernel head", "pair_kernels": "pair kernel"}
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

    @property
    def locates(self) -> bool:
        """Whether heads are looked at, too: of pretrained models, where neither template nor seed is varied."""
        return self.model == "mini" or (self.template == "usual" and not self.seed)

    @property
    def each(self) -> int:
        """Test inputs of a set."""
        return MODELS.get(self.model, EACH) if self.locates else EACH


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
    sets = FEWER.get(cell.task, SETS)
    count = sets * cell.each
    return task.prompts(model, demos=DEMOS, count=count, sets=sets, seed=cell.seed, match_lengths=True)


def measured(cell: Cell, model: Any, data: Path | None, work: Path, out: Path) -> dict[str, Any]:
    """Runs one cell; its row of the summary."""
    prompts = prompts_of(cell, model, data)
    if cell.locates:
        ranking = ikl.locate_heads(model, prompts, offsets=(0,), checkpoint=work)
        influence, verdict, accuracy = ranking.influence, ranking.verdict(), ranking.accuracy
        for folder, frame in of_heads(ranking).items():
            keep(frame, cell, out / folder)
        located: dict[str, Any] = {name: " ".join(map(str, ranking.of(of))) for name, of in LOCATED.items()}
        located["slope_of_model"] = ranking.slope_of_model
    else:
        influence, located = ikl.label_influence(model, prompts, checkpoint=work), {}
        verdict, accuracy = influence.verdict(), influence.accuracy
    keep(influence.summary(), cell, out / "numbers")
    keep(influence.profile(), cell, out / "places")
    kernel = influence.kernel_part()
    numbers = {
        "within": kernel.within,
        "across": kernel.across,
        "additivity": influence.additivity(influence.scale).r2,
    }
    numbers |= {"label_part": influence.label_part(), "last_place": influence.at_place(-1)}
    numbers |= {"gained": influence.gained()}
    return {
        **asdict(cell),
        **{f"{of}{end}": x for of, e in numbers.items() for end, x in _ends(e)},
        "null": kernel.null,
        "p": kernel.p,
        "found": kernel.found,
        **located,
        "verdict": verdict,
        "accuracy": accuracy.verdict(),
        "quantisation": influence.run.quantisation,
    }


def of_heads(ranking: ikl.HeadRanking) -> dict[str, pd.DataFrame]:
    """What is kept of the heads, by the folder."""
    notable, fit = ranking.notable(), ranking.choosing["fit"]
    return {
        "heads": notable[notable["transport"].notna() | notable["class"].ne("neither")].copy(),
        "joint": ranking.joint_table(),
        "layers": pd.DataFrame({"layer": range(len(fit)), "best_fit": fit.nan_to_num(-1).amax(1).tolist()}),
    }


def keep(frame: pd.DataFrame, cell: Cell, folder: Path) -> None:
    """A table of one cell, with the cell's name beside every row."""
    frame.insert(0, "cell", cell.name)
    frame.to_csv(folder / f"{cell.name}.csv", index=False, float_format="%.4f")


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
