"""What `icl_kernel_lens.read` costs, as ratios to its peers and to passes that read nothing.

    python -m benchmarks.read [--model neox|llama|gpt2] [--out benchmarks/results]

Random weights in float32, one thread. `setup.py` has the models and prompts, `peers.py` what is compared,
`measure.py` how time and memory are taken. Every peer's weights are compared with ours before anything is
timed. Peers run their prompts, or batches of 8, independently; so they are timed on `--peer-prompts` prompts
and multiplied to the full number. Ours and the forward passes beside it are timed on all prompts.

    python -m benchmarks.read --gpu          a model of GPT-J-6B's shape on a CUDA device; see `gpu.py`
    python -m benchmarks.read --gpu --tiny   the same code on a tiny shape, without a GPU

Does not show: what a trained model's text costs to tokenise, nor the time to load a model.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from benchmarks import gpu as on_gpu
from benchmarks import growth, measure
from benchmarks.measure import Ratio, Seconds, median, ratio
from benchmarks.peers import CASES, Case
from benchmarks.setup import BATCH, Architecture, Kind, Setup, build, make_prompts, short_prompts
from benchmarks.tables import Table, environment, size
from icl_kernel_lens import PromptSet
from icl_kernel_lens.models.transformer_lens_adapters import transformer_lens_classes

TOLERANCE = 1e-5
"""Largest difference allowed between a peer's weights and ours."""
LONG = {"demos": 101, "test_tokens": 28, "tests": 1}
"""One prompt of 2,048 tokens."""
MANY = {"demos": 128, "tests": 200}
LONG_CASES = ("fresh-hooked", "fresh-bridge", "forward-hooked", "forward-bridge", "forward-sdpa")


