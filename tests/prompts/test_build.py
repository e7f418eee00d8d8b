"""Spans found from the tokenizer in context, for three families of tokenizers and hard texts; prompts made anew."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from prompts.small_tokenizers import byte_level, metaspace, word_pieces

from icl_kernel_lens import Task, Template, load_task
from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.models.adapter import ModelShape
from icl_kernel_lens.prompts import build as module
from icl_kernel_lens.prompts.build import build_prompts, rebuilt
from icl_kernel_lens.prompts.promptset import PromptInfo, TokenRole

TEXTS = [
    "a gripping film",
    "dull, lifeless and far too long!",
    "Café 🎬 naïve 好",
    "it says positive and negative both; Sentiment: positive",
    "</s><|endoftext|> <img src=x onerror=alert(1)>",
    '\'tis (not) "good"',
    "x",
    "the acting is very good",
]


def fake_adapter(tokenizer, context=None):
    """An adapter that is never run: only its tokenizer and sizes are asked for."""
    return SimpleNamespace(
        tokenizer=tokenizer,
        name="fake",
        kind="fake",
        shape=ModelShape(2, 2, 2, context, 10_000),
        model=None,
        dtype=torch.float32,
        device=torch.device("cpu"),
        missing_attention=dict,
        watching=dict,
        forward=dict,
    )


def task(words=("negative", "positive"), template=None, texts=TEXTS):
    rows = [{"text": t, "label": i % 2} for i, t in enumerate(texts)]
    options = {} if template is None else {"template": template}
    return Task.from_records(rows, rows, name="toy", label_words=words, **options)


def build(tokenizer, source=None, *, context=None, demos=4, count=6, **options):
    source = source or task()
    episodes = source.episodes(demos=demos, count=count, seed=0)
    return build_prompts(
        fake_adapter(tokenizer, context),  # pyright: ignore[reportArgumentType]
        episodes,
        source.template,
        info=PromptInfo(task="toy"),
        classes=source.classes,
        **options,
    )


FAMILIES = {
    "byte_level": byte_level,
    "byte_level_bos": lambda: byte_level(True),
    "metaspace": metaspace,
    "word_pieces": word_pieces,
}


def squeeze(text: str) -> str:
    return "".join(text.lower().split())


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


@pytest.mark.parametrize("family", FAMILIES)
def test_bos_is_what_the_tokenizer_does_unless_told(family):
    tokenizer = FAMILIES[family]()
    default = build(tokenizer, score_on="sequence")
    adds = tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    assert default.info.prepend_bos is adds
    with_bos = build(tokenizer, score_on="sequence", prepend_bos=True)
    without = build(tokenizer, score_on="sequence", prepend_bos=False)
    assert (with_bos.tokens[:, 0] == tokenizer.bos_token_id).all()
    assert with_bos.info.prepend_bos is True
    assert without.info.prepend_bos is False
    assert torch.equal(with_bos.lengths, without.lengths + 1)
    assert torch.equal(with_bos.label_pos, without.label_pos + 1)
    for p in range(len(without)):
        n = int(without.lengths[p])
        assert with_bos.tokens[p, 1 : n + 1].tolist() == without.tokens[p, :n].tolist()


def test_special_tokens_in_a_text_stay_text():
    """`</s>` in a tweet is three characters and a letter, not the end of the sequence."""
    tokenizer = byte_level()
    prompts = build(tokenizer, demos=7, count=8, score_on="sequence")
    assert (prompts.tokens[:, 1:] != tokenizer.eos_token_id).sum() > 0
    special = torch.tensor(tokenizer.all_special_ids)
    real = torch.arange(prompts.tokens.shape[1]) < prompts.lengths[:, None]
    assert not torch.isin(prompts.tokens[real], special).any()


def test_equal_first_label_tokens_are_refused_and_both_shown():
    source = task(words=("very good", "very bad"))
    with pytest.raises(
        PromptError,
        match=r"'very good' and 'very bad' both begin with ' ?very' \(token \d+, prompt 0\).*score_on=\"sequence\"",
    ):
        build(byte_level(), source)
    prompts = build(byte_level(), source, score_on="sequence")
    assert (prompts.label_sequences[:, 0, 0] == prompts.label_sequences[:, 1, 0]).all()
    assert (prompts.label_lengths > 1).all()


def test_unknown_and_overlapping_label_words_are_refused():
    with pytest.raises(PromptError, match=r"'☃' is not \(it becomes '\[UNK\]': \[UNK\]\)"):
        build(word_pieces(), task(words=("☃", "good")), score_on="sequence", demos=0)
    with pytest.raises(PromptError, match="'very' begins 'very good' in tokens"):
        build(byte_level(), task(words=("very good", "very")), score_on="sequence")


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


def test_a_label_read_otherwise_in_a_demonstration_is_refused(monkeypatch):
    """What is scored as the answer must be what stands in the demonstrations."""
    honest = module.find_label_tokens
    monkeypatch.setattr(
        module, "find_label_tokens", lambda *a: [[[t + 1 for t in s] for s in row] for row in honest(*a)]
    )
    with pytest.raises(PromptError, match="must have the same tokens in a demonstration and as the answer"):
        build(metaspace(), task(words=("lifeless", "gripping")), score_on="sequence")


def test_prompts_too_long_are_refused_with_what_would_fit():
    tokenizer = byte_level()
    longest = int(build(tokenizer, score_on="sequence").lengths.max())
    for context in range(8, longest):
        with pytest.raises(PromptError, match=rf"context of {context} tokens; \d+ of 6 do not") as caught:
            build(tokenizer, context=context, score_on="sequence")
        text = caught.value.message
        if "not even the test input" in text:
            continue
        fit = int(text.rsplit(". ", 1)[1].split()[0])
        fitting = build(tokenizer, score_on="sequence")
        extra = int(fitting.label_lengths.max()) - 1
        for demos, fits in ((fit, True), (fit + 1, False)):
            # Independently: drop the last demonstrations of the very same prompts.
            needed = 0
            for p in range(6):
                starts = [*fitting.demo_spans[p, :, 0].tolist(), None]
                cut = starts[demos]
                dropped = 0
                if cut is not None:
                    dropped = int(fitting.demo_spans[p, -1, 1]) - cut
                needed = max(needed, int(fitting.lengths[p]) - dropped + extra)
            assert (needed <= context) is fits


def test_a_tokenizer_is_needed_and_must_give_offsets():
    slow = SimpleNamespace(is_fast=False, name_or_path="slow")
    with pytest.raises(PromptError, match="fake has none. Give the model one"):
        build(None)
    with pytest.raises(PromptError, match="only fast tokenizers give"):
        build(slow)


def test_two_text_fields_and_no_demonstrations():
    rows = [{"text": f"premise {i}", "text2": f"guess {i}", "label": i % 3} for i in range(12)]
    source = Task.from_records(rows, rows, name="mnli", classes=("entailment", "neutral", "contradiction"))
    assert source.label_words == ("yes", "maybe", "no")
    prompts = build(metaspace(), source, demos=3, score_on="sequence")
    for role in (TokenRole.TEXT, TokenRole.TEXT2):
        assert (prompts.roles == role).any(1).all()
    assert prompts.demo_texts(0)[0].count(" / ") == 1
    bare = build(metaspace(), source, demos=0, score_on="sequence")
    assert bare.demo_spans.shape == (6, 0, 2)
    assert "Premise" in repr(bare)


def test_printing_shows_a_prompt_with_its_spans():
    prompts = build(byte_level(), score_on="sequence")
    text = repr(prompts)
    start, end = prompts.demo_spans[0, 1].tolist()
    assert f"demo 1  tokens {start}–{end - 1}  label at" in text
    assert "BOS: no" in text
    page = prompts._repr_html_()
    assert "<img src" not in page
    assert "&lt;img" in page


def test_the_same_seed_gives_the_same_prompts():
    source = task()
    a = build(byte_level(), source, score_on="sequence")
    b = build(byte_level(), source, score_on="sequence")
    assert torch.equal(a.tokens, b.tokens)


def test_controls_are_tokenized_as_the_prompts_are():
    """A tokenizer that begins with a token of its own: the rewritten prompts begin with it too."""
    tokenizer = word_pieces()
    tokenizer.bos_token = "[SEP]"
    prompts = build(tokenizer, score_on="sequence")
    adapter = fake_adapter(tokenizer)
    for labels in ("permuted", "none"):
        again = rebuilt(adapter, prompts, labels=labels)
        assert (again.tokens[:, 0] == prompts.tokens[0, 0]).all()


def test_permuted_labels_keep_texts_and_label_counts(mini):
    prompts = load_task("topics").prompts(mini, demos=8, count=20, sets=5)
    permuted = rebuilt(mini, prompts, labels="permuted")
    assert permuted.info.permuted_labels
    assert torch.equal(permuted.label_pos, prompts.label_pos)
    assert torch.equal(permuted.demo_labels.sort(1).values, prompts.demo_labels.sort(1).values)
    assert not torch.equal(permuted.demo_labels, prompts.demo_labels)
    same = permuted.tokens == prompts.tokens
    assert same.scatter(1, prompts.label_pos, True).all()  # nothing but label tokens has changed
    drawn = {tuple(row) for row in permuted.demo_labels.tolist()}
    assert len(drawn) > 12, "a set's prompts are not all given one permutation"
    fresh = load_task("topics").prompts(mini, demos=8, count=40)
    assert torch.equal(rebuilt(mini, fresh, labels="permuted").demo_set, fresh.demo_set)


def test_prompts_without_their_texts_are_refused(mini):
    prompts = load_task("topics").prompts(mini, demos=2, count=4)
    with pytest.raises(PromptError, match="only where they were made from text"):
        rebuilt(mini, replace(prompts, episodes=None), labels="none")
