"""Whether there is in-context learning at all, on models that have it and on models that follow a simple rule."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from support import uneven_prompts

from icl_kernel_lens import Task, Template, corrupt, in_context_accuracy, load_task, planted_model, read
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.evidence.reading import answer
from icl_kernel_lens.evidence.small import small_evidence
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.prompts.build import rebuilt
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.results.task_accuracy import CONDITIONS, TaskAccuracy
from icl_kernel_lens.run import runner
from icl_kernel_lens.run.prefixes import unshared
from icl_kernel_lens.scores import in_context
from icl_kernel_lens.scores.in_context import accuracy_of
from icl_kernel_lens.worlds.planted.roles import PlantedHead


def test_the_bundled_model_learns_in_context(mini):
    prompts = load_task("topics").prompts(mini, demos=16, count=120, seed=11)
    evidence = read(mini, prompts, progress=False)
    accuracy = in_context_accuracy(mini, prompts, evidence=evidence, progress=False)
    assert isinstance(accuracy, TaskAccuracy)
    mean = accuracy.mean()
    assert mean["demonstrations"] > 0.9
    for control in ("permuted_labels", "no_demonstrations", "majority"):
        assert 0.3 < mean[control] < 0.7
    assert accuracy.verdict().startswith("The demonstrations help: +")
    assert mean["demonstrations"] == (evidence.answers == prompts.test_labels).float().mean().item()
    last = (evidence.answers == prompts.demo_labels[:, -1]).float().mean().item()
    assert accuracy.explained()["last_label"][0] == last
    alone = in_context_accuracy(mini, prompts, progress=False)
    assert alone.mean() == pytest.approx(mean)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (PlantedHead(1, 0, "last_label", gain=6.0), "the last label gives 100.0% of them"),
        (
            PlantedHead(1, 0, "word_preference", gain=6.0, label=1),
            "the commonest answer gives 100.0% of them",
        ),
        (PlantedHead(1, 0, "kernel", gain=6.0), ""),
    ],
)
def test_a_model_that_follows_a_rule_is_told_by_it(head, said):
    """One repeats the last label, one gives one answer whatever it is shown, and one learns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        made = planted_model([head], layers=2, heads_per_layer=2, demos=8)
    prompts = made.prompts(count=200)
    found = in_context_accuracy(made.model, prompts, progress=False)
    assert set(found.reasons.values()) == {Reason.NOT_FROM_TEXT}
    if said:
        assert found.verdict().startswith("No in-context learning shown: ")
        assert f"; one rule explains nearly all of the answers: {said}" in found.verdict()
    else:
        assert "rule" not in found.verdict()
        assert found.mean()["demonstrations"] > 0.8
        assert found.verdict().startswith("Accuracy is ")


def test_a_model_that_demonstrations_mislead(mini, tmp_path):
    """Test inputs labelled the other way round: what the bundled model learns from the demonstrations is wrong."""
    prompts = load_task("topics").prompts(mini, demos=8, count=64, seed=2)
    turned = replace(prompts, test_labels=1 - prompts.test_labels)
    truth = [replace(e, test=replace(e.test, label=1 - e.test.label)) for e in prompts.episodes]
    found = in_context_accuracy(mini, replace(turned, episodes=tuple(truth)), progress=False)
    assert found.hurts()
    assert found.verdict().startswith("The demonstrations hurt: accuracy falls from ")
    back = TaskAccuracy.load(found.save(tmp_path / "a.safetensors"))
    assert repr(back) == repr(found)
    assert back.opening() == found.opening()


def test_prompts_that_share_demonstrations_share_permuted_ones(mini, monkeypatch):
    """And zero-shot prompts share their leading tokens; with the numbers of prompts that are run whole."""
    words = ("harbor sail tide", "violin drum chord")
    rows = [{"text": f"{words[i % 2]} then {i}", "label": i % 2} for i in range(80)]
    task = Task.from_records(
        rows,
        label_words=("red", "blue"),
        template=Template("{text} is {label} .", prefix="then " * 20),
    )
    prompts = task.prompts(mini, demos=6, count=32, sets=8, seed=4)
    permuted, none = (rebuilt(mini, prompts, labels=labels) for labels in ("permuted", "none"))

    def run(which):
        branches, _ = runner.sharing_of(which, as_adapter(mini), [])
        return branches.cost(which.lengths.tolist())

    assert run(permuted) < 0.35 * int(permuted.lengths.sum())
    assert run(none) < 0.75 * int(none.lengths.sum())
    shared = in_context_accuracy(mini, prompts, progress=False)
    scores = [answer(mini, which, progress=False) for which in (permuted, none)]
    with monkeypatch.context() as patch:
        patch.setattr(runner, "sharing_of", lambda which, *_: (unshared(len(which)), "each alone"))
        fresh = in_context_accuracy(mini, prompts, progress=False)
        for which, with_shared in zip((permuted, none), scores, strict=True):
            torch.testing.assert_close(answer(mini, which, progress=False), with_shared, atol=1e-4, rtol=1e-4)
    for name in CONDITIONS:
        assert torch.equal(shared.correct[name], fresh.correct[name]), name


