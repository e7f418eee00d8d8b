"""What experiments leave: changes between paired trials."""

from __future__ import annotations

import math

import pytest
import torch
from theory.test_hmm import f64

from icl_kernel_lens.theory.experiment import Experiment, change


def test_changes_are_paired():
    before, less = f64([1.0, 5.0, 9.0, math.nan]), f64([0.9, 1.0, 1.1, 1.0])
    word, mean, low, high = change(before - less, before)
    assert (word, mean) == ("falls", pytest.approx(-1.0))
    assert -1.1 <= low < high <= -0.9
    assert change(before + less, before)[0] == "rises"
    assert change(before + f64([1.0, -1.0, 0.0, 0.0]), before)[0] == "shows no change"
    assert change(before - 1, before)[0] == "is undetermined", (
        "three that agree show no spread, not that there is none"
    )
    many = torch.zeros(40, dtype=torch.float64)
    assert change(many - 1, many) == ("falls", -1.0, -1.0, -1.0)


@pytest.mark.parametrize(
    "name", ["retrieve_similar", "output_format", "representative", "label_noise", "softmax_kernels"]
)
def test_there_and_back(ran, name, tmp_path):
    found = ran[name]
    again = Experiment.load(found.save(tmp_path / "e.safetensors"))
    for measure, values in found.values.items():
        assert values.shape == (found.trials, len(found.settings), len(found.series))
        assert torch.equal(again.values[measure].nan_to_num(-9), values.nan_to_num(-9))
    for field in (
        "name",
        "question",
        "axis",
        "settings",
        "series",
        "findings",
        "measures",
        "facts",
        "world",
        "options",
        "unit",
        "versions",
    ):
        assert getattr(again, field) == getattr(found, field), field


def test_tables(ran):
    found = ran["label_noise"]
    table, frame = found.table(), found.to_dataframe()
    assert len(table) == 3 * 3 * 3
    row = table[(table.setting == 0.5) & (table.series == "Bayes") & (table.measure == "l1")].iloc[0]
    assert row["mean"] == pytest.approx(float(found.mean("l1")[1, 1]))
    assert row.low <= row["mean"] <= row.high
    assert len(frame) == 12 * 9
    one = frame[(frame.trial == 7) & (frame.setting == 1.0) & (frame.series == "Bayes, told the share")].iloc[
        0
    ]
    assert one.l1 == float(found.values["l1"][7, 2, 2])
    assert found.findings[0] in repr(found)
    assert found.scored[0, 0] == pytest.approx(1 - float(found.values["l1"][:, 0, 0].isnan().double().mean()))
