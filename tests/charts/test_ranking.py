"""The figure of located heads: every number where it belongs, nothing at 0 that was not measured."""

from __future__ import annotations

import html
import json
import re
import time
from dataclasses import replace

import pytest
import torch
from charts.hostile import HOSTILE, SNEAKY, browse, has_live_markup, texts, without_scripts
from charts.located import ranking
from support import needs_browser

from icl_kernel_lens.charts.ranking import HEIGHT, LETTER, LINE, MARKS, NAMED, WIDTH, name_places
from icl_kernel_lens.results.criteria import HEAD_CLASSES, Band, Criteria

ALL = {
    (0, 0): "kernel head", (0, 1): "shadow", (0, 2): "driver", (1, 0): "echo", (1, 1): "word preference",
    (1, 2): "neither", (2, 0): "undetermined",
}  # fmt: skip


def drawn(svg: str) -> dict[str, int]:
    """Symbols in the two views of heads, told apart by what their aria labels say."""
    labels = re.findall(r'aria-label="([^"]*)"', svg)
    return {
        "measured": sum("causal effect:" in s and "class: " in s and "head: " in s for s in labels),
        "strip": sum("layer: " in s and "class: " in s and "causal effect:" not in s for s in labels),
    }


def encodings(spec, channel):
    """Every encoding of a channel, wherever in the specification."""
    found = []
    if isinstance(spec, dict):
        if isinstance(spec.get("encoding"), dict) and channel in spec["encoding"]:
            found.append(spec["encoding"][channel])
        for part in spec.values():
            found += encodings(part, channel)
    elif isinstance(spec, list):
        for part in spec:
            found += encodings(part, channel)
    return found


def test_every_head_is_at_its_numbers():
    found = ranking()
    rows = {row["head"]: row for row in found.figure().spec()["datasets"]["heads"]}
    assert set(rows) == {str(head) for head in found.classes}
    for head, name in found.classes.items():
        row = rows[str(head)]
        assert row["class"] == name
        assert row["layer"] == head.layer
        assert row["control_name"] == "label prior"
        for column in (
            "agreement",
            "control",
            "margin",
            "margin_low",
            "logit_diff_drop",
            "logit_diff_drop_low",
            "logit_diff_drop_high",
        ):
            value = found.columns[column][head].item()
            if value == value:
                assert row[column] == pytest.approx(value, abs=1e-4)
            else:
                assert column not in row, "what was not measured is no number"
        assert "label_shift" not in row


def test_heads_not_cut_lie_in_the_strip_and_not_at_zero():
    found = ranking()
    svg = found.figure().svg()
    assert drawn(svg) == {"measured": 2, "strip": 10}
    assert "effect not measured in the reporting half: 10 heads" in texts(svg)
    every = ranking(2, 2, {(0, 0): "driver"}, [(i, j) for i in range(2) for j in range(2)])
    svg = every.figure().svg()
    assert drawn(svg) == {"measured": 4, "strip": 0}
    assert "not measured" not in svg


def test_a_class_has_one_colour_and_shape_in_every_figure():
    few, many = ranking().figure().spec(), ranking(classes=ALL).figure().spec()
    for channel in ("color", "shape"):
        scales = [e["scale"] for s in (few, many) for e in encodings(s, channel) if e.get("field") == "class"]
        assert scales
        assert all(scale == scales[0] for scale in scales)
        assert scales[0]["domain"] == list(HEAD_CLASSES)
        assert list(HEAD_CLASSES) == list(MARKS), "charts and results know the same classes, in one order"
        assert len(set(scales[0]["range"])) == len(HEAD_CLASSES), "two classes look alike"
    legends = {
        tuple(e["legend"]["values"])
        for e in encodings(few, "color")
        if e.get("field") == "class" and e["legend"]
    }
    assert legends == {("kernel head", "shadow", "neither")}, (
        "only the classes there are, in the stated order"
    )
    (select,) = [p for p in many["params"] if p["name"] == "chosen"]
    assert select["bind"] == "legend"
    assert select["select"] == {"type": "point", "fields": ["class"]}


def test_kernel_heads_are_named_apart_from_each_other():
    heads = {(18 + i % 4, i): "kernel head" for i in range(12)}
    found = ranking(28, 16, heads)
    words = texts(found.figure().svg())
    for layer, head in heads:
        assert words.count(f"L{layer}H{head}") == 2, "the name and its white rim"
    assert "L0H0" not in words
    rows = [
        {"head": f"L{i}H{i}", "margin": 0.5 + i / 200, "logit_diff_drop": 0.5 - i / 300} for i in range(10)
    ]
    placed = name_places(rows, rows, (0.0, 1.0), (0.0, 1.0))
    boxes = [(p["x"] * WIDTH, (1 - p["y"]) * HEIGHT, LETTER * len(p["head"]) / 2) for p in placed]
    for i, (x, y, half) in enumerate(boxes):
        assert half < x < WIDTH - half
        for other, above, wide in boxes[:i]:
            assert abs(x - other) >= half + wide or abs(y - above) >= LINE, (rows[i], placed)
    crowd = ranking(28, 16, {(layer, head): "kernel head" for layer in range(20, 24) for head in range(16)})
    words = texts(crowd.figure().svg())
    assert sum(bool(re.fullmatch(r"L\d+H\d+", w)) for w in words) == 2 * NAMED
    assert any(f"named: the {NAMED} kernel heads of the largest effect" in w for w in words)


