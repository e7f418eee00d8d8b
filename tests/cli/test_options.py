"""Options stand once: the same for every command, with the words that the library knows."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

import pytest

from icl_kernel_lens.cli import main, options
from icl_kernel_lens.interventions import cuts, patch
from icl_kernel_lens.theory.presets import PRESETS

PROMPTS = {"score": 200, "influence": 256, "patch": 200, "locate": 256}
"""How many each command draws by default."""


@pytest.mark.parametrize("command", PROMPTS)
def test_every_command_takes_the_same_model_task_prompts_and_folder(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    for field in (*fields(options.Source), *fields(options.Target)):
        assert f"--{field.name.replace('_', '-')}" in text
    assert "--source" not in text
    assert "--target" not in text
    assert f"(default: {PROMPTS[command]})" in text


@pytest.mark.parametrize(("sets", "drawn"), [(None, None), (0, None), (4, 4)])
def test_no_sets_are_fresh_demonstrations(sets, drawn):
    class Task:
        def prompts(self, model, **how):
            return how

    assert options.Source(sets=sets).draw(None, Task())["sets"] == drawn


def test_words_are_the_librarys():
    assert get_args(options.World) == tuple(PRESETS)
    assert options.Activation == patch.Activation
    assert options.Edges == cuts.Edges
    assert options.Method == patch.Method
    assert options.Direction == patch.Direction
