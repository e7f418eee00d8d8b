"""Labels permuted, mapped and in unrelated words; what would move a position is refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from prompts.toy import (
    SAME_LENGTH,
    by_hand,
    corrupted,
    fake_adapter,
    refused,
    task,
    written,
)

from icl_kernel_lens import load_task
from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.prompts.corrupt_labels import shift_labels


def test_permuted_labels_keep_their_counts_and_the_share_is_recorded(mini):
    prompts = load_task("topics").prompts(mini, demos=6, count=30)
    for derange in (False, True):
        before = (
            prompts if not derange else load_task("topics").prompts(mini, demos=6, count=30, balanced=True)
        )
        after = corrupted(before, "permute_labels", derange=derange)
        assert torch.equal(after.demo_labels.sort(1).values, before.demo_labels.sort(1).values)
        changed = (after.demo_labels != before.demo_labels).double().mean(1)
        said = (
            f"permute_labels, seed 0, {'deranged, ' * derange}{100 * changed.mean():.1f}% of labels changed"
        )
        assert after.info.corruption == said
        assert bool((changed == 1).all()) is derange
        assert after.info.permuted_labels is False
    again = corrupted(prompts, "permute_labels", seed=1)
    assert not torch.equal(again.tokens, corrupted(prompts, "permute_labels").tokens)
    assert torch.equal(again.tokens, corrupted(prompts, "permute_labels", seed=1).tokens)
    twice = corrupted(again, "map_labels")
    assert str(twice.info.corruption).startswith(f"{again.info.corruption}; then map_labels, seed 0, classes")


def test_permutations_are_uniform():
    """Three labels of three classes: six permutations, two of them derangements."""
    prompts = by_hand(
        tokens=torch.tensor([[1, 11, 50, 12, 51, 13, 52, 14]]),
        label_pos=torch.tensor([[2, 4, 6]]),
        demo_labels=torch.tensor([[0, 1, 2]]),
        demo_spans=None,
        test_labels=None,
    )
    for derange, few in ((False, 6), (True, 2)):
        seen = Counter(
            tuple(corrupted(prompts, "permute_labels", seed=seed, derange=derange).demo_labels[0].tolist())
            for seed in range(600)
        )
        assert len(seen) == few
        expected = 600 / few
        for times in seen.values():  # within five standard deviations
            assert abs(times - expected) < 5 * (expected * (1 - 1 / few)) ** 0.5


def test_the_only_derangement_among_millions_is_found():
    """Thirty-two balanced labels of two classes: permuting at random would find it once in 600 million."""
    labels = torch.tensor([[0] * 16 + [1] * 16])
    tokens = torch.tensor([50, 51])[labels].repeat_interleave(2, 1)
    prompts = by_hand(
        tokens=torch.cat([tokens, tokens[:, :1]], 1),
        label_pos=torch.arange(32)[None] * 2 + 1,
        demo_labels=labels,
        label_tokens=torch.tensor([50, 51]),
        demo_spans=None,
        test_labels=None,
    )
    after = corrupted(prompts, "permute_labels", derange=True)
    assert torch.equal(after.demo_labels, 1 - labels)
    assert "100.0% of labels changed" in str(after.info.corruption)


def test_mapped_labels_follow_one_map_that_moves_every_class():
    prompts = by_hand()
    maps = set()
    for seed in range(40):
        after = corrupted(prompts, "map_labels", seed=seed)
        pairs = set(
            zip(prompts.demo_labels.flatten().tolist(), after.demo_labels.flatten().tolist(), strict=True)
        )
        assert len(pairs) == 2  # of three classes, two are shown
        assert all(old != new for old, new in pairs)
        for old, new in pairs:
            assert f"{old}→{new}" in str(after.info.corruption)
        maps.add(after.info.corruption.split("seed")[1].split("classes")[1])
    assert len(maps) == 2
    # A label that no demonstration showed before is spelled all the same.
    shown = corrupted(prompts, "map_labels", seed=0)
    for strings, row in zip(shown.strings, shown.tokens.tolist(), strict=True):
        assert list(strings) == [f"{token} " for token in row]
    two = by_hand(
        label_tokens=torch.tensor([50, 51]),
        test_labels=None,
        demo_labels=torch.tensor([[0, 1, 0], [1, 1, 0]]),
    )
    after = corrupted(two, "map_labels")
    assert torch.equal(after.demo_labels, 1 - two.demo_labels)
    assert after.info.corruption == "map_labels, seed 0, classes 0→1, 1→0, 100.0% of labels changed"


def test_labels_of_several_tokens_are_written_whole():
    """The class that no demonstration shows is spelled in the first."""
    adapter = fake_adapter()
    prompts = written(adapter, SAME_LENGTH, ("no film", "all bad"), demos=2, count=12)
    assert (prompts.label_lengths > 1).all()
    one_class = (prompts.demo_labels == 0).all(1)
    assert one_class.any()
    only = prompts.select(one_class.nonzero().flatten().tolist())
    after = corrupted(only, "map_labels")
    assert (after.demo_labels == 1).all()
    joined = "".join(after.strings[0])
    assert joined.count("Output: all bad\n") == 2
    assert "no film" not in joined
    other = corrupted(only, "unrelated_words", words=("this x", "that q"), model=adapter)
    assert "".join(other.strings[0]).count("Output: this x\n") == 2
    assert other.label_words[0] == ("this x", "that q")


def test_unrelated_words_as_ids_for_all_or_each_prompt():
    prompts = by_hand()
    after = corrupted(prompts, "unrelated_words", words=torch.tensor([60, 61, 62]))
    assert after.tokens.tolist() == [
        [1, 11, 12, 60, 13, 14, 15, 61, 16, 17, 60, 18, 19],
        [1, 21, 22, 61, 23, 24, 25, 61, 26, 27, 60, 28, 29],
    ]
    assert after.label_tokens.tolist() == [[60, 61, 62]] * 2
    assert after.label_words[1] == ("token 60", "token 61", "token 62")
    assert after.strings[0][3] == "60 "
    assert after.info.corruption == "unrelated_words, seed 0, label words 'token 60', 'token 61', 'token 62'"
    each = torch.tensor([[60, 61, 62], [70, 71, 72]])
    after = corrupted(prompts, "unrelated_words", words=each)
    assert after.tokens[1, [3, 7, 10]].tolist() == [71, 71, 70]
    assert torch.equal(after.label_tokens, each)
    assert after.info.corruption == "unrelated_words, seed 0, label words 3 tokens"


def test_words_are_written_into_selected_prompts_too():
    """A selection keeps the padding of the longest prompt that there was."""
    adapter = fake_adapter()
    prompts = task().prompts(adapter, demos=2, count=6, score_on="sequence")
    short = prompts.select([int(prompts.lengths.argmin())])
    assert int(short.lengths[0]) < short.tokens.shape[1]
    after = corrupted(short, "unrelated_words", words=("world", "sports"), model=adapter)
    assert after.tokens.shape == short.tokens.shape
    assert (after.tokens != short.tokens).sum() == 2


def test_labels_of_unequal_length_are_refused_whatever_the_draw():
    prompts = written(words=("negative", "very good"), demos=4)
    for seed in range(6):
        message = r"prompt \d shows 'negative' \(1\), 'very good' \(2\) \(token counts\)"
        refused(prompts, "permute_labels", message, seed=seed)
        message = r"prompt 0 has 'negative' \(1\), 'very good' \(2\) \(token counts\)"
        refused(prompts, "map_labels", message, seed=seed)
    same = (prompts.demo_labels == prompts.demo_labels[:, :1]).all(1)
    single = written(words=("negative", "very good"), demos=1)
    assert not same.all()
    assert torch.equal(corrupted(single, "permute_labels").tokens, single.tokens)
    # Inputs may be exchanged between them: what stands before a label does not move it.
    moved = corrupted(prompts, "exchange_inputs")
    assert torch.equal(moved.label_spans, prompts.label_spans)
    assert not torch.equal(moved.tokens, prompts.tokens)


def test_derangements_that_do_not_exist_are_refused():
    message = r"prompt 0 shows 'token 50' in 2 of 3. .*balanced=True"
    refused(by_hand(), "permute_labels", message, derange=True)


def test_a_demonstration_that_does_not_show_its_label_is_refused():
    prompts = by_hand()
    tokens = prompts.tokens.clone()
    tokens[1, 7] = 99
    wrong = replace(prompts, tokens=tokens)
    message = r"in prompt 1, demonstration 1 shows \[99\] at position 7, and its label 'token 51' is \[51\]"
    for how in ("permute_labels", "map_labels"):
        refused(wrong, how, message)
    refused(wrong, "unrelated_words", message, words=torch.tensor([60, 61, 62]))
    # In the second of two tokens, and in the number of tokens.
    several = written(texts=SAME_LENGTH, words=("no film", "all bad"))
    tokens = several.tokens.clone()
    tokens[2, several.label_pos[2, 1] + 1] = 9
    refused(replace(several, tokens=tokens), "map_labels", "in prompt 2, demonstration 1 shows")
    short = several.label_spans.clone()
    short[1, 2, 1] -= 1
    refused(replace(several, label_spans=short), "map_labels", "in prompt 1, demonstration 2 shows")


def test_new_words_that_do_not_fit_are_refused():
    adapter = fake_adapter()
    prompts = written(adapter)

    def words(message, words, model=adapter, source=prompts):
        refused(source, "unrelated_words", message, words=words, model=model)

    words(
        r"prompt 0, with token counts: 'negative' \(1\) → 'world' \(1\), 'positive' \(1\) → 'this x' \(2",
        ("world", "this x"),
    )
    words(
        r"others than the prompt's own label words; 'positive' begins .* \(prompt 0\)", ("positive", "world")
    )
    words(r"2 are needed, got \['world'\]", ("world",))
    words("words must be a list of texts", "ab")
    words(r"2 are needed, got \['world', ' '\]", ("world", " "))
    words("need a tokenizer. Pass model=", ("world", "sports"), None)
    words(
        "came from token ids or from a file. Give token ids",
        ("world", "sports"),
        adapter,
        replace(prompts, episodes=None),
    )
    several = written(adapter, words=("no film", "all bad"))
    words("'this x' and 'this q' both begin with token", ("this x", "this q"), adapter, several)
    words("a new label word must leave the tokens around it", ("world", "sports"), adapter, shifted(prompts))
    ids = by_hand()
    words(
        "have shape (2,) and type torch.int64".replace("(", r"\(").replace(")", r"\)"),
        torch.tensor([60, 61]),
        None,
        ids,
    )
    words("type torch.float32", torch.tensor([60.0, 61, 62]), None, ids)
    words("must not be negative; found -1", torch.tensor([60, -1, 62]), None, ids)
    words("'token 60' and 'token 60' both begin with token 60", torch.tensor([60, 61, 60]), None, ids)
    words("'token 51' begins with the first token", torch.tensor([60, 51, 62]), None, ids)
    words(r"'no film' \(2\) → 'token 60' \(1\)", torch.tensor([60, 61]), None, several)


def shifted(prompts):
    """As if another tokenizer had made one token of the prompts' text."""
    tokens = prompts.tokens.clone()
    tokens[1, 0] += 1
    return replace(prompts, tokens=tokens)


