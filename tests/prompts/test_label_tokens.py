"""Label tokens: what no label can be, with the pieces in the message; and random cases of everything that is tokenized."""

from __future__ import annotations

import pytest
import torch
from prompts.small_tokenizers import CHATS, byte_level, metaspace, word_pieces
from prompts.test_build import build, task
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.tokens import run_cases
from icl_kernel_lens import Template
from icl_kernel_lens.errors import PromptError

TEXTS = ["x", "a film", "too long", "good"]


def words_alone(*known: str) -> PreTrainedTokenizerFast:
    """A token a word, and one for all other words, which the tokenizer does not declare."""
    vocab = {word: i for i, word in enumerate(("[?]", *known))}
    core = Tokenizer(models.WordLevel(vocab, unk_token="[?]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def test_300_random_cases():
    makers = {
        **CHATS,
        "bytes": byte_level,
        "bos": lambda: byte_level(True),
        "meta": metaspace,
        "words": word_pieces,
    }
    found, faults = run_cases(300, 1, {name: make() for name, make in makers.items()})
    assert not faults, "\n".join(faults[:3])
    assert found["compared"] > 100
    assert found["markers in texts"] > 30
    assert found["refused: label-tokens"] > 10


def test_a_first_token_that_is_a_bare_space_is_refused():
    source = task(words=("9", "maybe"), texts=TEXTS)
    with pytest.raises(PromptError, match=r"more than a space .* ' 9' becomes ▁ \| 9"):
        build(metaspace(), source, demos=2, count=4)
    whole = build(metaspace(), source, score_on="sequence", demos=2, count=4)
    assert whole.label_lengths.tolist()[0] == [2, 1]


@pytest.mark.parametrize("demo", ["{text}({label})", "{text}-{label}", "{text} /({label}"])
def test_a_label_in_a_token_of_several_pieces_is_refused(demo):
    """Also where the token's first piece and the next are not the label's, and where the token is unknown."""
    source = task(words=("good", "bad"), template=Template(demo), texts=TEXTS)
    with pytest.raises(
        PromptError, match=r"a label must not share a token .*several pieces.*'good'|'bad'.*\[\?\]"
    ):
        build(words_alone("Input:", "x", "a", "film"), source, score_on="sequence", demos=2, count=4)


def test_label_words_that_are_not_whole_in_the_vocabulary_are_refused():
    known = words_alone("Input:", "Output:", "x", "good")
    with pytest.raises(PromptError, match=r"'bad' is not \(it becomes '\[\?\]': \[\?\]\)"):
        build(known, task(words=("bad", "good"), texts=TEXTS), demos=0, count=4)
    letters = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE({c: i for i, c in enumerate("Inputgodabe: \n")}, []))
    )
    with pytest.raises(PromptError, match="'g☃d' is not .* leave out a character"):
        build(
            letters,
            task(words=("g☃d", "bad"), template=Template("{text}\n{label}"), texts=["a", "b"]),
            demos=0,
            count=2,
        )


def test_a_leading_space_is_the_templates():
    """TransformerLens writes labels as `" positive"`."""
    spaced = (" negative", " positive")
    for template in (None, Template("{text}\n{label}"), Template.chat(CHATS["chatml"]())):
        tokenizer = CHATS["chatml"]()
        source = task(words=spaced, template=template)
        assert source.label_words == ("negative", "positive")
        assert torch.equal(build(tokenizer, source).tokens, build(tokenizer, task(template=template)).tokens)
    kept = task(words=spaced, template=Template("Input: {text}\nOutput:{label}"))
    assert kept.label_words == spaced
    assert torch.equal(build(byte_level(), kept).tokens, build(byte_level(), task()).tokens)
