"""Whether there is in-context learning at all, on a model that has it and on one that has not."""

from __future__ import annotations

import pytest
import torch
from support import uneven_prompts


def test_the_bundled_model_learns_in_context(mini):
    from icl_kernel_lens import in_context_accuracy, load_task, read
    from icl_kernel_lens.scores import TaskAccuracy

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
    from icl_kernel_lens import in_context_accuracy
    from icl_kernel_lens.scores import TaskAccuracy

    model, _ = tiny("llama")
    accuracy = in_context_accuracy(model, uneven_prompts(count=60), progress=False)
    assert set(accuracy.correct) == {"demonstrations", "majority"}
    assert "made from token ids" in accuracy.reasons["no_demonstrations"]
    assert accuracy.verdict().startswith("No in-context learning shown")
    back = TaskAccuracy.load(accuracy.save(tmp_path / "a.safetensors"))
    assert repr(back) == repr(accuracy)


def test_refusals(mini, tiny):
    from dataclasses import replace

    from icl_kernel_lens import in_context_accuracy, load_task, read
    from icl_kernel_lens.errors import PromptError, ResultError
    from icl_kernel_lens.prompts import rebuilt

    task = load_task("topics")
    prompts = task.prompts(mini, demos=2, count=4)
    other = read(mini, task.prompts(mini, demos=2, count=4, seed=1), progress=False)
    with pytest.raises(ResultError, match="must be of these prompts"):
        in_context_accuracy(mini, prompts, evidence=other)
    stranger = replace(read(mini, prompts, progress=False), run=replace(other.run, model="another"))
    with pytest.raises(ResultError, match="must be of this model; it was read from another"):
        in_context_accuracy(mini, prompts, evidence=stranger)
    with pytest.raises(ResultError, match="accuracy needs true labels"):
        in_context_accuracy(mini, replace(prompts, test_labels=None))
    with pytest.raises(ResultError, match="needs demonstrations"):
        in_context_accuracy(mini, task.prompts(mini, demos=0, count=4))
    with pytest.raises(PromptError, match="only where they were made from text"):
        rebuilt(mini, replace(prompts, episodes=None), labels="none")


def test_a_permutation_that_changes_nothing_is_not_measured(mini):
    from icl_kernel_lens import in_context_accuracy, load_task

    accuracy = in_context_accuracy(mini, load_task("topics").prompts(mini, demos=1, count=8), progress=False)
    assert "permuted_labels" not in accuracy.correct
    assert "changes no label" in accuracy.reasons["permuted_labels"]


def test_controls_are_tokenized_as_the_prompts_are():
    """A tokenizer that begins with a token of its own: the rewritten prompts begin with it too."""
    from prompts.small_tokenizers import word_pieces
    from prompts.test_build import build, fake_lens

    from icl_kernel_lens.prompts import rebuilt

    tokenizer = word_pieces()
    tokenizer.bos_token = "[SEP]"
    prompts = build(tokenizer, score_on="sequence")
    lens = fake_lens(tokenizer)
    for labels in ("permuted", "none"):
        again = rebuilt(lens, prompts, labels=labels)
        assert (again.tokens[:, 0] == prompts.tokens[0, 0]).all()


def test_permuted_labels_keep_texts_and_label_counts(mini):
    from icl_kernel_lens import load_task
    from icl_kernel_lens.prompts import rebuilt

    prompts = load_task("topics").prompts(mini, demos=8, count=20, sets=5)
    permuted = rebuilt(mini, prompts, labels="permuted")
    assert permuted.info.permuted_labels
    assert torch.equal(permuted.label_pos, prompts.label_pos)
    assert torch.equal(permuted.demo_labels.sort(1).values, prompts.demo_labels.sort(1).values)
    assert not torch.equal(permuted.demo_labels, prompts.demo_labels)
    same = permuted.tokens == prompts.tokens
    assert same.scatter(1, prompts.label_pos, True).all()  # nothing but label tokens has changed
    drawn = {tuple(row) for row in permuted.demo_labels.tolist()}
    assert len(drawn) > 12, "a set's prompts are not all given one permutation"
    fresh = load_task("topics").prompts(mini, demos=8, count=40)
    assert torch.equal(rebuilt(mini, fresh, labels="permuted").demo_set, fresh.demo_set)
