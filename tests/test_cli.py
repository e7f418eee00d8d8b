"""The command line through `main([...])`: results, help, and errors in one line."""

from __future__ import annotations

import json

import pandas as pd
import pytest


def run(*arguments: object) -> int:
    from icl_kernel_lens.cli import main

    return main([str(a) for a in arguments])


def score(out, *more):
    return run(
        "score", "--out", out, "--prompts", 20, "--demos", 6, "--device", "cpu", "--no-progress", *more
    )


FILES = {
    "report.html", "head_map.png", "head_map.svg", "attention_map.png", "heads.csv", "evidence.safetensors",
    "head_vote.safetensors", "head_vote_span_max.safetensors", "accuracy.safetensors",
}  # fmt: skip


def test_score_then_show(tmp_path, capsys):
    from icl_kernel_lens import Evidence, HeadScores, head_vote

    out = tmp_path / "results"
    assert score(out) == 0
    printed = capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == FILES
    assert "agreement of the head's vote with the model's answer, against model, pooling label:" in printed
    assert "strongest_control" in printed
    assert "no_demonstrations" in printed
    saved = HeadScores.load(out / "head_vote.safetensors")
    again = head_vote(Evidence.load(out / "evidence.safetensors"))
    assert again.table().equals(saved.table())
    assert pd.read_csv(out / "heads.csv")["head"].tolist() == saved.table()["head"].tolist()
    before = (out / "head_map.png").read_bytes()
    (out / "head_map.png").unlink()
    assert run("show", out, "--top", 3) == 0
    shown = capsys.readouterr().out
    assert shown.count("\nL") == 6
    assert (out / "head_map.png").read_bytes() == before
    assert score(out, "--pooling", "span_max") == 0, "earlier results may be overwritten"
    assert not (out / "head_vote_span_max.safetensors").exists(), "and leave nothing stale"


def test_a_file_task_and_another_model(tmp_path, capsys):
    from icl_kernel_lens import HeadScores
    from icl_kernel_lens.models.load import MINI

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "nothing"), "error: unknown task 'nothing'"),
        (("--model", "no-such/model"), "error: could not load the model 'no-such/model'"),
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
    assert "holds head_vote.safetensors" in capsys.readouterr().err
    assert run("show", tmp_path / "absent") == 1
    assert "does not exist" in capsys.readouterr().err


def test_an_interrupted_run_leaves_earlier_results_whole(tmp_path, capsys, monkeypatch):
    """Ctrl-C after the reading, and bad input: the folder still holds the first run, and all of it."""
    from icl_kernel_lens import scores

    out = tmp_path / "out"
    assert score(out) == 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scores, "in_context_accuracy", interrupted)
        assert score(out, "--seed", 5) == 130
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == before
    assert "evidence.safetensors" in {p.name for p in (out / "unfinished").iterdir()}
    assert score(out, "--demos", "0") == 1
    assert "--demos must be at least 1" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == before
    assert score(out, "--seed", 5) == 0
    assert not (out / "unfinished").exists()
    assert (out / "evidence.safetensors").read_bytes() != before["evidence.safetensors"]


def test_columns_of_ones_own(tmp_path, capsys):
    from icl_kernel_lens.models.load import MINI

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
    assert "needs the label field 'label'" in capsys.readouterr().err
    assert score(tmp_path / "a", *arguments, "--text-fields", "sentence", "--label-field", "target") == 0
    assert "mine.csv (split in halves)" in capsys.readouterr().out


def test_ctrl_c_is_said_in_one_line(tmp_path, capsys, monkeypatch):
    from icl_kernel_lens import evidence

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(evidence, "read", interrupted)
    assert score(tmp_path / "out") == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("command", [(), ("score",), ("show",), ("train-mini",)])
def test_help_explains_every_option(command, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*command, "--help")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    if command == ("score",):
        for words in (
            "Demonstrations in each prompt.",
            "--model gpt2 --task sst2",
            "Seed of the prompts",
            "(default: 200)",
        ):
            assert words in text


def test_train_mini_from_the_command_line(tmp_path, capsys, monkeypatch):
    from icl_kernel_lens.worlds import train

    small = train.TrainingPlan(layers=1, width=16, heads=2, mlp_width=16, batch_size=2, measure_every=1)
    monkeypatch.setattr(train, "TrainingPlan", lambda: small)
    assert run("train-mini", "--out", tmp_path / "m", "--steps", 2, "--no-progress") == 0
    assert "held-out accuracy at the last example" in capsys.readouterr().out
    assert json.loads((tmp_path / "m" / "training.json").read_text())["plan"]["steps"] == 2
    assert (tmp_path / "m" / "emergence.svg").read_text().startswith("<svg")


def test_patch_writes_effects_that_show_reads(tmp_path, capsys, monkeypatch):
    """Both interventions, their tables and figures; an interrupted run goes on; other files are safe."""
    from icl_kernel_lens import PatchEffects
    from icl_kernel_lens.cli import PATCH_WRITTEN, main
    from icl_kernel_lens.evidence import runner

    out = tmp_path / "effects"
    arguments = [
        "patch",
        "--out",
        str(out),
        "--prompts",
        "6",
        "--demos",
        "4",
        "--offsets",
        "0",
        "--no-progress",
    ]
    halving, steps = runner._halving, []

    def interrupted(lens, step, numbers, prefix):
        if len(steps) == 3:
            raise KeyboardInterrupt
        steps.append(numbers)
        return halving(lens, step, numbers, prefix)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "_halving", interrupted)
        assert main(arguments) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "attention_edge" in printed
    assert "random_keys" in printed
    assert sorted(p.name for p in out.iterdir()) == sorted(PATCH_WRITTEN)
    effects = PatchEffects.load(out / "patch_labels.safetensors")
    assert effects.values.isfinite().all()
    assert effects.settings["corruption"].startswith("map_labels, seed 0")
    (out / "knock_out.csv").unlink()
    assert main(["show", str(out)]) == 0
    assert "knock_out of answer_reads_labels" in capsys.readouterr().out
    assert (out / "knock_out.csv").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("words")
    assert main(["patch", "--out", str(tmp_path / "mine")]) == 1
    assert "must be empty or hold earlier results" in capsys.readouterr().err
