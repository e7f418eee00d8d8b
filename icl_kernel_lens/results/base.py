"""What every result is: a frozen dataclass whose annotations declare its axes, units, checks and file.

A subclass lists its fields and says in `_problems` what must hold beyond their types and shapes. It is then checked
whenever one is made, saved and loaded (`codec.py`), and found by `load` under its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Shaped
from torch import Tensor

from icl_kernel_lens import fields
from icl_kernel_lens.arguments import checked
from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.errors import LensError, LoadError, ResultError, without_code
from icl_kernel_lens.results import codec
from icl_kernel_lens.signs import legible

if TYPE_CHECKING:
    import xarray as xr
    from typing_extensions import Self

NEVER_EMPTY = ("prompt", "layer", "head")
"""Axes without which nothing was measured."""


class Result:
    """A value with its axes, units and provenance."""

    kinds: ClassVar[dict[str, type[Result]]] = {}
    """Every class of results that has been imported, by name."""
    own_axes: ClassVar[bool] = True
    """A result within a result has axes of its own."""
    main: ClassVar[str] = ""
    """The field whose axes are the rows of `to_dataframe`; default: the first."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        Result.kinds[cls.__name__] = cls

    def __post_init__(self) -> None:
        try:
            fields.check(self)
        except fields.Mismatch as error:
            raise ResultError(f"a {type(self).__name__} must be whole: {error}.", code="not-whole") from error
        for problem in chain(self._empty(), self._problems()):
            raise ResultError(f"a {type(self).__name__} must be whole: {problem}.", code="not-whole")

    def _empty(self) -> Iterator[str]:
        for path, tensor, axes, _ in fields.leaves(self):
            # Axes that are named by number ("*cell") are the subclass's to check.
            for axis, size in zip(axes, tensor.shape, strict="*" not in "".join(axes)):
                if size == 0 and axis.removeprefix("#") in NEVER_EMPTY:
                    yield f"{path} must have at least one {axis}"

    def _problems(self) -> Iterator[str]:
        """What is wrong with it, though types and shapes are right."""
        return iter(())

    @checked
    def save(self, path: str | Path) -> Path:
        """Write the whole result; `load` reads it back.

        Raises: RunError: the file cannot be written.
        """
        return codec.write(path, codec.Stored(type(self).__name__, *fields.encode(self)))

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises: LoadError: another kind of file or result, another format, or a damaged one.
        """
        stored = codec.read(path)
        kind = Result.kinds.get(stored.kind)
        if kind is None or not issubclass(kind, cls):
            raise LoadError(
                f"{path} holds a {stored.kind}, and a {cls.__name__} was asked for.", code="file-kind"
            )
        try:
            return fields.decode(stored.data, kind, stored.tensors)
        except (
            fields.Mismatch,
            LensError,
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
            RuntimeError,
        ) as error:
            raise LoadError(
                f"{path} does not hold a whole {stored.kind}: {without_code(error)}. The file is damaged; make it anew.",
                code="file-damaged",
            ) from error

    def leaves(self) -> list[fields.Leaf]:
        """Every tensor with its axes, in the order of the fields."""
        return fields.leaves(self)

    def coords(self) -> Mapping[str, Sequence[Any]]:
        """The names of the places along an axis, where they are not numbers from 0."""
        return {}

    def to_dataframe(self) -> pd.DataFrame:
        """Long form: one row a cell of the axes of `main`, one column a tensor over all or some of these axes."""
        found = {leaf.path: leaf.varying() for leaf in self.leaves()}
        main = next(axes for path, (_, axes) in found.items() if path.startswith(self.main))
        columns = {
            path: tensor[tuple(slice(None) if axis in axes else None for axis in main)]
            for path, (tensor, axes) in found.items()
            if set(axes) <= set(main)
        }
        return long_form(main, columns, coords=self.coords())

    def to_xarray(self) -> xr.Dataset:
        """Every tensor with its axes by name, as a variable named by its path: `controls.last_label`.

        What is no tensor is JSON in the attribute `data`.

        Raises: ResultError: xarray is not installed.
        """
        try:
            import xarray as xr
        except ImportError as error:
            raise ResultError(
                'to_xarray needs xarray, which is not installed: pip install "icl-kernel-lens[xarray]".',
                code="package-missing",
            ) from error
        varying = {leaf.path: (leaf.varying(), leaf.unit) for leaf in self.leaves()}
        found = {
            path: (axes, tensor.numpy(), {"units": unit} if unit else {})
            for path, ((tensor, axes), unit) in varying.items()
        }
        attrs = {"kind": type(self).__name__, "data": json.dumps(fields.encode(self)[0])}
        coords = {axis: list(names) for axis, names in self.coords().items()}
        return xr.Dataset(found, coords=coords, attrs=attrs)

    def _repr_html_(self) -> str:
        figure = getattr(self, "figure", None)
        return f"<pre>{escape(legible(repr(self)))}</pre>{figure()._repr_html_() if figure else ''}"


def broken(rules: Mapping[str, bool]) -> Iterator[str]:
    """Those rules, in words, that do not hold."""
    return (rule for rule, holds in rules.items() if not holds)


def long_form(
    axes: Sequence[str],
    columns: Mapping[str, Tensor],
    *,
    coords: Mapping[str, Sequence[Any]] | None = None,
    where: Tensor | None = None,
) -> pd.DataFrame:
    """One row a cell of the axes, one column a tensor over them (1 along an axis: the same all along it)."""
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in columns.values()))
    index = (torch.ones(shape, dtype=torch.bool) if where is None else where).nonzero()
    frame = pd.DataFrame(index.numpy(), columns=list(axes))
    for name, tensor in columns.items():
        frame[name] = tensor.expand(shape)[tuple(index.unbind(1))].numpy()
    for axis, names in (coords or {}).items():
        if axis in axes:
            frame[axis] = [names[at] for at in frame[axis]]
    return frame


def first_rows(table: pd.DataFrame, k: int) -> pd.DataFrame:
    """The first `k` rows of a table.

    Raises: ResultError: `k` is below 0.
    """
    if k < 0:
        raise ResultError(f"there are at least 0 rows to show; got {k}.", code="number-range")
    return table.head(k)


def head_table(columns: Mapping[str, Shaped[Tensor, "layer head"] | Sequence[Any]]) -> pd.DataFrame:
    """One row a head, its name first, one column a tensor, or a list in order of layer and head."""
    layers, heads = next(column.shape for column in columns.values() if isinstance(column, Tensor))
    names = [str(HeadRef(layer, head)) for layer in range(layers) for head in range(heads)]
    flat = {name: c.flatten().numpy() if isinstance(c, Tensor) else c for name, c in columns.items()}
    return pd.DataFrame(legible({"head": names, **flat}))
