"""A run keeps its results in a folder that holds one whole run or says that it does not.

While a run writes, it holds the folder's lock, which the operating system releases however the run ends. Everything is
written into `unfinished/` first. When all of it is there, each file replaces its namesake in the folder, and the
manifest, with a digest of every file, comes last; only then `unfinished/` goes. A folder without a manifest, or with
files that it does not describe, is therefore a mixture of two runs or half of one: it is never shown, and the command
that wrote it finishes it.

This does not survive a crash of the machine, and a lock on a network drive is as good as the drive's.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar, cast

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from icl_kernel_lens.errors import LensError, LoadError, ResultError, RunError, without_code
from icl_kernel_lens.files import replacing, write_atomically
from icl_kernel_lens.results.base import Result
from icl_kernel_lens.run.processes import Processes, here

MANIFEST, UNFINISHED = "manifest.json", "unfinished"
FORMAT = 1
"""Version of the manifest."""
_LOCK, _HOLDER, _RUN = ".lock", ".lock.json", "run.json"
_RESULT = ".safetensors"
_OURS = (MANIFEST, UNFINISHED, _LOCK, _HOLDER)
_PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]{32}\.partial")
"""What `files.replacing` leaves behind where the process was killed."""
R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class Manifest:
    """What a finished folder holds: which command wrote it, of which run, and the SHA-256 of every file."""

    command: str
    run: Mapping[str, str]
    """What decides the numbers: model, prompts, settings."""
    files: Mapping[str, str]
    format: int = FORMAT
    version: str = version("icl-kernel-lens")

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest of a folder; None: there is none.

        Raises: LoadError: it cannot be read, or is of another format.
        """
        path = folder / MANIFEST
        if os.path.isfile(folder):
            raise ResultError(
                f"results are shown from their folder; {folder} is a file. Give the folder that holds {MANIFEST}, or load "
                "one result with icl_kernel_lens.load.",
                code="not-a-folder",
            )
        try:
            found = json.loads(path.read_bytes())
            if found["format"] != FORMAT:
                raise LoadError(
                    f"{path} has format {found['format']!r}, and this library reads format {FORMAT}. Read the folder with "
                    f"icl-kernel-lens {found.get('version')}, or choose another one.",
                    code="file-format",
                )
            made = cls(**found)
            texts = [made.command, *made.run, *made.run.values(), *made.files, *made.files.values()]
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("not text")
        except FileNotFoundError:
            return None
        except LoadError:
            raise
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise LoadError(
                f"{path} must be a manifest, and cannot be read as one ({error!r}): it is damaged. Delete it, and run the "
                "command that wrote the folder again with --overwrite.",
                code="file-damaged",
            ) from error
        return made

    def write(self, folder: Path) -> None:
        """Put it into the folder."""
        write_atomically(folder / MANIFEST, json.dumps(asdict(self), indent=1) + "\n")


