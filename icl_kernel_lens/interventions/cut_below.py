"""Reads the answer's attention on the demonstrations while no earlier layer of the answer's row reads any label.

A head that decides by what heads below it brought to the answer position (an echo) attends otherwise then; a head that
compares the test input with the demonstrations does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from icl_kernel_lens.interventions.validate import check_intervened
from icl_kernel_lens.interventions.verify import check_primitive
from icl_kernel_lens.models.adapter import attention_layers
from icl_kernel_lens.models.attention_passes import Prefix
from icl_kernel_lens.numbers.rows import cut
from icl_kernel_lens.prompts.label_edges import check_offsets, label_keys
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.run.forward import check_finite
from icl_kernel_lens.run.memory import prompts_at_once
from icl_kernel_lens.run.runner import run_prompts
from icl_kernel_lens.run.variants import Changes, Row, RowChange, bases, editable, own_tokens, run_variants


def weights_cut_below(
    model: Any,
    prompts: PromptSet,
    offsets: Sequence[int] = (0,),
    *,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> Float[Tensor, "prompt layer head demo"]:
    """Each head's attention from the answer on each demonstration's label edges, those of all earlier layers zeroed.

        z'_l = z_l − Σ_{s∈S} A_l(s) v_s        in every layer l, one after the other; S the label edges at `offsets`

    What is returned of layer l is A_l(S) before its own cut; for offset 0 alone the attention on labels' first tokens, as
    `read` pools it. NaN in layers without attention.

    Raises: PromptError: whole labels are scored; an offset holds no token. ModelError: attention cannot be changed exactly.
    """
    adapter = editable(model)
    check_intervened(prompts, "model")
    check_offsets(prompts, offsets)
    check_primitive(adapter, "attention_rows")
    shape, own = adapter.shape, own_tokens(adapter, int(prompts.lengths.max()))
    longest = int(prompts.answer_pos.max()) + 1

    def equally_long(numbers: list[int], prefix: Prefix | None) -> Tensor:
        """A row for each of these prompts, run in one pass."""
        at, tokens = int(prompts.answer_pos[numbers[0]]), prompts.tokens[numbers]
        keys = torch.stack([label_keys(prompts, number, offsets).any(0) for number in numbers])
        keys[..., at] = False
        pooled = keys.float()
        if tuple(offsets) == (0,):
            pooled = torch.nn.functional.one_hot(prompts.label_pos[numbers], at + 1).float()
        found = torch.full((len(numbers), shape.layers, shape.heads, prompts.demos), torch.nan)

        def change(row: Row) -> Float[Tensor, "row key"]:
            mine = row.prompts.cpu()
            found[mine, row.layer, row.heads.cpu()] = torch.einsum(
                "rk,rdk->rd", row.weights.cpu(), pooled[mine]
            )
            gone = keys.any(1).to(row.weights.device)[row.prompts]
            return cut(row.weights, row.scores, gone, renormalise=False)

        masks = torch.zeros(len(numbers), shape.layers, shape.heads, dtype=torch.bool)
        masks[:, attention_layers(adapter)] = True
        rows = RowChange(masks, prompts.answer_pos[numbers][:, None], change)
        logits = run_variants(adapter, tokens, at, 1, Changes(rows=rows), prefix)
        check_finite(logits.cpu(), torch.tensor(numbers), adapter)
        return found

    def step(numbers: list[int], shared: Prefix | None) -> dict[str, Tensor]:
        found, base = {}, bases(adapter, prompts, numbers, shared, own)
        for at in prompts.answer_pos[numbers].unique().tolist():
            alike = [number for number in numbers if int(prompts.answer_pos[number]) == at]
            found |= zip(alike, equally_long(alike, base(alike)), strict=True)
        return {"weights": torch.stack([found[number] for number in numbers])}

    results, _ = run_prompts(
        prompts,
        adapter,
        step,
        name="attention without labels below",
        settings={"offsets": str(tuple(offsets))},
        most=prompts_at_once(adapter, longest, 0, fast=True),
        checkpoint=checkpoint,
        progress=progress,
    )
    return results["weights"]
