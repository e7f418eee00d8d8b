"""Runs a step over all prompts: shared tokens once, batches that fit, finished prompts kept.

Reading, read-outs and interventions all run through here. A step is given prompts (and the `Prefix` that they share,
if they do) and returns tensors with one row a prompt; the loop decides what is shared, halves batches when memory runs
out, shows one progress bar, writes and resumes checkpoints, and splits the work over processes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
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
from icl_kernel_lens.run.prefixes import Branch, find_branches, split, unshared
from icl_kernel_lens.run.processes import here
from icl_kernel_lens.run.progress import work

BatchSize = int | Literal["auto"]
Step = Callable[[list[int], Prefix | None], dict[str, Tensor]]
"""Prompt numbers, and the prefix they share → tensors on the CPU with one row a prompt, in that order; those
named `sum.…` are added up over all prompts instead."""


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
    extra: float = 0.0,
) -> tuple[dict[str, Tensor], str]:
    """Runs `step` once on every prompt; returns the rows in the order of the prompts, and what was shared, in words.

    `settings` is what the results depend on beside model and prompts: a checkpoint is only resumed with the same.
    `sums` are zeros in the shape of each result that is added up; a step may leave those out. Without `share`,
    every step is given whole prompts, and no prefix. `most` caps an automatic batch, for steps that hold more than a
    forward pass does; `most_shared`, one of prompts that share leading tokens. `extra` is what a step costs a prompt
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
        whole, how = sharing_of(prompts, adapter, hooks)
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
            for numbers, prefix in _batches(
                prompts, adapter, whole, done, batch_size, most, most_shared or most
            ):
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


def sharing_of(prompts: PromptSet, adapter: ModelAdapter, hooks: list[str]) -> tuple[Branch, str]:
    """The leading tokens that are run once, within the memory there is for keys and values; and in words."""
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
        prompts.tokens, prompts.lengths, prompts.answer_pos, most_tokens=prefix_tokens(adapter)
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


def _batches(
    prompts: PromptSet,
    adapter: ModelAdapter,
    whole: Branch,
    done: set[int],
    batch_size: BatchSize,
    most: int | None,
    most_shared: int | None,
) -> Iterator[tuple[list[int], Prefix | None]]:
    """Unfinished prompts in batches of like length, longest first, each with its prefix."""
    run: dict[Branch, Prefix] = {}
    fast = reads_fast(adapter)
    for above, branch in whole.walk():
        numbers = [number for number in branch.numbers if number not in done]
        if not numbers:
            continue
        path = [b for b in (*above, branch) if b.end > 0]
        run = {b: kept for b, kept in run.items() if b in path}
        prefix = None
        for part in path:
            if part not in run:
                row = prompts.tokens[part.every_number()[0], part.start : part.end]
                with must_fit(
                    f"{len(row)} tokens must fit into memory once; on {adapter.device} they do not. Use fewer "
                    "demonstrations, half precision, or a larger device."
                ):
                    run[part] = read_prefix(adapter, row, prefix)
            prefix = run[part]
        numbers.sort(key=lambda number: -int(prompts.lengths[number]))
        while numbers:
            longest = int(prompts.lengths[numbers[0]])
            size = batch_size
            if size == "auto":
                cap = (most_shared if branch.end else most) or LARGEST_BATCH
                size = min(prompts_at_once(adapter, longest, branch.end, fast=fast), cap)
            yield numbers[:size], prefix
            numbers = numbers[size:]


def _once(
    adapter: ModelAdapter, step: Step, prefix: Prefix | None, numbers: Sequence[int]
) -> dict[str, Tensor]:
    alone = must_fit(
        f"one prompt must fit into memory; prompt {numbers[0]} does not, on {adapter.device}. What was finished "
        "is kept in the checkpoint, if there is one. Use fewer demonstrations, half precision, or a "
        "larger device."
    )
    with alone if len(numbers) == 1 else nullcontext():
        return step(list(numbers), prefix)
