"""The command line: one typed function per command; help texts and defaults are the functions' own."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from icl_kernel_lens.axes import Pooling, Reference
from icl_kernel_lens.errors import LensError, ResultError
from icl_kernel_lens.interventions.knock_out import Edges
from icl_kernel_lens.interventions.patch import Direction, Method, What
from icl_kernel_lens.results.head_ranking import Criteria

if TYPE_CHECKING:
    from icl_kernel_lens.evidence.processes import Processes
    from icl_kernel_lens.prompts import PromptSet
    from icl_kernel_lens.tasks import Task
    from icl_kernel_lens.worlds.topics import TopicsTask

EVIDENCE, VOTE, SPAN_VOTE, ACCURACY = (
    "evidence.safetensors",
    "head_vote.safetensors",
    "head_vote_span_max.safetensors",
    "accuracy.safetensors",
)
REPORT, TABLE, ATTENTION_MAP = "report.html", "heads.csv", "attention_map.png"
HEAD_MAPS = ("head_map.png", "head_map.svg")
WRITTEN = (EVIDENCE, VOTE, SPAN_VOTE, ACCURACY, REPORT, TABLE, ATTENTION_MAP, *HEAD_MAPS)
"""Every file a scoring run may leave in its folder."""
PATCHED, KNOCKED_OUT = "patch_labels.safetensors", "knock_out.safetensors"
PATCH_TABLE, KNOCK_OUT_TABLE = "patch_labels.csv", "knock_out.csv"
EFFECT_MAPS = ("patch_labels.png", "patch_labels.svg", "knock_out.png", "knock_out.svg")
PATCH_WRITTEN = (PATCHED, KNOCKED_OUT, PATCH_TABLE, KNOCK_OUT_TABLE, *EFFECT_MAPS)
"""Every file a patching run may leave in its folder."""
RANKING, CURVES = "ranking.safetensors", "curves.safetensors"
CURVES_TABLE = "curves.csv"
RANKING_FIGURES, CURVES_FIGURES = ("ranking.png", "ranking.svg"), ("curves.png", "curves.svg")
LOCATE_WRITTEN = (
    EVIDENCE, RANKING, TABLE, *RANKING_FIGURES, CURVES, CURVES_TABLE, *CURVES_FIGURES, REPORT,
)  # fmt: skip
"""Every file a locating run may leave in its folder."""
THEOREM = "theorem.safetensors"
World = Literal["han2025", "block", "leaky", "short", "long", "wide", "sparse"]
UNFINISHED = "unfinished"
"""Folder inside it for a run that has not ended; what an interrupted run had finished stays here."""
FINISHED = "finished"
"""Folder inside that one for the checkpoints."""


@dataclass(frozen=True)
class Source:
    """What every command that runs a model needs: the model, the task, and prompts of the one for the other.

    Args:
        model: "mini" (bundled), a local folder in Hugging Face format, or a name on the Hugging Face Hub.
        task: "topics" (bundled), a file (jsonl, csv, tsv, parquet), or a name such as sst2, mnli, ag_news. Of a
            single file, half of the rows feed the demonstrations and half are test inputs; NAME.train.jsonl
            brings NAME.test.jsonl along.
        demos: Demonstrations in each prompt.
        prompts: How many prompts, each with its own test input.
        sets: Share this many demonstration sets evenly among the prompts; default: fresh for each prompt.
        balanced: Show every class equally often (to within one).
        seed: Seed of the prompts and of all else that is drawn; the same seed gives the same prompts everywhere.
        prepend_bos: True or False to force a beginning-of-sequence token; default: what the tokenizer does.
        template: How a demonstration is written, for example "Review: {text}\\nSentiment: {label}".
        label_words: One word per class, in the order of the classes.
        text_fields: Columns of a task file that hold the text (or two texts); default: text (and text2).
        label_field: Column of a task file that holds the label.
        backend: TransformerLens class; auto takes HookedTransformer where it equals Hugging Face.
        device: Such as cpu, cuda, or auto (a model over all GPUs); default: cuda where there is one.
        dtype: Default: as stored.
    """

    model: str = "mini"
    task: str = "topics"
    demos: int = 16
    prompts: int = 200
    sets: int | None = None
    balanced: bool = False
    seed: int = 0
    prepend_bos: Annotated[bool | None, tyro.conf.FlagConversionOff] = None
    template: str | None = None
    label_words: tuple[str, ...] = ()
    text_fields: tuple[str, ...] = ()
    label_field: str = "label"
    backend: Literal["auto", "hooked", "bridge"] = "auto"
    device: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None

    def check(self) -> None:
        """What can be refused before anything is loaded."""
        if self.demos < 1:
            raise ResultError(f"a vote needs demonstrations; --demos must be at least 1, got {self.demos}.")

    def load(self, group: Processes) -> tuple[Any, Task | TopicsTask]:
        """The model, on this process's own device where there are several, and the task."""
        import torch

        from icl_kernel_lens.models import load_model, load_record
        from icl_kernel_lens.tasks import load_task

        say = print if group.first else _silent
        task = load_task(
            self.task,
            template=self.template.replace("\\n", "\n") if self.template else None,
            label_words=self.label_words or None,
            text_fields=self.text_fields or None,
            label_field=self.label_field,
        )
        device = str(group.device) if self.device is None and group.size > 1 else self.device
        dtype = getattr(torch, self.dtype) if self.dtype else None
        model = load_model(self.model, device, dtype, self.backend)
        record = load_record(model)
        say(task)
        say(f"{self.model}: {type(model).__name__}, because {record.why if record else 'it was given'}.")
        return model, task

    def draw(self, model: Any, task: Task | TopicsTask, **more: Any) -> PromptSet:
        """Prompts of the task for the model; `more` (the seed, for example) comes before what is here."""
        options = {
            "demos": self.demos,
            "count": self.prompts,
            "seed": self.seed,
            "sets": self.sets,
            "balanced": self.balanced,
            "prepend_bos": self.prepend_bos,
        }
        return task.prompts(model, **(options | more))


