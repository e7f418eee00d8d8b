"""A model's tokenizer, asked for token ids and the characters that each token covers."""

from __future__ import annotations

import hashlib
import re
from copy import deepcopy
from itertools import accumulate
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import AddedToken

from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.models.adapter import ModelAdapter

Offsets = list[tuple[int, int] | None]
"""The characters that each token covers, `[start, end)`; None for a token that the tokenizer added."""
Stretches = list[tuple[str, bool]]
"""A text in stretches, each with whether a special token that is written in it is one; in a user's text it is text."""


def check_tokenizer(adapter: ModelAdapter) -> Any:
    """The tokenizer of a model, which must give character offsets.

    Raises: PromptError: there is none, or it is a slow one.
    """
    tokenizer = adapter.tokenizer
    if tokenizer is None:
        raise PromptError(
            f"prompts made from text need a tokenizer; {adapter.name} has none. Give the model one, or make "
            "token ids yourself and pass them to PromptSet.from_tokens.",
            code="tokenizer",
        )
    if not getattr(tokenizer, "is_fast", False):
        raise PromptError(
            "spans are read off the tokenizer's character offsets, which only fast tokenizers give; "
            f"{type(tokenizer).__name__} is a slow one. Load it with "
            "AutoTokenizer.from_pretrained(name, use_fast=True).",
            code="tokenizer",
        )
    return tokenizer


def tokenizer_name(tokenizer: Any) -> str:
    """What a tokenizer was loaded from, or else its class."""
    return getattr(tokenizer, "name_or_path", None) or type(tokenizer).__name__


