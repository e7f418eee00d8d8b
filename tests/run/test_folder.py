"""A folder holds one whole run, or says that it does not: whoever else writes, and wherever the run is cut short."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import icl_kernel_lens
from icl_kernel_lens.errors import LensError, LoadError, ResultError, RunError
from icl_kernel_lens.evidence.small import small_evidence
from icl_kernel_lens.files import write_atomically
from icl_kernel_lens.run.folder import MANIFEST, UNFINISHED, RunFolder, finished, locked, redrawing
from icl_kernel_lens.scores.vote import head_vote

ROOT = str(Path(icl_kernel_lens.__file__).parents[1])
FILES = ("evidence.safetensors", "vote.safetensors", "truth.safetensors", "heads.csv", "page.html")


@cache
def made(against: str):
    """Results that take no model, and a table."""
    evidence = small_evidence()
    vote = head_vote(evidence, against=against)
    return evidence, vote, vote.table().to_csv(index=False)


def a_run(out: Path, against: str = "model", *, overwrite: bool = False, command: str = "score") -> None:
    """A run that takes no model: two results and two drawn files; against the truth, another result and no page."""
    evidence, vote, table = made(against)
    with RunFolder(out, command, FILES, overwrite=overwrite) as folder:
        folder.begin({"model": "none", "settings": f"against={against}"})
        folder.result("evidence", lambda: evidence)
        folder.result("vote" if against == "model" else "truth", lambda: vote)

        def draw(new: Path) -> None:
            write_atomically(new / "heads.csv", table)
            if against == "model":
                (new / "page.html").write_text("<p>drawn</p>")

        folder.finish(draw)


def contents(out: Path) -> dict[str, bytes]:
    """What a folder holds for its reader."""
    return {p.name: p.read_bytes() for p in out.iterdir() if p.is_file() and not p.name.startswith(".")}


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A finished folder."""
    out = tmp_path_factory.mktemp("folder") / "old"
    a_run(out)
    return out


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    """Another setting's."""
    out = tmp_path_factory.mktemp("folder") / "new"
    a_run(out, "truth")
    return out


@pytest.fixture
def work(old, tmp_path):
    """A copy of the finished folder."""
    return Path(shutil.copytree(old, tmp_path / "work"))


def test_a_finished_folder(old):
    names = {MANIFEST, "evidence.safetensors", "vote.safetensors", "heads.csv", "page.html"}
    assert set(contents(old)) == names
    assert {p.name for p in old.iterdir()} - names == {".lock"}
    manifest = finished(old)
    assert manifest.command == "score"
    assert manifest.run == {"model": "none", "settings": "against=model"}
    assert set(manifest.files) == names - {MANIFEST}


def test_the_same_run_again_gives_the_same_bytes(work):
    before = contents(work)
    a_run(work)
    assert contents(work) == before


def test_another_run_is_refused_unless_it_may_overwrite(work, new):
    before = contents(work)
    with pytest.raises(ResultError, match="settings: against=model there, against=truth now.*--overwrite"):
        a_run(work, "truth")
    with pytest.raises(ResultError, match="command: score there, locate now"):
        a_run(work, command="locate")
    assert contents(work) == before
    a_run(work, "truth", overwrite=True)
    assert contents(work) == contents(new), "and nothing stale is left"


def test_results_of_nobody_knows_which_run_are_refused(work, new):
    (work / MANIFEST).unlink()
    with pytest.raises(ResultError, match="no manifest.json to say of which run"):
        a_run(work)
    a_run(work, "truth", overwrite=True)
    assert contents(work) == contents(new)


def test_an_interrupted_run_goes_on_and_earlier_results_stay_whole(work, new):
    """Its kept result is not made again; another run is refused until this one has ended."""
    before = contents(work)

    def interrupted(make) -> None:
        with RunFolder(work, "score", FILES, overwrite=True) as folder:
            folder.begin({"model": "none", "settings": "against=truth"})
            folder.result("evidence", make)
            assert folder.checkpoint("read").parent.parent == work / UNFINISHED
            raise KeyboardInterrupt

    for make in (small_evidence, lambda: pytest.fail("it was made before")):
        with pytest.raises(KeyboardInterrupt):
            interrupted(make)
    assert contents(work) == before
    assert finished(work).run["settings"] == "against=model"
    with pytest.raises(ResultError, match="an interrupted run of another"):
        a_run(work)
    a_run(work, "truth", overwrite=True)
    assert contents(work) == contents(new)
    assert not (work / UNFINISHED).exists()


def test_an_interrupted_run_of_another_is_dropped_by_overwriting(work, old):
    with RunFolder(work, "score", FILES, overwrite=True) as folder:
        folder.begin({"model": "none", "settings": "something else"})
        folder.result("vote", lambda: head_vote(small_evidence(), against="truth"))
    a_run(work, overwrite=True)
    assert contents(work) == contents(old)


