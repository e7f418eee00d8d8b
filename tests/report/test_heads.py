"""The report of a locating run: its section, in order, escaped, and absent where nothing was located."""

from __future__ import annotations

import html
import re
from dataclasses import replace

import pytest
import torch
from charts.hostile import HOSTILE, SNEAKY, browse, has_live_markup, hostile_evidence, without_scripts
from charts.located import curves, ranking
from support import needs_browser

from icl_kernel_lens import head_vote
from icl_kernel_lens.errors import RunError
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.report.heads import _runs, write_report
from icl_kernel_lens.results.task_accuracy import TaskAccuracy


@pytest.fixture(scope="module")
def hostile():
    return hostile_evidence()


@pytest.fixture(scope="module")
def votes(hostile):
    return [head_vote(hostile)]


def write(path, evidence, votes, **more):
    return write_report(path, evidence, votes, None, **more).read_text()


def body(page: str) -> str:
    """What is read: without scripts, and with the pictures' data left out."""
    return re.sub(r"data:image/png;base64,[^\"]*", "", without_scripts(page[page.index("<body") :]))


def test_the_located_heads_stand_before_the_scores(hostile, votes, tmp_path):
    found = ranking(classes={(2, 1): "kernel head", (2, 2): "pair kernel", (3, 0): "shadow"})
    page = write(tmp_path / "r.html", hostile, votes, ranking=found, curves=curves())
    seen = html.unescape(body(page))
    headings = re.findall(r"<h2>(.*?)</h2>", seen)
    assert headings[:5] == [
        "Is there anything to explain?",
        "Where does the answer position look?",
        "Located heads",
        "Are they needed, and are they enough?",
        "Which heads vote like the answer?",
    ]
    for words in (
        found.accuracy.verdict(),
        "<td>accuracy, without demonstrations</td><td>50.0%</td><td>",
        "<td>share of the answers, the last label</td><td>50.0%</td><td>",
        found.verdict(),
        "label influence, on 12 prompts",
        "their slope (-1: with the inputs, +1: with places and labels) less than 0.25 above the model's own, -0.90",
        "Kernel heads: L2H1.",
        "Pair kernels: L2H2.",
        "The band: layer 2 of 4 (counted from 0;",
        "41 prompts in 31 demonstration sets",
        "the other half (40 prompts in 30 demonstration sets)",
        "Something must be said.",
        "What this does not show: that other heads could not take over",
        "3 of the 3 heads that are more than neither, or were cut in the reporting half",
        "Measured on 40 other prompts (seed 3); an answer counts as right if it is the true label.",
        "Random sets for each number of heads: 4 different.",
        "criterion: band share",
        "2 (+ L1H0)",
    ):
        assert words in seen, words

    def cells(first):
        rows = re.findall(r"<tr>(.*?)</tr>", seen)
        return next(re.findall(r"<td>(.*?)</td>", row) for row in rows if f"<td>{first}</td>" in row)

    def with_interval(name, head):
        value, low, high = (found.columns[name + end][head].item() for end in ("", "_low", "_high"))
        return f"{value:.2f} ({low:.2f} to {high:.2f})"

    row, nothing = cells("L2H1"), "– / – / –"
    assert row[:2] == ["L2H1", "kernel head"]
    assert row[2] == with_interval("fit", (2, 1)) + " ?", "by hand: no condition was asked"
    assert row[3:6] == ["–", "–", "– / –"]
    assert row[6:11] == [with_interval("transport", (2, 1)) + " ?", nothing, nothing, "–", "–"]
    assert row[11:] == [with_interval("logit_diff_drop", (2, 1)), "0.90 (0.50, label prior)"]
    both = found.joint[-1]
    assert cells("L2H1 L2H2") == [
        "L2H1 L2H2",
        f"{both.value:.2f} ({both.low:.2f} to {both.high:.2f})",
        "–",
        cells("L2H1 L2H2")[3],
    ]
    interaction = both.value - found.joint[0].value - found.joint[1].value
    assert cells("L2H1 L2H2")[3] == f"{interaction:.2f}"
    assert seen.index("<td>L3H0</td>") < seen.index("What located heads carry together")
    policy = html.unescape(re.search(r'Content-Security-Policy" content="(.*?)"', page).group(1))
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert policy.endswith("; style-src 'unsafe-inline'; img-src data: blob:")


