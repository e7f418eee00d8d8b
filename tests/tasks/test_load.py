"""Tasks from files and records: classes, words, pools, draws; and every refusal with its message."""

from __future__ import annotations

import pytest
from tasks.test_records import ROWS, records

from icl_kernel_lens import Task, Template, load_task
from icl_kernel_lens.errors import TaskError


def test_other_refusals(tmp_path):
    with pytest.raises(
        TaskError,
        match="unknown task 'sst3'. Known names: topics, topics-unseen-labels, opinions, subjects, questions, sst2",
    ):
        load_task("sst3")
    with pytest.raises(TaskError, match="there is none at"):
        load_task(tmp_path / "absent.csv")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(TaskError, match=r"ends in '\.txt'"):
        load_task(tmp_path / "a.txt")
    (tmp_path / "bad.jsonl").write_text("{not json}")
    with pytest.raises(TaskError, match="cannot be read as jsonl: line 1: "):
        load_task(tmp_path / "bad.jsonl")
    with pytest.raises(TaskError, match="row 1 of the train pool of 'records' is empty"):
        Task.from_records([ROWS[0], {"text": " ", "label": "good"}, *ROWS], ROWS)
    with pytest.raises(TaskError, match="row 0 of the train pool of 'records' is empty"):
        Task.from_records([{"text": None, "label": "good"}, *ROWS], ROWS)
    with pytest.raises(TaskError, match="the test pool of 'records' is empty"):
        Task.from_records(ROWS, [])
    with pytest.raises(TaskError, match=r"count up from 0 without gaps; 'records' has \[0, 2\]"):
        Task.from_records(
            [{"text": "a", "label": 0}, {"text": "b", "label": 2}], ROWS[:1] and [{"text": "a", "label": 0}]
        )
    with pytest.raises(TaskError, match="at least two classes"):
        Task.from_records([{"text": "a", "label": 0}], [{"text": "a", "label": 0}])
    task = records()
    with pytest.raises(TaskError, match="11 were asked for and the test pool of 'records' has 10"):
        task.episodes(demos=2, count=11, seed=0)
    with pytest.raises(TaskError, match="21 were asked for and the train pool of 'records' has 20"):
        task.episodes(demos=21, count=2, seed=0)
    with pytest.raises(TaskError, match="balanced demonstrations need 7 examples of class"):
        task.episodes(demos=20, count=2, seed=0, balanced=True)
    for demo, message in (
        ("{text}", "must hold {text} once, {label} once"),
        ("{label}: {text}", "must show the label after the texts"),
        ("{text} {text} {label}", "holds"),
    ):
        with pytest.raises(TaskError, match=message):
            Template(demo=demo)
    with pytest.raises(TaskError, match="must be separated by something"):
        Template(separator="")
    with pytest.raises(TaskError, match="brings its own template"):
        load_task("topics", label_words=("a", "b"))


def test_a_hub_task_without_network_says_what_to_do():
    with pytest.raises(
        TaskError,
        match=r"could not load 'sst2' \(stanfordnlp/sst2, split 'train'\) from the Hub.*Task.from_files",
    ):
        load_task("sst2")


def test_hub_rows_go_the_way_of_files(monkeypatch):
    """The Hub's own rows, from a stand-in for `datasets.load_dataset`: hidden labels (-1) are dropped."""
    import datasets

    def stand_in(path, config, *, split, revision):
        assert (path, config, revision) == ("nyu-mll/multi_nli", None, None)
        assert split in ("train", "validation_matched")
        rows = [{"premise": f"p{i}", "hypothesis": f"h{i}", "label": i % 3, "genre": "x"} for i in range(9)]
        rows.append({"premise": "hidden", "hypothesis": "hidden", "label": -1, "genre": "x"})
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", stand_in)
    task = load_task("mnli")
    assert isinstance(task, Task)
    assert len(task.test) == 9
    assert task.train[4].texts == ("p4", "h4")
    assert task.label_words == ("yes", "maybe", "no")
    assert "CC-BY" in task.licence