Flat = Annotated[Source, tyro.conf.arg(name="")]
"""Its options without a prefix."""


def score(
    out: Path,
    source: Flat = Source(),
    against: Reference = "model",
    pooling: Pooling = "label",
    score_on: Literal["first_token", "sequence"] = "first_token",
    batch_size: int | Literal["auto"] = "auto",
    top: int = 10,
    progress: bool = True,
) -> None:
    """Score every head of a model on a task, and write a report.

    Prints the model's accuracy beside its controls and the heads furthest above theirs, and writes into OUT:
    report.html, head_map.png, head_map.svg, attention_map.png, heads.csv, and the results themselves
    (*.safetensors, read by `icl-kernel-lens show OUT` or by Evidence.load and HeadScores.load).

    The bundled model, a model and a task from the Hub, and your own folder and file:

    icl-kernel-lens score --out results

    icl-kernel-lens score --model gpt2 --task sst2 --demos 16 --prompts 200 --out results

    icl-kernel-lens score --model ./my-model --task reviews.csv --label-words bad good --out results

    The prompts split over two processes (and as many GPUs, where there are some):

    torchrun --nproc-per-node 2 -m icl_kernel_lens score --out results

    An interrupted run keeps its finished prompts in OUT/unfinished; the same command goes on from there.

    Args:
        out: Folder for the results; it must be empty, absent, or hold results of an earlier run.
        source: The model, the task and the prompts.
        against: Compare votes with the model's own answer or with the true label.
        pooling: How attention on a demonstration becomes one weight; label is its first label token.
        score_on: Read the model's answer off each label's first token, or off the whole label.
        batch_size: Prompts at once; auto: what memory allows, halved where it turns out too many.
        top: Heads to print.
        progress: Show a progress bar.
    """
    from icl_kernel_lens.evidence import processes, read
    from icl_kernel_lens.scores import head_vote, in_context_accuracy

    source.check()
    if batch_size != "auto" and batch_size < 1:
        raise ResultError(f'--batch-size must be at least 1, or "auto"; got {batch_size}.')
    _check_folder(out, WRITTEN)
    with processes.joined() as group:
        lens, task = source.load(group)
        chosen = source.draw(lens, task, score_on=score_on)
        (print if group.first else _silent)(chosen)
        new = _unfinished_folder(out, WRITTEN, clear=group.first)
        keep: tuple[Pooling, ...] = tuple(dict.fromkeys((pooling, "label", "span_max")))
        evidence = read(
            lens,
            chosen,
            keep=keep,
            batch_size=batch_size,
            checkpoint=new / FINISHED / "read",
            progress=progress,
        )
        # Results are put beside earlier ones and take their place when all are there: an interruption or an
        # error leaves the folder's old results whole, and what this run had finished in its own folder.
        votes = [head_vote(evidence, against=against, pooling=pooling)]
        if pooling != "span_max":
            votes.append(head_vote(evidence, against=against, pooling="span_max"))
        if group.first:
            evidence.save(new / EVIDENCE)
            for vote, name in zip(votes, (VOTE, SPAN_VOTE), strict=False):
                vote.save(new / name)
        accuracy = in_context_accuracy(
            lens,
            chosen,
            evidence=evidence,
            batch_size=batch_size,
            checkpoint=new / FINISHED,
            progress=progress,
        )
        if not group.first:
            return
    accuracy.save(new / ACCURACY)
    _present(new, top)
    _move_results(new, out, WRITTEN)
    _say_where(out, WRITTEN)


