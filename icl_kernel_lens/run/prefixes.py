"""Finds the leading tokens that prompts share and that are worth running once, from token ids alone.

Prompts form a trie. A branch of it holds leading tokens that several prompts share; they are run once, and the tokens
behind them attend their keys and values (`models/attention_passes.py`), prompts of like length in one pass (`passes_of`).
As a pass costs something however few tokens it runs, a branch that saves less than that is left out, and its branches are
run from where the one above ends, in one pass (`bundles`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Int
from torch import Tensor

SHORTEST = 16
"""Fewest tokens worth a forward pass of their own."""
LEAST_SAVED = 0.2
"""Smallest share of a branch's tokens whose running must be saved."""
ENOUGH = 4
"""A pass of this many times its own cost is not made larger: that would save little."""
LEAST_FILLED = 0.75
"""Of a pass over several branches, the smallest part of the longest that each must be long: the rest is padding."""


@dataclass(frozen=True)
class Branch:
    """Prompts whose tokens from `start` to `end` are the same; those before `start` the branch above holds."""

    start: int
    end: int
    numbers: tuple[int, ...]
    """Prompts read right behind `end`."""
    branches: tuple[Branch, ...] = ()
    """Those of them that share more."""

    def every_number(self) -> list[int]:
        return [*self.numbers, *(n for branch in self.branches for n in branch.every_number())]

    def cost(self, lengths: Sequence[int]) -> int:
        """Tokens to be run."""
        own = self.end - self.start + sum(lengths[n] - self.end for n in self.numbers)
        return own + sum(branch.cost(lengths) for branch in self.branches)

    def walk(self, above: tuple[Branch, ...] = ()) -> Iterator[tuple[tuple[Branch, ...], Branch]]:
        """Every branch with those above it, depth first, so that few prefixes are kept at a time."""
        yield above, self
        for branch in self.branches:
            yield from branch.walk((*above, self))


