"""The figure of located heads: every number where it belongs, nothing at 0 that was not measured."""

from __future__ import annotations

import html
import json
import re
import time
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from charts.hostile import HOSTILE, SNEAKY, browse, has_live_markup, texts, without_scripts
from charts.located import ranking
from support import needs_browser

from icl_kernel_lens.charts.ranking import HEIGHT, LETTER, LINE, MARKS, NAMED, WIDTH, name_places
from icl_kernel_lens.results.criteria import HEAD_CLASSES, Band, Criteria

ALL = {divmod(at, 3): name for at, name in enumerate(HEAD_CLASSES)}
"""A head of every class, in six layers of three."""


def drawn(svg: str) -> dict[str, int]:
    """Symbols in the two views of heads, told apart by what their aria labels say."""
    labels = re.findall(r'aria-label="([^"]*)"', svg)
    return {
        "measured": sum("values carry:" in s and "class: " in s and "head: " in s for s in labels),
        "strip": sum("layer: " in s and "class: " in s and "values carry:" not in s for s in labels),
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
        cut = not bool(found.columns["transport"][head].isnan())
        own = found.columns["fit"][head] if cut else found.choosing["fit"][head]
        assert row["x"] == pytest.approx(own.item(), abs=1e-4)
        for column in (
            "agreement",
            "control",
            "fit",
            "fit_low",
            "fit_high",
            "transport",
            "transport_low",
            "transport_high",
            "logit_diff_drop",
        ):
            value = found.columns[column][head].item()
            if value == value:
                assert row[column] == pytest.approx(value, abs=1e-4)
            else:
                assert column not in row, "what was not measured is no number"
        assert "label_shift" not in row


def test_heads_not_measured_lie_in_the_strip_and_not_at_zero():
    found = ranking()
    svg = found.figure().svg()
    assert drawn(svg) == {"measured": 2, "strip": 10}
    assert "part not measured: 10 heads, at their fit in the choosing half" in texts(svg)
    every = ranking(2, 2, {(0, 0): "driver"}, [(i, j) for i in range(2) for j in range(2)])
    svg = every.figure().svg()
    assert drawn(svg) == {"measured": 4, "strip": 0}
    assert "not measured" not in svg


def test_a_fit_whose_part_was_not_measured_has_no_height_and_no_interval():
    """Where shares of the label part are undefined; and a part without a fit has no place at all."""
    found = ranking()
    nothing = torch.full((4, 3), torch.nan)
    undefined = {f"transport{end}": nothing for end in ("", "_low", "_high")}
    figure = replace(found, columns={**found.columns, **undefined}).figure()
    rows = {row["head"]: row for row in figure.spec()["datasets"]["heads"]}
    assert rows["L2H1"]["x"] == pytest.approx(found.columns["fit"][2, 1].item(), abs=1e-4)
    assert not {"fit_low", "fit_high", "transport"} & set(rows["L2H1"])
    assert drawn(figure.svg()) == {"measured": 0, "strip": 12}
    blind = replace(found, columns={**found.columns, "fit": nothing}).figure()
    assert "L2H1" not in {row["head"] for row in blind.spec()["datasets"]["heads"]}
    assert any("2 heads whose fit was not measured are left out" in t for t in texts(blind.svg()))


def test_a_class_has_one_colour_and_shape_in_every_figure():
    few, many = ranking().figure().spec(), ranking(6, 3, ALL).figure().spec()
    for channel in ("color", "shape"):
        scales = [e["scale"] for s in (few, many) for e in encodings(s, channel) if e.get("field") == "class"]
        assert scales
        assert all(scale == scales[0] for scale in scales)
        assert scales[0]["domain"] == list(HEAD_CLASSES)
        assert list(HEAD_CLASSES) == list(MARKS), "charts and results know the same classes, in one order"
        assert channel == "shape" or len(set(scales[0]["range"])) == len(HEAD_CLASSES), "two of one colour"
    legends = {
        tuple(e["legend"]["values"])
        for e in encodings(few, "color")
        if e.get("field") == "class" and e["legend"]
    }
    assert legends == {("kernel head", "shadow", "neither")}, (
        "only the classes there are, in the stated order"
    )
    assert len(set(MARKS.values())) == len(HEAD_CLASSES), "two classes look alike"
    (select,) = [p for p in many["params"] if p["name"] == "chosen"]
    assert select["bind"] == "legend"
    assert select["select"] == {"type": "point", "fields": ["class"]}


SEEN_BY = {
    "all cones": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "no long-wave cones": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "no middle-wave cones": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
}
"""Linear RGB as seen without one kind of cone (Machado, Oliveira & Fernandes 2009, severity 1)."""


def lab(colour: str, seen: list[list[float]]) -> np.ndarray:
    """CIELAB of a colour as it is seen."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = (np.array(seen) @ linear).clip(0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    t = xyz / (0.9505, 1.0, 1.089)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eye", SEEN_BY)
def test_classes_of_one_shape_are_told_apart_by_the_colour_blind(eye):
    """As far apart as two colours of Okabe and Ito's that are nearly alike to them; and every colour is seen on white."""
    colours = {name: lab(colour, SEEN_BY[eye]) for name, (colour, _) in MARKS.items()}
    for a, b in combinations(MARKS, 2):
        if MARKS[a][1] == MARKS[b][1]:
            assert np.linalg.norm(colours[a] - colours[b]) > 20, (a, b)
    okabe_ito = "#000000 #E69F00 #56B4E9 #009E73 #F0E442 #0072B2 #D55E00 #CC79A7".split()
    used = {colour: name for name, (colour, _) in MARKS.items()}
    assert set(okabe_ito) <= set(used)
    assert {used[c] for c in okabe_ito} >= {"kernel head", "pair kernel", "shadow", "echo", "driver"}


def test_located_heads_are_named_apart_from_each_other():
    heads = {(18 + i % 4, i): ("kernel head", "pair kernel")[i % 2] for i in range(12)}
    found = ranking(28, 16, heads)
    words = texts(found.figure().svg())
    for layer, head in heads:
        assert words.count(f"L{layer}H{head}") == 2, "the name and its white rim"
    assert "L0H0" not in words
    rows = [{"head": f"L{i}H{i}", "x": 0.5 + i / 200, "transport": 0.5 - i / 300} for i in range(10)]
    placed = name_places(rows, rows, (0.0, 1.0), (0.0, 1.0))
    boxes = [
        (p["written_x"] * WIDTH, (1 - p["written_y"]) * HEIGHT, LETTER * len(p["head"]) / 2) for p in placed
    ]
    for i, (x, y, half) in enumerate(boxes):
        assert half < x < WIDTH - half
        for other, above, wide in boxes[:i]:
            assert abs(x - other) >= half + wide or abs(y - above) >= LINE, (rows[i], placed)
    crowd = ranking(28, 16, {(layer, head): "kernel head" for layer in range(20, 24) for head in range(16)})
    words = texts(crowd.figure().svg())
    assert sum(bool(re.fullmatch(r"L\d+H\d+", w)) for w in words) == 2 * NAMED
    assert any(f"named: the {NAMED} located heads that carry most" in w for w in words)


def test_the_smallest_effects_are_lines():
    found = replace(ranking(), criteria=Criteria(fit=0.07, effect=0.03))
    data = found.figure().spec()["datasets"].values()
    at = {row["at"] for rows in data for row in rows if "at" in row and "end" not in row}
    assert at == {-0.03, 0, 0.03, 0.07}
    assert any("(fit 0.07, share 0.03)" in t for t in texts(found.figure().svg()))


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


def test_without_a_located_head_the_figure_says_so():
    found = ranking(classes={(0, 1): "driver"})
    words = texts(found.figure().svg())
    assert "no head located" in words
    assert "The band: none of the 4 layers" in words
    lost = replace(ranking(), band=None)
    words = texts(lost.figure().svg())
    assert "no head located" not in words, "there is one, and no band of it"
    assert "no band: nothing is lost without them" in words


def test_one_layer_and_columns_of_nan():
    assert drawn(ranking(1, 1, {(0, 0): "kernel head"}).figure().svg())["measured"] == 1
    empty = ranking(2, 2, {})
    assert drawn(empty.figure().svg()) == {"measured": 0, "strip": 4}
    missing = {n: torch.full_like(c, torch.nan) for n, c in empty.columns.items()}
    nothing = replace(empty, columns=missing, choosing=dict.fromkeys(empty.choosing, missing["fit"]))
    svg = nothing.figure().svg()
    assert drawn(svg) == {"measured": 0, "strip": 0}
    assert any("4 heads whose fit was not measured are left out" in t for t in texts(svg))
    assert nothing.figure().png().startswith(b"\x89PNG")
    endless = {n: c.clone() for n, c in ranking().columns.items()}
    endless["fit"][2, 1] = torch.inf
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
    found = ranking(6, 3, ALL)
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
    assert {name for name, x in told["after"].items() if float(x) > 0.5} == {"L4H0"}
