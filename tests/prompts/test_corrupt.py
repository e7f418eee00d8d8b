"""Corrupted prompts: what changes is what was asked, and no position moves."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from itertools import permutations
from types import SimpleNamespace

import pytest
import torch
from prompts.small_tokenizers import byte_level, metaspace
from support import SHARED, needs_shared, shared_prompts
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

KINDS = ["permute_labels", "map_labels", "unrelated_words", "exchange_inputs", "replace_test_input"]
TEXTS = (
    "a gripping film|a moving film|the very good|a dull film|good and dull|x good|is very very good".split(
        "|"
    )
)


def corrupt(prompts, how, **options):
    from icl_kernel_lens.prompts.corrupt import corrupt

    return corrupt(prompts, how, **({"seed": 0} | options))


def whole_words() -> PreTrainedTokenizerFast:
    """One token a word, so that lengths can be counted by eye."""
    every = f"<unk> Input Output : {' '.join(TEXTS)} {' '.join(SAME_LENGTH)} negative positive maybe world sports all bad z q this that"
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(dict.fromkeys(every.split()))}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def fake_lens(tokenizer=None):
    """A lens that is never run: only its tokenizer and sizes are asked for."""
    from icl_kernel_lens.models import LensShape

    return SimpleNamespace(
        tokenizer=tokenizer or whole_words(),
        name="fake",
        kind="fake",
        shape=LensShape(2, 2, 2, None, 10_000),
        model=None,
        dtype=torch.float32,
        device=torch.device("cpu"),
        missing_attention=dict,
        watching=dict,
        run=dict,
    )


def task(texts=TEXTS, words=("negative", "positive"), tests=None):
    from icl_kernel_lens import Task

    rows, held = (
        [{"text": text, "label": i % len(words)} for i, text in enumerate(pool)]
        for pool in (texts, tests or texts)
    )
    return Task.from_records(rows, held, name="toy", label_words=words)


def written(lens=None, texts=TEXTS, words=("negative", "positive"), **options):
    """Prompts from text whose inputs have equal lengths."""
    options = {"demos": 3, "count": 4, "match_lengths": True, "score_on": "sequence"} | options
    return task(texts, words).prompts(lens or fake_lens(), **options)


SAME_LENGTH = [f"{a} {b} {a}" for a in ("a", "very", "good", "too") for b in ("no", "yes", "both")]
"""Three tokens each, for every tokenizer used here."""


def by_hand(**changes):
    """Two prompts: in the first, demonstrations 0 and 2 have inputs of two tokens, demonstration 1 of three."""
    from icl_kernel_lens import PromptSet

    given = {
        "tokens": torch.tensor(
            [
                [1, 11, 12, 50, 13, 14, 15, 51, 16, 17, 50, 18, 19],
                [1, 21, 22, 51, 23, 24, 25, 51, 26, 27, 50, 28, 29],
            ]
        ),
        "label_pos": torch.tensor([[3, 7, 10], [3, 7, 10]]),
        "demo_labels": torch.tensor([[0, 1, 0], [1, 1, 0]]),
        "label_tokens": torch.tensor([50, 51, 52]),
        "demo_spans": torch.tensor([[[1, 4], [4, 8], [8, 11]]]).repeat(2, 1, 1),
        "test_labels": torch.tensor([1, 2]),
    }
    return PromptSet.from_tokens(**(given | changes))


def every_kind(lens):
    """Each kind done to prompts from text."""
    texts = written(lens, SAME_LENGTH, ("positive", "maybe"), demos=4, count=6)
    for how in KINDS:
        options = {"words": ("world", "sports"), "model": lens} if how == "unrelated_words" else {}
        yield how, texts, corrupt(texts, how, **options)


@pytest.mark.parametrize("family", [whole_words, byte_level, metaspace])
def test_prompts_from_text_are_as_if_written_so(family):
    """What was done on token ids is what the tokenizer makes of the corrupted text."""
    from icl_kernel_lens.prompts import build_prompts

    lens = fake_lens(family())
    changed = 0
    for how, before, after in every_kind(lens):
        assert after.episodes is not None
        assert after.info.template is not None
        again = build_prompts(
            lens,  # pyright: ignore[reportArgumentType]
            list(after.episodes),
            after.info.template,
            info=after.info,
            classes=after.classes,
            score_on=after.score_on,
        )
        for name in (
            "tokens lengths roles answer_pos demo_spans label_spans demo_labels test_labels label_sequences "
            "label_lengths demo_set"
        ).split():
            assert torch.equal(getattr(after, name), getattr(again, name)), (how, name)
        assert after.label_words == again.label_words
        assert len(after.strings) == len(before.strings)
        assert [("".join(row)) for row in after.strings] == [("".join(row)) for row in again.strings], how
        if how in ("exchange_inputs", "replace_test_input", "permute_labels"):
            assert after.strings == again.strings, how
        changed += not torch.equal(before.tokens, after.tokens)
    assert changed == len(KINDS)


def sources(mini):
    from icl_kernel_lens import load_task

    yield load_task("topics").prompts(mini, demos=4, count=12, sets=4, match_lengths=True)
    shared = shared_prompts()
    end = shared.answer_pos.clone()
    end[:] = int(end.min())
    where = torch.arange(shared.tokens.shape[1])
    roles = shared.roles.where(where <= end[:, None], 0)
    even = replace(shared, answer_pos=end, lengths=end + 1, roles=roles, strings=())
    spans = even.demo_spans.clone()  # the last four tokens before each label are the input
    spans[..., 0] = even.label_pos - 4
    # Test inputs count from the last label: the prompt that stands alone is left out.
    yield replace(even, demo_spans=spans).select(range(3))


@pytest.mark.parametrize("how", KINDS)
def test_no_position_moves_and_nothing_given_is_edited(mini, how):
    for prompts in sources(mini):
        kept = [(t.clone() if isinstance(t, torch.Tensor) else t) for t in vars(prompts).values()]
        words = torch.tensor([101, 102, 103][: prompts.labels])
        after = corrupt(prompts, how, **({"words": words} if how == "unrelated_words" else {}))
        same = "lengths answer_pos demo_spans label_spans demo_set roles label_lengths".split()
        if how != "unrelated_words":
            same += ["label_sequences"]
        if how != "replace_test_input":
            same += ["test_labels"]
        if how not in ("permute_labels", "map_labels"):
            same += ["demo_labels"]
        for name in same:
            a, b = getattr(prompts, name), getattr(after, name)
            assert a is b or torch.equal(a, b), name
        # Tokens changed where they may, and nowhere else.
        rows, at = (after.tokens != prompts.tokens).nonzero(as_tuple=True)
        assert len(rows)
        labels = (prompts.label_pos[rows] == at[:, None]).any(1)
        tests = at >= prompts.demo_spans[rows, -1, 1]
        if how == "replace_test_input":
            assert tests.all()
        elif how == "exchange_inputs":
            assert not labels.any()
            assert not tests.any()
        else:
            assert labels.all()
        for prompt in range(len(after)):
            shown = after.label_tokens[prompt, after.demo_labels[prompt]]
            assert torch.equal(after.tokens[prompt, after.label_pos[prompt]], shown)
        for old, now in zip(kept, vars(prompts).values(), strict=True):
            assert torch.equal(old, now) if isinstance(old, torch.Tensor) else old == now
        # Prompts that share demonstrations go on sharing them.
        for prompt in range(len(after)):
            first = int((after.demo_set == after.demo_set[prompt]).nonzero()[0])
            end = int(after.demo_spans[prompt, -1, 1])
            assert torch.equal(after.tokens[prompt, :end], after.tokens[first, :end])


def test_permuted_labels_keep_their_counts_and_the_share_is_recorded(mini):
    from icl_kernel_lens import load_task

    prompts = load_task("topics").prompts(mini, demos=6, count=30)
    for derange in (False, True):
        before = (
            prompts if not derange else load_task("topics").prompts(mini, demos=6, count=30, balanced=True)
        )
        after = corrupt(before, "permute_labels", derange=derange)
        assert torch.equal(after.demo_labels.sort(1).values, before.demo_labels.sort(1).values)
        changed = (after.demo_labels != before.demo_labels).double().mean(1)
        said = (
            f"permute_labels, seed 0, {'deranged, ' * derange}{100 * changed.mean():.1f}% of labels changed"
        )
        assert after.info.corruption == said
        assert bool((changed == 1).all()) is derange
        assert after.info.permuted_labels is False
    again = corrupt(prompts, "permute_labels", seed=1)
    assert not torch.equal(again.tokens, corrupt(prompts, "permute_labels").tokens)
    assert torch.equal(again.tokens, corrupt(prompts, "permute_labels", seed=1).tokens)
    twice = corrupt(again, "map_labels")
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
            tuple(corrupt(prompts, "permute_labels", seed=seed, derange=derange).demo_labels[0].tolist())
            for seed in range(600)
        )
        assert len(seen) == few
        expected = 600 / few
        for times in seen.values():  # within five standard deviations
            assert abs(times - expected) < 5 * (expected * (1 - 1 / few)) ** 0.5


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2], [0, 0, 1, 2], [0, 0, 0, 1, 1, 2, 2]])
def test_labels_deranged_by_counting_are_uniform_among_all_that_exist(labels):
    import random

    from icl_kernel_lens.prompts.corrupt import _deranged_by_counting

    possible = {row for row in permutations(labels) if all(a != b for a, b in zip(row, labels, strict=True))}
    draws = 400 * len(possible)
    rng = random.Random(0)
    seen = Counter(tuple(_deranged_by_counting(labels, rng)) for _ in range(draws))
    assert set(seen) == possible
    for times in seen.values():
        assert abs(times - 400) < 5 * 400**0.5


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2], [0, 0, 1, 2], [0, 0, 0, 1, 1, 2, 2], [0, 0, 1]])
def test_ways_of_deranging_are_counted_as_listing_them_counts(labels):
    from icl_kernel_lens.prompts.corrupt import _ways

    listed = sum(
        all(labels[i] != label for i, label in zip(row, labels, strict=True))
        for row in permutations(range(len(labels)))
    )
    assert _ways(tuple((n, n) for n in Counter(labels).values())) == listed


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
    after = corrupt(prompts, "permute_labels", derange=True)
    assert torch.equal(after.demo_labels, 1 - labels)
    assert "100.0% of labels changed" in str(after.info.corruption)


def test_mapped_labels_follow_one_map_that_moves_every_class():
    prompts = by_hand()
    maps = set()
    for seed in range(40):
        after = corrupt(prompts, "map_labels", seed=seed)
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
    shown = corrupt(prompts, "map_labels", seed=0)
    for strings, row in zip(shown.strings, shown.tokens.tolist(), strict=True):
        assert list(strings) == [f"{token} " for token in row]
    two = by_hand(
        label_tokens=torch.tensor([50, 51]),
        test_labels=None,
        demo_labels=torch.tensor([[0, 1, 0], [1, 1, 0]]),
    )
    after = corrupt(two, "map_labels")
    assert torch.equal(after.demo_labels, 1 - two.demo_labels)
    assert after.info.corruption == "map_labels, seed 0, classes 0→1, 1→0, 100.0% of labels changed"


def test_labels_of_several_tokens_are_written_whole():
    """The class that no demonstration shows is spelled in the first."""
    lens = fake_lens()
    prompts = written(lens, SAME_LENGTH, ("no film", "all bad"), demos=2, count=12)
    assert (prompts.label_lengths > 1).all()
    one_class = (prompts.demo_labels == 0).all(1)
    assert one_class.any()
    only = prompts.select(one_class.nonzero().flatten().tolist())
    after = corrupt(only, "map_labels")
    assert (after.demo_labels == 1).all()
    joined = "".join(after.strings[0])
    assert joined.count("Output: all bad\n") == 2
    assert "no film" not in joined
    other = corrupt(only, "unrelated_words", words=("this x", "that q"), model=lens)
    assert "".join(other.strings[0]).count("Output: this x\n") == 2
    assert other.label_words[0] == ("this x", "that q")


def test_unrelated_words_as_ids_for_all_or_each_prompt():
    prompts = by_hand()
    after = corrupt(prompts, "unrelated_words", words=torch.tensor([60, 61, 62]))
    assert after.tokens.tolist() == [
        [1, 11, 12, 60, 13, 14, 15, 61, 16, 17, 60, 18, 19],
        [1, 21, 22, 61, 23, 24, 25, 61, 26, 27, 60, 28, 29],
    ]
    assert after.label_tokens.tolist() == [[60, 61, 62]] * 2
    assert after.label_words[1] == ("token 60", "token 61", "token 62")
    assert after.strings[0][3] == "60 "
    assert after.info.corruption == "unrelated_words, seed 0, label words 'token 60', 'token 61', 'token 62'"
    each = torch.tensor([[60, 61, 62], [70, 71, 72]])
    after = corrupt(prompts, "unrelated_words", words=each)
    assert after.tokens[1, [3, 7, 10]].tolist() == [71, 71, 70]
    assert torch.equal(after.label_tokens, each)
    assert after.info.corruption == "unrelated_words, seed 0, label words 3 tokens"


def test_words_are_written_into_selected_prompts_too():
    """A selection keeps the padding of the longest prompt that there was."""
    lens = fake_lens()
    prompts = task().prompts(lens, demos=2, count=6, score_on="sequence")
    short = prompts.select([int(prompts.lengths.argmin())])
    assert int(short.lengths[0]) < short.tokens.shape[1]
    after = corrupt(short, "unrelated_words", words=("world", "sports"), model=lens)
    assert after.tokens.shape == short.tokens.shape
    assert (after.tokens != short.tokens).sum() == 2


def test_inputs_are_exchanged_only_within_a_length():
    prompts = by_hand()
    after = corrupt(prompts, "exchange_inputs")
    assert after.tokens.tolist() == [
        [1, 16, 17, 50, 13, 14, 15, 51, 11, 12, 50, 18, 19],
        [1, 26, 27, 51, 23, 24, 25, 51, 21, 22, 50, 28, 29],
    ]
    assert list(after.strings[0]) == [f"{token} " for token in after.tokens[0].tolist()]
    # Two of three inputs moved in each prompt; only the second prompt's are of different classes.
    said = "exchange_inputs, seed 0, 66.7% of inputs changed, 33.3% to one of another class"
    assert after.info.corruption == said


def test_inputs_are_exchanged_only_beside_the_same_template():
    """Three inputs of one token; before the second stands another token of the template, say a space."""
    prompts = by_hand()
    tokens, roles = prompts.tokens.clone(), prompts.roles.clone()
    tokens[:, 8] = tokens[:, 1]
    roles[:, [1, 4, 5, 8]] = 2
    prompts = replace(prompts, tokens=tokens, roles=roles)
    for seed in range(10):
        after = corrupt(prompts, "exchange_inputs", seed=seed)
        assert after.tokens[0].tolist() == [1, 11, 17, 50, 13, 14, 15, 51, 11, 12, 50, 18, 19]


def test_exchanges_are_uniform_among_those_that_change_something():
    tokens = torch.tensor([[1, 11, 50, 12, 51, 13, 52, 14]])
    prompts = by_hand(
        tokens=tokens,
        label_pos=torch.tensor([[2, 4, 6]]),
        demo_labels=torch.tensor([[0, 1, 2]]),
        demo_spans=torch.tensor([[[1, 3], [3, 5], [5, 7]]]),
        test_labels=None,
    )
    seen = Counter(
        tuple(corrupt(prompts, "exchange_inputs", seed=seed).tokens[0, [1, 3, 5]].tolist())
        for seed in range(600)
    )
    assert set(seen) == set(permutations([11, 12, 13])) - {(11, 12, 13)}
    assert all(abs(times - 120) < 5 * 120**0.5 for times in seen.values())


def with_test_inputs(**changes):
    """Four prompts that share a demonstration with input 7; the test inputs are 7, 8, 9 and 8."""
    return by_hand(
        **{
            "tokens": torch.tensor([[7, 50, 7], [7, 50, 8], [7, 50, 9], [7, 50, 8]]),
            "label_pos": torch.tensor([[1]] * 4),
            "demo_labels": torch.tensor([[0]] * 4),
            "demo_spans": None,
            "test_labels": torch.tensor([0, 1, 2, 1]),
        }
        | changes
    )


def test_a_test_input_comes_from_another_prompt_and_is_none_that_is_shown():
    prompts = with_test_inputs()
    seen: dict[int, set[int]] = {i: set() for i in range(4)}
    for seed in range(60):
        after = corrupt(prompts, "replace_test_input", seed=seed)
        for prompt, token in enumerate(after.tokens[:, 2].tolist()):
            seen[prompt].add(token)
        assert after.test_labels.tolist() == [{8: 1, 9: 2}[token] for token in after.tokens[:, 2].tolist()]
        assert after.strings[0][2] == f"{int(after.tokens[0, 2])} "
    assert seen == {0: {8, 9}, 1: {9}, 2: {8}, 3: {9}}
    assert corrupt(replace(prompts, test_labels=None), "replace_test_input").test_labels is None


def test_test_inputs_of_prompts_that_are_not_shown_are_spelled():
    """Twelve prompts, eight with strings: where the text is known, the others' test inputs are written too."""
    texts = [f"{a} {b}" for a in ("good", "very", "dull", "film") for b in ("moving", "gripping", "film")]
    prompts = written(texts=texts, count=12, demos=1)
    lost, least = replace(prompts, episodes=None), 8
    for seed in range(5):
        after = corrupt(prompts, "replace_test_input", seed=seed)
        assert after.episodes is not None
        assert len(after.strings) == 8
        for strings, episode in zip(after.strings, after.episodes, strict=False):
            assert "".join(strings).endswith(f"\nInput: {episode.test.texts[0]}\nOutput:")
        fewer = corrupt(lost, "replace_test_input", seed=seed).strings
        assert ["".join(row) for row in fewer] == ["".join(row) for row in after.strings[: len(fewer)]]
        least = min(least, len(fewer))
    assert least < 8
    many = with_test_inputs(
        tokens=torch.tensor([[7, 50, 10 + i] for i in range(12)]),
        label_pos=torch.tensor([[1]] * 12),
        demo_labels=torch.tensor([[0]] * 12),
        test_labels=None,
    )
    after = corrupt(many, "replace_test_input")
    for strings, row in zip(after.strings, after.tokens.tolist(), strict=False):
        assert list(strings) == [f"{token} " for token in row]
    assert len(after.strings) == 8