def pass_cost(width: int, device: str) -> int:
    """About how many tokens a pass must run to cost twice what it costs however few it runs.

    On one core of a CPU, 480 to 635 of a model of width 64 and 60 to 85 of one of width 576 were measured (`benchmarks.passes`):
    reading a layer's weights costs as much as some 32 tokens, and its calls less beside wider products. On a GPU calls weigh a
    hundred times more, as products are that much faster; that is an estimate, and not measured.
    """
    return max(32, 2**15 // width) * (100 if device == "cuda" else 1)


def find_branches(
    tokens: Int[Tensor, "prompt pos"],
    lengths: Int[Tensor, " prompt"],
    answer_pos: Int[Tensor, " prompt"],
    *,
    most_tokens: int,
    each_pass: int,
) -> Branch:
    """The trie of the prompts, as far as it saves work and keeps at most `most_tokens` tokens at a time.

    A pass costs as much as `each_pass` tokens, beside those it runs; 0 where the branches below one are not run together.
    The last two tokens up to the answer position are always a prompt's own.
    """
    # Sorted as bytes, of as many for each token, prompts that begin alike stand together.
    ids, sizes = tokens.numpy().astype("int32"), lengths.tolist()
    rows = [ids[number, :size].tobytes() for number, size in enumerate(sizes)]
    most = [max(0, int(at) - 1) for at in answer_pos.tolist()]
    order = sorted(range(len(rows)), key=rows.__getitem__)
    common = [0]
    for before, after in pairwise(order):
        size = min(sizes[before], sizes[after])
        differ = (ids[before, :size] != ids[after, :size]).nonzero()[0]
        alike = int(differ[0]) if len(differ) else size
        common.append(min(alike, most[before], most[after]))

    def grow(low: int, high: int, start: int, kept: int) -> Branch:
        """The branch of order[low:high], which share `kept` tokens; those from `start` on are its own."""
        numbers: list[int] = []
        branches: list[Branch] = []
        runs = [(low, high)]
        while runs:
            a, b = runs.pop()
            if b - a == 1:
                numbers.append(order[a])
                continue
            alike = min(common[a + 1 : b])
            saved = (alike - kept) * (b - a - 1)
            total = sum(sizes[number] - kept for number in order[a:b])
            if alike - kept >= SHORTEST and alike <= most_tokens and saved >= LEAST_SAVED * total:
                branches.append(grow(a, b, kept, alike))
                continue
            cuts = [a, *(i for i in range(a + 1, b) if common[i] == alike), b]
            runs += pairwise(cuts)
        return _worth_their_passes(
            Branch(start, kept, tuple(sorted(numbers)), tuple(reversed(branches))), each_pass
        )

    return grow(0, len(order), 0, 0)


def _worth_their_passes(branch: Branch, each_pass: int) -> Branch:
    """The same prompts without branches between others that save fewer tokens than their passes cost."""
    numbers: list[int] = list(branch.numbers)
    branches: list[Branch] = []
    for one in branch.branches:
        behind = len(one.branches) + len(one.numbers)
        if one.branches and (one.end - one.start) * (behind - 1) < 2 * each_pass:
            numbers += one.numbers
            branches += [replace(below, start=branch.end) for below in one.branches]
        else:
            branches.append(one)
    return replace(branch, numbers=tuple(sorted(numbers)), branches=tuple(branches))


def bundles(branches: Sequence[Branch], enough: int) -> Iterator[list[Branch]]:
    """Branches below the same one, those in one list to be run in one pass: of like length, and no more once tokens are `enough`."""
    bundle: list[Branch] = []
    for branch in sorted(branches, key=lambda one: (bool(one.branches), one.start - one.end)):
        longest = bundle[0].end - bundle[0].start if bundle else 0
        if bundle and not (
            bool(branch.branches) == bool(bundle[0].branches)
            and branch.end - branch.start >= LEAST_FILLED * longest
            and longest * len(bundle) < enough
        ):
            yield bundle
            bundle = []
        bundle.append(branch)
    if bundle:
        yield bundle


def passes_of(lengths: Sequence[int], most: Callable[[int], int], each_pass: int) -> list[int]:
    """How many of these prompts, longest first, each pass runs: all passes together pad and cost the least.

    Σ_passes (its longest × its prompts + each_pass), at most `most(longest)` prompts in one.
    """
    least, sizes = torch.zeros(len(lengths) + 1, dtype=torch.long), [0] * len(lengths)
    for at in reversed(range(len(lengths))):
        size = torch.arange(1, min(max(1, most(lengths[at])), len(lengths) - at) + 1)
        cost = lengths[at] * size + least[at + size]
        # Of equal ones the last, whatever machine it is: what is run again is run in the same passes.
        sizes[at] = int(size[cost == cost.min()][-1])
        least[at] = cost.min() + each_pass
    passes, at = [], 0
    while at < len(lengths):
        passes.append(sizes[at])
        at += sizes[at]
    return passes


def unshared(count: int) -> Branch:
    """Every prompt on its own."""
    return Branch(0, 0, tuple(range(count)))


def split(whole: Branch, lengths: Sequence[int], parts: int) -> list[Branch]:
    """The work of several processes, about equal in tokens: whole branches, and single prompts, kept together.

    Where there are fewer branches than processes, a branch is split, and its leading tokens run in each.
    """
    pieces = [*whole.branches, *(Branch(0, 0, (number,)) for number in whole.numbers)]
    fair = max(1, whole.cost(lengths) // parts)
    small: list[Branch] = []
    for piece in pieces:
        numbers = piece.every_number()
        chunks = min(len(numbers), parts, -(-piece.cost(lengths) // fair)) if len(pieces) < parts else 1
        parted = [Branch(piece.start, piece.end, tuple(numbers[i::chunks])) for i in range(chunks)]
        small += parted if chunks > 1 else [piece]
    work: list[list[Branch]] = [[] for _ in range(parts)]
    load = [0] * parts
    for piece in sorted(small, key=lambda piece: -piece.cost(lengths)):
        to = load.index(min(load))
        work[to].append(piece)
        load[to] += piece.cost(lengths)
    return [
        Branch(
            0,
            0,
            tuple(sorted(n for piece in mine if piece.end == 0 for n in piece.numbers)),
            tuple(piece for piece in mine if piece.end > 0),
        )
        for mine in work
    ]
