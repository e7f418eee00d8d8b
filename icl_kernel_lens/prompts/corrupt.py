"""Prompts with one thing made wrong, and every token still in its place.

`corrupt` takes prompts and gives the same prompts with their labels permuted, their label words replaced, or
their inputs exchanged. Lengths, demonstrations, labels and answers keep their positions, so that whatever is
read from the two can be compared, or put from one into the other, position by position. What would move a
position is refused. It works on token ids; only label words given as text need a tokenizer.

`matched_episodes` draws prompts whose inputs have equal lengths, so that there is something to exchange.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from math import comb, factorial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.models import as_lens
from icl_kernel_lens.prompts.build import Layout, build_prompts, find_layouts, input_layout
from icl_kernel_lens.prompts.promptset import PromptSet, Role
from icl_kernel_lens.tasks.task import Episode, EpisodeSource, Example, Task, check_counts, shared_sets

Corruption = Literal[
    "permute_labels", "map_labels", "unrelated_words", "exchange_inputs", "replace_test_input"
]

TRIES = 100
"""Permutations drawn in the hope that every label changes, before such a one is built by counting."""
_TEXTS = (int(Role.TEXT), int(Role.TEXT2))


def corrupt(
    prompts: PromptSet,
    how: Corruption,
    *,
    seed: int,
    derange: bool = False,
    model: Any = None,
    words: Sequence[str] | Tensor | None = None,
) -> PromptSet:
    """The same prompts with one thing made wrong, and no position moved.

    `how`:
    - `"permute_labels"`: the labels are dealt out anew among the demonstrations of a prompt, uniformly over
      permutations. `derange=True` draws uniformly among the assignments in which every demonstration's label
      changes class.
    - `"map_labels"`: every class's label is replaced by another class's, by one map for all prompts; with two
      classes they are exchanged. The map is in `info.corruption`.
    - `"unrelated_words"`: `words`, one a class, replace the label words, in the demonstrations and as answers.
      They are text (`model` brings the tokenizer) or token ids (`label`, or `prompt label`). Nothing is drawn.
    - `"exchange_inputs"`: the inputs are dealt out anew among demonstrations of a prompt whose inputs have
      equally many tokens; labels stay. At least one demonstration gets another input.
    - `"replace_test_input"`: each test input gives way to one drawn from the other prompts' test inputs of
      equally many tokens, none of which its demonstrations show; `test_labels` follows it.

    Prompts with the same `demo_set` are dealt the same permutation, and go on sharing their demonstrations.
    What was done, and the share of labels or inputs that changed, stands in `info.corruption`. Permuted
    labels are the random labels of Min et al. (2022, section 4), but each prompt keeps its label counts;
    mapped labels and unrelated words are the flipped and the semantically-unrelated labels of Wei et al. (2023).
    That no position moves is ours.

    Does not show: that a model ignores labels, where few changed: a permutation may leave most of them as they
    were. Under the first two kinds, `test_labels` stays the class of the test input before any mapping. Where
    classes mean something else in every prompt (the topics world), the `test_labels` of replaced test inputs
    are their classes in the prompts that they came from, and no truth in those where they now stand.
    Exchanged inputs of one class leave the pairing of inputs and labels as it was; see the share.
    Where a template begins with the text, the tokens of the first input may lack the space that those of the
    others carry; they are moved as they are. In ready-made ids without `demo_spans`, what separates
    demonstrations counts as input.

    Raises:   PromptError: a position would move (with the words or texts and their token counts), nothing
              can be exchanged, or a demonstration does not show its class's label.
    Example:

    >>> from icl_kernel_lens.evidence.small import small_evidence
    >>> corrupt(small_evidence().prompts, "map_labels", seed=0).info.corruption
    'map_labels, seed 0, classes 0→1, 1→0, 100.0% of labels changed'
    """
    _check_request(prompts, how, derange, words)
    match how:
        case "permute_labels":
            found, what = _permute_labels(prompts, seed, derange)
        case "map_labels":
            found, what = _map_labels(prompts, seed)
        case "unrelated_words":
            assert words is not None
            found, what = _unrelated_words(prompts, words, model)
        case "exchange_inputs":
            found, what = _exchange_inputs(prompts, seed)
        case "replace_test_input":
            found, what = _replace_test_input(prompts, seed)
    before = f"{prompts.info.corruption}; then " if prompts.info.corruption else ""
    sentence = f"{before}{how}, seed {seed}, {what}"
    return replace(found, info=replace(found.info, corruption=sentence))


def _check_request(prompts: PromptSet, how: str, derange: bool, words: object) -> None:
    if how not in get_args(Corruption):
        raise PromptError(f"how must be one of {', '.join(map(repr, get_args(Corruption)))}; got {how!r}.")
    if derange and how != "permute_labels":
        raise PromptError(f'derange=True belongs to "permute_labels"; got it with {how!r}. Leave it out.')
    if (words is None) is (how == "unrelated_words"):
        got = "none were given" if words is None else f"got them with {how!r}"
        raise PromptError(
            f'words=, one a class, belong to "unrelated_words"; {got}. '
            + ("Give the new label words." if words is None else "Leave them out.")
        )
    if prompts.demos == 0 and how != "replace_test_input":
        raise PromptError(
            f"{how!r} changes demonstrations, and these prompts have none. Draw prompts with demos=1 or more."
        )


# Labels


def _permute_labels(prompts: PromptSet, seed: int, derange: bool) -> tuple[PromptSet, str]:
    _check_labels_shown(prompts)
    shown = prompts.label_lengths.gather(1, prompts.demo_labels)
    if (uneven := (shown != shown[:, :1]).any(1)).any():
        prompt = int(uneven.nonzero()[0])
        raise PromptError(
            "labels can be permuted only where they have equally many tokens, or positions move; prompt "
            f"{prompt} shows {_counted(prompts, prompt, prompts.demo_labels[prompt].unique().tolist())}. "
            "Choose label words of equally many tokens in label_words."
        )
    rows = []
    for prompt, (labels, group) in enumerate(
        zip(prompts.demo_labels.tolist(), prompts.demo_set.tolist(), strict=True)
    ):
        rng = random.Random(f"permute_labels/{seed}/{group}")
        most, times = Counter(labels).most_common(1)[0]
        if derange and 2 * times > len(labels):
            raise PromptError(
                "every label can change class only where no class has more than half of the demonstrations; "
                f"prompt {prompt} shows {_word(prompts, prompt, most)!r} in {times} of {len(labels)}. Draw the "
                "prompts with balanced=True and as many demonstrations as a multiple of the classes, or pass "
                "derange=False."
            )
        rows.append(_deranged(labels, rng) if derange else rng.sample(labels, len(labels)))
    found = _relabelled(prompts, torch.tensor(rows))
    return found, f"{'deranged, ' if derange else ''}{_share_changed(prompts, found)} of labels changed"


def _share_changed(before: PromptSet, after: PromptSet) -> str:
    return f"{100 * float((before.demo_labels != after.demo_labels).double().mean()):.1f}%"


def _deranged(labels: list[int], rng: random.Random) -> list[int]:
    """A uniform draw among the assignments of these labels in which none stays where its class was."""
    for _ in range(TRIES):
        drawn = rng.sample(labels, len(labels))
        if all(new != old for new, old in zip(drawn, labels, strict=True)):
            return drawn
    return _deranged_by_counting(labels, rng)


def _deranged_by_counting(labels: list[int], rng: random.Random) -> list[int]:
    """The same draw, label by label, each in proportion to the ways of placing those that are left.

    Balanced labels of two classes have one such assignment among thousands: waiting for it is no use.
    """
    places, left = Counter(labels), Counter(labels)
    drawn = []
    for old in labels:
        places[old] -= 1
        options, ways = [], []
        for new in left:
            if new != old and left[new]:
                after = ((places[c], left[c] - (c == new)) for c in left)
                options.append(new)
                ways.append(left[new] * _ways(tuple(sorted(after))))
        at, chosen = rng.randrange(sum(ways)), 0
        while at >= ways[chosen]:
            at -= ways[chosen]
            chosen += 1
        drawn.append(options[chosen])
        left[options[chosen]] -= 1
    return drawn


@lru_cache(maxsize=1 << 16)
def _ways(classes: tuple[tuple[int, int], ...]) -> int:
    """Ways to place labels, none where its class was; for each class its places and its labels, still free.

        Σ_k (−1)^k r_k (n − k)!     Riordan (1958), chapter 7: permutations with forbidden positions

    where Σ r_k x^k, the rook polynomial, is the product of the classes' own.
    """
    rooks = [1]
    for places, labels in classes:
        own = [comb(places, k) * comb(labels, k) * factorial(k) for k in range(min(places, labels) + 1)]
        product = [0] * (len(rooks) + len(own) - 1)
        for i, a in enumerate(rooks):
            for j, b in enumerate(own):
                product[i + j] += a * b
        rooks = product
    free = sum(places for places, _ in classes)
    return sum((-1) ** k * r * factorial(free - k) for k, r in enumerate(rooks))


def _map_labels(prompts: PromptSet, seed: int) -> tuple[PromptSet, str]:
    _check_labels_shown(prompts)
    # Asked of all classes and not of the map drawn: else some seeds would pass, with maps within one length only.
    if (uneven := (prompts.label_lengths != prompts.label_lengths[:, :1]).any(1)).any():
        prompt = int(uneven.nonzero()[0])
        raise PromptError(
            "labels can be mapped to other classes only where all have equally many tokens, or positions move; "
            f"prompt {prompt} has {_counted(prompts, prompt, range(prompts.labels))}. Choose label words of "
            "equally many tokens in label_words."
        )
    rng = random.Random(f"map_labels/{seed}")
    targets = list(range(prompts.labels))
    while any(old == new for old, new in enumerate(targets)):
        rng.shuffle(targets)
    found = _relabelled(prompts, torch.tensor(targets)[prompts.demo_labels])
    shown = ", ".join(f"{old}→{new}" for old, new in enumerate(targets))
    return found, f"classes {shown}, {_share_changed(prompts, found)} of labels changed"


def _unrelated_words(prompts: PromptSet, words: Sequence[str] | Tensor, model: Any) -> tuple[PromptSet, str]:
    _check_labels_shown(prompts)
    if isinstance(words, Tensor):
        found = _words_from_ids(prompts, words)
        what = f"{prompts.labels} tokens"
        if (found.label_words[0],) * len(found) == found.label_words:
            what = ", ".join(map(repr, found.label_words[0]))
    else:
        found = _words_from_text(prompts, words, model)
        what = ", ".join(map(repr, words))
    _check_new_words(prompts, found)
    return found, f"label words {what}"


def _words_from_ids(prompts: PromptSet, words: Tensor) -> PromptSet:
    ids = torch.as_tensor(words).detach().cpu()
    shape = (len(prompts), prompts.labels)
    if ids.is_floating_point() or ids.is_complex() or ids.shape not in (shape, shape[1:]):
        raise PromptError(
            f"token ids of new label words must be whole numbers of shape {shape[1:]} or {shape}; they have shape "
            f"{tuple(ids.shape)} and type {ids.dtype}."
        )
    if int(ids.min()) < 0:
        raise PromptError(f"token ids of new label words must not be negative; found {int(ids.min())}.")
    sequences = ids.long().expand(shape)[..., None].clone()
    names = tuple(tuple(f"token {t}" for t in row) for row in sequences[..., 0].tolist())
    _check_lengths(prompts, torch.ones_like(prompts.label_lengths), names)
    _check_first_tokens(sequences[..., 0], names)
    tokens = _with_labels(prompts, prompts.demo_labels, sequences)
    return replace(
        prompts,
        tokens=tokens,
        label_sequences=sequences,
        label_lengths=torch.ones_like(prompts.label_lengths),
        label_words=names,
        strings=_label_strings(prompts, tokens, prompts.demo_labels, names),
        episodes=None,
    )


def _words_from_text(prompts: PromptSet, words: Sequence[str], model: Any) -> PromptSet:
    if isinstance(words, str) or len(words) != prompts.labels or not all(w.strip() for w in words):
        given = [words] if isinstance(words, str) else list(words)
        raise PromptError(f"every class needs one new label word; {prompts.labels} are needed, got {given}.")
    if prompts.episodes is None or prompts.info.template is None:
        raise PromptError(
            "label words given as text can be written only into prompts made from text in this session; these "
            "came from token ids or from a file. Give token ids in words=."
        )
    if model is None:
        raise PromptError("label words given as text need a tokenizer. Pass model=, or token ids in words=.")
    found = build_prompts(
        as_lens(model),
        [replace(episode, label_words=tuple(words)) for episode in prompts.episodes],
        prompts.info.template,
        info=prompts.info,
        classes=prompts.classes,
        score_on=prompts.score_on,
        prepend_bos=prompts.info.bos_asked,
    )
    _check_lengths(prompts, found.label_lengths, found.label_words)
    _check_first_tokens(found.label_tokens, found.label_words)
    # Written by ids, and compared with what the tokenizer made of the whole text.
    expected = _with_labels(prompts, prompts.demo_labels, found.label_sequences)
    width = min(expected.shape[1], found.tokens.shape[1])
    moved = prompts.lengths != found.lengths
    moved |= (expected[:, :width] != found.tokens[:, :width]).any(1)
    moved |= (prompts.label_spans != found.label_spans).any(2).any(1)
    if moved.any():
        prompt = int(moved.nonzero()[0])
        raise PromptError(
            "a new label word must leave the tokens around it as they were; in prompt "
            f"{prompt} ({int(prompts.lengths[prompt])} tokens before, {int(found.lengths[prompt])} after) "
            f"{list(words)} do not. The tokenizer merges them with the template, or the prompts were made with "
            "another tokenizer. Choose other words."
        )
    return replace(
        prompts,
        tokens=expected,
        label_sequences=found.label_sequences,
        label_words=found.label_words,
        strings=found.strings[: len(prompts.strings)],
        episodes=found.episodes,
    )


def _check_lengths(prompts: PromptSet, lengths: Tensor, words: Sequence[tuple[str, ...]]) -> None:
    if (wrong := lengths != prompts.label_lengths).any():
        prompt = int(wrong.any(1).nonzero()[0])
        pairs = ", ".join(
            f"{_word(prompts, prompt, c)!r} ({int(prompts.label_lengths[prompt, c])}) → "
            f"{words[prompt][c]!r} ({int(lengths[prompt, c])})"
            for c in range(prompts.labels)
        )
        raise PromptError(
            "new label words must have as many tokens as those they replace, or positions move; in prompt "
            f"{prompt}, with token counts: {pairs}. Choose other words."
        )


def _check_first_tokens(first: Int[Tensor, "prompt label"], words: Sequence[tuple[str, ...]]) -> None:
    ordered = first.sort(1).values
    if (same := (ordered[:, 1:] == ordered[:, :-1]).any(1)).any():
        prompt = int(same.nonzero()[0])
        tokens = first[prompt].tolist()
        token = next(t for t in tokens if tokens.count(t) > 1)
        clash = [words[prompt][c] for c, t in enumerate(tokens) if t == token]
        raise PromptError(
            f"new label words must differ in their first token; in prompt {prompt} "
            f"{' and '.join(map(repr, clash))} begin with token {token}. Choose other words."
        )


def _check_new_words(before: PromptSet, after: PromptSet) -> None:
    """A label word of the prompt is not unrelated to it."""
    same = (after.label_tokens[:, :, None] == before.label_tokens[:, None]).any(2)
    if same.any():
        prompt, label = same.nonzero()[0].tolist()
        raise PromptError(
            f"unrelated words must be others than the prompt's own label words; {_word(after, prompt, label)!r} "
            f"begins with the first token ({int(after.label_tokens[prompt, label])}) of one of "
            f"{_counted(before, prompt, range(before.labels))} (prompt {prompt}). Choose other words; to exchange "
            'the labels, use "map_labels".'
        )


def _check_labels_shown(prompts: PromptSet) -> None:
    """Every demonstration must show the label of its class, or there is nothing to put in its place."""
    spans = prompts.label_spans[..., 1] - prompts.label_spans[..., 0]
    wrong = spans != prompts.label_lengths.gather(1, prompts.demo_labels)
    off = _with_labels(prompts, prompts.demo_labels, prompts.label_sequences) != prompts.tokens
    before = torch.nn.functional.pad(off.long().cumsum(1), (1, 0))
    wrong |= before.gather(1, prompts.label_spans[..., 1]) > before.gather(1, prompts.label_spans[..., 0])
    if wrong.any():
        prompt, demo = wrong.nonzero()[0].tolist()
        start, end = prompts.label_spans[prompt, demo].tolist()
        label = int(prompts.demo_labels[prompt, demo])
        length = int(prompts.label_lengths[prompt, label])
        raise PromptError(
            "labels can be changed only where every demonstration shows its class's label; in prompt "
            f"{prompt}, demonstration {demo} shows {prompts.tokens[prompt, start:end].tolist()} at position "
            f"{start}, and its label {_word(prompts, prompt, label)!r} is "
            f"{prompts.label_sequences[prompt, label, :length].tolist()}. Is label_pos shifted, or do the "
            "demonstrations show other tokens than those scored?"
        )


def _relabelled(prompts: PromptSet, labels: Int[Tensor, "prompt demo"]) -> PromptSet:
    """The same prompts with these labels, of equally many tokens, written in the demonstrations."""
    tokens = _with_labels(prompts, labels, prompts.label_sequences)
    episodes = prompts.episodes and tuple(
        replace(episode, demos=tuple(replace(d, label=y) for d, y in zip(episode.demos, row, strict=True)))
        for episode, row in zip(prompts.episodes, labels.tolist(), strict=True)
    )
    return replace(
        prompts,
        tokens=tokens,
        demo_labels=labels,
        strings=_label_strings(prompts, tokens, labels, prompts.label_words),
        episodes=episodes,
    )


def _with_labels(
    prompts: PromptSet,
    labels: Int[Tensor, "prompt demo"],
    sequences: Int[Tensor, "prompt label piece"],
) -> Int[Tensor, "prompt pos"]:
    """The tokens with the labels written anew, where they stand."""
    rows, piece = torch.arange(len(prompts))[:, None], torch.arange(sequences.shape[2])
    new = sequences[rows, labels]
    inside = piece < (prompts.label_spans[..., 1] - prompts.label_spans[..., 0])[..., None]
    prompt, demo, at = inside.nonzero(as_tuple=True)
    tokens = prompts.tokens.clone()
    tokens[prompt, prompts.label_pos[prompt, demo] + at] = new[prompt, demo, at]
    return tokens


def _label_strings(
    prompts: PromptSet,
    tokens: Int[Tensor, "prompt pos"],
    labels: Int[Tensor, "prompt demo"],
    words: Sequence[tuple[str, ...]],
) -> tuple[tuple[str, ...], ...]:
    """The shown prompts' token strings with the labels written anew."""
    spans = prompts.label_spans.tolist()
    known: dict[tuple[int, ...], tuple[str, ...]] = {}
    for prompt, strings in enumerate(prompts.strings):
        for start, end in spans[prompt]:
            known.setdefault(tuple(prompts.tokens[prompt, start:end].tolist()), strings[start:end])
    found = []
    for prompt, strings in enumerate(prompts.strings):
        row = list(strings)
        for demo, (start, end) in enumerate(spans[prompt]):
            ids = tokens[prompt, start:end].tolist()
            old, new = int(prompts.demo_labels[prompt, demo]), int(labels[prompt, demo])
            row[start:end] = known.get(tuple(ids)) or _respelled(
                row[start:end], _word(prompts, prompt, old), words[prompt][new], ids
            )
        found.append(tuple(row))
    return tuple(found)