class Bench:
    """Models and prompts, built once; the comparisons; the tables that come out."""

    def __init__(self, setup: Setup, rounds: int, peer_prompts: int) -> None:
        self.setup, self.rounds, self.peer_prompts = setup, rounds, peer_prompts
        self.prompts = {shared: make_prompts(setup, shared=shared) for shared in (True, False)}
        self.models: dict[Kind, Any] = {}
        self.left_out: dict[str, str] = {}
        self.seconds: dict[str, Seconds] = {}
        hooked_class, _ = transformer_lens_classes()
        if hooked_class is None:
            reason = "this TransformerLens has no HookedTransformer"
            self.left_out = {name: reason for name, case in CASES.items() if case.kind == "hooked"}

    def names(self, *wanted: str) -> list[str]:
        """Those of the cases that can be run here."""
        return [name for name in wanted if name not in self.left_out]

    def of_role(self, role: str) -> list[str]:
        return self.names(*(name for name, case in CASES.items() if case.role == role))

    def run(self, name: str, prompts: PromptSet | None = None) -> Callable[[], object]:
        case = CASES[name]
        if case.kind not in self.models:
            self.models[case.kind] = build(case.kind, self.setup)
        return partial(case.run, self.models[case.kind], prompts or self.prompts[case.shared])

    def check(self) -> Table:
        """Compare what each reader returns on one batch; readers that cannot run are left out, with the reason."""
        reference: dict[bool, Any] = {}
        rows = []
        for name in self.names(*CASES):
            case = CASES[name]
            part = self.prompts[case.shared].select(range(min(BATCH, self.setup.tests)))
            try:
                found: Any = self.run(name, part)()
            except Exception as error:
                if case.role == "ours":
                    raise
                lines = str(error).strip().splitlines() or [""]
                self.left_out[name] = f"{type(error).__name__}: {lines[-1]}"
                continue
            if case.role == "forward":  # nothing to compare; it has been run once
                continue
            if case.shared not in reference:
                reference[case.shared] = found
                continue
            difference = (found - reference[case.shared]).abs().max().item()
            if not difference <= TOLERANCE:
                raise RuntimeError(
                    f"every reader must find the same weights to {TOLERANCE}; {_title(name)} differs by "
                    f"{difference:.1e}."
                )
            rows.append([_title(name), f"{difference:.1e}"])
        note = f"Largest difference of weights on {BATCH} prompts; the run stops above {TOLERANCE}."
        return Table("Readers agree", ["reader", "difference from ours"], rows, note)

    def time(self, group: str, names: list[str], rounds: int, *, part: int | None = None) -> Seconds:
        """Seconds of each case in each round, on all prompts, or (but ours shared) on `part` of them, multiplied."""
        runs, each = {}, {}
        for name in names:
            prompts = self.prompts[CASES[name].shared]
            if part is not None and not (CASES[name].role == "ours" and CASES[name].shared):
                prompts = prompts.select(range(part))
                each[name] = self.setup.tests / part
            runs[name] = self.run(name, prompts)
        self.seconds[group] = measure.interleave(runs, rounds, each=each)
        return self.seconds[group]

    def readings(self) -> tuple[Table, list[list[object]]]:
        """The table of ratios, and the rows of targets on time."""
        rows: list[list[object]] = []
        targets: list[list[object]] = []

        def add(group: str, names: list[str], what: str, under: str | None, memory: dict[str, int]) -> None:
            seconds = self.seconds[group]
            for name in names:
                against = "" if under is None or under == name else str(ratio(seconds, name, under))
                rows.append([what, _title(name), f"{median(seconds[name]):.2f}", against, size(memory[name])])

        memory = {name: memory_of(name, self.setup) for name in self.names(*CASES)}
        shared = self.names("shared-hooked", "shared-bridge")
        seconds = self.time("shared", ["floor", *shared], 3 * self.rounds)
        add("shared", [*shared, "floor"], "shared / floor", "floor", memory)
        for name in shared:
            targets.append(_target(f"shared, {_class(name)} / floor", "≤ 2", ratio(seconds, name, "floor")))

        fresh = self.names("fresh-hooked", "fresh-bridge")
        seconds = self.time("fresh", ["forward-sdpa", *fresh], self.rounds)
        add("fresh", [*fresh, "forward-sdpa"], "fresh / sdpa forward", "forward-sdpa", memory)
        for name, most in (("fresh-bridge", 1.15), ("fresh-hooked", 1.25)):
            if name in fresh:
                found = ratio(seconds, name, "forward-sdpa")
                targets.append(
                    _target(f"fresh, {_class(name)} / Hugging Face sdpa forward", f"≤ {most}", found)
                )

        plain = self.names("forward-hooked", "forward-bridge")
        seconds = self.time("plain", [*fresh, *plain], self.rounds - 2, part=self.peer_prompts)
        add("plain", plain, "plain forward / fresh", "fresh-bridge", memory)
        if "forward-hooked" in plain:
            for name in fresh:
                found = ratio(seconds, "forward-hooked", name)
                targets.append(
                    _target(f"plain HookedTransformer forward / fresh, {_class(name)}", "≥ 2.5", found)
                )

        peers = self.of_role("peer")
        seconds = self.time("peers", ["shared-bridge", *peers], self.rounds - 2, part=self.peer_prompts)
        add("peers", peers, "peer / shared, bridge", "shared-bridge", memory)
        best = min(peers, key=lambda name: median(seconds[name]))
        found = ratio(seconds, best, "shared-bridge")
        targets.append(_target(f"best peer ({_title(best)}) / shared, TransformerBridge", "≥ 9", found))
        targets.append(self._many())

        for name, reason in self.left_out.items():
            rows.append(["left out", _title(name), "", reason, ""])
        note = (
            "Ratios are medians over rounds (smallest–largest), each of cases that took turns; memory is the rise "
            f"of the peak, peers and forward passes on {BATCH} prompts."
        )
        columns = ["comparison", "case", "seconds", "ratio", "memory"]
        return Table("Seconds, ratios and memory", columns, rows, note), targets

    def _many(self) -> list[object]:
        """128 demonstrations and 200 test inputs, against the peers that take prompts as long as that."""
        setup = replace(self.setup, **MANY)
        prompts = make_prompts(setup, shared=True)
        ours = {"shared-bridge": self.run("shared-bridge", prompts)}
        names = [n for n in self.of_role("peer") if CASES[n].kind != "hooked" and not n.endswith("-8")]
        runs = {name: self.run(name, prompts.select([0])) for name in names}
        first = measure.interleave(runs, 1, each=dict.fromkeys(names, setup.tests))
        best = min(names, key=lambda name: first[name][0])
        each = {best: setup.tests}
        seconds = measure.interleave(ours | {best: runs[best]}, 3, each=each)
        self.seconds |= {"many, first": first, "many": seconds}
        what = (
            f"{setup.demos} demonstrations, {setup.tests} test inputs: best peer ({_title(best)}, timed on 1 prompt at a time) "
            "/ shared, TransformerBridge"
        )
        return _target(what, "≥ 40", ratio(seconds, best, "shared-bridge"))


def long_prompt(setup: Setup, left_out: dict[str, str]) -> tuple[Table, list[list[object]]]:
    """One fresh prompt of 2,048 tokens: memory, and tensors as large as head × position²."""
    setup = replace(setup, **LONG)
    square = setup.heads * setup.length**2
    prompts = make_prompts(setup, shared=False)
    rows: list[list[object]] = []
    targets: list[list[object]] = []
    names = [name for name in LONG_CASES if name not in left_out]
    memory = {name: int(median([memory_of(name, setup) for _ in range(3)])) for name in names}
    for name in names:
        model = build(CASES[name].kind, setup)
        CASES[name].run(model, short_prompts(setup, CASES[name].shared))
        count, largest = measure.created(partial(CASES[name].run, model, prompts), square)
        against = memory[name] / memory["forward-sdpa"]
        rows.append([_title(name), size(memory[name]), f"{against:.2f}", count, f"{largest:,}"])
        if CASES[name].role == "ours":
            targets.append(
                _target(f"memory at {setup.length} tokens, {_class(name)} / sdpa forward", "≤ 1.2", against)
            )
            targets.append(_target(f"tensors of head × position² created, {_class(name)}", "= 0", count))
    note = (
        f"Rise of the peak, the median of three processes; tensors of at least {square:,} elements created in a pass that is not timed, and the "
        "elements of the largest."
    )
    columns = ["case", "memory", "/ sdpa forward", "head × position²", "largest tensor"]
    return Table(f"One fresh prompt of {setup.length:,} tokens", columns, rows, note), targets


