"""Is every planted head given its class? Kernel heads beside one kind of impostor, and impostors alone, by closed form.

Before a model is run, closed forms say what every head is (`PlantedPlan.facts`: what of the label part and of the kernel part it
carries), which heads must be found (kernel heads and pair kernels with a tenth of both), and whether the model's answer has a
kernel part at all. Where it has none, nothing can be a kernel of it: a head then reads labels, or is neither. Heads near a
threshold, heads of models whose kernel part is neither clearly there nor clearly absent, and carriers, whose cuts are not in
the closed form, are not counted. Every number that
a class is told by is kept, so that changed rules can be tried without running a model again (`again`).
"""

from __future__ import annotations

import csv
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.planted import IMPOSTORS, impostor_plan
from benchmarks.tables import Table, save
from icl_kernel_lens import Criteria, HeadRef, locate_heads
from icl_kernel_lens.locate.classes import answered, classify
from icl_kernel_lens.numbers.influence import pair_part, pair_products, variance_whole
from icl_kernel_lens.prompts.corrupt_inputs import drawn_orders, reorder_demos
from icl_kernel_lens.results.criteria import KERNEL_CLASSES
from icl_kernel_lens.results.label_influence import ROUNDING
from icl_kernel_lens.worlds.planted.closed_form import PlantedPlan
from icl_kernel_lens.worlds.planted.model import PlantedModel
from icl_kernel_lens.worlds.planted.roles import MATTERS
from icl_kernel_lens.worlds.planted.wires import CARRIERS

SETS, EACH = 32, 4
"""Demonstration sets, and test inputs of each."""
ABSENT, PRESENT = 0.002, 0.02
"""Kernel parts across orders: below the first there is none, from the second on there is one."""
MIXED = (0.4, 0.6)
"""Mixtures of a kernel with an echo that are neither."""
SEEN = 1
"""Seeds below this had been looked at when rules of `locate/classes.py` were last changed, and that of a mixture above it."""
KINDS = (*IMPOSTORS, "mixture")


def cases(each: int, kinds: Sequence[str] = KINDS) -> Iterator[tuple[str, int, bool]]:
    """Kind, seed, and whether a kernel head is there; every kind once, then every kind again."""
    for seed in range(each):
        for kind in kinds:
            for kernel in (True, False) if kind != "mixture" else (True,):
                yield kind, seed, kernel


def kernel_part(plan: PlantedPlan) -> float:
    """Σ I · I′ / Σ (G − Ḡ)² by the closed form, I′ of another order of the demonstrations."""
    prompts = plan.prompts(count=1024, tests_per_set=EACH, seed=13_579)
    other, _ = reorder_demos(prompts, 0, model=None)
    places = torch.tensor(drawn_orders(prompts, 0)).argsort(1)
    own = plan.influence(prompts)
    again = plan.influence(other).gather(1, places)
    pairs = [pair_part(one, prompts.demo_set) for one in (own, again)]
    if pairs[0].square().sum() <= ROUNDING * own.square().sum():
        return 0.0
    product = pair_products(*pairs)
    size = float(variance_whole(own).sum())
    return float(product.nansum()) / size


def truths(plan: PlantedPlan) -> tuple[float, list[dict[str, Any]]]:
    """The model's kernel part, and of every head what it is, whether it is counted, and what must be found."""
    part = kernel_part(plan)
    rows = []
    for fact in plan.facts().to_dict("records"):
        head = plan.all_heads[HeadRef(fact["layer"], fact["index"])]
        mixed = MIXED[0] <= head.echo_share <= MIXED[1]
        truth = fact["expected"]
        if part < ABSENT:
            truth = "reads labels" if abs(fact["label_share"]) >= MATTERS else "neither"
        rows.append(
            {
                "head": fact["head"],
                "role": fact["role"],
                "echo_share": head.echo_share,
                "truth": truth,
                "counted": bool(
                    fact["clear"]
                    and not mixed
                    and not ABSENT <= abs(part) < PRESENT
                    and fact["role"] not in CARRIERS
                ),
                "findable": bool(fact["findable"] and part >= PRESENT and not mixed),
                "label_share": round(fact["label_share"], 4),
                "kernel_share": round(fact["kernel_share"], 4),
                "fit": round(fact["fit"], 4),
                "lead_share": round(fact["effect"], 4),
            }
        )
    return part, rows