def _silent(*_: object) -> None:
    """Instead of `print`, in every process but the first."""


def patch(
    out: Path,
    source: Flat = Source(),
    what: What = "attention_edge",
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
    attention edges, from the answer to the labels for example, cut head by head, beside two controls (knock_out). Writes into OUT:
    patch_labels.* and knock_out.* (tables, figures, and the results themselves, read by `icl-kernel-lens
    show OUT` or by PatchEffects.load).

    icl-kernel-lens patch --out effects

    icl-kernel-lens patch --model gpt2 --task sst2 --what residual --method attribution --out effects

    An interrupted run keeps its finished prompts in OUT/unfinished; the same command goes on from there.

    Args:
        out: Folder for the results; it must be empty, absent, or hold results of an earlier run.
        source: The model, the task and the prompts.
        what: The activation that comes from the other run.
        offsets: Positions relative to the first label token.
        corruption: map_labels replaces every label by another class's; permute_labels deals them out anew.
        method: exact, one run a cell; attribution, first order, with exact effects of a sample beside it.
        direction: denoise puts clean activations into the corrupted run, noise the reverse.
        edges: What knock_out cuts.
        against: Measure the class the model answers, or the true one.
        top: Cells to print.
        progress: Show a progress bar.
    """
    from icl_kernel_lens.evidence import processes
    from icl_kernel_lens.interventions import knock_out, patch_labels
    from icl_kernel_lens.prompts.corrupt import corrupt

    source.check()
    _check_folder(out, PATCH_WRITTEN)
    with processes.joined() as group:
        lens, task = source.load(group)
        clean = source.draw(lens, task)
        (print if group.first else _silent)(clean)
        corrupted = corrupt(clean, corruption, seed=source.seed)
        new = _unfinished_folder(out, PATCH_WRITTEN, clear=group.first)
        patched = patch_labels(
            lens,
            clean=clean,
            corrupted=corrupted,
            what=what,
            offsets=offsets,
            method=method,
            direction=direction,
            against=against,
            seed=source.seed,
            checkpoint=new / FINISHED / "patch",
            progress=progress,
        )
        cut = knock_out(
            lens,
            clean,
            edges,
            against=against,
            seed=source.seed,
            checkpoint=new / FINISHED / "knock_out",
            progress=progress,
        )
        if not group.first:
            return
    patched.save(new / PATCHED)
    cut.save(new / KNOCKED_OUT)
    _present_effects(new, top)
    _move_results(new, out, PATCH_WRITTEN)
    _say_where(out, PATCH_WRITTEN)


def locate(
    out: Path,
    source: Flat = Source(prompts=400),
    curves: bool = True,
    criteria: Criteria = Criteria(),  # noqa: B008 (frozen)
    top: int = 10,
    progress: bool = True,
) -> None:
    """Find the kernel-regression heads, with statistics that can say there are none.

    Heads are singled out on one half of the prompts and measured on the other: how often each votes for the
    model's answer beside its strongest control, whether its weights follow the inputs, and what the answer loses
    without its label edges. Then, on fresh prompts (the next seed), the answer without the located heads' label
    edges and with theirs alone, beside random sets of heads. Prints the classes, the band of layers and the curves,
    and writes into OUT: report.html, heads.csv, ranking.* and curves.* (tables, figures, and the results
    themselves, read by `icl-kernel-lens show OUT` or by HeadRanking.load and CircuitCurves.load).

    icl-kernel-lens locate --out located

    icl-kernel-lens locate --model gpt2 --task sst2 --prompts 400 --out located

    torchrun --nproc-per-node 2 -m icl_kernel_lens locate --out located

    At least 8 demonstration sets a half are needed, 32 are better; prompts do not share a set unless --sets says so.
    An interrupted run keeps its finished prompts in OUT/unfinished; the same command goes on from there.

    Args:
        out: Folder for the results; it must be empty, absent, or hold results of an earlier run.
        source: The model, the task and the prompts.
        curves: Measure necessity and sufficiency of the located heads too.
        criteria: The smallest effects of interest, and how sure to be.
        top: Heads to print.
        progress: Show a progress bar.
    """
    from icl_kernel_lens.evidence import processes, read
    from icl_kernel_lens.locate import locate_heads, necessity_and_sufficiency
    from icl_kernel_lens.locate.halves import halves
    from icl_kernel_lens.prompts.corrupt import corrupt

    source.check()
    _check_top(top)
    _check_folder(out, LOCATE_WRITTEN)
    with processes.joined() as group:
        say = print if group.first else _silent
        lens, task = source.load(group)
        chosen = source.draw(lens, task)
        say(chosen)
        # What locating would refuse after the reading, before it.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            halves(chosen.demo_set, seed=source.seed)
        corrupt(chosen, "permute_labels", seed=source.seed)
        new = _unfinished_folder(out, LOCATE_WRITTEN, clear=group.first)
        evidence = read(
            lens,
            chosen,
            keep=("label", "span_max"),
            checkpoint=new / FINISHED / "read",
            progress=progress,
        )
        with warnings.catch_warnings():
            # That sets are few stands in the ranking's notes.
            warnings.filterwarnings("ignore", message=".*demonstration sets a half are few")
            ranking = locate_heads(
                lens,
                chosen,
                evidence=evidence,
                criteria=criteria,
                seed=source.seed,
                checkpoint=new / FINISHED / "locate",
                progress=progress,
            )
        if group.first:
            evidence.save(new / EVIDENCE)
            ranking.save(new / RANKING)
        found = None
        if curves and ranking.heads:
            found = necessity_and_sufficiency(
                lens,
                source.draw(lens, task, seed=source.seed + 1),
                ranking.heads,
                seed=source.seed,
                checkpoint=new / FINISHED / "curves",
                progress=progress,
            )
        if not group.first:
            return
    if found is not None:
        found.save(new / CURVES)
    _present_located(new, top)
    _move_results(new, out, LOCATE_WRITTEN)
    _say_where(out, LOCATE_WRITTEN)


def _check_top(top: int) -> None:
    if top < 0:
        raise ResultError(f"--top is how many rows to print, at least 0; got {top}.")


def _present_located(folder: Path, top: int) -> None:
    """Print what a locating run's folder holds, and write its figures, tables and report."""
    from icl_kernel_lens.evidence import Evidence
    from icl_kernel_lens.plots.report import write_report
    from icl_kernel_lens.results.circuit_curves import CircuitCurves
    from icl_kernel_lens.results.head_ranking import HeadRanking
    from icl_kernel_lens.scores import head_vote

    evidence = Evidence.load(folder / EVIDENCE)
    ranking = HeadRanking.load(folder / RANKING)
    curves = CircuitCurves.load(folder / CURVES) if (folder / CURVES).exists() else None
    print()
    print(ranking.describe(top))
    ranking.table().to_csv(folder / TABLE, index=False)
    figure = ranking.figure()
    for name in RANKING_FIGURES:
        figure.save(folder / name)
    print()
    if curves is None:
        print(
            "Necessity and sufficiency: not measured"
            + ("." if ranking.heads else "; no kernel head confirmed.")
        )
    else:
        print(repr(curves))
        curves.table().to_csv(folder / CURVES_TABLE, index=False)
        figure = curves.figure()
        for name in CURVES_FIGURES:
            figure.save(folder / name)
    votes = [head_vote(evidence, pooling=pooling) for pooling in ("label", "span_max")]
    write_report(folder / REPORT, evidence, votes, None, ranking=ranking, curves=curves)


def _present_effects(folder: Path, top: int) -> None:
    """Print the effects that a folder holds, and write their tables and figures."""
    from icl_kernel_lens.results.patch_effects import PatchEffects

    for name, table in ((PATCHED, PATCH_TABLE), (KNOCKED_OUT, KNOCK_OUT_TABLE)):
        effects = PatchEffects.load(folder / name)
        print()
        print(effects.describe(top))
        effects.table().to_csv(folder / table, index=False)
        figure = effects.figure()
        for suffix in (".png", ".svg"):
            figure.save(folder / Path(name).with_suffix(suffix).name)


def theory(
    out: Path,
    preset: World = "han2025",
    trials: int = 300,
    seed: int = 0,
    experiments: bool = True,
    progress: bool = True,
) -> None:
    """Compute the theory on a hidden Markov world: kernel regression against exact Bayesian prediction.

    No language model is needed. Prints Theorem 1 as measured for n = 1 … 128 beside the paper's Table 3, with what
    differs and what the bound says, and writes into OUT: report.html, and for every part a table (csv), a figure (png, svg) and
    the result itself (*.safetensors, read by `icl-kernel-lens show OUT` or by theory.study.Study.load).

    icl-kernel-lens theory --preset han2025 --out theory

    Args:
        out: Folder for the results; it must be empty, absent, or hold results of an earlier run.
        preset: han2025 has the paper's size (8 tasks, 80 states, 100 symbols); the others are small.
        trials: Prompts, each with a task of its own.
        seed: Seed of the prompts; worlds have their own.
        experiments: Run the paper's consequences too (retrieval, labels, representative inputs, noise, softmax).
        progress: Show a progress bar.
    """
    from icl_kernel_lens.theory.presets import preset as world_named
    from icl_kernel_lens.theory.study import FILES, LEAST_TRIALS, study

    if trials < LEAST_TRIALS:
        raise ResultError(
            f"--trials must be at least {LEAST_TRIALS}, or no interval says anything; got {trials}."
        )
    _check_folder(out, FILES)
    new = _unfinished_folder(out, FILES, clear=True)
    found = study(world_named(preset), trials=trials, seed=seed, experiments=experiments, progress=progress)
    found.save(new)
    _present_theory(new)
    _move_results(new, out, FILES)
    _say_where(out, FILES)


def _present_theory(folder: Path) -> None:
    """Print what a folder says of the theory, and write its tables, figures and report."""
    from icl_kernel_lens.theory.study import Study

    found = Study.load(folder)
    print(found.describe())
    found.write(folder)


def show(folder: tyro.conf.Positional[Path], top: int = 10) -> None:
    """Print a saved result, and draw its figures and report again.

    Args:
        folder: Folder that `icl-kernel-lens score`, `patch`, `locate` or `theory` wrote.
        top: Heads to print.
    """
    if (folder / PATCHED).exists():
        _present_effects(folder, top)
        return
    if (folder / RANKING).exists():
        _present_located(folder, top)
        _say_where(folder, LOCATE_WRITTEN)
        return
    if (folder / THEOREM).exists():
        from icl_kernel_lens.theory.study import FILES

        _present_theory(folder)
        _say_where(folder, FILES)
        return
    if not (folder / VOTE).exists():
        raise ResultError(
            f"a folder of results holds {VOTE}, {PATCHED}, {RANKING} or {THEOREM}; {folder} does not"
            f"{'' if folder.exists() else ' exist'}. Write one with: icl-kernel-lens score --out {folder}, or patch, locate or theory."
        )
    _present(folder, top)
    _say_where(folder, WRITTEN)


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
    from icl_kernel_lens.plots.emergence import emergence_curve
    from icl_kernel_lens.worlds.train import TrainingPlan
    from icl_kernel_lens.worlds.train import train_mini as train

    plan = replace(TrainingPlan(), steps=steps, seed=seed, threads=threads)
    record = train(out, plan, progress=progress)
    emergence_curve(record).save(out / "emergence.svg")
    last = record["curve"][-1]
    print(f"{record['parameters']:,} parameters, {record['seconds']:.0f} seconds, saved in {out}")
    print(f"held-out accuracy at the last example: {last[f'accuracy_{plan.examples - 1}']:.3f}")


def _move_results(new: Path, out: Path, names: Sequence[str]) -> None:
    """Let a finished run's results take the place of earlier ones."""
    for name in names:
        (out / name).unlink(missing_ok=True)
        if (new / name).exists():
            (new / name).replace(out / name)
    shutil.rmtree(new, ignore_errors=True)


def _check_folder(out: Path, names: Sequence[str]) -> None:
    """Refuse to write among files that are not ours, before any work is done."""
    if out.exists() and not out.is_dir():
        raise ResultError(f"--out must be a folder; {out} is a file. Choose another name.")
    known = (*names, UNFINISHED)
    if out.is_dir() and (others := sorted(p.name for p in out.iterdir() if p.name not in known)):
        raise ResultError(
            f"the output folder must be empty or hold earlier results; {out} holds {others[:5]}. Choose another "
            "folder."
        )


def _unfinished_folder(out: Path, names: Sequence[str], *, clear: bool) -> Path:
    """Where this run writes until it has ended: a folder of its own, cleared of an earlier run's results."""
    new = out / UNFINISHED
    try:
        new.mkdir(parents=True, exist_ok=True)
        for name in names if clear else ():
            (new / name).unlink(missing_ok=True)
    except OSError as error:
        raise ResultError(f"the output folder {out} cannot be written: {error}") from error
    return new


def _present(folder: Path, top: int) -> None:
    """Print what the folder holds, and write its figures, table and report."""
    from icl_kernel_lens.evidence import Evidence
    from icl_kernel_lens.plots.report import write_report
    from icl_kernel_lens.results.head_scores import HeadScores
    from icl_kernel_lens.scores import TaskAccuracy
    from icl_kernel_lens.scores.notices import notices

    evidence = Evidence.load(folder / EVIDENCE)
    votes = [HeadScores.load(folder / name) for name in (VOTE, SPAN_VOTE) if (folder / name).exists()]
    accuracy = TaskAccuracy.load(folder / ACCURACY) if (folder / ACCURACY).exists() else None
    print()
    print(repr(evidence))
    if accuracy is not None:
        print(repr(accuracy))
    for notice in notices(evidence, votes[0]):
        print(f"  {notice}")
    for vote in votes:
        table = vote.top(top)
        print(f"\n{vote.title}, {', '.join(f'{k} {v}' for k, v in vote.settings.items())}:")
        print(table.to_string(index=False, float_format=lambda x: f"{x:.3f}"))
    votes[0].table().to_csv(folder / TABLE, index=False)
    figure = votes[0].figure()
    for name in HEAD_MAPS:
        figure.save(folder / name)
    evidence.figure().save(folder / ATTENTION_MAP)
    write_report(folder / REPORT, evidence, votes, accuracy)


def _say_where(folder: Path, names: Sequence[str]) -> None:
    print(f"\nWritten to {folder}: {', '.join(sorted(p.name for p in folder.iterdir() if p.name in names))}")
    if (folder / REPORT).exists():
        print(f"Open {folder / REPORT} in a browser.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; an error the user can mend is one message on standard error, and exit code 1."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            {
                "score": score,
                "patch": patch,
                "locate": locate,
                "theory": theory,
                "show": show,
                "train-mini": train_mini,
            },
            args=list(sys.argv[1:] if argv is None else argv),
            prog="icl-kernel-lens",
            description="Which attention heads answer a few-shot prompt like a kernel regression?",
        )
    except LensError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"interrupted; what was finished, if anything, is in the folder {UNFINISHED!r} of the output, and the "
            "same command goes on from there.",
            file=sys.stderr,
        )
        return 130
    return 0


def run() -> None:
    """The program: `main`, and the end of the process."""
    code = main()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Without the interpreter's own end, which gloo's threads do not always live through (pytorch#179291).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
