"""Attributes the label logits to what each head writes straight into them, and through which demonstration.

At the answer position r the residual stream is a sum, and the logits before any soft cap are linear in it
once the scale σ of the final norm is held at what it is in this run:

    m_c   = logit(t_c) − mean_{c'≠c} logit(t_c')                                the logit difference
          = Σ_{l,h} ⟨J o_{l,h}, δ_c⟩ + Σ_l ⟨J mlp_l, δ_c⟩ + ⟨J x_0, δ_c⟩ + biases
    o_h   = Σ_k A_{rk} v_k W_O[h] = z_h W_O[h]          of which demonstration i:  A_{r,p_i} v_{p_i} W_O[h]
    J o   = γ ⊙ C o / σ,    C = 1 − mean for a LayerNorm, C = 1 for an RMSNorm
    δ_c   = W_U[:, t_c] − mean_{c'≠c} W_U[:, t_c']

(nostalgebraist 2020, "logit lens"; Elhage et al. 2021, "A mathematical framework"). A norm behind attention, as
in Gemma-2, is held in the same way. Nothing here knows an architecture: γ, β, C and σ of a norm are found by
calling it, the unembedding is compared with what it gave, and the parts must add up to m_c, or there is no result.

Does not show: what a head does through later layers, by moving σ, or through other heads' attention.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor, nn

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.axes import Reference
from icl_kernel_lens.errors import ModelError
from icl_kernel_lens.models.attention_passes import AttentionUnderWay, Prefix, Watched
from icl_kernel_lens.models.read_out import LinearReadOut
from icl_kernel_lens.models.verify import to_be_taken_over
from icl_kernel_lens.numbers.attention import values_at
from icl_kernel_lens.numbers.logits import contrast
from icl_kernel_lens.prompts.fit import check_fits
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.results.logit_attribution import LogitAttribution
from icl_kernel_lens.results.run_info import RunInfo
from icl_kernel_lens.run.forward import check_finite, check_first_token, intervened_logits
from icl_kernel_lens.run.runner import BatchSize, run_prompts


@checked
def direct_logit_attribution(
    model: Any,
    prompts: PromptSet,
    *,
    toward: Reference = "model",
    batch_size: BatchSize = "auto",
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> LogitAttribution:
    """What each head writes straight into the logit of one label over the others, split by demonstration.

        heads = ⟨J z_h W_O[h], δ_c⟩        demos_i = A_{r,p_i} ⟨J v_{p_i} W_O[h], δ_c⟩

    with J and δ_c as at the head of this module, and c the model's own answer among the labels
    (`toward="truth"`: the true label). Labels are compared by the logit of their first token, before any
    soft cap. Shared leading tokens, memory and checkpoints are as for `read`.

    Reads as: positive, the head pushes toward the label. Beside a head's vote, `demos` says whether its
    values carry the labels that its attention weighs (`LogitAttribution.regression`).
    Does not show: effects through later layers; a head that feeds them has little here and may matter much.
    Contributions depend on each other through the frozen scale, so removing a head changes more than its part.

    Raises: ModelError: attention cannot be taken over, a norm is not linear at a frozen scale, the
            unembedding gives other logits than its matrix, or the parts do not add up to the logit difference.
            PromptError: prompts scored on whole label sequences; no true labels for `toward="truth"`.
    Example:
        >>> from icl_kernel_lens import load_model, load_task
        >>> model = load_model("mini", device="cpu")
        >>> prompts = load_task("topics").prompts(model, demos=4, count=2, seed=0)
        >>> direct_logit_attribution(model, prompts, progress=False).demos.shape
        torch.Size([2, 3, 4, 4])
    """
    adapter = to_be_taken_over(model, "to split logits", "Use another model.")
    check_first_token(prompts, toward, "direct_logit_attribution", "toward")
    check_fits(prompts, adapter)
    if missing := adapter.missing_attention():
        raise ModelError(
            "every layer must have attention for the parts to add up; " + "; ".join(missing.values()) + ".",
            code="no-attention",
        )
    reader = LinearReadOut.of(adapter, prompts.label_tokens.unique())

    def step(numbers: list[int], prefix: Prefix | None) -> dict[str, Tensor]:
        batch = prompts.select(numbers)
        reading = _Pass(reader, batch, numbers)
        logits = intervened_logits(adapter, batch, reading.attention, prefix, watched=reading.watched(prefix))
        check_finite(logits.cpu(), torch.tensor(numbers), adapter)
        return reading.results(batch.test_labels if toward == "truth" else None)

    results, how = run_prompts(
        prompts,
        adapter,
        step,
        name="attributing logits",
        settings={"toward": toward},
        batch_size=batch_size,
        checkpoint=checkpoint,
        progress=progress,
    )
    return LogitAttribution(
        **{name: found for name, found in results.items() if name != "residual"},
        residual=float(results["residual"].max()),
        demo_labels=prompts.demo_labels.clone(),
        labels=prompts.labels,
        demo_set=prompts.demo_set.clone(),
        run=RunInfo.of(adapter, prompts.info, prompts.score_on, reading=f"attention taken over; {how}"),
        settings={"toward": toward},
    )


class _Pass:
    """One batch under way: everything at the answer position, reduced toward every label where it lives."""

    def __init__(self, reader: LinearReadOut, batch: PromptSet, numbers: list[int]) -> None:
        self.reader, self.batch, self.numbers = reader, batch, numbers
        self.which = torch.searchsorted(reader.tokens, batch.label_tokens)
        columns = reader.columns
        self.delta = contrast(columns[self.which.to(columns.device)], dim=1)
        """(prompt, label, width), on the device of the unembedding."""
        self.along = reader.final.transposed(self.delta)
        """C (γ ⊙ δ); what is taken along it still has to be divided by σ."""
        self.parts: dict[str, dict[int, Tensor]] = {}

    def keep(self, name: str, layer: int, part: Tensor) -> None:
        self.parts.setdefault(name, {})[layer] = part

    def attention(self, attention: AttentionUnderWay) -> Float[Tensor, "prompt head pos d_head"]:
        """The handler: attention as ever, and what each head writes of it."""
        layer, z, at = attention.layer, attention.attend(), self.batch.answer_pos
        label_pos = self.batch.label_pos.to(z.device)
        row = attention.row(at)
        attn = self.reader.adapter.model.blocks[layer].attn
        along = self.along.to(z.device)
        if layer in self.reader.post:
            along = self.reader.post[layer].transposed(along)
        toward = einsum(
            attn.W_O.to(z.device).float(),
            along,
            "head d_head width, prompt label width -> prompt head d_head label",
        )
        heads = einsum(
            attention.at(z, at).float(), toward, "p head d_head, p head d_head label -> p head label"
        )
        bias = getattr(attn, "b_O", None)
        found = {
            "weights": row.gather(-1, label_pos[:, None].expand(-1, row.shape[1], -1)),
            "heads": heads,
            "read_outs": einsum(
                values_at(attention.blocks, label_pos, z.shape[1]),
                toward,
                "p h demo d, p h d label -> p h demo label",
            ),
            "attention_biases": torch.zeros_like(heads[:, 0]) if bias is None else along @ bias.to(along),
        }
        for name, part in found.items():
            self.keep(name, layer, part)
        return z

    def watched(self, prefix: Prefix | None) -> Watched:
        """What the residual stream, MLPs and norms show at the answer position, by module."""
        model, count = self.reader.adapter.model, len(self.numbers)
        where = self.batch.answer_pos - (prefix.end if prefix else 0)

        def here(x: Float[Tensor, "*rows width"]) -> Float[Tensor, "batch width"]:
            """The answer position, in float32; OPT's MLPs have batch and position in one."""
            return x.reshape(count, -1, x.shape[-1])[torch.arange(count), where.to(x.device)].float()

        seen: dict[nn.Module, Callable[[Tensor, Tensor], None]] = {
            model.blocks[0].hook_resid_pre: lambda _, x: self.take("embedding", 0, here(x)),
            model.unembed: lambda x, logits: self.take_logits(x[:, 0].float(), logits[:, 0].float()),
        }
        for layer, block in enumerate(model.blocks):
            if (point := getattr(block, "hook_mlp_out", None)) is not None:
                seen[point] = lambda _, x, layer=layer: self.take("mlps", layer, here(x))
            if layer in self.reader.post:
                seen[block.ln1_post] = lambda x, y, layer=layer: self.keep(
                    "post_scale", layer, self.reader.post[layer].scale(here(x), here(y))
                )
        if (final := getattr(model, "ln_final", None)) is not None:
            seen[final] = lambda x, y: self.take_final(here(x), here(y))
        return seen

    def take(self, name: str, layer: int, x: Float[Tensor, "prompt width"]) -> None:
        """What an addend of the residual stream gives to every label."""
        part = einsum(x, self.along.to(x.device), "prompt width, prompt label width -> prompt label")
        self.keep(name, layer, part)

    def take_final(self, x: Float[Tensor, "batch width"], y: Float[Tensor, "batch width"]) -> None:
        self.sigma, self.normed = self.reader.final.scale(x, y), y

    def take_logits(self, x: Float[Tensor, "batch width"], logits: Float[Tensor, "batch vocab"]) -> None:
        """What the unembedding got and gave, which its matrix must give too."""
        reader = self.reader
        if getattr(reader.adapter.model, "ln_final", None) is None:
            self.take_final(x, x)
        which = self.which.to(x.device)
        measured = logits.gather(1, self.batch.label_tokens.to(x.device))
        normed = self.normed.to(x.device)
        expected = einsum(normed, reader.columns[which], "prompt width, prompt label width -> prompt label")
        off = (expected + reader.bias[which] - measured).abs().max() / measured.abs().max().clamp(min=1e-12)
        if not float(off) <= reader.final.limit:
            raise ModelError(
                "logits must be the final norm's output times unembed.W_U; for the label tokens of "
                f"{reader.adapter.name} these differ by {float(off):.1e} of their size (tolerance "
                f"{reader.final.limit:.0e}). Something stands between norm and unembedding, or a hook edits one.",
                code="not-linear",
            )
        self.measured = measured

    def results(self, truth: Int[Tensor, " prompt"] | None) -> dict[str, Tensor]:
        """All parts toward one label a prompt, on the CPU; they must add up."""
        reader, layers = self.reader, range(self.reader.adapter.shape.layers)
        measured, sigma = self.measured.cpu(), self.sigma.cpu()
        to = measured.argmax(1) if truth is None else truth
        picked = torch.arange(len(to)), to
        for layer, norm in reader.post.items():
            scale = self.parts["post_scale"][layer]
            for name in ("heads", "read_outs", "attention_biases"):
                part = self.parts[name][layer]
                self.parts[name][layer] = part / scale.to(part.device).reshape(-1, *[1] * (part.dim() - 1))
            self.parts["attention_biases"][layer] += self.along.to(norm.beta.device) @ norm.beta

        def chosen(name: str) -> Tensor:
            found = self.parts.get(name, {})
            zeros = torch.zeros(len(to), self.batch.labels)
            parts = torch.stack([found[at].cpu() if at in found else zeros for at in layers], 1)
            one = parts[picked[0], ..., picked[1]]
            return one / sigma.reshape(-1, *[1] * (one.dim() - 1))

        bias = contrast(reader.bias[self.which.to(reader.bias.device)], dim=1)
        shift = self.delta @ reader.final.beta.to(self.delta.device)
        found = {name: chosen(name) for name in ("heads", "read_outs", "mlps", "attention_biases")} | {
            "weights": torch.stack([self.parts["weights"][at].cpu() for at in layers], 1),
            "embedding": self.parts["embedding"][0].cpu()[picked] / sigma,
            "biases": (bias + shift).cpu()[picked],
            "total": contrast(measured, dim=1)[picked],
        }
        found["demos"] = found["weights"] * found["read_outs"]
        parts = torch.cat(
            [
                found["heads"].flatten(1),
                found["mlps"],
                found["attention_biases"],
                torch.stack([found["embedding"], found["biases"]], 1),
            ],
            1,
        )
        found["residual"] = (parts.double().sum(1) - found["total"]).abs().float()
        largest = torch.maximum(parts.abs().amax(1), measured.abs().amax(1)).clamp(min=1e-12)
        self.check_sum(found["residual"] / largest)
        return {**found, "toward": to}

    def check_sum(self, off: Float[Tensor, " batch"]) -> None:
        adapter, limit = self.reader.adapter, self.reader.final.limit
        worst = int(off.nan_to_num(nan=torch.inf).argmax())
        if off[worst] <= limit:
            return
        hooks = adapter.hooks_in_place()
        cause = (
            f"It has hooks ({', '.join(hooks[:3])}), which may edit what is summed: remove them."
            if hooks
            else "Its blocks may add something beside attention and MLP, or scale them: it cannot be split."
        )
        raise ModelError(
            f"the parts must add up to the logit difference; for prompt {self.numbers[worst]} of {adapter.name} they miss "
            f"it by {float(off[worst]):.1e} of the largest (tolerance {limit:.0e}). {cause}",
            code="not-linear",
        )
