"""Is what the hooks show really this model's attention? Measured on the model in hand, at first use.

On a few random tokens, for every layer:

    the pattern hook fires exactly once, with shape (batch, head, query, key)
    A[q, k] = 0 for k > q    attention is causal, so that padding cannot be seen
    Σ_k A[q, k] = 1          or 1 − (the declared attention sink), up to rounding
    z[q] = Σ_k A[q, k] v[k]  per query head; values are repeated over the group of query heads

and, where attention can be taken over (`models/fast.py`), that the row rebuilt from q and k equals the
pattern's and the logits those of the plain run; once for whole prompts, once with their leading tokens run
apart. Where they differ, the model is read by its own path.

The residuals are kept (`ProbeReport`) and travel with every result. Does not show: that an edit of the
pattern changes the model's output; on some architectures it does not.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from einops import einsum, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from icl_kernel_lens.errors import ModelError
from icl_kernel_lens.models.intercept import CannotIntercept
from icl_kernel_lens.models.lens import HookName, InterceptableLens, Lens

PROBE_TOKENS = 13
"""Length of the longer of the two probing prompts; the other is two tokens shorter."""

_reports: WeakKeyDictionary[object, tuple[list[str], ProbeReport]] = WeakKeyDictionary()
"""With the user's hooks that were in place: what is found under some is not kept for when they are gone."""


@dataclass(frozen=True)
class ProbeReport:
    """The largest residuals met, per layer, and the layers that have no attention at all."""

    row_sum: Mapping[int, float]
    """|Σ_k A − 1| (or minus the declared sink), the largest over heads and query positions."""
    values: Mapping[int, float]
    """|z − A·V|, the largest over heads and positions, relative to the largest |z|."""
    missing: Mapping[int, str]
    """Layers that cannot be scored, and why."""
    taken_over: float = float("nan")
    """Largest difference, in rows and in logits relative to their size, of the ways below from the plain run."""
    not_fast: str | None = "it was not tried"
    """Why attention cannot be read without writing it out; None: it can."""
    not_shared: str | None = "it was not tried"
    """Why leading tokens cannot be run apart; None: they can."""
    not_alone: str | None = "it was not tried"
    """Why the last token cannot be run with all others kept; None: it can."""

    @property
    def worst(self) -> float:
        return max([*self.row_sum.values(), *self.values.values()], default=float("nan"))

    def __str__(self) -> str:
        text = (
            f"{len(self.row_sum)} attention layers probed: rows sum to 1 within "
            f"{max(self.row_sum.values(), default=float('nan')):.1e}, z = A·V within "
            f"{max(self.values.values(), default=float('nan')):.1e}"
        )
        if self.not_fast is not None:
            text += f"; attention is written out, because {self.not_fast}"
        else:
            text += f"; rebuilt from q and k within {self.taken_over:.1e}"
            text += f", nothing shared, because {self.not_shared}" if self.not_shared else ""
        return text + "".join(f"; {reason}" for reason in self.missing.values())


def tolerance(dtype: torch.dtype) -> float:
    """What rounding explains: 1e-4 in float32, a few units in the last place of half precision."""
    return {torch.float16: 1e-2, torch.bfloat16: 4e-2}.get(dtype, 1e-4)


def probe(lens: Lens) -> ProbeReport:
    """Probe a model once; later calls return that report, unless it was made under hooks that are gone.

    Raises: ModelError: a hook did not fire, rows do not sum to one, or z is not A·V.
    """
    try:
        if lens.model in _reports and not _reports[lens.model][0]:
            return _reports[lens.model][1]
        hooks = lens.hooks_in_place() if isinstance(lens, InterceptableLens) else []
        if lens.model in _reports and _reports[lens.model][0] == hooks:
            return _reports[lens.model][1]
        report = _probe(lens)
        _reports[lens.model] = hooks, report
    except TypeError:  # a model that cannot be weakly referenced is probed every time
        return _probe(lens)
    return report


