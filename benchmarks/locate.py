"""Are planted heads found, and what does looking cost? `python -m benchmarks.locate`.

*Recovery*: transformers with hand-written weights, drawn at random (2–12 layers, 2–16 heads, 0–4 kernel heads, every
decoy, 2–6 labels, 4–32 demonstrations, bandwidths from 0.2 to 1.5, three forms, norms on and off), 400 prompts each,
some two by two with shared demonstrations (the table says how many models). What must be found is said by closed forms, before any model is run: a kernel head that
agrees with the model's answer 0.25 oftener than the best simple explanation, and without whose label edges at least
10 % of the logit difference go. A head found is false if it was not planted as a kernel, or if by closed form its vote
or its effect is below what `locate_heads` calls of interest (0.05 both).

*Cost*: `locate_heads` beside `read` and beside full forward passes, in turns in one process, on a model of 6 layers,
8 heads and width 256 with prompts of 664 tokens: fresh demonstrations, and 16 sets of 16 test inputs.

On one thread: OMP_NUM_THREADS=1. `--tiny` checks this file in seconds. `--first` and `--models` split the models over
several runs, `--out` keeps each run's numbers.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import interleave, median, ratio
from benchmarks.planted import random_plan
from benchmarks.setup import Setup, build, make_prompts
from benchmarks.tables import Table, environment
from icl_kernel_lens import Criteria, HeadRef, PromptSet, knock_out, locate_heads, read
from icl_kernel_lens.worlds.planted.closed_form import PlantedPlan
from icl_kernel_lens.worlds.planted.model import PlantedModel

FRESH = Setup(tests=64)
TINY = replace(FRESH, layers=1, heads=2, width=32, demos=4, demo_tokens=6, test_tokens=5, tests=24)
SETS, SHARING = 16, 16


def recover(seed: int, prompts: int) -> dict[str, Any]:
    """One planted model: what was to be found, what was, and the class of every head."""
    plan = random_plan(seed)
    made = PlantedModel.of(plan)
    sharing = 2 if seed % 10 == 1 else 1
    if plan.demos + sharing > plan.inputs:
        sharing = 1
    shown = plan.prompts(count=prompts, tests_per_set=sharing, seed=1)
    started = time.perf_counter()
    ranking = locate_heads(made.model, shown, progress=False)
    return {
        "seed": seed,
        "shape": [plan.layers, plan.heads_per_layer],
        "form": plan.form,
        "norm": plan.norm,
        "labels": plan.labels,
        "demos": plan.demos,
        "prompts a set": sharing,
        "planted kernels": sum(h.role == "kernel" for h in plan.heads),
        "findable": [str(h) for h in plan.findable],
        "found": [str(h) for h in ranking.heads],
        "false": [str(h) for h in ranking.heads if not is_kernel(plan, h)],
        "heads": [
            [str(h), plan.all_heads[h].role, plan.expected[h], found, plan.clear[h]]
            for h, found in ranking.classes.items()
        ],
        "seconds": time.perf_counter() - started,
    }


def is_kernel(plan: PlantedPlan, head: HeadRef) -> bool:
    """Whether a head was planted as a kernel, and by closed form is above what `locate_heads` calls of interest."""
    fact = plan.facts().set_index("head").loc[str(head)]
    votes = fact["agreement"] - fact["control"] > Criteria().margin
    return bool(plan.all_heads[head].role == "kernel" and votes and fact["effect"] > Criteria().effect)


def recovery(found: list[dict[str, Any]]) -> tuple[Table, Table, dict[str, float]]:
    """Rates over all models."""
    findable = sum(len(m["findable"]) for m in found)
    hit = sum(len(set(m["findable"]) & set(m["found"])) for m in found)
    located, false = (sum(len(m[name]) for m in found) for name in ("found", "false"))
    empty = [m for m in found if m["planted kernels"] == 0]
    proportion = sum(len(m["false"]) / max(1, len(m["found"])) for m in found) / max(1, len(found))
    clean = sum(not m["found"] for m in empty)
    numbers = {
        "recall": hit / max(1, findable),
        "false discovery rate": proportion,
        "models without kernel heads in which none is found": clean / max(1, len(empty)),
    }
    rows: list[list[object]] = [
        ["recall of findable kernel heads", "≥ 0.99", f"{numbers['recall']:.4f} ({hit} of {findable})"],
        [
            "false discovery rate, mean over models",
            "≤ 0.05",
            f"{proportion:.4f} ({false} of {located} heads)",
        ],
        ["none found where no kernel head is", "≥ 0.95", f"{clean} of {len(empty)}"],
    ]
    whole: Counter[str] = Counter()
    right: Counter[str] = Counter()
    wrong: dict[str, Counter[str]] = {}
    for model in found:
        for _, role, expected, got, clear in model["heads"]:
            if not clear:
                continue
            whole[role] += 1
            right[role] += got == expected
            if got != expected:
                wrong.setdefault(role, Counter())[f"{got} instead of {expected}"] += 1
    by_role: list[list[object]] = [
        [
            role,
            count,
            f"{right[role] / count:.4f}",
            "; ".join(f"{n}× {what}" for what, n in wrong.get(role, Counter()).most_common(3)),
        ]
        for role, count in sorted(whole.items())
    ]
    numbers |= {f"class of {role}": right[role] / count for role, count in whole.items()}
    return (
        Table(
            f"{len(found)} planted models",
            ["what", "asked", "measured"],
            rows,
            f"In {sum(m['prompts a set'] > 1 for m in found)} of them prompts share demonstrations two by two.",
        ),
        Table(
            "Heads classed as the closed form says",
            ["role", "heads", "share", "otherwise"],
            by_role,
            "Decoys are asked to be so in ≥ 0.95.",
        ),
        numbers,
    )


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
    parser.add_argument("--tiny", action="store_true", help="two small models, to check this file")
    parser.add_argument("--first", type=int, default=0, help="seed of the first planted model")
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["recovery", "cost"])
    parser.add_argument("--kinds", nargs="+", default=["hooked", "bridge"])
    parser.add_argument(
        "--out", type=Path, help="folder for the numbers; recovery goes on from what is there"
    )
    given = parser.parse_args()
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
    kept = None if given.out is None else given.out / "recovery.jsonl"
    if given.only != "cost":
        found = []
        if kept is not None and kept.exists():
            found = [json.loads(line) for line in kept.read_text().splitlines()]
        done = {model["seed"] for model in found}
        seeds = (0, 5) if given.tiny else range(given.first, given.first + given.models)
        for seed in (seed for seed in seeds if seed not in done):
            found.append(recover(seed, 100 if given.tiny else given.prompts))
            shown = {key: value for key, value in found[-1].items() if key != "heads"}
            print(json.dumps(shown, ensure_ascii=False), flush=True)
            if kept is not None:
                with kept.open("a") as file:
                    file.write(json.dumps(found[-1]) + "\n")
        overall, by_role, numbers = recovery(found)
        print(overall.text(), by_role.text(), sep="\n\n")
        if given.out:
            record = {"environment": environment(), "tables": [overall.to_dict(), by_role.to_dict()]}
            (given.out / "recovery.json").write_text(
                json.dumps(record | {"numbers": numbers}, indent=1) + "\n"
            )
    if given.only != "recovery":
        rows, numbers = [], {}
        for kind in ["bridge"] if given.tiny else given.kinds:
            mine, numbers[kind] = cost(TINY if given.tiny else FRESH, kind, 1 if given.tiny else given.rounds)
            rows += mine
        table = Table(
            "Cost", ["model", "what", "asked", "measured"], rows, "Median (smallest–largest) over rounds."
        )
        print(table.text())
        if given.out:
            record = {"environment": environment(), "table": table.to_dict(), "seconds": numbers}
            (given.out / "locate.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
