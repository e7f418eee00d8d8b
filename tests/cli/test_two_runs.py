"""Two runs into one folder at once: one finishes with all its files, the other is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import icl_kernel_lens
from icl_kernel_lens.cli.commands import COMMANDS
from icl_kernel_lens.run.folder import finished

ROOT = Path(icl_kernel_lens.__file__).parents[1]
TWICE = """
import os, sys
from pathlib import Path

# Everything is imported once, and every run is a process of its own.
from icl_kernel_lens.cli import main
from icl_kernel_lens.evidence import read
from icl_kernel_lens.models.load import load_model
from icl_kernel_lens.report import heads
from icl_kernel_lens.scores import in_context

for time in range(5):
    out, children = f"{sys.argv[1]}/{time}", []
    for which in "ab":
        child = os.fork()
        if not child:
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(f"{out}.{which}.{name}", os.O_WRONLY | os.O_CREAT), number)
            code = main(["score", "--out", out, "--prompts", "4", "--demos", "2", "--device", "cpu", "--no-progress"])
            sys.stdout.flush()
            os._exit(code)
        children.append(child)
    print(*sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_one_finishes_and_the_other_is_refused_five_times_of_five(tmp_path):
    out = subprocess.run(
        [sys.executable, "-c", TWICE, str(tmp_path)],
        cwd=ROOT,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
            "TOKENIZERS_PARALLELISM": "false",
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert out.returncode == 0, out.stderr[-3000:]
    assert out.stdout == "0 1\n" * 5, [path.read_text() for path in tmp_path.glob("*.err")]
    for time in range(5):
        assert set(finished(tmp_path / f"{time}").files) == set(COMMANDS["score"].files)
        said = "".join(path.read_text() for path in tmp_path.glob(f"{time}.?.err"))
        assert said.count("one run at a time writes into a folder") == 1
        assert "is being written by process" in said
