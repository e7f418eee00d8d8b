"""Prompts as token ids, with the positions of their demonstrations, texts, labels and answers.

`Task.prompts` makes a `PromptSet` from text, `PromptSet.from_tokens` from ready-made ids. Its fields are declared once,
in the class; checks, digest, comparison, selection and storage follow from the declaration.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from html import escape
from itertools import permutations, takewhile
from numbers import Integral
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.fields import TRANSIENT, Mismatch, check, digest, encode
from icl_kernel_lens.prompts.example import Episode
from icl_kernel_lens.prompts.template import Template
from icl_kernel_lens.signs import legible

ScoreOn = Literal["first_token", "sequence"]

SHOWN = 8
"""How many prompts keep their token strings, for printing and figures."""


class TokenRole(IntEnum):
    """What a token stands for; `PromptSet.roles` holds one for each position."""

    PADDING = 0
    SPECIAL = 1
    """Added by the tokenizer: a beginning-of-sequence token."""
    TEMPLATE = 2
    TEXT = 3
    TEXT2 = 4
    """The second text field of tasks that have two."""
    LABEL = 5


TEXT_ROLES = (int(TokenRole.TEXT), int(TokenRole.TEXT2))
"""The roles of an input's tokens."""


@dataclass(frozen=True)
class PromptInfo:
    """How prompts were made; it is kept with every result."""

    task: str = "from_tokens"
    origin: str = "token ids"
    template: Template | None = None
    demos: int = 0
    sets: int | None = None
    balanced: bool = False
    seed: int | None = None
    tokenizer: str | None = None
    prepend_bos: bool | None = None
    """Whether a beginning-of-sequence token stands first; None: not known (ready-made ids)."""
    bos_asked: bool | None = None
    """What was asked for; None: what the tokenizer does by default."""
    vocabulary: str | None = None
    """A digest of what the tokenizer's ids stand for; None: not known, and not compared with a model's."""
    permuted_labels: bool = False
    corruption: str | None = None
    """What `corrupt` did to them, as a sentence."""


