"""A figure is a value: a notebook shows it inline, `save` writes it to a file, nothing else draws it."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vl_convert as vlc
from markupsafe import Markup

from icl_kernel_lens.charts import page
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.files import write_atomically
from icl_kernel_lens.signs import legible


class _Altair:
    """Altair, imported when a figure is first made: who only computes does not wait for it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module("altair"), name)


if TYPE_CHECKING:
    import altair as alt
else:
    alt = _Altair()


@dataclass(frozen=True, eq=False, repr=False)
class Figure:
    """An Altair chart with offline export. `chart` is the Altair object, to change or combine."""

    chart: alt.TopLevelMixin
    title: str

    @classmethod
    def styled(cls, chart: Any, heading: str, subtitle: str | Sequence[str], title: str) -> Figure:
        """A whole chart under a heading, in the style that figures share."""
        return cls(
            chart.properties(title=alt.TitleParams(heading, subtitle=subtitle, anchor="start"))
            .configure_view(stroke=None)
            .configure_axis(labelFontSize=11, titleFontSize=12, gridColor="#eee"),
            title,
        )

    def spec(self) -> dict[str, Any]:
        """The Vega-Lite specification."""
        return legible(self.chart.to_dict())

    def png(self, scale: float = 2.0) -> bytes:
        """A still picture; no browser and no network."""
        return vlc.vegalite_to_png(
            self.spec(), vl_version=page.vega_lite_version(), scale=scale, allowed_base_urls=[]
        )

    def svg(self) -> str:
        """A still picture as vector graphics."""
        return vlc.vegalite_to_svg(self.spec(), vl_version=page.vega_lite_version(), allowed_base_urls=[])

    def save(self, path: str | Path) -> Path:
        """Write `.png`, `.svg`, `.html` (interactive, one file, works offline) or `.json` (Vega-Lite).

        Raises: ResultError: another suffix. RunError: the file cannot be written.
        """
        path = Path(path)
        match path.suffix:
            case ".png":
                data = self.png()
            case ".svg":
                data = self.svg()
            case ".html":
                data = page.Page(self.title).chart(self).html()
            case ".json":
                data = json.dumps(self.spec(), allow_nan=False)
            case suffix:
                raise ResultError(
                    f"a figure is saved as one of .png, .svg, .html, .json; {path.name!r} ends in {suffix!r}.",
                    code="file-suffix",
                )
        return write_atomically(path, data)

    def __repr__(self) -> str:
        return f"Figure({self.title!r}; .save('x.png'), or show it in a notebook)"

    def _repr_html_(self) -> str:
        """A still picture that a script replaces by the live chart, where scripts may run."""
        spec = self.spec()
        return page.notebook_output(
            page.vega_script(), lambda element: page.draw_chart(element, spec), self.still()
        )

    def still(self) -> Markup:
        """The picture as an `<img>` element."""
        return Markup('<img alt="{}" style="max-width:100%" src="data:image/png;base64,{}">').format(
            legible(self.title), base64.b64encode(self.png()).decode()
        )


def finite(value: float) -> float | None:
    """A number as a specification holds it: None for NaN and infinities."""
    return value if math.isfinite(value) else None
