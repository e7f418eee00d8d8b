"""From episodes to tokens: render the text, tokenize it whole, and find every span in context.

The text is assembled from pieces whose character ranges are known, so spans come from the tokenizer's
offsets, never from searching for a word: a token belongs to the piece that holds its first character
which is not white space. The label as an answer is tokenized behind the prompt it answers, and must
leave the prompt's own tokens as they were.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.models import Lens, as_lens
from icl_kernel_lens.prompts.fit import check_fits
from icl_kernel_lens.prompts.promptset import SHOWN, PromptInfo, PromptSet, Role, ScoreOn
from icl_kernel_lens.tasks.task import Episode, EpisodeSource, Example
from icl_kernel_lens.tasks.template import Template

_ROLES = {"template": Role.TEMPLATE, "text": Role.TEXT, "text2": Role.TEXT2, "label": Role.LABEL}
TEST, OUTSIDE = -1, -2
"""Owners of a piece that is not in a demonstration: the test input, and separators or the prefix."""


def prompts_from(
    source: EpisodeSource,
    episodes: list[Episode],
    model: Any,
    *,
    seed: int,
    sets: int | None,
    balanced: bool,
    given: bool,
    score_on: ScoreOn,
    prepend_bos: bool | None,
) -> PromptSet:
    """Tokenize the episodes drawn from a task or a world for `model`; see `Task.prompts`."""
    info = PromptInfo(
        task=source.name,
        origin=source.origin,
        demos=len(episodes[0].demos),
        sets=1 if given else sets,
        balanced=balanced,
        seed=seed,
    )
    return build_prompts(
        as_lens(model),
        episodes,
        source.template,
        info=info,
        classes=source.classes,
        score_on=score_on,
        prepend_bos=prepend_bos,
    )


PERMUTATIONS = 32
"""Fewest permutations of labels that prompts with permuted labels are drawn from."""


def rebuilt(model: Any, prompts: PromptSet, *, labels: Literal["none", "permuted"]) -> PromptSet:
    """The same test inputs with no demonstrations (`"none"`), or with their labels permuted among them."""
    if prompts.episodes is None or prompts.info.template is None:
        raise PromptError(
            "prompts can be written anew only where they were made from text in this session; these came "
            "from token ids or from a file. Draw them again with task.prompts(...)."
        )
    if labels == "none":
        episodes = [episode.without_demos() for episode in prompts.episodes]
    else:
        # Prompts of one set take turns with as many permutations as make PERMUTATIONS in all: one for each set
        # would be a toss of a coin where there are few.
        sets = len({episode.demo_set for episode in prompts.episodes})
        turns = -(-PERMUTATIONS // sets)
        seen: dict[object, int] = {}
        episodes = []
        for episode in prompts.episodes:
            turn = seen[episode.demo_set] = seen.get(episode.demo_set, -1) + 1
            name = f"permute/{prompts.info.seed}/{episode.demo_set}"
            name += f"/{turn % turns}" if turn % turns else ""
            episodes.append(episode.with_permuted_labels(random.Random(name)))
    return build_prompts(
        as_lens(model),
        episodes,
        prompts.info.template,
        info=replace(
            prompts.info,
            demos=len(episodes[0].demos),
            permuted_labels=labels == "permuted",
        ),
        classes=prompts.classes,
        score_on=prompts.score_on,
        prepend_bos=prompts.info.bos_asked,
    )


@dataclass(frozen=True)
class _Piece:
    role: str
    owner: int
    string: str


def _pieces(episode: Episode, template: Template) -> list[_Piece]:
    pieces = [_Piece("template", OUTSIDE, template.prefix)]
    for i, demo in enumerate(episode.demos):
        word = episode.label_words[demo.label]
        pieces += [_Piece(role, i, s) for role, s in template.pieces(demo.texts, word)]
        pieces += [_Piece("template", OUTSIDE, template.separator)]
    pieces += [_Piece(role, TEST, s) for role, s in template.pieces(episode.test.texts, None)]
    return [piece for piece in pieces if piece.string]


def build_prompts(
    lens: Lens,
    episodes: list[Episode],
    template: Template,
    *,
    info: PromptInfo,
    classes: tuple[str, ...],
    score_on: ScoreOn = "first_token",
    prepend_bos: bool | None = None,
) -> PromptSet:
    """Tokenize episodes of equally many demonstrations; see the module's first paragraph.

    `prepend_bos=None` does what the tokenizer does by default.

    Raises: PromptError: no tokenizer or no offsets, label tokens that depend on their surroundings,
        prompts longer than the context.
    """
    tokenizer = check_tokenizer(lens)
    pieces = [_pieces(episode, template) for episode in episodes]
    texts = ["".join(piece.string for piece in row) for row in pieces]
    encoded = [
        _locate(row, text, ids, offsets)
        for row, text, (ids, offsets) in zip(
            pieces, texts, encode(tokenizer, texts, prepend_bos), strict=True
        )
    ]
    words = [episode.label_words for episode in episodes]
    gap = _label_gap(template)
    sequences = _answers(tokenizer, texts, [e.ids for e in encoded], words, gap, prepend_bos)

    if score_on == "first_token":
        _refuse_equal_beginnings(tokenizer, words, sequences)
    demos = len(episodes[0].demos)
    for prompt, (episode, row) in enumerate(zip(episodes, encoded, strict=True)):
        for i, demo in enumerate(episode.demos):
            start, end = row.label_spans[i]
            if row.ids[start:end] != sequences[prompt][demo.label]:
                raise PromptError(
                    "a label word must have the same tokens in a demonstration and as the answer; "
                    f"{episode.label_words[demo.label]!r} is {row.ids[start:end]} in demonstration {i} of "
                    f"prompt {prompt} and {sequences[prompt][demo.label]} as the answer. The tokenizer "
                    "merges it with the template around it; put a space or a line break there."
                )
    longest = max(len(row.ids) for row in encoded)
    pieces_most = max(len(s) for row in sequences for s in row)

    def padded(rows: list[list[int]]) -> Tensor:
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows])

    lengths = torch.tensor([len(row.ids) for row in encoded])
    spans = (len(episodes), demos, 2)
    has_bos = bool(encoded[0].roles and encoded[0].roles[0] == Role.SPECIAL)
    prompts = PromptSet(
        tokens=padded([row.ids for row in encoded]),
        lengths=lengths,
        roles=padded([row.roles for row in encoded]),
        answer_pos=lengths - 1,
        demo_spans=torch.tensor([row.demo_spans for row in encoded]).reshape(spans).long(),
        label_spans=torch.tensor([row.label_spans for row in encoded]).reshape(spans).long(),
        demo_labels=torch.tensor([[d.label for d in e.demos] for e in episodes])
        .reshape(len(episodes), demos)
        .long(),
        label_sequences=torch.tensor([[s + [0] * (pieces_most - len(s)) for s in row] for row in sequences]),
        label_lengths=torch.tensor([[len(s) for s in row] for row in sequences]),
        demo_set=torch.tensor([e.demo_set for e in episodes]),
        test_labels=torch.tensor([e.test.label for e in episodes]),
        score_on=score_on,
        label_words=tuple(words),
        classes=classes,
        strings=tuple(
            _token_strings(text, row) for text, row in list(zip(texts, encoded, strict=True))[:SHOWN]
        ),
        info=replace(
            info,
            template=template,
            tokenizer=getattr(tokenizer, "name_or_path", None) or type(tokenizer).__name__,
            prepend_bos=has_bos,
            bos_asked=prepend_bos,
        ),
        episodes=tuple(episodes),
    )
    check_fits(prompts, lens)
    return prompts


def input_layout(ids: list[int], roles: list[int], start: int, end: int) -> tuple[int, ...]:
    """What two demonstrations must have in common for their inputs to change places, as numbers.

    The roles of the input's tokens, that a label stands between (of however many tokens), and which tokens of
    the template touch the input: a space before it is one where the tokenizer does not merge it with the text.
    """
    texts = [at for at in range(start, end) if roles[at] in (Role.TEXT, Role.TEXT2)]
    beside = {at + step for at in texts for step in (-1, 1)}
    found: list[int] = []
    for at in range(start, end):
        if roles[at] == Role.LABEL:
            found += [int(Role.LABEL)] if roles[at - 1] != Role.LABEL else []
        elif roles[at] in (Role.TEXT, Role.TEXT2):
            found.append(roles[at])
        elif at in beside:
            found.append(-1 - ids[at])
    return tuple(found)


@dataclass(frozen=True)
class Layout:
    """Where an example can stand in place of another."""

    first: tuple[int, ...]
    """Its `input_layout` in the first demonstration of a prompt."""
    later: tuple[int, ...]
    """The same in a later one."""
    test: int
    """As the test input, tokens from the end of the last demonstration to the answer position."""

    @property
    def inputs(self) -> int:
        """Tokens of the input."""
        return sum(role in (Role.TEXT, Role.TEXT2) for role in self.later)


def find_layouts(lens: Lens, template: Template, examples: Sequence[Example], word: str) -> list[Layout]:
    """The layout of each example, written twice as a demonstration (labelled `word`) and as the test input."""
    pieces = []
    for example in examples:
        shown = replace(example, label=0)
        pieces.append(_pieces(Episode((shown, shown), shown, (word,), 0), template))
    texts = ["".join(piece.string for piece in row) for row in pieces]
    found = []
    encoded = encode(check_tokenizer(lens), texts, None)
    for row, text, (ids, offsets) in zip(pieces, texts, encoded, strict=True):
        at = _locate(row, text, ids, offsets)
        first, later = (input_layout(ids, at.roles, start, end) for start, end in at.demo_spans)
        found.append(Layout(first, later, len(ids) - at.demo_spans[1][1]))
    return found


def _refuse_equal_beginnings(
    tokenizer: Any, words: list[tuple[str, ...]], sequences: list[list[list[int]]]
) -> None:
    """Labels scored on their first token must differ in it."""
    for prompt, (row, answers) in enumerate(zip(words, sequences, strict=True)):
        seen: dict[int, str] = {}
        for word, answer in zip(row, answers, strict=True):
            if answer[0] in seen:
                name = getattr(tokenizer, "name_or_path", None) or type(tokenizer).__name__
                raise PromptError(
                    f"label words must differ in their first token to be scored on it; {seen[answer[0]]!r} and "
                    f"{word!r} both begin with {tokenizer.decode([answer[0]])!r} (token {answer[0]}, prompt "
                    f'{prompt}) for {name}. Choose other label words, or score whole labels (score_on="sequence").'
                )
            seen[answer[0]] = word


def check_tokenizer(lens: Lens) -> Any:
    """The tokenizer of a model; refuses none, and one without character offsets."""
    tokenizer = lens.tokenizer
    if tokenizer is None:
        raise PromptError(
            f"prompts made from text need a tokenizer; {lens.name} has none. Give the model one, or make "
            "token ids yourself and pass them to PromptSet.from_tokens."
        )
    if not getattr(tokenizer, "is_fast", False):
        raise PromptError(
            "spans are read off the tokenizer's character offsets, which only fast tokenizers give; "
            f"{type(tokenizer).__name__} is a slow one. Load it with "
            "AutoTokenizer.from_pretrained(name, use_fast=True)."
        )
    return tokenizer


def encode(
    tokenizer: Any, texts: list[str], prepend_bos: bool | None
) -> list[tuple[list[int], list[tuple[int, int] | None]]]:
    """Ids and character offsets of each text; special tokens have no offsets (None)."""
    out = tokenizer(
        texts,
        add_special_tokens=prepend_bos is None,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        truncation=False,
        padding=False,
        split_special_tokens=True,
        verbose=False,
    )
    bos = tokenizer.bos_token_id
    if prepend_bos and bos is None:
        raise PromptError(
            "prepend_bos=True needs a beginning-of-sequence token, and this tokenizer has none. Pass "
            "prepend_bos=False."
        )
    rows = []
    for ids, offsets, special in zip(
        out["input_ids"], out["offset_mapping"], out["special_tokens_mask"], strict=True
    ):
        added = [bool(s) and a == b for s, (a, b) in zip(special, offsets, strict=True)]
        while added and added[-1]:  # a tokenizer that closes its texts: the answer must follow directly
            ids, offsets, added = ids[:-1], offsets[:-1], added[:-1]
        spans: list[tuple[int, int] | None] = [
            None if s else (int(a), int(b)) for s, (a, b) in zip(added, offsets, strict=True)
        ]
        if prepend_bos:
            ids, spans = [bos, *ids], [None, *spans]
        rows.append((list(ids), spans))
    return rows


@dataclass(frozen=True)
class _Located:
    """One prompt's tokens with what each is for."""

    ids: list[int]
    offsets: list[tuple[int, int] | None]
    roles: list[int]
    demo_spans: list[tuple[int, int]]
    label_spans: list[tuple[int, int]]