@dataclass(frozen=True, eq=False, repr=False)
class PromptSet:
    """Few-shot prompts: right-padded token ids and the positions that matter in each.

    Spans are half-open, `[start, end)`. Demonstration i covers `demo_spans[:, i]`, from the first token
    of its text or template to the end of its label or template; what separates demonstrations belongs to
    none. `label_spans[:, i]` covers its label tokens, the first of which is `label_pos[:, i]`.
    """

    made_by: ClassVar[str] = "Make one with task.prompts(model, ...) or PromptSet.from_tokens(...)."

    tokens: Int[Tensor, "prompt pos"]
    lengths: Int[Tensor, " prompt"]
    roles: Int[Tensor, "prompt pos"]
    answer_pos: Int[Tensor, " prompt"]
    """The position whose next token is the answer."""
    demo_spans: Int[Tensor, "prompt demo 2"]
    label_spans: Int[Tensor, "prompt demo 2"]
    demo_labels: Int[Tensor, "prompt demo"]
    label_sequences: Int[Tensor, "prompt label piece"]
    """Token ids of each label word as the answer, padded with 0 beyond `label_lengths`."""
    label_lengths: Int[Tensor, "prompt label"]
    demo_set: Int[Tensor, " prompt"]
    """Prompts with the same number show the same demonstrations, and are not independent."""
    test_labels: Int[Tensor, " prompt"] | None = None
    score_on: ScoreOn = "first_token"
    label_words: tuple[tuple[str, ...], ...] = ()
    """The label words of each prompt, as text."""
    classes: tuple[str, ...] = ()
    strings: tuple[tuple[str, ...], ...] = ()
    """The token strings of the first prompts."""
    info: PromptInfo = field(default_factory=PromptInfo)
    episodes: tuple[Episode, ...] | None = field(default=None, metadata=TRANSIENT)
    """What the prompts were made of, where they were made from text; not saved."""

    def __post_init__(self) -> None:
        try:
            check(self)
        except Mismatch as error:
            raise PromptError(f"a PromptSet must be whole: {error}.", code="not-whole") from error
        _check_labels(self)
        _check_positions(self.answer_pos, self.demo_spans, self.label_spans, self.lengths)
        _check_ranges(self)
        _check_strings(self)

    @classmethod
    def from_tokens(
        cls,
        tokens: Int[Tensor, "prompt pos"],
        label_pos: Int[Tensor, "prompt demo"],
        demo_labels: Int[Tensor, "prompt demo"],
        label_tokens: Int[Tensor, " label"] | Int[Tensor, "prompt label"],
        *,
        test_labels: Int[Tensor, " prompt"] | None = None,
        demo_spans: Int[Tensor, "prompt demo 2"] | None = None,
        demo_set: Int[Tensor, " prompt"] | None = None,
        answer_pos: Int[Tensor, " prompt"] | None = None,
    ) -> PromptSet:
        """Prompts from ready-made token ids, for models without a tokenizer.

        Without `demo_spans`, demonstration i runs from the end of the one before (from position 0 for
        the first) to its label. Without `answer_pos`, the last position answers; what stands behind it
        is padding. Every label is one token. Without `demo_set`, prompts are taken as independent.

        Raises: PromptError: a position outside its prompt, labels out of range, equal label tokens.
        """
        tokens = _ints("tokens", tokens, 2)
        count, width = tokens.shape
        label_pos = _ints("label_pos", label_pos, 2, count)
        demo_labels = _ints("demo_labels", demo_labels, 2, count)
        if demo_labels.shape[1] == 0:
            raise PromptError(
                "a prompt must have a demonstration to be read; label_pos and demo_labels have none.",
                code="too-few-demonstrations",
            )
        words = _ints("label_tokens", label_tokens)
        words = words.expand(count, -1) if words.dim() == 1 else _ints("label_tokens", words, 2, count)
        answer = torch.full((count,), width - 1) if answer_pos is None else answer_pos
        answer = _ints("answer_pos", answer, 1, count)
        label_spans = torch.stack([label_pos, label_pos + 1], -1)
        if demo_spans is None:
            starts = torch.cat([torch.zeros_like(label_pos[:, :1]), label_pos[:, :-1] + 1], 1)
            demo_spans = torch.stack([starts, label_pos + 1], -1)
        demo_spans = _ints("demo_spans", demo_spans, 3, count)
        if label_pos.shape != demo_labels.shape or demo_spans.shape != (*label_pos.shape, 2):
            raise PromptError(
                "label_pos, demo_labels and demo_spans must agree in the number of demonstrations; their shapes "
                f"are {tuple(label_pos.shape)}, {tuple(demo_labels.shape)} and {tuple(demo_spans.shape)}.",
                code="prompt-shapes",
            )
        _check_positions(answer, demo_spans, label_spans, torch.full((count,), width))
        lengths = answer + 1
        roles = torch.full_like(tokens, int(TokenRole.TEXT))
        roles = roles.scatter(1, label_pos, int(TokenRole.LABEL))
        roles = roles.masked_fill(torch.arange(width) >= lengths[:, None], int(TokenRole.PADDING))
        _warn_if_shifted(tokens, label_pos, demo_labels, words)
        return cls(
            tokens=tokens,
            lengths=lengths,
            roles=roles,
            answer_pos=answer,
            demo_spans=demo_spans,
            label_spans=label_spans,
            demo_labels=demo_labels,
            label_sequences=words[..., None].clone(),
            label_lengths=torch.ones_like(words),
            demo_set=torch.arange(count) if demo_set is None else _ints("demo_set", demo_set, 1, count),
            test_labels=None if test_labels is None else _ints("test_labels", test_labels, 1, count),
            label_words=tuple(tuple(f"token {t}" for t in row) for row in words.tolist()),
            classes=tuple(f"class {c}" for c in range(words.shape[1])),
            strings=tuple(
                tuple(f"{t} " for t in row[:end])
                for row, end in zip(tokens[:SHOWN].tolist(), lengths[:SHOWN].tolist(), strict=True)
            ),
            info=PromptInfo(demos=label_pos.shape[1]),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def demos(self) -> int:
        """Demonstrations in each prompt."""
        return self.demo_labels.shape[1]

    @property
    def labels(self) -> int:
        """Number of classes."""
        return self.label_lengths.shape[1]

    @property
    def repeat_labels(self) -> bool:
        """Whether any prompt shows two demonstrations of one label."""
        return bool((self.demo_labels.sort(-1).values.diff(dim=-1) == 0).any())

    @property
    def from_text(self) -> bool:
        """Whether the texts are known that the prompts were made from, so that they can be written anew."""
        return self.episodes is not None and self.info.template is not None

    @property
    def label_pos(self) -> Int[Tensor, "prompt demo"]:
        """The first label token of each demonstration."""
        return self.label_spans[..., 0]

    @property
    def label_tokens(self) -> Int[Tensor, "prompt label"]:
        """The first token of each label word."""
        return self.label_sequences[..., 0]

    def select(self, prompts: Any) -> PromptSet:
        """Some of the prompts, in the order given: a sequence or tensor of their numbers, or of a truth value for each.

        Raises: PromptError: other numbers than those of the prompts, from 0, or another number of truth values.
        """
        numbers = _selected(prompts, len(self))
        index = torch.tensor(numbers, dtype=torch.long)
        shown = takewhile(lambda i: i < len(self.strings), numbers[:SHOWN])
        return replace(
            self,
            **{name: value[index] for name, value in vars(self).items() if isinstance(value, Tensor)},
            label_words=tuple(self.label_words[i] for i in numbers),
            strings=tuple(self.strings[i] for i in shown),
            episodes=None if self.episodes is None else tuple(self.episodes[i] for i in numbers),
        )

    def as_ids(self) -> PromptSet:
        """The same prompts as bare token ids, which a model with another tokenizer takes as they are."""
        return replace(self, episodes=None, info=replace(self.info, vocabulary=None))

    def rearranged(
        self,
        where: Int[Tensor, "prompt pos"],
        *,
        rows: Int[Tensor, "prompt pos"] | None = None,
        **changes: Any,
    ) -> PromptSet:
        """Every token with its role and string is taken from position `where` (of the prompt `rows`); other `changes`."""
        own = torch.arange(len(self))[:, None] if rows is None else rows
        if "strings" not in changes:
            changes["strings"] = tuple(
                tuple(row[i] for i in at[: len(row)])
                for row, at in zip(self.strings, where.tolist(), strict=False)
            )
        return replace(self, tokens=self.tokens[own, where], roles=self.roles[own, where], **changes)

    def digest(self) -> str:
        """A digest of tokens, positions, roles, labels and label tokens, whatever the texts and `demo_set` say."""
        _, numbers = encode(self)
        return digest([self.score_on], {name: numbers[name] for name in numbers if name != "demo_set"})[:16]

    @checked
    def same_as(self, other: PromptSet) -> bool:
        """Whether these are the same prompts in the same order."""
        return self is other or self.digest() == other.digest()

    @checked
    def demo_texts(self, prompt: int) -> tuple[str, ...]:
        """The demonstrations of one of the first prompts as text, without their labels."""
        if not 0 <= prompt < len(self.strings):
            raise PromptError(
                f"token strings are kept for the first {len(self.strings)} prompts; got prompt {prompt}.",
                code="not-kept",
            )
        strings, found = self.strings[prompt], []
        for i in range(self.demos):
            start, end = self.demo_spans[prompt, i].tolist()
            roles = self.roles[prompt, start:end].tolist()
            texts = [
                "".join(s for s, r in zip(strings[start:end], roles, strict=True) if r == role).strip()
                for role in (TokenRole.TEXT, TokenRole.TEXT2)
            ]
            found.append(" / ".join(text for text in texts if text))
        return tuple(found)

    def __repr__(self) -> str:
        bos = {None: "not known", True: "yes", False: "no"}[self.info.prepend_bos]
        head = (
            f"PromptSet({self.info.task}: {len(self)} prompts of {self.demos} demonstrations, "
            f"{int(self.lengths.min())}–{int(self.lengths.max())} tokens, {len(self.demo_set.unique())} demonstration "
            f"sets, BOS: {bos}, seed {self.info.seed}, labels scored on {self.score_on.replace('_', ' ')})"
        )
        return "\n".join([head, *(self._lines(0) if self.strings else ())])

    def _lines(self, prompt: int) -> list[str]:
        """One prompt with its spans, as plain text."""
        words = self.label_words[prompt]
        texts = self.demo_texts(prompt)
        demos = []
        for i in range(self.demos):
            start, end = self.demo_spans[prompt, i].tolist()
            first, last = self.label_spans[prompt, i].tolist()
            text = texts[i] if len(texts[i]) <= 60 else texts[i][:57] + "…"
            demos.append(
                f"  demo {i:<2d} tokens {start}–{end - 1}  label at "
                f"{first if last == first + 1 else f'{first}–{last - 1}'}: "
                f"{text!r} → {words[int(self.demo_labels[prompt, i])]!r}"
            )
        if self.demos > 6:
            demos[3:-2] = [f"  … {self.demos - 5} more"]
        answer = int(self.answer_pos[prompt])
        begin = int(self.demo_spans[prompt, -1, 1]) if self.demos else 0
        tail = "".join(self.strings[prompt][begin : answer + 1]).strip()
        labels = self.test_labels
        truth = "" if labels is None else f" (truth {words[int(labels[prompt])]!r})"
        return [
            f"prompt {prompt}, label words {', '.join(map(repr, words))}:",
            *demos,
            f"  test    answer after token {answer}: {tail[-60:]!r} → ?{truth}",
        ]

    def _repr_html_(self) -> str:
        """The first prompt with its spans coloured; all text is escaped."""
        if not self.strings:
            return f"<pre>{escape(legible(repr(self)))}</pre>"
        style = {
            TokenRole.LABEL: "background:#fdb863;font-weight:600",
            TokenRole.TEXT: "background:#d8ecf8",
            TokenRole.TEXT2: "background:#e6e0f2",
            TokenRole.TEMPLATE: "color:#666",
            TokenRole.SPECIAL: "color:#999;border:1px solid #ccc",
        }
        cells = []
        for position, string in enumerate(self.strings[0]):
            role = TokenRole(int(self.roles[0, position]))
            shown = escape(legible(string)).replace("\n", "⏎<br>")
            cells.append(
                f'<span style="{style.get(role, "")}" title="{position} {role.name.lower()}">{shown}</span>'
            )
        head = escape(legible(repr(self).splitlines()[0]))
        return (
            f'<div><p style="font:13px sans-serif">{head}</p>'
            '<div style="font:13px monospace;white-space:pre-wrap;max-height:24em;overflow:auto">'
            f"{''.join(cells)}</div>"
            '<p style="font:12px sans-serif"><span style="background:#d8ecf8">text</span> '
            '<span style="background:#fdb863">label</span> <span style="color:#666">template</span></p></div>'
        )


def _selected(prompts: Any, count: int) -> list[int]:
    """The numbers of the prompts that are asked for."""
    listed = prompts.tolist() if hasattr(prompts, "tolist") else prompts
    members = list(listed) if isinstance(listed, Iterable) and not isinstance(listed, str | bytes) else [None]
    if members and all(isinstance(one, bool) for one in members) and len(members) == count:
        return [number for number, wanted in enumerate(members) if wanted]
    numbers = [int(one) for one in members if isinstance(one, Integral) and not isinstance(one, bool)]
    if len(numbers) < len(members) or not all(0 <= number < count for number in numbers):
        raise PromptError(
            f"prompts are selected by their numbers, whole and in 0…{count - 1}, or by {count} truth values, one a prompt; "
            f"got {prompts!r:.60}.",
            code="number-range",
        )
    return numbers


def _ints(name: str, given: Tensor, dims: int | None = None, prompts: int | None = None) -> Tensor:
    """A copy of whole numbers on the CPU, with the number of axes and of prompts that it must have."""
    must = f"{name} must hold whole numbers{f' on {dims} axes' if dims else ''}"
    try:
        tensor = torch.as_tensor(given).detach().cpu()
        whole = not (tensor.is_floating_point() or tensor.is_complex()) and tensor.layout == torch.strided
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise PromptError(
            f"{must}, as a tensor with equally long rows; it is {given!r:.60}, of which none can be made ({error}). Pad "
            "shorter prompts on the right, and say where they end with answer_pos.",
            code="prompt-shapes",
        ) from error
    if not whole or tensor.dim() == 0 or (dims is not None and tensor.dim() != dims):
        raise PromptError(
            f"{must}; it has shape {tuple(tensor.shape)} and type {tensor.dtype} ({tensor.layout}).",
            code="prompt-shapes",
        )
    if prompts is not None and len(tensor) != prompts:
        raise PromptError(
            f"{name} must have one row a prompt; it has {len(tensor)} and tokens has {prompts}.",
            code="prompt-shapes",
        )
    if len(tensor) == 0:
        raise PromptError(
            f"a PromptSet must hold at least one prompt; {name} has shape {tuple(tensor.shape)}.",
            code="prompt-shapes",
        )
    return tensor.long().clone()


def _warn_if_shifted(tokens: Tensor, label_pos: Tensor, demo_labels: Tensor, words: Tensor) -> None:
    """Say so where no label position holds its label token: the positions may be shifted."""
    if not 0 <= int(demo_labels.min()) <= int(demo_labels.max()) < words.shape[1]:
        return  # out of range: refused in a moment
    if not (tokens.gather(1, label_pos) == words.gather(1, demo_labels)).any():
        warnings.warn(
            "at no label position stands the label token of its demonstration; in prompt 0, position "
            f"{int(label_pos[0, 0])} holds token {int(tokens[0, label_pos[0, 0]])} and its label's token is "
            f"{int(words[0, demo_labels[0, 0]])}. If demonstrations show other tokens than those scored, this is "
            "as it should be; else label_pos is shifted.",
            stacklevel=3,
        )


def _check_labels(prompts: PromptSet) -> None:
    """Every prompt has the label words of two classes or more, which can be told apart as they are scored."""
    if len(prompts) == 0:
        raise PromptError("a PromptSet must hold at least one prompt.", code="prompt-shapes")
    if len(prompts.label_words) != len(prompts):
        raise PromptError(
            f"every prompt needs its label words; there are {len(prompts)} prompts and {len(prompts.label_words)} "
            "rows of label_words. PromptSet.from_tokens fills them in.",
            code="label-words",
        )
    if prompts.labels < 2:
        raise PromptError(
            f"a classification task must have at least two label words; got {prompts.labels}.",
            code="too-few-labels",
        )
    for words in (*prompts.label_words, prompts.classes or prompts.label_words[0]):
        if len(words) != prompts.labels:
            raise PromptError(
                f"label_words and classes must have one word a class; there are {prompts.labels} classes and the "
                f"words {words}.",
                code="label-words",
            )
    if prompts.score_on == "sequence":
        _check_prefixes(prompts)
    else:
        check_first_tokens(
            prompts.label_tokens,
            prompts.label_words,
            f" for {prompts.info.tokenizer or 'these ids'}. Choose other words in label_words, or pass "
            'score_on="sequence".',
        )


def _check_ranges(prompts: PromptSet) -> None:
    """Classes, roles and lengths are among those that there are."""
    labels = f"there are {prompts.labels} label tokens"
    width, pieces = prompts.tokens.shape[1], prompts.label_sequences.shape[2]
    for name, low, high, why in (
        ("demo_labels", 0, prompts.labels - 1, labels),
        ("test_labels", 0, prompts.labels - 1, labels),
        ("roles", 0, max(TokenRole), "they are TokenRole's"),
        ("lengths", 1, width, f"tokens has {width} positions"),
        ("label_lengths", 1, pieces, f"label_sequences has {pieces} pieces"),
    ):
        values = getattr(prompts, name)
        if (
            values is not None
            and values.numel()
            and not low <= int(values.min()) <= int(values.max()) <= high
        ):
            raise PromptError(
                f"{name} must lie in {low}…{high} ({why}); found {int(values.min())}…{int(values.max())}.",
                code="number-range",
            )


def _check_strings(prompts: PromptSet) -> None:
    """Where token strings are kept, there is one for each token."""
    if len(prompts.strings) > len(prompts):
        raise PromptError(
            f"strings has {len(prompts.strings)} rows, and there are {len(prompts)} prompts.",
            code="prompt-shapes",
        )
    for prompt, strings in enumerate(prompts.strings):
        if len(strings) != int(prompts.lengths[prompt]):
            raise PromptError(
                f"strings must hold one string a token; prompt {prompt} has {len(strings)} strings and "
                f"{int(prompts.lengths[prompt])} tokens.",
                code="prompt-shapes",
            )


def respelled(strings: Sequence[str], old: str, new: str, ids: list[int]) -> list[str]:
    """Token strings with one text in place of another: the first token shows it, the others are empty."""
    joined = "".join(strings)
    if old and old in joined:
        return [joined.replace(old, new, 1), *[""] * (len(ids) - 1)]
    return [f"{token} " for token in ids]


def check_first_tokens(
    first: Int[Tensor, "prompt label"],
    words: Sequence[tuple[str, ...]],
    advice: str,
    *,
    must: str = "label words must differ in their first token to be scored on it",
    spell: Callable[[list[int]], str] | None = None,
) -> None:
    """Refuse two label words of a prompt with the same first token; `must` begins the message, `advice` ends it."""
    ordered = first.sort(1).values
    same = (ordered[:, 1:] == ordered[:, :-1]).any(1)
    if same.any():
        prompt = int(same.nonzero()[0])
        tokens = first[prompt].tolist()
        later = next(c for c, token in enumerate(tokens) if token in tokens[:c])
        token = tokens[later]
        one, other = words[prompt][tokens.index(token)], words[prompt][later]
        what = f"{spell([token])!r} (token {token}, " if spell else f"token {token} ("
        raise PromptError(
            f"{must}; {one!r} and {other!r} both begin with {what}prompt {prompt}){advice}",
            code="label-collision",
        )


def _check_prefixes(prompts: PromptSet) -> None:
    """No label may begin another: the shorter would always be at least as probable."""
    sequences, lengths = prompts.label_sequences, prompts.label_lengths
    for a, b in permutations(range(prompts.labels), 2):
        shown = torch.arange(sequences.shape[2]) < lengths[:, a, None]
        same = ((sequences[:, a] == sequences[:, b]) | ~shown).all(1) & (lengths[:, a] <= lengths[:, b])
        if same.any():
            prompt = int(same.nonzero()[0])
            words = prompts.label_words[prompt]
            raise PromptError(
                f"no label word may begin another when whole labels are scored; {words[a]!r} begins {words[b]!r} "
                f"in tokens (prompt {prompt}), so it would always be at least as probable. Choose other words "
                "in label_words.",
                code="label-prefix",
            )


def _check_positions(answer_pos: Tensor, demo_spans: Tensor, label_spans: Tensor, lengths: Tensor) -> None:
    """Demonstrations in order, each label inside its demonstration, the answer behind them all."""
    if bad := ((answer_pos < 0) | (answer_pos >= lengths)).nonzero().flatten().tolist():
        raise PromptError(
            f"answer_pos must lie inside its prompt; prompt {bad[0]} has answer_pos {int(answer_pos[bad[0]])} and "
            f"{int(lengths[bad[0]])} tokens.",
            code="position",
        )
    if demo_spans.shape[1] == 0:
        return
    starts, ends = demo_spans[..., 0], demo_spans[..., 1]
    first, last = label_spans[..., 0], label_spans[..., 1]
    wrong = (starts < 0) | (first < starts) | (last <= first) | (last > ends) | (ends > answer_pos[:, None])
    wrong[:, 1:] |= starts[:, 1:] < ends[:, :-1]
    if wrong.any():
        prompt, demo = wrong.nonzero()[0].tolist()
        raise PromptError(
            "demonstrations must follow one another, hold their label, and end before the answer position; "
            f"prompt {prompt}, demonstration {demo} has span {demo_spans[prompt, demo].tolist()}, label "
            f"{label_spans[prompt, demo].tolist()}, answer position {int(answer_pos[prompt])}. Is label_pos "
            "in increasing order, and in this prompt's own positions?",
            code="position",
        )
