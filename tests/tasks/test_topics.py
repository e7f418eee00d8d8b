"""The topics world's text: what is held out is held out."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from icl_kernel_lens.errors import TaskError
from icl_kernel_lens.tasks.topics import LABEL_WORDS, NEUTRAL, TOPICS, Document, TopicsTask, vocabulary


def test_words_are_used_once():
    words = vocabulary()
    assert len(words) == len(set(words))
    assert len(TOPICS) == 32
    assert {len(w) for w in TOPICS.values()} == {8}
    assert (len(NEUTRAL), len(LABEL_WORDS)) == (40, 48)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_no_pair_of_topics_or_label_words_is_in_both_splits(classes):
    def pairs(split, draws, number):
        rng = random.Random(split)
        found = [Document.draw(rng, split, classes=number) for _ in range(draws)]
        return (
            {frozenset(p) for d in found for p in combinations(d.topics, 2)},
            {frozenset(p) for d in found for p in combinations(d.label_words, 2)},
        )

    train, held = pairs("train", 400, classes), pairs("heldout", 400, 2)
    assert not train[0] & held[0]
    assert not train[1] & held[1]
    assert len(held[0]) > 50


def test_an_example_tells_its_topic_and_nothing_else():
    topic_of = {word: topic for topic, words in TOPICS.items() for word in words}
    for episode in TopicsTask().episodes(demos=8, count=30, seed=0):
        topics: dict[int, set[str]] = {0: set(), 1: set()}
        for example in (*episode.demos, episode.test):
            words = example.texts[0].split()
            told = [topic_of[w] for w in words if w not in NEUTRAL]
            assert len(told) >= 3
            topics[example.label] |= set(told)
        assert all(len(t) <= 1 for t in topics.values())
        assert topics[0] != topics[1]


def test_episodes_are_seeded_and_shared():
    task = TopicsTask()
    assert task.episodes(demos=3, count=5, seed=1) == task.episodes(demos=3, count=5, seed=1)
    assert task.episodes(demos=3, count=5, seed=1) != task.episodes(demos=3, count=5, seed=2)
    assert task.episodes(demos=3, count=9, seed=1)[:5] == task.episodes(demos=3, count=5, seed=1)
    odd = task.episodes(demos=5, count=60, seed=0, balanced=True)
    assert {sum(d.label for d in e.demos) for e in odd} == {2, 3}
    shared = task.episodes(demos=4, count=6, seed=0, sets=2)
    assert shared[0].demos == shared[2].demos != shared[3].demos
    with pytest.raises(TaskError, match="demonstrations cannot be given"):
        task.episodes(demos=4, count=6, seed=0, given=())
    with pytest.raises(TaskError, match="got demos=-1, count=6"):
        task.episodes(demos=-1, count=6, seed=0)
    for episode in task.episodes(demos=8, count=6, seed=0, balanced=True):
        assert sum(d.label for d in episode.demos) == 4
