"""The topics world, trained on: the bundled model learned it in context, and training says what it did."""

from __future__ import annotations

import json
import random

import pytest
import torch
from safetensors import safe_open

from icl_kernel_lens import head_vote, load_model, load_task, read
from icl_kernel_lens.errors import LoadError
from icl_kernel_lens.evidence.reading import answer
from icl_kernel_lens.models.sources import MINI
from icl_kernel_lens.tasks.topics import vocabulary
from icl_kernel_lens.worlds.topics.train import MiniTraining, batch_of_documents, train_mini


def test_prompts_and_training_documents_are_the_same_text(mini):
    """The tokenizer's rendering of an episode is what the training loop writes by hand."""
    words = vocabulary()
    prompts = load_task("topics").prompts(mini, demos=3, count=5)
    assert prompts.info.prepend_bos is True
    for p in range(5):
        text = [words[t] for t in prompts.tokens[p, : int(prompts.lengths[p])].tolist()]
        assert text[0] == "<bos>"
        assert text[-1] == "is"
        for i in range(3):
            at = int(prompts.label_pos[p, i])
            assert (text[at - 1], text[at + 1]) == ("is", ".")
            assert text[at] == prompts.label_words[p][int(prompts.demo_labels[p, i])]
    tokens, label_pos = batch_of_documents(random.Random(0), "train", "seen", 4, 5)
    for row, where in zip(tokens.tolist(), label_pos.tolist(), strict=True):
        assert words[row[0]] == "<bos>"
        for at in where:
            assert (words[row[at - 1]], words[row[at + 1]]) == ("is", ".")


@pytest.mark.parametrize("demos", [4, 8, 16])
def test_the_bundled_model_answers_held_out_documents(mini, demos):
    """Fresh seed, held-out pairs of topics and of label words. The 17th example: at least 0.95."""
    prompts = load_task("topics").prompts(mini, demos=demos, count=600, seed=2024)
    right = (answer(mini, prompts, progress=False).argmax(1) == prompts.test_labels).float().mean().item()
    assert right >= {4: 0.85, 8: 0.9, 16: 0.95}[demos]


def test_the_bundled_model_has_kernel_like_heads_and_others(mini):
    prompts = load_task("topics").prompts(mini, demos=16, count=400, seed=5)
    margin = head_vote(read(mini, prompts, progress=False)).above_control()
    assert margin.max() > 0.4
    assert (margin < 0.1).sum() >= 9


def test_the_record_is_of_these_weights():
    record = json.loads((MINI / "training.json").read_text())
    with safe_open(MINI / "model.safetensors", "pt") as file:
        count = sum(file.get_tensor(k).numel() for k in file.keys())  # noqa: SIM118
    assert count == record["parameters"]
    assert (MINI / "model.safetensors").stat().st_size < 4e6
    settings = MiniTraining(**(record["plan"] | {"classes": tuple(record["plan"]["classes"])}))
    assert settings == MiniTraining()
    accuracy = [point["accuracy_16"] for point in record["curve"]]
    assert accuracy[0] < 0.6 < 0.95 < accuracy[-1] + 0.01


def test_training_is_deterministic_and_leaves_random_state_alone(tmp_path):
    settings = MiniTraining(layers=1, width=16, heads=2, mlp_width=16, steps=3, batch_size=4, measure_every=2)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    a = train_mini(tmp_path / "a", settings, progress=False)
    b = train_mini(tmp_path / "b", settings, progress=False)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads
    assert [p["loss"] for p in a["curve"]] == [p["loss"] for p in b["curve"]]
    weights = [(tmp_path / x / "model.safetensors").read_bytes() for x in "ab"]
    assert weights[0] == weights[1]
    assert a["curve"][-1]["step"] == 2
    model = load_model(tmp_path / "a", device="cpu")
    assert model.cfg.n_layers == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(LoadError, match="holds something else"):
        train_mini(tmp_path / "other", settings, progress=False)
