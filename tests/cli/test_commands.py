"""Each command through `main([...])`: what it prints and writes, and that `show` prints and draws it again."""

from __future__ import annotations

import html
import json
from itertools import permutations
from pathlib import Path

import pandas as pd
import pytest

import icl_kernel_lens
from icl_kernel_lens import Evidence, HeadRef, HeadScores, head_vote, load_model, load_task
from icl_kernel_lens.cli import main
from icl_kernel_lens.cli.commands import COMMANDS
from icl_kernel_lens.influence.measure import influence_cost
from icl_kernel_lens.locate.ablation import ablation_curves
from icl_kernel_lens.locate.search import locate_heads
from icl_kernel_lens.models.sources import MINI
from icl_kernel_lens.results.ablation_curves import AblationCurves
from icl_kernel_lens.results.head_ranking import HeadRanking
from icl_kernel_lens.results.label_influence import LabelInfluence
from icl_kernel_lens.results.patch_effects import PatchEffects
from icl_kernel_lens.results.task_accuracy import TaskAccuracy
from icl_kernel_lens.run.checkpoint import Checkpoint
from icl_kernel_lens.theory.study import Study
from icl_kernel_lens.worlds.topics import train as topics


def run(*arguments: object) -> int:
    return main([str(a) for a in arguments])


def names(out: Path) -> set[str]:
    """What a user sees in a folder."""
    return {path.name for path in out.iterdir() if not path.name.startswith(".")}


def contents(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in names(out) if (out / name).is_file()}


def score(out, *more):
    return run(
        "score", "--out", out, "--prompts", 20, "--demos", 6, "--device", "cpu", "--no-progress", *more
    )


FILES = {
    "report.html", "head_map.png", "head_map.svg", "attention_map.png", "heads.csv", "evidence.safetensors",
    "head_vote.safetensors", "head_vote_span_max.safetensors", "accuracy.safetensors", "manifest.json",
}  # fmt: skip


def test_score_then_show(tmp_path, capsys):
    out = tmp_path / "results"
    assert score(out) == 0
    printed = capsys.readouterr().out
    assert names(out) == FILES
    assert "agreement of the head's vote with the model's answer, against model, pooling label:" in printed
    assert "strongest_control" in printed
    assert "no_demonstrations" in printed
    accuracy = TaskAccuracy.load(out / "accuracy.safetensors")
    first = printed.index(f"\n{accuracy.verdict()}\nTaskAccuracy(mini on topics, 20 prompts)")
    assert first < printed.index("Evidence(") < printed.index("strongest_control")
    page = html.unescape((out / "report.html").read_text())
    assert (
        page.index("Is there anything to explain?")
        < page.index(accuracy.verdict())
        < page.index("Which heads vote")
    )
    saved = HeadScores.load(out / "head_vote.safetensors")
    assert repr(saved).startswith(f"{accuracy.opening()}\nHeadScores(")
    again = head_vote(Evidence.load(out / "evidence.safetensors"))
    assert again.table().equals(saved.table())
    assert pd.read_csv(out / "heads.csv")["head"].tolist() == saved.table()["head"].tolist()
    before = (out / "head_map.png").read_bytes()
    (out / "head_map.png").unlink()
    assert run("show", out, "--top", 3) == 0
    shown = capsys.readouterr().out
    assert shown.count("\nL") == 6
    assert (out / "head_map.png").read_bytes() == before
    assert score(out, "--pooling", "span_max") == 1
    assert "pooling=label there, against=model, offsets=(), pooling=span_max now" in capsys.readouterr().err
    assert score(out, "--pooling", "span_max", "--overwrite") == 0
    assert not (out / "head_vote_span_max.safetensors").exists(), "and leave nothing stale"


