"""The table of commands says what each writes, and every class it names is there."""

from __future__ import annotations

from importlib import import_module

import pytest

from icl_kernel_lens.cli.commands import COMMANDS
from icl_kernel_lens.cli.outputs import Command, Saved, described
from icl_kernel_lens.evidence.small import small_evidence
from icl_kernel_lens.results.base import Result
from icl_kernel_lens.scores.vote import head_vote


@pytest.mark.parametrize("name", ["score", "patch", "locate", "theory"])
def test_every_file_is_named_once_and_every_class_is_there(name):
    command = COMMANDS[name]
    assert len(set(command.files)) == len(command.files)
    assert set(command.files) >= {f"{one.name}.safetensors" for one in command.saves}
    for one in command.saves:
        module = import_module(f"icl_kernel_lens.{one.module}")
        assert any(isinstance(c, type) and issubclass(c, Result) for c in vars(module).values())


def test_results_are_said_and_drawn_by_their_declarations(tmp_path, capsys):
    """In their order, whatever order they were made in; a table and figures where they are named; a page last."""
    evidence = small_evidence()
    results = {"vote": head_vote(evidence), "evidence": evidence, "other": None}
    command = Command(
        print,
        (
            Saved("evidence", "results.evidence"),
            Saved("vote", "results.head_scores", "vote.csv", ("vote.svg",)),
        ),
        report=lambda results, path: path.write_text(", ".join(results)),
    )
    command.present(results, tmp_path, 1)
    printed = capsys.readouterr().out
    assert printed.index("Evidence(") < printed.index("agreement of the head's vote")
    assert printed.count("\nL") == 1
    assert {p.name for p in tmp_path.iterdir()} == {"vote.csv", "vote.svg", "report.html"}
    assert (tmp_path / "report.html").read_text() == "evidence, vote"
    for name in ("evidence", "vote"):
        results[name].save(tmp_path / f"{name}.safetensors")
    again = command.load(tmp_path, ["vote.safetensors"])
    assert list(again) == ["vote"]
    assert again["vote"].table().equals(results["vote"].table())
    assert next(described({"vote": again["vote"]}, 2)).count("\nL") == 2
