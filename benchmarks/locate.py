"""What does looking for heads cost? `python -m benchmarks.locate`.

`locate_heads` beside `read` and beside full forward passes, in turns in one process, on a model of 6 layers,
8 heads and width 256 with prompts of 664 tokens: fresh demonstrations, and 16 sets of 16 test inputs. Whether heads are given
their classes is in `recovery.py`.

On one thread: OMP_NUM_THREADS=1. `--tiny` checks this file in seconds, `--out` keeps the numbers.
"""

from __future__ import annotations

import argparse
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import interleave, median, ratio
from benchmarks.setup import Setup, build, make_prompts
from benchmarks.tables import Table, environment
from icl_kernel_lens import PromptSet, knock_out, locate_heads, read

FRESH = Setup(tests=64)
TINY = replace(FRESH, layers=1, heads=2, width=32, demos=4, demo_tokens=6, test_tokens=5, tests=24)
SETS, SHARING = 16, 16


def shared_prompts(setup: Setup) -> PromptSet:
    """Sets of demonstrations, each with several test inputs."""
    alike = make_prompts(replace(setup, tests=SETS), shared=False)
    random = torch.Generator().manual_seed(1)
    tests = torch.randint(10, 500, (SETS * SHARING, setup.test_tokens), generator=random)
    tokens = alike.tokens.repeat_interleave(SHARING, 0)
    tokens[:, setup.shared :] = tests
    return PromptSet.from_tokens(
        tokens,
        alike.label_pos.repeat_interleave(SHARING, 0),
        alike.demo_labels.repeat_interleave(SHARING, 0),
        alike.label_tokens[0],
        demo_set=torch.arange(SETS).repeat_interleave(SHARING),
    )


def cost(setup: Setup, kind: Any, rounds: int) -> tuple[list[list[object]], dict[str, Any]]:
    """Rows of one model class, and seconds."""
    model = build(kind, setup)
    fresh, shared = make_prompts(setup, shared=False), shared_prompts(setup)
    evidence = {"fresh": read(model, fresh, progress=False), "shared": read(model, shared, progress=False)}
    half = fresh.select(range(len(fresh) // 2))

    def plain(prompts: PromptSet) -> None:
        with torch.no_grad():
            for row in prompts.tokens.split(8):
                model(row, return_type="logits")

    some = shared.select(range(0, len(shared), SHARING))
    seconds = interleave(
        {
            "read": lambda: read(model, fresh, progress=False),
            "selection and edges": lambda: locate_heads(
                model, fresh, evidence=evidence["fresh"], progress=False
            ),
            "all": lambda: locate_heads(model, fresh, progress=False),
            "edges of all heads": lambda: knock_out(model, half, controls=False, progress=False),
        },
        rounds,
    )
    seconds |= interleave(
        {
            "forward, shared": lambda: plain(some),
            "selection and edges, shared": lambda: locate_heads(
                model, shared, evidence=evidence["shared"], progress=False
            ),
            "all, shared": lambda: locate_heads(model, shared, progress=False),
        },
        rounds,
        each={"forward, shared": float(SHARING)},
    )
    name = {"hooked": "HookedTransformer", "bridge": "TransformerBridge"}[kind]
    rows: list[list[object]] = [
        [
            name,
            "fresh: locate_heads, evidence given ÷ read",
            "≤ 3",
            ratio(seconds, "selection and edges", "read"),
        ],
        [name, "fresh: locate_heads, reading included ÷ read", "", ratio(seconds, "all", "read")],
        [
            name,
            "shared: locate_heads, evidence given ÷ full forward passes",
            "≤ 1",
            ratio(seconds, "selection and edges, shared", "forward, shared"),
        ],
        [
            name,
            "shared: locate_heads, reading included ÷ full forward passes",
            "",
            ratio(seconds, "all, shared", "forward, shared"),
        ],
        [name, "seconds: read, fresh", "", f"{median(seconds['read']):.2f}"],
    ]
    return rows, seconds


def main() -> None:
    warnings.simplefilter("ignore", UserWarning)
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a small model, to check this file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=["hooked", "bridge"])
    parser.add_argument("--out", type=Path, help="folder for locate.json")
    given = parser.parse_args()
    rows, numbers = [], {}
    for kind in ["bridge"] if given.tiny else given.kinds:
        mine, numbers[kind] = cost(TINY if given.tiny else FRESH, kind, 1 if given.tiny else given.rounds)
        rows += mine
    table = Table(
        "Cost", ["model", "what", "asked", "measured"], rows, "Median (smallest–largest) over rounds."
    )
    print(table.text())
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        record = {"environment": environment(), "table": table.to_dict(), "seconds": numbers}
        (given.out / "locate.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