def _locate(
    pieces: list[_Piece], text: str, ids: list[int], offsets: list[tuple[int, int] | None]
) -> _Located:
    ends: list[int] = []
    for piece in pieces:
        ends.append((ends[-1] if ends else 0) + len(piece.string))
    roles, owners, label_of = [], [], []
    for span in offsets:
        if span is None:
            roles.append(int(Role.SPECIAL))
            owners.append(OUTSIDE)
            label_of.append(OUTSIDE)
            continue
        start, end = span
        while start < end - 1 and text[start].isspace():
            start += 1
        which = min(bisect_right(ends, start), len(pieces) - 1)
        piece = pieces[which]
        if end > ends[which] and text[ends[which] : end].strip():
            after = pieces[which + 1]
            if "label" in (piece.role, after.role):
                raise PromptError(
                    "a label must not share a token with the text around it; the token "
                    f"{text[span[0] : end]!r} covers the end of {piece.string[-20:]!r} and the beginning of "
                    f"{after.string[:20]!r}. Put a space or a line break between label and template."
                )
        roles.append(int(_ROLES[piece.role]))
        owners.append(piece.owner)
        label_of.append(piece.owner if piece.role == "label" else OUTSIDE)
    demos = max((piece.owner for piece in pieces), default=TEST) + 1
    return _Located(
        ids,
        offsets,
        roles,
        [_run(owners, i, text, "demonstration") for i in range(demos)],
        [_run(label_of, i, text, "label of demonstration") for i in range(demos)],
    )


