"""Token views: cropped to what is read, hostile tokens shown as text, and refusals that say what is there."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from charts.hostile import browse, has_live_markup, hostile_evidence, without_scripts
from support import needs_browser

from icl_kernel_lens import HeadRef
from icl_kernel_lens.charts.token_view import MOST_TOKENS, TokenView, positions_worth_showing
from icl_kernel_lens.errors import ResultError, RunError


@needs_browser
@pytest.mark.browser
def test_the_token_view_shows_hostile_tokens_as_text(tmp_path):
    view = hostile_evidence().token_view([HeadRef(0, 0), HeadRef(2, 1)])
    path = tmp_path / "tokens.html"
    path.write_text(
        f"<!doctype html><meta charset=utf-8><title>safe</title><body>{view._repr_html_()}", encoding="utf-8"
    )
    dom, console = browse(path, tmp_path)
    assert console == []
    assert "<title>safe</title>" in dom
    live = without_scripts(dom)
    assert not has_live_markup(live)
    assert "onerror" in live


def test_long_prompts_are_cropped():
    """Beyond 128 tokens: all labels and the test input stay, gaps are marked."""
    hostile = hostile_evidence()
    length = len(hostile.prompts.strings[0])
    assert len(hostile.token_view(["L2H1"]).tokens) == length <= 140
    wide = 1000
    p = hostile.prompts
    scale = torch.linspace(200, 900, 16).long()
    spans = torch.stack([scale, scale + 1], -1)[None].expand(len(p), -1, -1)
    stretched = replace(
        p,
        tokens=torch.zeros(len(p), wide, dtype=torch.long),
        roles=torch.full((len(p), wide), 3),
        lengths=torch.full((len(p),), wide),
        answer_pos=torch.full((len(p),), wide - 1),
        label_spans=spans,
        demo_spans=torch.stack([scale - 2, scale + 1], -1)[None].expand(len(p), -1, -1),
        strings=(tuple(f"t{i}" for i in range(wide)),),
    )
    evidence = replace(hostile, prompts=stretched, rows=torch.rand(1, 3, 4, wide))
    view = evidence.token_view([HeadRef(0, 1), HeadRef(2, 1)])
    kept = [t for t in view.tokens if t != "…"]
    assert len(kept) == MOST_TOKENS
    assert view.tokens.count("…") >= 10
    assert {f"t{i}" for i in scale.tolist()} <= set(kept)
    assert (kept[0], kept[-1]) == ("t0", f"t{wide - 1}"), "position 0, where sinks are, and the answer"
    at = view.tokens.index("t999")
    assert view.values[at][1] == pytest.approx(evidence.rows[0, 2, 1, 999].item(), abs=1e-4)
    assert len(json.dumps([view.tokens, view.values])) < 100_000
    assert "128 of 1000 tokens (position 0, labels" in view.caption


def test_what_cannot_be_shown_is_refused():
    hostile = hostile_evidence()
    with pytest.raises(ResultError, match="shows 1 to 4 heads; got 5"):
        hostile.token_view([(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)])
    with pytest.raises(ResultError, match="there is no head L9H0"):
        hostile.token_view(["L9H0"])
    with pytest.raises(ResultError, match="kept for the first 8 prompts; got prompt 8"):
        hostile.token_view([(0, 0)], prompt=8)


def test_rows_that_end_before_their_tokens_are_no_evidence():
    hostile = hostile_evidence()
    with pytest.raises(ResultError, match="rows must reach as far as their prompts' token strings"):
        replace(hostile, rows=hostile.rows[..., :-1])


def test_heads_are_named_or_paired():
    hostile = hostile_evidence()
    views = [hostile.token_view([head], prompt=1) for head in ("L2H1", (2, 1), HeadRef(2, 1))]
    assert views[0] == views[1] == views[2]
    assert views[0].labels == ["L2H1"]


def test_positions_worth_showing():
    assert positions_worth_showing(5, [(1, 2)], 3) == [0, 1, 2, 3, 4]
    kept = positions_worth_showing(400, [(100, 102), (200, 201)], 390)
    assert len(kept) == MOST_TOKENS
    assert {0, 99, 100, 101, 199, 200, *range(390, 400)} <= set(kept)
    assert kept == sorted(kept)
    assert positions_worth_showing(400, [], 0) == [0, *range(400 - MOST_TOKENS // 3, 400)]


def test_gaps_and_nan():
    attention = torch.tensor([[0.1, 0.2, torch.nan, 0.4]])
    view = TokenView.cropped(list("abcd"), attention, [0, 2, 3], labels=["L0H0"], caption="a caption")
    assert view.tokens == ["a", "…", "c", "d"]
    assert view.values == [[0.1], [0.0], [0.0], [0.4]]


def test_a_view_is_saved_as_a_page_or_refused(tmp_path):
    view = hostile_evidence().token_view(["L0H0"])
    page = view.save(tmp_path / "deep" / "view.html").read_text()
    assert page.startswith("<!doctype html>")
    assert not has_live_markup(page)
    with pytest.raises(ResultError, match=r"saved as \.html; 'x\.png'"):
        view.save(tmp_path / "x.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="save it elsewhere"):
        view.save(tmp_path / "file" / "x.html")
    assert "Attention from the answer position" in repr(view)