def _respelled(strings: Sequence[str], old: str, new: str, ids: list[int]) -> list[str]:
    """Token strings with one text in place of another: the first token shows it, the others are empty."""
    joined = "".join(strings)
    if old and old in joined:
        return [joined.replace(old, new, 1), *[""] * (len(ids) - 1)]
    return [f"{token} " for token in ids]


# Inputs


def _exchange_inputs(prompts: PromptSet, seed: int) -> tuple[PromptSet, str]:
    tokens, strings = prompts.tokens.tolist(), [list(row) for row in prompts.strings]
    sources = []
    moved = other = 0
    for prompt, (labels, group) in enumerate(
        zip(prompts.demo_labels.tolist(), prompts.demo_set.tolist(), strict=True)
    ):
        layouts, places = _inputs(prompts, prompt)
        inputs = [[tokens[prompt][at] for at in row] for row in places]
        alike: dict[tuple[int, ...], list[int]] = {}
        for demo, layout in enumerate(layouts):
            alike.setdefault(layout, []).append(demo)
        if all(inputs[i] == inputs[demos[0]] for demos in alike.values() for i in demos):
            raise PromptError(
                "inputs can be exchanged only between demonstrations whose inputs have equally many tokens; "
                f"prompt {prompt} has no two such, other than equal ones: {_inputs_shown(prompts, prompt, inputs)}. "
                "Draw the prompts with task.prompts(..., match_lengths=True)."
            )
        rng = random.Random(f"exchange_inputs/{seed}/{group}")
        source = list(range(len(labels)))
        while all(inputs[i] == inputs[j] for i, j in enumerate(source)):
            for demos in alike.values():
                for i, j in zip(demos, rng.sample(demos, len(demos)), strict=True):
                    source[i] = j
        shown = list(strings[prompt]) if prompt < len(strings) else None
        for i, j in enumerate(source):
            moved += inputs[i] != inputs[j]
            other += labels[i] != labels[j]
            for to, token, came in zip(places[i], inputs[j], places[j], strict=True):
                tokens[prompt][to] = token
                if shown is not None:
                    strings[prompt][to] = shown[came]
        sources.append(source)
    episodes = prompts.episodes and tuple(
        replace(
            episode,
            demos=tuple(
                replace(d, texts=episode.demos[j].texts) for d, j in zip(episode.demos, row, strict=True)
            ),
        )
        for episode, row in zip(prompts.episodes, sources, strict=True)
    )
    found = replace(
        prompts,
        tokens=torch.tensor(tokens),
        strings=tuple(tuple(row) for row in strings),
        episodes=episodes,
    )
    every = prompts.demo_labels.numel() / 100
    return found, f"{moved / every:.1f}% of inputs changed, {other / every:.1f}% to one of another class"


