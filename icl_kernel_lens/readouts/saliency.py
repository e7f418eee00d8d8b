"""Label words as anchors: how much the loss leans on each kind of attention, per head.

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

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

from icl_kernel_lens.axes import HeadRef, Reference, check_reference
from icl_kernel_lens.errors import ModelError, PromptError
from icl_kernel_lens.evidence.read import check_finite
from icl_kernel_lens.evidence.runner import BatchSize, run_prompts
from icl_kernel_lens.models import memory
from icl_kernel_lens.models.attend import ELSEWHERE, LARGEST_BLOCK, Rule, attend
from icl_kernel_lens.models.fast import Prefix, to_be_taken_over
from icl_kernel_lens.models.intercept import Handler
from icl_kernel_lens.models.lens import InterceptableLens
from icl_kernel_lens.prompts import PromptSet
from icl_kernel_lens.readouts.direct_logits import check_first_token
from icl_kernel_lens.results import store
from icl_kernel_lens.results.resample import cluster_bootstrap
from icl_kernel_lens.results.run_info import RunInfo

if TYPE_CHECKING:
    import pandas as pd

FLOWS = ("wp", "pq", "ww")


@dataclass(frozen=True, eq=False, repr=False)
class Saliency:
    """Mean |attention · gradient| of three kinds of pairs, per prompt and head."""

    wp: Float[Tensor, "prompt layer head"]
    """From text to label words; NaN where no label word has a token before it."""
    pq: Float[Tensor, "prompt layer head"]
    """From label words to the answer position."""
    ww: Float[Tensor, "prompt layer head"]
    """All other pairs; one that a sliding window hides counts, with 0."""
    layers: Float[Tensor, "prompt layer flow"]
    """S_wp, S_pq, S_ww of |Σ_h A_h · ∂L/∂A_h|, as in the paper."""
    demo_set: Int[Tensor, " prompt"]
    run: RunInfo
    settings: Mapping[str, str] = field(default_factory=dict)

    def mean(self) -> dict[str, Float[Tensor, "layer head"]]:
        """Of each kind, over prompts."""
        return {name: getattr(self, name).nanmean(0) for name in FLOWS}

    def interval(
        self, level: float = 0.95, *, draws: int = 2000, seed: int = 0
    ) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"]]:
        """Bootstrap interval of the mean of S_pq − S_ww, demonstration sets drawn whole."""
        low, high = cluster_bootstrap(
            (self.pq - self.ww).flatten(1), self.demo_set, level=level, draws=draws, seed=seed
        )
        return low.reshape(self.pq.shape[1:]), high.reshape(self.pq.shape[1:])

    def table(self) -> pd.DataFrame:
        """One row per head: the three means, and S_pq − S_ww with its interval; the largest of these first."""
        import pandas as pd

        layers, heads = self.pq.shape[1:]
        low, high = self.interval()
        frame = pd.DataFrame({"head": [str(HeadRef(at, h)) for at in range(layers) for h in range(heads)]})
        columns = self.mean() | {"pq_above_ww": (self.pq - self.ww).nanmean(0), "low": low, "high": high}
        for name, column in columns.items():
            frame[name] = column.flatten().numpy()
        return frame.sort_values("pq_above_ww", ascending=False, kind="stable", ignore_index=True)

    def to_dataframe(self) -> pd.DataFrame:
        """Long form: prompt, layer, head, wp, pq, ww."""
        import pandas as pd

        index = torch.cartesian_prod(*(torch.arange(n) for n in self.pq.shape))
        frame = pd.DataFrame(index.reshape(-1, 3).numpy(), columns=["prompt", "layer", "head"])
        for name in FLOWS:
            frame[name] = getattr(self, name).flatten().numpy()
        return frame

    def save(self, path: str | Path) -> Path:
        """Write the whole result; `load` reads it back."""
        meta = {"settings": dict(self.settings), "run": self.run.to_json()}
        return store.write(path, "Saliency", {name: getattr(self, name) for name in _TENSORS}, meta)

    @classmethod
    def load(cls, path: str | Path) -> Saliency:
        """Read what `save` wrote.

        Raises: LoadError: another kind of file, another format version, or a damaged one.
        """
        tensors, meta = store.read(path, "Saliency")
        try:
            return cls(
                **{name: tensors[name] for name in _TENSORS},
                settings=meta["settings"],
                run=RunInfo.from_json(meta["run"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise store.missing_field(path, "Saliency", error) from error

    def __repr__(self) -> str:
        prompts, layers, heads = self.pq.shape
        return (
            f"Saliency({prompts} prompts × {layers} layers × {heads} heads, loss of "
            f"{self.settings.get('toward', '?')}; {self.run.model} on {self.run.prompts.task})\n"
            + self.table().head(5).to_string(float_format=lambda x: f"{x:.2e}")
        )


_TENSORS = (*FLOWS, "layers", "demo_set")


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
    check_reference(toward)
    lens = to_be_taken_over(model, "to be weighed by gradients", "Use another model.")
    check_first_token(prompts, toward, "saliency")
    if prompts.demos == 0:
        raise PromptError("saliency needs label words to look at; these prompts have no demonstrations.")
    if lens.dtype == torch.float16:
        raise ModelError(
            f"gradients must not vanish by rounding; in float16, as {lens.name} is, small ones do. Load it in "
            "bfloat16 or float32."
        )
    if any(p.is_inference() for p in getattr(lens.model, "parameters", list)()):
        raise ModelError(
            f"gradients need ordinary weights; those of {lens.name} were made under torch.inference_mode. Load it "
            "outside."
        )
    if batch_size == "auto":
        # A graph holds what every layer made, not one layer's.
        longest = int(prompts.lengths.max())
        batch_size = max(1, memory.prompts_at_once(lens, longest, 0, fast=True) // lens.shape.layers)
    checked: list[float] = []

    def step(numbers: list[int], prefix: Prefix | None) -> dict[str, Tensor]:
        assert prefix is None, "prompts are run whole"
        with torch.inference_mode(False), torch.enable_grad():
            graph = _Graph(lens, prompts.select(numbers), numbers, toward)
            if not checked and lens.dtype in (torch.float32, torch.float64):
                checked.extend(graph.compare_with_differences())
        with torch.no_grad():
            return {"flows": graph.flows()}

    results, how = run_prompts(
        prompts,
        lens,
        step,
        name="reading gradients",
        settings={"toward": toward},
        batch_size=batch_size,
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
        run=RunInfo.of(lens, prompts.info, prompts.score_on, reading=f"gradients {found}; {how}"),
        settings={"toward": toward},
    )


@dataclass(frozen=True)
class _Layer:
    """What a layer's attention was made of."""

    q: Float[Tensor, "batch head pos d_head"]
    k: Float[Tensor, "batch head pos d_head"]
    v: Float[Tensor, "batch head pos d_head"]
    rule: Rule
    zero: Float[Tensor, "batch head pos d_head"]
    """Added to z; the loss's gradient is taken by it."""


