"""Templates and examples: what is filled in, what would stand in every prompt, what would be lost."""

from __future__ import annotations

import numpy as np
import pytest
from prompts.small_tokenizers import byte_level
from prompts.test_build import build, fake_adapter, task
from prompts.test_label_tokens import words_alone

from icl_kernel_lens import Task, Template
from icl_kernel_lens.errors import TaskError
from icl_kernel_lens.prompts.corruptions import corrupt
from icl_kernel_lens.prompts.example import Example, one_word_each

ROWS = [{"text": f"text {i}", "label": ("bad", "good")[i % 2]} for i in range(12)]


@pytest.mark.parametrize(
    "given",
    [
        {"demo": "About {topic}: {text} {label}"},
        {"demo": "{text}{topic} {label}"},
        {"demo": "{text} {label}", "test": "{topic} {text} {label}"},
        {"prefix": "About {topic}.\n"},
        {"separator": "\n{text}"},
    ],
)
def test_a_name_that_is_not_filled_in_is_refused(given):
    with pytest.raises(TaskError, match="would stand in every prompt as it is"):
        Template(**given)


def test_braces_that_are_no_names_stay():
    for demo in ('{"text": "{text}", "label": "{label}"}', "f() {}: {text} {label}"):
        assert "".join(s for _, s in Template(demo).pieces(("a",), "b")) == demo.replace(
            "{text}", "a"
        ).replace("{label}", "b")
    Template(prefix="Write \\boxed{answer}.\n")


def example(texts, label):
    """An `Example` of what a user may give, past the type checks of the tests."""
    made = object.__new__(Example)
    object.__setattr__(made, "texts", texts)
    object.__setattr__(made, "label", label)
    made.__post_init__()
    return made


def test_an_example_is_its_texts_and_a_number():
    assert example("a gripping film", 1) == Example(("a gripping film",), 1)
    assert example(["a", "b"], np.int64(1)) == Example(("a", "b"), 1)
    for texts, label in ((("a",), "good"), ((1,), 0), (None, 0), (("a",), 1.0)):
        with pytest.raises(TaskError, match="an example must be its texts and the number of its class"):
            example(texts, label)


def test_no_text_is_lost():
    with pytest.raises(TaskError, match="as many texts as the template shows, 1; .* has 2"):
        Template().pieces(("a", "b"), None)
    with pytest.raises(TaskError, match="as many texts as the template shows, 2; .* has 1"):
        Template("{text} {text2} {label}").pieces(("a",), "b")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ab", "must be a list of examples.*'ab'"),
        (Example(("a",), 0), "must be a list of examples"),
        ({"text": "a"}, "must be a list of examples"),
        ([("a", 0)], r"example 0 is \('a', 0\) \(tuple\)"),
        ([Example(("a",), 0), {"text": "a"}], "example 1 is .* \\(dict\\)"),
        ([Example(("a", "b"), 0)], r"shows 1 text field\(s\); example 0 of given= .* has 2"),
        ([Example(("a",), 2)], r"labels must lie in 0…1; example 0 of given="),
    ],
)
def test_given_demonstrations_are_checked_as_the_pools_are(given, message):
    source = Task.from_records(ROWS, ROWS)
    with pytest.raises(TaskError, match=message):
        source._shown(given)
    if isinstance(given, list) and all(isinstance(one, Example) for one in given):
        for kind in ({}, {"match_lengths": True}):
            with pytest.raises(TaskError, match=message):
                source.prompts(fake_adapter(byte_level()), demos=1, count=2, given=given, **kind)


def test_a_given_demonstration_is_no_test_input():
    source = Task.from_records(ROWS, ROWS)
    given = source.train[:4]
    for seed in range(8):
        shown = source.episodes(demos=1, count=8, seed=seed, given=list(given))
        assert not {e.test.texts for e in shown} & {e.texts for e in given}
    with pytest.raises(TaskError, match="has 8 beside those that given= shows"):
        source.episodes(demos=1, count=9, seed=0, given=given)
    single = [example("one text", 1)]
    assert "one text" in "".join(build_given(source, single).strings[0])


def build_given(source, given):
    return source.prompts(fake_adapter(byte_level()), demos=1, count=2, given=given, score_on="sequence")


def test_label_words_are_one_each():
    named = Task.from_records(ROWS, ROWS, label_words={"good": "great", "bad": "awful"})
    assert named.label_words == ("awful", "great")
    assert (
        Task.from_records(ROWS, ROWS, label_words={1: "great", 0: "awful"}).label_words == named.label_words
    )
    for words, message in (
        ("ab", "must be a list of texts, one a class.*'ab'"),
        ({"good": "great"}, "must name every class"),
        ({"good": "great", "evil": "awful"}, r"its keys are \['good', 'evil'\]"),
    ):
        with pytest.raises(TaskError, match=message):
            Task.from_records(ROWS, ROWS, label_words=words)
    for words in ({"a", "b"}, (0, 1), "ab", None):
        with pytest.raises(TaskError, match="label words must be a list of texts"):
            one_word_each(words, ("bad", "good"))
    with pytest.raises(TaskError, match="classes must be a list of texts"):
        Task.from_records(ROWS, ROWS, classes="ab")
    assert Task.from_records(ROWS, ROWS, classes={0: "bad", 1: "good"}).classes == ("bad", "good")
    assert Task.from_records(ROWS, ROWS, text_fields="text").template.fields == 1


def test_unrelated_words_are_read_as_label_words_are():
    tokenizer = words_alone("Input:", "Output:", "good", "bad", "film", "both", "x")
    prompts = build(
        tokenizer, task(words=("good", "bad"), texts=["x", "film x", "x x", "both x"]), demos=2, count=4
    )
    adapter = fake_adapter(tokenizer)
    found = [
        corrupt(prompts, "unrelated_words", seed=0, words=words, model=adapter).tokens
        for words in (["film", "both"], {"1": "both", "0": "film"}, [" film", " both"])
    ]
    assert all((tokens == found[0]).all() for tokens in found)
    assert not (found[0] == prompts.tokens).all()