def refused(prompts, how, message, **options):
    from icl_kernel_lens.errors import PromptError

    with pytest.raises(PromptError, match=message):
        corrupt(prompts, how, **options)


def test_requests_that_do_not_fit_are_refused():
    from icl_kernel_lens.errors import PromptError
    from icl_kernel_lens.prompts.corrupt import _check_request

    prompts = by_hand()
    with pytest.raises(PromptError, match="how must be one of 'permute_labels', .*; got 'shuffle'"):
        _check_request(prompts, "shuffle", False, None)
    refused(prompts, "map_labels", "belongs to \"permute_labels\"; got it with 'map_labels'", derange=True)
    refused(prompts, "map_labels", "got them with 'map_labels'. Leave them out", words=("a", "b", "c"))
    refused(prompts, "unrelated_words", "none were given. Give the new label words")
    bare = task().prompts(fake_lens(), demos=0, count=4, score_on="sequence")
    refused(bare, "permute_labels", "these prompts have none")
    one = task().prompts(fake_lens(), demos=0, count=7, score_on="sequence", match_lengths=False)
    refused(one.select([0]), "replace_test_input", "as have 0 others")


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
    assert torch.equal(corrupt(single, "permute_labels").tokens, single.tokens)
    # Inputs may be exchanged between them: what stands before a label does not move it.
    moved = corrupt(prompts, "exchange_inputs")
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
    lens = fake_lens()
    prompts = written(lens)

    def words(message, words, model=lens, source=prompts):
        refused(source, "unrelated_words", message, words=words, model=model)

    words(
        r"prompt 0, with token counts: 'negative' \(1\) → 'world' \(1\), 'positive' \(1\) → 'this x' \(2",
        ("world", "this x"),
    )
    words(
        r"others than the prompt's own label words; 'positive' begins .* \(prompt 0\)", ("positive", "world")
    )
    words(r"2 are needed, got \['world'\]", ("world",))
    words(r"2 are needed, got \['ab'\]", "ab")
    words(r"2 are needed, got \['world', ' '\]", ("world", " "))
    words("need a tokenizer. Pass model=", ("world", "sports"), None)
    words(
        "came from token ids or from a file. Give token ids",
        ("world", "sports"),
        lens,
        replace(prompts, episodes=None),
    )
    several = written(lens, words=("no film", "all bad"))
    words("'this x' and 'this q' begin with token", ("this x", "this q"), lens, several)
    words("a new label word must leave the tokens around it", ("world", "sports"), lens, shifted(prompts))
    ids = by_hand()
    words(
        "have shape (2,) and type torch.int64".replace("(", r"\(").replace(")", r"\)"),
        torch.tensor([60, 61]),
        None,
        ids,
    )
    words("type torch.float32", torch.tensor([60.0, 61, 62]), None, ids)
    words("must not be negative; found -1", torch.tensor([60, -1, 62]), None, ids)
    words("'token 60' and 'token 60' begin with token 60", torch.tensor([60, 61, 60]), None, ids)
    words("'token 51' begins with the first token", torch.tensor([60, 51, 62]), None, ids)
    words(r"'no film' \(2\) → 'token 60' \(1\)", torch.tensor([60, 61]), None, several)


