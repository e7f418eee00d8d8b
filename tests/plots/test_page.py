"""Figures and pages: executed, offline, and safe with hostile text; opened in a real browser."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace

import pytest
import torch
from support import chromium, needs_browser

HOSTILE = "</script><img src=x onerror=\"document.title='pwned'\">"
SNEAKY = "<img/src='x'/onerror=document.title='pwned'>"


def hostile_evidence(demos=16):
    """The bundled model's evidence with markup in every place where a data set's text can appear."""
    from icl_kernel_lens import load_model, load_task, read

    model = load_model("mini", device="cpu")
    evidence = read(model, load_task("topics").prompts(model, demos=demos, count=12), progress=False)
    p = evidence.prompts
    strings = tuple(
        tuple((HOSTILE, SNEAKY, "&lt;b&gt;", "a\u2028b")[i % 4] for i in range(len(row))) for row in p.strings
    )
    words = tuple((HOSTILE, SNEAKY) for _ in p.label_words)
    info = replace(p.info, task=HOSTILE, origin=SNEAKY)
    prompts = replace(p, strings=strings, label_words=words, info=info)
    return replace(evidence, prompts=prompts, run=replace(evidence.run, model=SNEAKY, prompts=info))


@pytest.fixture(scope="module")
def hostile():
    return hostile_evidence()


def browse(path, tmp_path, wait=20000):
    """The page's DOM after its scripts, and what it wrote to the console; no network is reachable."""
    out = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND",
            "--enable-logging=stderr", f"--virtual-time-budget={wait}", "--dump-dom", path.as_uri(),
        ],
        capture_output=True, text=True, timeout=180, check=True,
    )  # fmt: skip
    console = re.findall(r'CONSOLE:\d+\] (".*)', out.stderr)
    # A machine without a graphics card makes Chromium itself say so; nothing a page can do about it.
    return out.stdout, [line for line in console if "WebGL" not in line and "GPU stall" not in line]


@needs_browser
@pytest.mark.browser
def test_the_report_opens_offline_without_an_error(hostile, tmp_path):
    from icl_kernel_lens import head_vote
    from icl_kernel_lens.plots.report import write_report

    scores = [head_vote(hostile), head_vote(hostile, pooling="span_max")]
    path = write_report(tmp_path / "report.html", hostile, scores, None)
    dom, console = browse(path, tmp_path)
    assert console == []
    title = re.search(r"<title>(.*?)</title>", dom, re.S)
    assert title is not None
    assert "Kernel-regression heads of" in title.group(1)  # not 'pwned'
    body = dom[dom.index("<body") :]
    assert body.count('class="marks"') >= 2  # both charts are alive
    live = re.sub(r"<script.*?</script>", "", body, flags=re.S)
    assert "onerror" in live  # the text is shown …
    assert not re.search(r"<img[ /]+src=.?x", live)  # … and is no element
    assert "L2H1" in live  # the token view has its head buttons
    assert "http" not in re.sub(r"http://www.w3.org/\S+", "", live)


