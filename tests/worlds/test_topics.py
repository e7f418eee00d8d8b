"""The topics world: what is held out is held out, and the bundled model learned it in context."""

from __future__ import annotations

import json
import random
from itertools import combinations

import pytest
import torch


def test_words_are_used_once():
    from icl_kernel_lens.worlds.topics import LABEL_WORDS, NEUTRAL, TOPICS, vocabulary

    words = vocabulary()
    assert len(words) == len(set(words))
    assert len(TOPICS) == 32
    assert {len(w) for w in TOPICS.values()} == {8}
    assert (len(NEUTRAL), len(LABEL_WORDS)) == (40, 48)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_no_pair_of_topics_or_label_words_is_in_both_splits(classes):
    from icl_kernel_lens.worlds.topics import Document

    def pairs(split, draws, number):
        rng = random.Random(split)
        found = [Document.draw(rng, split, classes=number) for _ in range(draws)]
        return (
            {frozenset(p) for d in found for p in combinations(d.topics, 2)},
            {frozenset(p) for d in found for p in combinations(d.label_words, 2)},
        )

    train, held = pairs("train", 400, classes), pairs("heldout", 400, 2)
    assert not train[0] & held[0]
    assert not train[1] & held[1]
    assert len(held[0]) > 50


def test_an_example_tells_its_topic_and_nothing_else():
    from icl_kernel_lens.worlds.topics import NEUTRAL, TOPICS, TopicsTask

    topic_of = {word: topic for topic, words in TOPICS.items() for word in words}
    for episode in TopicsTask().episodes(demos=8, count=30, seed=0):
        topics: dict[int, set[str]] = {0: set(), 1: set()}
        for example in (*episode.demos, episode.test):
            words = example.texts[0].split()
            told = [topic_of[w] for w in words if w not in NEUTRAL]
            assert len(told) >= 3
            topics[example.label] |= set(told)
        assert all(len(t) <= 1 for t in topics.values())
        assert topics[0] != topics[1]


def test_episodes_are_seeded_and_shared():
    from icl_kernel_lens.errors import TaskError
    from icl_kernel_lens.worlds.topics import TopicsTask

    task = TopicsTask()
    assert task.episodes(demos=3, count=5, seed=1) == task.episodes(demos=3, count=5, seed=1)
    assert task.episodes(demos=3, count=5, seed=1) != task.episodes(demos=3, count=5, seed=2)
    assert task.episodes(demos=3, count=9, seed=1)[:5] == task.episodes(demos=3, count=5, seed=1)
    odd = task.episodes(demos=5, count=60, seed=0, balanced=True)
    assert {sum(d.label for d in e.demos) for e in odd} == {2, 3}
    shared = task.episodes(demos=4, count=6, seed=0, sets=2)
    assert shared[0].demos == shared[2].demos != shared[3].demos
    with pytest.raises(TaskError, match="demonstrations cannot be given"):
        task.episodes(demos=4, count=6, seed=0, given=())
    with pytest.raises(TaskError, match="got demos=-1, count=6"):
        task.episodes(demos=-1, count=6, seed=0)
    for episode in task.episodes(demos=8, count=6, seed=0, balanced=True):
        assert sum(d.label for d in episode.demos) == 4


def test_prompts_and_training_documents_are_the_same_text(mini):
    """The tokenizer's rendering of an episode is what the training loop writes by hand."""
    from icl_kernel_lens import load_task
    from icl_kernel_lens.worlds.topics import vocabulary
    from icl_kernel_lens.worlds.train import batch_of_documents

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
    from icl_kernel_lens import load_task
    from icl_kernel_lens.evidence import answer

    prompts = load_task("topics").prompts(mini, demos=demos, count=600, seed=2024)
    right = (answer(mini, prompts, progress=False).argmax(1) == prompts.test_labels).float().mean().item()
    assert right >= {4: 0.85, 8: 0.9, 16: 0.95}[demos]


def test_the_bundled_model_has_kernel_like_heads_and_others(mini):
    from icl_kernel_lens import head_vote, load_task, read

    prompts = load_task("topics").prompts(mini, demos=16, count=400, seed=5)
    margin = head_vote(read(mini, prompts, progress=False)).above_control()
    assert margin.max() > 0.4
    assert (margin < 0.1).sum() >= 9


def test_the_record_is_of_these_weights():
    from safetensors import safe_open

    from icl_kernel_lens.models.load import MINI
    from icl_kernel_lens.worlds.train import TrainingPlan

    record = json.loads((MINI / "training.json").read_text())
    with safe_open(MINI / "model.safetensors", "pt") as file:
        count = sum(file.get_tensor(k).numel() for k in file.keys())  # noqa: SIM118
    assert count == record["parameters"]
    assert (MINI / "model.safetensors").stat().st_size < 4e6
    plan = TrainingPlan(**(record["plan"] | {"classes": tuple(record["plan"]["classes"])}))
    assert plan == TrainingPlan()
    accuracy = [point["accuracy_16"] for point in record["curve"]]
    assert accuracy[0] < 0.6 < 0.95 < accuracy[-1] + 0.01


def test_training_is_deterministic_and_leaves_random_state_alone(tmp_path):
    from icl_kernel_lens import load_model
    from icl_kernel_lens.errors import LoadError
    from icl_kernel_lens.worlds.train import TrainingPlan, train_mini

    plan = TrainingPlan(layers=1, width=16, heads=2, mlp_width=16, steps=3, batch_size=4, measure_every=2)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    a = train_mini(tmp_path / "a", plan, progress=False)
    b = train_mini(tmp_path / "b", plan, progress=False)
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
        train_mini(tmp_path / "other", plan, progress=False)
