"""Data enter a page as data: no string ends a script or becomes an element."""

from __future__ import annotations

import base64
import gzip
import json
import re

import pytest
from charts.hostile import HOSTILE, SNEAKY, has_live_markup, hostile_evidence, without_scripts

from icl_kernel_lens import head_vote
from icl_kernel_lens.charts import embed


def test_a_literal_cannot_end_its_script():
    value = {"text": [HOSTILE, SNEAKY, "a\u2028b", "&lt;"], "number": 0.5}
    literal = embed.to_js(value)
    assert not set(literal) & set("<>&\u2028")
    assert json.loads(literal) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        embed.to_js(float("nan"))


def test_a_token_is_no_markup():
    for token in (HOSTILE, SNEAKY, "&lt;b&gt;"):
        made = embed.inert(token)
        assert not re.search(r"<[a-z/!]|&\w", made), "neither a tag nor an entity"
        assert made.replace("\u2060", "") == token
    drawn = embed.draw_tokens("x", [SNEAKY], [[1.0]], ["L0H0"])
    assert embed.to_js(embed.inert(SNEAKY))[1:-1] in drawn


def test_a_notebook_output_carries_its_library_and_escapes_the_rest():
    page = embed.notebook_output("window.library=1", lambda element: f"draw('{element}')", HOSTILE, SNEAKY)
    assert not has_live_markup(page)
    assert "onerror" in without_scripts(page)
    (element,) = re.findall(r'<div id="(.*?)">', page)
    assert f"draw('{element}')" in page
    assert f'id="{element}"' not in embed.notebook_output("", lambda element: ""), (
        "each has a name of its own"
    )
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
