"""Is label influence to first order what replaced labels do, and what does it cost? Why there is no gradient method.

    python -m benchmarks.gradients [--data FOLDER] [--out FOLDER]

    s_l(P with y_i → c) ≈ s_l(P) + Σ_p ⟨∂s_l/∂x_p, x*_p − x_p⟩          p over the tokens of demonstration i's label

x is what enters the first layer, x* the same with c written there: a pass forward, one back for each label, and one forward for
each other label, of whole prompts. Replaced prompts share what stands before the label, and test inputs of a set share all
demonstrations. The bundled model on its topics; with --data, SmolLM2 on SST-2 from that folder.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

import icl_kernel_lens as ikl
from benchmarks.tables import Table, save
from icl_kernel_lens.models.adapter import InterceptableAdapter, as_adapter
from icl_kernel_lens.numbers.influence import label_pull
from icl_kernel_lens.prompts.relabel import relabelled
from studies.fetch import cache_folder, fetch
from studies.sources import find_task

ENTERING = (0, "hook_resid_pre")
BATCH = 4
CASES = (("mini", "topics", 8), ("mini", "topics", 16), ("smollm2", "sst2", 8))
"""Model, task, demonstrations."""
PROMPTS, SETS = 16, 4


def to_first_order(adapter: InterceptableAdapter, batch: ikl.PromptSet) -> Float[Tensor, "prompt demo"]:
    """G of every demonstration, to first order."""
    entered: list[Tensor] = []

    def begin(x: Tensor) -> Tensor:
        entered.append(x.detach().clone().requires_grad_())
        return entered[0]

    def run(prompts: ikl.PromptSet, edit: object, *, gradients: bool) -> Tensor:
        tokens = prompts.tokens[:, : int(prompts.lengths.max())]
        with adapter.editing({ENTERING: edit}):  # pyright: ignore[reportArgumentType]
            logits = adapter.forward(
                tokens, prompts.lengths, prompts.answer_pos[:, None], gradients=gradients
            )
        return logits[:, 0].gather(1, prompts.label_tokens)

    with torch.enable_grad():
        scores = run(batch, begin, gradients=True)
        by_label = [
            torch.autograd.grad(scores[:, label].sum(), entered, retain_graph=True)[0]
            for label in range(batch.labels)
        ]
    shape = (len(batch), batch.demos, batch.labels, batch.labels)
    replaced = torch.full(shape, torch.nan)
    rows, demos = torch.arange(len(batch)), torch.arange(batch.demos)
    for by in range(1, batch.labels):
        label = (batch.demo_labels + by) % batch.labels
        seen: list[Tensor] = []
        run(relabelled(batch, rows, label), lambda x, seen=seen: seen.append(x.detach()), gradients=False)
        moved = seen[0] - entered[0].detach()
        terms = torch.stack([(gradient * moved).sum(-1) for gradient in by_label], -1)
        at = batch.label_pos[..., None].expand(*shape[:2], batch.labels)
        replaced[rows[:, None], demos, label] = scores.detach()[:, None] + terms.gather(1, at)
    return label_pull(scores.detach(), replaced, batch.demo_labels).nanmean(-1)


def compared(name: str, task: str, demos: int, data: Path | None) -> list[str]:
    """One case: correlation and slope, and what both cost."""
    model = ikl.load_model(name if name == "mini" else str(fetch(name, cache_folder())), device="cpu")
    tasks = ikl.load_task(task) if name == "mini" else find_task(task, data)
    prompts = tasks.prompts(model, demos=demos, count=PROMPTS, sets=SETS, seed=0)
    if not bool((prompts.label_lengths == 1).all()):
        raise SystemExit("labels of one token each are compared")
    accuracy = ikl.in_context_accuracy(model, prompts, progress=False)
    adapter = as_adapter(model)
    assert isinstance(adapter, InterceptableAdapter)
    begun = time.process_time()
    exact = ikl.label_influence(model, prompts, orders=1, accuracy=accuracy, progress=False)
    middle = time.process_time()
    parts = [list(range(at, min(at + BATCH, len(prompts)))) for at in range(0, len(prompts), BATCH)]
    linear = torch.cat([to_first_order(adapter, prompts.select(part)) for part in parts])
    ended = time.process_time()
    one, two = exact.values.double().flatten(), linear.double().flatten()
    r = float(torch.corrcoef(torch.stack([one, two]))[0, 1])
    slope = float((one * two).sum() / one.square().sum())
    ratio = (ended - middle) / (middle - begun)
    return [f"{name}, {task}, {demos} demonstrations", f"{r:.2f}", f"{slope:.2f}", f"{ratio:.2f}"]


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with sst2.train.jsonl, for SmolLM2")
    parser.add_argument("--out", type=Path, help="folder for gradients.md and gradients.json")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    cases = [case for case in CASES if given.data or case[0] == "mini"]
    rows = [compared(*case, given.data) for case in cases]
    table = Table(
        f"{PROMPTS} prompts in {SETS} sets, one order",
        ["model and task", "correlation with replaced labels", "slope on them", "CPU time ÷ replaced labels"],
        rows,
    )
    print(table.text())
    if given.out:
        save(given.out, "gradients", "Label influence to first order", [table])


if __name__ == "__main__":
    main()
