"""Tasks from records and files: classes, words and texts, and every refusal."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from icl_kernel_lens import Task, load_task
from icl_kernel_lens.errors import TaskError

ROWS = [{"text": f"text {i}", "label": ("bad", "good", "meh")[i % 3]} for i in range(30)]


def records(**options):
    return Task.from_records(ROWS[:20], ROWS[20:], **options)


def test_classes_are_alphabetical_names_or_named_numbers():
    assert records().classes == ("bad", "good", "meh")
    rows = [{"text": f"a {i}", "label": i % 2, "label_name": ("no", "yes")[i % 2]} for i in range(8)]
    assert Task.from_records(rows, rows).classes == ("no", "yes")
    words = records(label_words=("awful", "great", "fair"))
    assert words.label_words == ("awful", "great", "fair")
    assert "good='great'" in repr(words)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_files_of_four_formats_read_alike(tmp_path, suffix):
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
    rows = [{"text": 'he said "no", NA', "label": "1"}, {"text": "line\nbreak", "label": "0"}] * 3
    path = tmp_path / "odd.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    task = Task.from_files(path, path)
    assert {e.texts[0] for e in task.train} == {'he said "no", NA', "line break"}
    assert task.classes == ("0", "1")


def test_given_classes_are_matched_by_name_before_number():
    """Labels "1" to "5" in an order of one's own: no label may land on another's class."""
    rows = [{"text": f"stars {i}", "label": str(i % 5 + 1)} for i in range(20)]
    for order in (("5", "4", "3", "2", "1"), ("1", "2", "3", "4", "5")):
        task = Task.from_records(rows, rows, classes=order)
        for row, example in zip(rows, task.train, strict=True):
            assert task.classes[example.label] == row["label"]
    named = [{"text": f"a {i}", "label": i % 2, "label_name": "12"[i % 2]} for i in range(6)]
    task = Task.from_records(named, named)  # numbers 0 and 1 whose names are "1" and "2"
    assert [e.label for e in task.train] == [0, 1, 0, 1, 0, 1]
    assert task.classes == ("1", "2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_field": "sentiment"}, r"needs the fields \['text', 'sentiment'\]; row 0 of the train pool"),
        ({"text_fields": ("body",)}, r"needs the fields \['body', 'label'\]; row 0 .* lacks \['body'\]"),
        ({"classes": ("bad", "good")}, r"every label must be a class; row 2 of the train pool .* has 'meh'"),
        ({"classes": ("bad", "good", "meh", "odd")}, r"the train pool of 'records' has none for \['odd'\]"),
        ({"label_words": ("a", "b")}, "3 classes .* and 2 label words"),
        ({"label_words": ("a", "b", "a ")}, "label words must be different"),
    ],
)
def test_refusals_of_records(change, message):
    with pytest.raises(TaskError, match=message):
        records(**change)
