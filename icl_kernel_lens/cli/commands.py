"""The commands: one typed function each, whose docstring is its help; and the table of what each of them writes.

A command's body imports what it needs, so that `--help` is there at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from icl_kernel_lens.axes import Pooling, Reference
from icl_kernel_lens.cli.options import (
    Activation,
    Direction,
    Edges,
    From,
    Method,
    Source,
    Target,
    To,
    World,
    check_top,
)
from icl_kernel_lens.cli.outputs import Command, Results, Saved, described
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.files import write_atomically
from icl_kernel_lens.results.criteria import Criteria

if TYPE_CHECKING:
    from icl_kernel_lens.run.folder import RunFolder


def score(
    target: To,
    source: From = Source(),  # noqa: B008 (frozen)
    against: Reference = "model",
    pooling: Pooling = "label",
    offsets: tuple[int, ...] = (),
    score_on: Literal["first_token", "sequence"] = "first_token",
    batch_size: int | Literal["auto"] = "auto",
    top: int = 10,
    progress: bool = True,
) -> None:
    """Score every head of a model on a task, and write a report.

    Prints first whether there is anything to explain (the model's accuracy beside its controls, and how often a simple
    rule gives its answers), then the heads most surely above their controls, and writes into OUT: report.html,
    head_map.png, head_map.svg, attention_map.png, heads.csv, and the results themselves (*.safetensors, read by
    `icl-kernel-lens show OUT` or by Evidence.load and HeadScores.load).

    The bundled model, a model and a task from the Hub, and your own folder and file:

    icl-kernel-lens score --out results

    icl-kernel-lens score --model gpt2 --task sst2 --demos 16 --prompts 200 --out results

    icl-kernel-lens score --model ./my-model --task reviews.csv --label-words bad good --out results

    The prompts split over two processes (and as many GPUs, where there are some):

    torchrun --nproc-per-node 2 -m icl_kernel_lens score --out results

    An interrupted run keeps its finished prompts in OUT/unfinished; the same command goes on from there.

    Args:
        target: Where results go.
        source: The model, the task and the prompts.
        against: Compare votes with the model's own answer or with the true label.
        pooling: How attention on a demonstration becomes one weight; label is its first label token, edges those at --offsets.
        offsets: With --pooling edges, which tokens are read as a label, by their distance from it (0: the label itself).
        score_on: Read the model's answer off each label's first token, or off the whole label.
        batch_size: Prompts at once; auto: what memory allows, halved where it turns out too many.
        top: Heads to print.
        progress: Show a progress bar.
    """
    from icl_kernel_lens import head_vote, in_context_accuracy, read
    from icl_kernel_lens.models.adapter import as_adapter
    from icl_kernel_lens.run.progress import work
    from icl_kernel_lens.run.runner import tokens_to_run

    _check_reading(source, pooling, offsets, batch_size)
    how: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    poolings: dict[str, Pooling] = {"head_vote": pooling}
    if pooling != "span_max":
        poolings["head_vote_span_max"] = "span_max"
    with _running("score", target, top) as folder:
        model, _, prompts = source.load(folder.group, score_on=score_on)
        folder.begin(source.identity(model, prompts, against=against, pooling=pooling, offsets=offsets))
        keep = tuple(dict.fromkeys((pooling, "label", "span_max")))
        once = tokens_to_run(prompts, as_adapter(model))
        with work("scoring", [once, 2 * once], progress):
            evidence = folder.result(
                "evidence",
                lambda: read(
                    model, prompts, keep=keep, offsets=offsets, checkpoint=folder.checkpoint("read"), **how
                ),
            )
            accuracy = folder.result(
                "accuracy",
                lambda: in_context_accuracy(
                    model, prompts, evidence=evidence, checkpoint=folder.checkpoint("accuracy"), **how
                ),
            )
        for name, one in poolings.items():
            folder.result(
                name, lambda one=one: head_vote(evidence, against=against, pooling=one, accuracy=accuracy)
            )


def influence(
    target: To,
    source: From = Source(prompts=256, sets=32),  # noqa: B008 (frozen)
    orders: int = 2,
    pooling: Pooling = "label",
    offsets: tuple[int, ...] = (),
    score_on: Literal["first_token", "sequence"] = "first_token",
    dry_run: bool = False,
    batch_size: int | Literal["auto"] = "auto",
    top: int = 10,
    progress: bool = True,
) -> None:
    """Measure the model's own kernel: how far each demonstration's label pulls the answer; then which heads follow it.

    One label is replaced at a time, and the model is run; nothing is assumed of heads. Prints first whether there is anything to
    explain (as score does), then what kind of answer this is (a kernel regression, a habit of one place, an even vote, no
    sum of single effects), the numbers behind that, and the heads whose attention follows the kernel as the test input alone
    varies. Writes into OUT: report.html, summary.csv, influence.csv, profile.csv, heads.csv, figures (influence.*,
    additivity.*, layers.*, head_map.*, prompt.*), and the results themselves (*.safetensors, read by
    `icl-kernel-lens show OUT` or by LabelInfluence.load and HeadScores.load).

    icl-kernel-lens influence --out influence

    icl-kernel-lens influence --model gpt2 --task sst2 --demos 8 --prompts 128 --sets 16 --dry-run --out influence

    Several test inputs must share their demonstrations (--sets), or heads cannot be compared with the kernel.
    An interrupted run keeps its finished prompts in OUT/unfinished; the same command goes on from there.

    Args:
        target: Where results go.
        source: The model, the task and the prompts.
        orders: In how many orders the same demonstrations are shown; with one, the kernel part cannot be told from places.
        pooling: How attention on a demonstration becomes one weight; label is its first label token, edges those at --offsets.
        offsets: With --pooling edges, which tokens are read as a label, by their distance from it (0: the label itself).
        score_on: Read the model's answer off each label's first token, or off the whole label.
        dry_run: Print what the measurement will cost, by a few prompts run now, and end; nothing is written.
        batch_size: Prompts at once; auto: what memory allows, halved where it turns out too many.
        top: Heads to print.
        progress: Show a progress bar.
    """
    from icl_kernel_lens import influence_fidelity, label_influence, read
    from icl_kernel_lens.influence.measure import Plan, influence_cost
    from icl_kernel_lens.models.adapter import as_adapter
    from icl_kernel_lens.run.processes import joined
    from icl_kernel_lens.run.progress import work
    from icl_kernel_lens.run.runner import tokens_to_run

    _check_reading(source, pooling, offsets, batch_size)
    if orders < 1:
        raise ResultError(
            f"--orders must be at least 1, the prompts' own; got {orders}.", code="number-range"
        )
    if dry_run:
        with joined() as group:
            model, _, prompts = source.load(group, score_on=score_on)
            cost = influence_cost(model, prompts, orders=orders, seed=source.seed)
            if group.first:
                print(f"label influence in {orders} order{'s' * (orders > 1)}: {cost}, without the accuracy.")
        return
    how: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    with _running("influence", target, top) as folder:
        model, _, prompts = source.load(folder.group, score_on=score_on)
        adapter = as_adapter(model)
        # What measuring would refuse, before anything is written.
        parts = Plan.of(adapter, prompts, orders, source.seed).parts
        folder.begin(source.identity(model, prompts, orders=orders, pooling=pooling, offsets=offsets))
        once, planned = tokens_to_run(prompts, adapter), sum(tokens_to_run(part, adapter) for part in parts)
        with work("influence", [planned + 2 * once, once], progress):
            found = folder.result(
                "influence",
                lambda: label_influence(
                    model,
                    prompts,
                    orders=orders,
                    seed=source.seed,
                    checkpoint=folder.checkpoint("influence"),
                    **how,
                ),
            )
            folder.result("accuracy", lambda: found.accuracy)
            evidence = folder.result(
                "evidence",
                lambda: read(
                    model,
                    prompts,
                    keep=(pooling,),
                    offsets=offsets,
                    checkpoint=folder.checkpoint("read"),
                    **how,
                ),
            )
        if found.shares_sets:
            folder.result(
                "fit", lambda: influence_fidelity(found, evidence, pooling=pooling, seed=source.seed)
            )


def patch(
    target: To,
    source: From = Source(),  # noqa: B008 (frozen)
    activation: Activation = "attention_edge",
    offsets: tuple[int, ...] = (-1, 0, 1, 2, 3),
    corruption: Literal["map_labels", "permute_labels"] = "map_labels",
    method: Method = "exact",
    direction: Direction = "denoise",
    edges: Edges = "answer_reads_labels",
    against: Reference = "model",
    top: int = 10,
    progress: bool = True,
) -> None:
    """Change what heads read at the labels, and see what becomes of the answer.

    Two interventions on the same prompts: activations from a run with other labels (patch_labels), and
    attention edges, from the answer to the labels for example, cut head by head, beside two controls
    (knock_out). Writes into OUT: patch_labels.* and knock_out.* (tables, figures, and the results
    themselves, read by `icl-kernel-lens show OUT` or by PatchEffects.load).

    icl-kernel-lens patch --out effects

    icl-kernel-lens patch --model gpt2 --task sst2 --activation residual --method attribution --out effects

    An interrupted run keeps its finished prompts in OUT/unfinished; the same command goes on from there.

    Args:
        target: Where results go.
        source: The model, the task and the prompts.
        activation: What comes from the other run.
        offsets: Positions relative to the first label token.
        corruption: map_labels replaces every label by another class's; permute_labels deals them out anew.
        method: exact, one run a cell; attribution, first order, with exact effects of a sample beside it.
        direction: denoise puts clean activations into the corrupted run, noise the reverse.
        edges: What knock_out cuts.
        against: Measure the class the model answers, or the true one.
        top: Cells to print.
        progress: Show a progress bar.
    """
    from icl_kernel_lens import corrupt, knock_out, patch_labels
    from icl_kernel_lens.models.adapter import as_adapter
    from icl_kernel_lens.run.progress import ROW, work
    from icl_kernel_lens.run.runner import tokens_to_run

    source.check()
    change: dict[str, Any] = {
        "activation": activation,
        "offsets": offsets,
        "method": method,
        "direction": direction,
    }
    how: dict[str, Any] = {"against": against, "seed": source.seed, "progress": progress}
    with _running("patch", target, top) as folder:
        model, _, clean = source.load(folder.group)
        corrupted = corrupt(clean, corruption, seed=source.seed)
        settings = {**change, "corruption": corruption, "edges": edges, "against": against}
        folder.begin(source.identity(model, clean, **settings))
        shape, once = as_adapter(model).shape, tokens_to_run(clean, as_adapter(model))
        one = once + ROW * shape.layers * shape.heads * len(clean)
        with work("patching", [2 * one, 3 * one], progress):
            folder.result(
                "patch_labels",
                lambda: patch_labels(
                    model,
                    clean=clean,
                    corrupted=corrupted,
                    checkpoint=folder.checkpoint("patch"),
                    **change,
                    **how,
                ),
            )
            folder.result(
                "knock_out",
                lambda: knock_out(model, clean, edges, checkpoint=folder.checkpoint("knock_out"), **how),
            )


def locate(
    target: To,
    source: From = Source(prompts=256, sets=32),  # noqa: B008 (frozen)
    curves: bool = True,
    offsets: tuple[int, ...] = (),
    criteria: Criteria = Criteria(),  # noqa: B008 (frozen)
    top: int = 10,
    progress: bool = True,
) -> None:
    """Find the heads that carry the model's own kernel, with statistics that can say there are none.

    The model's own kernel is measured first (as influence does). Where it has no part that hangs on the pair of test input and
    demonstration, heads are only said to read labels or not. Otherwise heads are singled out on one half of the prompts,
    and at most 32 of them are asked six questions on the other: do the weights follow the kernel as the test input alone varies, do
    they go with swapped inputs, do they change with the test input, do the values carry labels, does the answer need the label
    edges, and is it no echo of earlier layers? Located heads are also taken out together. Then, on fresh prompts (the next
    seed), the answer without their label edges and with theirs alone, beside random sets of heads.

    Prints first whether there is anything to explain (as score does), then the model's own kernel, the located heads and what they carry
    together, every other head's class, the band of layers and the curves. Writes into OUT: report.html, heads.csv (a row a head:
    its class, why, and every number with its interval), joint.csv (what sets of located heads carry; where any are), fit_map.png
    (every head's fit to the model's own kernel), ranking.* and curves.* (tables, figures, and the results themselves, read by
    `icl-kernel-lens show OUT` or by HeadRanking.load and AblationCurves.load).

    icl-kernel-lens locate --out located

    icl-kernel-lens locate --model gpt2 --task sst2 --demos 8 --prompts 512 --sets 64 --out located

    torchrun --nproc-per-node 2 -m icl_kernel_lens locate --out located

    Several test inputs should share their demonstrations (--sets); of each set four are measured. With --sets 0, or as many sets as
    prompts, demonstrations are crossed with the test inputs of other prompts, where label words are the same in all. At
    least 8 demonstration sets a half are needed, 32 are better.
    An interrupted run keeps its finished prompts in OUT/unfinished; the same command goes on from there.

    Args:
        target: Where results go.
        source: The model, the task and the prompts.
        curves: Measure necessity and sufficiency of the located heads too.
        offsets: Which tokens are read as a label, by their distance from it (0: the label itself); without any, those
            by which labels enter the answer are found first.
        criteria: The smallest effects of interest, and how sure to be.
        top: Heads to print.
        progress: Show a progress bar.
    """
    from icl_kernel_lens import ablation_curves, corrupt, locate_heads, read
    from icl_kernel_lens.locate.conditions import shares_sets
    from icl_kernel_lens.locate.search import expected_work, split_in_halves
    from icl_kernel_lens.models.adapter import as_adapter
    from icl_kernel_lens.prompts.crossed import check_crossed
    from icl_kernel_lens.run.progress import work
    from icl_kernel_lens.run.runner import tokens_to_run

    source.check()
    how: dict[str, Any] = {"seed": source.seed, "progress": progress}
    with _running("locate", target, top) as folder, warnings.catch_warnings():
        # That sets are few stands in the ranking's notes.
        warnings.filterwarnings("ignore", message=".*demonstration sets a half are few")
        model, task, prompts = source.load(folder.group)
        # What locating would refuse after the reading, before it.
        if not shares_sets(prompts, split_in_halves(prompts.demo_set, seed=source.seed)):
            check_crossed(prompts)
        corrupt(prompts, "permute_labels", seed=source.seed)
        folder.begin(source.identity(model, prompts, curves=curves, offsets=offsets, criteria=criteria))
        adapter = as_adapter(model)
        once, steps = tokens_to_run(prompts, adapter), expected_work(adapter, prompts, offsets or None)
        with work("locating heads", [once, sum(steps) - once, once], progress):
            evidence = folder.result(
                "evidence",
                lambda: read(
                    model, prompts, offsets=offsets, checkpoint=folder.checkpoint("read"), progress=progress
                ),
            )
            ranking = folder.result(
                "ranking",
                lambda: locate_heads(
                    model,
                    prompts,
                    evidence=evidence,
                    offsets=offsets or None,
                    criteria=criteria,
                    checkpoint=folder.checkpoint("locate"),
                    **how,
                ),
            )
            folder.result("accuracy", lambda: ranking.accuracy)
            if curves and ranking.heads:
                fresh = source.draw(model, task, seed=source.seed + 1)
                folder.result(
                    "curves",
                    lambda: ablation_curves(
                        model, fresh, ranking, checkpoint=folder.checkpoint("curves"), **how
                    ),
                )


def theory(
    target: To,
    preset: World = "han2025",
    trials: int = 300,
    seed: int = 0,
    experiments: bool = True,
    progress: bool = True,
) -> None:
    """Compute the theory on a hidden Markov world: kernel regression against exact Bayesian prediction.

    No language model is needed. Prints Theorem 1 as measured for n = 1 … 128 beside the paper's Table 3, with what
    differs and what the bound says, and writes into OUT: report.html, and for every part a table (csv), a
    figure (png, svg) and the result itself (*.safetensors, read by `icl-kernel-lens show OUT` or by `load`).

    icl-kernel-lens theory --preset han2025 --out theory

    Args:
        target: Where results go.
        preset: han2025 has the paper's size (8 tasks, 80 states, 100 symbols); the others are small.
        trials: Prompts, each with a task of its own.
        seed: Seed of the prompts; worlds have their own.
        experiments: Run the paper's consequences too (retrieval, labels, representative inputs, noise, softmax).
        progress: Show a progress bar.
    """
    from icl_kernel_lens.theory.presets import preset as world_named
    from icl_kernel_lens.theory.study import LEAST_TRIALS, run_study

    if trials < LEAST_TRIALS:
        raise ResultError(
            f"--trials must be at least {LEAST_TRIALS}, or no interval says anything; got {trials}.",
            code="number-range",
        )
    how = {"trials": trials, "seed": seed, "experiments": experiments}
    with _running("theory", target) as folder:
        folder.begin({"world": preset, "settings": ", ".join(f"{n}={value}" for n, value in how.items())})
        found = run_study(world_named(preset), **how, progress=progress)
        for name, result in found.results().items():
            folder.result(name, lambda result=result: result)


def show(folder: tyro.conf.Positional[Path], top: int = 10) -> None:
    """Print a saved result, and write its tables, figures and report into its folder again.

    Args:
        folder: Folder that `icl-kernel-lens score`, `influence`, `patch`, `locate` or `theory` wrote.
        top: Heads to print.
    """
    from icl_kernel_lens.run.folder import finished, locked, redrawing

    check_top(top)
    finished(folder)
    with locked(folder):
        manifest = finished(folder)
        if manifest.command not in COMMANDS:
            raise ResultError(
                f"{folder} must be written by {', '.join(COMMANDS)}; it was by {manifest.command!r} of version "
                f"{manifest.version}. Read it with that version.",
                code="file-format",
            )
        command = COMMANDS[manifest.command]
        results = command.load(folder, manifest.files)
        with redrawing(folder, manifest, command.files):
            command.present(results, folder, top)
        command.say_where(folder)


def train_mini(out: Path, steps: int = 3500, seed: int = 0, threads: int = 1, progress: bool = True) -> None:
    """Train the bundled mini model again, from nothing, on the topics world.

    Under 20 minutes on two CPU cores with the default steps. The folder loads with --model OUT.

    Args:
        out: Folder for weights, tokenizer and training.json (the record) and emergence.svg (its curve).
        steps: Optimizer steps of 64 documents.
        seed: Seed of weights and documents.
        threads: CPU threads; the result depends on it in the last digits.
        progress: Show a progress bar.
    """
    from icl_kernel_lens.charts.emergence import emergence_curve
    from icl_kernel_lens.run.folder import explained
    from icl_kernel_lens.worlds.topics.train import MiniTraining
    from icl_kernel_lens.worlds.topics.train import train_mini as train

    if min(steps, threads) < 1:
        raise ResultError(
            f"--steps and --threads must be at least 1; got {steps} and {threads}.", code="number-range"
        )
    settings = replace(MiniTraining(), steps=steps, seed=seed, threads=threads)
    with explained(out, "The folder may hold part of the model."):
        record = train(out, settings, progress=progress)
        emergence_curve(record).save(out / "emergence.svg")
    last = record["curve"][-1]
    print(f"{record['parameters']:,} parameters, {record['seconds']:.0f} seconds, saved in {out}")
    print(f"held-out accuracy at the last example: {last[f'accuracy_{settings.examples - 1}']:.3f}")


def _check_reading(
    source: Source, pooling: Pooling, offsets: tuple[int, ...], batch_size: int | Literal["auto"]
) -> None:
    """Refuse what cannot be read, before anything is loaded."""
    source.check()
    if (pooling == "edges") != bool(offsets):
        raise ResultError(
            f"--pooling edges and --offsets belong together, such as --pooling edges --offsets 0 1; got --pooling {pooling} and "
            f"{'--offsets ' + ' '.join(map(str, offsets)) if offsets else 'no --offsets'}.",
            code="options-clash",
        )
    if batch_size != "auto" and batch_size < 1:
        raise ResultError(
            f'--batch-size must be at least 1, or "auto"; got {batch_size}.', code="number-range"
        )


@contextmanager
def _running(name: str, target: Target, top: int = 10) -> Iterator[RunFolder]:
    """Give a command the locked folder of its run; after the block, its results are printed, drawn and put in place."""
    from icl_kernel_lens.run.folder import RunFolder
    from icl_kernel_lens.run.processes import joined

    check_top(top)
    command = COMMANDS[name]
    with joined() as group, RunFolder(target.out, name, command.files, overwrite=target.overwrite) as folder:
        yield folder
        folder.finish(lambda new: command.present(folder.results, new, top))
        if group.first:
            command.say_where(target.out)


def _say_scores(results: Results, top: int) -> Iterator[str]:
    from icl_kernel_lens.scores.notes import notes_of

    yield from described(results, top)
    yield from notes_of(results["evidence"], results["head_vote"])


def _say_influence(results: Results, top: int) -> Iterator[str]:
    from icl_kernel_lens.report.influence import ranks_heads, unranked

    yield repr(results["accuracy"])
    found = results["influence"]
    yield found.describe()
    if "fit" not in results:
        yield f"How far heads follow it: not measured, as {found.kernel_part().undefined}."
    elif ranks_heads(found):
        yield results["fit"].describe(top)
    else:
        yield unranked(found)


def _report_influence(results: Results, path: Path) -> None:
    from icl_kernel_lens.report.influence import write_influence_report

    write_influence_report(path, results["evidence"], results["influence"], results.get("fit"))


def _best_beside(fit: Any, results: Results) -> Any:
    from icl_kernel_lens.report.influence import best_beside, ranks_heads

    found = results["influence"]
    return best_beside(found, results["evidence"], fit) if ranks_heads(found) else None


def _say_located(results: Results, top: int) -> Iterator[str]:
    yield from described(results, top)
    if "curves" in results:
        yield "The curves are of fresh prompts (the next seed): at k = 0 they need not give the accuracy said of the ranking."
    else:
        why = "." if results["ranking"].heads else "; no head located."
        yield f"Necessity and sufficiency: not measured{why}"


def _report_heads(results: Results, path: Path) -> None:
    """The page on a scoring or a locating run; votes that the run did not save are taken anew from its evidence."""
    from icl_kernel_lens import head_vote
    from icl_kernel_lens.report.heads import write_report

    evidence = results["evidence"]
    votes = [results[name] for name in ("head_vote", "head_vote_span_max") if name in results]
    accuracy = results["accuracy"]
    votes = votes or [
        head_vote(evidence, pooling=pooling, accuracy=accuracy) for pooling in ("label", "span_max")
    ]
    found = {name: results.get(name) for name in ("ranking", "curves")}
    write_report(path, evidence, votes, accuracy, **found)


def _say_theory(results: Results, _: int) -> Iterator[str]:
    from icl_kernel_lens.theory.study import Study

    yield Study.of(results).describe()


def _report_theory(results: Results, path: Path) -> None:
    from icl_kernel_lens.report.theory import study_page
    from icl_kernel_lens.theory.study import Study

    write_atomically(path, study_page(Study.of(results)).html())


def _theorem_figure(theorem: Any, results: Results) -> Any:
    return theorem.figure(letter=results["letter"], terms=results["terms"])


EXPERIMENTS = (
    "worlds_of_the_paper",
    "retrieve_similar",
    "output_format",
    "representative",
    "label_noise",
    "softmax_kernels",
)
"""As `theory.study` names them; it is not imported here, so that `--help` is there at once."""
COMMANDS = {
    "score": Command(
        score,
        (
            Saved("accuracy"),
            Saved("evidence", figures=("attention_map.png",)),
            Saved("head_vote", "heads.csv", ("head_map.png", "head_map.svg")),
            Saved("head_vote_span_max", sometimes=True),
        ),
        _say_scores,
        _report_heads,
    ),
    "influence": Command(
        influence,
        (
            Saved("accuracy"),
            Saved("evidence"),
            Saved(
                "influence",
                figures=("influence.png", "influence.svg"),
                also={
                    "influence.csv": lambda found, _: found.to_dataframe(),
                    "summary.csv": lambda found, _: found.summary(),
                    "profile.csv": lambda found, _: found.profile(),
                    "additivity.png": lambda found, _: found.additivity_figure(),
                    "additivity.svg": lambda found, _: found.additivity_figure(),
                },
            ),
            Saved(
                "fit",
                "heads.csv",
                ("head_map.png", "head_map.svg"),
                also={
                    "layers.png": lambda fit, _: fit.layer_figure(),
                    "layers.svg": lambda fit, _: fit.layer_figure(),
                    "prompt.png": _best_beside,
                    "prompt.svg": _best_beside,
                },
                sometimes=True,
            ),
        ),
        _say_influence,
        _report_influence,
    ),
    "patch": Command(
        patch,
        (Saved.whole("patch_labels"), Saved.whole("knock_out")),
    ),
    "locate": Command(
        locate,
        (
            Saved("accuracy"),
            Saved("evidence"),
            Saved(
                "ranking",
                "heads.csv",
                ("ranking.png", "ranking.svg"),
                also={
                    "joint.csv": lambda ranking, _: ranking.joint_table() if ranking.joint else None,
                    "fit_map.png": lambda ranking, _: ranking.fit_map(),
                },
            ),
            Saved.whole("curves", sometimes=True),
        ),
        _say_located,
        _report_heads,
    ),
    "theory": Command(
        theory,
        (
            Saved.whole("theorem", figure=_theorem_figure),
            Saved("letter"),
            Saved("terms"),
            Saved.whole("variants"),
            Saved.whole("variants_small", sometimes=True),
            Saved.whole("concentration"),
            *(Saved.whole(name, sometimes=True) for name in EXPERIMENTS),
        ),
        _say_theory,
        _report_theory,
    ),
    "show": Command(show),
    "train-mini": Command(train_mini),
}
"""Every command by its name."""