class _Graph:
    """One batch run forward and backward."""

    def __init__(
        self, lens: InterceptableLens, batch: PromptSet, numbers: list[int], toward: Reference
    ) -> None:
        self.lens, self.batch = lens, batch
        self.tokens = batch.tokens[:, : int(batch.lengths.max())]
        self.layers: dict[int, _Layer] = {}
        logits = self.run(self.record, gradients=True)
        check_finite(logits.detach().cpu(), torch.tensor(numbers), lens)
        self.target = logits.argmax(1) if toward == "model" else self.on(logits, batch.test_labels)
        losses = torch.nn.functional.cross_entropy(logits, self.target, reduction="none")
        self.losses = losses.detach()
        zeros = {at: layer.zero for at, layer in self.layers.items()}
        try:
            found = torch.autograd.grad(losses.sum(), list(zeros.values()), allow_unused=True)
        except RuntimeError as error:
            if memory.exhausted(error):
                raise
            raise ModelError(
                f"the loss must have a gradient; that of {lens.name} has none ({error}). A hook may cut it, or its own "
                "code."
            ) from error
        self.gradients: dict[int, Tensor] = {}
        for at, gradient in zip(zeros, found, strict=True):
            if gradient is None or not bool(gradient.isfinite().all()):
                what = "no" if gradient is None else "an infinite or undefined"
                raise ModelError(
                    f"the loss's gradient must reach every layer; z of layer {at} of {lens.name} gets {what} one. A "
                    "hook may cut it, or the layer's own code; or weights overflow."
                )
            self.gradients[at] = gradient

    @staticmethod
    def on(like: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        return labels.to(like.device)

    def run(self, handler: Handler, *, gradients: bool) -> Float[Tensor, "batch label"]:
        """Label logits; with `gradients`, and what autograd needs."""
        batch = self.batch
        with self.lens.intercepting(handler):
            logits = self.lens.run(self.tokens, batch.lengths, batch.answer_pos[:, None], gradients=gradients)
        return logits[:, 0].gather(1, batch.label_tokens.to(logits.device))

    def record(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        z = _attend(q, k, v, rule)
        zero = torch.zeros_like(z, requires_grad=True)
        self.layers[layer] = _Layer(q.detach(), k.detach(), v.detach(), rule, zero)
        return z + zero

    def compare_with_differences(self) -> list[float]:
        """How far the gradient is from central differences along itself, for one prompt; [] if none can tell.

        z of every layer is moved along its own gradient g_l, by a step s so small that L moves by a hundredth:

            (L(z + s g) − L(z − s g)) / 2s = Σ_l |g_l|²

        Raises: ModelError: they differ by more than a twentieth.
        """
        square = sum(g.float().square().flatten(1).sum(1).cpu() for g in self.gradients.values())
        assert isinstance(square, Tensor)
        at = int(square.argmax())
        slope = float(square[at])
        # Moving z by more than a tenth of one value would not be small; a change of L below 1e-3 not be seen.
        size = sum(float(layer.v[at].float().square().mean()) for layer in self.layers.values()) ** 0.5
        step = min(1e-2 / max(slope, 1e-30), 1e-1 * size / max(slope, 1e-30) ** 0.5)
        if slope * step < 1e-3 * max(1.0, float(self.losses[at])):
            return []

        def moved(sign: float) -> float:
            def handler(layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
                return _attend(q, k, v, rule) + sign * step * self.gradients[layer]

            logits = self.run(handler, gradients=False).cpu().double()
            losses = torch.nn.functional.cross_entropy(logits, self.target.cpu(), reduction="none")
            return float(losses[at])

        off = abs((moved(1.0) - moved(-1.0)) / (2 * step) / slope - 1)
        if off > 0.05:
            raise ModelError(
                f"gradients must be the loss's own; those of {self.lens.name} differ from finite differences by {off:.0%}. "
                "Its code may round or cut them on the way back (quantised weights do): load it in float32."
            )
        return [off]

    def flows(self) -> Float[Tensor, "batch layer head_or_sum flow"]:
        """S_wp, S_pq, S_ww of every head, and behind the heads of their sum; NaN for layers without attention."""
        batch, shape = self.batch, self.lens.shape
        found = torch.full((len(batch), shape.layers, shape.heads + 1, len(FLOWS)), float("nan"))
        for at, layer in self.layers.items():
            found[:, at] = _flows(layer, self.gradients[at], batch.answer_pos, batch.label_pos).cpu()
        return found


def _stretches(q: Float[Tensor, "batch head pos d_head"]) -> list[tuple[int, int]]:
    """Queries in stretches, so that few scores are alive at once."""
    batch, heads, length, _ = q.shape
    step = max(1, LARGEST_BLOCK.get(q.device.type, ELSEWHERE) // (batch * heads * length))
    return [(start, min(start + step, length)) for start in range(0, length, step)]


def _rows(
    q: Float[Tensor, "batch head query d_head"], k: Float[Tensor, "batch head key d_head"], rule: Rule
) -> Float[Tensor, "batch head query key"]:
    """A of the last queries among these keys."""
    s = torch.arange(k.shape[2], device=q.device)
    t = s[-q.shape[2] :, None]
    hidden = s > t
    if rule.window is not None:
        hidden = hidden | (s <= t - rule.window)
    scores = rule.scores(q * rule.scale @ k.transpose(2, 3))
    return scores.masked_fill(hidden, float("-inf")).softmax(-1)


def _attend(
    q: Float[Tensor, "batch head pos d_head"],
    k: Float[Tensor, "batch head pos d_head"],
    v: Float[Tensor, "batch head pos d_head"],
    rule: Rule,
) -> Float[Tensor, "batch head pos d_head"]:
    """z; rows that no fused kernel makes are made again on the way back, so that autograd keeps none of them."""
    if rule.soft_cap is None and (rule.window is None or rule.window >= q.shape[2]):
        return attend(q, k, v, rule)

    def part(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return _rows(q, k, rule).to(v.dtype) @ v

    return torch.cat(
        [
            recomputed(
                part,
                q[:, :, start:end],
                k[:, :, :end],
                v[:, :, :end],
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for start, end in _stretches(q)
        ],
        2,
    )


def _flows(
    layer: _Layer,
    gradient: Float[Tensor, "batch head pos d_head"],
    answer_pos: Int[Tensor, " batch"],
    label_pos: Int[Tensor, "batch demo"],
) -> Float[Tensor, "batch head_or_sum 3"]:
    """The three means of one layer."""
    device = layer.q.device
    answer, labels = answer_pos.to(device), label_pos.to(device)
    k, v = layer.k.float(), layer.v.float()
    batch, heads, length, _ = k.shape
    into = torch.zeros(batch, heads + 1, length, dtype=torch.float32, device=device)
    """Σ_{k<q} I(q, k) of every query."""
    answer_row = torch.zeros_like(into)
    for start, end in _stretches(layer.q):
        t, s = torch.arange(start, end, device=device)[:, None], torch.arange(end, device=device)
        a = _rows(layer.q[:, :, start:end].float(), k[:, :, :end], layer.rule)
        terms = a * (gradient[:, :, start:end].float() @ v[:, :, :end].transpose(2, 3))
        terms = torch.cat([terms, terms.sum(1, keepdim=True)], 1).abs().masked_fill(s >= t, 0)
        into[:, :, start:end] = terms.sum(-1)
        here = ((answer >= start) & (answer < end)).nonzero().flatten()
        answer_row[here, :, :end] = terms[here, :, answer[here] - start]
    position = torch.arange(length, device=device)
    label = torch.zeros(batch, length, dtype=torch.bool, device=device).scatter(1, labels, True)
    other = ~label & (position < answer[:, None])
    sums = [
        (into * label[:, None]).sum(-1),
        (answer_row * label[:, None]).sum(-1),
        (into * other[:, None]).sum(-1) + (answer_row * ~label[:, None]).sum(-1),
    ]
    before, demos = labels.sum(1), labels.shape[1]
    pairs = [before, torch.full_like(before, demos), answer * (answer + 1) // 2 - before - demos]
    return torch.stack([total / count[:, None] for total, count in zip(sums, pairs, strict=True)], -1)
