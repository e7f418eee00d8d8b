"""Measures label influence: replaces each demonstration's label, runs the model, and sees how far its answer moves.

All relabelled prompts are rows of one set, so that they form one trie: what stands before a replaced label is not run
again, and demonstrations that test inputs share are run once for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.evidence.reading import answer
from icl_kernel_lens.models.adapter import ModelAdapter, as_adapter
from icl_kernel_lens.numbers.draws import generator
from icl_kernel_lens.prompts.corrupt_inputs import drawn_orders, reorder_demos
from icl_kernel_lens.prompts.corrupt_labels import shift_labels
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.prompts.relabel import interchangeable, relabelled, stacked
from icl_kernel_lens.results.label_influence import LabelInfluence, Pattern
from icl_kernel_lens.results.run_info import RunInfo
from icl_kernel_lens.results.task_accuracy import TaskAccuracy
from icl_kernel_lens.run.progress import work
from icl_kernel_lens.run.runner import BatchSize, tokens_to_run
from icl_kernel_lens.scores.in_context import in_context_accuracy

PATTERNS: tuple[Pattern, ...] = ("pair", "half", "all")
"""The joint replacements; each demonstration set is run with all but one of them, in turn."""
MOST_REPLACEMENTS = 5
"""Of more labels than these and its own, a demonstration's replacements are a sample."""
TIMED = 2
"""Prompts that are run to tell how long all will take."""


class InfluenceCost(NamedTuple):
    """What a measurement will cost, before it is begun."""

    runs: int
    """Prompts, relabelled and not."""
    tokens: int
    """Tokens that are run, as prompts share the others, in each process."""
    minutes: float
    """By the time that a few prompts took just now."""

    def __str__(self) -> str:
        minutes = f"about {self.minutes:.1f}" if self.minutes >= 0.1 else "less than 0.1"
        return f"{self.runs:,} prompts, {self.tokens:,} tokens to run, {minutes} minutes"


