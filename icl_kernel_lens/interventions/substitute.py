"""A head's weights on the demonstrations replaced by a kernel: the kernel-regression claim, put to the test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.axes import Reference
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.interventions.patch import check_intervened
from icl_kernel_lens.interventions.rows import substituted
from icl_kernel_lens.interventions.sweep import Change, Heads, HeadSets, Sweep, run_sweep
from icl_kernel_lens.interventions.variants import Row
from icl_kernel_lens.models.lens import InterceptableLens
from icl_kernel_lens.prompts import PromptSet
from icl_kernel_lens.results.patch_effects import PatchEffects

Kernel = (
    Literal["uniform", "own"]
    | Float[Tensor, "prompt demo"]
    | Callable[[int, Float[Tensor, "head demo"]], Float[Tensor, "head demo"]]
)
"""`uniform`: every demonstration alike. `own`: the head's own weights, which changes nothing. A tensor: one weight a
prompt and demonstration, an encoder's similarities for example. A function of the prompt's number and of the head's own
weights."""


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
    """The answer when heads weigh the demonstrations' labels by a given kernel, everything above recomputed.

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
    if isinstance(kernel, str) and kernel not in ("uniform", "own"):
        raise ResultError(f'kernel must be "uniform", "own", a tensor or a function; got {kernel!r}.')
    if not isinstance(kernel, str) and not callable(kernel):
        _check(kernel, (len(prompts), prompts.demos), "the kernel")

    word = kernel if isinstance(kernel, str) else "a given kernel"

    def make(lens: InterceptableLens, sets: HeadSets) -> Sweep:
        maker = _Maker(prompts, kernel, seed)  # pyright: ignore[reportArgumentType]
        kinds: dict[str, Change] = {"": maker.given}
        if controls and kernel != "uniform":
            kinds["uniform"] = maker.uniform
        if controls:
            kinds["shuffled_kernel"] = maker.shuffled
        if isinstance(kernel, str) and kernel == "uniform":
            kinds.pop("shuffled_kernel", None)
        return Sweep("substitute_kernel", f"weights on labels: {word}", ("0",), kinds, maker.begin)

    fixed = _digest(kernel)  # pyright: ignore[reportArgumentType]
    if checkpoint is not None and fixed is None:
        raise ResultError("a checkpoint cannot tell one function from another; pass the kernel as a tensor.")
    return run_sweep(
        model,
        prompts,
        make,
        heads=heads,
        layers=layers,
        against=against,
        settings={"kernel": fixed or "a function", "controls": controls, "seed": seed},
        name="substituting kernels",
        checkpoint=checkpoint,
        progress=progress,
    )


def _digest(kernel: Kernel) -> str | None:
    if isinstance(kernel, str):
        return kernel
    if not isinstance(kernel, Tensor):
        return None
    import hashlib

    return f"given {hashlib.sha256(kernel.detach().cpu().double().numpy().tobytes()).hexdigest()[:16]}"


def _check(kernel: Any, shape: tuple[int, ...], what: str, rows: Tensor | None = None) -> None:
    if not isinstance(kernel, Tensor) or tuple(kernel.shape) != shape or not kernel.is_floating_point():
        found = (
            f"{tuple(kernel.shape)}, {kernel.dtype}" if isinstance(kernel, Tensor) else type(kernel).__name__
        )
        raise ResultError(
            f"{what} must be a tensor of floating-point weights of shape {shape}; it is {found}. "
            "torch.as_tensor makes one."
        )
    kernel = kernel.detach().cpu().double()
    total = kernel.sum(-1)
    bad = ~(kernel >= 0).all(-1) | ~total.isfinite() | (total <= 0)
    bad = bad if rows is None else bad & rows.cpu()
    if bad.any():
        row = bad.nonzero()[0].tolist()
        raise ResultError(
            f"{what} must be finite, at least 0, and not 0 for all demonstrations; row {row[0]} is "
            f"{kernel[tuple(row)].tolist()[:8]}."
        )


class _Maker:
    def __init__(self, prompts: PromptSet, kernel: Kernel, seed: int) -> None:
        self.prompts, self.kernel, self.seed = prompts, kernel, seed
        self.number = 0

    def begin(self, numbers: list[int]) -> Int[Tensor, "prompt column"]:
        (number,) = numbers
        self.number = number
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        self.order = torch.randperm(self.prompts.demos, generator=generator)
        return self.prompts.answer_pos[numbers][:, None]

    def _places(self, row: Row) -> Int[Tensor, "row demo"]:
        return self.prompts.label_pos[self.number].to(row.weights.device).expand(len(row.weights), -1)

    def _kernel(self, row: Row) -> Float[Tensor, "row demo"]:
        own = row.weights.gather(-1, self._places(row))
        if isinstance(self.kernel, Tensor):
            return self.kernel[self.number].to(own.device).double().expand(len(own), -1)
        if not isinstance(self.kernel, str):
            try:
                made = self.kernel(self.number, own)
            except Exception as error:
                raise ResultError(
                    "a kernel's function must take a prompt's number and the heads' own weights (head, demo), and return "
                    f"weights of the same shape; for prompt {self.number} it raised {type(error).__name__}: {error}."
                ) from error
            some = own.sum(-1) > 0  # elsewhere there is nothing to share out
            _check(made, tuple(own.shape), "what the kernel's function returns", some)
            return made.to(own.device).double()
        return own if self.kernel == "own" else torch.ones_like(own)

    def given(self, row: Row, _option: Int[Tensor, " row"]) -> Float[Tensor, "row key"]:
        return substituted(row.weights, self._places(row), self._kernel(row))

    def uniform(self, row: Row, _option: Int[Tensor, " row"]) -> Float[Tensor, "row key"]:
        return substituted(row.weights, self._places(row), torch.ones_like(self._kernel(row)))

    def shuffled(self, row: Row, _option: Int[Tensor, " row"]) -> Float[Tensor, "row key"]:
        kernel = self._kernel(row)[:, self.order.to(row.weights.device)]
        return substituted(row.weights, self._places(row), kernel)
