"""Whatever a text holds, it is shown."""

from __future__ import annotations

import altair as alt
import pytest

from icl_kernel_lens.charts.figure import Figure
from icl_kernel_lens.charts.page import Page
from icl_kernel_lens.signs import legible


@pytest.mark.parametrize("sign", ["\x00", "\x0b", "\x1b", "\x7f", "\x85", "\ud800", "\ufffe"], ids=ascii)
def test_signs_that_no_page_can_hold_are_drawn_visibly(sign, tmp_path):
    text = f"a{sign}b"
    chart = alt.Chart(alt.InlineData(values=[{"x": text}])).mark_bar().encode(x="x:N")
    figure = Figure.styled(chart, text, text, text)
    assert figure.png()
    assert sign not in figure._repr_html_()
    page = Page(text).heading(text).text(text).table([text], [[text]], text).chart(figure).html()
    assert sign not in page
    assert legible(text) in page
    page.encode()
    for suffix in ("html", "json", "svg"):
        figure.save(tmp_path / f"figure.{suffix}")