def _inputs(prompts: PromptSet, prompt: int) -> tuple[list[tuple[int, ...]], list[list[int]]]:
    """For each demonstration of a prompt, what must be equal for an exchange, and the positions of its input."""
    ids, roles = prompts.tokens[prompt].tolist(), prompts.roles[prompt].tolist()
    layouts, places = [], []
    for start, end in prompts.demo_spans[prompt].tolist():
        layouts.append(input_layout(ids, roles, start, end))
        places.append([at for at in range(start, end) if roles[at] in _TEXTS])
    return layouts, places


def _replace_test_input(prompts: PromptSet, seed: int) -> tuple[PromptSet, str]:
    tokens, roles = prompts.tokens.tolist(), prompts.roles.tolist()
    starts = prompts.demo_spans[:, -1, 1].tolist() if prompts.demos else [0] * len(prompts)
    spans = [(start, at + 1) for start, at in zip(starts, prompts.answer_pos.tolist(), strict=True)]
    tails = [tuple(row[a:b]) for row, (a, b) in zip(tokens, spans, strict=True)]
    texts = [
        tuple(row[at] for at in range(a, b) if kinds[at] in _TEXTS)
        for row, kinds, (a, b) in zip(tokens, roles, spans, strict=True)
    ]
    alike: dict[int, list[int]] = {}
    for prompt, tail in enumerate(tails):
        alike.setdefault(len(tail), []).append(prompt)
    rng = random.Random(f"replace_test_input/{seed}")
    donors = []
    for prompt, tail in enumerate(tails):
        shown = {tuple(tokens[prompt][at] for at in row) for row in _inputs(prompts, prompt)[1]}
        same = [p for p in alike[len(tail)] if p != prompt]
        fit = [p for p in same if tails[p] != tail and texts[p] not in shown]
        if not fit:
            counts = ", ".join(f"{n} ({len(alike[n])})" for n in sorted(alike))
            raise PromptError(
                "a test input can be replaced only by another prompt's of equally many tokens; the one of prompt "
                f"{prompt}, {_test_text(prompts, prompt)!r}, has {len(tail)} with its template, as have {len(same)} "
                "others, none of them different from it and from its demonstrations. Lengths found (prompts): "
                f"{counts}. Draw more prompts, or with task.prompts(..., match_lengths=True)."
            )
        donors.append(rng.choice(fit))
    strings: list[tuple[str, ...]] = []
    for prompt, donor in enumerate(donors):
        start, end = spans[prompt]
        begin, until = spans[donor]
        # Where a token's string cannot be known, this prompt and those behind it go without.
        known = prompt < len(prompts.strings) and len(strings) == prompt
        if known and (new := _tail_strings(prompts, prompt, donor, spans)) is not None:
            row = prompts.strings[prompt]
            strings.append((*row[:start], *new, *row[end:]))
        tokens[prompt][start:end] = tails[donor]
        roles[prompt][start:end] = prompts.roles[donor, begin:until].tolist()
    found = replace(
        prompts,
        tokens=torch.tensor(tokens),
        roles=torch.tensor(roles),
        test_labels=None if prompts.test_labels is None else prompts.test_labels[donors],
        strings=tuple(strings),
        episodes=prompts.episodes
        and tuple(
            replace(episode, test=prompts.episodes[donor].test)
            for episode, donor in zip(prompts.episodes, donors, strict=True)
        ),
    )
    return found, "every test input replaced by another prompt's"


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
        if role in _TEXTS:
            field = _TEXTS.index(role)
            was, now = (prompts.episodes[p].test.texts[field].strip() for p in (prompt, donor))
            own = _respelled(own, was, now, [ids[at] for at in places])
        if len(own) != len(places):
            return None
        for at, string in zip(places, own, strict=True):
            found[at] = string
    return found


