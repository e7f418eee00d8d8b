"""The one loop over prompts: what is shared runs once, batches fit, and finished prompts are never lost.

`read` and every intervention run through here. A step is given prompts (and the `Prefix` that they share,
if they do) and returns tensors with one row a prompt; the loop plans the steps, halves them when memory runs
out, shows one progress bar, writes and resumes checkpoints, and splits the work over processes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from icl_kernel_lens.errors import PromptError, RunError
from icl_kernel_lens.evidence import sharing
from icl_kernel_lens.evidence.checkpoint import SUM, Checkpoint, fingerprint
from icl_kernel_lens.evidence.processes import here
from icl_kernel_lens.evidence.sharing import Branch
from icl_kernel_lens.models import Lens, memory, probe
from icl_kernel_lens.models.fast import Prefix, read_prefix, reads_fast
from icl_kernel_lens.models.lens import InterceptableLens
from icl_kernel_lens.prompts import PromptSet, check_fits

LARGEST = memory.LARGEST_BATCH
BatchSize = int | Literal["auto"]
Step = Callable[[list[int], Prefix | None], dict[str, Tensor]]
"""Prompt numbers, and the prefix they share → tensors on the CPU with one row a prompt, in that order; those
named `sum.…` are added up over all prompts instead."""


def run_prompts(
    prompts: PromptSet,
    lens: Lens,
    step: Step,
    *,
    name: str,
    settings: Mapping[str, Any],
    sums: Mapping[str, Tensor] | None = None,
    batch_size: BatchSize = "auto",
    most: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    share: bool = True,
) -> tuple[dict[str, Tensor], str]:
    """Every prompt through `step` once; the rows of all, in the order of the prompts; and what was shared, in words.

    `settings` is what the results depend on beside model and prompts: a checkpoint is only resumed with the same.
    `sums` are zeros in the shape of each result that is added up; a step may leave those out. Without `share`,
    every step is given whole prompts, and no prefix. `most` caps an automatic batch, for steps that hold more than a
    forward pass does.

    Raises: PromptError: prompts do not fit the model. RunError: not even one prompt fits into memory; the
            checkpoint is another run's; a process was lost.
    """
    if batch_size != "auto" and not (isinstance(batch_size, int) and batch_size >= 1):
        raise PromptError(f'batch_size must be at least 1, or "auto"; got {batch_size!r}.')
    check_fits(prompts, lens)
    processes = here()
    identity: dict[str, str] = {}
    if checkpoint is not None or processes.size > 1:
        identity = fingerprint(lens, prompts, {"run": name, **settings})
    if processes.size > len(prompts):
        raise RunError(
            f"every process needs a prompt; there are {processes.size} processes and {len(prompts)} prompts."
        )
    if checkpoint is not None and isinstance(lens, InterceptableLens) and (hooks := lens.hooks_in_place()):
        raise RunError(
            f"a checkpoint cannot tell one hook from another; the model has hooks at {', '.join(hooks[:3])}. Remove "
            "them, or read without a checkpoint."
        )
    kept = Checkpoint(checkpoint, identity)
    results = _Results(len(prompts), {SUM + key: zeros.clone() for key, zeros in (sums or {}).items()})
    found = kept.load()
    # Here the processes wait for each other: none may write a shard that another one still takes for an old one.
    processes.check_same("model, prompts and settings", repr(sorted(identity.items())))
    whole, how = _plan(prompts, lens) if share else (sharing.unshared(len(prompts)), "prompts read whole")
    if _placed_by_length(prompts, lens) is not None:
        batch_size = 1
    if processes.size > 1:
        # Finished prompts are counted once: by the first process, whoever read them.
        whole = sharing.split(whole, prompts.lengths.tolist(), processes.size)[processes.rank]
    for numbers, part in found:
        results.take(numbers, part, add=processes.first)
    done, mine = set(results.numbers), whole.every_number()
    which = f", process 1 of {processes.size}" if processes.size > 1 else ""
    with tqdm(
        total=len(mine),
        initial=len(done & set(mine)),
        desc=name + which,
        unit="prompt",
        disable=not (progress and processes.first),
    ) as bar:
        try:
            for numbers, prefix in _batches(prompts, lens, whole, done, batch_size, most):
                for part, result in _halving(lens, step, numbers, prefix):
                    results.take(torch.tensor(part), result, add=True)
                    kept.add(part, result)
                    bar.update(len(part))
        finally:
            kept.save()
    return processes.add(results.tensors), how


class _Results:
    """What steps have returned, each row in its place."""

    def __init__(self, count: int, tensors: dict[str, Tensor]) -> None:
        self.count = count
        self.tensors = tensors
        self.numbers: list[int] = []

    def take(self, numbers: Tensor, part: dict[str, Tensor], *, add: bool) -> None:
        if again := set(self.numbers) & set(numbers.tolist()):
            raise RunError(
                f"a prompt's results must be there once; the checkpoint holds prompt {min(again)} twice, perhaps "
                "because two runs wrote into it at once. Delete the folder and run again."
            )
        self.numbers += numbers.tolist()
        for name, rows in part.items():
            if name.startswith(SUM):
                self.tensors[name] += rows if add else 0
                continue
            empty = torch.zeros(self.count, *rows.shape[1:], dtype=rows.dtype)
            whole = self.tensors.setdefault(name, empty)
            if add:
                whole[numbers] = rows


def _plan(prompts: PromptSet, lens: Lens) -> tuple[Branch, str]:
    """What is run once, within the memory there is for keys and values; and in words."""
    alone = sharing.unshared(len(prompts))
    if not isinstance(lens, InterceptableLens):
        return alone, "prompts read whole: the lens does not let its attention be taken over"
    if (why := probe(lens).not_shared) is not None:
        return alone, f"prompts read whole: {why}"
    if hooks := lens.hooks_in_place():
        # A hook may mean a position of the whole prompt, and would meet a part of it.
        return (
            alone,
            f"prompts read whole: the model has hooks ({', '.join(hooks[:3])}{', …' * (len(hooks) > 3)})",
        )
    if (limit := _placed_by_length(prompts, lens)) is not None:
        reason = f"it places tokens by the length of what it is given, from {limit} tokens on"
        warnings.warn(
            f"{lens.name} reads one whole prompt at a time, which is slower, because {reason}.", stacklevel=4
        )
        return alone, f"prompts read whole, one at a time: {reason}"
    most = memory.prefix_tokens(lens)
    whole = sharing.find_branches(prompts.tokens, prompts.lengths, prompts.answer_pos, most_tokens=most)
    if not any(branch.end for _, branch in whole.walk()):
        return alone, "prompts read whole: they share no leading tokens worth it"
    lengths = prompts.lengths.tolist()
    return whole, f"{whole.cost(lengths):,} of {sum(lengths):,} tokens run, as prompts share the others"


def _placed_by_length(prompts: PromptSet, lens: Lens) -> int | None:
    """The length from which on prompts must be run alone, if one of these reaches it with its label."""
    limit, longest = lens.shape.by_length, int(prompts.lengths.max() + prompts.label_lengths.max())
    return limit if limit is not None and longest >= limit else None


def _batches(
    prompts: PromptSet, lens: Lens, whole: Branch, done: set[int], batch_size: BatchSize, most: int | None
) -> Iterator[tuple[list[int], Prefix | None]]:
    """Unfinished prompts in batches of like length, longest first, each with its prefix."""
    run: dict[Branch, Prefix] = {}
    fast = reads_fast(lens)
    for above, branch in whole.walk():
        numbers = [number for number in branch.numbers if number not in done]
        if not numbers:
            continue
        path = [b for b in (*above, branch) if b.end > 0]
        for old in [b for b in run if b not in path]:
            del run[old]
        prefix = None
        for part in path:
            if part not in run:
                row = prompts.tokens[part.every_number()[0], part.start : part.end]
                run[part] = _prefix(lens, row, prefix)
            prefix = run[part]
        numbers.sort(key=lambda number: -int(prompts.lengths[number]))
        while numbers:
            longest = int(prompts.lengths[numbers[0]])
            size = batch_size
            if size == "auto":
                size = min(memory.prompts_at_once(lens, longest, branch.end, fast=fast), most or LARGEST)
            yield numbers[:size], prefix
            numbers = numbers[size:]


def _prefix(lens: Lens, tokens: Tensor, parent: Prefix | None) -> Prefix:
    try:
        return read_prefix(lens, tokens, parent)
    except RuntimeError as error:
        if not memory.exhausted(error):
            raise
        raise _too_much(lens, len(tokens)) from error


def _too_much(lens: Lens, tokens: int) -> RunError:
    """What to say where a single row of tokens does not fit."""
    return RunError(
        f"{tokens} tokens must fit into memory once; on {lens.device} they do not. Use fewer demonstrations, half "
        "precision, or a larger device."
    )


def _halving(
    lens: Lens, step: Step, numbers: list[int], prefix: Prefix | None
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """One batch, in halves and quarters where memory runs out."""
    waiting = [numbers]
    while waiting:
        part = waiting.pop()
        try:
            result = step(part, prefix)
        except RuntimeError as error:
            if not memory.exhausted(error):
                raise
            if len(part) == 1:
                raise RunError(
                    f"one prompt must fit into memory; prompt {part[0]} does not, on {lens.device}. What was finished "
                    "is kept in the checkpoint, if there is one. Use fewer demonstrations, half precision, or a "
                    "larger device."
                ) from error
            result = None
        if result is not None:
            yield part, result
            continue
        # Outside of the handler, whose traceback would hold the tensors of the failed batch.
        memory.release()
        middle = (len(part) + 1) // 2
        waiting += [part[middle:], part[:middle]]