def test_a_file_task_and_another_model(tmp_path, capsys):
    path = tmp_path / "boats.jsonl"
    rows = [
        {"text": ("harbor sail tide" if i % 2 else "violin drum chord") + f" then {i}", "label": i % 2}
        for i in range(60)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    out = tmp_path / "out"
    code = score(
        out, "--model", MINI, "--task", path, "--label-words", "red", "blue", "--template",
        "{text} is {label} .", "--sets", 5, "--balanced", "--against", "truth", "--pooling", "label_sum",
    )  # fmt: skip
    assert code == 0, capsys.readouterr().err
    scores = HeadScores.load(out / "head_vote.safetensors")
    assert dict(scores.settings) == {"against": "truth", "pooling": "label_sum"}
    assert scores.run.prompts.task == "boats"
    assert scores.run.prompts.template.demo == "{text} is {label} ."
    assert len(scores.demo_set.unique()) == 5


@pytest.mark.once
def test_the_first_line_says_that_demonstrations_hurt(tmp_path, capsys):
    """Test inputs are labelled the other way round than the demonstrations, from which the bundled model learns."""
    pools = ("harbor sail tide anchor reef dock", "violin drum chord melody flute tempo")
    texts = [[" ".join(words) for words in permutations(pool.split(), 3)] for pool in pools]
    for name, turn in (("boats.train", 0), ("boats.test", 1)):
        rows = [{"text": texts[i % 2][i // 2], "label": (i + turn) % 2} for i in range(200)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ("--label-words", "red", "blue", "--template", "{text} is {label} .", "--prompts", 40)
    arguments = (*arguments, "--sets", 20)
    task = tmp_path / "boats.train.jsonl"
    for command in (score, locate):
        out = tmp_path / command.__name__
        assert command(out, "--model", MINI, "--task", task, *arguments) == 0
        said = "The demonstrations hurt: accuracy falls from "
        _, results = capsys.readouterr().out.split("\n\n", 1)
        assert results.startswith(said), "right behind what was loaded"
        assert said in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "nothing"), "error: unknown task 'nothing'"),
        (("--model", "no-such/model"), 'error: a model must be "mini", a folder or a .gguf file here'),
        (("--demos", "60"), "error: a prompt must fit the model's context of 256 tokens"),
        (("--sets", "7"), "error: 20 prompts cannot be shared evenly by 7"),
        (("--batch-size", "0"), "error: --batch-size must be at least 1"),
    ],
)
def test_errors_are_one_message(tmp_path, capsys, arguments, message):
    assert score(tmp_path / "out", *arguments) == 1
    assert message in capsys.readouterr().err


