"""Whether there is in-context learning at all, on a model that has it and on one that has not."""

from __future__ import annotations

import pytest
from support import uneven_prompts

from icl_kernel_lens import in_context_accuracy, load_task, read
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.results.task_accuracy import TaskAccuracy


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
    alone = in_context_accuracy(mini, prompts, progress=False)
    assert alone.mean() == pytest.approx(mean)


def test_a_random_model_does_not_and_ids_cannot_be_rewritten(tiny, tmp_path):
    model, _ = tiny("llama")
    accuracy = in_context_accuracy(model, uneven_prompts(count=60), progress=False)
    assert set(accuracy.correct) == {"demonstrations", "majority"}
    assert "made from token ids" in str(accuracy.reasons["no_demonstrations"])
    assert accuracy.verdict().startswith("No in-context learning shown")
    back = TaskAccuracy.load(accuracy.save(tmp_path / "a.safetensors"))
    assert repr(back) == repr(accuracy)


def test_refusals(mini, tiny):
    from dataclasses import replace

    task = load_task("topics")
    prompts = task.prompts(mini, demos=2, count=4)
    other = read(mini, task.prompts(mini, demos=2, count=4, seed=1), progress=False)
    with pytest.raises(ResultError, match="must be a reading of these 4 prompts"):
        in_context_accuracy(mini, prompts, evidence=other)
    stranger = replace(read(mini, prompts, progress=False), run=replace(other.run, model="another"))
    with pytest.raises(ResultError, match="must be a reading of this model; it was read from another"):
        in_context_accuracy(mini, prompts, evidence=stranger)
    with pytest.raises(ResultError, match="accuracy needs true labels"):
        in_context_accuracy(mini, replace(prompts, test_labels=None))
    with pytest.raises(ResultError, match="needs demonstrations"):
        in_context_accuracy(mini, task.prompts(mini, demos=0, count=4))


def test_a_permutation_that_changes_nothing_is_not_measured(mini):
    accuracy = in_context_accuracy(mini, load_task("topics").prompts(mini, demos=1, count=8), progress=False)
    assert "permuted_labels" not in accuracy.correct
    assert "changes no label" in str(accuracy.reasons["permuted_labels"])
