"""Sources of episodes: which prompts share demonstrations, and what prompts record of their draw."""

from __future__ import annotations

import pytest
from prompts.from_text import fake_adapter
from prompts.small_tokenizers import byte_level
from tasks.test_records import records

from icl_kernel_lens.errors import TaskError
from icl_kernel_lens.tasks.source import EpisodeSource, shared_sets


def test_sets_are_shared_evenly_and_in_order():
    assert shared_sets(4, 6, None) == [0, 1, 2, 3, 4, 5]
    assert shared_sets(0, 6, 2) == [0, 0, 0, 1, 1, 1]
    assert shared_sets(4, 6, 6) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((-1, 6, None), "got demos=-1, count=6"),
        ((4, 0, None), "got demos=4, count=0"),
        ((4, 6, 4), "6 prompts cannot be shared evenly by 4 demonstration sets"),
        ((4, 6, 0), "6 prompts cannot be shared evenly by 0"),
    ],
)
def test_numbers_that_cannot_be_drawn_are_refused(asked, message):
    with pytest.raises(TaskError, match=message) as caught:
        shared_sets(*asked)
    assert caught.value.code == "number-range"


def test_prompts_record_how_they_were_drawn():
    task, adapter = records(), fake_adapter(byte_level())
    assert isinstance(task, EpisodeSource)
    drawn = task.prompts(adapter, demos=3, count=4, sets=2, seed=5, balanced=True, score_on="sequence")
    info = drawn.info
    assert (info.demos, info.sets, info.seed, info.balanced) == (3, 2, 5, True)
    assert drawn.demo_set.tolist() == [0, 0, 1, 1]
    given = task.prompts(adapter, demos=9, count=4, given=task.train[:2], score_on="sequence")
    assert (given.info.demos, given.info.sets) == (2, 1), "those given, and not those asked for"
    assert given.demo_set.tolist() == [0] * 4
