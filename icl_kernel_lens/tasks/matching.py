"""Episodes whose inputs have equally many tokens, so that `corrupt` can exchange them without moving a position.

Demonstrations take the commonest length that has enough examples. Test inputs take one length too where enough have
it; else as few lengths as hold the number asked for, each shared by two test inputs or more. Longer and shorter texts
are not drawn, and what a model does with them is not seen.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import mode
from typing import NamedTuple

from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.models.adapter import ModelAdapter
from icl_kernel_lens.prompts.example import Episode, Example
from icl_kernel_lens.prompts.promptset import TEXT_ROLES
from icl_kernel_lens.prompts.spans import input_layout, locate_prompts
from icl_kernel_lens.prompts.template import Template


class Layout(NamedTuple):
    """The layouts of an example at the places of a prompt where it can stand."""

    demo: tuple[tuple[int, ...], ...]
    """Its `input_layout` in the first demonstration of a prompt, and in a later one."""
    test: int
    """As the test input: the number of tokens from the end of the last demonstration to the answer position."""


def find_layouts(
    adapter: ModelAdapter, template: Template, examples: Sequence[Example], word: str
) -> list[Layout]:
    """The layout of each example, written twice as a demonstration (labelled `word`) and as the test input."""
    shown = [replace(example, label=0) for example in examples]
    episodes = [Episode((example, example), example, (word,), 0) for example in shown]
    return [
        Layout(
            tuple(input_layout(prompt.ids, prompt.roles, start, end) for start, end in prompt.demo_spans),
            len(prompt.ids) - prompt.demo_spans[-1][1],
        )
        for prompt in locate_prompts(adapter, episodes, template, None)
    ]


def class_counts(pool: Sequence[Example], classes: int) -> list[int]:
    """Examples of each class."""
    return [sum(example.label == label for example in pool) for label in range(classes)]


def demos_of_one_length(
    pool: Sequence[Example], layouts: Sequence[Layout], *, demos: int, each: int, classes: int, name: str
) -> tuple[Example, ...]:
    """The examples of the commonest layout as a demonstration that has `demos` of them, and `each` of every class.

    Raises: PromptError: no layout has, with the counts found.
    """
    groups: defaultdict[tuple[tuple[int, ...], ...], list[Example]] = defaultdict(list)
    for example, layout in zip(pool, layouts, strict=True):
        groups[layout.demo].append(example)

    if fit := [g for g in groups.values() if len(g) >= demos and min(class_counts(g, classes)) >= each]:
        return tuple(max(fit, key=len))
    found = sorted(groups.items(), key=lambda item: -len(item[1]))[:4]
    shown = "; ".join(
        f"{sum(role in TEXT_ROLES for role in layout[-1])} tokens: {len(group)} "
        f"({', '.join(map(str, class_counts(group, classes)))})"
        for layout, group in found
    )
    raise PromptError(
        f"demonstrations of equal length need {demos} examples whose inputs have equally many tokens, and "
        f"{each} of every class; the train pool of {name!r} has at most, with the counts of its "
        f"classes, {shown}. Ask for fewer demonstrations, or give more examples.",
        code="task-pool",
    )


def tests_of_few_lengths(
    pool: Sequence[Example], layouts: Sequence[Layout], *, count: int, seed: int, name: str
) -> tuple[Example, ...]:
    """Test inputs of the commonest lengths: all of one that has `count`, or `count` of several, none alone.

    Raises: PromptError: too few share their length with another, with the counts found.
    """
    lengths: defaultdict[int, list[Example]] = defaultdict(list)
    for example, layout in zip(pool, layouts, strict=True):
        lengths[layout.test].append(example)
    groups = sorted(lengths.values(), key=len, reverse=True)
    if len(groups[0]) >= count:
        return tuple(groups[0])
    rng = random.Random(f"match_lengths/{name}/{seed}")
    chosen: list[list[Example]] = []
    missing = count
    for group in groups:
        if missing and len(group) > 1:
            chosen.append(rng.sample(group, min(missing, len(group))))
            missing -= len(chosen[-1])
    if not missing and len(chosen[-1]) == 1 and len(chosen[0]) > 2:
        # One left over would stand alone: its place goes to a second of its length.
        chosen[0].pop()
        twin = next(group for group in groups if chosen[-1][0] in group)
        chosen[-1] = rng.sample(twin, 2)
    if missing or len(chosen[-1]) == 1:
        most = ", ".join(str(len(group)) for group in groups[:6])
        raise PromptError(
            f"test inputs of equal length need {count} that share their number of tokens with another; the test "
            f"pool of {name!r} has {sum(len(g) for g in groups if len(g) > 1)} such of {len(pool)} (the "
            f"commonest lengths have {most} each). Ask for fewer prompts, or give more examples.",
            code="task-pool",
        )
    return tuple(example for group in chosen for example in group)


def episodes_of_one_length(
    draw: Callable[..., list[Episode]],
    adapter: ModelAdapter,
    template: Template,
    *,
    classes: int,
    name: str,
    demos: int,
    count: int,
    seed: int,
    sets: int | None,
    balanced: bool,
    given: Sequence[Example] | None,
) -> list[Episode]:
    """Episodes of a world that can `draw` any number: it draws more than needed, and the first of one length are kept.

    Raises: PromptError: those drawn hold too few.
    """
    each = count if sets is None else count // sets
    drawn = draw(
        demos=demos and 6 * demos + 48,
        count=count * (4 + -(-32 // each)),
        seed=seed,
        sets=sets,
        balanced=balanced,
        given=given,
    )
    word = drawn[0].label_words[0]
    tests = find_layouts(adapter, template, [episode.test for episode in drawn], word)
    length = mode(layout.test for layout in tests)
    kept: defaultdict[int, list[Episode]] = defaultdict(list)
    for episode, layout in zip(drawn, tests, strict=True):
        row = kept[0 if sets is None else episode.demo_set]
        if layout.test == length and len(row) < each:
            row.append(episode)
    found = [episode for row in kept.values() for episode in row]
    shown = [demo for episode in found for demo in episode.demos]
    layouts = [layout.demo for layout in find_layouts(adapter, template, shown, word)] if shown else []
    common = mode(layouts) if layouts else None
    at = iter(layouts)
    for place, episode in enumerate(found):
        fit = [demo for demo in episode.demos if next(at) == common]
        chosen = _first_of_each_class(fit, demos, classes, episode.demo_set if balanced else None)
        if len(found) < count or len(chosen) < demos:
            raise PromptError(
                f"{name!r} has too few inputs of equal length: of those drawn, {len(found)} test inputs of "
                f"{count} and {len(chosen)} demonstrations of {demos} (set {episode.demo_set}). Ask for fewer.",
                code="task-pool",
            )
        found[place] = replace(episode, demos=chosen, demo_set=place if sets is None else episode.demo_set)
    return found


def _first_of_each_class(
    fit: list[Example], demos: int, classes: int, balanced: int | None
) -> tuple[Example, ...]:
    """The first `demos` examples; `balanced`: equally many of each class, sets by number taking turns at one more."""
    quota = [demos] * classes
    if balanced is not None:
        quota = [demos // classes + ((c - balanced) % classes < demos % classes) for c in range(classes)]
    chosen: list[Example] = []
    for demo in fit:
        if quota[demo.label] and len(chosen) < demos:
            quota[demo.label] -= 1
            chosen.append(demo)
    return tuple(chosen)
