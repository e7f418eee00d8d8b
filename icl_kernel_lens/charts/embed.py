"""This module puts charts and token views into HTML: offline, and with no text of a data set becoming markup.

Altair's own HTML export and CircuitsVis's own display are not used: the first runs markup found in
data, the second opens a network connection. Here data enter a page only through `to_js`, token strings
also through `inert`, and each library's script is held once and wrapped in a function of its own.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any
from uuid import uuid4

import altair as alt
import vl_convert as vlc
from markupsafe import Markup

VEGA_LITE = "_".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
"""The Vega-Lite version that Altair writes for, in vl-convert's spelling."""


def to_js(value: Any) -> str:
    """A JavaScript literal that cannot end the script it stands in; NaN is refused."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def inert(token: str) -> str:
    """A token string that looks the same and is no markup: a word joiner stands behind `<` and `&`.

    CircuitsVis sets token strings as HTML, so that escaping the JSON alone does not help.
    """
    return token.replace("&", "&\u2060").replace("<", "<\u2060")


@cache
def vega_script() -> str:
    """Vega, Vega-Lite and vega-embed as `window.__iklVega(element, spec, options)`."""
    bundle = vlc.javascript_bundle("window.__iklVega=vegaEmbed;", vl_version=VEGA_LITE)
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
    below = Markup('<p style="font:12px sans-serif">{}</p>').format(caption) if caption else ""
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