def memory_of(name: str, setup: Setup) -> int:
    """Bytes that a case raises the peak by, from a process of its own."""
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in asdict(setup).items()]
    return measure.in_subprocess("--memory", name, *flags)["bytes"]


def measure_memory(name: str, setup: Setup) -> int:
    """The same, in this process."""
    case = CASES[name]
    model = build(case.kind, setup)
    prompts = make_prompts(setup, shared=case.shared)
    if not case.shared or case.role == "peer":
        prompts = prompts.select(range(min(BATCH, setup.tests)))
    case.run(model, short_prompts(setup, case.shared))
    return measure.peak_rise(partial(case.run, model, prompts))


def _title(name: str) -> str:
    case: Case = CASES[name]
    return case.title if case.role != "ours" else f"{case.title}, {'shared' if case.shared else 'fresh'}"


def _class(name: str) -> str:
    return CASES[name].title.removeprefix("ours, ")


def _target(what: str, asked: str, measured: Ratio | float) -> list[object]:
    """What, asked, measured, and whether it is met."""
    sign, bound = asked.split()
    value = measured.median if isinstance(measured, Ratio) else measured
    met = {"≤": value <= float(bound), "≥": value >= float(bound), "=": value == float(bound)}[sign]
    shown = measured if isinstance(measured, Ratio) else f"{value:.2f}" if value else "0"
    return [what, asked, shown, "met" if met else "MISSED"]


def main(
    model: Architecture = "neox",
    out: Path | None = None,
    rounds: int = 5,
    peer_prompts: int = 8,
    layers: int = 6,
    heads: int = 8,
    width: int = 256,
    demos: int = 32,
    demo_tokens: int = 20,
    tests: int = 32,
    test_tokens: int = 24,
    memory: Annotated[str | None, tyro.conf.arg(metavar="CASE")] = None,
    gpu: bool = False,
    tiny: bool = False,
    peer_seconds: float = 60,
) -> None:
    """Measure what reading costs and print it as ratios.

    Args:
        model: Architecture of the random-weight model.
        out: Folder to write read.json, read.md, growth.svg and growth.png into (with --gpu: gpu.json and gpu.md).
        rounds: Turns that the cases of a comparison take; at least 3.
        peer_prompts: Prompts that peers are timed on; their seconds are multiplied to the number of test inputs.
        memory: Print the rise of the peak of memory of this one case as JSON, and end.
        gpu: Measure on a CUDA device, with a model of GPT-J-6B's shape.
        tiny: With --gpu: a tiny shape, on the CPU where there is no GPU.
        peer_seconds: With --gpu: seconds that each peer gets.
    """
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    setup = Setup(model, layers, heads, width, demos, demo_tokens, tests, test_tokens)
    with torch.no_grad():
        if memory is not None:
            print(json.dumps({"case": memory, "bytes": measure_memory(memory, setup)}))
        elif gpu:
            on_gpu.main(out, tiny=tiny, peer_seconds=peer_seconds)
        else:
            _measure(setup, out, max(rounds, 3), peer_prompts)


def _measure(setup: Setup, out: Path | None, rounds: int, peer_prompts: int) -> None:
    start = time.perf_counter()
    bench = Bench(setup, rounds, min(peer_prompts, setup.tests))
    agreement = bench.check()
    print(agreement.text(), end="\n\n", flush=True)
    readings, targets = bench.readings()
    print(readings.text(), end="\n\n", flush=True)
    bench.models.clear()
    long, more = long_prompt(setup, bench.left_out)
    print(long.text(), end="\n\n", flush=True)
    columns = ["what", "asked", "measured", "result"]
    summary = Table("Targets", columns, [*targets, *more])
    print(summary.text(), end="\n\n", flush=True)
    tables = [summary, readings, long, agreement]
    where = environment()
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        points = growth.measure(setup)
        drawing = growth.figure(points, setup)
        for suffix in ("svg", "png"):
            drawing.save(out / f"growth.{suffix}")
        result = {
            "environment": where,
            "setup": asdict(setup),
            "seconds": bench.seconds,
            "growth": points,
            "tables": [table.to_dict() for table in tables],
        }
        (out / "read.json").write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
        lines = [f"{key} {value}" for key, value in (where | asdict(setup)).items()]
        parts = [", ".join(lines), *(table.markdown() for table in tables)]
        (out / "read.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    print(f"took {(time.perf_counter() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    tyro.cli(main)
