"""A page opens offline: nothing is fetched, only its own scripts run, and text stays text."""

from __future__ import annotations

import base64
import hashlib
import html
import re

import altair as alt
import pytest
from charts.hostile import HOSTILE, SNEAKY, browse, has_live_markup, without_scripts
from markupsafe import Markup
from support import needs_browser

from icl_kernel_lens.charts.page import Page


def full_page() -> str:
    data = alt.InlineData(values=[{"x": 1, "name": HOSTILE}])
    spec = alt.Chart(data).mark_point().encode(x="x:Q", color="name:N").to_dict()
    page = Page(HOSTILE).heading(SNEAKY).text(HOSTILE).table([SNEAKY], [[HOSTILE]], SNEAKY)
    page.chart(spec, Markup('<img alt="still">')).chart(spec, Markup(""))
    return page.tokens([SNEAKY, HOSTILE], [[0.5, 0.1], [1.0, 0.2]], ["L0H0", "L2H1"], HOSTILE).html()


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
    assert '<div class="view" id="chart-3"><img alt="still"></div>' in page


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
