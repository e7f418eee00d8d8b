"""Which edges count when heads are located: found where labels enter, taken for the weights and for the cuts."""

from __future__ import annotations

import pytest
import torch
from interventions.label_readers import label_reader, reader_prompts

from icl_kernel_lens import load, locate_heads
from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.locate.edges import PROMPTS, _spread, choose_edges, named

ALL = torch.arange(64)

pytestmark = pytest.mark.filterwarnings("ignore:.*demonstration sets a half are few")


@pytest.mark.parametrize(("what", "offsets"), [("label", (0,)), ("after", (1,))])
def test_the_place_where_labels_enter_is_chosen(what, offsets):
    found = choose_edges(label_reader(what), reader_prompts(64), ALL, seed=0, checkpoint=None, progress=False)
    assert found.offsets == offsets
    assert f"{PROMPTS} prompts" in found.why
    assert "untested" not in found.why


@pytest.mark.parametrize(
    ("what", "why"),
    [("nothing", "untested: shares are undefined"), ("test", "untested: no set of the offsets")],
)
def test_the_label_is_taken_untested_where_no_place_is_found(what, why):
    found = choose_edges(label_reader(what), reader_prompts(64), ALL, seed=0, checkpoint=None, progress=False)
    assert found.offsets == (0,)
    assert why in found.why
    assert ("label_coverage looks at earlier tokens" in found.why) == (what == "test")


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


def test_offsets_without_a_token_are_refused():
    with pytest.raises(PromptError, match=r"\+9 does not"):
        locate_heads(label_reader("label"), reader_prompts(64), offsets=(9,), progress=False)
