"""Episodes whose inputs have equally many tokens, from pools and from a world."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from prompts.toy import (
    corrupted,
    fake_adapter,
    written,
)
from support import SHARED, needs_shared

from icl_kernel_lens import Task, load_model, load_task
from icl_kernel_lens.errors import PromptError, TaskError
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.prompts.build import build_prompts
from icl_kernel_lens.tasks import topics


def input_lengths(prompts):
    return [
        {
            int(prompts.roles[p, a:b].eq(3).sum() + prompts.roles[p, a:b].eq(4).sum())
            for a, b in prompts.demo_spans[p].tolist()
        }
        for p in range(len(prompts))
    ]


@pytest.mark.parametrize("options", [{}, {"sets": 4}, {"balanced": True}, {"balanced": True, "demos": 5}])
def test_a_world_gives_inputs_of_one_length(mini, options):
    options = {"demos": 4, "count": 20} | options
    prompts = load_task("topics").prompts(mini, **options, match_lengths=True)
    assert len(prompts) == 20
    assert prompts.demos == options["demos"]
    lengths = input_lengths(prompts)
    assert all(found == lengths[0] for found in lengths)
    assert len(lengths[0]) == 1
    assert len(prompts.lengths.unique()) == 1
    assert len(prompts.demo_set.unique()) == options.get("sets", 20)
    assert prompts.demo_set.bincount().tolist() == [20 // options.get("sets", 20)] * options.get("sets", 20)
    if options.get("balanced"):
        counts = prompts.demo_labels.sum(1)
        assert ((counts * 2 - prompts.demos).abs() <= prompts.demos % 2).all()
        assert prompts.demos % 2 == 0 or len(counts.unique()) == 2
    for how in ("exchange_inputs", "replace_test_input"):
        corrupted(prompts, how)
    again = load_task("topics").prompts(mini, **options, match_lengths=True)
    assert torch.equal(prompts.tokens, again.tokens)


def test_a_world_refuses_an_uneven_count_as_ever(mini):
    with pytest.raises(TaskError, match="20 prompts cannot be shared evenly by 3"):
        load_task("topics").prompts(mini, demos=4, count=20, sets=3, match_lengths=True)
    bare = load_task("topics").prompts(mini, demos=0, count=20, match_lengths=True)
    assert len(bare.lengths.unique()) == 1


def test_a_world_with_too_few_of_one_length_is_refused(mini, monkeypatch):
    sizes = iter(range(10**9))
    monkeypatch.setattr(topics, "draw_words", lambda rng, topic: " ".join(["also"] * (1 + next(sizes) % 97)))
    with pytest.raises(
        PromptError, match=r"'topics' has too few inputs of equal length: .* demonstrations of 8"
    ):
        load_task("topics").prompts(mini, demos=8, count=4, match_lengths=True)


@needs_shared
def test_a_file_gives_inputs_of_one_length():
    model = load_model(SHARED / "models" / "stories260k", device="cpu")
    source = load_task(SHARED / "data" / "tasks" / "sst2.train.jsonl")
    prompts = source.prompts(model, demos=4, count=20, match_lengths=True, score_on="sequence")
    lengths = input_lengths(prompts)
    assert all(found == lengths[0] for found in lengths)
    assert len(lengths[0]) == 1
    assert (prompts.demo_labels.min(), prompts.demo_labels.max()) == (0, 1)
    first = prompts.demo_spans[:, 0, 0]
    moved = torch.zeros(len(prompts), dtype=torch.bool)
    for how in ("exchange_inputs", "replace_test_input"):
        after = corrupted(prompts, how)
        assert after.episodes is not None
        again = build_prompts(
            as_adapter(model),
            list(after.episodes),
            source.template,
            info=after.info,
            classes=after.classes,
            score_on="sequence",
        )
        assert torch.equal(after.tokens, again.tokens)
        assert torch.equal(after.roles, again.roles)
        if how == "exchange_inputs":
            moved = torch.tensor(
                [
                    not torch.equal(a[start:end], b[start:end])
                    for a, b, start, end in zip(
                        after.tokens, prompts.tokens, first, prompts.label_pos[:, 0], strict=True
                    )
                ]
            )
    assert moved.any()  # the first demonstration has a token more than the others, and takes part


def test_test_inputs_take_as_few_lengths_as_hold_them():
    """Pools with 3, 2 and 1 test inputs of one length: 3 take one, 4 and 5 two lengths, 6 are refused."""
    texts = ["dull film", "good film", "very good", "x", "a", "the very very good film"]
    adapter = fake_adapter()
    for count, lengths in ((2, [2]), (3, [3]), (4, [2, 2]), (5, [3, 2])):
        drawn = {tuple(p.test.texts) for p in written(adapter, texts, demos=1, count=count).episodes or ()}
        assert len(drawn) == count
        prompts = written(adapter, texts, demos=1, count=count)
        starts = prompts.demo_spans[:, -1, 1]
        sizes = Counter((prompts.answer_pos - starts).tolist())
        assert sorted(sizes.values(), reverse=True) == lengths
    message = r"need 6 that share .* 'toy' has 5 such of 6 \(the commonest lengths have 3, 2, 1 each\)"
    with pytest.raises(PromptError, match=message):
        written(adapter, texts, demos=1, count=6)


def test_demonstrations_take_the_commonest_length_with_every_class():
    # Three of two tokens of class 0 and 1 in turn; four of one token, all of class 0.
    texts = ["x", "dull film", "a", "good film", "the", "film", "very good", "good film"]
    rows = [
        {"text": text, "label": label}
        for text, label in zip(
            ["x", "a", "z", "q", "dull film", "good film", "very good"], [0, 0, 0, 0, 0, 1, 0], strict=True
        )
    ]

    tests = [{"text": text, "label": i % 2} for i, text in enumerate(texts)]
    source = Task.from_records(rows, tests, name="toy", label_words=("negative", "positive"))
    adapter = fake_adapter()
    prompts = source.prompts(adapter, demos=2, count=2, match_lengths=True, score_on="sequence")
    assert {d.texts[0] for e in prompts.episodes or () for d in e.demos} <= {
        "dull film",
        "good film",
        "very good",
    }
    message = (
        r"need 4 examples .*, and 1 of every class; the train pool of 'toy' has at most, .*, "
        r"\d tokens: 4 \(4, 0\); \d tokens: 3 \(2, 1\)\. Ask for fewer"
    )
    with pytest.raises(PromptError, match=message):
        source.prompts(adapter, demos=4, count=2, match_lengths=True, score_on="sequence")
    with pytest.raises(PromptError, match="and 2 of every class"):
        source.prompts(adapter, demos=3, count=2, match_lengths=True, balanced=True, score_on="sequence")
    given = source.train[:3]
    kept = source.prompts(adapter, given=given, demos=3, count=2, match_lengths=True, score_on="sequence")
    assert kept.episodes is not None
    assert kept.episodes[0].demos == given
