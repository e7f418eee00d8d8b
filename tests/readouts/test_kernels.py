"""Kernels to compare influence with: each by hand from the texts, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from icl_kernel_lens import Task, Template, load_task
from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.prompts.example import Example
from icl_kernel_lens.readouts import input_kernels

NAMES = ["same prediction", "same class", "shared tokens", "same length"]


def words(texts):
    """A vector a text: how often each of four letters stands in it, as lists, as many encoders give."""
    return [[float(text.count(letter)) + 0.1 for letter in "aeio"] for text in texts]


@pytest.fixture(scope="module")
def prompts(mini):
    return load_task("topics").prompts(mini, demos=5, count=6, sets=2, seed=3)


@pytest.fixture(scope="module")
def found(mini, prompts):
    return input_kernels(mini, prompts, encoders={"bag": lambda x: torch.tensor(words(x))}, progress=False)


def test_each_is_what_its_name_says(mini, prompts, found):
    assert list(found) == [*NAMES, "bag"]
    tokenizer = mini.tokenizer
    for number, episode in enumerate(prompts.episodes):
        test, *demos = (tokenizer(e.texts[0])["input_ids"] for e in (episode.test, *episode.demos))
        with torch.no_grad():
            first, *rest = (mini(torch.tensor([ids]))[0, -1].double().softmax(-1) for ids in (test, *demos))
        test, *demos = (
            tokenizer(e.texts[0], add_special_tokens=False)["input_ids"]
            for e in (episode.test, *episode.demos)
        )
        for demo, ids in enumerate(demos):
            shared, both = set(ids) & set(test), set(ids) | set(test)
            expected = {
                "same prediction": float(first @ rest[demo]),
                "same class": float(episode.demos[demo].label == episode.test.label),
                "shared tokens": len(shared) / len(both),
                "same length": min(len(ids), len(test)) / max(len(ids), len(test)),
            }
            one, two = torch.tensor(words([episode.test.texts[0], episode.demos[demo].texts[0]]))
            expected["bag"] = float(torch.cosine_similarity(one, two, dim=0))
            for name, value in expected.items():
                assert float(found[name][number, demo]) == pytest.approx(value, abs=1e-5), name
    for name in ("shared tokens", "same class", "same prediction", "bag"):
        assert found[name].std() > 0, name


def test_a_beginning_that_all_texts_have_is_not_shared(mini):
    settings = {"demos": 4, "count": 4, "sets": 2, "seed": 3}
    plain, begun = (
        input_kernels(mini, load_task("topics").prompts(mini, prepend_bos=bos, **settings), progress=False)
        for bos in (False, True)
    )
    torch.testing.assert_close(begun["shared tokens"], plain["shared tokens"])


def test_of_ids_alone_tokens_are_compared_and_encoders_have_nothing_to_read(mini, prompts, found):
    ids = replace(prompts.as_ids(), test_labels=None)
    alone = input_kernels(mini, ids, progress=False)
    assert list(alone) == ["same prediction", "shared tokens", "same length"]
    assert alone["shared tokens"].shape == (6, 5)
    with pytest.raises(PromptError, match="'bag' has none to read"):
        input_kernels(mini, ids, encoders={"bag": words}, progress=False)


def test_fields_are_read_together(mini):
    """Whatever stands between them."""
    seen = []

    def encoder(texts):
        seen.extend(texts)
        return torch.ones(len(texts), 2)

    pool = [Example((f"red {n}", f"cold {n}"), n % 2) for n in range(12)]
    template = Template("{text} so {text2} is {label} .")
    task = Task("pairs", ("no", "yes"), ("red", "blue"), template, tuple(pool), tuple(pool))
    made = task.prompts(mini, demos=3, count=2, seed=0)
    kernels = input_kernels(mini, made, encoders={"ones": encoder}, progress=False)
    assert all(text.startswith("red") and " so cold" in text for text in seen)
    torch.testing.assert_close(kernels["ones"], torch.ones(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("given", [torch.ones(1, 3), torch.ones(4)])
def test_encoders_must_give_a_vector_a_text(mini, prompts, given):
    with pytest.raises(PromptError, match="a vector for each text"):
        input_kernels(mini, prompts, encoders={"few": lambda _: given}, progress=False)
