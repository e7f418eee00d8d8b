"""Verifies on the model in hand, at first use, that its hooks show its attention.

On a few random tokens, for every layer:

    the pattern hook fires exactly once, with shape (batch, head, query, key)
    A[q, k] = 0 for k > q    attention is causal, so that padding cannot be seen; the logits show that nothing else sees it
    Σ_k A[q, k] = 1          or 1 − (the declared attention sink), up to rounding
    z[q] = Σ_k A[q, k] v[k]  per query head, with the v and z of the layer's own product (`takeover.product_seen`)

and, where attention can be taken over (`attention_passes.py`), that the row rebuilt from q and k equals the
pattern's and the logits those of the plain run: for whole prompts, with their leading tokens run apart, and with the
last token alone behind all others. Where they differ by more than 8 times the model's own rounding, the model is read
by its own path. That rounding is what the plain run changes by when the last digit of q, k and v is another.

The user's hooks are off meanwhile, whenever they came. They run in every forward pass that is for the user; an edit of
the pattern must then reach z, or is refused. A `forward` put in place of a module's own is the model.

The residuals are kept (`VerificationReport`) and travel with every result. Does not show: that an edit of the
pattern changes the model's output; on some architectures it does not.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args
from weakref import WeakKeyDictionary

import torch
from einops import einsum, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from icl_kernel_lens.errors import LensError, ModelError, without_code
from icl_kernel_lens.models.adapter import (
    HookName,
    InterceptableAdapter,
    ModelAdapter,
    as_adapter,
    attention_layers,
    users_hooks,
)
from icl_kernel_lens.models.attention_passes import AttentionUnderWay, attention_pass, read_prefix
from icl_kernel_lens.models.comparison import comparison_of
from icl_kernel_lens.models.hooks import lasting, registered, without_hooks
from icl_kernel_lens.models.stand_in import CannotIntercept
from icl_kernel_lens.models.transformer_lens_adapters import VectorName, modules_of
from icl_kernel_lens.numbers.residuals import gap, largest

VERIFY_TOKENS = 13
"""Length of the longer of the two random prompts; the other is two tokens shorter."""

PATTERN = ("hook_pattern", "hook_attn_scores")
"""Where a hook of the user's sees or edits what is otherwise not written out."""
ROUNDING = {torch.float16: (1e-2, 2.5e-2), torch.bfloat16: (4e-2, 1e-1)}
"""Between what 8 times a model's own rounding is held; 1e-5 and 1e-2 in other types."""
COPIES = 4
"""How many other last digits are tried."""

_reports: WeakKeyDictionary[object, tuple[tuple[int, ...], VerificationReport]] = WeakKeyDictionary()
"""With the changes of the model that stayed in place: what is found under some is not kept for when they are gone."""
_patterns: WeakKeyDictionary[object, tuple[object, ...]] = WeakKeyDictionary()
"""The hooks on patterns that were found to reach z."""


@dataclass(frozen=True)
class VerificationReport:
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
    rounding: float = float("nan")
    """What the plain run itself changes by when the last digits of q, k and v do, in rows and in logits; NaN: not known."""
    limit: float = 1e-5
    """The largest difference that is taken for rounding: 8 times `rounding`, within bounds."""
    logits: str = ""
    """Whether they are Hugging Face's."""

    @property
    def worst(self) -> float:
        return largest([*self.row_sum.values(), *self.values.values()])

    def __str__(self) -> str:
        whole = f", nothing shared, because {self.not_shared}" if self.not_shared else ""
        way = f"rebuilt from q and k within {self.taken_over:.1e} (limit {self.limit:.1e}: {OWN_ROUNDING}){whole}"
        if self.not_fast is not None:
            way = f"attention is written out, because {self.not_fast}"
        verified = (
            f"{len(self.row_sum)} attention layers verified: rows sum to 1 within "
            f"{largest(self.row_sum.values()):.1e}, z = A·V within {largest(self.values.values()):.1e}"
        )
        return "; ".join([verified, way, self.logits, *self.missing.values()])


OWN_ROUNDING = "8 times its own rounding, within bounds"