# What errors show


def _word(prompts: PromptSet, prompt: int, label: int) -> str:
    return prompts.label_words[prompt][label]


def _counted(prompts: PromptSet, prompt: int, labels: Sequence[int]) -> str:
    """Label words with their token counts, the first few."""
    words = [
        f"{_word(prompts, prompt, label)!r} ({int(prompts.label_lengths[prompt, label])})" for label in labels
    ]
    more = f" and {len(words) - 8} more" if len(words) > 8 else ""
    return f"{', '.join(words[:8])}{more} (token counts)"


def _inputs_shown(prompts: PromptSet, prompt: int, inputs: list[list[int]]) -> str:
    """The inputs of a prompt's demonstrations with their token counts, the first few."""
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
    if prompts.episodes is not None:
        text = " / ".join(prompts.episodes[prompt].test.texts)
    else:
        start = int(prompts.demo_spans[prompt, -1, 1]) if prompts.demos else 0
        end = int(prompts.answer_pos[prompt]) + 1
        text = (
            "".join(prompts.strings[prompt][start:end]).strip()
            if prompt < len(prompts.strings)
            else " ".join(map(str, prompts.tokens[prompt, start:end].tolist()))
        )
    return text if len(text) <= 60 else text[:57] + "…"


# Drawing inputs of equal length


