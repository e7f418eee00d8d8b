"""A figure is a value: saved in four formats without a browser, or not at all."""

from __future__ import annotations

import json

import altair as alt
import pytest
from charts.hostile import HOSTILE, has_live_markup, hostile_evidence, without_scripts

from icl_kernel_lens import head_vote
from icl_kernel_lens.charts.figure import Figure
from icl_kernel_lens.errors import ResultError, RunError


def small() -> Figure:
    data = alt.InlineData(values=[{"x": 1, "name": HOSTILE}])
    return Figure(alt.Chart(data).mark_point().encode(x="x:Q", tooltip="name:N"), HOSTILE)


def test_figures_export_without_a_browser(tmp_path):
    hostile = hostile_evidence()
    figure = head_vote(hostile).figure()
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<svg"), (".json", b"{"), (".html", b"<!doctype")):
        assert figure.save(tmp_path / f"deep/x{suffix}").read_bytes().startswith(start)
    with pytest.raises(ResultError, match=r"saved as one of \.png, \.svg, \.html, \.json; 'x\.pdf'"):
        figure.save(tmp_path / "x.pdf")
    assert "Figure(" in repr(figure)
    assert hostile.figure().png().startswith(b"\x89PNG")
    svg = (tmp_path / "deep/x.svg").read_text()
    assert "<img" not in svg
    assert json.loads((tmp_path / "deep/x.json").read_text()) == figure.spec()


def test_a_figure_that_cannot_be_written_leaves_what_is_there(tmp_path):
    (tmp_path / "file").write_text("kept")
    for suffix in (".png", ".svg", ".json", ".html"):
        with pytest.raises(RunError, match="save it elsewhere"):
            small().save(tmp_path / "file" / f"x{suffix}")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_title_is_text():
    figure = small()
    assert figure.still().startswith('<img alt="&lt;/script&gt;')
    assert not has_live_markup(figure._repr_html_())
    assert "data:image/png;base64," in without_scripts(figure._repr_html_()), "seen where scripts do not run"
