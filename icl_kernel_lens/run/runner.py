"""Runs a step over all prompts: shared tokens once, batches that fit, finished prompts kept.

Reading, read-outs and interventions all run through here. A step is given prompts (and the `Prefix` that they share,
if they do) and returns tensors with one row a prompt; the loop decides what is shared, halves batches when memory runs
out, shows one progress bar, writes and resumes checkpoints, and splits the work over processes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from icl_kernel_lens.errors import PromptError, RunError
from icl_kernel_lens.models.adapter import ModelAdapter, users_hooks
from icl_kernel_lens.models.attention_passes import Prefix, read_prefix
from icl_kernel_lens.models.verify import reads_fast, verify_model
from icl_kernel_lens.prompts.fit import check_fits
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.run.checkpoint import SUM, Checkpoint, fingerprint
from icl_kernel_lens.run.memory import LARGEST_BATCH, in_pieces, must_fit, prefix_tokens, prompts_at_once
from icl_kernel_lens.run.prefixes import (
    ENOUGH,
    Branch,
    bundles,
    find_branches,
    pass_cost,
    passes_of,
    split,
    unshared,
)
from icl_kernel_lens.run.processes import here
from icl_kernel_lens.run.progress import work

BatchSize = int | Literal["auto"]
Step = Callable[[list[int], Prefix | None], dict[str, Tensor]]
"""Prompt numbers, and the prefix they share → tensors on the CPU with one row a prompt, in that order; those
named `sum.…` are added up over all prompts instead."""
_PrefixOf = Callable[[Sequence[int]], Prefix | None]
"""Prompts of a batch → the leading tokens that have been run."""
COPIED = 8
"""Of the memory for prefixes, one part in so many is for copies of them, a row for each prompt of a batch."""


def run_prompts(
    prompts: PromptSet,
    adapter: ModelAdapter,
    step: Step,
    *,
    name: str,
    settings: Mapping[str, Any],
    sums: Mapping[str, Tensor] | None = None,
    batch_size: BatchSize = "auto",
    most: int | None = None,
    most_shared: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    share: bool = True,
    together: bool = False,
    extra: float = 0.0,
) -> tuple[dict[str, Tensor], str]:
    """Runs `step` once on every prompt; returns the rows in the order of the prompts, and what was shared, in words.

    `settings` is what the results depend on beside model and prompts: a checkpoint is only resumed with the same.
    `sums` are zeros in the shape of each result that is added up; a step may leave those out. Without `share`,
    every step is given whole prompts, and no prefix. `most` caps an automatic batch, for steps that hold more than a
    forward pass does; `most_shared`, one of prompts that share leading tokens. With `together`, a step may be given prompts
    behind different leading tokens of one length, and a prefix with a row for each. `extra` is what a step costs a prompt
    beyond running it, in tokens; progress counts it.

    Raises: PromptError: prompts do not fit the model. RunError: not even one prompt fits into memory; the
            checkpoint is another run's; a process was lost.
    """
    processes, hooks = here(), users_hooks(adapter)
    _check_request(prompts, adapter, batch_size, hooks, kept=checkpoint is not None)
    told = checkpoint is not None or processes.size > 1
    identity = fingerprint(adapter, prompts, {"run": name, **settings}) if told else {}
    kept = Checkpoint(checkpoint, identity)
    results = _Results(len(prompts), {SUM + key: zeros.clone() for key, zeros in (sums or {}).items()})
    found = kept.load(len(prompts), sums)
    # Here the processes wait for each other: none may write a shard that another one still takes for an old one.
    processes.check_same("model, prompts and settings", repr(sorted(identity.items())))
    whole, how = unshared(len(prompts)), "prompts read whole"
    if share:
        whole, how = sharing_of(prompts, adapter, hooks, together)
    if (limit := _placed_by_length(prompts, adapter)) is not None:
        batch_size = 1
        warnings.warn(
            f"{adapter.name} reads one whole prompt at a time, which is slower, because {_by_length(limit)}.",
            stacklevel=3,
        )
    if processes.size > 1:
        # Finished prompts are counted once: by the first process, whoever read them.
        whole = split(whole, prompts.lengths.tolist(), processes.size)[processes.rank]
    for numbers, part in found:
        results.take(numbers, part, add=processes.first)
    done, mine = set(results.numbers), whole.every_number()
    finished, total = len(done & set(mine)), len(mine)
    each = whole.cost(prompts.lengths.tolist()) / max(1, total) + extra
    says = f"{name}, {{}}/{total} prompts" + (
        f" of process 1 of {processes.size}" if processes.size > 1 else ""
    )
    with work(name, (), progress, tokens=each * total) as bar:
        if finished:
            bar.add(each * finished, says.format(finished), kept=True)
        try:
            batches = _Batches(prompts, adapter, done, batch_size, most, most_shared or most, together)
            for numbers, prefix in batches.of(whole):
                once = partial(_once, adapter, step, prefix)
                for part, result in in_pieces(numbers, len(numbers), once):
                    results.take(torch.tensor(part), result, add=True)
                    kept.add(part, result)
                    finished += len(part)
                    bar.add(each * len(part), says.format(finished))
        finally:
            kept.save()
    return processes.add(results.tensors), how


def _check_request(
    prompts: PromptSet, adapter: ModelAdapter, batch_size: BatchSize, hooks: list[str], *, kept: bool
) -> None:
    """Refuse what cannot be run: prompts, batches, too many processes, hooks beside a checkpoint."""
    if batch_size != "auto" and batch_size < 1:
        raise PromptError(
            f'batch_size must be at least 1, or "auto"; got {batch_size!r}.', code="number-range"
        )
    check_fits(prompts, adapter)
    processes = here()
    if processes.size > len(prompts):
        raise RunError(
            f"every process needs a prompt; there are {processes.size} processes and {len(prompts)} prompts.",
            code="too-many-processes",
        )
    if kept and hooks:
        raise RunError(
            f"a checkpoint cannot tell one hook from another; the model has hooks at {', '.join(hooks[:3])}. Remove "
            "them, or read without a checkpoint.",
            code="checkpoint-hooks",
        )


class _Results:
    """The rows that steps have returned, each in its place."""

    def __init__(self, count: int, tensors: dict[str, Tensor]) -> None:
        self.count = count
        self.tensors = tensors
        self.numbers: list[int] = []

    def take(self, numbers: Tensor, part: dict[str, Tensor], *, add: bool) -> None:
        if again := set(self.numbers) & set(numbers.tolist()):
            raise RunError(
                f"a prompt's results must be there once; the checkpoint holds prompt {min(again)} twice, perhaps "
                "because two runs wrote into it at once. Delete the folder and run again.",
                code="checkpoint-damaged",
            )
        self.numbers += numbers.tolist()
        for name, rows in part.items():
            if name.startswith(SUM):
                self.tensors[name] += rows if add else 0
                continue
            if name in self.tensors and self.tensors[name].shape[1:] != rows.shape[1:]:
                raise RunError(
                    f"results must have one shape; {name} has {tuple(rows.shape[1:])} for each prompt, and "
                    f"{tuple(self.tensors[name].shape[1:])} in the checkpoint, which is damaged. Delete the folder and run "
                    "again.",
                    code="checkpoint-damaged",
                )
            empty = torch.zeros(self.count, *rows.shape[1:], dtype=rows.dtype)
            whole = self.tensors.setdefault(name, empty)
            if add:
                whole[numbers] = rows


def sharing_of(
    prompts: PromptSet, adapter: ModelAdapter, hooks: list[str], together: bool = True
) -> tuple[Branch, str]:
    """The leading tokens that are run once, within the memory there is for keys and values; and in words.

    `together`: where a pass may run several of them, with what it costs in mind.
    """
    alone, limit = unshared(len(prompts)), _placed_by_length(prompts, adapter)
    if (why := verify_model(adapter).not_shared) is not None:
        return alone, f"prompts read whole: {why}"
    if hooks:
        # A hook may mean a position of the whole prompt, and would meet a part of it.
        names = ", ".join(hooks[:3]) + ", …" * (len(hooks) > 3)
        return alone, f"prompts read whole: the model has hooks ({names})"
    if limit is not None:
        return alone, f"prompts read whole, one at a time: {_by_length(limit)}"
    whole = find_branches(
        prompts.tokens,
        prompts.lengths,
        prompts.answer_pos,
        most_tokens=prefix_tokens(adapter),
        each_pass=cost_of_pass(adapter) if together else 0,
    )
    if not any(branch.end for _, branch in whole.walk()):
        return alone, "prompts read whole: they share no leading tokens worth it"
    lengths = prompts.lengths.tolist()
    return whole, f"{whole.cost(lengths):,} of {sum(lengths):,} tokens run, as prompts share the others"


def tokens_to_run(prompts: PromptSet, adapter: ModelAdapter) -> float:
    """How many tokens a pass over these prompts runs in each process, as they share the others."""
    whole, _ = sharing_of(prompts, adapter, users_hooks(adapter))
    return whole.cost(prompts.lengths.tolist()) / here().size


def _placed_by_length(prompts: PromptSet, adapter: ModelAdapter) -> int | None:
    """The length from which on prompts must be run alone, if one of these reaches it with its label."""
    limit, longest = adapter.shape.by_length, int(prompts.lengths.max() + prompts.label_lengths.max())
    return limit if limit is not None and longest >= limit else None


def _by_length(limit: int) -> str:
    return f"it places tokens by the length of what it is given, from {limit} tokens on"


def cost_of_pass(adapter: ModelAdapter) -> int:
    """About what a pass costs beside the tokens it runs, in tokens."""
    shape = adapter.shape
    return pass_cost(shape.width or 64 * shape.heads, adapter.device.type)


@dataclass(frozen=True)
class _Batches:
    """Unfinished prompts in batches of like length, longest first, each with what gives its prefix."""

    prompts: PromptSet
    adapter: ModelAdapter
    done: set[int]
    size: BatchSize
    most: int | None
    most_shared: int | None
    together: bool

    def of(self, branch: Branch, prefix: Prefix | None = None) -> Iterator[tuple[list[int], _PrefixOf]]:
        """Those of a branch whose tokens have been run, and of all below it, so that few prefixes are kept at a time."""
        yield from self._behind([(branch, 0)], prefix)
        enough = min(ENOUGH * cost_of_pass(self.adapter), prefix_tokens(self.adapter)) if self.together else 0
        for bundle in bundles(branch.branches, enough):
            if self.done.issuperset(number for one in bundle for number in one.every_number()):
                continue
            with must_fit(
                f"{bundle[0].end} tokens must fit into memory once; on {self.adapter.device} they do not. Use fewer "
                "demonstrations, half precision, or a larger device."
            ):
                run = list(in_pieces(bundle, len(bundle), partial(self._run, prefix)))
            for piece, kept in run:
                yield from self._behind([(one, row) for row, one in enumerate(piece)], kept)
                for row, one in enumerate(piece):
                    if one.branches:
                        own = kept if len(piece) == 1 else kept.of([row], one.end)
                        yield from self.of(replace(one, numbers=()), own)

    def _run(self, prefix: Prefix | None, branches: Sequence[Branch]) -> Prefix:
        """The tokens of branches that begin behind the same prefix, in one pass, a row each."""
        start, ends = branches[0].start, [one.end for one in branches]
        first = [one.every_number()[0] for one in branches]
        rows = self.prompts.tokens[first, start : max(ends)]
        if len(branches) == 1:
            return read_prefix(self.adapter, rows[0], prefix)
        return read_prefix(self.adapter, rows, prefix, torch.tensor(ends))

    def _behind(
        self, rows: Sequence[tuple[Branch, int]], prefix: Prefix | None
    ) -> Iterator[tuple[list[int], _PrefixOf]]:
        """The prompts right behind branches, which are rows of one prefix; those behind equally many tokens together."""
        row_of = {number: row for one, row in rows for number in one.numbers}
        for end in sorted({one.end for one, _ in rows}, reverse=True):
            numbers = [number for one, _ in rows if one.end == end for number in one.numbers]
            numbers.sort(key=lambda number: -int(self.prompts.lengths[number]))
            own = partial(_rows_of, prefix, row_of, end) if len(rows) > 1 else lambda _: prefix
            most = cache(partial(self._at_once, start=rows[0][0].start, end=end, rows=len(rows)))
            # Batches are made of finished prompts, too: what is run again is run in the same batches.
            for size in self._sizes([int(self.prompts.lengths[n]) - end for n in numbers], most):
                if batch := [number for number in numbers[:size] if number not in self.done]:
                    yield batch, own
                numbers = numbers[size:]

    def _sizes(self, lengths: list[int], most: Callable[[int], int]) -> list[int]:
        """How many prompts each batch has; as many as were asked for, whatever is padded."""
        if self.size == "auto":
            return passes_of(lengths, most, cost_of_pass(self.adapter))
        return [len(lengths[at : at + self.size]) for at in range(0, len(lengths), self.size)]

    def _at_once(self, longest: int, *, start: int, end: int, rows: int) -> int:
        """How many prompts may make one batch (`longest`: the tokens of the longest behind `end`); what several rows of a prefix
        hold is copied for each prompt."""
        cap = (self.most_shared if end else self.most) or LARGEST_BATCH
        if rows > 1:
            cap = min(cap, max(1, prefix_tokens(self.adapter) // (COPIED * (end - start))))
        return min(prompts_at_once(self.adapter, end + longest, end, fast=reads_fast(self.adapter)), cap)


def _rows_of(
    prefix: Prefix | None, row_of: Mapping[int, int], end: int, numbers: Sequence[int]
) -> Prefix | None:
    return prefix and prefix.of([row_of[number] for number in numbers], end)


def _once(adapter: ModelAdapter, step: Step, prefix: _PrefixOf, numbers: Sequence[int]) -> dict[str, Tensor]:
    alone = must_fit(
        f"one prompt must fit into memory; prompt {numbers[0]} does not, on {adapter.device}. What was finished "
        "is kept in the checkpoint, if there is one. Use fewer demonstrations, half precision, or a "
        "larger device."
    )
    with alone if len(numbers) == 1 else nullcontext():
        return step(list(numbers), prefix(numbers))