def _probe(lens: Lens) -> ProbeReport:
    shape, missing = lens.shape, lens.missing_attention()
    layers = [layer for layer in range(shape.layers) if layer not in missing]
    if not layers:
        raise ModelError(
            f"a model must have attention to be read; none of the {shape.layers} layers of {lens.name} has "
            f"({next(iter(missing.values()))}). State-space and recurrent models cannot be scored."
        )
    length = min(PROBE_TOKENS, shape.context or PROBE_TOKENS)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(shape.vocab, (2, length), generator=generator)
    alike = length // 2
    tokens[1, :alike] = tokens[0, :alike]
    lengths = torch.tensor([length, length - 2])

    row_sum: dict[int, float] = {}
    values: dict[int, float] = {}
    seen: dict[tuple[int, HookName], Tensor] = {}
    fired: dict[tuple[int, HookName], int] = {}
    sinks = _declared_sinks(lens)

    def see(layer: int, name: HookName, activation: Tensor) -> None:
        fired[layer, name] = fired.get((layer, name), 0) + 1
        seen[layer, name] = activation.detach().float()

    def looker(layer: int, name: HookName):
        return lambda activation: see(layer, name, activation)

    names: tuple[HookName, ...] = ("hook_pattern", "hook_v", "hook_z")
    with lens.watching({(layer, name): looker(layer, name) for layer in layers for name in names}):
        logits = lens.run(tokens, lengths, lengths[:, None] - 1)
    for name in names:
        check_fired({layer: fired.get((layer, name), 0) for layer in layers}, name, lens)
    limit = tolerance(lens.dtype)
    for layer in layers:
        expected = (2, shape.heads, length, length)
        if tuple(seen[layer, "hook_pattern"].shape) != expected:
            raise ModelError(
                f"blocks.{layer}.attn.hook_pattern must have shape {expected} (batch, head, query, "
                f"key); it has {tuple(seen[layer, 'hook_pattern'].shape)} in {lens.name}."
            )
        v, z = seen[layer, "hook_v"], seen[layer, "hook_z"]
        if v.dim() != 4 or z.dim() != 4 or v.shape[-1] != z.shape[-1] or shape.heads % v.shape[2]:
            raise ModelError(
                f"values must be (batch, pos, kv_head, d_head) and z (batch, pos, head, d_head); blocks.{layer}.attn "
                f"of {lens.name} has {tuple(v.shape)} and {tuple(z.shape)}. Attention whose values are stored "
                "otherwise (multi-head latent attention) cannot be read."
            )
        future = seen[layer, "hook_pattern"].triu(1)[0].abs().max().item()
        if future > limit:
            raise ModelError(
                "attention must be causal to be read at the answer position; in blocks."
                f"{layer}.attn.hook_pattern of {lens.name} a position gives {future:.1e} of its attention to later "
                "ones. Encoders and bidirectional models cannot be scored."
            )
        row_sum[layer], values[layer] = _residuals(
            seen[layer, "hook_pattern"],
            seen[layer, "hook_v"],
            seen[layer, "hook_z"],
            lengths,
            has_sink=layer in sinks,
        )
        if not row_sum[layer] <= limit:
            raise ModelError(
                f"every attention row must sum to 1; rows of blocks.{layer}.attn.hook_pattern of "
                f"{lens.name} are off by {row_sum[layer]:.1e} (tolerance {limit:.0e} for "
                f"{lens.dtype}). The hook may show something other than the weights after softmax, or "
                "the layer has an attention sink that the configuration does not declare."
            )
        if not values[layer] <= limit:
            raise ModelError(
                f"z must be the attention-weighted sum of the values; blocks.{layer}.attn.hook_z of "
                f"{lens.name} differs from A·V by {values[layer]:.1e} of its size (tolerance "
                f"{limit:.0e} for {lens.dtype}). The pattern shown is not the one the layer uses: "
                'reload the model with attn_implementation="eager", and remove hooks that edit it.'
            )
    if lens.device.type == "mps":
        cross_check(lens, {at: (seen[at, "hook_pattern"], seen[at, "hook_v"]) for at in layers})
    patterns = {layer: seen[layer, "hook_pattern"] for layer in layers}
    fast, not_fast = _difference(lens, tokens, lengths, patterns, logits, shared=0)
    shared, not_shared = (fast, not_fast) if not_fast else (0.0, None)
    if not_fast is None:
        shared, not_shared = _difference(lens, tokens, lengths, patterns, logits, shared=alike)
    alone, not_alone = (shared, not_shared) if not_shared else (0.0, None)
    if not_shared is None:
        first = {layer: pattern[:1] for layer, pattern in patterns.items()}
        alone, not_alone = _difference(lens, tokens[:1], lengths[:1], first, logits[:1], shared=length - 1)
    worst = max([x for x in (fast, shared, alone) if not math.isnan(x)], default=fast)
    return ProbeReport(row_sum, values, missing, worst, not_fast, not_shared, not_alone)