@needs_browser
@pytest.mark.browser
def test_a_click_on_a_head_shows_its_weights(hostile, tmp_path):
    """The notebook fragment: a click on another cell redraws the bars for that head."""
    from icl_kernel_lens import head_vote

    scores = head_vote(hostile)
    best = str(scores.best())
    other = "L0H3"
    assert best != other
    path = tmp_path / "cell.html"
    path.write_text(
        "<!doctype html><meta charset=utf-8><body>"
        + scores.figure()._repr_html_()
        + """
<script>
const read = () => [...document.querySelectorAll('text')].map(t => t.textContent).find(t => t.startsWith('Weights of'));
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
    import html

    told = json.loads(html.unescape(found.group(1)))
    assert told["before"][0].startswith(f"Weights of {best} ")
    assert told["after"][0].startswith(f"Weights of {other} ")
    assert told["before"][1] != told["after"][1]


@needs_browser
@pytest.mark.browser
def test_the_token_view_shows_hostile_tokens_as_text(hostile, tmp_path):
    from icl_kernel_lens import HeadRef, token_view

    view = token_view(hostile, [HeadRef(0, 0), HeadRef(2, 1)])
    path = tmp_path / "tokens.html"
    path.write_text(
        f"<!doctype html><meta charset=utf-8><title>safe</title><body>{view._repr_html_()}", encoding="utf-8"
    )
    dom, console = browse(path, tmp_path)
    assert console == []
    assert "<title>safe</title>" in dom
    live = re.sub(r"<script.*?</script>", "", dom, flags=re.S)
    assert not re.search(r"<img[ /]+src=.?x", live)
    assert "onerror" in live


def test_figures_export_without_a_browser(hostile, tmp_path):
    from icl_kernel_lens import head_vote
    from icl_kernel_lens.errors import ResultError

    figure = head_vote(hostile).figure()
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<svg"), (".json", b"{"), (".html", b"<!doctype")):
        assert figure.save(tmp_path / f"deep/x{suffix}").read_bytes().startswith(start)
    with pytest.raises(ResultError, match=r"saved as one of \.png, \.svg, \.html, \.json; 'x\.pdf'"):
        figure.save(tmp_path / "x.pdf")
    assert "Figure(" in repr(figure)
    assert hostile.figure().png().startswith(b"\x89PNG")
    svg = (tmp_path / "deep/x.svg").read_text()
    assert "<img" not in svg


def test_the_figure_holds_the_numbers(hostile):
    """Every cell's value and every packed weight, back from the specification."""
    from icl_kernel_lens import head_vote
    from icl_kernel_lens.plots.head_map import DIGITS

    scores = head_vote(hostile)
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


def test_the_averaged_map_holds_the_profile(hostile):
    (rows,) = hostile.figure().spec()["datasets"].values()
    label = {r["row"]: r["attention"] for r in rows if r["place"] == "label 3"}
    for layer in range(3):
        for head in range(4):
            expected = hostile.profile[layer, head, 3 * 31 + 30].item()
            assert label[f"L{layer}H{head}"] == pytest.approx(expected, abs=1e-5)
    text = [r["attention"] for r in rows if r["row"] == "L1H2" and r["place"] == "text 5"]
    assert sum(text) / 6 == pytest.approx(hostile.profile[1, 2, 5 * 31 : 5 * 31 + 30].mean().item(), abs=1e-4)


def test_long_prompts_are_cropped(hostile):
    """Beyond 128 tokens: all labels and the test input stay, gaps are marked."""
    from icl_kernel_lens import HeadRef, token_view
    from icl_kernel_lens.errors import ResultError

    assert len(hostile.prompts.strings[0]) > 0
    length = len(hostile.prompts.strings[0])
    view = token_view(hostile, [HeadRef(2, 1)])
    assert len(view.props["tokens"]) == length <= 140
    wide = 1000
    p = hostile.prompts
    scale = torch.linspace(200, 900, 16).long()
    spans = torch.stack([scale, scale + 1], -1)[None].expand(len(p), -1, -1)
    stretched = replace(
        p,
        tokens=torch.zeros(len(p), wide, dtype=torch.long),
        roles=torch.full((len(p), wide), 3),
        lengths=torch.full((len(p),), wide),
        answer_pos=torch.full((len(p),), wide - 1),
        label_spans=spans,
        demo_spans=torch.stack([scale - 2, scale + 1], -1)[None].expand(len(p), -1, -1),
        strings=(tuple(f"t{i}" for i in range(wide)),),
    )
    evidence = replace(hostile, prompts=stretched, rows=torch.rand(1, 3, 4, wide))
    view = token_view(evidence, [HeadRef(0, 1), HeadRef(2, 1)])
    tokens = view.props["tokens"]
    kept = [t for t in tokens if t != "…"]
    assert len(kept) == 128
    assert tokens.count("…") >= 10
    assert {f"t{i}" for i in scale.tolist()} <= set(kept)
    assert (kept[0], kept[-1]) == ("t0", f"t{wide - 1}"), "position 0, where sinks are, and the answer"
    at = tokens.index("t999")
    assert view.props["values"][at][1] == pytest.approx(evidence.rows[0, 2, 1, 999].item(), abs=1e-4)
    assert len(json.dumps(view.props)) < 100_000
    with pytest.raises(ResultError, match="shows 1 to 4 heads; got 5"):
        token_view(hostile, [HeadRef(0, 0)] * 5)
    with pytest.raises(ResultError, match="there is no head L9H0"):
        token_view(hostile, [HeadRef(9, 0)])
    with pytest.raises(ResultError, match="kept for the first 8 prompts; got prompt 8"):
        token_view(hostile, [HeadRef(0, 0)], prompt=8)


def test_objects_show_themselves(hostile):
    from icl_kernel_lens import head_vote

    for thing in (hostile, head_vote(hostile), hostile.prompts):
        page = thing._repr_html_()
        static = re.sub(r"<script.*?</script>", "", page, flags=re.S)
        assert not re.search(r"<img[ /]+src=.?x", static)
        assert repr(thing)