def _run(owners: list[int], owner: int, text: str, what: str) -> tuple[int, int]:
    where = [i for i, o in enumerate(owners) if o == owner]
    if not where:
        raise PromptError(
            f"every {what} must have a token; number {owner} has none in {text[-80:]!r}. Is the text empty?"
        )
    return where[0], where[-1] + 1


def _label_gap(template: Template) -> str:
    """The spaces between the end of a test prompt and its answer."""
    before = template.demo.split("{label}")[0]
    return before[len(before.rstrip(" ")) :]


def _answers(
    tokenizer: Any,
    texts: list[str],
    prompts: list[list[int]],
    words: list[tuple[str, ...]],
    gap: str,
    prepend_bos: bool | None,
) -> list[list[list[int]]]:
    """The tokens of every label word behind its prompt; the prompt's own tokens must not change."""
    flat = [text + gap + word for text, row in zip(texts, words, strict=True) for word in row]
    encoded = iter(encode(tokenizer, flat, prepend_bos))
    found: list[list[list[int]]] = []
    for prompt, row in zip(prompts, words, strict=True):
        answers = []
        for word in row:
            ids = next(encoded)[0]
            if ids[: len(prompt)] != prompt or len(ids) == len(prompt):
                same = next(
                    (i for i, (a, b) in enumerate(zip(ids, prompt, strict=False)) if a != b),
                    min(len(ids), len(prompt)),
                )
                raise PromptError(
                    f"a label must begin a new token; written behind the prompt, {gap + word!r} changes the "
                    f"prompt's own tokens from position {same} on. End the template, before "
                    "the label, in a character that the tokenizer does not merge, such as ':'."
                )
            if (unknown := getattr(tokenizer, "unk_token_id", None)) is not None and unknown in ids[
                len(prompt) :
            ]:
                raise PromptError(
                    f"every label word must be in the tokenizer's vocabulary; {word!r} is not (it becomes "
                    f"{tokenizer.unk_token!r}). Choose other words in label_words."
                )
            answers.append(ids[len(prompt) :])
        found.append(answers)
    return found


def _token_strings(text: str, row: _Located) -> tuple[str, ...]:
    """Each token's part of the text; joined they give the text, so that no white space is lost.

    A token's part reaches to where the next begins. Of several tokens that spell one character (bytes of an
    emoji), the first shows it and the others are empty.
    """
    found, shown = [], 0
    starts = [span[0] if span is not None else None for span in row.offsets]
    for i, span in enumerate(row.offsets):
        if span is None:
            found.append("⟨bos⟩")
            continue
        following = next((s for s in starts[i + 1 :] if s is not None), len(text))
        end = max(shown, span[1], following)
        found.append(text[shown:end])
        shown = end
    return tuple(found)
