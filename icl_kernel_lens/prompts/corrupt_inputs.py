"""Prompts whose inputs stand elsewhere: exchanged among the demonstrations of a prompt, or moved with their labels to
another place in the order (a kernel regression does not depend on it, a model may); or the test inputs among prompts."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import torch

from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.prompts.build import rewritten
from icl_kernel_lens.prompts.promptset import TEXT_ROLES, PromptSet, respelled
from icl_kernel_lens.prompts.spans import input_layout


def exchange_inputs(prompts: PromptSet, seed: int) -> tuple[PromptSet, str]:
    """The inputs are permuted among demonstrations of a prompt that have the same layout; see `corrupt`."""
    where = torch.arange(prompts.tokens.shape[1]).repeat(len(prompts), 1)
    sources = []
    moved = 0
    for prompt, group in enumerate(prompts.demo_set.tolist()):
        layouts, places = inputs_of(prompts, prompt)
        inputs = [prompts.tokens[prompt, row].tolist() for row in places]
        alike: dict[tuple[int, ...], list[int]] = {}
        for demo, layout in enumerate(layouts):
            alike.setdefault(layout, []).append(demo)
        if all(inputs[i] == inputs[demos[0]] for demos in alike.values() for i in demos):
            raise PromptError(
                "inputs can be exchanged only between demonstrations whose inputs have equally many tokens; "
                f"prompt {prompt} has no two such, other than equal ones: {_inputs_shown(prompts, prompt, inputs)}. "
                "Draw the prompts with task.prompts(..., match_lengths=True).",
                code="unequal-lengths",
            )
        rng = random.Random(f"exchange_inputs/{seed}/{group}")
        source = list(range(prompts.demos))
        while all(inputs[i] == inputs[j] for i, j in enumerate(source)):
            for demos in alike.values():
                for i, j in zip(demos, rng.sample(demos, len(demos)), strict=True):
                    source[i] = j
        for i, j in enumerate(source):
            moved += inputs[i] != inputs[j]
            where[prompt, places[i]] = torch.tensor(places[j], dtype=torch.long)
        sources.append(source)
    episodes = prompts.episodes and tuple(
        replace(
            e, demos=tuple(replace(d, texts=e.demos[j].texts) for d, j in zip(e.demos, source, strict=True))
        )
        for e, source in zip(prompts.episodes, sources, strict=True)
    )
    other = int((prompts.demo_labels.gather(1, torch.tensor(sources)) != prompts.demo_labels).sum())
    every = prompts.demo_labels.numel() / 100
    what = f"{moved / every:.1f}% of inputs changed, {other / every:.1f}% to one of another class"
    return prompts.rearranged(where, episodes=episodes), what


def inputs_of(prompts: PromptSet, prompt: int) -> tuple[list[tuple[int, ...]], list[list[int]]]:
    """The layout of each demonstration's input, which exchanged ones must share, and the positions of its tokens."""
    ids, roles = prompts.tokens[prompt].tolist(), prompts.roles[prompt].tolist()
    spans = prompts.demo_spans[prompt].tolist()
    places = [[at for at in range(start, end) if roles[at] in TEXT_ROLES] for start, end in spans]
    return [input_layout(ids, roles, start, end) for start, end in spans], places


