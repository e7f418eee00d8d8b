"""The table of commands says what each writes, and results are said and drawn by it."""

from __future__ import annotations

import pytest

from icl_kernel_lens.cli.commands import COMMANDS
from icl_kernel_lens.cli.outputs import Command, Saved, described
from icl_kernel_lens.errors import LoadError
from icl_kernel_lens.evidence.small import small_evidence
from icl_kernel_lens.scores.vote import head_vote


@pytest.mark.parametrize("name", ["score", "influence", "patch", "locate", "theory"])
def test_every_file_is_named_once(name):
    command = COMMANDS[name]
    assert len(set(command.files)) == len(command.files)
    assert set(command.files) >= {f"{one.name}.safetensors" for one in command.saves}


def test_results_are_said_and_drawn_by_their_declarations(tmp_path, capsys):
    """In their order, whatever order they were made in; a table and figures where they are named; a page last."""
    evidence = small_evidence()
    results = {"vote": head_vote(evidence), "evidence": evidence, "other": None}
    command = Command(
        print,
        (
            Saved("evidence"),
            Saved(
                "vote",
                "vote.csv",
                ("vote.svg",),
                also={
                    "best.csv": lambda vote, results: vote.top(len(results)),
                    "layers.svg": lambda vote, _: vote.layer_figure(),
                    "never.svg": lambda *_: None,
                    "never.csv": lambda *_: None,
                },
                sometimes=True,
            ),
        ),
        report=lambda results, path: path.write_text(", ".join(results)),
    )
    command.present(results, tmp_path, 1)
    printed = capsys.readouterr().out
    assert printed.index("Evidence(") < printed.index("agreement of the head's vote")
    assert printed.count("\nL") == 1
    written = {p.name for p in tmp_path.iterdir()}
    assert written == {"vote.csv", "vote.svg", "best.csv", "layers.svg", "report.html"}
    assert written < set(command.files)
    assert len((tmp_path / "best.csv").read_text().splitlines()) == 3, "made with the other results at hand"
    assert (tmp_path / "report.html").read_text() == "evidence, vote"
    for name in ("evidence", "vote"):
        results[name].save(tmp_path / f"{name}.safetensors")
    assert list(command.load(tmp_path, ["evidence.safetensors"])) == ["evidence"]
    with pytest.raises(LoadError, match=r"a finished run has evidence\.safetensors"):
        command.load(tmp_path, ["vote.safetensors"])
    again = command.load(tmp_path, ["vote.safetensors", "evidence.safetensors"])
    assert list(again) == ["evidence", "vote"]
    assert again["vote"].table().equals(results["vote"].table())
    assert next(described({"vote": again["vote"]}, 2)).count("\nL") == 2