def measure(kind: str, seed: int, kernel: bool) -> dict[str, Any]:
    """What was planted in one model, and what is said of it."""
    plan = impostor_plan(kind, seed, kernel=kernel)
    part, heads = truths(plan)
    made = PlantedModel.of(plan)
    prompts = plan.prompts(count=SETS * EACH, tests_per_set=EACH, seed=seed + 1)
    started = time.perf_counter()
    ranking = locate_heads(made.model, prompts, progress=False)
    said = ranking.influence.kernel_part()
    for head, name in zip(heads, ranking.classes.values(), strict=True):
        head["said"] = name
    return {
        "kind": kind,
        "seed": seed,
        "kernel": kernel,
        "model": plan.in_words(),
        "kernel_part": round(part, 5),
        "kernel_part_said": [said.found, said.across.value, said.across.low, said.p],
        "slope_of_model": ranking.slope_of_model,
        "heads": heads,
        "columns": {name: values.tolist() for name, values in ranking.columns.items()},
        "selected": {name: values.tolist() for name, values in ranking.selected.items()},
        "choosing": {name: values.tolist() for name, values in ranking.choosing.items()},
        "seconds": time.perf_counter() - started,
    }


def again(model: dict[str, Any]) -> dict[str, Any]:
    """The same model with classes by the rules as they are now, from the numbers that were measured."""
    criteria = Criteria()
    columns = {name: torch.tensor(values) for name, values in model["columns"].items()}
    # An answer that was taken back for what the columns do not show (`no_echo`, `transports`) stays so.
    unknown = {name: columns[name].isnan() for name in ("no_echo", "transports")}
    columns |= answered(columns, model["slope_of_model"], criteria)
    columns |= {name: columns[name].masked_fill(which, torch.nan) for name, which in unknown.items()}
    selected = {name: torch.tensor(values) for name, values in model["selected"].items()}
    undone = frozenset(HeadRef.of(h["head"]) for h in model["heads"] if h["said"] == "cancelling")
    part = model["kernel_part_said"][0] in ("real", "tiny")
    names = classify(columns, selected, criteria, kernel_part=part, cancelling=undone)
    heads = [head | {"said": name} for head, name in zip(model["heads"], names, strict=True)]
    return model | {"heads": heads}