def replace_test_input(prompts: PromptSet, seed: int) -> tuple[PromptSet, str]:
    """Each test input gives way to another prompt's of equally many tokens; see `corrupt`."""
    tokens, roles = prompts.tokens.tolist(), prompts.roles.tolist()
    spans = [_test_span(prompts, prompt) for prompt in range(len(prompts))]
    tails = [row[a:b] for row, (a, b) in zip(tokens, spans, strict=True)]
    texts = [
        [row[at] for at in range(a, b) if own[at] in TEXT_ROLES]
        for row, own, (a, b) in zip(tokens, roles, spans, strict=True)
    ]
    alike: dict[int, list[int]] = {}
    for prompt, tail in enumerate(tails):
        alike.setdefault(len(tail), []).append(prompt)
    rng = random.Random(f"replace_test_input/{seed}")
    donors = []
    for prompt, tail in enumerate(tails):
        shown = [[tokens[prompt][at] for at in row] for row in inputs_of(prompts, prompt)[1]]
        same = [p for p in alike[len(tail)] if p != prompt]
        fit = [p for p in same if tails[p] != tail and texts[p] not in shown]
        if not fit:
            counts = ", ".join(f"{n} ({len(alike[n])})" for n in sorted(alike))
            raise PromptError(
                "a test input can be replaced only by another prompt's of equally many tokens; the one of prompt "
                f"{prompt}, {_test_text(prompts, prompt)!r}, has {len(tail)} with its template, as have {len(same)} "
                "others, none of them different from it and from its demonstrations. Lengths found (prompts): "
                f"{counts}. Draw more prompts, or with task.prompts(..., match_lengths=True).",
                code="unequal-lengths",
            )
        donors.append(rng.choice(fit))
    where = torch.arange(prompts.tokens.shape[1]).repeat(len(prompts), 1)
    rows = torch.arange(len(prompts))[:, None].expand_as(where).clone()
    for prompt, donor in enumerate(donors):
        start, end = spans[prompt]
        where[prompt, start:end] = torch.arange(*spans[donor])
        rows[prompt, start:end] = donor
    found = prompts.rearranged(
        where,
        rows=rows,
        test_labels=None if prompts.test_labels is None else prompts.test_labels[donors],
        strings=_strings(prompts, donors, spans),
        episodes=prompts.episodes
        and tuple(
            replace(e, test=prompts.episodes[donor].test)
            for e, donor in zip(prompts.episodes, donors, strict=True)
        ),
    )
    return found, "every test input replaced by another prompt's"


def _test_span(prompts: PromptSet, prompt: int) -> tuple[int, int]:
    """The positions of a prompt's test input, from the end of the last demonstration to the answer."""
    start = int(prompts.demo_spans[prompt, -1, 1]) if prompts.demos else 0
    return start, int(prompts.answer_pos[prompt]) + 1


def _strings(
    prompts: PromptSet, donors: list[int], spans: list[tuple[int, int]]
) -> tuple[tuple[str, ...], ...]:
    """The token strings with the test inputs replaced, up to the first prompt where one cannot be known."""
    found: list[tuple[str, ...]] = []
    for prompt, row in enumerate(prompts.strings):
        new = _tail_strings(prompts, prompt, donors[prompt], spans)
        if new is None:
            break
        start, end = spans[prompt]
        found.append((*row[:start], *new, *row[end:]))
    return tuple(found)


def _tail_strings(
    prompts: PromptSet, prompt: int, donor: int, spans: list[tuple[int, int]]
) -> list[str] | None:
    """The token strings of another prompt's test input; None where they cannot be known."""
    (start, end), (begin, until) = spans[prompt], spans[donor]
    if donor < len(prompts.strings):
        return list(prompts.strings[donor][begin:until])
    old, ids = prompts.strings[prompt][start:end], prompts.tokens[donor, begin:until].tolist()
    if list(old) == [f"{token} " for token in prompts.tokens[prompt, start:end].tolist()]:
        return [f"{token} " for token in ids]
    if prompts.episodes is None:
        return None
    before, after = prompts.roles[prompt, start:end].tolist(), prompts.roles[donor, begin:until].tolist()
    found = [""] * len(ids)
    for role in set(before) | set(after):
        own = [string for string, r in zip(old, before, strict=True) if r == role]
        places = [at for at, r in enumerate(after) if r == role]
        if role in TEXT_ROLES:
            field = TEXT_ROLES.index(role)
            was, now = (prompts.episodes[p].test.texts[field].strip() for p in (prompt, donor))
            own = respelled(own, was, now, [ids[at] for at in places])
        if len(own) != len(places):
            return None
        for at, string in zip(places, own, strict=True):
            found[at] = string
    return found


