"""The head map: every cell's number and every weight, the head it frames, and the click that chooses another."""

from __future__ import annotations

import html
import json
import re

import pytest
import torch
from charts.hostile import browse, hostile_evidence, texts
from support import needs_browser

from icl_kernel_lens import head_vote
from icl_kernel_lens.charts.head_map import DIGITS, head_map_figure


def test_the_figure_holds_the_numbers():
    """Every cell's value and every packed weight, back from the specification."""
    scores = head_vote(hostile_evidence())
    rows = scores.figure().spec()["datasets"]["heads"]
    assert len(rows) == 12
    strongest, names = scores.strongest_control()
    for row in rows:
        at = row["layer"], row["head"]
        assert row["value"] == pytest.approx(scores.mean()[at].item(), abs=1e-4)
        assert row["control"] == pytest.approx(strongest[at].item(), abs=1e-4)
        assert row["control_name"] == names[at[0]][at[1]].replace("_", " ")
        weights = scores.shown.weights[:, at[0], at[1]]
        share = (weights / weights.sum(-1, keepdim=True)).flatten()
        packed = [int(row["w"][k : k + DIGITS]) / (10**DIGITS - 1) for k in range(0, len(row["w"]), DIGITS)]
        torch.testing.assert_close(torch.tensor(packed), share, atol=6e-5, rtol=0)


def plain(values: dict[str, float], *, controls: dict[str, float] | None = None, **more):
    """A map of these heads, the first of them framed."""
    rows = [{"head": head, "a_score": x, "low": x - 0.1, "high": x + 0.1} for head, x in values.items()]
    for row in rows if controls else ():
        control = (controls or {})[row["head"]]
        row |= {
            "control": control,
            "strongest_control": "label_prior",
            "above_control_low": row["a_score"] - control,
        }
    return head_map_figure(rows, score="a_score", title="how", of="it", measured="7 prompts", **more)


def framed(figure) -> dict:
    (pick,) = [p for p in figure.spec()["params"] if p["name"] == "pick"]
    return pick["value"][0]


def test_rows_make_a_map_and_the_first_is_framed():
    values = {"L1H0": 0.9, "L0H0": 0.5, "L0H1": 0.25, "L1H1": float("nan")}
    figure = plain(values)
    rows = figure.spec()["datasets"]["heads"]
    assert [row["name"] for row in rows] == ["L0H0", "L0H1", "L1H0", "L1H1"]
    assert [row["value"] for row in rows] == [0.5, 0.25, 0.9, None]
    assert "control" not in rows[0]
    assert framed(figure) == {"layer": 1, "head": 0}
    words = texts(figure.svg())
    assert {"How", "it: 7 prompts", "a score"} <= set(words)
    assert "framed: the head with the largest a score; layers and heads from 0" in words
    assert "its strongest control" not in words


@pytest.mark.parametrize(
    ("control", "said"),
    [
        (0.5, "most surely above its control"),
        (0.95, "of the best lower bound over its control; none is surely above"),
    ],
)
def test_what_the_frame_says_beside_a_control(control, said):
    figure = plain({"L0H1": 0.9, "L0H0": 0.8}, controls={"L0H1": control, "L0H0": 1.0})
    words = texts(figure.svg())
    assert f"framed: the head {said}; layers and heads from 0" in words
    assert "its strongest control" in words
    assert framed(figure) == {"layer": 0, "head": 1}


def test_nothing_scored_and_nothing_finite_are_drawn_grey():
    for value in (float("nan"), float("inf")):
        figure = plain({"L0H1": value, "L0H0": value})
        assert {row["value"] for row in figure.spec()["datasets"]["heads"]} == {None}
        json.dumps(figure.spec(), allow_nan=False)
        assert figure.png().startswith(b"\x89PNG")
        assert figure.svg().count('fill="#d9d9d9"') == 2, "neither left out nor drawn as 0"
    assert framed(plain({"L0H1": float("nan"), "L0H0": float("nan")})) == {"layer": 0, "head": 0}


