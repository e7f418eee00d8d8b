"""The page on label influence: what is said first, what is said of heads and when, and no text becomes markup."""

from __future__ import annotations

import html
import re
from dataclasses import replace

import pytest
import torch
from charts.hostile import browse, has_live_markup, without_scripts
from charts.test_influence import evidence_of, hostile
from results.influence_made import kernel_of, made_influence
from support import needs_browser

from icl_kernel_lens.influence.fidelity import influence_fidelity
from icl_kernel_lens.report.influence import ranks_heads, write_influence_report


def made(influence, kernel):
    """Evidence in which L0H0 has the kernel and the others look everywhere alike, and the fits."""
    weights = torch.full((*kernel.shape[:1], 2, 2, kernel.shape[1]), 0.1)
    weights[:, 0, 0] = kernel
    evidence = replace(evidence_of(influence, weights), run=influence.run)
    accuracy = replace(influence.accuracy, digest=influence.prompts.digest(), run=influence.run)
    influence = replace(influence, accuracy=accuracy)
    return influence, evidence, influence_fidelity(influence, evidence)


def seen(path) -> str:
    page = path.read_text()
    body = re.sub(r"data:image/png;base64,[^\"]*", "", without_scripts(page[page.index("<body") :]))
    return html.unescape(body)


@pytest.fixture(scope="module")
def kernel():
    return kernel_of(48, 4)


def test_what_is_said_and_in_which_order(kernel, tmp_path):
    influence, evidence, fit = made(made_influence(kernel, sets=12), kernel)
    assert ranks_heads(influence)
    page = seen(write_influence_report(tmp_path / "r.html", evidence, influence, fit))
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        "Is there anything to explain?",
        "What kind of answer is it?",
        "How far does each demonstration pull?",
        "Do they add up?",
        "Which heads follow it?",
        "Fit of the head's weights to the model's own kernel (pooling label)",
        "How it was measured",
    ]
    for words in (influence.accuracy.verdict(), influence.verdict(), "Additivity is measured on some sets."):
        assert words in page
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    for row in influence.summary().to_dict("records"):
        interval = "–" if row["low"] != row["low"] else f"{row['low']:.4f} to {row['high']:.4f}"
        assert [row["what"], row["on"], f"{row['value']:.4f}", interval] in rows
    first = next(row for row in rows if row and row[0] == "L0H0")
    assert first[5] == f"{fit.companions['p_family'][0, 0]:.3f}"
    assert page.count("<img ") == 5, "set, additivity, layers, map, one prompt"


def test_the_null_is_what_p_family_says(kernel):
    """The same for all heads, and exceeded by those whose p is at most 5 %."""
    noise = (kernel + 0.6 * kernel_of(48, 4, seed=9)) / 1.6
    for weights in (kernel, noise, kernel_of(48, 4, seed=3)):
        _, _, fit = made(made_influence(kernel, sets=12), weights)
        known = ~fit.mean().isnan()
        null, p = fit.companions["null_95"][known], fit.companions["p_family"][known]
        assert (null == null[0]).all()
        assert ((fit.mean()[known] > null) == (p <= 0.05)).all()
        assert 0.05 < float(null[0]) < 0.6


def test_no_head_is_ranked_without_a_kernel_part(kernel, tmp_path):
    other = made_influence(kernel, sets=12, later=kernel_of(48, 4, seed=5))
    influence, evidence, fit = made(other, kernel)
    assert influence.kernel_part().found == "none"
    page = seen(write_influence_report(tmp_path / "r.html", evidence, influence, fit))
    assert "No head is ranked" in page
    assert "L0H0" not in page
    alone = made_influence(kernel, sets=48)
    page = seen(write_influence_report(tmp_path / "s.html", evidence, alone, None))
    assert "Not measured: no two prompts share their demonstrations" in page
    assert "No head is ranked" not in page


def test_what_could_not_be_measured_is_not_called_absent(kernel, tmp_path):
    influence, evidence, fit = made(made_influence(kernel, sets=12, orders=1), kernel)
    page = seen(write_influence_report(tmp_path / "r.html", evidence, influence, fit))
    assert "whether there is a kernel part is not known" in page
    assert "nothing that a head could follow" not in page


def test_text_of_data_is_text(tmp_path):
    influence, evidence, fit = made(hostile(), kernel_of())
    path = write_influence_report(tmp_path / "r.html", evidence, influence, fit)
    assert not has_live_markup(path.read_text())
    assert "onerror" in path.read_text()


@needs_browser
@pytest.mark.browser
def test_the_page_opens_offline_without_an_error(tmp_path):
    influence, evidence, fit = made(hostile(), kernel_of())
    dom, console = browse(write_influence_report(tmp_path / "r.html", evidence, influence, fit), tmp_path)
    assert console == []
    assert dom.count('class="marks"') >= 4, "all charts are alive"
