"""Accuracy by hand: what the verdict says first, conditions, rules, reasons."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from charts.located import accuracy, run_info
from results.examples import task_accuracy
from support import uneven_prompts

from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.evidence.small import small_evidence
from icl_kernel_lens.numbers.control_votes import simple_votes
from icl_kernel_lens.numbers.votes import credit
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.results.task_accuracy import CONDITIONS, RULES, TaskAccuracy, rules_of


def many(**rates) -> TaskAccuracy:
    return accuracy(**rates, prompts=400, sets=200)


@pytest.mark.parametrize(
    ("rates", "first"),
    [
        ({}, r"The demonstrations help: \+40.0 percentage points over no demonstrations \(95 % interval \+3"),
        ({"after": 0.5}, r"No in-context learning shown: \+0.0 percentage points over no demonstrations \(9"),
        (
            {"before": 0.81, "after": 0.59},
            r"The demonstrations hurt: accuracy falls from 81.0% to 59.0% with them, -22.0 percentage points \(9",
        ),
        (
            {"before": 0.81, "after": 0.59, "last": 0.85},
            r"The demonstrations hurt: .*; one rule explains nearly all of the answers: the last label gives 85.0% of them "
            r"\(95 % interval 8\d.\d% to 8\d.\d%\)\.$",
        ),
        (
            {"after": 0.5, "commonest": 1.0},
            r"No in-context learning .*; one rule explains .*: the commonest answer gives 100.0% of them \(",
        ),
        ({"last": 0.85}, r"One rule explains nearly all of .*; the demonstrations help: \+40.0 percentage"),
        ({"last": 0.76}, r"The demonstrations help: .*; one rule may explain nearly all of the answers: the last"),
        ({"last": 0.74}, r"The demonstrations help: [^;]*\)\.$"),
    ],
)  # fmt: skip
def test_what_is_said_first(rates, first):
    """Each by the end of an interval: 76 % are above three quarters, and not surely."""
    found = many(**rates)
    assert re.match(first, found.verdict()), found.verdict()
    assert found.opening().startswith(f"{found.verdict()}\n  accuracy ")
    assert repr(found).startswith(f"{found.verdict()}\nTaskAccuracy(")


def test_few_prompts_prove_neither_harm_nor_a_rule():
    """The same shares in 12 prompts: a fall of a sixth and a rule for 83 % may be chance."""
    found = accuracy(before=0.5, after=0.34, last=0.84, prompts=12, sets=12)
    assert not found.hurts()
    assert found.verdict().startswith("No in-context learning shown: -16.7 percentage points")
    assert (
        "; one rule may explain nearly all of the answers: the last label gives 83.3% of them"
        in found.verdict()
    )


def test_every_number_stands_in_the_opening():
    found = many(before=0.81, after=0.59, last=0.85, commonest=0.6)
    assert found.opening().splitlines()[1] == (
        "  accuracy 59.0% with demonstrations, 40.0% with permuted labels, 81.0% without demonstrations, 45.0% of the majority class; share "
        "of the model's answers that a rule gives: the last label 85.0%, the commonest answer 60.0%"
    )
    frame = found.to_dataframe().set_index("name")
    assert list(frame.index) == [*CONDITIONS, *RULES]
    assert frame.loc["last_label", "what"] == "share of the answers"
    share, low, high = found.explained()["last_label"]
    assert (frame.loc["last_label", ["mean", "low", "high"]] == [share, low, high]).all()


def test_verdict_and_reasons():
    found = task_accuracy()
    assert found.mean()["demonstrations"] == 1
    assert f"permuted labels not measured ({Reason.NOTHING_PERMUTED})" in found.verdict()
    assert f"not measured: {Reason.NOTHING_PERMUTED}" in repr(found)
    alone = replace(found, demo_set=torch.zeros(6, dtype=torch.long))
    assert alone.verdict().startswith("Undetermined: +")
    assert "nan" not in alone.opening()


def test_above_the_majority_class_is_not_help_where_no_run_without_demonstrations_says_so():
    found = many()
    names = ("permuted_labels", "no_demonstrations")
    part = replace(
        found,
        correct={name: right for name, right in found.correct.items() if name not in names},
        reasons=dict.fromkeys(names, Reason.NOT_FROM_TEXT),
    )
    assert not part.helps()
    assert not part.hurts()
    assert part.verdict().startswith(
        "Accuracy is 90.0%, +45.0 percentage points over majority (95 % interval "
    )
    assert part.verdict().endswith(
        "not shown to be the demonstrations' doing; permuted labels and no demonstrations not measured "
        f"({Reason.NOT_FROM_TEXT})."
    )


def test_without_truth_the_rules_are_what_is_said():
    found = replace(many(last=0.9), correct={}, reasons=dict.fromkeys(CONDITIONS, Reason.NO_TRUTH))
    assert found.verdict().startswith(
        "Accuracy not measured (the prompts have no true labels); one rule explains nearly all of the answers: the last"
    )
    assert (
        found.opening()
        .splitlines()[1]
        .startswith("  share of the model's answers that a rule gives: the last")
    )
    assert not found.helps()
    assert not found.hurts()
    with pytest.raises(ResultError, match="an accuracy must be measured to be compared"):
        found.gain()


def test_what_it_must_hold():
    found = task_accuracy()
    right = found.correct["majority"]
    for change, words in (
        ({"correct": {"majority": right}}, "must hold demonstrations and majority"),
        ({"correct": {}, "reasons": {}}, "or reasons say why it holds nothing; it holds nothing"),
        ({"correct": {**found.correct, "luck": right}}, "conditions are .*; not luck"),
        ({"reasons": {"majority": Reason.NOTHING_PERMUTED}}, "majority has both"),
        (
            {"correct": {**found.correct, "majority": right + 0.5}},
            r"right, and given by a rule, \(1\) or not",
        ),
        ({"rules": {"last_label": right}}, "rules must be last_label, commonest_answer; they are last_label"),
        ({"rules": dict.fromkeys(RULES, right / 2 + 0.1)}, r"given by a rule, \(1\) or not"),
    ):
        with pytest.raises(ResultError, match=words):
            replace(found, **change)


def test_it_stands_for_its_own_prompts_and_model_alone():
    prompts = small_evidence().prompts
    found = replace(task_accuracy(), digest=prompts.digest())
    found.check_of(found.run, prompts)
    with pytest.raises(ResultError, match="accuracy must be of these 3 prompts and of this model, a-model"):
        found.check_of(found.run, prompts.select([0, 1, 2]))
    with pytest.raises(
        ResultError, match=r"of this model, another \(HookedTransformer\); it is of 6 prompts and of a-model"
    ):
        found.check_of(run_info(2, 2, model="another"), prompts)


def test_of_some_prompts_it_is_theirs():
    """Every number of the prompts named, in their order; it stands for these prompts and no longer for the others."""
    prompts, numbers = uneven_prompts(count=6), torch.tensor([4, 0, 1])
    whole = replace(task_accuracy(), digest=prompts.digest())
    few = prompts.select(numbers.tolist())
    found = whole.of_some(numbers, few)
    for mine, theirs in ((found.correct, whole.correct), (found.rules, whole.rules)):
        assert list(mine) == list(theirs)
        for name, right in theirs.items():
            assert mine[name].tolist() == [float(right[n]) for n in (4, 0, 1)]
    assert found.demo_set.tolist() == [2, 0, 0]
    assert found.reasons == whole.reasons
    found.check_of(whole.run, few)
    assert found.run.prompts == few.info
    with pytest.raises(ResultError, match="it is of 3 prompts"):
        found.check_of(whole.run, prompts)
    assert len(whole.demo_set) == 6, "the whole is as it was"


def test_rules_are_the_control_votes_of_their_names():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (50, 4), generator=generator)
    answers = torch.randint(3, (50,), generator=generator)
    votes = simple_votes(labels, answers, 3)
    for name, given in rules_of(labels, answers).items():
        assert torch.equal(given, credit(votes[name], answers)[:, 0, 0]), name


def test_twelve_prompts_that_are_all_right_are_not_certainty():
    """Nor is a gain of as many prompts in which neither is ever right; the verdict says how many sets would tell."""
    right = torch.ones(12)
    found = replace(
        task_accuracy(),
        correct={"demonstrations": right, "majority": right},
        rules=dict.fromkeys(RULES, right),
        demo_set=torch.arange(12),
    )
    low, high = found.interval()["demonstrations"]
    assert low == pytest.approx(0.025 ** (1 / 12))
    assert high == 1
    gain, low, high = found.gain()
    assert gain == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 12))
    assert low == -high
    better = replace(found, correct={"demonstrations": right, "majority": (torch.arange(12) < 10).float()})
    assert "of 12 demonstration sets, where about" in better.verdict()
    assert "would show a gain as large as this" in better.verdict()
