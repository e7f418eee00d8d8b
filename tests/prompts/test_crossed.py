"""Demonstrations of one prompt with the test inputs of others: the prompts as they would be written by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import uneven_prompts

from icl_kernel_lens import PromptSet, Task
from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.prompts.crossed import check_crossed, cross
from icl_kernel_lens.prompts.promptset import TokenRole


def put_together(prompts, shown, tested):
    """The tokens of one prompt up to the end of its demonstrations, and those of another behind that."""
    end, begin = int(prompts.demo_spans[shown, -1, 1]), int(prompts.demo_spans[tested, -1, 1])
    row = prompts.tokens[shown, :end].tolist()
    return row + prompts.tokens[tested, begin : int(prompts.lengths[tested])].tolist()


def by_hand(prompts, pairs, demo_set):
    """The same prompts made of ready-made token ids."""
    rows = [put_together(prompts, *pair) for pair in pairs]
    width = max(map(len, rows))
    shown, tested = (torch.tensor(side) for side in zip(*pairs, strict=True))
    return PromptSet.from_tokens(
        torch.tensor([row + [0] * (width - len(row)) for row in rows]),
        prompts.label_pos[shown],
        prompts.demo_labels[shown],
        prompts.label_tokens[0],
        test_labels=prompts.test_labels[tested],
        demo_spans=prompts.demo_spans[shown],
        demo_set=torch.tensor(demo_set),
        answer_pos=torch.tensor([len(row) - 1 for row in rows]),
    )


def test_token_prompts_of_unequal_lengths_are_those_written_by_hand():
    prompts = uneven_prompts(count=7)
    assert len(prompts.lengths.unique()) > 3
    found = cross(prompts, 3, model=None)
    expected = by_hand(prompts, [(0, 0), (0, 1), (0, 2), (3, 3), (3, 4), (3, 5)], [0, 0, 0, 1, 1, 1])
    assert found.same_as(expected)
    for name in (
        "tokens",
        "roles",
        "lengths",
        "answer_pos",
        "demo_spans",
        "label_spans",
        "demo_labels",
        "test_labels",
        "demo_set",
    ):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.info == prompts.info
    assert found.label_words == prompts.label_words[:6]
    words = prompts.label_tokens[0]
    assert torch.equal(found.tokens.gather(1, found.label_pos), words[found.demo_labels])
    two = cross(prompts, 2, model=None)
    pairs = [(0, 0), (0, 1), (2, 2), (2, 3), (4, 4), (4, 5)]
    assert two.same_as(by_hand(prompts, pairs, [0, 0, 1, 1, 2, 2]))
    assert two.demo_set.tolist() == [0, 0, 1, 1, 2, 2]
    assert cross(replace(prompts, test_labels=None), 3, model=None).test_labels is None


def test_what_stands_behind_the_answer_comes_with_the_test_input():
    """Two tokens behind the answer of the second prompt; the first is as it was."""
    prompts = uneven_prompts(count=2)
    longer = replace(
        prompts,
        lengths=prompts.lengths + torch.tensor([0, 2]),
        roles=prompts.roles.scatter(1, prompts.lengths[:, None] + torch.tensor([[5, 6], [0, 1]]), 2),
        strings=(),
    )
    roles = longer.roles.clone()
    roles[0] = prompts.roles[0]
    longer = replace(longer, roles=roles)
    found = cross(longer, 2, model=None)
    start = int(longer.demo_spans[0, -1, 1]) - int(longer.demo_spans[1, -1, 1])
    assert found.answer_pos.tolist() == [int(prompts.answer_pos[0]), int(prompts.answer_pos[1]) + start]
    assert found.lengths.tolist() == [int(prompts.lengths[0]), int(longer.lengths[1]) + start]
    assert found.tokens[1, : int(found.lengths[1])].tolist() == put_together(longer, 0, 1)
    assert found.roles[1, found.lengths[1] - 2 : found.lengths[1]].tolist() == [TokenRole.TEMPLATE] * 2
    assert int(found.roles[0, found.lengths[0] :].sum()) == 0


def test_prompts_from_text_are_written_anew(mini):
    task = Task.from_records(rows(), rows("moss", "friday"), name="few", label_words=("gray", "azure"))
    prompts = task.prompts(mini, demos=3, count=6, seed=0)
    assert len(prompts.lengths.unique()) > 1
    found = cross(prompts, 3, model=mini)
    kept = [(3 * (at // 3), at) for at in range(6)]
    assert len(found) == len(kept)
    assert found.demo_set.tolist() == [shown // 3 for shown, _ in kept]
    assert found.episodes is not None
    for number, (shown, tested) in enumerate(kept):
        row = put_together(prompts, shown, tested)
        assert found.tokens[number, : int(found.lengths[number])].tolist() == row
        assert int(found.answer_pos[number]) == len(row) - 1
        assert torch.equal(found.demo_spans[number], prompts.demo_spans[shown])
        assert torch.equal(found.label_spans[number], prompts.label_spans[shown])
        assert torch.equal(found.demo_labels[number], prompts.demo_labels[shown])
        assert int(found.test_labels[number]) == int(prompts.test_labels[tested])
        assert found.episodes[number].demos == prompts.episodes[shown].demos
        assert found.episodes[number].test == prompts.episodes[tested].test
    ids = cross(replace(prompts, episodes=None), 3, model=None)
    assert ids.same_as(found)
    assert torch.equal(ids.demo_set, found.demo_set)


def rows(*more):
    texts = ["plea lawyer judge", "comet lunar", "chord melody opera again", "later rose pine"]
    ends = more or ("rose", "pine")
    return [{"text": f"{text} {end}", "label": i % 2} for i, text in enumerate(texts) for end in ends]


def shows(prompts, shown, tested):
    return prompts.episodes[tested].test.texts in [d.texts for d in prompts.episodes[shown].demos]


def test_a_test_input_that_is_a_demonstration_is_left_out(mini):
    """Prompts that are drawn from few texts; in token ids, the text alone is compared, without its template."""
    task = Task.from_records(rows(), rows(), name="few", label_words=("gray", "azure"))
    prompts = task.prompts(mini, demos=3, count=8, seed=1)
    pairs = [pair for pair in ((4 * (at // 4), at) for at in range(8)) if not shows(prompts, *pair)]
    assert len(pairs) < 8
    for given in (prompts, replace(prompts, episodes=None)):
        found = cross(given, 4, model=mini)
        for number, pair in enumerate(pairs):
            row = put_together(prompts, *pair)
            assert found.tokens[number, : int(found.lengths[number])].tolist() == row
        assert len(found) == len(pairs)
        assert found.demo_set.tolist() == [shown // 4 for shown, _ in pairs]


def alike(count=4):
    """Prompts of one-token inputs; the test input of each is a demonstration of each."""
    tokens = torch.tensor([[11, 50, 12, 51, 11 + at % 2] for at in range(count)])
    spots = torch.tensor([[1, 3]]).expand(count, -1)
    return PromptSet.from_tokens(
        tokens, spots, torch.tensor([[0, 1]]).expand(count, -1), torch.tensor([50, 51])
    )


@pytest.mark.parametrize(
    ("prompts", "each"), [(uneven_prompts, 1), (uneven_prompts, 6), (alike, 2), (alike, 4)]
)
def test_without_two_test_inputs_a_set_nothing_can_be_crossed(prompts, each):
    with pytest.raises(PromptError, match=rf"in sets of {each} no set has two\. Draw more prompts"):
        cross(prompts(), each, model=None)


def test_label_words_of_their_own_are_refused():
    prompts = uneven_prompts(count=4)
    sequences = prompts.label_sequences.clone()
    sequences[2, 1] = 25
    words = (*prompts.label_words[:2], ("token 10", "token 25", "token 30"), prompts.label_words[3])
    other = replace(prompts, label_sequences=sequences, label_words=words)
    message = (
        r"only if all have the same label words; prompt 0 has token 10, token 20, token 30 and prompt 2 "
        r"token 10, token 25, token 30\. .*sets=32"
    )
    for refuse in (check_crossed, lambda p: cross(p, 2, model=None)):
        with pytest.raises(PromptError, match=message):
            refuse(other)
    check_crossed(prompts)
