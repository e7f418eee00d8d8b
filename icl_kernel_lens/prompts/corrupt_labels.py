"""Prompts whose labels are changed: permuted within the prompt, mapped to other classes, or in unrelated words."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.numbers.derangements import draw_derangement
from icl_kernel_lens.prompts.build import rewritten
from icl_kernel_lens.prompts.example import one_word_each
from icl_kernel_lens.prompts.promptset import PromptSet, check_first_tokens, respelled


def permute_labels(prompts: PromptSet, seed: int, *, derange: bool) -> tuple[PromptSet, str]:
    """The labels are permuted among the demonstrations of each prompt; see `corrupt`."""
    check_labels_shown(prompts)
    shown = prompts.label_lengths.gather(1, prompts.demo_labels)
    if (uneven := (shown != shown[:, :1]).any(1)).any():
        prompt = int(uneven.nonzero()[0])
        raise PromptError(
            "labels can be permuted only where they have equally many tokens, or positions move; prompt "
            f"{prompt} shows {_counted_words(prompts, prompt, prompts.demo_labels[prompt].unique().tolist())}. "
            "Choose label words of equally many tokens in label_words.",
            code="label-lengths",
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
                f"prompt {prompt} shows {prompts.label_words[prompt][most]!r} in {times} of {len(labels)}. Draw the "
                "prompts with balanced=True and as many demonstrations as a multiple of the classes, or pass "
                "derange=False.",
                code="nothing-to-change",
            )
        rows.append(draw_derangement(labels, rng) if derange else rng.sample(labels, len(labels)))
    found = _relabelled(prompts, torch.tensor(rows))
    return found, f"{'deranged, ' if derange else ''}{_share_changed(prompts, found)} of labels changed"


def map_labels(prompts: PromptSet, seed: int) -> tuple[PromptSet, str]:
    """Every class's label is replaced by another class's, by one map for all prompts; see `corrupt`."""
    check_labels_shown(prompts)
    # Checked for all classes, whatever the map drawn: else the seeds whose map stays within one length would pass.
    if (uneven := (prompts.label_lengths != prompts.label_lengths[:, :1]).any(1)).any():
        prompt = int(uneven.nonzero()[0])
        raise PromptError(
            "labels can be mapped to other classes only where all have equally many tokens, or positions move; "
            f"prompt {prompt} has {_counted_words(prompts, prompt, range(prompts.labels))}. Choose label words of "
            "equally many tokens in label_words.",
            code="label-lengths",
        )
    rng = random.Random(f"map_labels/{seed}")
    targets = list(range(prompts.labels))
    while any(old == new for old, new in enumerate(targets)):
        rng.shuffle(targets)
    found = _relabelled(prompts, torch.tensor(targets)[prompts.demo_labels])
    shown = ", ".join(f"{old}→{new}" for old, new in enumerate(targets))
    return found, f"classes {shown}, {_share_changed(prompts, found)} of labels changed"


def shift_labels(prompts: PromptSet, by: int, model: Any) -> PromptSet:
    """Every demonstration's class c gives way to c + `by`, counted round the classes; texts and label words stay.

    Labels of equally many tokens are written over in place. Others move positions: they are written anew, in prompts made
    from text, with the tokenizer of `model`.

    Raises: PromptError: positions would move in prompts of token ids, or a demonstration does not show its label.
    """
    check_labels_shown(prompts)
    labels = (prompts.demo_labels + by) % prompts.labels
    what = f"labels shifted by {by}"
    info = replace(
        prompts.info,
        corruption=f"{prompts.info.corruption}; then {what}" if prompts.info.corruption else what,
    )
    uneven = (prompts.label_lengths != prompts.label_lengths[:, :1]).any(1)
    if not uneven.any():
        return replace(_relabelled(prompts, labels), info=info)
    if not prompts.from_text:
        prompt = int(uneven.nonzero()[0])
        raise PromptError(
            "labels of unequal token counts can be exchanged only in prompts made from text in this session; these came "
            f"from token ids or from a file, and prompt {prompt} has "
            f"{_counted_words(prompts, prompt, range(prompts.labels))}. Draw them again with task.prompts(...), or choose "
            "label words of equally many tokens.",
            code="label-lengths",
        )
    given = zip(prompts.episodes or (), labels.tolist(), strict=True)
    return rewritten(prompts, [episode.with_labels(row) for episode, row in given], model, info)


def replace_label_words(
    prompts: PromptSet, seed: int, *, words: Sequence[str] | Mapping[str, str] | Tensor, model: Any
) -> tuple[PromptSet, str]:
    """`words`, one a class, replace the label words; nothing is drawn. See `corrupt`."""
    check_labels_shown(prompts)
    if isinstance(words, Tensor):
        found = _words_from_ids(prompts, words)
        same = all(row == found.label_words[0] for row in found.label_words)
        what = ", ".join(map(repr, found.label_words[0])) if same else f"{prompts.labels} tokens"
    else:
        found = _words_from_text(prompts, words, model)
        what = ", ".join(map(repr, found.label_words[0]))
    _check_unrelated(prompts, found)
    return found, f"label words {what}"


def _share_changed(before: PromptSet, after: PromptSet) -> str:
    return f"{100 * float((before.demo_labels != after.demo_labels).double().mean()):.1f}%"


def _relabelled(prompts: PromptSet, labels: Int[Tensor, "prompt demo"]) -> PromptSet:
    """The same prompts with these labels, of equally many tokens, written in the demonstrations."""
    tokens = with_label_tokens(prompts, labels, prompts.label_sequences)
    return replace(
        prompts,
        tokens=tokens,
        demo_labels=labels,
        strings=_label_strings(prompts, tokens, labels, prompts.label_words),
        episodes=prompts.episodes
        and tuple(e.with_labels(row) for e, row in zip(prompts.episodes, labels.tolist(), strict=True)),
    )


def _words_from_ids(prompts: PromptSet, words: Tensor) -> PromptSet:
    ids = words.detach().cpu()
    shape = (len(prompts), prompts.labels)
    if ids.is_floating_point() or ids.is_complex() or ids.shape not in (shape, shape[1:]):
        raise PromptError(
            f"token ids of new label words must be whole numbers of shape {shape[1:]} or {shape}; they have shape "
            f"{tuple(ids.shape)} and type {ids.dtype}.",
            code="prompt-shapes",
        )
    if int(ids.min()) < 0:
        raise PromptError(
            f"token ids of new label words must not be negative; found {int(ids.min())}.", code="vocabulary"
        )
    sequences = ids.long().expand(shape)[..., None].clone()
    names = tuple(tuple(f"token {t}" for t in row) for row in sequences[..., 0].tolist())
    _check_lengths_and_beginnings(prompts, sequences, torch.ones_like(prompts.label_lengths), names)
    tokens = with_label_tokens(prompts, prompts.demo_labels, sequences)
    return replace(
        prompts,
        tokens=tokens,
        label_sequences=sequences,
        label_words=names,
        strings=_label_strings(prompts, tokens, prompts.demo_labels, names),
        episodes=None,
    )


def _words_from_text(prompts: PromptSet, words: Sequence[str] | Mapping[str, str], model: Any) -> PromptSet:
    if not isinstance(words, str):
        words = one_word_each(words, prompts.classes)
    if isinstance(words, str) or len(words) != prompts.labels or not all(w.strip() for w in words):
        given = [words] if isinstance(words, str) else list(words)
        raise PromptError(
            f"every class needs one new label word; {prompts.labels} are needed, got {given}.",
            code="label-words",
        )
    if not prompts.from_text:
        raise PromptError(
            "label words given as text can be written only into prompts made from text in this session; these "
            "came from token ids or from a file. Give token ids in words=.",
            code="only-text",
        )
    if model is None:
        raise PromptError(
            "label words given as text need a tokenizer. Pass model=, or token ids in words=.",
            code="tokenizer",
        )
    assert prompts.info.template is not None
    words = tuple(prompts.info.template.bare(word) for word in words)
    episodes = [replace(episode, label_words=words) for episode in prompts.episodes or ()]
    found = rewritten(prompts, episodes, model)
    _check_lengths_and_beginnings(prompts, found.label_sequences, found.label_lengths, found.label_words)
    # Written as token ids, and compared with the tokens of the whole new text.
    expected = with_label_tokens(prompts, prompts.demo_labels, found.label_sequences)
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
            "another tokenizer. Choose other words.",
            code="label-tokens",
        )
    return replace(
        prompts,
        tokens=expected,
        label_sequences=found.label_sequences,
        label_words=found.label_words,
        strings=found.strings[: len(prompts.strings)],
        episodes=found.episodes,
    )


def _check_lengths_and_beginnings(
    prompts: PromptSet, sequences: Tensor, lengths: Tensor, words: Sequence[tuple[str, ...]]
) -> None:
    """New label words have as many tokens as the old ones, and differ in their first token."""
    if (wrong := lengths != prompts.label_lengths).any():
        prompt = int(wrong.any(1).nonzero()[0])
        pairs = ", ".join(
            f"{old!r} ({int(prompts.label_lengths[prompt, c])}) → {new!r} ({int(lengths[prompt, c])})"
            for c, (old, new) in enumerate(zip(prompts.label_words[prompt], words[prompt], strict=True))
        )
        raise PromptError(
            "new label words must have as many tokens as those they replace, or positions move; in prompt "
            f"{prompt}, with token counts: {pairs}. Choose other words.",
            code="label-lengths",
        )
    must = "new label words must differ in their first token"
    check_first_tokens(sequences[..., 0], words, ". Choose other words.", must=must)


def _check_unrelated(before: PromptSet, after: PromptSet) -> None:
    """Refuse a new word that begins as one of the prompt's own label words does."""
    same = (after.label_tokens[:, :, None] == before.label_tokens[:, None]).any(2)
    if same.any():
        prompt, label = same.nonzero()[0].tolist()
        raise PromptError(
            "unrelated words must be others than the prompt's own label words; "
            f"{after.label_words[prompt][label]!r} begins with the first token "
            f"({int(after.label_tokens[prompt, label])}) of one of "
            f"{_counted_words(before, prompt, range(before.labels))} (prompt {prompt}). Choose other words; to exchange "
            'the labels, use "map_labels".',
            code="label-collision",
        )