def test_conditions_stand_beside_their_numbers(hostile, votes, tmp_path):
    """Whether each holds, of the number it goes by; nothing of what was not measured."""
    found = ranking()
    changed = {name: column.clone() for name, column in found.columns.items()}
    said = {"fits": 1, "with_input": 0, "looks": torch.nan, "transports": -1, "needed": 1, "invariant": 1}
    said |= {"carries_kernel": 0, "ranks": 1, "gives": 0, "alone": 1}
    for name, value in said.items():
        changed[name][2, 1] = value
    numbers = {
        "swap_slope": 0.4,
        "input_shift": 0.3,
        "ranking_fit": 0.4,
        "gained": 0.1,
        "company": 0.2,
        "kernel_share": 0.02,
        "zeroed": 0.2,
        "renormalised": 0.25,
    }
    for name, value in numbers.items():
        changed[name][2, 1] = value
    changed["swap_slope_low"][2, 1], changed["swap_slope_high"][2, 1] = 0.3, 0.5
    page = write(tmp_path / "r.html", hostile, votes, ranking=replace(found, columns=changed))
    row = next(r for r in re.findall(r"<tr>(.*?)</tr>", html.unescape(body(page))) if "<td>L2H1</td>" in r)
    cells = re.findall(r"<td>(.*?)</td>", row)
    assert cells[2].endswith(") ✓")
    assert cells[4:6] == ["0.40 (0.30 to 0.50) ✗", "0.30 ? / 0.40 ✓"]
    assert cells[6].endswith(") ✗ −")
    assert cells[7:11] == ["0.02 ✗ / 0.10 ✗ / 0.20 ✓", "0.20 / 0.25 / – ✓", "–", "–"]


def test_what_was_not_located_is_not_there(hostile, votes, tmp_path):
    plain = body(write(tmp_path / "a.html", hostile, votes))
    assert "Located heads" not in plain
    assert "criterion" not in plain
    none = html.unescape(body(write(tmp_path / "b.html", hostile, votes, ranking=ranking(classes={}))))
    assert "Kernel heads: none." in none
    assert "Pair kernels: none." in none
    assert "No head is sure to carry it." in none
    assert "The band: none. It is of located heads alone" in none
    assert "What located heads carry together" not in none
    assert "Are they needed" not in none


def test_the_layers_that_look_at_labels_are_named(hostile, votes, tmp_path):
    demos = hostile.prompts.demos
    points = (hostile.profile.shape[-1] - demos) // (demos + 1)
    profile = torch.zeros_like(hostile.profile)
    profile[1, :, points], profile[2, :, points + (points + 1) * (demos - 1)] = 0.2, 0.1
    profile[:, :, :points] = 0.001
    looking = replace(hostile, profile=profile)
    assert torch.equal(looking.on_labels()[:3], torch.tensor([0.0, 0.2, 0.1]))
    found = replace(ranking(), offsets=(-1, 0))
    seen = html.unescape(body(write(tmp_path / "r.html", looking, votes, ranking=found)))
    assert "The labels get the largest share of its attention in layer 1: 20%, the mean over heads" in seen
    assert "at least half of that in layers 1–2. To look is not to use" in seen
    assert "is told by cuts (icl-kernel-lens patch and locate)" in seen, (
        "this ranking does not say which edges"
    )
    assert "tokens at offsets -1, 0 from it (0 is the label itself" in seen
    prompts = len(votes[0].values)
    assert (
        f"All {prompts} prompts are counted here; the located heads above were measured on 40 of them" in seen
    )
    assert "with attention on offsets -1, 0 from the label" in seen
    nothing = replace(hostile, profile=torch.zeros_like(profile))
    assert "the largest share of its attention" not in body(write(tmp_path / "n.html", nothing, votes))
    assert _runs([0]) == "layer 0"
    assert _runs([2, 3, 5, 8, 9, 10]) == "layers 2–3, 5 and 8–10"


def test_it_is_said_next_what_cuts_take(hostile, votes, tmp_path):
    """Where labels enter, and by which heads: on the choosing half, where every head is cut."""
    found = ranking()
    share = torch.full_like(found.choosing["label_part"], 0.01)
    share[2, 1], share[1, 0], share[0, 1], share[3, 2] = 0.5, 0.25, float("nan"), -0.9
    edges = {"edges": "of the label: offset 0 loses at least 80%"}

    def said(share, **settings):
        one = replace(found, choosing={**found.choosing, "label_part": share}, settings=settings)
        return html.unescape(body(write(tmp_path / "r.html", hostile, votes, ranking=one)))

    page = said(share, **edges)
    assert (
        "What is cut are the edges of the label: offset 0 loses at least 80%. In one head at a time, on the half that singles "
        "heads out, they take of the label part, in shares that overlap: L2H1 0.50, L1H0 0.25. What"
    ) in page
    assert "L1H0 0.25, L0H0 0.01" not in page
    share[share == 0.01] = 0.06
    assert " and 5 more heads at least 0.05." in said(share, **edges)
    assert "none takes 0.05 of the label part with it" in said(share.clamp(max=0.01), **edges)
    assert "What is cut are" not in said(share)