def shifted(prompts):
    """As if another tokenizer had made one token of the prompts' text."""
    tokens = prompts.tokens.clone()
    tokens[1, 0] += 1
    return replace(prompts, tokens=tokens)


def test_inputs_that_cannot_be_exchanged_are_refused_and_shown():
    prompts = by_hand()
    spans = prompts.demo_spans.clone()
    spans[1, 0, 0] = 0
    spans[1, 2, 0] = 9
    message = r"prompt 1 has no two such, .*: 3 tokens '1 21 22'; 3 tokens '23 24 25'; 1 tokens '27'\. .*match_lengths=True"
    tokens = prompts.tokens.clone()
    tokens[1, 4:7] = tokens[1, :3]  # of equal length, but equal: nothing changes
    message = message.replace("23 24 25", "1 21 22")
    refused(
        replace(prompts, demo_spans=spans, tokens=tokens, strings=by_hand(tokens=tokens).strings),
        "exchange_inputs",
        message,
    )
    uneven = task(["x", "very good film", "a good film is moving"], tests=["a film", "x x"]).prompts(
        fake_lens(), demos=3, count=1, score_on="sequence"
    )
    refused(uneven, "exchange_inputs", "3 tokens 'very good film'")
    refused(
        replace(uneven, episodes=None, strings=()),
        "exchange_inputs",
        r": \d tokens; \d tokens; \d tokens\.",
    )