def test_a_random_model_does_not_and_ids_cannot_be_rewritten(tiny, tmp_path):
    model, _ = tiny("llama")
    accuracy = in_context_accuracy(model, uneven_prompts(count=60), progress=False)
    assert set(accuracy.correct) == {"demonstrations", "majority"}
    assert "made from token ids" in str(accuracy.reasons["no_demonstrations"])
    assert accuracy.verdict().startswith("No in-context learning shown")
    back = TaskAccuracy.load(accuracy.save(tmp_path / "a.safetensors"))
    assert repr(back) == repr(accuracy)


def test_without_truth_only_the_rules_are_measured(mini, tiny, monkeypatch):
    """And nothing is run but the prompts as they are."""
    ran = []
    monkeypatch.setattr(
        in_context, "answer", lambda model, which, **how: ran.append(which) or answer(model, which, **how)
    )
    prompts = load_task("topics").prompts(mini, demos=4, count=20)
    for model, some in ((mini, prompts), (tiny("llama")[0], uneven_prompts(count=20))):
        blind = replace(some, test_labels=None)
        found = in_context_accuracy(model, blind, progress=False)
        assert ran.pop() is blind
        assert not ran
        assert found.reasons == dict.fromkeys(CONDITIONS, Reason.NO_TRUTH)
        known = in_context_accuracy(model, some, progress=False)
        assert found.explained() == known.explained()
        ran.clear()


def test_evidence_alone_says_what_it_can():
    evidence = small_evidence()
    found = accuracy_of(evidence)
    assert found.mean() == {"demonstrations": 0.75, "majority": 0.75}
    assert {name: shares[0] for name, shares in found.explained().items()} == {
        "last_label": 0.5,
        "commonest_answer": 0.5,
    }
    assert found.reasons == dict.fromkeys(("permuted_labels", "no_demonstrations"), Reason.NOT_RUN)
    blind = accuracy_of(replace(evidence, prompts=replace(evidence.prompts, test_labels=None)))
    assert blind.reasons == dict.fromkeys(CONDITIONS, Reason.NO_TRUTH)
    constant = replace(evidence, label_scores=torch.tensor([[0.0, 1.0]]).repeat(4, 1))
    assert "the commonest answer gives 100.0% of them" in accuracy_of(constant).verdict()


def test_refusals(mini, tiny):
    task = load_task("topics")
    prompts = task.prompts(mini, demos=2, count=4)
    other = read(mini, task.prompts(mini, demos=2, count=4, seed=1), progress=False)
    with pytest.raises(ResultError, match="must be a reading of these 4 prompts"):
        in_context_accuracy(mini, prompts, evidence=other)
    stranger = replace(read(mini, prompts, progress=False), run=replace(other.run, model="another"))
    with pytest.raises(ResultError, match="must be a reading of this model; it was read from another"):
        in_context_accuracy(mini, prompts, evidence=stranger)
    with pytest.raises(ResultError, match="needs demonstrations"):
        in_context_accuracy(mini, task.prompts(mini, demos=0, count=4))


def test_a_permutation_that_changes_nothing_is_not_measured(mini):
    accuracy = in_context_accuracy(mini, load_task("topics").prompts(mini, demos=1, count=8), progress=False)
    assert "permuted_labels" not in accuracy.correct
    assert "changes no label" in str(accuracy.reasons["permuted_labels"])


def test_a_reading_with_permuted_labels_saves_a_run(mini, monkeypatch):
    prompts = load_task("topics").prompts(mini, demos=4, count=12, sets=12)
    evidence = read(mini, prompts, progress=False)
    reread = read(mini, corrupt(prompts, "permute_labels", seed=5), progress=False)
    asked = []
    original = in_context.answer

    def counting(model, some, **how):
        asked.append(some.demos)
        return original(model, some, **how)

    monkeypatch.setattr(in_context, "answer", counting)
    found = in_context_accuracy(mini, prompts, evidence=evidence, permuted=reread, progress=False)
    assert asked == [0], "without demonstrations alone"
    right = (reread.answers == prompts.test_labels).float()
    assert torch.equal(found.correct["permuted_labels"], right)


def test_what_is_no_permuted_reading_is_refused(mini):
    """Label counts of balanced prompts tell nothing apart: texts and labels do."""

    def drawn(seed):
        return load_task("topics").prompts(mini, demos=4, count=8, sets=8, seed=seed, balanced=True)

    prompts = drawn(0)
    evidence = read(mini, prompts, progress=False)
    others = read(mini, corrupt(drawn(1), "permute_labels", seed=0), progress=False)
    for wrong in (evidence, others):
        with pytest.raises(ResultError, match="permuted must be a reading of these 8 prompts"):
            in_context_accuracy(mini, prompts, evidence=evidence, permuted=wrong, progress=False)
