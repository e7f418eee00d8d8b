"""The bundled tasks: texts of their own, all different, of even length and number over the classes."""

from __future__ import annotations

from collections import Counter

import pytest

from icl_kernel_lens import load_model, load_task
from icl_kernel_lens.tasks.bundled import TEMPLATES

CLASSES = {"opinions": 2, "subjects": 4, "questions": 6}


def words(text):
    return frozenset("".join(c if c.isalnum() else " " for c in text.lower()).split())


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_texts_are_short_all_different_and_balanced(name):
    task = load_task(name)
    examples = [*task.train, *task.test]
    assert len(task.classes) == CLASSES[name]
    counts = Counter(example.label for example in examples)
    assert set(counts.values()) == {len(examples) // len(task.classes)}
    assert min(counts.values()) >= 60
    assert min(*task.class_counts("train"), *task.class_counts("test")) >= 20
    lengths = [len(example.texts[0].split()) for example in examples]
    assert (min(lengths), max(lengths)) == (5, 20)
    mean = [
        sum(n for n, e in zip(lengths, examples, strict=True) if e.label == c) / counts[c] for c in counts
    ]
    assert max(mean) - min(mean) < 1
    bags = [words(example.texts[0]) for example in examples]
    alike = max(len(a & b) / len(a | b) for i, a in enumerate(bags) for b in bags[:i])
    assert alike < 0.6
    openings = Counter(" ".join(example.texts[0].lower().split()[:2]) for example in examples)
    assert openings.most_common(1)[0][1] <= 12
    assert all(example.texts[0].isascii() and "<" not in example.texts[0] for example in examples)


@pytest.mark.parametrize("name", TEMPLATES)
def test_it_can_be_written_otherwise(name):
    task = load_task(name)
    assert load_task(name) == task
    letters = "abcdefghij"[: len(task.classes)]
    other = load_task(name, template="Q: {text}\nA: {label}", label_words=list(letters))
    assert other.label_words == tuple(letters)
    assert other.template.demo == "Q: {text}\nA: {label}"
    assert (other.origin, other.licence) == ("written for this package", "MIT")


def test_a_model_of_other_words_says_so():
    with pytest.raises(Exception, match="every label word must be in the tokenizer's vocabulary"):
        load_task("opinions").prompts(load_model("mini"), count=2, demos=2)