def finished(folder: Path) -> Manifest:
    """Read the manifest of a folder, and compare every file it lists that is there with its digest.

    Tables and figures that are missing can be made again, so only missing results are refused.

    Raises: ResultError: no finished run is here. LoadError: files are not those of the run; the manifest is damaged.
    """
    manifest = Manifest.read(folder)
    if manifest is None and (folder / UNFINISHED).exists():
        raise ResultError(
            f"a folder is shown when its run has finished; {folder} holds {UNFINISHED}/ and no {MANIFEST}: a run is at "
            "work, or was cut short, and files of an earlier one may be among its own. The same command finishes it.",
            code="folder-unfinished",
        )
    if manifest is None:
        raise ResultError(
            f"a folder of results holds {MANIFEST}; {folder} does not{'' if folder.exists() else ' exist'}. Write one "
            f"with: icl-kernel-lens score --out {folder}, or influence, patch, locate or theory.",
            code="file-absent",
        )
    for name, digest in manifest.files.items():
        path = folder / name
        result = name.endswith(_RESULT)
        try:
            whole = _digest(path) == digest if path.exists() else not result
        except OSError as error:
            raise LoadError(
                f"every file must be readable; {path} is not ({error}).", code="file-damaged"
            ) from error
        if not whole:
            raise LoadError(
                f"every file must be what {MANIFEST} says; {path} is {'not' if path.exists() else 'missing'}: it was "
                "changed, or is another run's. The command that wrote the folder writes it anew"
                + ("." if result else "; or delete the file, and it is made from the results again."),
                code="file-damaged",
            )
    return manifest


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; another process that asks for it meanwhile is refused at once.

    Raises: RunError: another process holds it; the folder cannot be written.
    """
    lock = FileLock(folder / _LOCK, mode=0o666 & ~_umask())
    holder = folder / _HOLDER
    with explained(folder, "Nothing was changed."):
        try:
            lock.acquire(blocking=False)
        except NotImplementedError as error:  # a drive without locks
            raise OSError(str(error)) from error
        except Timeout:
            raise RunError(
                f"one run at a time writes into a folder; {folder} is being written by {_who(holder)}. Wait until it "
                "has ended, or choose another folder.",
                code="folder-locked",
            ) from None
    try:
        me = {
            "process": os.getpid(),
            "host": platform.node(),
            "since": datetime.now().astimezone().isoformat(" ", "seconds"),
            "command": shlex.join(sys.argv),
        }
        with explained(folder, "Nothing was changed."):
            write_atomically(holder, json.dumps(me))
        yield
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


@contextmanager
def explained(folder: Path, kept: str, what: str = "the output folder") -> Iterator[None]:
    """Turn a failure to write into an error that says what is kept, and how to go on."""
    try:
        yield
    except (OSError, SafetensorError, RunError) as error:
        cause = error.__cause__ if isinstance(error, RunError) else error
        if not isinstance(cause, OSError | SafetensorError):
            raise
        raise RunError(
            f"{what} must be writable; {folder} cannot be written ({without_code(cause)}). Is the disk full, the folder "
            f"read-only or another user's? {kept} Mend that, and run the same command again.",
            code="cannot-write",
        ) from error


@contextmanager
def redrawing(folder: Path, manifest: Manifest, files: Collection[str]) -> Iterator[None]:
    """Let the block replace the tables and figures of a locked, finished folder, and write down their digests."""
    results = {name: digest for name, digest in manifest.files.items() if name.endswith(_RESULT)}
    with explained(folder, "The results are as they were."):
        # Cut short, it is a folder of the same results, whose tables and figures may be drawn again.
        replace(manifest, files=results).write(folder)
        yield
        drawn = {name: _digest(folder / name) for name in files if (folder / name).exists()}
        replace(manifest, files=drawn | results).write(folder)


class RunFolder:
    """The folder of one run, locked from entering to leaving it; under torchrun, by the first process for all.

    `begin` says which run it is, `result` keeps what is computed, `finish` puts all of it in the place of what was
    there. Make it inside `processes.joined()`; every process makes the same calls.

    Raises: ResultError: the folder holds something else, or another run's results. RunError: it is being written by
            another process, or cannot be written.
    """

    def __init__(self, path: Path, command: str, files: Collection[str], *, overwrite: bool = False) -> None:
        self.path, self.command, self.files, self.overwrite = path, command, tuple(files), overwrite
        self.new = path / UNFINISHED
        """Where everything is written until the run has finished."""
        self.group = here()
        self.results: dict[str, Result] = {}
        """What this run has made, by name."""
        self._identity: dict[str, str] = {}
        self._held = ExitStack()

    def __enter__(self) -> RunFolder:
        with self._held:
            self._first(self._claim)
            self._held = self._held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def begin(self, identity: Mapping[str, str]) -> None:
        """Say which run this is: another one's results are refused unless `overwrite`, and an interrupted one goes on."""
        self._identity = dict(identity)
        self._first(self._begin)

    def checkpoint(self, name: str) -> Path:
        """A folder for finished prompts."""
        return self.new / "finished" / name

    def result(self, name: str, make: Callable[[], R]) -> R:
        """Make a result and keep it; or load it, where this run was interrupted after it had been kept."""
        path = self.new / f"{name}{_RESULT}"
        kept = self._first(path.is_file)
        made = cast(R, Result.load(path)) if kept else make()
        if self.group.first and not kept:
            with self._keeping():
                made.save(path)
        self.results[name] = made
        return made

    def finish(self, draw: Callable[[Path], object] = lambda _: None) -> None:
        """Let `draw` write what else there is into the folder it is given; then replace what was there by the new files."""
        self._first(lambda: self._finish(draw))

    def _first(self, act: Callable[[], object]) -> bool:
        """Whether the first process's `act` was true; its error is raised in every process."""
        said, error = "", None
        if self.group.first:
            try:
                said = "yes" if act() else "no"
            except LensError as found:
                said, error = f"error: {found.message}", found
        said = _told(self.group, said)
        if error is not None:
            raise error
        if said.startswith("error: "):
            raise RunError(said.removeprefix("error: "), code="process-lost")
        return said == "yes"

    def _claim(self) -> None:
        out = self.path
        with explained(out, "Nothing was changed."):
            if out.exists() and not out.is_dir():
                raise ResultError(
                    f"--out must be a folder; {out} is a file. Choose another name.", code="not-a-folder"
                )
            before = [folder for folder in (out, *out.parents) if not folder.exists()]
            if not before:
                self._check_foreign()
            out.mkdir(parents=True, exist_ok=True)
            self._held.enter_context(locked(out))
            self._held.callback(self._leave_nothing, before)
            for path in self._check_foreign():
                with suppress(OSError):
                    path.unlink()

    def _check_foreign(self) -> list[Path]:
        """Refuse to write among files that are not ours; give back what a killed process left half written."""
        known = {*self.files, *_OURS}
        halves = {path: match[1] for path in self.path.iterdir() if (match := _PARTIAL.fullmatch(path.name))}
        others = sorted(path.name for path in self.path.iterdir() if halves.get(path, path.name) not in known)
        if others:
            raise ResultError(
                f"the output folder must be empty or hold earlier results; {self.path} holds {others[:5]}. Choose "
                "another folder.",
                code="folder-foreign",
            )
        return list(halves)

    def _leave_nothing(self, made: list[Path]) -> None:
        """Where a run was refused before it began, the folders that were made for it go."""
        if not made or any(path.name not in (_LOCK, _HOLDER) for path in self.path.iterdir()):
            return
        with suppress(OSError):
            for name in (_LOCK, _HOLDER):
                (self.path / name).unlink()
            for folder in made:
                folder.rmdir()

    def _begin(self) -> None:
        mine = {"command": self.command, **self._identity}
        manifest, earlier = Manifest.read(self.path), self._interrupted()
        if not self.overwrite:
            if manifest is not None:
                self._check_same("results", {"command": manifest.command, **manifest.run}, mine)
            if earlier is not None:
                self._check_same(
                    "an interrupted run", earlier, {**mine, "version": version("icl-kernel-lens")}
                )
            elif manifest is None and (found := [name for name in self.files if (self.path / name).exists()]):
                raise ResultError(
                    f"earlier results are replaced by those of the same run alone; {self.path} holds {found[:5]} and no "
                    f"{MANIFEST} to say of which run. Choose another folder, or pass --overwrite to replace them.",
                    code="folder-other",
                )
        mine["version"] = version("icl-kernel-lens")
        with self._keeping():
            if self.new.exists() and earlier != mine:
                shutil.rmtree(self.new)
            self.new.mkdir(exist_ok=True)
            write_atomically(self.new / _RUN, json.dumps(mine, indent=1) + "\n")

    def _interrupted(self) -> dict[str, str] | None:
        """Which run was interrupted here."""
        try:
            found = json.loads((self.new / _RUN).read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _check_same(self, what: str, there: Mapping[str, str], mine: Mapping[str, str]) -> None:
        other = [name for name in {**there, **mine} if there.get(name) != mine.get(name)]
        if other:
            differences = "; ".join(
                f"{name}: {there.get(name)} there, {mine.get(name)} now" for name in other
            )
            raise ResultError(
                f"earlier results are replaced by those of the same run alone; {self.path} holds {what} of another "
                f"({differences}). Choose another folder, or pass --overwrite to replace what is there.",
                code="folder-other",
            )

    def _keeping(self) -> AbstractContextManager[None]:
        return explained(
            self.path,
            f"What this run has finished is kept in {self.new}, and what the folder held before is as it was.",
        )

    def _finish(self, draw: Callable[[Path], object]) -> None:
        with self._keeping():
            draw(self.new)
            digests = {name: _digest(self.new / name) for name in self.files if (self.new / name).exists()}
        kept = (
            f"All new results are kept in {self.new}; until they are in their place, the folder is not shown."
        )
        with explained(self.path, kept):
            (self.path / MANIFEST).unlink(missing_ok=True)
            for name in self.files:
                if name in digests:
                    _place(self.new / name, self.path / name)
                else:
                    (self.path / name).unlink(missing_ok=True)
            Manifest(self.command, self._identity, digests).write(self.path)
        shutil.rmtree(self.new, ignore_errors=True)


def _place(source: Path, target: Path) -> None:
    """Let a file replace another, and stay where it is too."""
    with replacing(target) as partial:
        try:
            partial.unlink()
            os.link(source, partial)
        except OSError:  # a file system without links
            shutil.copyfile(source, partial)


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def _told(group: Processes, text: str) -> str:
    """What the first process says, in every process."""
    if group.size == 1:
        return text
    data = torch.tensor(list(text.encode()), dtype=torch.int64)
    length = group.add({"length": torch.tensor([len(data)])})["length"]
    mine = data if group.first else torch.zeros(int(length), dtype=torch.int64)
    return bytes(group.add({"text": mine})["text"].tolist()).decode()


def _who(holder: Path) -> str:
    """Who holds a lock, in words; one that has just got it is given a second to write its name."""
    for _ in range(10):
        try:
            found = json.loads(holder.read_bytes())
            return (
                f"process {found['process']} on {found['host']} ({found['command']}), since {found['since']}"
            )
        except (OSError, ValueError, LookupError, TypeError):
            time.sleep(0.1)
    return "another process"


def _umask() -> int:
    """The user's, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
