"""The shape that docs/architecture.md draws is the shape of the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import icl_kernel_lens

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "icl_kernel_lens"
NAME = PACKAGE.name


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def is_hub(module: str) -> bool:
    """A package's `__init__`, which only hands names on."""
    return FILES[module].name == "__init__.py"


@cache
def handed_on(module: str) -> dict[str, str]:
    """The modules that a package's names come from."""
    return {
        alias.asname or alias.name: node.module or ""
        for node in ast.walk(ast.parse(FILES[module].read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def imports(module: str) -> Iterator[tuple[str, ast.stmt, bool]]:
    """The modules of ours that a module imports: where, and whether at the top of its file; type-only ones left out."""
    tree = ast.parse(FILES[module].read_text())
    type_only = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if node in type_only:
            continue
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = []
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                origin = whole if whole in FILES else node.module or ""
                while origin in FILES and is_hub(origin) and alias.name in handed_on(origin):
                    origin = handed_on(origin)[alias.name]
                found.append(origin)
        else:
            continue
        for name in found:
            if name in FILES:
                yield name, node, node in tree.body


def floors() -> dict[str, int]:
    """Each package and top-level module, and the floor it stands on in the picture."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^ {4,5}(\d+) {2}(\S.*?)(?: {3,}.*)?$", text, re.MULTILINE)
    return {name: int(number) for number, names in rows for name in names.replace("/", "").split()}


def room(module: str) -> str:
    return module.removeprefix(f"{NAME}.").split(".")[0] if module != NAME else "__init__"


def test_every_package_stands_on_a_floor():
    assert {room(module) for module in FILES} == set(floors())


def test_imports_only_go_down():
    floor = floors()
    up = [
        f"{FILES[module].relative_to(ROOT)}:{node.lineno} {name}"
        for module in FILES
        if module != NAME
        for name, node, _ in imports(module)
        if floor[room(name)] > floor[room(module)]
    ]
    assert not up, up


def test_no_module_imports_itself_by_a_detour():
    graph = {module: {name for name, _, _ in imports(module)} for module in FILES if not is_hub(module)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_imports_stand_at_the_top_of_the_file():
    late = [
        f"{FILES[module].relative_to(ROOT)}:{node.lineno} {name}"
        for module in FILES
        if module != NAME and room(module) != "cli"
        for name, node, top in imports(module)
        if not top
    ]
    assert not late, late


def test_only_models_imports_transformer_lens():
    others = [
        module
        for module, file in FILES.items()
        if room(module) != "models"
        and re.search(r"^\s*(from|import) transformer_lens", file.read_text(), re.MULTILINE)
    ]
    assert not others


def test_no_function_bears_its_modules_name():
    same = [
        module
        for module, file in FILES.items()
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == module.rsplit(".", 1)[-1]
    ]
    assert not same


def test_long_functions_say_why():
    """Fewer than 70 lines beside the docstring, or its first line says why."""
    long = []
    for module, file in FILES.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                text = ast.get_docstring(node, clean=False) or ""
                lines = (node.end_lineno or 0) - node.lineno + 1 - len(text.splitlines())
                if lines >= 70 and "; long, for " not in text.split("\n")[0]:
                    long.append(f"{module}:{node.lineno} {node.name} {lines}")
    assert not long, long


UNTESTED_BY_NAME = {
    "__main__.py": "starts the command line, which tests/cli tests",
}
"""Modules without a test file of their name, and why."""


def test_every_module_has_a_test_file_of_its_name():
    """Where a reader looks for a module's tests; what they are worth, this does not say."""
    modules = {str(file.relative_to(PACKAGE)) for file in FILES.values() if file.name != "__init__.py"}
    assert modules >= set(UNTESTED_BY_NAME), "an exception for a module that is not there"
    absent = [
        str(mirror.relative_to(ROOT))
        for module in sorted(modules - set(UNTESTED_BY_NAME))
        if not (mirror := ROOT / "tests" / Path(module).with_name(f"test_{Path(module).name}")).exists()
    ]
    assert not absent, absent


def test_public_names_are_one_list():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    typed = {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert typed - {"import_module", "version", "TYPE_CHECKING", "Any"} == set(icl_kernel_lens.__all__)
    assert all(getattr(icl_kernel_lens, name) is not None for name in icl_kernel_lens.__all__)
    assert len(icl_kernel_lens.__all__) <= 29
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        icl_kernel_lens.nothing  # noqa: B018
