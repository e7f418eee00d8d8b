"""Examples and label words: what is taken, in which order, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from prompts.from_text import ROWS, example

from icl_kernel_lens import Task
from icl_kernel_lens.errors import TaskError
from icl_kernel_lens.prompts.example import Example, one_word_each


def test_an_example_is_its_texts_and_a_number():
    assert example("a gripping film", 1) == Example(("a gripping film",), 1)
    assert example(["a", "b"], np.int64(1)) == Example(("a", "b"), 1)
    for texts, label in ((("a",), "good"), ((1,), 0), (None, 0), (("a",), 1.0)):
        with pytest.raises(TaskError, match="an example must be its texts and the number of its class"):
            example(texts, label)


def test_label_words_are_one_each():
    named = Task.from_records(ROWS, ROWS, label_words={"good": "great", "bad": "awful"})
    assert named.label_words == ("awful", "great")
    assert (
        Task.from_records(ROWS, ROWS, label_words={1: "great", 0: "awful"}).label_words == named.label_words
    )
    for words, message in (
        ("ab", "must be a list of texts.*'ab'"),
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
