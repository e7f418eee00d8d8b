"""Tasks from files and records: classes, words, pools, draws; and every refusal with its message."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from support import SHARED, needs_shared

ROWS = [{"text": f"text {i}", "label": ("bad", "good", "meh")[i % 3]} for i in range(30)]


def records(**options):
    from icl_kernel_lens import Task

    return Task.from_records(ROWS[:20], ROWS[20:], **options)


def test_classes_are_alphabetical_names_or_named_numbers():
    from icl_kernel_lens import Task

    assert records().classes == ("bad", "good", "meh")
    rows = [{"text": "a", "label": i % 2, "label_name": ("no", "yes")[i % 2]} for i in range(8)]
    assert Task.from_records(rows, rows).classes == ("no", "yes")
    words = records(label_words=("awful", "great", "fair"))
    assert words.label_words == ("awful", "great", "fair")
    assert "good='great'" in repr(words)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_files_of_four_formats_read_alike(tmp_path, suffix):
    from icl_kernel_lens import Task, load_task

    path = tmp_path / f"reviews{suffix}"
    frame = pd.DataFrame(ROWS)
    match suffix:
        case ".jsonl":
            path.write_text("\n".join(json.dumps(row) for row in ROWS))
        case ".csv":
            frame.to_csv(path, index=False)
        case ".tsv":
            frame.to_csv(path, index=False, sep="\t")
        case ".parquet":
            frame.to_parquet(path)
    task = load_task(path)
    assert isinstance(task, Task)
    assert task.name == "reviews"
    assert task.classes == ("bad", "good", "meh")
    assert (len(task.train), len(task.test)) == (15, 15)
    pools = {e.texts for e in task.train}, {e.texts for e in task.test}
    assert not pools[0] & pools[1]
    assert pools[0] | pools[1] == {(row["text"],) for row in ROWS}
    assert "split in halves" in task.origin
    together = Task.from_files(path, path, template=None)
    assert len(together.train) == 30


def test_odd_texts_survive_a_csv(tmp_path):
    from icl_kernel_lens import Task

    rows = [{"text": 'he said "no", NA', "label": "1"}, {"text": "line\nbreak", "label": "0"}] * 3
    path = tmp_path / "odd.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    task = Task.from_files(path, path)
    assert {e.texts[0] for e in task.train} == {'he said "no", NA', "line break"}
    assert task.classes == ("0", "1")


def test_given_classes_are_matched_by_name_before_number():
    """Labels "1" to "5" in an order of one's own: no label may land on another's class."""
    from icl_kernel_lens import Task

    rows = [{"text": f"stars {i}", "label": str(i % 5 + 1)} for i in range(20)]
    for order in (("5", "4", "3", "2", "1"), ("1", "2", "3", "4", "5")):
        task = Task.from_records(rows, rows, classes=order)
        for row, example in zip(rows, task.train, strict=True):
            assert task.classes[example.label] == row["label"]
    named = [{"text": "a", "label": i % 2, "label_name": "12"[i % 2]} for i in range(6)]
    task = Task.from_records(named, named)  # numbers 0 and 1 whose names are "1" and "2"
    assert [e.label for e in task.train] == [0, 1, 0, 1, 0, 1]
    assert task.classes == ("1", "2")


def test_no_test_input_is_shown_before_itself():
    from icl_kernel_lens import Task
    from icl_kernel_lens.errors import TaskError

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
    from icl_kernel_lens.errors import TaskError
    from icl_kernel_lens.tasks import Example

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
    with pytest.raises(TaskError, match=r"labels must lie in 0…2 .* given has \[7\]"):
        task.episodes(demos=1, count=4, seed=0, given=[Example(("x",), 7)])


def test_permuting_labels_keeps_the_texts():
    import random

    episode = records().episodes(demos=9, count=1, seed=0)[0]
    permuted = episode.with_permuted_labels(random.Random(1))
    assert [d.texts for d in permuted.demos] == [d.texts for d in episode.demos]
    assert sorted(d.label for d in permuted.demos) == sorted(d.label for d in episode.demos)
    assert permuted != episode
    assert episode.without_demos().demos == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_field": "sentiment"}, r"needs the label field 'sentiment'; row 0 of the train pool"),
        ({"text_fields": ("body",)}, r"needs the fields \['body', 'label'\]; row 0 .* lacks \['body'\]"),
        ({"classes": ("bad", "good")}, r"every label must be a class; row 2 of the train pool .* has 'meh'"),
        ({"classes": ("bad", "good", "meh", "odd")}, r"the train pool of 'records' has none for \['odd'\]"),
        ({"label_words": ("a", "b")}, "3 classes .* and 2 label words"),
        ({"label_words": ("a", "b", "a ")}, "label words must be different"),
    ],
)
def test_refusals_of_records(change, message):
    from icl_kernel_lens.errors import TaskError

    with pytest.raises(TaskError, match=message):
        records(**change)


def test_other_refusals(tmp_path):
    from icl_kernel_lens import Task, Template, load_task
    from icl_kernel_lens.errors import TaskError

    with pytest.raises(
        TaskError, match="unknown task 'sst3'. Known names: topics, topics-unseen-labels, sst2"
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
    from icl_kernel_lens import load_task
    from icl_kernel_lens.errors import TaskError

    with pytest.raises(
        TaskError,
        match=r"could not load 'sst2' \(stanfordnlp/sst2, split 'train'\) from the Hub.*Task.from_files",
    ):
        load_task("sst2")


def test_hub_rows_go_the_way_of_files(monkeypatch):
    """The Hub's own rows, from a stand-in for `datasets.load_dataset`: hidden labels (-1) are dropped."""
    import datasets

    from icl_kernel_lens import Task, load_task

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


def test_every_preset_is_whole():
    from icl_kernel_lens.tasks.presets import PRESETS

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
    from icl_kernel_lens import Task, load_task
    from icl_kernel_lens.tasks.presets import PRESETS

    task = load_task(SHARED / "data" / "tasks" / f"{name}.train.jsonl")
    assert isinstance(task, Task)
    assert sorted(task.label_words) == sorted(PRESETS[name].words.values())
    assert task.template == PRESETS[name].template
    assert len(task.train) >= 250
    assert len(task.test) >= 56
    assert len(task.episodes(demos=8, count=20, seed=0, balanced=True)) == 20
