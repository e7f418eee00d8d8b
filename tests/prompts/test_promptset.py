"""Prompts from ready-made ids: defaults, and every refusal with its message."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import unchecked

from icl_kernel_lens import PromptSet, read
from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.prompts.promptset import check_first_tokens

TOKENS = torch.tensor([[0, 1, 30, 3, 4, 31, 6, 7, 30, 9], [10, 31, 12, 13, 31, 15, 30, 17, 18, 19]])
LABEL_POS = torch.tensor([[2, 5, 8], [1, 4, 6]])
DEMO_LABELS = torch.tensor([[0, 1, 0], [1, 1, 0]])
LABEL_TOKENS = torch.tensor([30, 31])


def make(**changes):
    given = {
        "tokens": TOKENS,
        "label_pos": LABEL_POS,
        "demo_labels": DEMO_LABELS,
        "label_tokens": LABEL_TOKENS,
    } | changes
    return PromptSet.from_tokens(**given)


def test_defaults():
    prompts = make()
    assert prompts.demo_spans.tolist() == [[[0, 3], [3, 6], [6, 9]], [[0, 2], [2, 5], [5, 7]]]
    assert prompts.answer_pos.tolist() == [9, 9]
    assert prompts.lengths.tolist() == [10, 10]
    assert torch.equal(prompts.label_pos, LABEL_POS)
    assert prompts.label_tokens.tolist() == [[30, 31], [30, 31]]
    assert prompts.demo_set.tolist() == [0, 1]
    assert (len(prompts), prompts.demos, prompts.labels) == (2, 3, 2)


def test_label_words_may_differ_from_prompt_to_prompt():
    words = torch.tensor([[30, 31], [40, 41]])  # the second prompt's labels are shown by other words
    assert make(label_tokens=words).label_tokens.tolist() == words.tolist()


def test_labels_are_repeated_where_one_prompt_shows_one_twice():
    for labels, repeated in (([[0, 1, 2], [1, 2, 0]], False), ([[0, 1, 2], [1, 2, 1]], True)):
        shown = torch.tensor(labels)
        tokens = TOKENS.scatter(1, LABEL_POS, 30 + shown)
        prompts = make(tokens=tokens, demo_labels=shown, label_tokens=torch.arange(30, 33))
        assert prompts.repeat_labels == repeated


def test_what_stands_behind_the_answer_is_padding():
    prompts = make(answer_pos=torch.tensor([9, 7]))
    assert prompts.lengths.tolist() == [10, 8]
    assert prompts.roles[1, 8:].tolist() == [0, 0]


def test_select_keeps_rows_together():
    prompts = make(test_labels=torch.tensor([1, 0]), demo_set=torch.tensor([4, 4]))
    one = prompts.select([1])
    assert torch.equal(one.tokens, TOKENS[1:])
    assert torch.equal(one.label_pos, LABEL_POS[1:])
    assert one.test_labels.tolist() == [0]
    assert one.strings == prompts.strings[1:]
    assert one.label_words == prompts.label_words[1:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_pos": torch.tensor([[2, 5, 12], [1, 4, 6]])}, "prompt 0, demonstration 2 has span"),
        ({"label_pos": torch.tensor([[5, 2, 8], [1, 4, 6]])}, "in increasing order"),
        ({"label_pos": torch.tensor([[2, 5, 9], [1, 4, 6]])}, "end before the answer position"),
        ({"answer_pos": torch.tensor([9, 11])}, "prompt 1 has answer_pos 11 and 10 tokens"),
        ({"answer_pos": torch.tensor([9, 5])}, "prompt 1, demonstration 2"),
        ({"demo_labels": torch.tensor([[0, 2, 0], [1, 1, 0]])}, r"demo_labels must lie in 0…1 .* found 0…2"),
        ({"test_labels": torch.tensor([0, 5])}, "test_labels must lie in 0…1"),
        ({"label_tokens": torch.tensor([30, 30])}, "'token 30' and 'token 30' both begin with token 30"),
        ({"label_tokens": torch.tensor([30])}, "at least two label words; got 1"),
        ({"demo_spans": torch.tensor([[[3, 4]] * 3] * 2)}, "hold their label"),
        (
            {"demo_spans": torch.tensor([[[0, 4], [3, 6], [6, 9]], [[0, 2], [2, 5], [5, 7]]])},
            "prompt 0, demonstration 1 has span",
        ),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(PromptError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": TOKENS.float()}, r"tokens must hold whole numbers on 2 axes; .* torch.float32"),
        ({"label_pos": LABEL_POS[0]}, r"label_pos must hold whole numbers on 2 axes; it has shape \(3,\)"),
        (
            {"demo_labels": DEMO_LABELS[:1]},
            "demo_labels must have one row a prompt; it has 1 and tokens has 2",
        ),
        ({"demo_labels": DEMO_LABELS[:, :2]}, "must agree in the number of demonstrations"),
        (
            {"label_tokens": torch.ones(3, 2, dtype=torch.long)},
            "label_tokens must have one row a prompt; it has 3",
        ),
        ({"test_labels": torch.tensor([0])}, "test_labels must have one row a prompt"),
        ({"tokens": TOKENS[:0]}, "at least one prompt"),
    ],
)
def test_wrong_shapes_are_refused_without_type_checks_too(changes, message):
    given = {
        "tokens": TOKENS,
        "label_pos": LABEL_POS,
        "demo_labels": DEMO_LABELS,
        "label_tokens": LABEL_TOKENS,
    }
    with pytest.raises(PromptError, match=message):
        unchecked(PromptSet.from_tokens.__func__)(PromptSet, **(given | changes))


def test_shifted_label_positions_are_warned_about_and_copies_are_taken():
    with pytest.warns(UserWarning, match="position 1 holds token 1 and its label's token is 30"):
        make(label_pos=LABEL_POS - 1)
    tokens = TOKENS.clone()
    prompts = make(tokens=tokens)
    tokens[:] = 0
    assert prompts.tokens[0, 2] == 30
    assert len(prompts.select([True, False])) == 1


def test_tokens_of_another_vocabulary_and_prompts_too_long(tiny):
    model, _ = tiny("llama")
    with pytest.raises(PromptError, match=r"token ids must lie in 0…88 for llama; found 200"):
        read(model, make(tokens=TOKENS + 169, label_tokens=LABEL_TOKENS + 169), progress=False)
    width = 130
    long = PromptSet.from_tokens(
        torch.full((2, width), 30),
        torch.tensor([[20, 60, 100], [10, 30, 50]]),
        DEMO_LABELS,
        LABEL_TOKENS,
        answer_pos=torch.tensor([width - 1, 80]),
    )
    with pytest.raises(
        PromptError, match=r"context of 96 tokens; 1 of 2 do not \(the longest needs 130\). 2 demon"
    ):
        read(model, long, progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"label_words": (("a",), ("a", "b"))},
            r"one word a class; there are 2 classes and the words \('a',\)",
        ),
        ({"classes": ("only",)}, "one word a class; there are 2 classes"),
        ({"roles": torch.full((2, 10), 6)}, r"roles must lie in 0…5 .*; found 6…6"),
        (
            {"lengths": torch.tensor([10, 11])},
            r"lengths must lie in 1…10 \(tokens has 10 positions\); found 10…11",
        ),
        ({"label_lengths": torch.tensor([[1, 0], [1, 1]])}, "label_lengths must lie in 1…1"),
        ({"strings": (("a", "b"),)}, "prompt 0 has 2 strings and 10 tokens"),
        ({"strings": (("a",) * 10,) * 3}, "strings has 3 rows, and there are 2 prompts"),
    ],
)
def test_what_printing_relies_on_is_checked(changes, message):
    with pytest.raises(PromptError, match=message):
        replace(make(), **changes)


def test_the_first_clash_of_first_tokens():
    words = [("a", "b", "c"), ("d", "e", "f"), ("g", "h", "i")]
    check_first_tokens(torch.tensor([[5, 6, 7], [8, 9, 10]]), words, ".")
    with pytest.raises(PromptError, match=r"'e' and 'f' both begin with token 9 \(prompt 1\)\."):
        check_first_tokens(torch.tensor([[5, 6, 7], [8, 9, 9], [1, 1, 1]]), words, ".")


def test_tokens_are_rearranged_with_their_roles_and_strings():
    prompts = make()
    where = torch.arange(10).repeat(2, 1)
    where[0, [0, 1]] = torch.tensor([1, 0])
    found = prompts.rearranged(where)
    assert found.tokens[0].tolist() == [1, 0, *TOKENS[0, 2:].tolist()]
    assert found.strings[0][:2] == ("1 ", "0 ")
    assert torch.equal(found.tokens[1], TOKENS[1])
    rows = torch.arange(2)[:, None].repeat(1, 10)
    rows[1, 9] = 0
    assert prompts.rearranged(where, rows=rows, strings=()).tokens[1, 9] == TOKENS[0, 9]