def test_weights_of_zero_stay_zero_and_demonstrations_keep_their_order():
    weights = torch.zeros(1, 1, 2, 2)
    weights[0, 0, 0] = torch.tensor([0.1, 0.3])
    demos = [
        {"label": label, "rank": rank, "text": "t", "answer": "red"}
        for rank, label in ((2, "red"), (0, "blue"))
    ]
    spec = plain({"L0H0": 0.5, "L0H1": 0.25}, weights=weights, demos=demos).spec()
    top = 10**DIGITS - 1
    packed = [f"{round(x * top):0{DIGITS}d}" for x in (0.25, 0.75)]
    assert [row["w"] for row in spec["datasets"]["heads"]] == ["".join(packed), "0" * 2 * DIGITS]
    assert [row["key"] for row in spec["datasets"]["demos"]] == [0, 1]
    colours = [
        layer["encoding"]["color"]["scale"]
        for layer in spec["vconcat"][1]["layer"]
        if "scale" in layer["encoding"].get("color", {})
    ]
    assert colours[0]["domain"] == [0, 1, 2], (
        "every class up to the last, so that colours are the same elsewhere"
    )


def test_bars_show_attention_on_one_scale_for_all_heads():
    """A head of next to no attention has next to no bars, and the title says how much it is."""
    weights = torch.tensor([[[[0.1, 0.1, 0.6], [0.0005, 0.0005, 0.003]]]])
    demos = [{"label": str(i), "rank": i, "text": "t", "answer": "1"} for i in range(3)]
    figure = plain({"L0H1": 0.9, "L0H0": 0.5}, weights=weights, demos=demos)
    rows = figure.spec()["datasets"]["heads"]
    assert [row["sum"] for row in rows] == [[pytest.approx(0.8)], [pytest.approx(0.004)]]
    assert rows[0]["w"] == rows[1]["w"]
    bars = figure.spec()["vconcat"][1]["layer"][0]["encoding"]["y"]
    assert bars["field"] == "attention"
    assert bars["scale"]["domain"] == [0, pytest.approx(0.6)]
    words = " ".join(texts(figure.svg()))
    assert all(f" {demo} " in words for demo in range(3)), "every demonstration has its bar"
    assert "Attention of L0H1 on the demonstrations of one prompt, 0.004 in all" in words


@needs_browser
@pytest.mark.browser
def test_a_click_on_a_head_shows_its_weights(tmp_path):
    """The notebook fragment: a click on another cell redraws the bars for that head."""
    scores = head_vote(hostile_evidence())
    best = str(scores.best())
    other = "L0H3"
    assert best != other
    path = tmp_path / "cell.html"
    path.write_text(
        "<!doctype html><meta charset=utf-8><body>"
        + scores.figure()._repr_html_()
        + """
<script>
const read = () => [...document.querySelectorAll('text')].map(t => t.textContent).find(t => t.startsWith('Attention of'));
const bars = () => [...document.querySelectorAll('path[aria-label^="demonstration"]')].map(p => p.getAttribute('aria-label')).join();
setTimeout(() => {
  const before = [read(), bars()];
  const cell = [...document.querySelectorAll('path[aria-label]')].find(p => /head: 3; layer: 0/.test(p.getAttribute('aria-label')));
  const box = cell.getBoundingClientRect();
  const at = {bubbles: true, clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, view: window};
  for (const kind of ['pointerover', 'mouseover', 'pointerdown', 'mousedown', 'pointerup', 'mouseup', 'click'])
    cell.dispatchEvent(new MouseEvent(kind, at));
  setTimeout(() => {
    const out = document.createElement('pre');
    out.id = 'out';
    out.textContent = JSON.stringify({before, after: [read(), bars()]});
    document.body.append(out);
  }, 3000);
}, 8000);
</script>""",
        encoding="utf-8",
    )
    dom, console = browse(path, tmp_path, wait=30000)
    assert console == []
    found = re.search(r'<pre id="out">(.*?)</pre>', dom, re.S)
    assert found is not None, dom[-2000:]
    told = json.loads(html.unescape(found.group(1)))
    assert told["before"][0].startswith(f"Attention of {best} ")
    assert told["after"][0].startswith(f"Attention of {other} ")
    assert told["before"][1] != told["after"][1]
