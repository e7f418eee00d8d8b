"""What label influence and carried influence cost on a pretrained model: SmolLM2-135M, sst2, 16 demonstrations.

    python -m studies.fetch smollm2                           once
    python -m benchmarks.influence --data FOLDER --out results     NAME.train.jsonl and NAME.test.jsonl of sst2; default: the Hub

    tokens     that `label_influence` runs in one order, over the different beginnings of all its relabelled prompts (each
               node of their trie once: the least that any run needs), and over the prompts' own tokens
    passes     seconds over those of Hugging Face's sdpa forward pass of the same prompts, whole and one by one: of
               `label_influence` in one order (without the accuracy), and of `carried_influence` of all heads and of one layer's

Cases take turns (`measure.py`); ratios are medians of rounds.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import icl_kernel_lens as ikl
from benchmarks import measure
from benchmarks.real import forward, pretrained
from benchmarks.tables import Table, save
from icl_kernel_lens.influence.measure import Plan, label_influence
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.run.runner import tokens_to_run
from studies.sources import add_data_option

DEMOS, SETS, EACH, CARRIED = 16, 2, 8, 2


def beginnings(prompts: PromptSet) -> int:
    """How many different beginnings these prompts have, of any length: the nodes of their trie."""
    seen: set[bytes] = set()
    for row, length in zip(prompts.tokens.int().numpy(), prompts.lengths.tolist(), strict=True):
        seen.update(row[: end + 1].tobytes() for end in range(length))
    return len(seen)


def tokens(model: Any, prompts: PromptSet) -> Table:
    """What is run, over what there is."""
    adapter = as_adapter(model)
    parts = Plan.of(adapter, prompts, 1, 0).parts
    run, least = sum(tokens_to_run(x, adapter) for x in parts), sum(map(beginnings, parts))
    own = float(prompts.lengths.sum())
    rows = [
        ["tokens run / different beginnings", "≤ 1.3", f"{run / least:.2f}"],
        ["tokens run / the prompts' own tokens", "about 2.4", f"{run / own:.2f}"],
        ["different beginnings / the prompts' own tokens", "", f"{least / own:.2f}"],
    ]
    return Table(f"Tokens: {len(prompts)} prompts in {SETS} sets", ["what", "asked", "measured"], rows)


def passes(model: Any, hf: Any, prompts: PromptSet, rounds: int) -> Table:
    """Seconds over those of plain forward passes."""
    accuracy = ikl.in_context_accuracy(model, prompts, progress=False)
    influence = label_influence(model, prompts, orders=1, accuracy=accuracy, progress=False)
    few = list(range(CARRIED))
    layer = [f"L{influence.run.layers // 2}H{head}" for head in range(influence.run.heads)]
    whole = [prompts.tokens[n, : prompts.lengths[n]] for n in range(len(prompts))]
    runs: dict[str, Callable[[], object]] = {
        "forward": forward(hf, whole),
        "influence": lambda: label_influence(model, prompts, orders=1, accuracy=accuracy, progress=False),
        "forward of few": forward(hf, whole[:CARRIED]),
        "carried": lambda: ikl.carried_influence(model, influence, prompts=few, progress=False),
        "carried, one layer": lambda: ikl.carried_influence(
            model, influence, heads=layer, prompts=few, progress=False
        ),
    }
    seconds = measure.interleave(runs, rounds)
    rows = []
    for name, under, asked in (
        ("influence", "forward", "about 2.4"),
        ("carried", "forward of few", "≤ 9"),
        ("carried, one layer", "forward of few", ""),
    ):
        rows.append(
            [
                f"{name} / forward",
                asked,
                str(measure.ratio(seconds, name, under)),
                f"{measure.median(seconds[name]):.1f}",
            ]
        )
    return Table("Passes", ["what", "asked", "measured", "seconds"], rows)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_data_option(parser)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for influence.md and influence.json")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    model, hf, task = pretrained(given.data)
    prompts: Any = task.prompts(model, demos=DEMOS, count=SETS * EACH, sets=SETS, seed=0)
    tables = [tokens(model, prompts)]
    print(tables[0].text(), flush=True)
    tables.append(passes(model, hf, prompts, given.rounds))
    print(tables[1].text())
    if given.out:
        title = f"Label influence: SmolLM2-135M (Q4_1), sst2, {DEMOS} demonstrations"
        save(given.out, "influence", title, tables)


if __name__ == "__main__":
    main()