def _inputs_shown(prompts: PromptSet, prompt: int, inputs: list[list[int]]) -> str:
    """The first inputs of a prompt's demonstrations with their token counts, for an error."""
    if prompts.episodes is not None:
        texts = [" / ".join(demo.texts) for demo in prompts.episodes[prompt].demos]
    elif prompt < len(prompts.strings):
        texts = list(prompts.demo_texts(prompt))
    else:
        texts = ["" for _ in inputs]
    shown = [
        f"{len(ids)} tokens" + (f" {text if len(text) <= 40 else text[:37] + '…'!r}" if text else "")
        for ids, text in zip(inputs, texts, strict=True)
    ]
    return "; ".join(shown[:8]) + (f"; and {len(shown) - 8} more" if len(shown) > 8 else "")


def _test_text(prompts: PromptSet, prompt: int) -> str:
    """A prompt's test input for an error, cut to 60 characters."""
    start, end = _test_span(prompts, prompt)
    if prompts.episodes is not None:
        text = " / ".join(prompts.episodes[prompt].test.texts)
    elif prompt < len(prompts.strings):
        text = "".join(prompts.strings[prompt][start:end]).strip()
    else:
        text = " ".join(map(str, prompts.tokens[prompt, start:end].tolist()))
    return text if len(text) <= 60 else text[:57] + "…"


def reorder_demos(prompts: PromptSet, seed: int, *, model: Any) -> tuple[PromptSet, str]:
    """The demonstrations of each prompt in a random order, the same in prompts of one set; see `corrupt`."""
    if prompts.demos < 2:
        raise PromptError(
            f"at least two demonstrations can be reordered; these prompts have {prompts.demos}.",
            code="too-few-demonstrations",
        )
    orders = drawn_orders(prompts, seed)
    moved = sum(i != j for order in orders for i, j in enumerate(order))
    what = f"{100 * moved / prompts.demo_labels.numel():.1f}% of demonstrations moved"
    if not prompts.from_text:
        return _moved(prompts, orders), what
    if model is None:
        raise PromptError(
            "prompts made from text are written anew in another order; pass model= for its tokenizer.",
            code="tokenizer",
        )
    episodes = [
        replace(episode, demos=tuple(episode.demos[i] for i in order))
        for episode, order in zip(prompts.episodes or (), orders, strict=True)
    ]
    return rewritten(prompts, episodes, model), what


def drawn_orders(prompts: PromptSet, seed: int) -> list[list[int]]:
    """Of each prompt, the demonstration that `reorder_demos` puts at each place."""
    orders = []
    for group in prompts.demo_set.tolist():
        order = list(range(prompts.demos))
        random.Random(f"reorder/{seed}/{group}").shuffle(order)
        orders.append(order)
    return orders


def _moved(prompts: PromptSet, orders: list[list[int]]) -> PromptSet:
    """The same token ids with the demonstrations' spans moved, and what separates them where it was in order."""
    where = torch.arange(prompts.tokens.shape[1]).repeat(len(prompts), 1)
    spans, labels = prompts.demo_spans.clone(), prompts.label_spans.clone()
    for number, order in enumerate(orders):
        old = prompts.demo_spans[number].tolist()
        first = at = old[0][0]
        source: list[int] = []
        for slot, demo in enumerate(order):
            start, end = old[demo]
            spans[number, slot] = torch.tensor([at, at + end - start])
            labels[number, slot] = prompts.label_spans[number, demo] + at - start
            behind = range(old[slot][1], old[slot + 1][0]) if slot + 1 < len(order) else ()
            source += [*range(start, end), *behind]
            at = first + len(source)
        where[number, first:at] = torch.tensor(source)
    return prompts.rearranged(
        where,
        demo_spans=spans,
        label_spans=labels,
        demo_labels=prompts.demo_labels.gather(1, torch.tensor(orders)),
        episodes=None,
    )
