"""Replaces a head's weights on the demonstrations by a kernel: the kernel-regression claim, put to the test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens import fields
from icl_kernel_lens.arguments import checked
from icl_kernel_lens.axes import Reference
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.interventions.engine import RowEdit, change_rows
from icl_kernel_lens.interventions.validate import Heads, check_intervened, check_kernel
from icl_kernel_lens.numbers.draws import generator
from icl_kernel_lens.numbers.rows import substituted
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.results.patch_effects import PatchEffects
from icl_kernel_lens.run.variants import Row

Kernel = (
    Literal["uniform", "own"]
    | Float[Tensor, "prompt demo"]
    | Callable[[int, Float[Tensor, "head demo"]], Float[Tensor, "head demo"]]
)
"""`uniform`: every demonstration alike. `own`: the head's own weights, which changes nothing. A tensor: one weight a
prompt and demonstration, an encoder's similarities for example. A function of the prompt's number and of the head's own
weights."""


@checked
def substitute_kernel(
    model: Any,
    prompts: PromptSet,
    kernel: Kernel = "uniform",
    *,
    heads: Heads | None = None,
    layers: Sequence[int] | None = None,
    controls: bool = True,
    against: Reference = "model",
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> PatchEffects:
    """Measure the answer when heads weigh the demonstrations' labels by a given kernel, everything above recomputed.

        A'(p_i) = M κ_i / Σ_j κ_j,    M = Σ_i A(p_i)

    at the answer position, p_i the first label token of demonstration i: the head reads its labels with as much
    attention in all, shared out by κ. If a head's part in the answer is ŷ = Σ κ_i y_i / Σ κ_i for the κ given, nothing
    is lost. A tensor κ (prompt, demo) is an encoder's similarities, say, to each prompt's test input; a function
    `kernel(number, own)` is given a prompt's number and the heads' own weights (head, demo), and returns κ in
    that shape. `heads` and `layers` as in `knock_out`. Controls:

        uniform            every demonstration alike: what the labels' frequencies alone do
        shuffled_kernel    κ permuted among the demonstrations: a kernel of the same shape that knows nothing

    A row without any attention on the labels stays as it is.
    Does not show: that κ is what the head computes where both happen to favour the same labels; and a head that
    does nothing survives every kernel: read it beside `knock_out`.

    Raises: ResultError: the kernel has negative or undefined weights, only zeros for a prompt, or another shape.
            ModelError, PromptError: as `knock_out`.
    """
    check_intervened(prompts, against)
    identity = _identity(kernel, prompts, checkpoint)
    word = kernel if isinstance(kernel, str) else "a given kernel"
    return change_rows(
        model,
        prompts,
        partial(_edits, prompts, kernel, seed),
        name="substitute_kernel",
        title=f"weights on labels: {word}",
        controls=("uniform", "shuffled_kernel") if controls and word != "uniform" else (),
        heads=heads,
        layers=layers,
        against=against,
        settings={"kernel": identity, "controls": controls, "seed": seed},
        checkpoint=checkpoint,
        progress=progress,
    )


def _identity(kernel: Any, prompts: PromptSet, checkpoint: str | Path | None) -> str:
    """What tells a kernel from others, once it is known to be one."""
    if isinstance(kernel, str):
        if kernel not in ("uniform", "own"):
            raise ResultError(
                f'kernel must be "uniform", "own", a tensor or a function; got {kernel!r}.',
                code="unknown-choice",
            )
        return kernel
    if callable(kernel):
        if checkpoint is not None:
            raise ResultError(
                "a checkpoint cannot tell one function from another; pass the kernel as a tensor.",
                code="checkpoint-hooks",
            )
        return "a function"
    check_kernel(kernel, (len(prompts), prompts.demos), "the kernel")
    return f"given {fields.digest(None, {'kernel': kernel.double()})[:16]}"


def _edits(
    prompts: PromptSet, kernel: Any, seed: int, numbers: list[int]
) -> tuple[Int[Tensor, "prompt column"], dict[str, RowEdit]]:
    """The answer position of one prompt, and what becomes of its row under the kernel and under the controls."""
    (number,) = numbers
    order = torch.randperm(prompts.demos, generator=generator(seed, number))
    weights = partial(_weights, kernel, number)

    def by(weigh: Callable[[Tensor], Tensor]) -> RowEdit:
        def edit(row: Row, _demo: Int[Tensor, " row"]) -> Float[Tensor, "row key"]:
            places = prompts.label_pos[number].to(row.weights.device).expand(len(row.weights), -1)
            return substituted(row.weights, places, weigh(row.weights.gather(-1, places)))

        return edit

    return prompts.answer_pos[numbers][:, None], {
        "": by(weights),
        "uniform": by(torch.ones_like),
        "shuffled_kernel": by(lambda own: weights(own)[:, order.to(own.device)]),
    }


def _weights(kernel: Kernel, number: int, own: Float[Tensor, "row demo"]) -> Float[Tensor, "row demo"]:
    """What the kernel says of one prompt, for heads with these weights of their own."""
    if isinstance(kernel, str):
        return own if kernel == "own" else torch.ones_like(own, dtype=torch.float64)
    if isinstance(kernel, Tensor):
        return kernel[number].to(own.device).double().expand(len(own), -1)
    try:
        made = kernel(number, own)
    except Exception as error:
        raise ResultError(
            "a kernel's function must take a prompt's number and the heads' own weights (head, demo), and return "
            f"weights of the same shape; for prompt {number} it raised {type(error).__name__}: {error}.",
            code="kernel-weights",
        ) from error
    some = own.sum(-1) > 0  # elsewhere there is nothing to share out
    check_kernel(made, tuple(own.shape), "what the kernel's function returns", some.cpu())
    return made.to(own.device).double()