def tolerance(dtype: torch.dtype) -> float:
    """What rounding explains: 1e-4 in float32, a few units in the last place of half precision."""
    return {torch.float16: 1e-2, torch.bfloat16: 4e-2}.get(dtype, 1e-4)


def verify_model(adapter: ModelAdapter) -> VerificationReport:
    """Verifies a model once, without the user's hooks; later calls return that report.

    Raises: ModelError: a hook did not fire, rows do not sum to one, z is not A·V, or a hook's edit of a pattern does not
            reach z. LoadError: a bridge that the user built gives other logits than what it wraps.
    """
    modules = modules_of(adapter.model)
    changes = lasting(modules)
    try:
        before, report = _reports.get(adapter.model, ((), None))
    except TypeError:  # a model that cannot be weakly referenced is verified every time
        with without_hooks(modules):
            return _verify(adapter)
    if report is None or before != changes:
        with without_hooks(modules):
            report = _verify(adapter)
        _reports[adapter.model] = changes, report
    _check_patterns(adapter, modules)
    return report


def stated(adapter: ModelAdapter) -> str:
    """The report in words, and what becomes of the user's hooks."""
    said, hooks = (
        str(verify_model(adapter)),
        [n for m, n in modules_of(adapter.model).items() if registered(m)],
    )
    if hooks:
        said += f"; verified without the hooks on {', '.join(sorted(hooks))}, which run in every forward pass"
    return said


def _check_patterns(adapter: ModelAdapter, modules: Mapping[nn.Module, str]) -> None:
    """Refuses a hook of the user's that edits a pattern which the layer does not use: what is read would not be so.

    Raises: ModelError: its edit does not reach z, is not attention, or fails on a short prompt.
    """
    points = [module for module, name in modules.items() if name.endswith(PATTERN) and registered(module)]
    found = tuple(number for point in points for number in registered(point))
    if not points or _patterns.get(adapter.model) == found:
        return
    tokens, lengths = _probe(adapter)
    with without_hooks([module for module in modules if module not in points]):
        try:
            _check_layers(adapter, tokens, lengths)
        except LensError:
            raise
        except Exception as error:
            raise ModelError(
                f"hooks on patterns must let a prompt of {tokens.shape[1]} tokens through, on which it is seen whether "
                f"their edits reach z; at {modules[points[0]]} came {type(error).__name__}: {error}. Let the hook pass on "
                "what it does not know.",
                code="not-attention",
            ) from error
    _patterns[adapter.model] = found


def to_be_taken_over(model: Any, purpose: str, instead: str) -> InterceptableAdapter:
    """The adapter of a model whose attention can be taken over exactly.

    Raises: ModelError: it cannot, why, and what to do instead.
    """
    adapter = as_adapter(model)
    reason = verify_model(adapter).not_fast
    if reason is None and (hooks := _on_patterns(adapter)):
        reason = f"{hooks[0]} has a hook, and what it would see is never written out"
    if reason is None and isinstance(adapter, InterceptableAdapter):
        return adapter
    raise ModelError(
        f"attention must be taken over exactly {purpose}; that of {adapter.name} is not ({reason}). {instead}",
        code="not-taken-over",
    )


def reads_fast(adapter: ModelAdapter) -> bool:
    """Whether rows are rebuilt from q and k: it is exact, and no hook of the user's looks at the pattern."""
    return verify_model(adapter).not_fast is None and not _on_patterns(adapter)


def _on_patterns(adapter: ModelAdapter) -> list[str]:
    return [name for name in users_hooks(adapter) if name.endswith(PATTERN)]