def test_test_inputs_that_cannot_be_replaced_are_refused_and_shown():
    prompts = with_test_inputs(answer_pos=torch.tensor([2, 2, 2, 2])).select([1, 3])
    message = r"the one of prompt 0, '8', has 1 with its template, as have 1 others.*found \(prompts\): 1 \(2\)\. .*match_lengths"
    refused(prompts, "replace_test_input", message)
    refused(replace(prompts, strings=()), "replace_test_input", "prompt 0, '8', has 1")
    shown = with_test_inputs().select([1, 0])
    refused(shown, "replace_test_input", "prompt 0, '8', has 1 with its template, as have 1 others")
    uneven = task(["x", "very good film", "a good film is moving"]).prompts(
        fake_lens(), demos=1, count=3, score_on="sequence"
    )
    refused(
        uneven, "replace_test_input", r"as have 0 others.*found \(prompts\): \d+ \(1\), \d+ \(1\), \d+ \(1\)"
    )


# match_lengths


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
    from icl_kernel_lens import load_task

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
        corrupt(prompts, how)
    again = load_task("topics").prompts(mini, **options, match_lengths=True)
    assert torch.equal(prompts.tokens, again.tokens)


def test_a_world_refuses_an_uneven_count_as_ever(mini):
    from icl_kernel_lens import load_task
    from icl_kernel_lens.errors import TaskError

    with pytest.raises(TaskError, match="20 prompts cannot be shared evenly by 3"):
        load_task("topics").prompts(mini, demos=4, count=20, sets=3, match_lengths=True)
    bare = load_task("topics").prompts(mini, demos=0, count=20, match_lengths=True)
    assert len(bare.lengths.unique()) == 1