def test_foreign_files_and_files_in_the_place_of_folders(tmp_path):
    (tmp_path / "thesis.tex").write_text("words")
    with pytest.raises(
        ResultError, match=r"must be empty or hold earlier results; .* holds \['thesis.tex'\]"
    ):
        a_run(tmp_path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ResultError, match="is a file"):
        a_run(tmp_path / "thesis.tex")
    with pytest.raises(ZeroDivisionError), RunFolder(tmp_path / "a" / "b", "score", FILES):
        1 / 0  # noqa: B018
    assert not (tmp_path / "a").exists(), "a run that never began leaves nothing"


def test_what_is_not_what_the_manifest_says_is_refused(work, new):
    path = work / "heads.csv"
    text = path.read_text()
    path.unlink()
    finished(work)
    path.write_text(text + " ")
    with pytest.raises(
        LoadError, match=r"heads.csv is not.*The command that wrote the folder writes it anew; or delete"
    ):
        finished(work)
    path.write_text(text)
    shutil.copy(new / "truth.safetensors", work / "vote.safetensors")
    with pytest.raises(LoadError, match=r"vote.safetensors is not.*writes it anew\."):
        finished(work)
    (work / "vote.safetensors").unlink()
    with pytest.raises(LoadError, match="vote.safetensors is missing"):
        finished(work)
    a_run(work)
    finished(work)


def test_folders_that_are_no_finished_runs(tmp_path):
    with pytest.raises(ResultError, match="holds manifest.json; .* does not exist"):
        finished(tmp_path / "absent")
    with pytest.raises(ResultError, match="holds manifest.json; .* does not. Write one"):
        finished(tmp_path)
    (tmp_path / UNFINISHED).mkdir()
    with pytest.raises(ResultError, match="The same command finishes it"):
        finished(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[]", b"null", b"\xff", b"{}", b'{"format": []}', b"[" * 100_000, b'{"format": 1}',
        b'{"format": 1, "command": 1, "run": {}, "files": {}}',
        b'{"format": 1, "command": "score", "run": [], "files": {}}',
        b'{"format": 1, "command": "score", "run": {}, "files": {"a": 1}}',
        b'{"format": 1, "command": "score", "run": {}, "files": {}, "more": 0}',
    ],
)  # fmt: skip
def test_a_damaged_manifest_is_refused(work, text):
    (work / MANIFEST).write_bytes(text)
    for act in (lambda: finished(work), lambda: a_run(work)):
        with pytest.raises(LoadError):
            act()


def test_another_format_is_named(work):
    found = json.loads((work / MANIFEST).read_text())
    (work / MANIFEST).write_text(json.dumps({**found, "format": 2, "version": "9.1", "later": True}))
    with pytest.raises(LoadError, match="format 2, and this library reads format 1.*icl-kernel-lens 9.1"):
        finished(work)


def test_redrawing_changes_the_digests_of_what_is_drawn_alone(work):
    before = finished(work)
    (work / "page.html").unlink()

    def cut_short() -> None:
        with redrawing(work, before, FILES):
            (work / "heads.csv").write_text("half")
            raise KeyboardInterrupt

    with locked(work), pytest.raises(KeyboardInterrupt):
        cut_short()
    again = finished(work)
    assert set(again.files) == {"evidence.safetensors", "vote.safetensors"}, (
        "cut short, the results are whole"
    )
    with locked(work), redrawing(work, again, FILES):
        (work / "heads.csv").write_text("other")
        (work / "page.html").write_text("page")
    assert set(finished(work).files) == set(before.files)


def test_one_run_at_a_time(work):
    before = contents(work)
    with locked(work):
        with pytest.raises(
            RunError, match=rf"is being written by process {os.getpid()} on .*, since 2.*Wait until"
        ):
            a_run(work)
        with pytest.raises(RunError, match="one run at a time"), locked(work):
            pass
    assert contents(work) == before
    a_run(work)


def test_a_killed_process_holds_no_lock(work):
    code = (
        "import os, sys; from pathlib import Path; from icl_kernel_lens.run.folder import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(work)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"process {holder.pid}"):
            a_run(work)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        a_run(work)


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX")
def test_everything_has_the_mode_that_the_user_asks_for(tmp_path, monkeypatch):
    before = os.umask(0o027)
    try:
        a_run(tmp_path / "out")
        with RunFolder(tmp_path / "half", "score", FILES) as folder:
            folder.begin({})
            folder.result("evidence", small_evidence)
            modes = {p: p.stat().st_mode & 0o777 for p in tmp_path.rglob("*")}
    finally:
        os.umask(before)
    assert len(modes) > 10
    wrong = {p.name: oct(mode) for p, mode in modes.items() if mode != (0o750 if p.is_dir() else 0o640)}
    assert not wrong


class Interference:
    """Does something at the n-th change of a file under a folder; a change is any of Python's own that is audited."""

    EVENTS = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate")

    def __init__(self) -> None:
        self.folder, self.at, self.seen, self.act = "", -1, 0, lambda: None
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple) -> None:
        if self.at < 0 or event not in self.EVENTS:
            return
        if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        # Removing a tree names its files relative to a descriptor.
        if not (str(args[0]).startswith(self.folder) or event in ("os.remove", "os.rmdir")):
            return
        self.seen += 1
        if self.seen == self.at:
            self.act()

    def arm(self, folder: Path, at: int, act) -> None:
        self.folder, self.at, self.seen, self.act = str(folder), at, 0, act