def test_folders_that_hold_something_else(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("x")
    assert score(tmp_path) == 1
    assert "must be empty or hold earlier results" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    assert score(tmp_path / "thesis.tex") == 1
    assert "is a file" in capsys.readouterr().err
    assert run("show", tmp_path) == 1
    assert "holds manifest.json" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    assert run("show", tmp_path / "absent") == 1
    assert "does not exist" in capsys.readouterr().err
    assert run("show", tmp_path / "thesis.tex") == 1
    assert "is a file. Give the folder that holds manifest.json" in capsys.readouterr().err
    assert run("train-mini", "--steps", "0", "--out", tmp_path / "mini") == 1
    assert "--steps and --threads must be at least 1" in capsys.readouterr().err


@pytest.mark.once
def test_an_interrupted_run_leaves_earlier_results_whole(tmp_path, capsys, monkeypatch):
    """Ctrl-C after the reading, and bad input: the folder still holds the first run, and all of it."""
    out = tmp_path / "out"
    assert score(out) == 0
    before = contents(out)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(icl_kernel_lens, "in_context_accuracy", interrupted)
        assert score(out, "--seed", 5, "--overwrite") == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert contents(out) == before
    assert "evidence.safetensors" in names(out / "unfinished")
    assert score(out, "--demos", "0") == 1
    assert "--demos must be at least 1" in capsys.readouterr().err
    assert score(out, "--seed", 5) == 1
    assert "Choose another folder, or pass --overwrite" in capsys.readouterr().err
    assert score(out) == 1
    assert "holds an interrupted run of another" in capsys.readouterr().err
    assert run("show", out) == 0, "the earlier results"
    assert (out / "evidence.safetensors").read_bytes() == before["evidence.safetensors"]
    assert score(out, "--seed", 5, "--overwrite") == 0
    assert not (out / "unfinished").exists()
    assert (out / "evidence.safetensors").read_bytes() != before["evidence.safetensors"]


@pytest.mark.once
def test_show_never_mixes_two_runs(tmp_path, capsys):
    """Whichever file is another run's; and the command that wrote the folder writes the same bytes again."""
    a, b = tmp_path / "a", tmp_path / "b"
    assert score(a) == 0
    assert score(b, "--seed", 1) == 0
    before = contents(a)
    capsys.readouterr()
    for name in sorted(FILES - {"manifest.json"}):
        (a / name).write_bytes((b / name).read_bytes())
        assert run("show", a) == 1
        assert f"{name} is not" in capsys.readouterr().err
        (a / name).write_bytes(before[name])
    (a / "head_vote.safetensors").write_bytes((b / "head_vote.safetensors").read_bytes())
    assert score(a) == 0
    again = contents(a)
    assert {name for name in FILES if again[name] != before[name]} <= {"head_map.svg", "manifest.json"}
    assert run("show", a) == 0, (
        "an SVG numbers its parts through a process, and the manifest says which one is here"
    )


@pytest.mark.once
def test_columns_of_ones_own(tmp_path, capsys):
    path = tmp_path / "mine.csv"
    words = ("harbor sail tide", "violin drum chord")
    path.write_text("sentence,target\n" + "".join(f"{words[i % 2]} {i},{i % 2}\n" for i in range(40)))
    arguments = [
        "--model",
        MINI,
        "--task",
        path,
        "--label-words",
        "red",
        "blue",
        "--template",
        "{text} is {label} .",
    ]
    assert score(tmp_path / "a", *arguments) == 1
    assert "needs the fields ['text', 'label']" in capsys.readouterr().err
    assert score(tmp_path / "a", *arguments, "--text-fields", "sentence", "--label-field", "target") == 0
    assert "mine.csv (split in halves)" in capsys.readouterr().out


def test_train_mini_from_the_command_line(tmp_path, capsys, monkeypatch):
    small = topics.MiniTraining(layers=1, width=16, heads=2, mlp_width=16, batch_size=2, measure_every=1)
    monkeypatch.setattr(topics, "MiniTraining", lambda: small)
    assert run("train-mini", "--out", tmp_path / "m", "--steps", 2, "--no-progress") == 0
    assert "held-out accuracy at the last example" in capsys.readouterr().out
    assert json.loads((tmp_path / "m" / "training.json").read_text())["plan"]["steps"] == 2
    assert (tmp_path / "m" / "emergence.svg").read_text().startswith("<svg")


def test_patch_writes_effects_that_show_reads(tmp_path, capsys, monkeypatch):
    """Both interventions, their tables and figures; an interrupted run goes on; other files are safe."""
    out = tmp_path / "effects"
    arguments = ("patch", "--out", out, "--prompts", 6, "--demos", 4, "--offsets", 0, "--no-progress")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        assert run(*arguments) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    assert "attention_edge" in printed
    assert "random_keys" in printed
    assert names(out) == {*COMMANDS["patch"].files, "manifest.json"}
    effects = PatchEffects.load(out / "patch_labels.safetensors")
    assert effects.values.isfinite().all()
    assert effects.settings["corruption"].startswith("map_labels, seed 0")
    (out / "knock_out.csv").unlink()
    assert run("show", out) == 0
    assert "knock_out of answer_reads_labels" in capsys.readouterr().out
    assert (out / "knock_out.csv").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("words")
    assert run("patch", "--out", tmp_path / "mine") == 1
    assert "must be empty or hold earlier results" in capsys.readouterr().err


def interrupt_after(patch, most: int | None) -> set[tuple[Path, int]]:
    """The prompts that are run from now on, by their checkpoint; after so many batches, Ctrl-C."""
    add, batches, done = Checkpoint.add, [], set()

    def counted(self, numbers, results):
        if len(batches) == most:
            raise KeyboardInterrupt
        batches.append(numbers)
        if self.folder is not None:  # a few prompts are run again to see whether evidence is the model's
            done.update((self.folder, number) for number in numbers)
        add(self, numbers, results)

    patch.setattr(Checkpoint, "add", counted)
    return done


def locate(out, *more, prompts=96, sets=48, demos=8):
    return run(
        *("locate", "--out", out, "--prompts", prompts, "--sets", sets, "--demos", demos),
        *("--device", "cpu", "--no-progress"), *more,
    )  # fmt: skip


def test_locate_then_show(tmp_path, capsys, monkeypatch):
    """Tables, figures, report and results; an interrupted run goes on; the same as from Python."""
    out = tmp_path / "located"
    with monkeypatch.context() as patch:
        before = interrupt_after(patch, 3)
        assert locate(out) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert names(out) == {"unfinished"}
    with monkeypatch.context() as patch:
        resumed = interrupt_after(patch, None)
        assert locate(out) == 0
    printed = capsys.readouterr().out
    assert names(out) == {*COMMANDS["locate"].files, "manifest.json"}
    accuracy = TaskAccuracy.load(out / "accuracy.safetensors")
    assert printed.count(accuracy.verdict()) == 1
    assert printed.index(accuracy.verdict()) < printed.index("HeadRanking(")
    assert "pair kernels: L2H1" in printed
    assert "It is carried by L2H1." in printed
    assert "band: layer 2 of 3 (counted from 0;" in printed
    assert (
        "AblationCurves(mini on topics: label edges of L2H1; 96 prompts of seed 1; against the true label"
        in printed
    )
    model, task = load_model("mini", "cpu"), load_task("topics")
    prompts = task.prompts(model, demos=8, count=96, sets=48, seed=0)
    ranking = HeadRanking.load(out / "ranking.safetensors")
    with pytest.warns(UserWarning, match="24 demonstration sets a half are few"):
        assert ranking.table().equals(locate_heads(model, prompts, progress=False).table())
    fresh = task.prompts(model, demos=8, count=96, sets=48, seed=1)
    curves = AblationCurves.load(out / "curves.safetensors")
    assert curves.heads == (HeadRef(2, 1),)
    expected = ablation_curves(model, fresh, ranking, progress=False)
    assert curves.table().equals(expected.table())
    assert before
    assert not before & resumed, "what had been finished was not run again"
    assert curves.run.prompts.seed == 1, "not the prompts that the heads were located on"
    assert pd.read_csv(out / "heads.csv")["head"].tolist() == ranking.table()["head"].tolist()
    assert len(pd.read_csv(out / "curves.csv")) == len(curves.table())
    assert repr(ranking).startswith(f"{accuracy.opening()}\nHeadRanking(")
    report = (out / "report.html").read_text()
    assert accuracy.verdict() in html.unescape(report)
    for words in ("Located heads", "Are they needed", "Which heads vote like the answer?"):
        assert f"<h2>{words}" in report
    drawn = (out / "ranking.png").read_bytes()
    for name in ("ranking.png", "curves.csv", "report.html"):
        (out / name).unlink()
    capsys.readouterr()
    assert run("show", out, "--top", 1) == 0
    shown = capsys.readouterr().out
    assert "L2H1 pair kernel" in shown
    assert not any(line.startswith("L2H3") for line in shown.splitlines()), "--top 1"
    assert "AblationCurves(" in shown
    assert (out / "ranking.png").read_bytes() == drawn
    assert names(out) == {*COMMANDS["locate"].files, "manifest.json"}


@pytest.mark.once
def test_locate_without_curves_or_without_heads(tmp_path, capsys):
    out = tmp_path / "out"
    assert locate(out, "--no-curves") == 0
    printed = capsys.readouterr().out
    assert "pair kernels: L2H1" in printed
    assert "Necessity and sufficiency: not measured.\n" in printed
    assert not list(out.glob("curves*"))
    (out / "curves.csv").write_text("stale")
    assert locate(out, "--criteria.effect", "0.98") == 1
    assert "effect=0.05" in capsys.readouterr().err
    assert locate(out, "--criteria.effect", "0.98", "--overwrite", prompts=32, sets=16, demos=4) == 0
    printed = capsys.readouterr().out
    assert "kernel heads: none" in printed
    assert "not measured; no head located" in printed
    assert not list(out.glob("curves*")), "and leave nothing stale"
    report = (out / "report.html").read_text()
    assert "Kernel heads: none." in report
    assert "<td>criterion: effect</td><td>0.98</td>" in report


@pytest.mark.once
def test_other_edges_from_the_command_line(tmp_path, capsys):
    """In whatever order they are named; results say which they are of."""
    small = ["--no-progress", "--device", "cpu", "--demos", "4", "--prompts", "32", "--sets", "16"]
    assert (
        main(["score", *small, "--pooling", "edges", "--offsets", "1", "0", "--out", str(tmp_path / "s")])
        == 0
    )
    vote = HeadScores.load(tmp_path / "s" / "head_vote.safetensors")
    assert vote.settings["offsets"] == "(0, 1)"
    assert main(["locate", *small, "--no-curves", "--offsets", "1", "0", "--out", str(tmp_path / "l")]) == 0
    ranking = HeadRanking.load(tmp_path / "l" / "ranking.safetensors")
    evidence = Evidence.load(tmp_path / "l" / "evidence.safetensors")
    assert ranking.offsets == evidence.offsets == (0, 1)
    assert "offsets 0, +1 from the label" in capsys.readouterr().out
    for wrong in (["--pooling", "edges"], ["--offsets", "1"]):
        assert main(["score", *small, *wrong, "--out", str(tmp_path / "w")]) == 1
        assert "--pooling edges and --offsets belong together" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def influence(out, *more, prompts=24, demos=4):
    small = ("--prompts", prompts, "--sets", 8, "--demos", demos, "--device", "cpu", "--no-progress")
    return run("influence", "--out", out, *small, *more)


def test_influence_then_show(tmp_path, capsys, monkeypatch):
    """Tables, figures, report and results; an interrupted run goes on; the same as from Python."""
    out = tmp_path / "influence"
    with monkeypatch.context() as patch:
        before = interrupt_after(patch, 2)
        assert influence(out, prompts=48, demos=8) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        resumed = interrupt_after(patch, None)
        assert influence(out, prompts=48, demos=8) == 0
    assert before
    assert not before & resumed, "what had been finished was not run again"
    printed = capsys.readouterr().out
    assert names(out) == {*COMMANDS["influence"].files, "manifest.json"}
    found = LabelInfluence.load(out / "influence.safetensors")
    accuracy, verdict = found.accuracy.verdict(), found.verdict()
    assert printed.index(f"\n{accuracy}\nTaskAccuracy(") < printed.index(verdict) < printed.index("\nL2H1")
    model, task = load_model("mini", "cpu"), load_task("topics")
    prompts = task.prompts(model, demos=8, count=48, seed=0, sets=8)
    expected = icl_kernel_lens.label_influence(model, prompts, progress=False)
    assert found.summary().equals(expected.summary())
    fit = HeadScores.load(out / "fit.safetensors")
    evidence = Evidence.load(out / "evidence.safetensors")
    assert fit.table().equals(icl_kernel_lens.influence_fidelity(expected, evidence).table())
    assert pd.read_csv(out / "summary.csv")["value"].tolist() == pytest.approx(
        expected.summary()["value"].tolist()
    )
    assert len(pd.read_csv(out / "influence.csv")) == 2 * 48 * 8
    assert pd.read_csv(out / "profile.csv")["place"].tolist() == [*range(8)] * 2
    assert pd.read_csv(out / "heads.csv")["head"][0] == "L2H1"
    page = html.unescape((out / "report.html").read_text())
    assert page.index(accuracy) < page.index(verdict) < page.index("Which heads follow it?")
    drawn = {name: (out / name).read_bytes() for name in names(out) if name.endswith(".png")}
    assert set(drawn) == {
        f"{name}.png" for name in ("influence", "additivity", "layers", "head_map", "prompt")
    }
    for name in (*drawn, "summary.csv", "report.html"):
        (out / name).unlink()
    assert run("show", out, "--top", 1) == 0
    shown = capsys.readouterr().out
    assert verdict in shown
    assert shown.count("\nL2H1") == 1
    assert not any(line.startswith("L1H") for line in shown.splitlines()), "--top 1"
    assert {name: (out / name).read_bytes() for name in drawn} == drawn
    assert names(out) == {*COMMANDS["influence"].files, "manifest.json"}
    assert influence(out, "--orders", 3, prompts=48, demos=8) == 1
    assert "orders=3, pooling=label now" in capsys.readouterr().err


def test_a_dry_run_says_what_it_will_cost_and_writes_nothing(tmp_path, capsys):
    out = tmp_path / "influence"
    assert influence(out, "--dry-run", "--orders", 3) == 0
    printed = capsys.readouterr().out
    model, task = load_model("mini", "cpu"), load_task("topics")
    prompts = task.prompts(model, demos=4, count=24, seed=0, sets=8)
    cost = influence_cost(model, prompts, orders=3)
    assert f"label influence in 3 orders: {cost.runs:,} prompts, {cost.tokens:,} tokens to run" in printed
    assert not out.exists()


@pytest.mark.once
def test_influence_ranks_heads_only_where_there_is_a_kernel_part(tmp_path, capsys):
    """One order: undetermined. Fresh demonstrations for each prompt: nothing to compare heads on."""
    out = tmp_path / "a"
    assert influence(out, "--orders", 1) == 0
    printed = capsys.readouterr().out
    assert "the kernel part is undetermined, as the demonstrations were shown in one order alone" in printed
    assert "No head is ranked" in printed
    assert names(out) == {*COMMANDS["influence"].files, "manifest.json"} - {"prompt.png", "prompt.svg"}
    page = html.unescape((out / "report.html").read_text())
    assert "No head is ranked" in page
    assert "<td>L2H1</td>" not in page
    assert influence(tmp_path / "b", "--sets", 24) == 0
    printed = capsys.readouterr().out
    assert "How far heads follow it: not measured, as no two prompts share their demonstrations" in printed
    assert not (tmp_path / "b" / "heads.csv").exists()
    assert "Not measured: no two prompts share" in (tmp_path / "b" / "report.html").read_text()
    assert run("show", tmp_path / "b") == 0
    for wrong in (("--orders", 0), ("--demos", 1), ("--pooling", "edges"), ("--batch-size", 0)):
        assert influence(tmp_path / "c", *wrong) == 1
        assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "c").exists(), "refused before anything was read"


