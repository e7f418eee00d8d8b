"""Spans decode to what was written, and a label stands in tokens of its own."""

from __future__ import annotations

import pytest
from prompts.from_text import FAMILIES, build, squeeze, task
from prompts.small_tokenizers import byte_level

from icl_kernel_lens import Template
from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.prompts.promptset import TokenRole


@pytest.mark.parametrize("family", FAMILIES)
def test_spans_decode_to_what_was_written(family):
    """Decoding each span on its own gives the text, the label, or the template around them."""
    tokenizer = FAMILIES[family]()
    prompts = build(tokenizer, score_on="sequence")
    episodes = prompts.episodes
    assert episodes is not None
    for p, episode in enumerate(episodes):
        tokens, roles = prompts.tokens[p], prompts.roles[p]
        for i, demo in enumerate(episode.demos):
            start, end = prompts.demo_spans[p, i].tolist()
            first, last = prompts.label_spans[p, i].tolist()
            assert start <= first < last == end
            word = episode.label_words[demo.label]
            assert squeeze(tokenizer.decode(tokens[first:last])) == squeeze(word)
            text = tokens[start:end][roles[start:end] == TokenRole.TEXT]
            assert squeeze(tokenizer.decode(text)) == squeeze(demo.texts[0])
            template = tokens[start:end][roles[start:end] == TokenRole.TEMPLATE]
            assert squeeze(tokenizer.decode(template)) == squeeze("Input:\nOutput:")
        answer = int(prompts.answer_pos[p])
        assert answer == int(prompts.lengths[p]) - 1
        assert squeeze(tokenizer.decode(tokens[: answer + 1], skip_special_tokens=True)).endswith("output:")
        assert (roles[answer + 1 :] == TokenRole.PADDING).all()
        # Every demonstration's label tokens are the tokens scored for its class.
        for i in range(prompts.demos):
            first, last = prompts.label_spans[p, i].tolist()
            label = int(prompts.demo_labels[p, i])
            length = int(prompts.label_lengths[p, label])
            assert tokens[first:last].tolist() == prompts.label_sequences[p, label, :length].tolist()


def test_token_strings_join_to_the_text():
    """Whatever the tokenizer does to spaces and to characters of several bytes."""
    for make in FAMILIES.values():
        prompts = build(make(), score_on="sequence", demos=6, count=8)
        assert prompts.episodes is not None
        for strings, episode in zip(prompts.strings, prompts.episodes, strict=True):
            source = task()
            parts = [f"Input: {d.texts[0]}\nOutput: {source.label_words[d.label]}\n" for d in episode.demos]
            expected = "".join(parts) + f"Input: {episode.test.texts[0]}\nOutput:"
            assert "".join(s for s in strings if s != "⟨bos⟩") == expected


def test_labels_that_merge_with_their_surroundings_are_refused():
    """`Senti` and `ment` are one token, `Sentiment`."""
    glued = Template(demo="{text}\nSenti{label}: so", separator="\n")
    with pytest.raises(PromptError, match=r"a label must not share a token .* the token 'Sentiment' covers"):
        build(byte_level(), task(words=("ment", "mental"), template=glued), demos=4)
    with pytest.raises(
        PromptError, match="a label must begin a new token; .* changes the prompt's own tokens"
    ):
        build(byte_level(), task(words=("ment", "mental"), template=glued), demos=0)