interference = Interference()


@pytest.mark.parametrize(
    ("start", "code"), [("finished", errno.ENOSPC), ("finished", errno.EACCES), ("empty", errno.EROFS)]
)
def test_a_write_that_fails_is_explained_and_the_same_command_goes_on(old, new, tmp_path, code, start):
    """At every change of a file: an error of ours that says what is kept, never a raw one; then the same bytes."""

    def fail() -> None:
        raise OSError(code, os.strerror(code))

    messages = []
    for at in range(1, 200):
        work = tmp_path / f"{at}"
        if start == "finished":
            shutil.copytree(old, work)
        interference.arm(work, at, fail)
        try:
            a_run(work, "truth", overwrite=True)
        except LensError as error:
            messages.append(str(error))
        finally:
            reached, interference.at = interference.seen >= at, -1
        if work.exists() and not (work / UNFINISHED).exists() and (work / MANIFEST).exists():
            assert contents(work) in (contents(old), contents(new))
        a_run(work, "truth", overwrite=True)
        assert contents(work) == contents(new)
        finished(work)
        shutil.rmtree(work)
        if not reached:
            break
    assert not reached
    assert len(messages) > 20
    for message in messages:
        assert os.strerror(code) in message
        assert "run the same command again" in message
        assert any(words in message for words in ("is kept in", "are kept in", "Nothing was changed"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_at_any_moment(old, new, tmp_path):
    """At every change of a file: what is whole is all old or all new, all else says so; the same command finishes it."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED.replace("TESTS", str(Path(__file__).parent)))
    out = subprocess.run(
        [sys.executable, str(script), str(old), str(new), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": ROOT},
    )
    assert out.returncode == 0, out.stderr[-3000:]
    killed, old_left, unfinished, new_left = map(int, out.stdout.split())
    assert killed >= 20
    assert min(old_left, unfinished, new_left) > 0, "before, in and after the final write"


KILLED = """
import os, shutil, signal, sys
from pathlib import Path

sys.path.insert(0, "TESTS")
from test_folder import a_run, contents, interference
from icl_kernel_lens.errors import LensError
from icl_kernel_lens.run.folder import finished

old, new = contents(Path(sys.argv[1])), contents(Path(sys.argv[2]))
counts = [0, 0, 0, 0]
for at in range(1, 300):
    work = Path(shutil.copytree(sys.argv[1], f"{sys.argv[3]}/killed{at}"))
    child = os.fork()
    if not child:
        interference.arm(work, at, lambda: os.kill(os.getpid(), signal.SIGKILL))
        a_run(work, "truth", overwrite=True)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status:
        assert os.WIFSIGNALED(status), status
        counts[0] += 1
    try:
        finished(work)
        found = {name: data for name, data in contents(work).items()}
        assert found in (old, new), (at, list(found))
        counts[1 if found == old else 3] += 1
    except LensError as error:
        assert "The same command finishes it" in str(error), error
        counts[2] += 1
    a_run(work, "truth", overwrite=True)
    assert contents(work) == new, at
    assert {p.name for p in work.iterdir()} - set(new) == {".lock"}, list(work.iterdir())
    if not status:
        break
assert not status
print(*counts)
"""


def test_one_lock_for_all_processes_of_torchrun(work, tmp_path):
    """The first takes it for all; where it is refused, every one ends with the message."""
    script = tmp_path / "many.py"
    script.write_text(MANY.replace("TESTS", str(Path(__file__).parent)))

    def many() -> subprocess.CompletedProcess[str]:
        command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
        return subprocess.run(
            [sys.executable, *command, str(script), str(work)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": ROOT},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    with locked(work):
        refused = many()
    assert refused.returncode != 0
    assert refused.stdout.count(f"is being written by process {os.getpid()}") == 2
    assert many().returncode == 0


MANY = """
import sys
from pathlib import Path

sys.path.insert(0, "TESTS")
from test_folder import a_run
from icl_kernel_lens.errors import LensError
from icl_kernel_lens.run.processes import joined

with joined():
    try:
        a_run(Path(sys.argv[1]))
    except LensError as error:
        print(error, flush=True)
        sys.exit(1)
"""