def test_locate_refuses(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("words")
    assert locate(tmp_path) == 1
    assert "must be empty or hold earlier results" in capsys.readouterr().err
    assert locate(tmp_path / "a", "--sets", 4) == 1
    assert "each half needs at least 8 demonstration sets" in capsys.readouterr().err
    assert not (tmp_path / "a").exists(), "refused before anything was read"
    assert locate(tmp_path / "a", "--demos", 0) == 1
    assert "--demos must be at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        locate(tmp_path / "a", "--criteria.effect", "5")
    assert "Criteria.effect must lie between 0 and 1; got 5.0" in " ".join(capsys.readouterr().err.split())


@pytest.mark.once
def test_theory_then_show(tmp_path, capsys):
    out = tmp_path / "out"
    options = ("--preset", "sparse", "--trials", 12, "--no-experiments", "--no-progress")
    assert run("theory", "--out", out, *options) == 0
    printed = capsys.readouterr().out
    parts = {"theorem", "variants", "variants_small", "concentration"}
    assert names(out) == {
        f"{part}{suffix}" for part in parts for suffix in (".png", ".svg", ".csv", ".safetensors")
    } | {"letter.safetensors", "terms.safetensors", "report.html", "manifest.json"}
    found = Study.of(COMMANDS["theory"].load(out, names(out)))
    assert found.describe() in printed
    assert "the paper's" not in printed, "another world than the paper's"
    table = pd.read_csv(out / "theorem.csv")
    assert table["l1"].tolist() == pytest.approx(found.theorem.mean("l1").tolist())
    page = (out / "report.html").read_text()
    for text in ("Theorem 1 measured", "says nothing whatever n is", "How demonstrations tell the task"):
        assert text in page
    drawn = (out / "theorem.svg").read_text()
    (out / "theorem.svg").unlink()
    (out / "noise.txt").write_text("x")
    assert run("theory", "--out", out, *options) == 1
    assert "must be empty or hold earlier results" in capsys.readouterr().err
    (out / "noise.txt").unlink()
    assert run("show", out) == 0
    assert found.describe() in capsys.readouterr().out
    assert len((out / "theorem.svg").read_text()) == len(drawn)
    assert run("theory", "--out", tmp_path / "a", "--trials", 3) == 1
    assert "--trials must be at least 10" in capsys.readouterr().err
    assert names(out) - {"manifest.json"} < set(COMMANDS["theory"].files)