def matched_episodes(
    source: EpisodeSource,
    model: Any,
    *,
    demos: int,
    count: int,
    seed: int,
    sets: int | None,
    balanced: bool,
    given: Sequence[Example] | None,
) -> list[Episode]:
    """Episodes whose demonstrations have inputs of one length in tokens; see `Task.prompts`.

    The length is the commonest that has enough examples. Test inputs have one length too where enough have
    it; else they are drawn from as few lengths as hold `count`, and each shares its length with another.

    Does not show: what longer or shorter texts would; they are not drawn.

    Raises: PromptError: too few of equal length, with the counts found.
    """
    check_counts(demos, count)
    if isinstance(source, Task):
        return _matched_in_pools(source, model, demos, count, seed, sets, balanced, given)
    return _matched_in_world(source, model, demos, count, seed, sets, balanced, given)


def _matched_in_pools(
    task: Task,
    model: Any,
    demos: int,
    count: int,
    seed: int,
    sets: int | None,
    balanced: bool,
    given: Sequence[Example] | None,
) -> list[Episode]:
    lens, classes = as_lens(model), len(task.classes)
    train = task.train
    if given is None and demos:
        groups = _grouped(task.train, find_layouts(lens, task.template, task.train, task.label_words[0]))
        each = -(-demos // classes) if balanced else 1
        fit = [g for g in groups.values() if len(g) >= demos and min(_by_class(g, classes)) >= each]
        if not fit:
            found = sorted(groups.items(), key=lambda item: -len(item[1]))[:4]
            shown = "; ".join(
                f"{layout.inputs} tokens: {len(group)} ({', '.join(map(str, _by_class(group, classes)))})"
                for layout, group in found
            )
            raise PromptError(
                f"demonstrations of equal length need {demos} examples whose inputs have equally many tokens, and "
                f"{each} of every class; the train pool of {task.name!r} has at most, with the counts of its "
                f"classes, {shown}. Ask for fewer demonstrations, or give more examples."
            )
        train = tuple(max(fit, key=len))
    layouts = find_layouts(lens, task.template, task.test, task.label_words[0])
    lengths: dict[int, list[Example]] = {}
    for example, layout in zip(task.test, layouts, strict=True):
        lengths.setdefault(layout.test, []).append(example)
    test = _tests_of_few_lengths(task, lengths, count, seed)
    return task.draw(
        train, test, demos=demos, count=count, seed=seed, sets=sets, balanced=balanced, given=given
    )


def _grouped(examples: Sequence[Example], layouts: list[Layout]) -> dict[Layout, list[Example]]:
    groups: dict[Layout, list[Example]] = {}
    for example, layout in zip(examples, layouts, strict=True):
        # As a test input an example may be of any length.
        groups.setdefault(replace(layout, test=0), []).append(example)
    return groups


def _by_class(examples: Sequence[Example], classes: int) -> list[int]:
    counts = Counter(example.label for example in examples)
    return [counts[label] for label in range(classes)]


def _tests_of_few_lengths(
    task: Task, lengths: dict[int, list[Example]], count: int, seed: int
) -> tuple[Example, ...]:
    """Test inputs of the commonest lengths: of one that has `count`, or `count` of several, none alone."""
    groups = sorted(lengths.values(), key=len, reverse=True)
    if len(groups[0]) >= count:
        return tuple(groups[0])
    rng = random.Random(f"match_lengths/{task.name}/{seed}")
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
            f"pool of {task.name!r} has {sum(len(g) for g in groups if len(g) > 1)} such of {len(task.test)} (the "
            f"commonest lengths have {most} each). Ask for fewer prompts, or give more examples."
        )
    return tuple(example for group in chosen for example in group)