def check_labels_shown(prompts: PromptSet) -> None:
    """Refuse a demonstration that does not show the label of its class: there is nothing to put in its place."""
    spans = prompts.label_spans[..., 1] - prompts.label_spans[..., 0]
    wrong = spans != prompts.label_lengths.gather(1, prompts.demo_labels)
    off = with_label_tokens(prompts, prompts.demo_labels, prompts.label_sequences) != prompts.tokens
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
            f"{start}, and its label {prompts.label_words[prompt][label]!r} is "
            f"{prompts.label_sequences[prompt, label, :length].tolist()}. Is label_pos shifted, or do the "
            "demonstrations show other tokens than those scored?",
            code="position",
        )


def with_label_tokens(
    prompts: PromptSet,
    labels: Int[Tensor, "prompt demo"],
    sequences: Int[Tensor, "prompt label piece"],
) -> Int[Tensor, "prompt pos"]:
    """The tokens, with the tokens `sequences` of these labels in the demonstrations' label spans."""
    inside = (
        torch.arange(sequences.shape[2])
        < (prompts.label_spans[..., 1] - prompts.label_spans[..., 0])[..., None]
    )
    prompt, demo, at = inside.nonzero(as_tuple=True)
    tokens = prompts.tokens.clone()
    tokens[prompt, prompts.label_pos[prompt, demo] + at] = sequences[prompt, labels[prompt, demo], at]
    return tokens


def _label_strings(
    prompts: PromptSet,
    tokens: Int[Tensor, "prompt pos"],
    labels: Int[Tensor, "prompt demo"],
    words: Sequence[tuple[str, ...]],
) -> tuple[tuple[str, ...], ...]:
    """The token strings of the first prompts after their labels were written over, with label words `words`."""
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
            row[start:end] = known.get(tuple(ids)) or respelled(
                row[start:end], prompts.label_words[prompt][old], words[prompt][new], ids
            )
        found.append(tuple(row))
    return tuple(found)


def _counted_words(prompts: PromptSet, prompt: int, labels: Sequence[int]) -> str:
    """The first few label words with their token counts, for an error."""
    lengths = prompts.label_lengths[prompt].tolist()
    words = [f"{prompts.label_words[prompt][label]!r} ({lengths[label]})" for label in labels]
    more = f" and {len(words) - 8} more" if len(words) > 8 else ""
    return f"{', '.join(words[:8])}{more} (token counts)"
