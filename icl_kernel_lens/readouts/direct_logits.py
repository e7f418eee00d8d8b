"""What each head writes straight into the label logits, and through which demonstration.

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

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor, nn

from icl_kernel_lens.axes import HeadRef, Reference, check_reference
from icl_kernel_lens.errors import ModelError, PromptError
from icl_kernel_lens.evidence.read import check_finite
from icl_kernel_lens.evidence.runner import BatchSize, run_prompts
from icl_kernel_lens.models.attend import Block, Rule, answer_row, attend, attend_blocks
from icl_kernel_lens.models.fast import Prefix, to_be_taken_over
from icl_kernel_lens.models.lens import InterceptableLens, evaluating
from icl_kernel_lens.models.probe import tolerance
from icl_kernel_lens.prompts import PromptSet
from icl_kernel_lens.results import store
from icl_kernel_lens.results.resample import cluster_bootstrap
from icl_kernel_lens.results.run_info import RunInfo

if TYPE_CHECKING:
    import pandas as pd

EXACT = 1e-3
"""Largest error of the sum in float32, relative to its largest part; half precision has `probe.tolerance`."""


@dataclass(frozen=True, eq=False)
class ValueSide:
    """Per head, a line through what it wrote for each demonstration; NaN where nothing varies."""

    slope: Float[Tensor, "layer head"]
    """Logits per unit of attention on a demonstration with the label in question."""
    r2: Float[Tensor, "layer head"]
    """The share of variance that the line explains."""


@dataclass(frozen=True, eq=False, repr=False)
class DirectLogits:
    """The logit difference toward one label, in parts that add up to it."""

    heads: Float[Tensor, "prompt layer head"]
    demos: Float[Tensor, "prompt layer head demo"]
    """The part of `heads` through each demonstration's first label token."""
    weights: Float[Tensor, "prompt layer head demo"]
    """The attention on these tokens, not renormalised."""
    read_outs: Float[Tensor, "prompt layer head demo"]
    """What the head would write if it read this token alone: ⟨J v W_O[h], δ_c⟩; `demos` is `weights` times it."""
    mlps: Float[Tensor, "prompt layer"]
    embedding: Float[Tensor, " prompt"]
    """Token and position embeddings, as the first layer gets them."""
    attention_biases: Float[Tensor, "prompt layer"]
    """Output biases of attention; values' biases are in `heads`, for attention weights sum to one."""
    biases: Float[Tensor, " prompt"]
    """Of the final norm and of the unembedding."""
    total: Float[Tensor, " prompt"]
    """The logit difference as the model gave it, before any soft cap."""
    residual: float
    """The largest |sum of all parts − total|."""
    toward: Int[Tensor, " prompt"]
    """The class that each difference is toward."""
    demo_labels: Int[Tensor, "prompt demo"]
    labels: int
    demo_set: Int[Tensor, " prompt"]
    run: RunInfo
    settings: Mapping[str, str] = field(default_factory=dict)

    def mean(self) -> Float[Tensor, "layer head"]:
        """Of each head, over prompts."""
        return self.heads.mean(0)

    def interval(
        self, level: float = 0.95, *, draws: int = 2000, seed: int = 0
    ) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"]]:
        """Bootstrap interval of the mean, demonstration sets drawn whole; per head and pointwise."""
        low, high = cluster_bootstrap(
            self.heads.flatten(1), self.demo_set, level=level, draws=draws, seed=seed
        )
        return low.reshape(self.heads.shape[1:]), high.reshape(self.heads.shape[1:])

    def regression(self) -> ValueSide:
        """Does a head write what kernel regression would: attention times label?

            demos_i ≈ intercept + slope · A_{r,p_i} ([y_i = c] − [y_i ≠ c] / (C − 1))

        by least squares over all prompts and demonstrations of each head, with c the class in `toward`.
        Reads as: R² near 1, what the head writes for a demonstration is its weight times its label; near 0, it
        is something else, whatever its attention votes.
        Does not show: how much it writes (see the slope), nor intervals; prompts of one set are not independent.
        """
        right = (self.demo_labels == self.toward[:, None])[:, None, None].double()
        x = self.weights.double() * (right - (1 - right) / (self.labels - 1))
        x, y = (t.permute(1, 2, 0, 3).flatten(2) for t in (x, self.demos.double()))
        x, y = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
        xx, yy, xy = x.square().sum(-1), y.square().sum(-1), (x * y).sum(-1)
        flat = (xx <= 0) | (yy <= 0)
        return ValueSide(
            slope=(xy / xx).masked_fill(flat, float("nan")).float(),
            r2=(xy.square() / (xx * yy)).masked_fill(flat, float("nan")).float(),
        )

    def table(self) -> pd.DataFrame:
        """One row per head, the largest mean first."""
        import pandas as pd

        low, high = self.interval()
        layers, heads = self.heads.shape[1:]
        value_side = self.regression()
        frame = pd.DataFrame({"head": [str(HeadRef(at, h)) for at in range(layers) for h in range(heads)]})
        columns = {
            "direct_logits": self.mean(),
            "low": low,
            "high": high,
            "through_labels": self.demos.sum(-1).mean(0),
            "slope": value_side.slope,
            "r2": value_side.r2,
        }
        for name, column in columns.items():
            frame[name] = column.flatten().numpy()
        return frame.sort_values("direct_logits", ascending=False, kind="stable", ignore_index=True)

    def to_dataframe(self) -> pd.DataFrame:
        """Long form: prompt, layer, head, value, and the part of it through label tokens."""
        import pandas as pd

        index = torch.cartesian_prod(*(torch.arange(n) for n in self.heads.shape))
        frame = pd.DataFrame(index.reshape(-1, 3).numpy(), columns=["prompt", "layer", "head"])
        frame["value"] = self.heads.flatten().numpy()
        frame["through_labels"] = self.demos.sum(-1).flatten().numpy()
        return frame

    def save(self, path: str | Path) -> Path:
        """Write the whole result; `load` reads it back."""
        meta = {
            "residual": self.residual,
            "labels": self.labels,
            "settings": dict(self.settings),
            "run": self.run.to_json(),
        }
        return store.write(path, "DirectLogits", {name: getattr(self, name) for name in _TENSORS}, meta)

    @classmethod
    def load(cls, path: str | Path) -> DirectLogits:
        """Read what `save` wrote.

        Raises: LoadError: another kind of file, another format version, or a damaged one.
        """
        tensors, meta = store.read(path, "DirectLogits")
        try:
            return cls(
                **{name: tensors[name] for name in _TENSORS},
                residual=meta["residual"],
                labels=meta["labels"],
                settings=meta["settings"],
                run=RunInfo.from_json(meta["run"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise store.missing_field(path, "DirectLogits", error) from error

    def __repr__(self) -> str:
        prompts, layers, heads = self.heads.shape
        mean = float(self.total.mean())
        parts = {
            "heads": self.heads.sum((1, 2)),
            "of these through label tokens": self.demos.sum((1, 2, 3)),
            "MLPs": self.mlps.sum(1),
            "embedding": self.embedding,
            "biases": self.attention_biases.sum(1) + self.biases,
        }
        lines = [
            f"DirectLogits({prompts} prompts × {layers} layers × {heads} heads, toward "
            f"{self.settings.get('toward', '?')}; {self.run.model} on {self.run.prompts.task})",
            f"  mean logit difference {mean:.3f}: "
            + ", ".join(f"{name} {float(part.mean()):.3f}" for name, part in parts.items())
            + f"; parts add up within {self.residual:.1e}",
            self.table().head(5).to_string(float_format=lambda x: f"{x:.3f}"),
        ]
        return "\n".join(lines)


_TENSORS = (
    "heads",
    "demos",
    "weights",
    "read_outs",
    "mlps",
    "embedding",
    "attention_biases",
    "biases",
    "total",
    "toward",
    "demo_labels",
    "demo_set",
)


def direct_logits(
    model: Any,
    prompts: PromptSet,
    *,
    toward: Reference = "model",
    batch_size: BatchSize = "auto",
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> DirectLogits:
    """What each head writes straight into the logit of one label over the others, split by demonstration.

        heads = ⟨J z_h W_O[h], δ_c⟩        demos_i = A_{r,p_i} ⟨J v_{p_i} W_O[h], δ_c⟩

    with J and δ_c as at the head of this module, and c the model's own answer among the labels
    (`toward="truth"`: the true label). Labels are compared by the logit of their first token, before any
    soft cap. Shared leading tokens, memory and checkpoints are as for `read`.

    Reads as: positive, the head pushes toward the label. Beside a head's vote, `demos` says whether its
    values carry the labels that its attention weighs (`DirectLogits.regression`).
    Does not show: effects through later layers; a head that feeds them has little here and may matter much.
    Contributions depend on each other through the frozen scale, so removing a head changes more than its part.

    Raises: ModelError: attention cannot be taken over, a norm is not linear at a frozen scale, the
            unembedding gives other logits than its matrix, or the parts do not add up to the logit difference.
            PromptError: prompts scored on whole label sequences; no true labels for `toward="truth"`.
    Example:
        >>> from icl_kernel_lens import load_model, load_task
        >>> model = load_model("mini", device="cpu")
        >>> prompts = load_task("topics").prompts(model, demos=4, count=2, seed=0)
        >>> direct_logits(model, prompts, progress=False).demos.shape
        torch.Size([2, 3, 4, 4])
    """
    check_reference(toward)
    lens = to_be_taken_over(model, "to split logits", "Use another model.")
    check_first_token(prompts, toward, "direct_logits")
    if missing := lens.missing_attention():
        raise ModelError(
            "every layer must have attention for the parts to add up; " + "; ".join(missing.values()) + "."
        )
    reader = _Reader.of(lens, prompts)

    def step(numbers: list[int], prefix: Prefix | None) -> dict[str, Tensor]:
        batch = prompts.select(numbers)
        reading = _Pass(reader, batch, numbers, prefix)
        start = prefix.end if prefix else 0
        width, at = int(batch.lengths.max()), batch.answer_pos[:, None] - start
        with lens.intercepting(reading.attention, start=start), reading.looking():
            logits = lens.run(batch.tokens[:, start:width], batch.lengths - start, at)
        check_finite(logits[:, 0].cpu(), torch.tensor(numbers), lens)
        return reading.results(batch.test_labels if toward == "truth" else None)

    results, how = run_prompts(
        prompts,
        lens,
        step,
        name="attributing logits",
        settings={"toward": toward},
        batch_size=batch_size,
        checkpoint=checkpoint,
        progress=progress,
    )
    return DirectLogits(
        **{name: results[name] for name in _TENSORS if name in results},
        residual=float(results["residual"].max()),
        demo_labels=prompts.demo_labels.clone(),
        labels=prompts.labels,
        demo_set=prompts.demo_set.clone(),
        run=RunInfo.of(lens, prompts.info, prompts.score_on, reading=f"attention taken over; {how}"),
        settings={"toward": toward},
    )


def check_first_token(prompts: PromptSet, toward: Reference, name: str) -> None:
    """Refuse prompts that one position's logits do not answer, or without the labels asked for."""
    if prompts.score_on == "sequence":
        raise PromptError(
            f"{name} splits one logit for each label; these prompts are scored on whole label sequences. Choose "
            'label words that differ in their first token, with score_on="first_token".'
        )
    if toward == "truth" and prompts.test_labels is None:
        raise PromptError(
            f'{name} with toward="truth" needs true labels; these prompts have none. Pass test_labels to '
            'PromptSet.from_tokens, or toward="model".'
        )


def contrast(values: Tensor, dim: int) -> Tensor:
    """Each label's value minus the mean of the others'."""
    labels = values.shape[dim]
    return values - (values.sum(dim, keepdim=True) - values) / (labels - 1)


@dataclass(frozen=True)
class _Norm:
    """A norm as f(x) = γ ⊙ C x / σ(x) + β, found by calling it; an identity is one too, its σ constant."""

    name: str
    gamma: Float[Tensor, " width"]
    beta: Float[Tensor, " width"]
    centred: bool
    limit: float

    @classmethod
    def of(cls, module: nn.Module, name: str, width: int, lens: InterceptableLens) -> _Norm:
        """From f(0) = β; f(±K s), whose norm is K for alternating signs s; and whether f(x + 1) = f(x)."""
        like = next(module.parameters(), torch.empty(0, dtype=lens.dtype, device=lens.device))
        signs = 1.0 - 2.0 * (torch.arange(width) % 2)
        x = torch.randn(width, generator=torch.Generator().manual_seed(0))
        given = torch.stack([torch.zeros(width), _LARGE * signs, -_LARGE * signs, x, x + 3])
        out = module(given[None].to(like))[0].float()
        beta, odd = out[0], (out[1] - out[2]) / 2
        moved = (out[4] - out[3]).abs().mean()
        centred = bool(moved < 0.1 * (out[3] - beta).abs().mean())
        return cls(name, odd * signs.to(odd), beta, centred, max(EXACT, tolerance(lens.dtype)))

    def linear(self, x: Tensor) -> Tensor:
        """γ ⊙ C x."""
        return self.gamma * (x - x.mean(-1, keepdim=True) if self.centred else x)

    def transposed(self, u: Tensor) -> Tensor:
        """C (γ ⊙ u): what ⟨γ ⊙ C x, u⟩ = ⟨x, ·⟩ is taken with."""
        u = self.gamma.to(u.device) * u
        return u - u.mean(-1, keepdim=True) if self.centred else u

    def scale(
        self, x: Float[Tensor, "batch width"], y: Float[Tensor, "batch width"]
    ) -> Float[Tensor, " batch"]:
        """σ of each input, given what came out; by least squares, and then it must fit."""
        line, shifted = self.linear(x), y - self.beta
        square = line.square().sum(-1)
        sigma = (square / (line * shifted).sum(-1)).masked_fill(square == 0, 1)
        off = (line / sigma[:, None] - shifted).abs().amax(-1) / y.abs().amax(-1).clamp(min=1e-12)
        if not bool((off <= self.limit).all()):
            raise ModelError(
                f"a norm must be linear once its scale is held; {self.name} is not: γ ⊙ C x / σ + β misses what "
                f"it gives by {float(off.max()):.1e} of its size (tolerance {self.limit:.0e}). Direct logits "
                "are not defined for it."
            )
        return sigma


_LARGE = 100.0
"""Against which the ε of a norm is nothing, and whose square half precision still holds."""


@dataclass(frozen=True)
class _Reader:
    """What is the same for all prompts: norms, and the unembedding of every label token."""

    lens: InterceptableLens
    final: _Norm
    post: Mapping[int, _Norm]
    """Norms between attention and the residual stream."""
    tokens: Int[Tensor, " token"]
    columns: Float[Tensor, "token width"]
    """W_U of these tokens, on the device of the unembedding."""
    bias: Float[Tensor, " token"]

    @classmethod
    def of(cls, lens: InterceptableLens, prompts: PromptSet) -> _Reader:
        model = lens.model
        tokens = prompts.label_tokens.unique()
        with torch.no_grad(), evaluating(model):
            try:
                weight = model.unembed.W_U
                blocks = [(block.attn.W_O, block.hook_resid_pre) for block in model.blocks]
            except (AttributeError, NotImplementedError) as error:
                raise ModelError(
                    "direct_logits needs unembed.W_U, and of every block attn.W_O and hook_resid_pre; "
                    f"{lens.name} ({lens.kind}) lacks one ({error})."
                ) from error
            width, heads = weight.shape[0], lens.shape.heads
            for layer, (matrix, _) in enumerate(blocks):
                if matrix.dim() != 3 or (matrix.shape[0], matrix.shape[2]) != (heads, width):
                    raise ModelError(
                        f"blocks.{layer}.attn.W_O must be (head, d_head, width), {heads} heads to {width}; in "
                        f"{lens.name} it is {tuple(matrix.shape)}."
                    )
            nothing = torch.zeros(1, 1, width, dtype=weight.dtype, device=weight.device)
            there = tokens.to(weight.device)
            post = {
                layer: _Norm.of(norm, f"blocks.{layer}.ln1_post", width, lens)
                for layer, block in enumerate(model.blocks)
                if (norm := getattr(block, "ln1_post", None)) is not None
            }
            return cls(
                lens=lens,
                final=_Norm.of(getattr(model, "ln_final", nn.Identity()), "ln_final", width, lens),
                post=post,
                tokens=tokens,
                columns=weight[:, there].T.float(),
                bias=model.unembed(nothing)[0, 0, there].float(),
            )


class _Pass:
    """One batch under way: everything at the answer position, reduced toward every label where it lives."""

    def __init__(self, reader: _Reader, batch: PromptSet, numbers: list[int], prefix: Prefix | None) -> None:
        self.reader, self.batch, self.numbers, self.prefix = reader, batch, numbers, prefix
        self.start = prefix.end if prefix else 0
        self.which = torch.searchsorted(reader.tokens, batch.label_tokens)
        columns = reader.columns
        self.delta = contrast(columns[self.which.to(columns.device)], dim=1)
        """(prompt, label, width), on the device of the unembedding."""
        self.along = {columns.device: reader.final.transposed(self.delta)}
        self.parts: dict[str, dict[int, Tensor]] = {}
        self.post_scale: dict[int, Tensor] = {}

    def direction(self, device: torch.device) -> Float[Tensor, "prompt label width"]:
        """C (γ ⊙ δ), on this device; what is taken along it still has to be divided by σ."""
        if device not in self.along:
            self.along[device] = next(iter(self.along.values())).to(device)
        return self.along[device]

    def keep(self, name: str, layer: int, part: Tensor) -> None:
        self.parts.setdefault(name, {})[layer] = part

    def attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        """The handler: attention as ever, and what each head writes of it."""
        before = self.prefix.blocks[layer] if self.prefix else ()
        blocks = (*before, Block(k, v, self.start))
        z = attend_blocks(q, blocks, rule) if self.prefix else attend(q, k, v, rule)
        rows = torch.arange(len(q), device=q.device)
        at = (self.batch.answer_pos - self.start).to(q.device)
        label_pos = self.batch.label_pos.to(q.device)
        row = answer_row(q[rows, :, at], self.batch.answer_pos, blocks, rule)
        weights = row.gather(-1, label_pos[:, None].expand(-1, row.shape[1], -1))
        attn = self.reader.lens.model.blocks[layer].attn
        along = self.direction(q.device)
        if layer in self.reader.post:
            along = self.reader.post[layer].transposed(along)
        out = attn.W_O.to(q.device).float()
        toward = einsum(out, along, "head d_head width, prompt label width -> prompt head d_head label")
        values = _values_at(blocks, label_pos, q.shape[1])
        self.keep("weights", layer, weights)
        heads = einsum(z[rows, :, at].float(), toward, "p head d_head, p head d_head label -> p head label")
        self.keep("heads", layer, heads)
        self.keep("read_outs", layer, einsum(values, toward, "p h demo d, p h d label -> p h demo label"))
        bias = getattr(attn, "b_O", None)
        self.keep(
            "attention_biases",
            layer,
            heads.new_zeros(len(q), self.batch.labels) if bias is None else along @ bias.to(along),
        )
        return z

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Hooks for the length of one run; only they are removed again."""
        model = self.reader.lens.model
        final = getattr(model, "ln_final", None)
        with ExitStack() as stack:

            def look(module: nn.Module, see: Callable[[Tensor, Tensor], None]) -> None:
                def hook(_module: nn.Module, given: tuple[Any, ...], out: Any) -> None:
                    see(given[0], out)

                stack.callback(module.register_forward_hook(hook).remove)

            look(model.blocks[0].hook_resid_pre, lambda _, x: self.take("embedding", 0, x))
            for layer, block in enumerate(model.blocks):
                if (point := getattr(block, "hook_mlp_out", None)) is not None:
                    look(point, lambda _, x, layer=layer: self.take("mlps", layer, x))
                if layer in self.reader.post:
                    look(block.ln1_post, lambda x, y, layer=layer: self.take_post(layer, x, y))
            if final is not None:
                look(final, lambda x, y: self.take_final(self.at(x), self.at(y)))
            look(model.unembed, lambda x, logits: self.take_logits(x[:, 0].float(), logits[:, 0].float()))
            yield

    def at(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "batch width"]:
        """The answer position, in float32; OPT's MLPs have batch and position in one."""
        rows = torch.arange(len(self.numbers), device=x.device)
        x = x.reshape(len(self.numbers), -1, x.shape[-1])
        return x[rows, (self.batch.answer_pos - self.start).to(x.device)].float()

    def take(self, name: str, layer: int, x: Float[Tensor, "*rows width"]) -> None:
        along = self.direction(x.device)
        self.keep(name, layer, einsum(self.at(x), along, "prompt width, prompt label width -> prompt label"))

    def take_post(self, layer: int, x: Tensor, y: Tensor) -> None:
        self.post_scale[layer] = self.reader.post[layer].scale(self.at(x), self.at(y))

    def take_final(self, x: Float[Tensor, "batch width"], y: Float[Tensor, "batch width"]) -> None:
        self.sigma, self.normed = self.reader.final.scale(x, y), y

    def take_logits(self, x: Float[Tensor, "batch width"], logits: Float[Tensor, "batch vocab"]) -> None:
        """What the unembedding got and gave, which its matrix must give too."""
        reader = self.reader
        if getattr(reader.lens.model, "ln_final", None) is None:
            self.take_final(x, x)
        which = self.which.to(x.device)
        measured = logits.gather(1, self.batch.label_tokens.to(x.device))
        normed = self.normed.to(x.device)
        expected = einsum(normed, reader.columns[which], "prompt width, prompt label width -> prompt label")
        off = (expected + reader.bias[which] - measured).abs().max() / measured.abs().max().clamp(min=1e-12)
        if not float(off) <= reader.final.limit:
            raise ModelError(
                "logits must be the final norm's output times unembed.W_U; for the label tokens of "
                f"{reader.lens.name} these differ by {float(off):.1e} of their size (tolerance "
                f"{reader.final.limit:.0e}). Something stands between norm and unembedding, or a hook edits one."
            )
        self.measured = measured

    def results(self, truth: Int[Tensor, " prompt"] | None) -> dict[str, Tensor]:
        """All parts toward one label a prompt, on the CPU; they must add up."""
        reader, layers = self.reader, range(self.reader.lens.shape.layers)
        measured, sigma = self.measured.cpu(), self.sigma.cpu()
        to = measured.argmax(1) if truth is None else truth
        picked = torch.arange(len(to)), to
        for layer, norm in reader.post.items():
            scale = self.post_scale[layer]
            for name in ("heads", "read_outs", "attention_biases"):
                part = self.parts[name][layer]
                self.parts[name][layer] = part / scale.to(part.device).reshape(-1, *[1] * (part.dim() - 1))
            self.parts["attention_biases"][layer] += self.direction(norm.beta.device) @ norm.beta

        def chosen(name: str) -> Tensor:
            found = self.parts.get(name, {})
            zeros = torch.zeros(len(to), self.batch.labels)
            parts = torch.stack([found[at].cpu() if at in found else zeros for at in layers], 1)
            one = parts[picked[0], ..., picked[1]]
            return one / sigma.reshape(-1, *[1] * (one.dim() - 1))

        bias = contrast(reader.bias[self.which.to(reader.bias.device)], dim=1)
        bias = bias + self.delta @ reader.final.beta.to(self.delta.device)
        found = {name: chosen(name) for name in ("heads", "read_outs", "mlps", "attention_biases")}
        weights = torch.stack([self.parts["weights"][at].cpu() for at in layers], 1)
        found |= {"weights": weights, "demos": weights * found["read_outs"]}
        found["embedding"] = (self.parts["embedding"][0].cpu()[picked]) / sigma
        found["biases"] = bias.cpu()[picked]
        found["total"] = contrast(measured, dim=1)[picked]
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
        lens, limit = self.reader.lens, self.reader.final.limit
        if bool((off <= limit).all()):
            return
        worst = int(off.nan_to_num(nan=torch.inf).argmax())
        hooks = lens.hooks_in_place()
        cause = (
            f"It has hooks ({', '.join(hooks[:3])}), which may edit what is summed: remove them."
            if hooks
            else "Its blocks may add something beside attention and MLP, or scale them: it cannot be split."
        )
        raise ModelError(
            f"the parts must add up to the logit difference; for prompt {self.numbers[worst]} of {lens.name} they miss "
            f"it by {float(off[worst]):.1e} of the largest (tolerance {limit:.0e}). {cause}"
        )


def _values_at(
    blocks: tuple[Block, ...], positions: Int[Tensor, "batch demo"], heads: int
) -> Float[Tensor, "batch head demo d_head"]:
    """v at some positions of each prompt, in float32, from whichever block holds them."""
    batch, demos = positions.shape
    found = torch.zeros(
        batch, heads, demos, blocks[0].v.shape[-1], device=positions.device, dtype=torch.float32
    )
    for block in blocks:
        here = (positions >= block.start) & (positions < block.end)
        index = (positions - block.start).clamp(0, block.end - block.start - 1)
        v = block.v.expand(batch, -1, -1, -1)
        v = v.gather(2, index[:, None, :, None].expand(-1, v.shape[1], -1, v.shape[-1])).float()
        v = v.repeat_interleave(heads // v.shape[1], 1)
        found = torch.where(here[:, None, :, None], v, found)
    return found
