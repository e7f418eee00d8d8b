"""Texts that are markup, evidence full of them, a browser to open pages in, and what a picture says."""

from __future__ import annotations

import html
import re
import subprocess
from dataclasses import replace
from functools import cache

from support import chromium

from icl_kernel_lens import load_model, load_task, read

HOSTILE = "</script><img src=x onerror=\"document.title='pwned'\">"
SNEAKY = "<img/src='x'/onerror=document.title='pwned'>"


@cache
def hostile_evidence(demos=16):
    """The bundled model's evidence with markup in every place where a data set's text can appear."""
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


def without_scripts(page: str) -> str:
    return re.sub(r"<script.*?</script>", "", page, flags=re.S)


def has_live_markup(page: str) -> bool:
    """Whether HOSTILE or SNEAKY became an element."""
    return re.search(r"<img[ /]+src=.?x", page) is not None


def texts(svg: str) -> list[str]:
    return [html.unescape(t) for t in re.findall(r"<(?:text|tspan)[^>]*>([^<]+)<", svg)]
