"""What a pass costs beside the tokens it runs, and what is saved by running few of them.

    python -m benchmarks.passes                                    the bundled model
    python -m benchmarks.passes --model FILE.gguf --task sst2 --data FOLDER --demos 16 --sets 2

    a pass     the tokens that cost as much as a pass does however few it runs: seconds of one token behind 50 that were run, over
               what each more costs (between 64 and 1,024 in rows of 64); `run/prefixes.py` reckons with `pass_cost`
    influence  seconds of `label_influence` (one order, without the accuracy) with every shared beginning in a pass of its own, over
               those as it is run; and the tokens that are run more; and with every block of keys attended apart
               (`numbers/attention.py`)

Cases take turns (`measure.py`); ratios are medians of rounds.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import icl_kernel_lens as ikl
from benchmarks import measure
from benchmarks.tables import Table, save
from icl_kernel_lens.influence.measure import Plan, label_influence
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.models.attention_passes import read_prefix
from icl_kernel_lens.models.verify import verify_model
from icl_kernel_lens.numbers import attention
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.run import runner
from studies.sources import add_data_option, find_task

BEFORE, ROW, ROWS = 50, 64, 16


def cost(model: Any, rounds: int) -> list[str]:
    """What a pass costs, in tokens."""
    adapter = as_adapter(model)
    verify_model(adapter)
    draw = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randint(0, adapter.shape.vocab, shape, generator=draw)

    parent = read_prefix(adapter, drawn(1, BEFORE))
    sizes = {"one": (1, 1), "row": (1, ROW), "rows": (ROWS, ROW)}
    runs = {name: partial(read_prefix, adapter, drawn(*shape), parent) for name, shape in sizes.items()}
    seconds = {name: measure.median(each) for name, each in measure.interleave(runs, rounds).items()}
    more = (seconds["rows"] - seconds["row"]) / (ROW * (ROWS - 1))
    return [
        "a pass, in tokens",
        f"{seconds['one'] / more:.0f}",
        f"reckoned with: {runner.cost_of_pass(adapter)}; {seconds['one'] * 1e3:.0f} ms, and {more * 1e3:.3f} ms a token",
    ]


def influence(model: Any, prompts: PromptSet, rounds: int) -> list[list[str]]:
    """Label influence with each beginning apart, over how it is run."""
    accuracy = ikl.in_context_accuracy(model, prompts, progress=False)
    adapter, parts = as_adapter(model), Plan.of(as_adapter(model), prompts, 1, 0).parts

    def apart(run: Callable[[], Any]) -> Any:
        with patch.object(runner, "pass_cost", lambda *_: 0):
            return run()

    def blocks_apart(run: Callable[[], Any]) -> Any:
        with patch.object(attention, "_attend_together", lambda *_: None):
            return run()

    def once() -> ikl.LabelInfluence:
        return label_influence(model, prompts, orders=1, accuracy=accuracy, progress=False)

    def tokens() -> float:
        return sum(runner.tokens_to_run(part, adapter) for part in parts)

    others = {"beginning": apart, "block of keys": blocks_apart}
    seconds = measure.interleave(
        {"few": once} | {name: partial(change, once) for name, change in others.items()}, rounds
    )
    whole = once().values
    worst = {name: float((change(once).values - whole).abs().max()) for name, change in others.items()}
    return [
        *(
            [
                f"label influence, each {name} apart / as it is run",
                str(measure.ratio(seconds, name, "few")),
                f"{measure.median(seconds['few']):.1f} s; values differ by at most {worst[name]:.1e}",
            ]
            for name in others
        ),
        ["tokens run / with each beginning apart", f"{tokens() / apart(tokens):.2f}", ""],
    ]


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_data_option(parser)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--task", default="topics")
    parser.add_argument("--demos", type=int, default=8)
    parser.add_argument("--sets", type=int, default=8)
    parser.add_argument("--each", type=int, default=8, help="test inputs of a set")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for passes.md and passes.json")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = ikl.load_model(given.model)
    task = ikl.load_task(given.task) if given.model == "mini" else find_task(given.task, given.data, None)
    prompts = task.prompts(model, demos=given.demos, count=given.sets * given.each, sets=given.sets, seed=0)
    name = as_adapter(model).name
    about = f"{name}, {given.task}, {given.demos} demonstrations, {len(prompts)} prompts in {given.sets} sets"
    rows = [cost(model, 5 * given.rounds), *influence(model, prompts, given.rounds)]
    table = Table(about, ["what", "measured", ""], rows)
    print(table.text())
    if given.out:
        save(given.out, f"passes_{name.split('/')[-1].split('.')[0].lower()}", "What a pass costs", [table])


if __name__ == "__main__":
    main()
