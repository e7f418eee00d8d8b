"""What a command writes, declared: each of its results with the table and the figures that are made of it, and a report.

`show` and the commands themselves print and draw by these declarations alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from icl_kernel_lens.errors import LoadError
from icl_kernel_lens.files import write_atomically

REPORT, SUFFIX = "report.html", ".safetensors"
Results = Mapping[str, Any]
"""Results by name."""


@dataclass(frozen=True)
class Saved:
    """One result of a command, in the file NAME.safetensors, and what is made of it."""

    name: str
    table: str | None = None
    """The file of its table."""
    figures: tuple[str, ...] = ()
    """The files of its figure."""
    figure: Callable[[Any, Results], Any] = lambda result, _: result.figure()
    """Draws it, with the other results at hand."""
    also: Mapping[str, Callable[[Any, Results], Any]] = field(default_factory=dict)
    """Further files, by name, and what makes each of the result, with the others at hand: a table (.csv) or a figure; None:
    there is none."""
    sometimes: bool = False
    """Whether a finished run may lack it."""

    @classmethod
    def whole(cls, name: str, **more: Any) -> Saved:
        """A result with a table and a figure that bear its name."""
        return cls(name, f"{name}.csv", (f"{name}.png", f"{name}.svg"), **more)


def described(results: Results, top: int) -> Iterator[str]:
    """Each result in words, with its first `top` rows where it has any."""
    for result in results.values():
        yield result.describe(top) if hasattr(result, "describe") else repr(result)


@dataclass(frozen=True)
class Command:
    """One command: its function, the results that it may leave, how they are said, and the page on all of them."""

    run: Callable[..., None]
    saves: tuple[Saved, ...] = ()
    say: Callable[[Results, int], Iterable[str]] = described
    report: Callable[[Results, Path], Any] | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that it may leave in its folder."""
        made = [(f"{one.name}{SUFFIX}", one.table, *one.figures, *one.also) for one in self.saves]
        names = [name for names in made for name in names if name]
        return (*names, REPORT) if self.report else tuple(names)

    def load(self, folder: Path, files: Iterable[str]) -> Results:
        """The results among `files` of a folder."""
        from icl_kernel_lens import load

        always = (f"{one.name}{SUFFIX}" for one in self.saves if not one.sometimes)
        if absent := [name for name in always if name not in files]:
            raise LoadError(
                f"a finished run has {', '.join(absent)}; the manifest of {folder} does not list that: it is damaged. "
                "Run the command that wrote the folder again with --overwrite.",
                code="file-damaged",
            )
        paths = {one.name: folder / f"{one.name}{SUFFIX}" for one in self.saves}
        return {name: load(path) for name, path in paths.items() if path.name in files}

    def present(self, results: Results, folder: Path, top: int) -> None:
        """Print the results, and write their tables, figures and report into a folder."""
        results = {one.name: results[one.name] for one in self.saves if one.name in results}
        for text in self.say(results, top):
            print(f"\n{text}")
        for one in self.saves:
            if (result := results.get(one.name)) is None:
                continue
            if one.table:
                write_atomically(folder / one.table, result.table().to_csv(index=False))
            if one.figures:
                figure = one.figure(result, results)
                for name in one.figures:
                    figure.save(folder / name)
            for name, make in one.also.items():
                made = make(result, results)
                if made is not None and name.endswith(".csv"):
                    write_atomically(folder / name, made.to_csv(index=False))
                elif made is not None:
                    made.save(folder / name)
        if self.report:
            self.report(results, folder / REPORT)

    def say_where(self, folder: Path) -> None:
        """Print which files there are."""
        names = sorted(path.name for path in folder.iterdir() if path.name in self.files)
        print(f"\nWritten to {folder}: {', '.join(names)}")
        if self.report:
            print(f"Open {folder / REPORT} in a browser.")