_vocabularies: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def vocabulary_of(tokenizer: Any) -> str | None:
    """A digest of what each id stands for, without tokens that were added; None where that cannot be asked."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        return None
    if tokenizer not in _vocabularies:
        tokens = sorted((number, token) for token, number in core.get_vocab(with_added_tokens=False).items())
        _vocabularies[tokenizer] = hashlib.sha256(repr(tokens).encode("utf-8", "replace")).hexdigest()[:16]
    return _vocabularies[tokenizer]


def unknown_tokens(tokenizer: Any) -> set[int]:
    """The ids that stand for what is not in the vocabulary, whether the tokenizer declares them or not."""
    core = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    hidden = getattr(core, "unk_token", None)
    found = {tokenizer.unk_token_id, hidden and core and core.token_to_id(hidden)}
    return {number for number in found if isinstance(number, int)}


def marks_of(tokenizer: Any) -> dict[int, AddedToken]:
    """Special tokens by number, and other added tokens that the chat template names, as some do with `<think>`."""
    named = str(tokenizer.chat_template or "")
    return {
        number: token
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.content
        and (token.special or (not _SPELLED.search(token.content) and token.content in named))
    }


_SPELLED = re.compile(r"^\w|\w$|^\s*$")
"""An added token that is a word or white space, and marks nothing."""


def encode(
    tokenizer: Any, texts: list[Stretches], prepend_bos: bool | None
) -> list[tuple[list[int], Offsets]]:
    """The token ids of each text with their offsets. What a tokenizer appends to close a text is left out.

    `prepend_bos=None` adds in front what the tokenizer adds by default. A beginning-of-sequence token that a text
    itself begins with is not added again.

    Raises: PromptError: a beginning-of-sequence token is asked for, and the tokenizer has none.
    """
    for text in texts:
        _check_unicode("".join(string for string, _ in text))
    bos = tokenizer.bos_token_id
    if prepend_bos and bos is None:
        raise PromptError(
            "prepend_bos=True needs a beginning-of-sequence token, and this tokenizer has none. Pass "
            "prepend_bos=False.",
            code="tokenizer",
        )
    reader, meant, written = _with_stand_ins(tokenizer, texts)
    found = _read(reader, written, add=prepend_bos is None)
    marks = marks_of(tokenizer)
    special = set(marks) - unknown_tokens(tokenizer)
    # A vocabulary that holds a special token's spelling reads it in a text, too.
    leaks = [
        i
        for i, row in enumerate(found)
        if any(t in special and s is not None for t, s in zip(*row, strict=True))
    ]
    if leaks:
        spelled = [marks[number].content for number in special]
        again = _read_broken(reader, [written[i] for i in leaks], spelled, add=prepend_bos is None)
        for i, row in zip(leaks, again, strict=True):
            found[i] = row
    rows = []
    for numbers, spans in found:
        while spans and spans[-1] is None:  # the answer must follow the text directly
            spans.pop()
        ids = [meant.get(number, number) for number in numbers[: len(spans)]]
        if prepend_bos and ids[:1] != [bos]:
            ids, spans = [bos, *ids], [None, *spans]
        elif bos is not None and ids[:2] == [bos, bos] and spans[0] is None:
            ids, spans = ids[1:], spans[1:]
        rows.append((ids, spans))
    return rows


def _check_unicode(text: str) -> None:
    if (at := next((i for i, char in enumerate(text) if "\ud800" <= char <= "\udfff"), None)) is not None:
        raise PromptError(
            f"a text must be Unicode to be tokenized; {text[max(0, at - 20) : at + 20]!r} holds half of a surrogate pair. "
            'Mend it with text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").',
            code="text-unicode",
        )


def _read(reader: Any, texts: list[str], *, add: bool) -> list[tuple[list[int], Offsets]]:
    out = reader(
        texts,
        add_special_tokens=add,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        truncation=False,
        padding=False,
        split_special_tokens=True,
        verbose=False,
    )
    rows = zip(out["input_ids"], out["offset_mapping"], out["special_tokens_mask"], strict=True)
    return [
        (
            list(ids),
            [
                None if added and a == b else (int(a), int(b))
                for added, (a, b) in zip(special, offsets, strict=True)
            ],
        )
        for ids, offsets, special in rows
    ]


def _read_broken(
    reader: Any, texts: list[str], marks: list[str], *, add: bool
) -> list[tuple[list[int], Offsets]]:
    """As `_read`, with every special token in the texts in two halves, so that no vocabulary knows it."""
    wedge = next(char for char in map(chr, range(0xEFFFF, 0xE1000, -1)) if not any(char in t for t in texts))
    reader = deepcopy(reader)
    reader.backend_tokenizer.add_tokens([AddedToken(wedge, normalized=False, special=False)])
    number = reader.backend_tokenizer.token_to_id(wedge)
    pattern = re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))))
    broken = [pattern.sub(lambda match: match[0][0] + wedge + match[0][1:], text) for text in texts]
    rows = []
    for text, (ids, offsets) in zip(broken, _read(reader, broken, add=add), strict=True):
        before = [0, *accumulate(char == wedge for char in text)]
        kept = [(t, s) for t, s in zip(ids, offsets, strict=True) if t != number]
        spans = [s and (s[0] - before[s[0]], s[1] - before[s[1]]) for _, s in kept]
        rows.append(([t for t, _ in kept], spans))
    return rows


def _with_stand_ins(tokenizer: Any, texts: list[Stretches]) -> tuple[Any, dict[int, int], list[str]]:
    """A tokenizer, what its new ids mean, and the texts for it, with a stand-in for each special token that is one.

    A stand-in is as long as the token, of a character that no text holds; the tokenizer's own special tokens are then
    read as text. Without special tokens to keep, all is as it was given.
    """
    whole = ["".join(string for string, _ in text) for text in texts]
    own = {string for text in texts for string, ours in text if ours}
    known = {token.content: (number, token) for number, token in marks_of(tokenizer).items()}
    if not known:
        return tokenizer, {}, whole
    pattern = re.compile("|".join(map(re.escape, sorted(known, key=len, reverse=True))))
    used = sorted({mark for string in own for mark in pattern.findall(string)})
    undeclared = [mark for mark, (_, token) in known.items() if not token.special]
    if not used and not any(mark in text for mark in undeclared for text in whole):
        return tokenizer, {}, whole
    taken = set().union(*whole)
    free = (char for char in map(chr, range(0x10FFFD, 0xF0000, -1)) if char not in taken)
    written = {token: next(free) * len(token) for token in used}
    reader = deepcopy(tokenizer)
    core = reader.backend_tokenizer
    core.add_special_tokens([known[mark][1] for mark in undeclared])  # now they are
    core.add_tokens([_like(known[token][1], stand_in) for token, stand_in in written.items()])
    meant = {core.token_to_id(stand_in): known[token][0] for token, stand_in in written.items()}
    kept = {string: pattern.sub(lambda match: written[match[0]], string) for string in own}
    return reader, meant, ["".join(kept[s] if ours else s for s, ours in text) for text in texts]


def _like(token: AddedToken, content: str) -> AddedToken:
    """An added token of another text that is found as this one is."""
    return AddedToken(
        content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=False,
    )
