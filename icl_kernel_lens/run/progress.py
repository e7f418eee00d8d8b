"""Draws one progress bar for a whole call, however many runs it makes, in the tokens that are run.

A call names its parts and about what each will cost (`work`); a part that is a call of its own joins the bar, and
puts its own numbers in the place of what was expected of it. Time goes with tokens, so that what is left of the bar says
how long it takes; it gets surer as parts begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from tqdm.auto import tqdm

from icl_kernel_lens.run.processes import here

ROW = 1.5
"""What a changed row of one token costs, in tokens run plainly: its unembedding, and small products (SmolLM2, CPU)."""
FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} tokens [{elapsed}<{remaining}{postfix}]"


@dataclass
class Work:
    """A part of what a bar counts."""

    expected: float
    done: float = 0.0
    ended: bool = False
    parts: list[Work] = field(default_factory=list)

    def total(self) -> float:
        """What is known of it so far: of a part that has begun its own parts, of one that has ended what was done."""
        if self.ended:
            return self.so_far()
        return max(sum(part.total() for part in self.parts) if self.parts else self.expected, self.so_far())

    def so_far(self) -> float:
        """What is done of it."""
        return self.done + sum(part.so_far() for part in self.parts)


class _Bar:
    """A bar, and the whole that it counts."""

    def __init__(self, title: str, shown: bool) -> None:
        self.title, self.shown, self.whole = title, shown and here().first, Work(0.0)
        self.bar: tqdm | None = None

    def draw(self, tokens: float, words: str, *, kept: bool) -> None:
        """So many more tokens are done; what was kept of an earlier run took no time."""
        if not self.shown:
            return
        if self.bar is None:
            self.bar = tqdm(desc=self.title, total=0, unit_scale=True, smoothing=0, bar_format=FORMAT)
        if kept:
            self.bar.initial += tokens
        self.bar.total = self._total(self.bar.n + tokens)
        self.bar.set_postfix_str(words, refresh=False)
        self.bar.update(tokens)

    def close(self) -> None:
        """Draw the end."""
        if self.bar is not None:
            self.bar.total = self._total(self.bar.n)
            self.bar.close()

    def _total(self, drawn: float) -> float:
        """What there is to do: no less than was drawn, whose sum in another order may end a last bit above it."""
        return max(self.whole.total(), drawn)


_current: ContextVar[tuple[_Bar, Work] | None] = ContextVar("work", default=None)


class Piece:
    """The work that is under way: how much of it there is, and how much is done."""

    def __init__(self, bar: _Bar, counted: Work) -> None:
        self._bar, self._counted = bar, counted

    def add(self, tokens: float, words: str, *, kept: bool = False) -> None:
        """Count so many tokens; `kept`: they were run before."""
        self._counted.done += tokens
        self._bar.draw(tokens, words, kept=kept)


@contextmanager
def work(title: str, parts: Sequence[float], shown: bool, *, tokens: float = 0.0) -> Iterator[Piece]:
    """A piece of work of about so many tokens, or of parts of about so many each, in the order in which they are done.

    Inside another one it is its next part, counted by that one's bar. What is not shown is not counted.
    """
    outer = _current.get() if shown else None
    if outer is None:
        bar = _Bar(title, shown)
        mine = bar.whole
    else:
        bar, of = outer
        mine = next((part for part in of.parts if not part.ended), None)
        if mine is None:  # nobody expected it
            mine = Work(0.0)
            of.parts.append(mine)
    mine.expected, mine.parts = tokens, [Work(float(part)) for part in parts]
    token = _current.set((bar, mine))
    try:
        yield Piece(bar, mine)
    finally:
        _current.reset(token)
        mine.ended = True
        if outer is None:
            bar.close()
