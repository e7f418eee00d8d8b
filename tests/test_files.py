"""Files appear whole or not at all, with the user's umask, and an error says what is kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from icl_kernel_lens.errors import RunError
from icl_kernel_lens.files import replacing, write_atomically


def test_text_and_bytes_with_the_umask_and_nothing_beside(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        for data, stored in (("é\r\n\n", "é\r\n\n".encode()), (b"\0\xff", b"\0\xff")):
            path = write_atomically(tmp_path / "a" / "b.txt", data)
            assert path.read_bytes() == stored
            assert path.stat().st_mode & 0o777 == 0o640
            assert [p.name for p in path.parent.iterdir()] == ["b.txt"]
    finally:
        os.umask(before)


def test_a_writer_that_makes_the_file_anew_gets_the_umask_too(tmp_path: Path) -> None:
    with replacing(tmp_path / "x") as partial:
        partial.unlink()
        os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600))
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError()])
def test_what_stood_there_is_kept(tmp_path: Path, error: BaseException) -> None:
    def half_written() -> None:
        with replacing(tmp_path / "x") as partial:
            partial.write_text("half")
            raise error

    (tmp_path / "x").write_text("old")
    with pytest.raises(RunError if isinstance(error, OSError) else type(error)) as caught:
        half_written()
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "old"
    if isinstance(error, OSError):
        assert all(s in str(caught.value) for s in ("No space left", "as it was", "save it elsewhere"))


def test_a_folder_that_is_a_file_and_a_file_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "x", tmp_path / "folder", tmp_path / ("x" * 300)):
        with pytest.raises(RunError, match="must be writable"):
            write_atomically(path, "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
