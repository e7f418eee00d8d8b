"""The span of every demonstration and label in tokens, found from the tokenizer's character offsets; their layout.

A prompt's text is joined from pieces whose character ranges are known, so that no word is searched for. A token
belongs to the piece that holds its first character which is not white space.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.models.adapter import ModelAdapter
from icl_kernel_lens.prompts.example import Episode
from icl_kernel_lens.prompts.promptset import TEXT_ROLES, TokenRole
from icl_kernel_lens.prompts.template import Template
from icl_kernel_lens.prompts.tokenizer import Offsets, Stretches, check_tokenizer, encode

TEST, OUTSIDE = -1, -2
"""Owners of a piece that is in no demonstration: the test input; separators and the prefix."""


@dataclass(frozen=True)
class Piece:
    """A stretch of a prompt's text."""

    role: TokenRole
    owner: int
    """The number of its demonstration, or TEST, or OUTSIDE."""
    string: str


def pieces_of(episode: Episode, template: Template) -> list[Piece]:
    """The text of an episode's prompt, piece by piece."""
    examples = [(i, demo, episode.label_words[demo.label]) for i, demo in enumerate(episode.demos)]
    pieces = [Piece(TokenRole.TEMPLATE, OUTSIDE, template.prefix)]
    for owner, example, word in (*examples, (TEST, episode.test, None)):
        found = template.pieces(example.texts, word)
        pieces += [Piece(TokenRole[role.upper()], owner, string) for role, string in found]
        if owner != TEST:
            pieces.append(Piece(TokenRole.TEMPLATE, OUTSIDE, template.separator))
    return [piece for piece in pieces if piece.string]


@dataclass(frozen=True)
class LocatedPrompt:
    """The tokens of one prompt, with the role of each and the spans of demonstrations and labels."""

    stretches: Stretches
    ids: list[int]
    offsets: Offsets
    roles: list[int]
    demo_spans: list[tuple[int, int]]
    label_spans: list[tuple[int, int]]

    @property
    def text(self) -> str:
        return "".join(string for string, _ in self.stretches)


def locate_prompts(
    adapter: ModelAdapter, episodes: Sequence[Episode], template: Template, prepend_bos: bool | None
) -> list[LocatedPrompt]:
    """The prompts of these episodes, each tokenized whole.

    Raises: PromptError: no tokenizer or no offsets; spans that cannot be told.
    """
    tokenizer = check_tokenizer(adapter)
    pieces = [pieces_of(episode, template) for episode in episodes]
    texts = [[(piece.string, piece.role == TokenRole.TEMPLATE) for piece in row] for row in pieces]
    encoded = encode(tokenizer, texts, prepend_bos)
    spell = tokenizer.convert_ids_to_tokens
    return [
        locate_spans(row, text, *tokens, spell)
        for row, text, tokens in zip(pieces, texts, encoded, strict=True)
    ]


def locate_spans(
    pieces: list[Piece], stretches: Stretches, ids: list[int], offsets: Offsets, spell: Callable[[int], str]
) -> LocatedPrompt:
    """The role of every token of a prompt, and its demonstrations' spans.

    Raises: PromptError: a label shares a token with the text around it; a demonstration or label without a token.
    """
    text = "".join(piece.string for piece in pieces)
    ends = list(accumulate(len(piece.string) for piece in pieces))
    roles: list[int] = []
    owners: list[int] = []
    for token, span in zip(ids, offsets, strict=True):
        if span is None:
            roles.append(int(TokenRole.SPECIAL))
            owners.append(OUTSIDE)
            continue
        start, end = span
        while start < end - 1 and text[start].isspace():
            start += 1
        which = min(bisect_right(ends, start), len(pieces) - 1)
        piece = pieces[which]
        last = min(bisect_right(ends, start + len(text[start:end].rstrip()) - 1), len(pieces) - 1)
        if any(other.role == TokenRole.LABEL for other in pieces[which : last + 1]) and last > which:
            spanned = " | ".join(repr(other.string[-20:]) for other in pieces[which : last + 1])
            raise PromptError(
                "a label must not share a token with the text around it; the token "
                f"{text[span[0] : end]!r} covers several pieces of the prompt: {spanned} (it is "
                f"{spell(token)!r} to the tokenizer). Put a space or a line break between label and template.",
                code="label-tokens",
            )
        roles.append(int(piece.role))
        owners.append(piece.owner)
    demos = range(max((piece.owner for piece in pieces), default=TEST) + 1)
    labels = [o if r == TokenRole.LABEL else OUTSIDE for o, r in zip(owners, roles, strict=True)]
    return LocatedPrompt(
        stretches,
        ids,
        offsets,
        roles,
        [_run(owners, i, text, "demonstration") for i in demos],
        [_run(labels, i, text, "label of demonstration") for i in demos],
    )


def _run(owners: list[int], owner: int, text: str, what: str) -> tuple[int, int]:
    where = [i for i, o in enumerate(owners) if o == owner]
    if not where:
        raise PromptError(
            f"every {what} must have a token; number {owner} has none in {text[-80:]!r}. Is the text empty?",
            code="empty-text",
        )
    return where[0], where[-1] + 1


def token_strings(located: LocatedPrompt) -> tuple[str, ...]:
    """Each token's stretch of the text; joined they give the text, so that no white space is lost.

    A token's stretch reaches to where the next begins. Of several tokens that spell one character (bytes of an
    emoji), the first shows it and the others are empty.
    """
    text, found, shown = located.text, [], 0
    starts = [span[0] if span is not None else None for span in located.offsets]
    for i, span in enumerate(located.offsets):
        if span is None:
            found.append("⟨bos⟩")
            continue
        following = next((s for s in starts[i + 1 :] if s is not None), len(text))
        end = max(shown, span[1], following)
        found.append(text[shown:end])
        shown = end
    return tuple(found)


def input_layout(ids: list[int], roles: list[int], start: int, end: int) -> tuple[int, ...]:
    """The layout of the input of the demonstration at `[start, end)`: alike where inputs can change places.

    It is the roles of the input's tokens, one number for a label between them (of however many tokens), and
    which tokens of the template touch the input: a space before it where the tokenizer does not merge the two.
    """
    texts = [at for at in range(start, end) if roles[at] in TEXT_ROLES]
    beside = {at + step for at in texts for step in (-1, 1)}
    found: list[int] = []
    for at in range(start, end):
        if roles[at] == TokenRole.LABEL:
            found += [int(TokenRole.LABEL)] if roles[at - 1] != TokenRole.LABEL else []
        elif roles[at] in TEXT_ROLES:
            found.append(roles[at])
        elif at in beside:
            found.append(-1 - ids[at])
    return tuple(found)
