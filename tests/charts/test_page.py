"""A page opens offline: nothing is fetched, only its own scripts run, data enter as data, and text stays text."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re

import altair as alt
import pytest
from charts.hostile import HOSTILE, SNEAKY, browse, has_live_markup, hostile_evidence, without_scripts
from support import needs_browser

from icl_kernel_lens import head_vote
from icl_kernel_lens.charts.figure import Figure
from icl_kernel_lens.charts.page import Page, draw_tokens, inert, notebook_output, to_js
from icl_kernel_lens.charts.token_view import TokenView


def full_page() -> str:
    data = alt.InlineData(values=[{"x": 1, "name": HOSTILE}])
    figure = Figure(alt.Chart(data).mark_point().encode(x="x:Q", color="name:N"), "still")
    view = TokenView([SNEAKY, HOSTILE], [[0.5, 0.1], [1.0, 0.2]], ["L0H0", "L2H1"], HOSTILE)
    page = Page(HOSTILE).heading(SNEAKY).text(HOSTILE).table([SNEAKY], [[HOSTILE]], SNEAKY)
    return page.chart(figure).chart(figure).tokens(view).html()


def test_the_policy_allows_these_scripts_alone():
    page = full_page()
    policy = html.unescape(re.search(r'Content-Security-Policy" content="(.*?)"', page)[1])
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert policy.endswith("; style-src 'unsafe-inline'; img-src data: blob:")
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.S)
    assert len(scripts) == 5, "two libraries, each once, and three drawings"
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "script-src 'none'" in html.unescape(Page("x").html())


def test_text_is_text_and_stills_are_pictures():
    page = full_page()
    assert not has_live_markup(page)
    assert without_scripts(page).count("onerror") >= 6
    assert '<div class="view" id="chart-3"><img alt="still"' in page


@needs_browser
@pytest.mark.browser
def test_the_page_opens_offline_without_an_error(tmp_path):
    path = tmp_path / "page.html"
    path.write_text(full_page(), encoding="utf-8")
    dom, console = browse(path, tmp_path)
    assert console == []
    live = without_scripts(dom[dom.index("<body") :])
    assert live.count('class="marks"') >= 2, "both charts are alive"
    assert "L2H1" in live, "the token view has its buttons"
    assert not has_live_markup(live)


def test_a_literal_cannot_end_its_script():
    value = {"text": [HOSTILE, SNEAKY, "a\u2028b", "&lt;"], "number": 0.5}
    literal = to_js(value)
    assert not set(literal) & set("<>&\u2028")
    assert json.loads(literal) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_js(float("nan"))


def test_a_token_is_no_markup():
    for token in (HOSTILE, SNEAKY, "&lt;b&gt;"):
        made = inert(token)
        assert not re.search(r"<[a-z/!]|&\w", made), "neither a tag nor an entity"
        assert made.replace("\u2060", "") == token
    drawn = draw_tokens("x", [SNEAKY], [[1.0]], ["L0H0"])
    assert to_js(inert(SNEAKY))[1:-1] in drawn


def test_a_notebook_output_carries_its_library_and_escapes_the_rest():
    page = notebook_output("window.library=1", lambda element: f"draw('{element}')", HOSTILE, SNEAKY)
    assert not has_live_markup(page)
    assert "onerror" in without_scripts(page)
    (element,) = re.findall(r'<div id="(.*?)">', page)
    assert f"draw('{element}')" in page
    assert f'id="{element}"' not in notebook_output("", lambda element: ""), "each has a name of its own"
    packed = re.search(r'packed="(.*?)"', page)
    assert packed is not None
    assert gzip.decompress(base64.b64decode(packed[1])) == b"window.library=1"
    assert "http" not in page
    assert (page + "<b>").endswith("<b>"), "a notebook puts more behind it"


def test_objects_show_themselves():
    hostile = hostile_evidence()
    for thing in (hostile, head_vote(hostile), hostile.prompts, hostile.token_view(["L0H0"])):
        assert not has_live_markup(without_scripts(thing._repr_html_()))
        assert repr(thing)