def test_a_world_with_too_few_of_one_length_is_refused(mini, monkeypatch):
    from icl_kernel_lens import load_task
    from icl_kernel_lens.errors import PromptError
    from icl_kernel_lens.worlds import topics

    sizes = iter(range(10**9))
    monkeypatch.setattr(topics, "draw_words", lambda rng, topic: " ".join(["also"] * (1 + next(sizes) % 97)))
    with pytest.raises(
        PromptError, match=r"'topics' has too few inputs of equal length: .* demonstrations of 8"
    ):
        load_task("topics").prompts(mini, demos=8, count=4, match_lengths=True)


@needs_shared
def test_a_file_gives_inputs_of_one_length():
    from icl_kernel_lens import load_model, load_task
    from icl_kernel_lens.models import as_lens
    from icl_kernel_lens.prompts import build_prompts

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
        after = corrupt(prompts, how)
        assert after.episodes is not None
        again = build_prompts(
            as_lens(model),
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
    from icl_kernel_lens.errors import PromptError

    texts = ["dull film", "good film", "very good", "x", "a", "the very very good film"]
    lens = fake_lens()
    for count, lengths in ((2, [2]), (3, [3]), (4, [2, 2]), (5, [3, 2])):
        drawn = {tuple(p.test.texts) for p in written(lens, texts, demos=1, count=count).episodes or ()}
        assert len(drawn) == count
        prompts = written(lens, texts, demos=1, count=count)
        starts = prompts.demo_spans[:, -1, 1]
        sizes = Counter((prompts.answer_pos - starts).tolist())
        assert sorted(sizes.values(), reverse=True) == lengths
    message = r"need 6 that share .* 'toy' has 5 such of 6 \(the commonest lengths have 3, 2, 1 each\)"
    with pytest.raises(PromptError, match=message):
        written(lens, texts, demos=1, count=6)


def test_demonstrations_take_the_commonest_length_with_every_class():
    from icl_kernel_lens.errors import PromptError

    # Three of two tokens of class 0 and 1 in turn; four of one token, all of class 0.
    texts = ["x", "dull film", "a", "good film", "the", "film", "very good", "good film"]
    rows = [
        {"text": text, "label": label}
        for text, label in zip(
            ["x", "a", "z", "q", "dull film", "good film", "very good"], [0, 0, 0, 0, 0, 1, 0], strict=True
        )
    ]
    from icl_kernel_lens import Task

    tests = [{"text": text, "label": i % 2} for i, text in enumerate(texts)]
    source = Task.from_records(rows, tests, name="toy", label_words=("negative", "positive"))
    lens = fake_lens()
    prompts = source.prompts(lens, demos=2, count=2, match_lengths=True, score_on="sequence")
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
        source.prompts(lens, demos=4, count=2, match_lengths=True, score_on="sequence")
    with pytest.raises(PromptError, match="and 2 of every class"):
        source.prompts(lens, demos=3, count=2, match_lengths=True, balanced=True, score_on="sequence")
    given = source.train[:3]
    kept = source.prompts(lens, given=given, demos=3, count=2, match_lengths=True, score_on="sequence")
    assert kept.episodes is not None
    assert kept.episodes[0].demos == given


def test_what_was_saved_before_still_loads():
    from icl_kernel_lens.prompts import PromptInfo
    from icl_kernel_lens.results.run_info import prompt_info_from_json

    old = asdict(PromptInfo(task="t"))
    del old["corruption"]
    assert prompt_info_from_json(old) == PromptInfo(task="t")
    assert prompt_info_from_json(asdict(PromptInfo(corruption="x"))).corruption == "x"
