"""The report of a locating run: its section, in order, escaped, and absent where nothing was located."""

from __future__ import annotations

import html
import re

import pytest
from plots.located import curves, ranking
from plots.test_page import HOSTILE, SNEAKY, browse, hostile_evidence
from support import needs_browser


@pytest.fixture(scope="module")
def hostile():
    return hostile_evidence()


@pytest.fixture(scope="module")
def votes(hostile):
    from icl_kernel_lens import head_vote

    return [head_vote(hostile)]


def write(path, evidence, votes, **more):
    from icl_kernel_lens.plots.report import write_report

    return write_report(path, evidence, votes, None, **more).read_text()


def body(page: str) -> str:
    """What is read: without scripts, and with the pictures' data left out."""
    page = re.sub(r"<script.*?</script>", "", page[page.index("<body") :], flags=re.S)
    return re.sub(r"data:image/png;base64,[^\"]*", "", page)


def test_the_located_heads_stand_before_the_scores(hostile, votes, tmp_path):
    page = write(tmp_path / "r.html", hostile, votes, ranking=ranking(), curves=curves())
    seen = html.unescape(body(page))
    headings = re.findall(r"<h2>(.*?)</h2>", seen)
    assert headings[:4] == [
        "Is there in-context learning?",
        "Located heads",
        "Are they needed, and are they enough?",
        "Which heads vote like the answer?",
    ]
    for words in (
        "Not measured in this run",
        "Confirmed kernel heads: L2H1.",
        "The band: layer 2 of 4 (counted from 0;",
        "41 prompts in 31 demonstration sets",
        "the other half (40 prompts in 30 demonstration sets)",
        "Something must be said.",
        "What this does not show: that other heads could not take over",
        "2 of the 2 heads that were singled out",
        "Measured on 40 other prompts (seed 3); an answer counts as right if it is the true label.",
        "Random sets for each number of heads: 4 different.",
        "criterion: band share",
        "2 (+ L1H0)",
    ):
        assert words in seen, words
    row = next(
        re.findall(r"<td>(.*?)</td>", r) for r in re.findall(r"<tr>(.*?)</tr>", seen) if "<td>L2H1" in r
    )
    found = ranking()
    loss = [f"{found.columns[name][2, 1].item():.3f}" for name in ("loss", "loss_low", "loss_high")]
    assert row[:5] == ["L2H1", "kernel head", "0.900", "0.500 (label prior)", "0.350 to 0.440"]
    assert row[5:] == ["–", "–", f"{loss[0]} ({loss[1]} to {loss[2]})", "–"]
    policy = html.unescape(re.search(r'Content-Security-Policy" content="(.*?)"', page).group(1))
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert policy.endswith("; style-src 'unsafe-inline'; img-src data: blob:")


def test_what_was_not_located_is_not_there(hostile, votes, tmp_path):
    plain = body(write(tmp_path / "a.html", hostile, votes))
    assert "Located heads" not in plain
    assert "criterion" not in plain
    none = html.unescape(body(write(tmp_path / "b.html", hostile, votes, ranking=ranking(classes={}))))
    assert "No kernel head confirmed." in none
    assert "The band: none." in none
    assert "Are they needed" not in none


def test_text_of_data_is_text(hostile, votes, tmp_path):
    named = {"model": SNEAKY, "task": HOSTILE}
    found, bent = ranking(**named, control=SNEAKY), curves(**named)
    page = write(tmp_path / "r.html", hostile, votes, ranking=found, curves=bent)
    assert not re.search(r"<img[ /]+src=.?x", page)
    assert "onerror" in body(page)


@needs_browser
@pytest.mark.browser
def test_the_page_opens_offline_without_an_error(hostile, votes, tmp_path):
    named = {"model": SNEAKY, "task": HOSTILE}
    path = tmp_path / "r.html"
    write(path, hostile, votes, ranking=ranking(**named, control=SNEAKY), curves=curves(**named))
    dom, console = browse(path, tmp_path)
    assert console == []
    live = re.sub(r"<script.*?</script>", "", dom[dom.index("<body") :], flags=re.S)
    assert live.count('class="marks"') >= 4, "all charts are alive"
    assert not re.search(r"<img[ /]+src=.?x", live)
    title = re.search(r"<title>(.*?)</title>", dom, re.S)
    assert title is not None
    assert "Kernel-regression heads of" in title.group(1)
