"""The tokens of one prompt coloured by a head's answer row, cropped to what is read (CircuitsVis)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.evidence import Evidence
from icl_kernel_lens.plots import embed

MOST_TOKENS = 128
MOST_HEADS = 4
"""Beyond this size a CircuitsVis view takes seconds to draw."""


@dataclass(frozen=True)
class TokenView:
    """A token view as a value; a notebook shows it inline, offline."""

    props: dict[str, Any]
    caption: str

    def save(self, path: str | Path) -> Path:
        """Write an HTML page; it opens offline."""
        from icl_kernel_lens.plots.page import Page

        path = Path(path)
        if path.suffix != ".html":
            raise ResultError(f"a token view is saved as .html; {path.name!r} ends in {path.suffix!r}.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Page("Token view").tokens(self.props, self.caption).html(), encoding="utf-8")
        return path

    def __repr__(self) -> str:
        return f"TokenView({self.caption})"

    def _repr_html_(self) -> str:
        element = f"ikl-{uuid4().hex}"
        return (
            f'<div id="{element}"></div><p style="font:12px sans-serif">{escape(self.caption)}</p>'
            f"<script>{embed.in_notebook(embed.circuitsvis_script(), embed.draw_tokens(element, self.props))}"
            "</script>"
        )


def token_view(evidence: Evidence, heads: Sequence[HeadRef], prompt: int = 0) -> TokenView:
    """The answer position's attention over one of the first prompts, for up to four heads.

    Prompts of more than 128 tokens are cropped: position 0, the label tokens and the test input stay, then the tokens
    before each label as far as there is room; `…` marks a gap.

    Raises: ResultError: a prompt whose rows were not kept, too many heads, no such head.
    """
    layers, total = evidence.rows.shape[1:3]
    shown = min(len(evidence.rows), len(evidence.prompts.strings))
    try:
        heads = [HeadRef(*ref) for ref in heads]
    except TypeError:
        raise ResultError(
            f"heads is a list of HeadRef(layer, head) or of (layer, head) pairs; got {heads!r}."
        ) from None
    if not 0 <= prompt < shown:
        raise ResultError(
            f"rows and token strings are kept for the first {shown} prompts; got prompt {prompt}."
        )
    if not 0 < len(heads) <= MOST_HEADS:
        raise ResultError(f"a token view shows 1 to {MOST_HEADS} heads; got {len(heads)}.")
    for ref in heads:
        if not (0 <= ref.layer < layers and 0 <= ref.head < total):
            raise ResultError(f"there is no head {ref}; layers run to {layers - 1}, heads to {total - 1}.")
    strings = evidence.prompts.strings[prompt]
    kept = _crop(evidence, prompt, len(strings))
    tokens, values = [], []
    for at, position in enumerate(kept):
        if at and position != kept[at - 1] + 1:
            tokens.append("…")
            values.append([0.0] * len(heads))
        tokens.append(embed.inert(strings[position]))
        row = [evidence.rows[prompt, ref.layer, ref.head, position].item() for ref in heads]
        values.append([round(x, 4) if x == x else 0.0 for x in row])
    run = evidence.run
    cropped = (
        ""
        if len(kept) == len(strings)
        else " (position 0, labels, what stands before them, and the test input; … marks gaps)"
    )
    return TokenView(
        {"tokens": tokens, "values": values, "labels": [str(ref) for ref in heads]},
        f"Attention from the answer position (the last token) of prompt {prompt}, {run.model} on "
        f"{run.prompts.task}: {len(kept)} of {len(strings)} tokens{cropped}. Hover or click a head's name to colour by it.",
    )


def _crop(evidence: Evidence, prompt: int, length: int) -> list[int]:
    """The positions worth showing, in order."""
    if length <= MOST_TOKENS:
        return list(range(length))
    prompts = evidence.prompts
    test = int(prompts.demo_spans[prompt, -1, 1]) if prompts.demos else 0
    wanted = [0]  # where sinks are
    for start, end in prompts.label_spans[prompt].tolist():
        wanted += range(start, end)
    wanted += range(max(test, length - MOST_TOKENS // 3), length)
    reach = 1
    labels = prompts.label_pos[prompt].tolist()
    while len(set(wanted)) < MOST_TOKENS and reach < length:
        wanted += [pos - reach for pos in labels if pos >= reach]
        reach += 1
    return sorted(list(dict.fromkeys(wanted))[:MOST_TOKENS])
