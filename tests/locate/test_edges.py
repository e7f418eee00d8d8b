"""Which edges count when heads are located: found where labels enter, taken for the weights and for the cuts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from interventions.label_readers import label_reader, reader_prompts

from icl_kernel_lens import in_context_accuracy, label_coverage, load, locate_heads, read
from icl_kernel_lens.errors import PromptError, ResultError
from icl_kernel_lens.interventions import engine
from icl_kernel_lens.interventions.coverage import KEEP, LOSE, Relabelled, zeroed
from icl_kernel_lens.locate import search
from icl_kernel_lens.locate.edges import CELLS, PROMPTS, _spread, choose_edges, named
from icl_kernel_lens.locate.search import stability
from icl_kernel_lens.results.label_coverage import CUTS
from icl_kernel_lens.results.stability import Stability

ALL = torch.arange(64)

pytestmark = pytest.mark.filterwarnings("ignore:.*demonstration sets a half are few")


@pytest.mark.parametrize(("what", "offsets"), [("label", (0,)), ("after", (1,))])
def test_the_place_where_labels_enter_is_chosen(what, offsets):
    found = choose_edges(label_reader(what), reader_prompts(64), ALL, seed=0, checkpoint=None, progress=False)
    assert found.offsets == offsets
    assert f"{PROMPTS} prompts" in found.why
    assert found.found


@pytest.mark.parametrize(
    ("what", "why"),
    [("nothing", "untested: shares are undefined"), ("test", "untested: no set of the offsets")],
)
def test_the_label_is_taken_untested_where_no_place_is_found(what, why):
    found = choose_edges(label_reader(what), reader_prompts(64), ALL, seed=0, checkpoint=None, progress=False)
    assert found.offsets == (0,)
    assert why in found.why
    assert not found.found
    assert ("label_coverage looks at earlier tokens" in found.why) == (what == "test")


@pytest.mark.filterwarnings("ignore:labels do not enter")
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("what", "labels"), [("label", 2), ("label", 3), ("after", 2), ("test", 2), ("nothing", 2)]
)
def test_the_search_finds_what_label_coverage_finds(what, labels, seed):
    """With half of its runs: no cut is renormalised."""
    model, prompts = label_reader(what, labels), reader_prompts(PROMPTS, labels)
    runs = Relabelled.of(model, prompts, None, "model", progress=False)
    whole, left, sets = zeroed(runs, checkpoint=None)
    found = whole.smallest_set(left, sets, lose=LOSE, keep=KEEP, seed=seed)
    full = label_coverage(model, prompts, against="model", seed=seed, progress=False)
    assert sets == full.sets
    for side in left:
        torch.testing.assert_close(left[side], full.left[side][:, CUTS.index("zeroed")], atol=1e-5, rtol=1e-4)
    expected = full.smallest_set()
    assert (found.offsets, found.confirmed, found.why) == (expected.offsets, expected.confirmed, expected.why)
    chosen = choose_edges(model, prompts, ALL[:PROMPTS], seed=seed, checkpoint=None, progress=False)
    assert chosen.offsets == (expected.offsets or (0,))
    assert expected.why in chosen.why


def test_no_more_is_run_than_the_search_needs(monkeypatch):
    rows: list[int] = []
    original = engine.run_variants

    def counting(adapter, tokens, at, count, *more, **named):
        rows.append(count)
        return original(adapter, tokens, at, count, *more, **named)

    monkeypatch.setattr(engine, "run_variants", counting)
    model, prompts = label_reader("label"), reader_prompts(PROMPTS)
    choose_edges(model, prompts, ALL[:PROMPTS], seed=0, checkpoint=None, progress=False)
    assert set(rows) == {1 + CELLS}, "every cut once, beside the unchanged run"
    assert CELLS == 2 * 15


def test_prompts_are_spread_evenly_over_the_sets():
    demo_set = torch.tensor([5, 5, 5, 7, 7, 9] * 4)
    numbers = torch.arange(24) + 100
    assert _spread(demo_set, numbers) == numbers.tolist()
    many = torch.arange(100) // 10
    chosen = torch.tensor(_spread(many, torch.arange(100)))
    assert len(chosen) == PROMPTS
    assert many[chosen].bincount().tolist() == [4, 4, 3, 3, 3, 3, 3, 3, 3, 3]


def test_words():
    assert named((0,)) == "the label"
    assert named((0, 1)) == "offsets 0, +1 from the label"


def test_heads_that_read_behind_the_label_are_seen(tmp_path):
    """Told to look at labels, the head that reads seems to speak against the answer; behind them, it is all of it."""
    model, prompts = label_reader("after"), reader_prompts(64)
    found = locate_heads(model, prompts, progress=False, checkpoint=tmp_path / "work")
    at_labels = locate_heads(model, prompts, offsets=(0,), progress=False)
    assert found.offsets == (1,)
    assert at_labels.offsets == (0,)
    drop, blind = (ranking.columns["logit_diff_drop"][1, 0] for ranking in (found, at_labels))
    assert float(drop) == pytest.approx(1, abs=0.01)
    assert float(blind) < 0, "without the labels, more of the row is left for what it reads"
    assert not found.selected["matters"][0].any()
    assert found.selected["matters"][1, 0]
    assert "edges of offsets +1 from the label count as the label's" in repr(found)
    assert "count as the label's" not in repr(at_labels)
    again = load(found.save(tmp_path / "ranking.safetensors"))
    assert again.offsets == (1,)
    assert repr(again) == repr(found)


@pytest.fixture
def nothing_is_run(monkeypatch):
    for name in ("choose_edges", "read_edges", "knock_out"):
        monkeypatch.setattr(
            search, name, lambda *_, **__: pytest.fail("something was run before the refusal")
        )


@pytest.mark.parametrize(
    ("offsets", "words"), [((9,), r"\+9 does not"), ((), "offsets must name whole numbers")]
)
def test_offsets_without_a_token_are_refused_first(offsets, words, nothing_is_run):
    with pytest.raises(PromptError, match=words):
        locate_heads(label_reader("label"), reader_prompts(64), offsets=offsets, progress=False)


def test_what_is_of_other_prompts_is_refused_first(monkeypatch):
    model, prompts = label_reader("label"), reader_prompts(64)
    evidence, accuracy = (
        f(model, reader_prompts(64, seed=1), progress=False) for f in (read, in_context_accuracy)
    )
    for name in ("choose_edges", "read_edges", "knock_out"):
        monkeypatch.setattr(
            search, name, lambda *_, **__: pytest.fail("something was run before the refusal")
        )
    for given in ({"evidence": evidence}, {"accuracy": accuracy}):
        with pytest.raises(ResultError, match="of these 64 prompts|of these prompts"):
            locate_heads(model, prompts, **given, progress=False)


def test_evidence_of_other_edges_is_read_anew():
    model, prompts = label_reader("after"), reader_prompts(40)
    expected = locate_heads(model, prompts, offsets=(1,), progress=False)
    for offsets in ((), (0, 1), (1,)):
        evidence = read(model, prompts, keep=("span_sum",), offsets=offsets, progress=False)
        found = locate_heads(model, prompts, evidence=evidence, offsets=(1,), progress=False)
        assert found.table().equals(expected.table())


def test_a_ranking_must_hold_offsets():
    ranking = locate_heads(label_reader("label"), reader_prompts(40), offsets=(0,), progress=False)
    for wrong in ((), (1, 0), (1, 1)):
        with pytest.raises(ResultError, match="offsets must be some, each once"):
            replace(ranking, offsets=wrong)


def test_rankings_on_other_edges_are_not_compared_without_a_word():
    model, prompts = label_reader("after"), reader_prompts(40)
    both = {str(at): locate_heads(model, prompts, offsets=(at,), progress=False) for at in (0, 1)}
    assert "not on the same edges; offsets from the label are 0 (0,), 1 (1,)" in repr(Stability(both))
    same = stability(model, {"a": prompts, "b": reader_prompts(40, seed=1)}, offsets=(1,), progress=False)
    assert {ranking.offsets for ranking in same.rankings.values()} == {(1,)}
    assert "not on the same edges" not in repr(same)