def _matched_in_world(
    world: EpisodeSource,
    model: Any,
    demos: int,
    count: int,
    seed: int,
    sets: int | None,
    balanced: bool,
    given: Sequence[Example] | None,
) -> list[Episode]:
    """A world draws as many as it is asked for: of more than are needed, the first of the commonest length stay."""
    lens, classes = as_lens(model), len(world.classes)
    shared_sets(count, sets)
    each = count if sets is None else count // sets
    extra = 4 + -(-32 // each)
    drawn = world.episodes(
        demos=demos and 6 * demos + 48,
        count=count * extra,
        seed=seed,
        sets=sets,
        balanced=balanced,
        given=given,
    )
    word = drawn[0].label_words[0]
    tests = find_layouts(lens, world.template, [episode.test for episode in drawn], word)
    length = Counter(layout.test for layout in tests).most_common(1)[0][0]
    kept: dict[int, list[Episode]] = {}
    for episode, layout in zip(drawn, tests, strict=True):
        row = kept.setdefault(0 if sets is None else episode.demo_set, [])
        if layout.test == length and len(row) < each:
            row.append(episode)
    found = [episode for row in kept.values() for episode in row]
    shown = [demo for episode in found for demo in episode.demos]
    layouts = [replace(x, test=0) for x in find_layouts(lens, world.template, shown, word)] if shown else []
    common = Counter(layouts).most_common(1)[0][0] if layouts else None
    for place, episode in enumerate(found):
        own = layouts[place * len(episode.demos) :][: len(episode.demos)]
        fit = [demo for demo, layout in zip(episode.demos, own, strict=True) if layout == common]
        quota = [demos] * classes
        if balanced:  # the sets take turns at the class that has one more
            more = demos % classes
            quota = [demos // classes + ((c - episode.demo_set) % classes < more) for c in range(classes)]
        chosen: list[Example] = []
        for demo in fit:
            if quota[demo.label] and len(chosen) < demos:
                quota[demo.label] -= 1
                chosen.append(demo)
        if len(found) < count or len(chosen) < demos:
            raise PromptError(
                f"{world.name!r} has too few inputs of equal length: of those drawn, {len(found)} test inputs of "
                f"{count} and {len(chosen)} demonstrations of {demos} (set {episode.demo_set}). Ask for fewer."
            )
        number = place if sets is None else episode.demo_set
        found[place] = replace(episode, demos=tuple(chosen), demo_set=number)
    return found