def test_shifted_labels_carry_each_class_once():
    prompts = by_hand()
    shifted = [shift_labels(prompts, by, None) for by in range(3)]
    assert torch.equal(shifted[0].tokens, prompts.tokens)
    seen = torch.stack([each.demo_labels for each in shifted])
    assert (seen.sort(0).values == torch.arange(3)[:, None, None]).all()
    for each in shifted:
        words = prompts.label_tokens.gather(1, each.demo_labels)
        assert torch.equal(each.tokens.gather(1, prompts.label_pos), words)
        assert torch.equal(each.label_pos, prompts.label_pos)
    assert shifted[2].info.corruption == "labels shifted by 2"
    twice = shift_labels(shifted[1], 2, None)
    assert torch.equal(twice.tokens, prompts.tokens)
    assert twice.info.corruption == "labels shifted by 1; then labels shifted by 2"


def test_shifted_labels_of_unequal_token_counts_move_positions():
    adapter = fake_adapter()
    prompts = written(adapter, words=("negative", "very good"), demos=4)
    after = shift_labels(prompts, 1, adapter)
    assert torch.equal(after.demo_labels, 1 - prompts.demo_labels)
    assert not torch.equal(after.label_pos, prompts.label_pos)
    for number in range(len(after)):
        for demo, label in enumerate(after.demo_labels[number].tolist()):
            start, end = after.label_spans[number, demo].tolist()
            word = after.label_sequences[number, label, : int(after.label_lengths[number, label])]
            assert torch.equal(after.tokens[number, start:end], word)
    with pytest.raises(PromptError, match=r"'negative' \(1\), 'very good' \(2\).*Draw them again"):
        shift_labels(replace(prompts, episodes=None), 1, adapter)
