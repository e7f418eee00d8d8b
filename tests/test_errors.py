"""Every error has a code of the one table, and its text ends with it."""

from __future__ import annotations

import ast
import pickle
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from icl_kernel_lens.cli import main
from icl_kernel_lens.errors import CODES, LensError, TaskError, without_code

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "icl_kernel_lens").rglob("*.py"))
TREES = {file: ast.parse(file.read_text()) for file in FILES}
DEFINED = {
    node.name: (file, node)
    for file, tree in TREES.items()
    for node in ast.walk(tree)
    if isinstance(node, ast.ClassDef)
}


def last_name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def texts(node: ast.AST) -> set[str]:
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


@cache
def error_classes() -> set[str]:
    """The names of LensError and of every class derived from it."""
    found = {"LensError"}
    while (
        more := {
            name for name, (_, node) in DEFINED.items() if {last_name(base) for base in node.bases} & found
        }
        - found
    ):
        found |= more
    return found


def codes_of_class(name: str) -> set[str]:
    """The code that a class gives by its own constructor, if it has one."""
    return {
        default.value
        for node in DEFINED[name][1].body
        if isinstance(node, ast.FunctionDef) and node.name == "__init__"
        for default in node.args.defaults
        if isinstance(default, ast.Constant) and isinstance(default.value, str)
    }


@cache
def sites() -> dict[str, set[str]]:
    """Where an error is made, and the codes it can have there."""
    found = {}
    for file, tree in TREES.items():
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        inside = {node: function for function in functions for node in ast.walk(function)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (name := last_name(node.func)) in error_classes() | {"require"}:
                given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
                if node in inside and inside[node].name == "require":
                    continue  # which raises with the code that it is given
                codes = {text for value in given for text in texts(value)} or codes_of_class(name)
                if not codes and any(isinstance(value, ast.Name) for value in given):
                    codes = texts(inside[node]) & set(CODES)  # one of several, chosen in this function
                found[f"{file.relative_to(ROOT)}:{node.lineno} {name}"] = codes
            elif isinstance(node, ast.Raise) and last_name(node.exc or node) in error_classes():
                found[f"{file.relative_to(ROOT)}:{node.lineno} a class without a message"] = set()
    return found


def made(name: str) -> LensError:
    file, _ = DEFINED[name]
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    return getattr(import_module(module), name)("a file must exist; there is none.", code="file-absent")


def test_every_error_names_a_code_of_the_table():
    without = [where for where, codes in sites().items() if not codes or not codes <= set(CODES)]
    assert len(sites()) > 200
    assert not without, without


def test_every_code_of_the_table_is_used():
    assert not set(CODES) - set().union(*sites().values())


def test_every_entry_is_three_sentences():
    short = [code for code, entry in CODES.items() if not all(part.strip().endswith(".") for part in entry)]
    assert not short, short
    assert all(code == code.lower() and " " not in code for code in CODES)
    assert len(set(CODES.values())) == len(CODES)


@pytest.mark.parametrize("name", sorted(error_classes()))
def test_an_error_ends_with_its_code_and_survives_pickle(name):
    error = made(name)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    for one in (error, again):
        assert str(one) == "a file must exist; there is none. [file-absent]"
        assert (one.message, one.code) == ("a file must exist; there is none.", "file-absent")


def test_a_text_made_of_an_error_has_its_code_once():
    cause = TaskError("a task file must exist.", code="task-file")
    whole = TaskError(f"row 3: {without_code(cause)}", code="task-file")
    assert str(whole).count("[task-file]") == 1
    assert without_code(ValueError("of another library")) == "of another library"


def test_the_program_prints_the_code(tmp_path, capsys):
    assert main(["show", str(tmp_path / "nothing")]) == 1
    assert capsys.readouterr().err.strip().endswith("[file-absent]")
