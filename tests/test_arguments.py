"""Arguments are checked at the doors of public functions: turned where they stand for the same thing, else refused."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from icl_kernel_lens import corrupt, load, load_model, load_task, read
from icl_kernel_lens.arguments import checked
from icl_kernel_lens.errors import LensError, PromptError, ResultError, TaskError
from icl_kernel_lens.evidence.small import small_evidence
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.prompts.template import Template
from icl_kernel_lens.tasks.task import Task

ROWS = [{"text": f"text {i}", "label": i % 2} for i in range(20)]


def test_numbers_of_numpy_and_texts_stand_for_what_is_declared():
    @checked
    def door(count: int, share: float = 0.5, template: Template | None = None, names: tuple[str, ...] = ()):
        return count, share, template, names

    found = door(np.int64(3), np.float32(0.5), "Q: {text}\nA: {label}", ["a", "b"])
    assert found == (3, 0.5, Template("Q: {text}\nA: {label}"), ("a", "b"))
    assert [type(one) for one in found[:2]] == [int, float]


@pytest.mark.parametrize(
    "wrong",
    ["2", 2.0, None, True, float("nan"), [2], np.float64(2), object(), torch.tensor([2, 3])],
    ids=["text", "2.0", "None", "True", "nan", "list", "float64", "object", "tensor"],
)
def test_whatever_is_no_whole_number_is_refused(wrong):
    @checked
    def door(count: int):
        return count

    with pytest.raises(LensError, match="count must be a whole number; it is") as caught:
        door(wrong)
    assert caught.value.code == "wrong-type"
    assert all(isinstance(caught.value, kind) for kind in (TaskError, PromptError, ResultError))


def test_a_text_is_no_list_and_options_are_named():
    for options in ({"label_words": "ab"}, {"label_words": (1, 2)}, {"text_fields": 3}, {"colour": 1}):
        with pytest.raises(TaskError, match="must be") as caught:
            Task.from_records(ROWS, ROWS, **options)
        assert caught.value.code == "wrong-type"
    for pool in (None, 3, "file.csv", [1]):
        with pytest.raises(TaskError, match="a pool must be rows"):
            Task.from_records(pool, ROWS)


@pytest.mark.parametrize("missing", [None, math.nan, pd.NA, pd.NaT, "", "  "], ids=repr)
def test_rows_without_a_label_are_named(missing):
    rows = [*ROWS[:3], {"text": "a", "label": missing}, *ROWS]
    with pytest.raises(TaskError, match=r"every row must have a label; in the train pool .* rows 3 of 24"):
        Task.from_records(rows, ROWS)


def test_tables_and_data_sets_are_pools(tmp_path):
    plain = Task.from_records(ROWS, ROWS)
    floats = pd.DataFrame(ROWS).astype({"label": float})
    assert Task.from_records(floats, floats) == plain
    assert Task.from_records(floats, floats).train == plain.train
    floats.to_csv(tmp_path / "rows.CSV", index=False, encoding="utf-8-sig")
    lines = "".join(f'{{"text": "{row["text"]}", "label": {row["label"]}}}\n' for row in ROWS)
    (tmp_path / "rows.jsonl").write_text("\ufeff" + lines, encoding="utf-8")
    for name in ("rows.CSV", "rows.jsonl"):
        assert Task.from_files(tmp_path / name, tmp_path / name).train == plain.train
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    data = datasets.Dataset.from_list(ROWS, features=features)
    assert Task.from_records(data, data).classes == ("no", "yes")
    both = datasets.DatasetDict({"train": data, "test": data})
    assert Task.from_records(both).train == plain.train


def test_prompts_are_selected_by_their_numbers_alone():
    prompts = small_evidence().prompts
    mask = [number == 1 for number in range(len(prompts))]
    assert prompts.select(mask).same_as(prompts.select([1]))
    assert prompts.select(torch.tensor([1])).same_as(prompts.select(np.array([1])))
    for wrong in ([0.5], [-1], [100], [True], "0", 0, None, [None]):
        with pytest.raises(PromptError, match="prompts are selected by their numbers"):
            prompts.select(wrong)


def test_tokens_that_are_no_whole_numbers_are_refused():
    for wrong in ([[1, 2], [3]], None, "text", torch.ones(1, 4) * 1j, torch.eye(4).to_sparse()):
        with pytest.raises((PromptError, TypeError), match=r"tokens|jaxtyping") as caught:
            PromptSet.from_tokens(wrong, torch.tensor([[1]]), torch.tensor([[0]]), torch.tensor([1, 2]))
        assert isinstance(caught.value, PromptError) or "tokens" in str(caught.value)


def test_numbers_of_named_classes_are_numbers_whatever_the_names():
    """`class_encode_column` sorts numbers as texts: the class of number 2 is named "10"."""
    datasets = pytest.importorskip("datasets")
    rows = [{"text": f"{i} is {i % 12}", "label": i % 12} for i in range(96)]
    task = Task.from_records(datasets.Dataset.from_list(rows).class_encode_column("label"))
    assert [example.texts[0].split()[-1] for example in task.train] == [
        task.classes[example.label] for example in task.train
    ]
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["1", "0"])}
    )
    data = datasets.Dataset.from_list(ROWS, features=features)
    assert [e.label for e in Task.from_records(data, data).train] == [row["label"] for row in ROWS]
    tensors = Task.from_records(data.with_format("torch"), data)
    assert [e.label for e in tensors.train] == [row["label"] for row in ROWS]
    without = datasets.Dataset.from_list([*ROWS, {"text": "none", "label": -1}], features=features)
    with pytest.raises(TaskError, match="every row must have a label; .* rows 20 of 21"):
        Task.from_records(without, data)


@pytest.mark.parametrize("value", [["a"], {"role": "user"}, ("a", "b")], ids=repr)
@pytest.mark.parametrize("field", ["text", "label"])
def test_nested_values_are_no_texts_and_no_labels(field, value):
    rows = [row | {field: value} for row in ROWS]
    with pytest.raises(TaskError, match=f"must be one value; in row 0 of the train pool .*{field!r} is a"):
        Task.from_records(rows, ROWS)


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_rows_with_more_fields_than_the_header_are_refused(ending, tmp_path):
    comma = "," if ending == "csv" else "\t"
    lines = ["text" + comma + "label", *(f"row{comma} {i}{comma}{'ab'[i % 2]}" for i in range(20))]
    (tmp_path / f"rows.{ending}").write_text("\n".join(lines))
    with pytest.raises(TaskError, match="more fields than the header names"):
        Task.from_files(tmp_path / f"rows.{ending}")


def test_numbers_that_are_no_classes_are_refused_at_once():
    rows = [row | {"label": 10**17 * row["label"]} for row in ROWS]
    with pytest.raises(TaskError, match="must count up from 0 without gaps"):
        Task.from_records(rows, rows)
    with pytest.raises(TaskError, match="at most 1,000,000 prompts"):
        Task.from_records(ROWS, ROWS).episodes(demos=2, count=10**9, seed=0)


def test_names_that_are_no_unicode_are_names():
    task = Task.from_records(ROWS, ROWS, name="caf\udce9", classes=("a\ud800", "b"), label_words=("x", "y"))
    assert len(task.episodes(demos=2, count=3, seed=0)) == 3
    repr(task).encode()


def test_a_text_where_prompts_belong_is_refused(mini):
    """A class may have a property of the name by which others are made from texts."""
    for call in (lambda: read(mini, "topics"), lambda: corrupt("file.safetensors", "map_labels", seed=0)):
        with pytest.raises(PromptError, match="prompts must be a PromptSet; it is"):
            call()


def test_prompts_of_which_none_is_selected_are_refused():
    prompts = small_evidence().prompts
    for none in ([], range(0), np.array([]), torch.tensor([], dtype=torch.long)):
        with pytest.raises(PromptError, match="at least one prompt"):
            prompts.select(none)


DOORS = """
from icl_kernel_lens import Evidence, Task, Template
from icl_kernel_lens.evidence.small import small_evidence
from icl_kernel_lens.results.criteria import Criteria

evidence, rows = small_evidence(), [{"text": f"text {i}", "label": i % 2} for i in range(20)]
for call in (
    lambda: Task("x", ("a", "b"), ("a", "b"), 3, (), ()),
    lambda: Template("{text}: {label}", separator=None),
    lambda: Criteria(margin="x"),
    lambda: evidence.save(None),
    lambda: Evidence.load(3),
    lambda: evidence.prompts.same_as(None),
    lambda: Task.from_records(rows, label_field=["label"]),
):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_constructors_and_methods_are_doors_too():
    """As users meet them, without the tests' own checks of types."""
    run = subprocess.run(
        [sys.executable, "-c", DOORS], capture_output=True, text=True, check=True, timeout=300
    )
    said = run.stdout.splitlines()
    assert len(said) == 7, run.stdout
    assert all(line.startswith("ArgumentError ") and " must be " in line for line in said), run.stdout


@pytest.mark.parametrize(
    "call", [load_task, load_model, load, Task.from_files], ids=lambda call: call.__name__
)
def test_texts_too_long_for_a_file_are_no_files(call):
    with pytest.raises(LensError):
        call("x" * 5000)