def _verify(adapter: ModelAdapter) -> VerificationReport:
    shape, missing, layers = adapter.shape, adapter.missing_attention(), attention_layers(adapter)
    if not layers:
        raise ModelError(
            f"a model must have attention to be read; none of the {shape.layers} layers of {adapter.name} has "
            f"({next(iter(missing.values()))}). {_why_none(adapter)}",
            code="no-attention",
        )
    same_logits = comparison_of(adapter.model).says
    tokens, lengths = _probe(adapter)
    try:
        seen, logits, residuals = _check_layers(adapter, tokens, lengths)
    except torch.OutOfMemoryError:
        raise
    except LensError as error:
        if error.code == "not-attention" and (
            weights := infinite_weights(adapter)
        ):  # whose pattern a model may have hidden
            raise ModelError(
                f"what a model computes must be finite; {adapter.name} has weights that are not. {weights}",
                code="not-finite",
            ) from error
        raise
    except Exception as error:  # an unknown model's code may fail in any way
        raise ModelError(
            f"a model must run on tokens; {adapter.name} does not: {type(error).__name__}: {without_code(error)}. Was it "
            "changed after it was loaded (half precision is asked for by load_model(..., dtype=torch.float16))? Else try "
            "another version of TransformerLens, or another model.",
            code="model-backend",
        ) from error
    if adapter.device.type == "mps":
        cross_check(adapter, {at: (seen[at, "hook_pattern"], seen[at, "hook_v"]) for at in layers})
    rounding = _rounding(adapter, tokens[0], seen, logits[0])
    low, high = ROUNDING.get(adapter.dtype, (1e-5, 1e-2))
    limit = tolerance(adapter.dtype) if math.isnan(rounding) else min(max(8 * rounding, low), high)
    _check_padding(adapter, tokens[1], int(lengths[1]), logits[1], limit)
    length, differences, reason, reasons = tokens.shape[1], [], None, []
    # Of whole prompts, of prompts behind a shared prefix, and of one token behind all others; each needs those before.
    for shared, prompts in ((0, 2), (length // 2, 2), (length - 1, 1)):
        if reason is None:
            difference, reason = _difference(
                adapter,
                tokens[:prompts],
                lengths[:prompts],
                seen,
                logits[:prompts],
                shared=shared,
                limit=limit,
            )
            differences.append(difference)
        reasons.append(reason)
    worst = largest(x for x in differences if x is not None)
    row_sum, values = ({layer: pair[i] for layer, pair in residuals.items()} for i in (0, 1))
    return VerificationReport(
        row_sum, values, missing, worst, *reasons, rounding=rounding, limit=limit, logits=same_logits
    )


def _why_none(adapter: ModelAdapter) -> str:
    """Whether no layer attends, or TransformerLens only shows none that does."""
    under = getattr(adapter.model, "original_model", None)
    kinds = {type(module).__name__ for module in under.modules()} if isinstance(under, nn.Module) else set()
    attends = sorted(kind for kind in kinds if kind.endswith("Attention"))
    if attends and getattr(getattr(under, "config", None), "num_attention_heads", None):
        return (
            f"Hugging Face's code does attend ({attends[0]}), but the installed TransformerLens has no hooks there. Try "
            "another version of it."
        )
    return "State-space and recurrent models cannot be scored."


_NAMES: tuple[HookName, ...] = ("hook_pattern", "hook_v", "hook_z")
Shown = Mapping[tuple[int, HookName], Tensor]
"""What each layer's hooks show."""


def _probe(adapter: ModelAdapter) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, " batch"]]:
    """Two random prompts whose first half is the same, one two tokens shorter than the other."""
    length = min(VERIFY_TOKENS, adapter.shape.context or VERIFY_TOKENS)
    tokens = torch.randint(adapter.shape.vocab, (2, length), generator=torch.Generator().manual_seed(0))
    tokens[1, : length // 2] = tokens[0, : length // 2]
    return tokens, torch.tensor([length, length - 2])


def _check_layers(
    adapter: ModelAdapter, tokens: Tensor, lengths: Tensor
) -> tuple[Shown, Float[Tensor, "batch 1 vocab"], dict[int, tuple[float, float]]]:
    """What a plain run shows, its logits, and each layer's residuals.

    Raises: ModelError: numbers are not finite, or see `_check_layer`.
    """
    layers, sinks = attention_layers(adapter), _declared_sinks(adapter)
    seen, logits = _plain_run(adapter, layers, tokens, lengths)
    _check_finite(adapter, seen, logits, lengths)
    residuals = {
        layer: _check_layer(adapter, layer, lengths, layer in sinks, *(seen[layer, name] for name in _NAMES))
        for layer in layers
    }
    return seen, logits, residuals


def _check_finite(adapter: ModelAdapter, seen: Shown, logits: Tensor, lengths: Tensor) -> None:
    """Refuses infinities and NaN, and names the first place in the forward pass that has them."""
    places = {f"blocks.{layer}.attn.{name}": x for (layer, name), x in seen.items()} | {"its logits": logits}
    for place, x in places.items():
        positions = x.transpose(1, 2) if place.endswith("hook_pattern") and x.dim() == 4 else x
        if not all(bool(row[:end].isfinite().all()) for row, end in zip(positions, lengths, strict=False)):
            raise ModelError(
                f"what a model computes must be finite; {adapter.name} has infinite or undefined numbers first in {place}. "
                f"{why_not_finite(adapter)}",
                code="not-finite",
            )


def infinite_weights(adapter: ModelAdapter) -> str:
    """Which weights are infinite or undefined, in words; empty if none is."""
    weights = [
        f"{name}.{key}".lstrip(".")
        for module, name in modules_of(adapter.model).items()
        for key, weight in module.named_parameters(recurse=False)
        if not bool(weight.isfinite().all())
    ]
    if not weights:
        return ""
    return (
        f"Weights are so themselves ({len(weights)} of its tensors, among them {weights[0]}): the file is damaged, or "
        "training failed. Get the weights anew."
    )


def why_not_finite(adapter: ModelAdapter) -> str:
    """Why a model's numbers are infinite or undefined, as far as can be told, and what to do."""
    if weights := infinite_weights(adapter):
        return weights
    if hooks := users_hooks(adapter):
        return f"Its weights are finite; it has hooks ({', '.join(hooks[:3])}), which may make them. Remove these."
    if adapter.dtype == torch.float16:
        return "Its weights are finite: numbers overflow in float16. Load the model in bfloat16 or float32."
    return (
        f"Its weights are finite: numbers overflow in {adapter.dtype}, as those of wrong weights or of a wrong "
        "config.json do. Check that both are of this model."
    )


def _rounding(
    adapter: ModelAdapter, tokens: Int[Tensor, " pos"], seen: Shown, logits: Float[Tensor, "1 vocab"]
) -> float:
    """How far a plain run of copies in one batch, each with other last digits of q, k and v, is from the first prompt's."""
    if not isinstance(adapter, InterceptableAdapter):
        return float("nan")
    generator, differences = torch.Generator().manual_seed(0), []

    def last_digit(x: Tensor) -> Tensor:
        moved = torch.randint(-1, 2, x.shape, generator=generator).to(x)
        return x * (1 + torch.finfo(x.dtype).eps * moved)

    def compare(layer: int, a: Float[Tensor, "copy head query key"]) -> None:
        differences.append(float((a.float() - seen[layer, "hook_pattern"][0]).abs().max()))

    layers, length = attention_layers(adapter), torch.full((COPIES,), len(tokens))
    edits: dict[tuple[int, HookName | VectorName], Callable[[Tensor], Tensor | None]] = {
        (layer, name): last_digit for layer in layers for name in get_args(VectorName)
    }
    looks = {(layer, "hook_pattern"): partial(compare, layer) for layer in layers}
    try:
        with adapter.editing({**edits, **looks}):  # pyright: ignore[reportArgumentType]
            again = adapter.forward(tokens.expand(COPIES, -1), length, length[:, None] - 1)
    except Exception:  # no such hook point, or a layer that does not take an edit
        return float("nan")
    return largest([*differences, gap(again, logits.expand_as(again))])


def _check_padding(
    adapter: ModelAdapter,
    tokens: Int[Tensor, " pos"],
    length: int,
    padded: Float[Tensor, "1 vocab"],
    limit: float,
) -> None:
    """Refuses a model that gives a prompt other logits for what stands behind it, though no pattern shows it."""
    alone = torch.tensor([length])
    difference = gap(adapter.forward(tokens[None, :length], alone, alone[:, None] - 1)[0], padded)
    if not difference <= limit:
        raise ModelError(
            f"what stands behind a prompt must not change what a model gives for it, or padding would; the logits of "
            f"{adapter.name} for {length} tokens are off by {difference:.1e} of their size (limit {limit:.1e}) with "
            f"{len(tokens) - length} more behind them. A layer chooses its keys, its experts, or which numbers it rounds to 8 bits, by "
            "something that depends on all of what is run: prompts of several lengths cannot be read.",
            code="not-attention",
        )


def _plain_run(
    adapter: ModelAdapter, layers: list[int], tokens: Tensor, lengths: Tensor
) -> tuple[dict[tuple[int, HookName], Tensor], Float[Tensor, "batch 1 vocab"]]:
    """What each layer's hooks show in the model's own forward pass, and its logits at the last positions."""
    seen: dict[tuple[int, HookName], Tensor] = {}

    def keep(at: tuple[int, HookName], activation: Tensor) -> None:
        seen[at] = activation.detach().float()

    with seen_once(adapter, {(at, name): partial(keep, (at, name)) for name in _NAMES for at in layers}):
        logits = adapter.forward(tokens, lengths, lengths[:, None] - 1)
    return seen, logits


def _check_layer(
    adapter: ModelAdapter, layer: int, lengths: Tensor, has_sink: bool, a: Tensor, v: Tensor, z: Tensor
) -> tuple[float, float]:
    """The residuals of one layer: of its row sums, and of z against A·V.

    Raises: ModelError: shapes are not those of attention, it is not causal, or a residual is more than rounding.
    """
    heads, length, limit = adapter.shape.heads, int(lengths.max()), tolerance(adapter.dtype)
    expected = (len(lengths), heads, length, length)
    if tuple(a.shape) != expected:
        raise ModelError(
            f"blocks.{layer}.attn.hook_pattern must have shape {expected} (batch, head, query, "
            f"key); it has {tuple(a.shape)} in {adapter.name}.",
            code="hook-shape",
        )
    if v.dim() != 4 or z.dim() != 4 or v.shape[-1] != z.shape[-1] or heads % v.shape[2]:
        raise ModelError(
            f"values must be (batch, pos, kv_head, d_head) and z (batch, pos, head, d_head); blocks.{layer}.attn "
            f"of {adapter.name} has {tuple(v.shape)} and {tuple(z.shape)}. Its own code has no single product of weights "
            "and values, and its hooks show others: it cannot be read.",
            code="hook-shape",
        )
    future = a.triu(1)[0].abs().max().item()
    if not future <= limit:
        raise ModelError(
            "attention must be causal to be read at the answer position; in blocks."
            f"{layer}.attn.hook_pattern of {adapter.name} a position gives {future:.1e} of its attention to later "
            "ones. Encoders and bidirectional models cannot be scored.",
            code="not-causal",
        )
    if not all(bool(part[0, : int(lengths[0])].isfinite().all()) for part in (z, v)):
        raise ModelError(
            f"what a layer computes must be finite; blocks.{layer}.attn of {adapter.name} gives infinite or undefined "
            f"values. {why_not_finite(adapter)}",
            code="not-finite",
        )
    row_sum, values = _residuals(a, v, z, lengths, has_sink=has_sink)
    if not row_sum <= limit:
        raise ModelError(
            f"every attention row must sum to 1; rows of blocks.{layer}.attn.hook_pattern of "
            f"{adapter.name} are off by {row_sum:.1e} (tolerance {limit:.0e} for "
            f"{adapter.dtype}). The hook may show something other than the weights after softmax, or "
            "the layer has an attention sink that the configuration does not declare.",
            code="not-attention",
        )
    if not values <= limit:
        raise ModelError(
            f"z must be the attention-weighted sum of the values; that of blocks.{layer}.attn of "
            f"{adapter.name} differs from A·V by {values:.1e} of its size (tolerance "
            f"{limit:.0e} for {adapter.dtype}). The layer multiplies its values with other weights than hook_pattern "
            "shows, or a gate or a norm stands between. Remove hooks that edit the pattern; otherwise this attention "
            "cannot be read.",
            code="not-attention",
        )
    return row_sum, values


def _difference(
    adapter: ModelAdapter,
    tokens: Int[Tensor, "batch pos"],
    lengths: Int[Tensor, " batch"],
    seen: Shown,
    logits: Float[Tensor, "batch 1 vocab"],
    *,
    shared: int,
    limit: float,
) -> tuple[float | None, str | None]:
    """How far attention that is taken over differs from the plain run; and why it is not used, if it is not."""
    found: list[float] = []

    def compare(attention: AttentionUnderWay) -> Tensor:
        rows = attention.row(lengths - 1)
        pattern = seen[attention.layer, "hook_pattern"]
        last = pattern[torch.arange(len(lengths)), :, (lengths - 1).to(rows.device)]
        beyond = (torch.arange(rows.shape[-1]) >= lengths[:, None]).to(rows.device)
        found.append((rows - last).abs().masked_fill(beyond[:, None], 0).max().item())
        return attention.attend()

    try:
        prefix = read_prefix(adapter, tokens[0, :shared]) if shared else None
        again = attention_pass(
            adapter, tokens[:, shared:], lengths, lengths[:, None] - 1, compare, prefix=prefix
        )
    except CannotIntercept as error:
        return None, error.message
    except Exception as error:
        # Whatever an unknown model's code makes of it: the plain way is always there, and the reason is kept.
        return None, f"{type(error).__name__}: {without_code(error)}"
    worst = largest([*found, gap(again, logits)])
    if not worst <= limit:
        return (
            worst,
            f"what it gives differs from the plain run by {worst:.1e} (limit {limit:.1e}: {OWN_ROUNDING})",
        )
    return worst, None


@contextmanager
def seen_once(
    adapter: ModelAdapter, callbacks: Mapping[tuple[int, HookName], Callable[[Tensor], None]]
) -> Iterator[None]:
    """Shows each activation to its callback in the one forward pass within the context.

    Raises: ModelError: a layer's hook did not fire exactly once.
    """
    fired = dict.fromkeys(callbacks, 0)

    def see(at: tuple[int, HookName], activation: Tensor) -> None:
        fired[at] += 1
        callbacks[at](activation)

    with adapter.watching({at: partial(see, at) for at in callbacks}):
        yield
    for (layer, name), times in fired.items():
        if times == 0:
            counts = [count for (_, other), count in fired.items() if other == name]
            raise ModelError(
                f"blocks.{layer}.attn.{name} did not fire ({len(counts) - counts.count(0)} of {len(counts)} "
                f"layers seen) in {adapter.name}. The model may use fused attention; reload it with "
                'attn_implementation="eager".',
                code="hook-firing",
            )
        if times > 1:
            raise ModelError(
                f"blocks.{layer}.attn.{name} must fire once in a forward pass; it fired "
                f"{times} times in {adapter.name}. Models that run a block repeatedly are not supported.",
                code="hook-firing",
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
    off = (mixed - z.to(a.device)).abs().masked_fill(padding[..., None, None], 0)
    return row_sum, (off.max() / z.abs().max().clamp(min=1e-12)).item()


def _declared_sinks(adapter: ModelAdapter) -> frozenset[int]:
    """Layers whose attention declares a learned sink logit (a parameter named `sinks`, as in GPT-OSS)."""
    blocks: Iterable[nn.Module] = getattr(adapter.model, "blocks", ())
    return frozenset(
        layer
        for layer, block in enumerate(blocks)
        for name, _ in block.named_parameters()
        if name.rsplit(".", 1)[-1] == "sinks"
    )


def cross_check(adapter: ModelAdapter, seen: Mapping[int, tuple[Tensor, Tensor]]) -> None:
    """On Apple's MPS, sums have been wrong in silence: redo one row of every layer on the CPU."""
    found = []
    for a, v in seen.values():
        row = a[0, :, -1]
        v = repeat(v[0], "k g d -> k (g r) d", r=a.shape[1] // v.shape[2])
        there = einsum(row, v, "h k, k h d -> h d").cpu()
        here = einsum(row.cpu(), v.cpu(), "h k, k h d -> h d")
        found.append((there - here).abs().max().item())
    worst = largest(found)
    warnings.warn(
        f"{adapter.name} runs on MPS, where PyTorch has given wrong numbers in silence; one attention row "
        f"of each layer, redone on the CPU, differs by at most {worst:.1e}. Check what you publish on "
        "a CPU or a CUDA device.",
        stacklevel=2,
    )
    if not worst <= tolerance(adapter.dtype):
        raise ModelError(
            f"MPS and CPU must agree on A·V; they differ by {worst:.1e} on {adapter.name}. Load the model "
            'with device="cpu".',
            code="device-result",
        )
