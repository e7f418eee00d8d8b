"""Measures how much the loss leans on each kind of attention, per head: label words as anchors.

Wang et al. (EMNLP 2023), eq. 1 and section 2.1, with L the cross-entropy of one label at the answer position r:

    I(q, k) = |A_{qk} · ∂L/∂A_{qk}|,        ∂L/∂A_{qk} = ⟨∂L/∂z_q, v_k⟩
    S_wp    = mean of I(p_i, j) over demonstrations i and j < p_i      text flows into label words
    S_pq    = mean of I(r, p_i) over demonstrations i                  label words flow into the answer
    S_ww    = mean of I(q, k) over all remaining pairs k < q

The gradient comes from one forward and one backward pass: z_q = Σ_k A_{qk} v_k, so a zero added to z has all of
it, and rows of A are made anew, a stretch of queries at a time. L is over the labels alone, as in the authors' code.

We depart from the paper by not summing heads before the absolute value; `Saliency.layers` has the paper's sum.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.axes import Reference
from icl_kernel_lens.errors import ModelError, PromptError
from icl_kernel_lens.models.adapter import InterceptableAdapter
from icl_kernel_lens.models.attention_passes import AttentionUnderWay, Handle, Prefix
from icl_kernel_lens.models.verify import to_be_taken_over, why_not_finite
from icl_kernel_lens.numbers.attention import masked_scores, stretches
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.results.run_info import RunInfo
from icl_kernel_lens.results.saliency import FLOWS, Saliency
from icl_kernel_lens.run import memory
from icl_kernel_lens.run.forward import (
    check_differentiable,
    check_finite,
    check_first_token,
    intervened_logits,
)
from icl_kernel_lens.run.runner import BatchSize, run_prompts


@checked
def saliency(
    model: Any,
    prompts: PromptSet,
    *,
    toward: Reference = "truth",
    batch_size: BatchSize = "auto",
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Saliency:
    """How much the loss leans on text → label word, on label word → answer, and on all other attention.

        I(q, k) = |A_{qk} ⟨∂L/∂z_q, v_k⟩|        S_wp, S_pq, S_ww: its means over three kinds of pairs

    after Wang et al. (EMNLP 2023); see the head of this module. L is the cross-entropy, over the labels alone, of
    the true label (`toward="model"`: of the model's own answer). p_i is the first token of a label.

    Reads as: label words are anchors where S_wp is large in early layers and S_pq in late ones, against S_ww. The
    scale is the loss's, so compare within a model and a prompt.
    Does not show: effects; this is a first order term, in which rows of A may change their sums. Where
    the model is sure of the label, all gradients vanish, and with them all three.

    Prompts are run whole. On the first of them that allows it the gradient is compared with finite differences
    (not in bfloat16, whose rounding is larger; there the numbers are as exact as that type).

    Raises: ModelError: attention cannot be taken over, no gradient flows, it differs from finite differences, or
            weights in float16, in which small gradients vanish.
            PromptError: no demonstrations; whole label sequences; no true labels for `toward="truth"`.
    Example:
        >>> from icl_kernel_lens import load_model, load_task
        >>> model = load_model("mini", device="cpu")
        >>> prompts = load_task("topics").prompts(model, demos=4, count=2, seed=0)
        >>> saliency(model, prompts, progress=False).pq.shape
        torch.Size([2, 3, 4])
    """
    adapter = to_be_taken_over(model, "to be weighed by gradients", "Use another model.")
    check_first_token(prompts, toward, "saliency", "toward")
    if prompts.demos == 0:
        raise PromptError(
            "saliency needs label words to look at; these prompts have no demonstrations.",
            code="too-few-demonstrations",
        )
    if adapter.dtype == torch.float16:
        raise ModelError(
            f"gradients must not vanish by rounding; in float16, as {adapter.name} is, small ones do. Load it in "
            "bfloat16 or float32.",
            code="gradient",
        )
    check_differentiable(adapter)
    # A graph holds what every layer made, not one layer's.
    fitting = memory.prompts_at_once(adapter, int(prompts.lengths.max()), 0, fast=True)
    checked: list[float] = []

    def step(numbers: list[int], prefix: Prefix | None) -> dict[str, Tensor]:
        assert prefix is None, "prompts are run whole"
        with torch.inference_mode(False), torch.enable_grad():
            graph = _Graph(adapter, prompts.select(numbers), numbers, toward)
            if not checked and adapter.dtype in (torch.float32, torch.float64):
                checked.extend(graph.compare_with_differences())
        with torch.no_grad():
            return {"flows": graph.flows()}

    results, how = run_prompts(
        prompts,
        adapter,
        step,
        name="reading gradients",
        settings={"toward": toward},
        batch_size=batch_size,
        most=max(1, fitting // adapter.shape.layers),
        checkpoint=checkpoint,
        progress=progress,
        share=False,
    )
    found = f"within {checked[0]:.0e} of finite differences" if checked else "not compared with differences"
    flows = results["flows"]
    return Saliency(
        **{name: flows[:, :, :-1, at] for at, name in enumerate(FLOWS)},
        layers=flows[:, :, -1].clone(),
        demo_set=prompts.demo_set.clone(),
        run=RunInfo.of(adapter, prompts.info, prompts.score_on, reading=f"gradients {found}; {how}"),
        settings={"toward": toward},
    )


class _Graph:
    """One batch run forward and backward."""

    def __init__(
        self, adapter: InterceptableAdapter, batch: PromptSet, numbers: list[int], toward: Reference
    ) -> None:
        self.adapter, self.batch = adapter, batch
        self.layers: dict[int, AttentionUnderWay] = {}
        zeros: dict[int, Tensor] = {}

        def record(attention: AttentionUnderWay) -> Tensor:
            z = attention.attend()
            q, k, v = (x.detach() for x in (attention.q, attention.k, attention.v))
            self.layers[attention.layer] = replace(attention, q=q, k=k, v=v)
            zeros[attention.layer] = torch.zeros_like(z, requires_grad=True)
            return z + zeros[attention.layer]

        logits = self.run(record, gradients=True)
        check_finite(logits.detach().cpu(), torch.tensor(numbers), adapter)
        truth = batch.test_labels if toward == "truth" else None
        self.target = logits.argmax(1) if truth is None else truth.to(logits.device)
        losses = torch.nn.functional.cross_entropy(logits, self.target, reduction="none")
        self.losses = losses.detach()
        try:
            found = torch.autograd.grad(losses.sum(), list(zeros.values()), allow_unused=True)
        except RuntimeError as error:
            if memory.exhausted(error):
                raise
            raise ModelError(
                f"the loss must have a gradient; that of {adapter.name} has none ({error}). A hook may cut it, or its own "
                "code.",
                code="gradient",
            ) from error
        self.gradients: dict[int, Tensor] = {}
        for at, gradient in zip(zeros, found, strict=True):
            if gradient is None or not bool(gradient.isfinite().all()):
                what, why = "no", "A hook may cut it, or the layer's own code."
                if gradient is not None:
                    what, why = "an infinite or undefined", why_not_finite(adapter)
                raise ModelError(
                    f"the loss's gradient must reach every layer; z of layer {at} of {adapter.name} gets {what} one. {why}",
                    code="gradient",
                )
            self.gradients[at] = gradient

    def run(self, handle: Handle, *, gradients: bool) -> Float[Tensor, "batch label"]:
        """Label logits; with `gradients`, and what autograd needs."""
        logits = intervened_logits(self.adapter, self.batch, handle, gradients=gradients)
        return logits.gather(1, self.batch.label_tokens.to(logits.device))

    def compare_with_differences(self) -> list[float]:
        """How far the gradient is from central differences along itself, for one prompt; [] if none can tell.

        z of every layer is moved along its own gradient g_l, by a step s so small that L moves by a hundredth:

            (L(z + s g) − L(z − s g)) / 2s = Σ_l |g_l|²

        Raises: ModelError: they differ by more than a twentieth.
        """
        square = torch.stack(
            [g.float().square().flatten(1).sum(1).cpu() for g in self.gradients.values()]
        ).sum(0)
        at = int(square.argmax())
        slope = float(square[at])
        # Moving z by more than a tenth of one value would not be small; a change of L below 1e-3 not be seen.
        size = sum(float(layer.v[at].float().square().mean()) for layer in self.layers.values()) ** 0.5
        step = min(1e-2 / max(slope, 1e-30), 1e-1 * size / max(slope, 1e-30) ** 0.5)
        if slope * step < 1e-3 * max(1.0, float(self.losses[at])):
            return []

        def moved(sign: float) -> float:
            def handle(attention: AttentionUnderWay) -> Tensor:
                return attention.attend() + sign * step * self.gradients[attention.layer]

            logits = self.run(handle, gradients=False).cpu().double()
            return float(torch.nn.functional.cross_entropy(logits[at], self.target[at].cpu()))

        off = abs((moved(1.0) - moved(-1.0)) / (2 * step) / slope - 1)
        if off > 0.05:
            raise ModelError(
                f"gradients must be the loss's own; those of {self.adapter.name} differ from finite differences by {off:.0%}. "
                "Its code may round or cut them on the way back (quantised weights do): load it in float32.",
                code="gradient",
            )
        return [off]

    def flows(self) -> Float[Tensor, "batch layer head_or_sum flow"]:
        """S_wp, S_pq, S_ww of every head, and behind the heads of their sum; NaN for layers without attention."""
        batch, shape = self.batch, self.adapter.shape
        found = torch.full((len(batch), shape.layers, shape.heads + 1, len(FLOWS)), float("nan"))
        for at, layer in self.layers.items():
            found[:, at] = _flows(layer, self.gradients[at], batch.answer_pos, batch.label_pos).cpu()
        return found


def _flows(
    layer: AttentionUnderWay,
    gradient: Float[Tensor, "batch head pos d_head"],
    answer_pos: Int[Tensor, " batch"],
    label_pos: Int[Tensor, "batch demo"],
) -> Float[Tensor, "batch head_or_sum 3"]:
    """S_wp, S_pq and S_ww of one layer."""
    device = layer.q.device
    answer, labels = answer_pos.to(device), label_pos.to(device)
    k, v = layer.k.float(), layer.v.float()
    batch, heads, length, _ = k.shape
    into = torch.zeros(batch, heads + 1, length, dtype=torch.float32, device=device)
    """Σ_{k<q} I(q, k) of every query."""
    answer_row = torch.zeros_like(into)
    for start, end in stretches(layer.q, length):
        t, s = torch.arange(start, end, device=device)[:, None], torch.arange(end, device=device)
        a = masked_scores(layer.q[:, :, start:end].float(), k[:, :, :end], layer.rule, start).softmax(-1)
        terms = a * (gradient[:, :, start:end].float() @ v[:, :, :end].transpose(2, 3))
        terms = torch.cat([terms, terms.sum(1, keepdim=True)], 1).abs().masked_fill(s >= t, 0)
        into[:, :, start:end] = terms.sum(-1)
        here = ((answer >= start) & (answer < end)).nonzero().flatten()
        answer_row[here, :, :end] = terms[here, :, answer[here] - start]
    label = torch.zeros(batch, length, dtype=torch.bool, device=device).scatter(1, labels, True)
    other = ~label & (torch.arange(length, device=device) < answer[:, None])
    sums = [
        (into * label[:, None]).sum(-1),
        (answer_row * label[:, None]).sum(-1),
        (into * other[:, None]).sum(-1) + (answer_row * ~label[:, None]).sum(-1),
    ]
    before, demos = labels.sum(1), labels.shape[1]
    pairs = [before, torch.full_like(before, demos), answer * (answer + 1) // 2 - before - demos]
    return torch.stack([total / count[:, None] for total, count in zip(sums, pairs, strict=True)], -1)
