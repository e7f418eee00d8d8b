"""A token view colours the tokens of one prompt by heads' attention, cropped to what is read (CircuitsVis)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from icl_kernel_lens.charts import page
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.files import write_atomically

MOST_TOKENS = 128
MOST_HEADS = 4
"""Beyond this size a CircuitsVis view takes seconds to draw."""


@dataclass(frozen=True)
class TokenView:
    """A token view as a value; a notebook shows it inline, offline."""

    tokens: list[str]
    values: list[list[float]]
    """One row a token, one number a label."""
    labels: list[str]
    """What the numbers of a column are of: a head's name."""
    caption: str

    @classmethod
    def cropped(
        cls,
        strings: Sequence[str],
        attention: Float[Tensor, "label pos"],
        kept: Sequence[int],
        *,
        labels: Sequence[str],
        caption: str,
    ) -> TokenView:
        """The tokens at the positions `kept`, in order; `…` marks a gap. NaN is drawn as 0."""
        tokens, values = [], []
        for at, position in enumerate(kept):
            if at and position != kept[at - 1] + 1:
                tokens.append("…")
                values.append([0.0] * len(labels))
            tokens.append(strings[position])
            values.append([round(x, 4) for x in attention[:, position].nan_to_num().tolist()])
        return cls(tokens, values, list(labels), caption)

    def save(self, path: str | Path) -> Path:
        """Write an HTML page; it opens offline.

        Raises: ResultError: another suffix than `.html`. RunError: the file cannot be written.
        """
        path = Path(path)
        if path.suffix != ".html":
            raise ResultError(
                f"a token view is saved as .html; {path.name!r} ends in {path.suffix!r}.", code="file-suffix"
            )
        return write_atomically(path, page.Page("Token view").tokens(self).html())

    def __repr__(self) -> str:
        return f"TokenView({self.caption})"

    def _repr_html_(self) -> str:
        return page.notebook_output(
            page.circuitsvis_script(),
            lambda element: page.draw_tokens(element, self.tokens, self.values, self.labels),
            caption=self.caption,
        )


def positions_worth_showing(length: int, label_spans: Sequence[Sequence[int]], test_start: int) -> list[int]:
    """The positions of a prompt that a view has room for, in order.

    All of up to 128; else position 0, where sinks are, the label tokens (`label_spans`: first position and the one
    behind the last) and the test input, then the tokens before each label as far as there is room.
    """
    if length <= MOST_TOKENS:
        return list(range(length))
    labels = (at for start, end in label_spans for at in range(start, end))
    test = range(max(test_start, length - MOST_TOKENS // 3), length)
    # From nearest to farthest, no farther than a view has room.
    before = (start - by for by in range(1, MOST_TOKENS) for start, _ in label_spans if start >= by)
    return sorted(list(dict.fromkeys([0, *labels, *test, *before]))[:MOST_TOKENS])
