"""This module writes every file so that it appears whole or not at all: beside its place first, then moved there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from icl_kernel_lens.errors import RunError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; when the block ends well, the file there replaces `path`.

    The file gets the mode that the user's umask gives a new one; missing folders are made. It is not synced to the
    disk: a crash of the machine, unlike one of the program, can lose it.

    Raises: RunError: an OSError in the block or around it; what stood at `path` is as it was.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch(exist_ok=False)
        mode = partial.stat().st_mode & 0o777
        yield partial
        partial.chmod(mode)  # a writer that makes the file anew may give it another
        partial.replace(path)
    except OSError as error:
        raise RunError(
            f"{path} must be writable, and cannot be written ({error}). Is the disk full, the folder read-only or another "
            "user's? What stood there before is as it was, and what was to be written is still in memory: free some "
            "space, or save it elsewhere.",
            code="cannot-write",
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_atomically(path: str | Path, data: bytes | str) -> Path:
    """Write bytes, or text as UTF-8 with its line ends as they are (halves of surrogate pairs as escapes), in the place of what is there.

    Raises: RunError: it cannot be written; what stood there is as it was.
    """
    with replacing(path) as partial:
        partial.write_bytes(data.encode(errors="backslashreplace") if isinstance(data, str) else data)
    return Path(path)
