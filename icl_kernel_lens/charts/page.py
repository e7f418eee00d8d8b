"""A page collects charts, token views and tables in one HTML file: offline, and with no text of a data set becoming markup.

Altair's own HTML export and CircuitsVis's own display are not used: the first runs markup found in
data, the second opens a network connection. Here, and in what a notebook shows, data enter only through `to_js`,
token strings also through `inert`, and each library's script is held once and wrapped in a function of its own.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import vl_convert as vlc
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from icl_kernel_lens.signs import legible

if TYPE_CHECKING:
    from icl_kernel_lens.charts.figure import Figure
    from icl_kernel_lens.charts.token_view import TokenView


class Page:
    """Collects a page's parts in order, then writes it under a policy that lets only these scripts run.

    Text goes through Jinja's escaping; nothing is fetched, and the policy forbids fetching.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[dict[str, Any]] = []
        self._scripts: dict[str, None] = {}

    def _add(self, kind: str, *scripts: str, **part: Any) -> Page:
        """One part more, and the scripts that draw it; a library that is there already is not held twice."""
        self._parts.append({"kind": kind, **part})
        self._scripts |= dict.fromkeys(scripts)
        return self

    def heading(self, text: str) -> Page:
        return self._add("heading", text=text)

    def text(self, *paragraphs: str) -> Page:
        for text in paragraphs:
            self._add("text", text=text)
        return self

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> Page:
        return self._add("table", columns=columns, rows=rows, caption=caption)

    def chart(self, figure: Figure) -> Page:
        """A figure, drawn in the place of its still picture."""
        element = f"chart-{len(self._parts)}"
        return self._add(
            "chart", vega_script(), draw_chart(element, figure.spec()), id=element, still=figure.still()
        )

    def tokens(self, view: TokenView) -> Page:
        """A token view, its caption below."""
        element = f"tokens-{len(self._parts)}"
        drawing = draw_tokens(element, view.tokens, view.values, view.labels)
        return self._add("tokens", circuitsvis_script(), drawing, id=element, caption=view.caption)

    def html(self) -> str:
        """The whole page."""
        hashes = " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
            for script in self._scripts
        )
        templates = Environment(
            autoescape=True, undefined=StrictUndefined, loader=PackageLoader("icl_kernel_lens.charts")
        )
        return templates.get_template("page.html.jinja").render(
            title=legible(self.title),
            parts=legible(self._parts),
            policy=f"default-src 'none'; script-src {hashes or repr('none')}; "
            "style-src 'unsafe-inline'; img-src data: blob:",
            scripts=[Markup(script) for script in self._scripts],
        )


@cache
def vega_lite_version() -> str:
    """The Vega-Lite version that Altair writes for, in vl-convert's spelling."""
    from altair import SCHEMA_VERSION

    return "_".join(SCHEMA_VERSION.lstrip("v").split(".")[:2])


def to_js(value: Any) -> str:
    """A JavaScript literal that cannot end the script it stands in; NaN is refused."""
    text = json.dumps(legible(value), separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def inert(token: str) -> str:
    """A token string that looks the same and is no markup: a word joiner stands behind `<` and `&`.

    CircuitsVis sets token strings as HTML, so that escaping the JSON alone does not help.
    """
    return token.replace("&", "&\u2060").replace("<", "<\u2060")


@cache
def vega_script() -> str:
    """Vega, Vega-Lite and vega-embed as `window.__iklVega(element, spec, options)`."""
    bundle = vlc.javascript_bundle("window.__iklVega=vegaEmbed;", vl_version=vega_lite_version())
    return "(()=>{if(window.__iklVega)return;" + bundle.replace("</script", "<\\/script") + "\n})()"


@cache
def circuitsvis_script() -> str:
    """CircuitsVis as `window.__iklTokens.render(id, component, props)`."""
    # Read as a file: importing circuitsvis would import all of its PyTorch helpers for one script.
    source = (files("circuitsvis") / "dist" / "cdn" / "iife.js").read_text(encoding="utf-8")
    source = source.replace("</script", "<\\/script").split("//# sourceMappingURL")[0]
    return "(()=>{if(window.__iklTokens)return;" + source + "\nwindow.__iklTokens=CircuitsVis})()"


@cache
def _packed(script: str) -> str:
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()


def notebook_output(library: str, draw: Callable[[str], str], inside: str = "", caption: str = "") -> str:
    """One output of a notebook: an element, which may hold a still picture, and the script that `draw`s into it.

    Every output carries its own copy of the library, compressed to less than half, since outputs get cleared; the copy
    is unpacked only where no earlier output has done so. `inside` is escaped unless it is Markup.
    """
    element = f"ikl-{uuid4().hex}"
    script = (
        "(async()=>{const packed=" + to_js(_packed(library)) + ";"
        "const bytes=Uint8Array.from(atob(packed),c=>c.charCodeAt(0));"
        "const stream=new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));"
        "const script=document.createElement('script');"
        "script.textContent=await new Response(stream).text();"
        "document.head.append(script);script.remove();" + draw(element) + "})()"
    )
    below = Markup('<p style="font:12px sans-serif">{}</p>').format(legible(caption)) if caption else ""
    output = Markup('<div id="{}">{}</div>{}<script>{}</script>')
    # Plain text, since what is added to Markup would be escaped.
    return str(output.format(element, inside, below, Markup(script)))


def draw_chart(element: str, spec: dict[str, Any]) -> str:
    """A script that draws a Vega-Lite spec into an element; the still picture in it stays on failure."""
    options = {"actions": False, "ast": True, "renderer": "svg", "loader": {"baseURL": "about:invalid"}}
    return (
        "(()=>{const at=document.getElementById("
        + to_js(element)
        + ");if(!at||!window.__iklVega)return;const live=document.createElement('div');"
        + f"window.__iklVega(live,{to_js(spec)},{to_js(options)})"
        + ".then(()=>{at.replaceChildren(live)}).catch(e=>console.error(e))})()"
    )


def draw_tokens(element: str, tokens: list[str], values: list[list[float]], labels: list[str]) -> str:
    """A script that draws tokens coloured by value into an element, one label a column of values to choose from."""
    props = {"tokens": [inert(token) for token in tokens], "values": values, "labels": labels}
    return (
        f"window.__iklTokens&&window.__iklTokens.render({to_js(element)},"
        f"window.__iklTokens.ColoredTokensMulti,{to_js(props)})"
    )