def _difference(
    lens: Lens,
    tokens: Int[Tensor, "batch pos"],
    lengths: Int[Tensor, " batch"],
    patterns: Mapping[int, Tensor],
    logits: Float[Tensor, "batch 1 vocab"],
    *,
    shared: int,
) -> tuple[float, str | None]:
    """How far attention that is taken over differs from the plain run; and why it is not used, if it is not."""
    from icl_kernel_lens.models.fast import read_prefix, read_rows

    if not isinstance(lens, InterceptableLens):
        return float("nan"), "the lens does not let it be taken over"
    worst = 0.0
    found: set[int] = set()

    def look(layer: int, rows: Tensor) -> None:
        nonlocal worst
        found.add(layer)
        last = patterns[layer][torch.arange(len(lengths)), :, (lengths - 1).to(rows.device)]
        beyond = (torch.arange(rows.shape[-1]) >= lengths[:, None]).to(rows.device)
        gap = (rows - last).abs().masked_fill(beyond[:, None], 0)
        worst = max(worst, gap.max().item())

    try:
        prefix = read_prefix(lens, tokens[0, :shared]) if shared else None
        again = read_rows(lens, tokens[:, shared:], lengths, lengths - 1, look, prefix=prefix)
    except CannotIntercept as error:
        return float("nan"), str(error)
    except Exception as error:
        # Whatever an unknown model's code makes of it: the plain way is always there, and the reason is kept.
        return float("nan"), f"{type(error).__name__}: {error}"
    worst = max(worst, ((again - logits).abs().max() / logits.abs().max().clamp(min=1e-12)).item())
    if found != set(patterns):
        return worst, f"layer {min(set(patterns) - found)} was not taken over"
    if not worst <= tolerance(lens.dtype):
        return worst, f"what it gives differs from the plain run by {worst:.1e}"
    return worst, None


def check_fired(fired: Mapping[int, int], name: HookName, lens: Lens) -> None:
    """Every attention layer's hook fires exactly once in a forward pass, or the user is told."""
    if silent := [layer for layer, count in fired.items() if count == 0]:
        raise ModelError(
            f"blocks.{silent[0]}.attn.{name} did not fire ({len(fired) - len(silent)} of {len(fired)} "
            f"layers seen) in {lens.name}. The model may use fused attention; reload it with "
            'attn_implementation="eager".'
        )
    if often := [layer for layer, count in fired.items() if count > 1]:
        raise ModelError(
            f"blocks.{often[0]}.attn.{name} must fire once in a forward pass; it fired "
            f"{fired[often[0]]} times in {lens.name}. Models that run a block repeatedly are not supported."
        )


def _residuals(
    a: Float[Tensor, "batch head pos key"],
    v: Float[Tensor, "batch key kv_head d_head"],
    z: Float[Tensor, "batch pos head d_head"],
    lengths: Int[Tensor, " batch"],
    *,
    has_sink: bool,
) -> tuple[float, float]:
    """The residuals of one layer over real (unpadded) query positions: row sums, and z against A·V."""
    off = a.sum(-1) - 1
    # A learned sink logit takes its share of every row, so that sums lie strictly below 1.
    off = off.clamp(min=0) if has_sink else off.abs()
    padding = (torch.arange(a.shape[2]) >= lengths[:, None]).to(a.device)
    row_sum = off.masked_fill(padding[:, None], 0).max().item()
    v = repeat(v.to(a.device), "b k g d -> b k (g r) d", r=a.shape[1] // v.shape[2])
    mixed = einsum(a, v, "b h q k, b k h d -> b q h d")
    gap = (mixed - z.to(a.device)).abs().masked_fill(padding[..., None, None], 0)
    return row_sum, (gap.max() / z.abs().max().clamp(min=1e-12)).item()


def _declared_sinks(lens: Lens) -> frozenset[int]:
    """Layers whose attention declares a learned sink logit (a parameter named `sinks`, as in GPT-OSS)."""
    blocks: Iterable[nn.Module] = getattr(lens.model, "blocks", ())
    return frozenset(
        layer
        for layer, block in enumerate(blocks)
        for name, _ in block.named_parameters()
        if name.rsplit(".", 1)[-1] == "sinks"
    )


def cross_check(lens: Lens, seen: Mapping[int, tuple[Tensor, Tensor]]) -> None:
    """On Apple's MPS, sums have been wrong in silence: redo one row of every layer on the CPU."""
    worst = 0.0
    for a, v in seen.values():
        row = a[0, :, -1]
        v = repeat(v[0], "k g d -> k (g r) d", r=a.shape[1] // v.shape[2])
        there = einsum(row, v, "h k, k h d -> h d").cpu()
        here = einsum(row.cpu(), v.cpu(), "h k, k h d -> h d")
        worst = max(worst, (there - here).abs().max().item())
    warnings.warn(
        f"{lens.name} runs on MPS, where PyTorch has given wrong numbers in silence; one attention row "
        f"of each layer, redone on the CPU, differs by at most {worst:.1e}. Check what you publish on "
        "a CPU or a CUDA device.",
        stacklevel=2,
    )
    if worst > tolerance(lens.dtype):
        raise ModelError(
            f"MPS and CPU must agree on A·V; they differ by {worst:.1e} on {lens.name}. Load the model "
            'with device="cpu".'
        )