def test_text_of_data_is_text(hostile, votes, tmp_path):
    named = {"model": SNEAKY, "task": HOSTILE}
    found, bent = ranking(**named, control=SNEAKY), curves(**named)
    page = write(tmp_path / "r.html", hostile, votes, ranking=found, curves=bent)
    assert not has_live_markup(page)
    assert "onerror" in body(page)


@needs_browser
@pytest.mark.browser
def test_the_page_opens_offline_without_an_error(hostile, votes, tmp_path):
    named = {"model": SNEAKY, "task": HOSTILE}
    path = tmp_path / "r.html"
    write(path, hostile, votes, ranking=ranking(**named, control=SNEAKY), curves=curves(**named))
    dom, console = browse(path, tmp_path)
    assert console == []
    live = without_scripts(dom[dom.index("<body") :])
    assert live.count('class="marks"') >= 4, "all charts are alive"
    assert not has_live_markup(live)
    title = re.search(r"<title>(.*?)</title>", dom, re.S)
    assert title is not None
    assert "Kernel-regression heads of" in title.group(1)


@needs_browser
@pytest.mark.browser
def test_the_report_opens_offline_without_an_error(hostile, tmp_path):
    scores = [head_vote(hostile), head_vote(hostile, pooling="span_max")]
    path = write_report(tmp_path / "report.html", hostile, scores, None)
    dom, console = browse(path, tmp_path)
    assert console == []
    title = re.search(r"<title>(.*?)</title>", dom, re.S)
    assert title is not None
    assert "Kernel-regression heads of" in title.group(1)  # not 'pwned'
    page = dom[dom.index("<body") :]
    assert page.count('class="marks"') >= 2  # both charts are alive
    live = without_scripts(page)
    assert "onerror" in live  # the text is shown …
    assert not has_live_markup(live)  # … and is no element
    assert "L2H1" in live  # the token view has its head buttons
    assert "http" not in re.sub(r"http://www.w3.org/\S+", "", live)


def test_a_report_that_cannot_be_written_says_what_is_kept(hostile, votes, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(RunError, match="save it elsewhere"):
        write_report(tmp_path / "file" / "r.html", hostile, votes, None)
    assert (tmp_path / "file").read_text() == "kept"


def test_what_is_shown_is_handed_over(hostile, votes, tmp_path):
    """Pooling by label and by span, the accuracy and the notes, each in the words of its result."""
    accuracy = TaskAccuracy(
        correct={"demonstrations": torch.ones(12), "majority": (torch.arange(12) % 2).float()},
        rules={"last_label": torch.ones(12), "commonest_answer": torch.zeros(12)},
        demo_set=hostile.prompts.demo_set,
        run=hostile.run,
        digest=hostile.prompts.digest(),
        reasons={"permuted_labels": Reason.NOT_FROM_TEXT},
    )
    scores = [votes[0], head_vote(hostile, pooling="span_max", against="truth")]
    page = write_report(tmp_path / "r.html", hostile, scores, accuracy).read_text()
    seen = html.unescape(body(page))
    for words in (
        "Accuracy is 100.0%, +50.0 percentage points over majority",
        "one rule may explain nearly all of the answers: the last label gives 100.0% of them",
        "<td>accuracy, with demonstrations</td><td>100.0%</td><td>73.5% – 100.0%</td>",
        "<td>share of the answers, the last label</td><td>100.0%</td><td>73.5% – 100.0%</td>",
        f"Accuracy with permuted labels: not measured ({Reason.NOT_FROM_TEXT}).",
        "to the first token of their labels",
        "how often that vote is the model's own answer",
        "(pooling span_max)",
        "What this does not show: that the answer depends on the head",
    ):
        assert words in seen, words
    other = html.unescape(body(write_report(tmp_path / "s.html", hostile, scores[1:], None).read_text()))
    assert "the largest weight on any of their tokens, text or label" in other
    assert "how often that vote is the true label" in other
