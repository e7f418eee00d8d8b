"""The presets are whole, and real files take their words."""

from __future__ import annotations

import pytest
from support import SHARED, needs_shared

from icl_kernel_lens import Task, load_task
from icl_kernel_lens.tasks.presets import PRESETS


def test_every_preset_is_whole():
    assert set(PRESETS) >= {
        "sst2", "mnli", "rotten_tomatoes", "tweet_eval_hate", "tweet_eval_irony", "tweet_eval_offensive",
        "ag_news", "trec", "subj", "cb", "rte",
    }  # fmt: skip
    for preset in PRESETS.values():
        assert len(preset.text_fields) == preset.template.fields
        assert len(set(preset.words.values())) == len(preset.words) >= 2


@needs_shared
@pytest.mark.parametrize(
    "name",
    [
        "sst2",
        "mnli",
        "rotten_tomatoes",
        "tweet_eval_hate",
        "tweet_eval_irony",
        "tweet_eval_offensive",
        "ag_news",
        "trec",
        "subj",
        "cb",
        "rte",
    ],
)
def test_real_files_take_the_presets_words(name):
    task = load_task(SHARED / "data" / "tasks" / f"{name}.train.jsonl")
    assert isinstance(task, Task)
    assert sorted(task.label_words) == sorted(PRESETS[name].words.values())
    assert task.template == PRESETS[name].template
    assert len(task.train) >= 250
    assert len(task.test) >= 56
    assert len(task.episodes(demos=8, count=20, seed=0, balanced=True)) == 20
