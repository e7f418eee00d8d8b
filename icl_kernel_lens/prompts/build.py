"""Prompts made from episodes, and made anew: with permuted labels, without demonstrations, or of other episodes.

Their text is rendered, tokenized whole, and every span is found in context: spans come from the tokenizer's character
offsets (`spans.py`), the label as an answer from tokenizing it behind the prompt.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.models.adapter import ModelAdapter, as_adapter
from icl_kernel_lens.prompts.example import Episode
from icl_kernel_lens.prompts.fit import check_fits, check_same_tokenizer
from icl_kernel_lens.prompts.label_tokens import find_label_tokens
from icl_kernel_lens.prompts.promptset import (
    SHOWN,
    PromptInfo,
    PromptSet,
    ScoreOn,
    TokenRole,
    check_first_tokens,
)
from icl_kernel_lens.prompts.spans import LocatedPrompt, locate_prompts, pieces_of, token_strings
from icl_kernel_lens.prompts.template import Template
from icl_kernel_lens.prompts.tokenizer import check_tokenizer, encode, tokenizer_name, vocabulary_of

PERMUTATIONS = 8
"""Fewest permutations of labels that prompts with permuted labels are drawn from: with as many sets, one for each."""


def build_prompts(
    adapter: ModelAdapter,
    episodes: Sequence[Episode],
    template: Template,
    *,
    info: PromptInfo,
    classes: tuple[str, ...],
    score_on: ScoreOn = "first_token",
    prepend_bos: bool | None = None,
) -> PromptSet:
    """Tokenize episodes of equally many demonstrations for a model.

    `prepend_bos=None` does what the tokenizer does by default; a chat template writes its own.

    Raises: PromptError: no tokenizer or no offsets, label tokens that depend on their surroundings,
        prompts longer than the context.
    """
    asked = False if template.whole and prepend_bos is None else prepend_bos
    _check_shortest(adapter, episodes, template, asked)
    located = locate_prompts(adapter, episodes, template, asked)
    tokenizer: Any = adapter.tokenizer
    words = tuple(episode.label_words for episode in episodes)
    answers = find_label_tokens(tokenizer, located, words, template, asked, score_on)
    flat = [torch.tensor(answer) for row in answers for answer in row]
    sequences = pad_sequence(flat, batch_first=True).unflatten(0, (len(episodes), -1))
    if score_on == "first_token":
        check_first_tokens(
            sequences[..., 0],
            words,
            f" for {tokenizer_name(tokenizer)}. Choose other label words, or score whole labels "
            '(score_on="sequence").',
            spell=tokenizer.decode,
        )
    _check_labels_as_answers(episodes, located, answers, tokenizer.convert_ids_to_tokens)
    lengths = torch.tensor([len(p.ids) for p in located])
    demos = len(episodes[0].demos)

    def whole(rows: list[list[int]] | list[list[tuple[int, int]]], *shape: int) -> Tensor:
        return torch.tensor(rows, dtype=torch.long).reshape(len(episodes), demos, *shape)

    prompts = PromptSet(
        tokens=pad_sequence([torch.tensor(p.ids) for p in located], batch_first=True),
        lengths=lengths,
        roles=pad_sequence([torch.tensor(p.roles) for p in located], batch_first=True),
        answer_pos=lengths - 1,
        demo_spans=whole([p.demo_spans for p in located], 2),
        label_spans=whole([p.label_spans for p in located], 2),
        demo_labels=whole([[demo.label for demo in episode.demos] for episode in episodes]),
        label_sequences=sequences,
        label_lengths=torch.tensor([[len(answer) for answer in row] for row in answers]),
        demo_set=torch.tensor([episode.demo_set for episode in episodes]),
        test_labels=torch.tensor([episode.test.label for episode in episodes]),
        score_on=score_on,
        label_words=words,
        classes=classes,
        strings=tuple(token_strings(p) for p in located[:SHOWN]),
        info=replace(
            info,
            template=template,
            tokenizer=tokenizer_name(tokenizer),
            prepend_bos=located[0].roles[:1] == [TokenRole.SPECIAL]
            or located[0].ids[:1] == [tokenizer.bos_token_id],
            bos_asked=prepend_bos,
            vocabulary=vocabulary_of(tokenizer),
        ),
        episodes=tuple(episodes),
    )
    check_fits(prompts, adapter)
    return prompts


FAR_TOO_LONG = 4
"""Characters, for each token of a context, from which on a prompt is looked at before others are tokenized."""
LONG_TEXT = 10_000
"""Characters that are tokenized at once."""


def _check_shortest(
    adapter: ModelAdapter, episodes: Sequence[Episode], template: Template, prepend_bos: bool | None
) -> None:
    """Refuse prompts of which even the shortest is too long, before the time is taken to tokenize them all."""
    context = adapter.shape.context
    texts = ["".join(piece.string for piece in pieces_of(episode, template)) for episode in episodes]
    shortest = min(texts, key=len)
    if context is None or len(shortest) <= max(FAR_TOO_LONG * context, LONG_TEXT):
        return
    ((ids, _),) = encode(check_tokenizer(adapter), [[(shortest, True)]], prepend_bos)
    if len(ids) > context:
        demos = len(episodes[0].demos)
        raise PromptError(
            f"a prompt must fit the model's context of {context} tokens; the shortest of {len(episodes)} needs {len(ids)} for "
            f"its {demos} demonstrations. Of this length, about {demos * context // len(ids)} demonstrations would fit.",
            code="too-long",
        )


def _check_labels_as_answers(
    episodes: Sequence[Episode],
    located: list[LocatedPrompt],
    answers: list[list[list[int]]],
    spell: Callable[[list[int]], list[str]],
) -> None:
    """Refuse a label whose tokens in a demonstration are not those of the answer."""
    for prompt, (episode, row) in enumerate(zip(episodes, located, strict=True)):
        for i, (demo, (start, end)) in enumerate(zip(episode.demos, row.label_spans, strict=True)):
            if row.ids[start:end] != answers[prompt][demo.label]:
                raise PromptError(
                    "a label word must have the same tokens in a demonstration and as the answer; "
                    f"{episode.label_words[demo.label]!r} is {spell(row.ids[start:end])} in demonstration {i} of "
                    f"prompt {prompt} and {spell(answers[prompt][demo.label])} as the answer. The tokenizer merges it "
                    "with the template around it; put a space or a line break there, or let the same stand before the "
                    "label in both.",
                    code="label-tokens",
                )


def rewritten(
    prompts: PromptSet, episodes: Sequence[Episode], model: Any, info: PromptInfo | None = None
) -> PromptSet:
    """The prompts of these episodes, in the template and with the tokenization of `prompts`."""
    assert prompts.info.template is not None
    adapter = as_adapter(model)
    check_same_tokenizer(prompts, adapter)
    return build_prompts(
        adapter,
        episodes,
        prompts.info.template,
        info=info or prompts.info,
        classes=prompts.classes,
        score_on=prompts.score_on,
        prepend_bos=prompts.info.bos_asked,
    )


def rebuilt(model: Any, prompts: PromptSet, *, labels: Literal["none", "permuted"]) -> PromptSet:
    """The same test inputs with no demonstrations (`"none"`), or with the demonstrations' labels permuted.

    Labels are dealt out once for each demonstration set, so that prompts which share it go on sharing it, and what they
    share is run once; where there are fewer than `PERMUTATIONS` sets, several times.

    Raises: PromptError: the prompts were not made from text in this session.
    """
    if not prompts.from_text:
        raise PromptError(
            "prompts can be written anew only where they were made from text in this session; these came "
            "from token ids or from a file. Draw them again with task.prompts(...).",
            code="only-text",
        )
    given = prompts.episodes or ()
    if labels == "none":
        episodes = [replace(episode, demos=()) for episode in given]
    else:
        # With very few sets, one permutation each would be a coin toss: the prompts of a set take turns with several.
        turns = -(-PERMUTATIONS // len({episode.demo_set for episode in given}))
        seen: Counter[int] = Counter()
        episodes = []
        for episode in given:
            turn = seen[episode.demo_set] % turns
            seen[episode.demo_set] += 1
            name = f"permute/{prompts.info.seed}/{episode.demo_set}" + (f"/{turn}" if turn else "")
            permuted = [demo.label for demo in episode.demos]
            random.Random(name).shuffle(permuted)
            episodes.append(episode.with_labels(permuted))
    return rewritten(
        prompts,
        episodes,
        model,
        replace(prompts.info, demos=len(episodes[0].demos), permuted_labels=labels == "permuted"),
    )
