"""The program: help at once, and errors in one message."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import icl_kernel_lens
from icl_kernel_lens.cli import main
from icl_kernel_lens.models import load

ROOT = Path(icl_kernel_lens.__file__).parents[1]


@pytest.mark.parametrize(
    "command",
    [(), ("score",), ("influence",), ("patch",), ("locate",), ("theory",), ("show",), ("train-mini",)],
)
def test_help_explains_every_option(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
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


HELP = """
import sys
from icl_kernel_lens.cli import main

for command in ([], ["score"], ["influence"], ["patch"], ["locate"], ["theory"], ["show"], ["train-mini"]):
    try:
        main([*command, "--help"])
    except SystemExit as stop:
        assert stop.code == 0
heavy = {"torch", "transformers", "transformer_lens", "pandas", "altair", "scipy"} & set(sys.modules)
assert not heavy, heavy
"""


def test_help_does_not_import_torch():
    out = subprocess.run(
        [sys.executable, "-c", HELP], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert out.returncode == 0, out.stderr
    assert "Find the heads that carry the model's own kernel" in out.stdout


def test_ctrl_c_is_said_in_one_line(tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(load, "load_model", interrupted)
    out = tmp_path / "out"
    assert main(["score", "--out", str(out), "--prompts", "4", "--demos", "2", "--device", "cpu"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not out.exists()
