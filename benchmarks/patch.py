"""What it costs to patch every head's edge from the answer to the labels: `python -m benchmarks.patch`.

One prompt of 640 tokens, a model of GPT-2-small's shape (12 layers of 12 heads, width 768; random weights, small
vocabulary). Compared, in one process and in turns: the plain forward pass of the prompt by the same model class; all
heads' edges by `patch_labels`, exact and to first order; and the same cells by TransformerLens's own
`patching.generic_activation_patch`, one forward pass a cell, with a setter that does the same to `hook_z`.
The numbers of both are compared too. On one thread: OMP_NUM_THREADS=1. `--tiny` checks this file in seconds.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import interleave, median, ratio
from benchmarks.setup import Setup, build, make_prompts
from benchmarks.tables import Table, environment
from icl_kernel_lens import PromptSet, corrupt, patch_labels
from icl_kernel_lens.results.patch_effects import PatchEffects

SMALL = Setup(model="gpt2", layers=12, heads=12, width=768, demos=32, demo_tokens=19, tests=1, test_tokens=32)
TINY = replace(SMALL, layers=2, heads=2, width=32, demos=4, demo_tokens=6, test_tokens=5)


def generic(model: Any, clean: PromptSet, corrupted: PromptSet, cells: list[tuple[int, int]]) -> torch.Tensor:
    """Label logits of each cell by TransformerLens's sweep."""
    import pandas as pd
    from transformer_lens import patching

    at, positions = int(clean.answer_pos[0]), clean.label_pos[0]
    names = [
        f"blocks.{layer}.attn.hook_{x}" for layer in range(model.cfg.n_layers) for x in ("pattern", "v", "z")
    ]
    options = {"names_filter": names}
    _, there = model.run_with_cache(clean.tokens, **options)
    _, here = model.run_with_cache(corrupted.tokens, **options)

    def setter(z: torch.Tensor, index: Any, _source: Any) -> torch.Tensor:
        layer, head = int(index[0]), int(index[1])
        z = z.clone()
        for run, sign in ((there, 1), (here, -1)):
            weights = run[f"blocks.{layer}.attn.hook_pattern"][0, head, at, positions]
            z[0, at, head] += sign * (weights @ run[f"blocks.{layer}.attn.hook_v"][0, positions, head])
        return z

    found = patching.generic_activation_patch(
        model,
        corrupted.tokens,
        there,
        patching_metric=lambda logits: logits[0, at, clean.label_tokens[0, 0]],
        patch_setter=setter,
        activation_name="z",
        index_df=pd.DataFrame(cells, columns=["layer", "head"]),
    )
    return found.flatten()


def compare(kind: Any, setup: Setup, rounds: int, cells: int) -> tuple[list[object], dict[str, Any]]:
    """One model class: a row of the table, and the numbers."""
    model = build(kind, setup)
    clean = make_prompts(setup, shared=True, seed=0)
    corrupted = corrupt(clean, "map_labels", seed=0)
    options: dict[str, Any] = {"clean": clean, "corrupted": corrupted, "offsets": (0,), "progress": False}
    results: dict[str, PatchEffects] = {}

    def ours(method: Any) -> None:
        results[method] = patch_labels(model, method=method, **options)

    def plain() -> None:
        with torch.no_grad():
            model(clean.tokens, return_type="logits")

    ours("exact")  # verification, and what is made at the first run
    every = [(layer, head) for layer in range(setup.layers) for head in range(setup.heads)]
    some = every[:: max(1, len(every) // cells)]
    peer: dict[str, torch.Tensor] = {}

    def sweep() -> None:
        with torch.no_grad():
            peer["scores"] = generic(model, clean, corrupted, some)

    seconds = interleave(
        {"plain": plain, "exact": lambda: ours("exact"), "first order": lambda: ours("attribution")}, rounds
    )
    seconds |= interleave({"generic": sweep}, 1, each={"generic": len(every) / len(some)})
    exact, estimated = results["exact"], results["attribution"]
    assert exact.label_scores is not None
    scores = torch.stack([exact.label_scores[0, layer, head, 0, 0] for layer, head in some])
    gap = float((scores - peer["scores"].cpu()).abs().max())
    a, b = exact.mean().flatten(), estimated.mean().flatten()
    correlation = float(torch.corrcoef(torch.stack([a, b]))[0, 1])
    faster = median(seconds["generic"]) / median(seconds["exact"])
    numbers = {
        "seconds": seconds,
        "difference": gap,
        "correlation of first order with exact, all cells": correlation,
        "generic / exact": faster,
    }
    row: list[object] = [
        {"hooked": "HookedTransformer", "bridge": "TransformerBridge"}[kind],
        f"{median(seconds['plain']):.2f}",
        ratio(seconds, "exact", "plain"),
        ratio(seconds, "first order", "plain"),
        f"{faster:.0f}"
        + ("" if len(some) == len(every) else f" ({len(some)} of {len(every)} cells, multiplied)"),
        f"{gap:.0e}",
        f"{correlation:.3f}",
    ]
    return row, numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a small model, to check this file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cells", type=int, default=144, help="cells that the generic sweep is timed on")
    parser.add_argument("--kinds", nargs="+", default=["hooked", "bridge"])
    parser.add_argument("--out", type=Path, help="folder for the numbers")
    given = parser.parse_args()
    setup = TINY if given.tiny else SMALL
    rows, numbers = [], {}
    for kind in given.kinds:
        row, found = compare(kind, setup, given.rounds, given.cells)
        rows.append(row)
        numbers[kind] = found
        print(json.dumps(found), flush=True)
    table = Table(
        f"Edges of all {setup.layers * setup.heads} heads, one prompt of {setup.length} tokens",
        [
            "model",
            "plain forward, s",
            "exact ÷ plain",
            "first order with its checks ÷ plain",
            "generic sweep ÷ exact",
            "largest difference, logits",
            "correlation of first order with exact",
        ],
        rows,
        "Median (smallest–largest) over rounds.",
    )
    print(table.text())
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        record = {"environment": environment(), "table": table.to_dict(), "numbers": numbers}
        (given.out / "patch.json").write_text(json.dumps(record, indent=1) + "\n")
        print(table.markdown())


if __name__ == "__main__":
    main()