@checked
def label_influence(
    model: Any,
    prompts: PromptSet,
    *,
    orders: int = 2,
    accuracy: TaskAccuracy | None = None,
    seed: int = 0,
    batch_size: BatchSize = "auto",
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> LabelInfluence:
    """Measure the model's own kernel: how strongly each demonstration pulls the answer to its own label.

        G_i = (s_{y_i} − s_c)(P) − (s_{y_i} − s_c)(P with y_i → c)          the mean over labels c ≠ y_i

    s are the label scores: logits of first label tokens, or log-probabilities of whole labels. Nothing is assumed of heads,
    and what labels do not touch cancels. Of label logits s_c = s⁰_c(x) + β Σ_i w_i [y_i = c] with weights that ignore
    labels, G_i = 2 β w_i: the kernel, never negative, and additive. On probabilities over the labels the same holds of a
    Nadaraya–Watson regression as Han et al. (TMLR 2025, Eq. 6) write it; both scales are in the result.

    Measured beside G: all classes shifted together (the label part), two joint replacements in each demonstration set
    (additivity), and `orders` − 1 further random orders of the same demonstrations (what belongs to the pair and not to the
    place). Of more than six labels, each demonstration's replacements are a sample of five; labels of another token count
    would move what stands behind them, and are not put in. The notes of the result say what was left out.

    `accuracy`, where it was measured before, is used instead of running the model for it. `checkpoint` names a folder in
    which finished prompts are kept; the same call goes on from there. `influence_cost` says before what it will cost.

    Does not show: which heads carry it (`influence_fidelity`, `carried_influence`); why a demonstration pulls. Where labels
    of other demonstrations change how one is read, single effects do not add up: see `.additivity()`.
    Source: the definition is this library's own; kernel regression is Han et al. (TMLR 2025).

    Raises: PromptError: a demonstration does not show its label; no label could be replaced by one of equal length; labels
                of unequal token counts in prompts of token ids; no demonstrations. ModelError: logits are not finite.
            ResultError: the accuracy is of other prompts or another model.
    """
    adapter = as_adapter(model)
    plan = Plan.of(adapter, prompts, orders, seed)
    if accuracy is not None:
        accuracy.check_of(RunInfo.of(adapter, prompts.info, prompts.score_on), prompts)
    place = None if checkpoint is None else Path(checkpoint)
    settings: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    own = float(tokens_to_run(prompts, adapter))
    expected = [*(float(tokens_to_run(part, adapter)) for part in plan.parts)]
    with work("label influence", [*expected, *([own * 2] if accuracy is None else [])], progress):
        found = [
            answer(model, part, checkpoint=place and place / f"part {at}", **settings)
            for at, part in enumerate(plan.parts)
        ]
        scores = plan.taken_apart(found)
        accuracy = accuracy or in_context_accuracy(
            model, prompts, scores=scores["scores"][0], checkpoint=place and place / "accuracy", **settings
        )
    return LabelInfluence(
        prompts=prompts,
        **scores,
        places=plan.places,
        patterns=PATTERNS,
        pattern_labels=plan.pattern_labels,
        accuracy=accuracy,
        run=RunInfo.of(adapter, prompts.info, prompts.score_on),
        seed=seed,
        settings={"orders": str(orders), "prompts run": f"{sum(map(len, plan.parts)):,}"},
        notes=tuple(plan.notes()),
    )


@checked
def influence_cost(model: Any, prompts: PromptSet, *, orders: int = 2, seed: int = 0) -> InfluenceCost:
    """What `label_influence` will run: prompts, tokens, and about how many minutes (without the accuracy).

    Raises: PromptError: see `label_influence`.
    """
    adapter = as_adapter(model)
    plan = Plan.of(adapter, prompts, orders, seed)
    tokens = int(sum(tokens_to_run(part, adapter) for part in plan.parts))
    few = prompts.select(list(range(min(TIMED, len(prompts)))))
    answer(model, few, progress=False)  # what is verified and loaded once is not timed
    begun = time.monotonic()
    answer(model, few, progress=False)
    each = (time.monotonic() - begun) / tokens_to_run(few, adapter)
    return InfluenceCost(sum(map(len, plan.parts)), tokens, tokens * each / 60)


@dataclass(frozen=True)
class Plan:
    """Which relabelled prompts are run, and where each of their label scores belongs."""

    prompts: PromptSet
    every: tuple[PromptSet, ...]
    """The prompts in each order."""
    places: Int[Tensor, "order prompt demo"]
    put: Bool[Tensor, "prompt demo label"]
    """Which replacements are made, demonstrations numbered as in the first order."""
    joined: Bool[Tensor, "pattern prompt"]
    """Which prompts are run with each joint replacement."""
    pattern_labels: Int[Tensor, "pattern prompt demo"]
    parts: tuple[PromptSet, ...]
    """What is run: the distinct relabellings; and, of labels of unequal length, the shifted prompts apart."""
    rows: Int[Tensor, " request"]
    """Of each relabelling asked for, in the order of `_requests`, its row of the first part."""
    sizes: tuple[int, ...]
    """Of each block of relabellings."""

    @classmethod
    def of(cls, adapter: ModelAdapter, prompts: PromptSet, orders: int, seed: int) -> Plan:
        """The plan for these prompts.

        Raises: PromptError: see `label_influence`.
        """
        _check_request(prompts, orders)
        every, places = _in_orders(adapter, prompts, orders, seed)
        put = _replacements(prompts, seed)
        joined, labels = _joint(prompts, put, seed)
        even = bool((prompts.label_lengths == prompts.label_lengths[:, :1]).all())
        empty = torch.zeros(0, dtype=torch.long)
        plan = cls(prompts, every, places, put, joined, labels, (), empty, ())
        blocks = list(plan._requests(even=even))
        distinct, rows = torch.cat(blocks).unique(dim=0, return_inverse=True)
        relabelled_prompts = stacked(
            [
                relabelled(one, distinct[mine, 1], distinct[mine, 2:])
                for order, one in enumerate(every)
                if len(mine := (distinct[:, 0] == order).nonzero()[:, 0])
            ]
        )
        shifts = range(1, prompts.labels) if not even else ()
        apart = [shift_labels(prompts, by, adapter.model) for by in shifts]
        sizes = tuple(map(len, blocks))
        return replace(plan, parts=(relabelled_prompts, *apart), rows=rows, sizes=sizes)

    def _requests(self, *, even: bool) -> Iterator[Int[Tensor, "request column"]]:
        """(order, prompt, labels by place) of every relabelling, block by block."""
        numbers = torch.arange(len(self.prompts))

        def block(order: int, numbers: Tensor, labels: Tensor) -> Tensor:
            start = torch.stack([torch.full_like(numbers, order), numbers], 1)
            return torch.cat([start, labels], 1)

        prompt, at, label = self.put.nonzero(as_tuple=True)
        for order, one in enumerate(self.every):
            yield block(order, numbers, one.demo_labels)
            slot = self.places[order, prompt, at]
            labels = one.demo_labels[prompt].scatter(1, slot[:, None], label[:, None])
            yield block(order, prompt, labels)
        for by in range(1, self.prompts.labels) if even else ():
            yield block(0, numbers, (self.prompts.demo_labels + by) % self.prompts.labels)
        for joined, labels in zip(self.joined, self.pattern_labels, strict=True):
            yield block(0, numbers[joined], labels[joined])

    def taken_apart(self, found: list[Float[Tensor, "_ label"]]) -> dict[str, Tensor]:
        """The label scores of every relabelling, in the shapes of the result."""
        blocks = iter(found[0][self.rows].split(self.sizes))
        orders, count, labels = len(self.every), len(self.prompts), self.prompts.labels
        replaced = torch.full((orders, *self.put.shape, labels), torch.nan)
        scores = []
        for order in range(orders):
            scores.append(next(blocks))
            replaced[order, self.put] = next(blocks)
        shifts = found[1:] or [next(blocks) for _ in range(1, labels)]
        joint = torch.full((len(self.pattern_labels), count, labels), torch.nan)
        for at, joined in enumerate(self.joined):
            joint[at, joined] = next(blocks)
        return {
            "scores": torch.stack(scores),
            "replaced": replaced,
            "shifted": torch.stack([scores[0], *shifts], 1),
            "joint": joint,
        }

    def notes(self) -> Iterator[str]:
        """What must be said beside the numbers."""
        prompts = self.prompts
        possible = int(interchangeable(prompts).sum())
        other = prompts.demo_labels.numel() * (prompts.labels - 1)
        if possible < other:
            none = int((~self.put.any(-1)).sum())
            yield (
                f"{other - possible:,} of {other:,} replacements would move what stands behind them, as their label has "
                f"another number of tokens, and were not made; {none:,} of {prompts.demo_labels.numel():,} demonstrations "
                "have none"
            )
        if (made := int(self.put.sum())) < possible:
            yield f"of {possible:,} replacements {made:,} were made, a sample of {MOST_REPLACEMENTS} a demonstration"


def _check_request(prompts: PromptSet, orders: int) -> None:
    if prompts.demos < 2:
        raise PromptError(
            f"labels are replaced in prompts of at least 2 demonstrations; these have {prompts.demos}.",
            code="too-few-demonstrations",
        )
    _check_sets(prompts)
    if orders < 1:
        raise PromptError(f"orders must be at least 1, the prompts' own; got {orders}.", code="number-range")


def _check_sets(prompts: PromptSet) -> None:
    """Refuse prompts said to share their demonstrations that do not: they would be taken for one set.

    Raises: PromptError: the first two of them.
    """
    ends = prompts.demo_spans[:, -1, 1]
    seen: dict[int, int] = {}
    for number, group in enumerate(prompts.demo_set.tolist()):
        first = seen.setdefault(group, number)
        one, two = (prompts.tokens[n, : int(ends[n])] for n in (first, number))
        if not torch.equal(one, two):
            raise PromptError(
                f"prompts of one demo_set must show the same demonstrations; prompts {first} and {number} (set {group}) differ "
                "up to the end of their demonstrations. Give demo_set= as they are, or leave it out.",
                code="not-comparable",
            )


def _in_orders(
    adapter: ModelAdapter, prompts: PromptSet, orders: int, seed: int
) -> tuple[tuple[PromptSet, ...], Int[Tensor, "order prompt demo"]]:
    """The prompts with their demonstrations in several orders, and where each demonstration stands in them."""
    every, places = [prompts], [torch.arange(prompts.demos).expand(len(prompts), -1)]
    for order in range(1, orders):
        found, _ = reorder_demos(prompts, seed + order, model=adapter.model)
        every.append(found)
        places.append(torch.tensor(drawn_orders(prompts, seed + order)).argsort(1))
    return tuple(every), torch.stack(places)


def _replacements(prompts: PromptSet, seed: int) -> Bool[Tensor, "prompt demo label"]:
    """The labels that are put in each demonstration's place: all of equal length, or a sample, the same in a set.

    Raises: PromptError: there are none.
    """
    possible = interchangeable(prompts)
    if not possible.any():
        lengths = prompts.label_lengths[0].tolist()
        words = ", ".join(f"{w!r} ({n})" for w, n in zip(prompts.label_words[0], lengths, strict=True))
        raise PromptError(
            "a label can be replaced in place only by one of equally many tokens, and no two labels here have: "
            f"{words} (token counts). Choose label words of equally many tokens in label_words.",
            code="label-lengths",
        )
    if prompts.labels - 1 <= MOST_REPLACEMENTS:
        return possible
    draws = {
        group: torch.rand(possible.shape[1:], generator=generator(seed, group))
        for group in prompts.demo_set.unique().tolist()
    }
    order = torch.stack([draws[group] for group in prompts.demo_set.tolist()]).masked_fill(~possible, -1)
    kept = order.topk(MOST_REPLACEMENTS, -1).indices
    return possible & torch.zeros_like(possible).scatter(-1, kept, True)


def _joint(
    prompts: PromptSet, put: Bool[Tensor, "prompt demo label"], seed: int
) -> tuple[Bool[Tensor, "pattern prompt"], Int[Tensor, "pattern prompt demo"]]:
    """Which prompts are run under each of `PATTERNS`, and their labels under it, the same in a set.

    Labels that are replaced together are replaced singly, too, so that the sum is of what was measured. A replacement of one
    label alone (half of three) is left out, as it adds up whatever the model does; unless no two labels can be replaced.
    """
    sets = prompts.demo_set.unique()
    order = sets[torch.randperm(len(sets), generator=generator(seed))].tolist()
    joined = torch.ones(len(PATTERNS), len(prompts), dtype=torch.bool)
    labels = prompts.demo_labels.expand(len(PATTERNS), -1, -1).clone()
    for turn, group in enumerate(order):
        source = generator(seed + 1, group)
        members = (prompts.demo_set == group).nonzero()[:, 0]
        free = put[members[0]].any(-1).nonzero()[:, 0]
        other = torch.rand(put.shape[1:], generator=source).masked_fill(~put[members[0]], -1).argmax(-1)
        if len(sets) >= len(PATTERNS):
            joined[turn % len(PATTERNS), members] = False
        for at, pattern in enumerate(PATTERNS):
            size = {"pair": 2, "half": len(free) // 2, "all": len(free)}[pattern]
            chosen = free[torch.randperm(len(free), generator=source)[:size]]
            row = prompts.demo_labels[members[0]].clone()
            row[chosen] = other[chosen]
            labels[at, members] = row
            if size < 2 <= len(free):
                joined[at, members] = False
    return joined, labels