def tables(models: Sequence[dict[str, Any]]) -> list[Table]:
    """Rates over all models, what was said of impostors, and of mixtures."""
    every = [(model, head) for model in models for head in model["heads"]]
    findable = [head for _, head in every if head["findable"]]
    found = [head["said"] in KERNEL_CLASSES for head in findable]
    located = [(m, h) for m, h in every if h["said"] in KERNEL_CLASSES]
    false = [(m, h) for m, h in located if h["truth"] not in KERNEL_CLASSES and _pure(h)]
    per_model = [
        sum(m is model for m, _ in false) / max(1, sum(m is model for m, _ in located)) for model in models
    ]
    empty = [m for m in models if not any(h["truth"] in KERNEL_CLASSES for h in m["heads"])]
    absent = [m for m in models if m["kernel_part"] < ABSENT]
    present = [m for m in models if m["kernel_part"] >= PRESENT]

    def none(some: Sequence[dict[str, Any]]) -> str:
        clean = sum(not any(h["said"] in KERNEL_CLASSES for h in m["heads"]) for m in some)
        return f"{clean} of {len(some)}"

    def of(hits: int, whole: int) -> str:
        return f"{hits / max(1, whole):.4f} ({hits} of {whole})"

    def right(some: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> str:
        counted = [h["said"] == h["truth"] for _, h in some if h["counted"]]
        return of(sum(counted), len(counted))

    rejected = sum(m["kernel_part_said"][0] in ("real", "tiny") for m in absent)
    missed = sum(m["kernel_part_said"][0] not in ("real", "tiny") for m in present)
    rates = [
        ["recall of findable heads (kernel head or pair kernel said)", of(sum(found), len(found))],
        ["false discoveries, of all heads located", of(len(false), len(located))],
        ["false discovery rate, mean over models", f"{sum(per_model) / max(1, len(models)):.4f}"],
        ["none located where there is neither kernel head nor pair kernel", none(empty)],
        ["none located where the model has no kernel part", none(absent)],
        ["kernel part found where there is none", f"{rejected} of {len(absent)}"],
        ["kernel part not found where there is one", f"{missed} of {len(present)}"],
        ["heads of clear class given it", right(every)],
        [
            "the same of heads that are neither idle nor in a model that rules were mended after",
            right([(m, h) for m, h in every if _unseen(m) and h["role"] != "idle"]),
        ],
    ]
    by_role: dict[tuple[str, str], Counter[str]] = {}
    for _, head in every:
        if head["counted"] and head["role"] != "idle" and not head["echo_share"]:
            by_role.setdefault((head["role"], head["truth"]), Counter())[head["said"]] += 1
    confusion = [
        [role, truth, sum(said.values()), f"{said[truth] / sum(said.values()):.2f}", _others(said, truth)]
        for (role, truth), said in sorted(by_role.items())
    ]
    idle = Counter(h["said"] for _, h in every if h["role"] == "idle")
    confusion.append(
        [
            "idle",
            "neither",
            sum(idle.values()),
            f"{idle['neither'] / max(1, sum(idle.values())):.2f}",
            _others(idle, "neither"),
        ]
    )
    bins: dict[str, Counter[str]] = {}
    for _, head in every:
        if share := head["echo_share"]:
            low = min(4, int(share * 5)) / 5
            bins.setdefault(f"{low:.1f}–{low + 0.2:.1f}", Counter())[head["said"]] += 1
    mixtures = [[at, sum(said.values()), _others(said, "")] for at, said in sorted(bins.items())]
    count = f"{len(models)} planted models, {sum(m['kernel'] for m in models)} of them with a kernel head"
    return [
        Table(count, ["what", "measured"], rates),
        Table("What is said of each role", ["role", "is", "heads", "said so", "otherwise"], confusion),
        Table(
            "Mixtures",
            ["share of an echo in the scores", "heads", "said"],
            mixtures,
            "0.4–0.6 is not counted above.",
        ),
    ]


def _pure(head: dict[str, Any]) -> bool:
    """Whether a head is no mixture that is neither."""
    return not MIXED[0] <= head["echo_share"] <= MIXED[1]


def _unseen(model: dict[str, Any]) -> bool:
    """Whether it had not been looked at when rules were last changed."""
    return model["seed"] >= SEEN + (model["kind"] == "mixture")


def _others(said: Counter[str], truth: str) -> str:
    return ", ".join(f"{count} {name}" for name, count in said.most_common() if name != truth)


NAMED = (
    "head",
    "role",
    "echo_share",
    "truth",
    "counted",
    "findable",
    "label_share",
    "kernel_share",
    "fit",
    "lead_share",
    "said",
)


def write_csv(models: Sequence[dict[str, Any]], path: Path) -> None:
    """A row a head: what it is and what was said, which another tool could fill in instead."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("kind", "seed", "kernel", "kernel_part", *NAMED))
        for m in models:
            for head in m["heads"]:
                rows.writerow(
                    (m["kind"], m["seed"], m["kernel"], m["kernel_part"], *(head[name] for name in NAMED))
                )


def classes(each: int, kinds: Sequence[str], out: Path | None) -> None:
    """Run what has not been run, and print and save the tables of all that has."""
    kept = None if out is None else out / "recovery_classes.jsonl"
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    models = _read(kept)
    for kind, seed, kernel in cases(each, kinds):
        if (kind, seed, kernel) in {(m["kind"], m["seed"], m["kernel"]) for m in _read(kept) or models}:
            continue
        models.append(measure(kind, seed, kernel))
        odd = [
            f"{h['head']} {h['role']}: {h['said']}, not {h['truth']}"
            for h in models[-1]["heads"]
            if h["counted"] and h["said"] != h["truth"]
        ]
        print(kind, seed, kernel, f"{models[-1]['seconds']:.0f} s", *odd, sep="; ", flush=True)
        if kept is not None:
            with kept.open("a") as file:
                file.write(json.dumps(models[-1]) + "\n")
    order = {case: at for at, case in enumerate(cases(max([each, *(m["seed"] + 1 for m in models)])))}
    models = [
        again(m)
        for m in sorted(_read(kept) or models, key=lambda m: order[m["kind"], m["seed"], m["kernel"]])
    ]
    made = tables(models)
    print(*(table.text() for table in made), sep="\n\n")
    if out is not None:
        save(out, "recovery_classes", "Classes of planted heads", made)
        write_csv(models, out / "recovery_classes.csv")


def _read(kept: Path | None) -> list[dict[str, Any]]:
    if kept is None or not kept.exists():
        return []
    models = [json.loads(line) for line in kept.read_text().splitlines()]
    return list({(m["kind"], m["seed"], m["kernel"]): m for m in models}.values())