def test_the_smallest_effects_are_lines():
    found = replace(ranking(), criteria=Criteria(margin=0.07, effect=0.03))
    data = found.figure().spec()["datasets"].values()
    at = {row["at"] for rows in data for row in rows if "at" in row and "end" not in row}
    assert at == {-0.03, 0, 0.03, 0.07}
    assert any("(vote 0.07, effect 0.03)" in t for t in texts(found.figure().svg()))


def test_the_band_beside_it():
    band = Band(1, 2, 0.93, 0.9, (0, 1), (2, 3), 4, (0.02, 0.2, 0.3, 0.01))
    found = replace(ranking(), band=band)
    spec = found.figure().spec()
    rows = [row for data in spec["datasets"].values() for row in data if "inside" in row]
    assert [(r["layer"], r["effect"], r["inside"]) for r in rows] == [
        (0, 0.02, False), (1, 0.2, True), (2, 0.3, True), (3, 0.01, False)
    ]  # fmt: skip
    assert [r["heads"] for r in rows] == ["", "", "L2H1", ""]
    ends = [row for data in spec["datasets"].values() for row in data if "end" in row]
    assert [(r["at"], r["low"], r["high"]) for r in ends] == [(1, 0, 1), (2, 2, 3)]
    words = texts(found.figure().svg())
    assert "The band: layers 1–2 of 4, counted from 0" in words
    assert "95% intervals: first 0–1, last 2–3" in words
    assert "relative depth 0.33–0.67; 93% of the effect (asked: 90%)" in words


def test_without_a_kernel_head_the_figure_says_so():
    found = ranking(classes={(0, 1): "driver"})
    words = texts(found.figure().svg())
    assert "no kernel head confirmed" in words
    assert "The band: none of the 4 layers" in words
    lost = replace(ranking(), band=None)
    words = texts(lost.figure().svg())
    assert "no kernel head confirmed" not in words, "there is one, and no band of it"
    assert "no band: nothing is lost without them" in words


def test_one_layer_and_columns_of_nan():
    assert drawn(ranking(1, 1, {(0, 0): "kernel head"}).figure().svg())["measured"] == 1
    empty = ranking(2, 2, {})
    assert drawn(empty.figure().svg()) == {"measured": 0, "strip": 4}
    nothing = replace(empty, columns={n: torch.full_like(c, torch.nan) for n, c in empty.columns.items()})
    svg = nothing.figure().svg()
    assert drawn(svg) == {"measured": 0, "strip": 0}
    assert any("4 heads whose vote could not be scored are left out" in t for t in texts(svg))
    assert nothing.figure().png().startswith(b"\x89PNG")
    endless = {n: c.clone() for n, c in ranking().columns.items()}
    endless["margin"][2, 1] = torch.inf
    json.dumps(replace(ranking(), columns=endless).figure().spec(), allow_nan=False)


def test_a_thousand_heads():
    classes = {(layer, head): "driver" for layer in range(64) for head in range(0, 16, 2)}
    found = ranking(64, 16, classes)
    start = time.perf_counter()
    figure = found.figure()
    spec = json.dumps(figure.spec())
    assert time.perf_counter() - start < 5
    assert len(spec) < 500_000
    assert drawn(figure.svg()) == {"measured": 512, "strip": 512}


def test_names_are_text(tmp_path):
    found = ranking(model=SNEAKY, task=HOSTILE, control=SNEAKY)
    for suffix in (".html", ".svg"):
        written = found.figure().save(tmp_path / f"x{suffix}").read_text()
        assert not has_live_markup(without_scripts(written))
        assert not has_live_markup(written), "nor inside a script"
        assert "onerror" in written, "it is shown"
    assert not has_live_markup(found._repr_html_())


@needs_browser
@pytest.mark.browser
def test_a_click_in_the_legend_sets_a_class_off(tmp_path):
    found = ranking(classes=ALL)
    path = tmp_path / "cell.html"
    path.write_text(
        "<!doctype html><meta charset=utf-8><body>"
        + found.figure()._repr_html_()
        + """
<script>
const read = () => Object.fromEntries([...document.querySelectorAll('path[aria-label*="class: "]')]
  .map(p => [p.getAttribute('aria-label').match(/head: (L\\d+H\\d+)/)?.[1], p.getAttribute('opacity')]).filter(x => x[0]));
setTimeout(() => {
  const before = read();
  const entry = [...document.querySelectorAll('text')].find(t => t.textContent === 'driver');
  const box = entry.getBoundingClientRect();
  const at = {bubbles: true, clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, view: window};
  for (const kind of ['pointerover', 'mouseover', 'pointerdown', 'mousedown', 'pointerup', 'mouseup', 'click'])
    entry.dispatchEvent(new MouseEvent(kind, at));
  setTimeout(() => {
    const out = document.createElement('pre');
    out.id = 'out';
    out.textContent = JSON.stringify({before, after: read()});
    document.body.append(out);
  }, 3000);
}, 8000);
</script>""",
        encoding="utf-8",
    )
    dom, console = browse(path, tmp_path, wait=30000)
    assert console == []
    out = re.search(r'<pre id="out">(.*?)</pre>', dom, re.S)
    assert out is not None, dom[-2000:]
    told = json.loads(html.unescape(out.group(1)))
    assert set(told["before"]) == {str(head) for head in found.classes}
    assert {name for name, x in told["before"].items() if float(x) < 0.5} == set()
    assert {name for name, x in told["after"].items() if float(x) > 0.5} == {"L0H2"}
