"""A figure is a value: shown inline by a notebook, saved to a file, drawn by nobody until asked."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

import altair as alt
import vl_convert as vlc

from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.plots import embed

SUFFIXES = (".png", ".svg", ".html", ".json")


@dataclass(frozen=True, eq=False, repr=False)
class Figure:
    """An Altair chart with offline export. `chart` is the Altair object, to change or combine."""

    chart: alt.TopLevelMixin
    title: str

    def spec(self) -> dict[str, Any]:
        """The Vega-Lite specification."""
        return self.chart.to_dict()

    def png(self, scale: float = 2.0) -> bytes:
        """A still picture; no browser and no network."""
        return vlc.vegalite_to_png(self.spec(), vl_version=embed.VEGA_LITE, scale=scale, allowed_base_urls=[])

    def svg(self) -> str:
        """A still picture as vector graphics."""
        return vlc.vegalite_to_svg(self.spec(), vl_version=embed.VEGA_LITE, allowed_base_urls=[])

    def save(self, path: str | Path) -> Path:
        """Write `.png`, `.svg`, `.html` (interactive, one file, works offline) or `.json` (Vega-Lite)."""
        path = Path(path)
        if path.suffix not in SUFFIXES:
            raise ResultError(
                f"a figure is saved as one of {', '.join(SUFFIXES)}; {path.name!r} ends in {path.suffix!r}."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        match path.suffix:
            case ".png":
                path.write_bytes(self.png())
            case ".svg":
                path.write_text(self.svg(), encoding="utf-8")
            case ".json":
                path.write_text(json.dumps(self.spec(), allow_nan=False), encoding="utf-8")
            case ".html":
                from icl_kernel_lens.plots.page import Page

                path.write_text(Page(self.title).chart(self).html(), encoding="utf-8")
        return path

    def __repr__(self) -> str:
        return f"Figure({self.title!r}; .save('x.png'), or show it in a notebook)"

    def _repr_html_(self) -> str:
        """A still picture that a script replaces by the live chart, where scripts may run."""
        element = f"ikl-{uuid4().hex}"
        script = embed.in_notebook(embed.vega_script(), embed.draw_chart(element, self.spec()))
        return f'<div id="{element}">{self.still()}</div><script>{script}</script>'

    def still(self) -> str:
        """The picture as an `<img>` element."""
        data = base64.b64encode(self.png()).decode()
        return f'<img alt="{escape(self.title, quote=True)}" style="max-width:100%" src="data:image/png;base64,{data}">'
