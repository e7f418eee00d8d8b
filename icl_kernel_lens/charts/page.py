"""A page collects charts, token views and tables in one HTML file that opens offline."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from icl_kernel_lens.charts import embed


class Page:
    """Collects a page's parts in order, then writes it under a policy that lets only these scripts run.

    Text goes through Jinja's escaping; nothing is fetched, and the policy forbids fetching.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[dict[str, Any]] = []
        self._drawings: list[str] = []
        self._libraries: dict[str, str] = {}

    def heading(self, text: str) -> Page:
        self._parts.append({"kind": "heading", "text": text})
        return self

    def text(self, text: str) -> Page:
        self._parts.append({"kind": "text", "text": text})
        return self

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> Page:
        self._parts.append({"kind": "table", "columns": columns, "rows": rows, "caption": caption})
        return self

    def chart(self, spec: dict[str, Any], still: Markup) -> Page:
        """A Vega-Lite specification, drawn in the place of a still picture (see `Figure.still`)."""
        element = f"chart-{len(self._parts)}"
        self._libraries["vega"] = embed.vega_script()
        self._drawings.append(embed.draw_chart(element, spec))
        self._parts.append({"kind": "chart", "id": element, "still": still})
        return self

    def tokens(self, tokens: list[str], values: list[list[float]], labels: list[str], caption: str) -> Page:
        """Coloured tokens: a value a token and label (see `TokenView`)."""
        element = f"tokens-{len(self._parts)}"
        self._libraries["circuitsvis"] = embed.circuitsvis_script()
        self._drawings.append(embed.draw_tokens(element, tokens, values, labels))
        self._parts.append({"kind": "tokens", "id": element, "caption": caption})
        return self

    def html(self) -> str:
        """The whole page."""
        scripts = [*self._libraries.values(), *self._drawings]
        hashes = " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
            for script in scripts
        )
        source = files("icl_kernel_lens.charts") / "templates" / "page.html.jinja"
        template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
            source.read_text(encoding="utf-8")
        )
        return template.render(
            title=self.title,
            parts=self._parts,
            policy=f"default-src 'none'; script-src {hashes or repr('none')}; "
            "style-src 'unsafe-inline'; img-src data: blob:",
            scripts=[Markup(script) for script in scripts],
        )
