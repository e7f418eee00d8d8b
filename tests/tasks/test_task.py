"""Draws from a task: seeded, shared, balanced, given, and never a test input before itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tasks.test_records import records

from icl_kernel_lens import Task
from icl_kernel_lens.errors import TaskError
from icl_kernel_lens.prompts.example import Example


def test_no_test_input_is_shown_before_itself():
    rows = [{"text": f"t{i % 8}", "label": i % 2} for i in range(16)]
    task = Task.from_records(rows, rows)
    for sets in (None, 4):
        for episode in task.episodes(demos=5, count=16, seed=0, sets=sets):
            assert episode.test.texts not in {d.texts for d in episode.demos}
    with pytest.raises(TaskError, match="has 14 examples beside the 1 that it asks for"):
        task.episodes(demos=15, count=1, seed=0)


def test_draws_are_seeded_and_keep_pools_apart():
    task = records()
    a = task.episodes(demos=4, count=10, seed=3)
    assert a == task.episodes(demos=4, count=10, seed=3)
    assert a != task.episodes(demos=4, count=10, seed=4)
    assert [e.demo_set for e in a] == list(range(10))
    train = set(task.train)
    for episode in a:
        assert set(episode.demos) <= train
        assert len(set(episode.demos)) == 4
        assert episode.test in task.test
    assert len({e.test for e in a}) == 10


def test_shared_sets_and_balance_and_given():
    task = records()
    shared = task.episodes(demos=4, count=10, seed=0, sets=5)
    assert [e.demo_set for e in shared] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert shared[0].demos == shared[1].demos != shared[2].demos
    with pytest.raises(TaskError, match="10 prompts cannot be shared evenly by 3 demonstration sets"):
        task.episodes(demos=4, count=10, seed=0, sets=3)
    for episode in task.episodes(demos=7, count=10, seed=0, balanced=True):
        counts = [sum(d.label == c for d in episode.demos) for c in range(3)]
        assert max(counts) - min(counts) <= 1
    given = task.train[:2]
    fixed = task.episodes(demos=2, count=4, seed=0, given=given)
    assert all(e.demos == given for e in fixed)
    assert {e.demo_set for e in fixed} == {0}, "prompts with the same demonstrations are one set"
    with pytest.raises(TaskError, match=r"labels must lie in 0…2; example 0 of given= .* has label 7"):
        task.episodes(demos=1, count=4, seed=0, given=[Example(("x",), 7)])


def test_other_labels_keep_the_texts():
    episode = records().episodes(demos=9, count=1, seed=0)[0]
    other = episode.with_labels([0] * 9)
    assert [d.texts for d in other.demos] == [d.texts for d in episode.demos]
    assert [d.label for d in other.demos] == [0] * 9
    assert other != episode
    assert replace(other, demos=episode.demos) == episode


def test_texts_that_are_all_the_same_are_refused():
    """Which field holds the text is told wrongly, most likely."""
    rows = [{"text": "the same", "label": i % 2} for i in range(8)]
    others = [row | {"text": f"text {i}"} for i, row in enumerate(rows)]
    for pools, split in (((rows, others), "train"), ((others, rows), "test")):
        with pytest.raises(TaskError, match=rf"all 8 rows of the {split} pool .*'the same'.*--text-fields"):
            Task.from_records(*pools)
