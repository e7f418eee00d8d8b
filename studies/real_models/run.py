"""Two small pretrained models on six public tasks: does anything there look like kernel regression?

    python -m studies.real_models.run                  tasks from the Hugging Face Hub
    python -m studies.real_models.run --data FOLDER    from NAME.train.jsonl and NAME.test.jsonl in a folder

A cell is a model, a task, a number of demonstrations, a template and a seed: 32 demonstration sets of 8 test inputs each.
Of each, the accuracy conditions, the vote of every head with its controls, the attention on labels layer by layer, and the
label coverage by offset, that on two test inputs of each set (with more than two classes, one), as its intervals are those
between sets. Cells that are finished are not run again, and one that was cut short goes on from where it was;
--only picks some. Tables go into OUT as csv, a row a cell; `python -m studies.real_models.page` puts them into
docs/real_models.md.

The models are quantised (SmolLM2-135M-Instruct Q4_1, Gemma-3-270M base Q4_K_M) and dequantised to float32. Does not show:
what the unquantised models do, or larger ones; what other templates and seeds give, beyond the cells that vary them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import icl_kernel_lens as ikl
from icl_kernel_lens.tasks.task import Task
from studies.cells import OTHER_TEMPLATE, name_of, print_cells, run_cells
from studies.sources import add_data_option, find_task

MODELS = ("smollm2", "gemma3")
TASKS = ("sst2", "ag_news", "trec", "subj", "rotten_tomatoes", "mnli")
VARIED = ("sst2", "ag_news")
"""Tasks of which template, seed and layers are varied, too, at 8 demonstrations."""
SETS, EACH = 32, 8
"""Demonstration sets, and test inputs of each."""
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, order=True)
class Cell:
    """One condition of the study."""

    model: str
    task: str
    demos: int
    template: str = "usual"
    seed: int = 0

    @property
    def name(self) -> str:
        return name_of([self.model, self.task, self.demos], self.template, self.seed)

    @property
    def chosen(self) -> bool:
        """Whether layers are measured one by one, and figures kept."""
        return (self.task in VARIED, self.demos, self.template, self.seed) == (True, 8, "usual", 0)


def cells() -> Iterator[Cell]:
    """All of them, the quickest model first."""
    for model in MODELS:
        yield from (Cell(model, task, demos) for demos in (8, 16) for task in TASKS)
        yield from (Cell(model, task, 8, template="other") for task in VARIED)
        yield from (Cell(model, task, 8, seed=1) for task in VARIED)


def chosen(only: list[str]) -> Iterator[Cell]:
    """The cells of these names, or whose names begin so; all without any."""
    names = {cell.name for cell in cells()}
    beginnings = tuple(one for one in only if one not in names)
    for cell in cells():
        if not only or cell.name in only or (beginnings and cell.name.startswith(beginnings)):
            yield cell


def task_of(cell: Cell, data: Path | None) -> Task:
    """The cell's task, from the Hub or from a folder."""
    template = OTHER_TEMPLATE if cell.template == "other" else None
    return find_task(cell.task, data, template)


def measured(cell: Cell, model: Any, data: Path | None, work: Path, out: Path) -> dict[str, Any]:
    """Runs one cell; its row of the summary."""
    prompts = task_of(cell, data).prompts(
        model, demos=cell.demos, count=SETS * EACH, sets=SETS, seed=cell.seed
    )
    evidence = ikl.read(model, prompts, checkpoint=work / "read")
    accuracy = ikl.in_context_accuracy(model, prompts, evidence=evidence, checkpoint=work / "accuracy")
    # Signed by the model's own answer: signed by the true label, the label part of a model that is often wrong is near 0.
    how: Any = {"against": "model", "layers": cell.chosen}
    place, covered = torch.arange(SETS * EACH), 2 if prompts.labels == 2 else 1
    few = prompts.select(
        [int(n) for of in prompts.demo_set.unique() for n in place[prompts.demo_set == of][:covered]]
    )
    coverage = ikl.label_coverage(model, few, **how, checkpoint=work / "coverage")
    vote = ikl.head_vote(evidence)
    heads = vote.table().head(20)
    heads.insert(0, "cell", cell.name)
    heads.to_csv(out / "heads" / f"{cell.name}.csv", index=False, float_format="%.4f")
    table = coverage.table()
    table.insert(0, "cell", cell.name)
    table.to_csv(out / "coverage" / f"{cell.name}.csv", index=False, float_format="%.4f")
    layers = pd.DataFrame(
        {
            "layer": range(evidence.run.layers),
            "label_attention": evidence.weights["label"].sum(-1).nanmean((0, 2)).tolist(),
            "best_agreement": vote.mean().nan_to_num().amax(1).tolist(),
        }
    )
    layers.to_csv(out / "layers" / f"{cell.name}.csv", index=False, float_format="%.4f")
    if cell.chosen:
        coverage.layer_table().to_csv(
            out / "coverage" / f"{cell.name}-layers.csv", index=False, float_format="%.4f"
        )
        for name, figure in (
            ("heads", vote.figure()),
            ("attention", evidence.figure()),
            ("coverage", coverage.figure()),
        ):
            (out / "figures").mkdir(exist_ok=True)
            (out / "figures" / f"{cell.name}-{name}.png").write_bytes(figure.png(scale=1))
    best = heads.iloc[0]
    part, conditions = coverage.label_part(), accuracy.to_dataframe().set_index("name")
    return {
        **asdict(cell),
        **{
            f"{name}_{end}".rstrip("_"): row[end or "mean"]
            for name, row in conditions.iterrows()
            for end in ("", "low", "high")
        },
        "verdict": accuracy.verdict(),
        "label_part": part.value,
        "label_part_low": part.low,
        "label_part_high": part.high,
        "smallest_set": str(coverage.smallest_set().offsets),
        "best_head": best["head"],
        **{name: best[name] for name in ("head_vote", "strongest_control", "control", "above_control_low")},
        "quantisation": evidence.run.quantisation,
    }


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_data_option(parser)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the tables and figures")
    parser.add_argument("--only", nargs="+", default=[], help="names of cells, or their beginnings")
    parser.add_argument("--list", action="store_true", help="print the cells and whether they are finished")
    given = parser.parse_args()
    wanted = list(chosen(given.only))
    if given.list:
        print_cells(wanted, given.out)
        return
    run_cells(
        wanted,
        given.out,
        ("heads", "coverage", "layers"),
        lambda cell, model, work: measured(cell, model, given.data, work, given.out),
    )


if __name__ == "__main__":
    main()
