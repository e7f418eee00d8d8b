"""What reading and locating cost on a pretrained model: SmolLM2-135M, prompts of 16 demonstrations, about 320 tokens each.

    python -m studies.fetch smollm2                      once
    python -m benchmarks.real --data FOLDER              NAME.train.jsonl and NAME.test.jsonl of sst2; default: the Hub
    python -m benchmarks.real --locate --out results     and `locate_heads` of 256 prompts in 32 sets, some minutes

    fresh     prompts of their own demonstrations, singly: `read` over Hugging Face's sdpa forward pass, which reads nothing
    shared    4 sets of 8 test inputs: `read` over the same forward pass over each different token once, the floor: the
              demonstrations of each set, and every test input as a row of its own that sees none of them
    locate    wall-clock seconds, the tokens it counts, and how its bar's estimate of the whole stood at a quarter and a half

The forward passes unembed the last position alone. Cases take turns (`measure.py`); ratios are medians of rounds.
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import icl_kernel_lens as ikl
from benchmarks import measure
from benchmarks.tables import Table, save
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.run import progress
from icl_kernel_lens.tasks.task import Task
from studies.fetch import cache_folder, fetch
from studies.sources import add_data_option, find_task

DEMOS, FRESH, SETS, EACH = 16, 8, 4, 8
LOCATE_SETS, LOCATE_PROMPTS, MINUTES, GIGABYTES = 32, 256, 15, 4


def pretrained(data: Path | None) -> tuple[Any, Any, Task]:
    """SmolLM2, the same weights in Hugging Face's own code (sdpa), and sst2."""
    from transformers import AutoModelForCausalLM

    file = fetch("smollm2", cache_folder())
    hf = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    return ikl.load_model(file), hf, find_task("sst2", data)


def forward(hf: Any, rows: list[torch.Tensor]) -> Callable[[], None]:
    """Hugging Face's own pass over each row."""

    def run() -> None:
        with torch.no_grad():
            for row in rows:
                hf(row[None], logits_to_keep=1)

    return run


def floor(hf: Any, prompts: PromptSet) -> Callable[[], None]:
    """Each set's demonstrations once, and its test inputs together, padded behind."""
    batches: list[torch.Tensor] = []
    for of in prompts.demo_set.unique():
        some = [int(n) for n in (prompts.demo_set == of).nonzero()]
        end = int(prompts.demo_spans[some[0], -1, 1])
        batches.append(prompts.tokens[some[:1], :end])
        longest = int(prompts.lengths[some].max())
        batches.append(prompts.tokens[some, end:longest])

    def run() -> None:
        with torch.no_grad():
            for batch in batches:
                hf(batch, logits_to_keep=1)

    return run


def reading(model: Any, hf: Any, task: Any, rounds: int) -> Table:
    """Both ratios."""
    fresh = task.prompts(model, demos=DEMOS, count=FRESH, seed=0)
    shared = task.prompts(model, demos=DEMOS, count=SETS * EACH, sets=SETS, seed=0)
    rows = [fresh.tokens[n, : fresh.lengths[n]] for n in range(FRESH)]
    runs: dict[str, Callable[[], object]] = {
        "sdpa": forward(hf, rows),
        "fresh": lambda: ikl.read(model, fresh, progress=False),
        "floor": floor(hf, shared),
        "shared": lambda: ikl.read(model, shared, progress=False),
    }
    measure.interleave(runs, 1)  # untimed
    seconds = measure.interleave(runs, rounds)
    table = []
    for name, under, most in (("fresh", "sdpa", 1.1), ("shared", "floor", 2.0)):
        found = measure.ratio(seconds, name, under)
        met = "met" if found.median <= most else "missed"
        table.append(
            [f"{name} / {under}", f"≤ {most}", str(found), met, f"{measure.median(seconds[name]):.2f}"]
        )
    return Table("Reading", ["what", "asked", "measured", "result", "seconds"], table)


def locating(model: Any, task: Any) -> Table:
    """One run, and what its bar said on the way."""
    prompts = task.prompts(model, demos=DEMOS, count=LOCATE_PROMPTS, sets=LOCATE_SETS, seed=0)
    said: list[tuple[float, float, float]] = []
    draw = progress._Bar.draw

    def noting(bar: progress._Bar, tokens: float, words: str, *, kept: bool) -> None:
        draw(bar, tokens, words, kept=kept)
        said.append((time.perf_counter() - begun, bar.whole.so_far(), bar.whole.total()))

    progress._Bar.draw = noting  # pyright: ignore[reportAttributeAccessIssue]
    begun = time.perf_counter()
    ikl.locate_heads(model, prompts)
    took = time.perf_counter() - begun
    rows = [
        ["locate_heads", f"< {60 * MINUTES} s", f"{took:.0f} s", "met" if took < 60 * MINUTES else "missed"]
    ]
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    met = "met" if most < GIGABYTES else "missed"
    rows.append(["peak memory of the process", f"< {GIGABYTES} GiB", f"{most:.1f} GiB", met])
    for share in (0.25, 0.5, 0.75):
        at, done, total = next(one for one in said if one[0] >= share * took)
        rows.append(
            [
                f"its estimate of the whole after {share:.0%}",
                f"{took:.0f} s",
                f"{at * total / done:.0f} s",
                "",
            ]
        )
    return Table("Locating: 256 prompts in 32 sets", ["what", "asked", "measured", "result"], rows)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_data_option(parser)
    parser.add_argument("--locate", action="store_true", help="locate heads, too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for real.md and real.json")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    model, hf, task = pretrained(given.data)
    tables = [reading(model, hf, task, given.rounds)]
    print(tables[0].text(), flush=True)
    if given.locate:
        tables.append(locating(model, task))
        print(tables[1].text())
    if given.out:
        save(given.out, "real", f"SmolLM2-135M (Q4_1), sst2, {DEMOS} demonstrations", tables)


if __name__ == "__main__":
    main()
