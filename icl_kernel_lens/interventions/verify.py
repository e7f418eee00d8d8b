"""Verifies that each kind of change does on the model in hand what it says, at first use.

A few random tokens are run with one variant a layer, by the code that runs the real thing. What it leaves in the layer
itself is compared with a computation that shares nothing with it, so that a head whose output goes nowhere is measured
as well:

    attention_edge, attention_rows   z against A'·V + added, from the plain run's hook_pattern and v
    value                            z against A·V', from the same
    query, key                       z against that of the plain run with hook_q or hook_k edited
    head_output                      z against what was put there
    residual, attention_output,      resid_post against the sum of what came in and what attention and MLP added,
    mlp_output                       with the new activation in its place

What changes only the answer position is run there alone where that is exact, otherwise in the whole prompt. A kind of
change is refused only where it is not exact itself; the user's hooks are off meanwhile, and on in what is run for the user.
Does not show: what the change does above its layer; the model's own code computes that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.errors import LensError, ModelError
from icl_kernel_lens.models.adapter import Edits, InterceptableAdapter, attention_layers
from icl_kernel_lens.models.attention_passes import Prefix
from icl_kernel_lens.models.hooks import without_hooks
from icl_kernel_lens.models.transformer_lens_adapters import modules_of
from icl_kernel_lens.models.verify import VerificationReport, tolerance, verify_model
from icl_kernel_lens.numbers.residuals import gap, largest
from icl_kernel_lens.run.facts import Facts, once_a_model
from icl_kernel_lens.run.forward import plain_logits
from icl_kernel_lens.run.memory import exhausted
from icl_kernel_lens.run.variants import (
    STREAMS,
    Changes,
    Row,
    RowChange,
    editable,
    keep,
    look_at,
    own_tokens,
    run_variants,
)

if TYPE_CHECKING:
    import pandas as pd

TOKENS = 9
ROWS = ("attention_edge", "attention_rows")
"""Changes of the answer row, which are made at the answer position alone where that is exact."""
PRIMITIVES = (
    *ROWS,
    "head_output",
    "query",
    "key",
    "value",
    "residual",
    "attention_output",
    "mlp_output",
)
Activations = dict[tuple[int, str], Tensor]
"""What hook points show, by layer and name."""
ALONE, WHOLE = "answer position alone", "whole prompt"
EXACT = "exact"


@dataclass(frozen=True)
class Primitive:
    """One kind of change: how it is made, and how far it is from an independent computation."""

    change: str
    route: str
    residual: float
    """The largest difference in any layer, relative to the largest number there; NaN: not measured."""
    verdict: str = EXACT
    """Or why it is refused."""

    def __str__(self) -> str:
        return f"{self.route}; within {self.residual:.0e} of an independent computation"


def verify_interventions(model: Any) -> pd.DataFrame:
    """List every kind of change: how it is made on this model, its residual against an independent computation, a verdict.

    Raises: ModelError: attention cannot be changed exactly on this model.
    """
    import pandas as pd

    adapter = editable(model)
    return pd.DataFrame([_known_of(adapter, name) for name in PRIMITIVES])


_known: WeakKeyDictionary[Any, tuple[VerificationReport, dict[str, Primitive]]] = WeakKeyDictionary()
"""As long as the model's report holds."""


def check_primitive(adapter: InterceptableAdapter, name: str) -> Primitive:
    """Measure one kind of change, once a model.

    Raises: ModelError: it is not exact.
    """
    found = _known_of(adapter, name)
    if found.verdict != EXACT:
        raise ModelError(found.verdict, code="change-lost")
    return found


_late: Facts = WeakKeyDictionary()
_ends: Facts = WeakKeyDictionary()


def joins_late(adapter: InterceptableAdapter) -> bool:
    """Whether variants may join the run below the first layer that they change: logits are those of whole runs (`run_variants`).

    Measured once a model, on random tokens, a changed row in each layer; a model whose code does not let the batch grow on
    the way runs every variant from the first layer.
    """
    return once_a_model(_late, adapter, _grows)


def _grows(adapter: InterceptableAdapter, limit: float) -> bool:
    length = min(TOKENS, adapter.shape.context or TOKENS)
    tokens = torch.randint(adapter.shape.vocab, (2, length), generator=torch.Generator().manual_seed(1))
    bench, own = _Bench(adapter, tokens), own_tokens(adapter, length)
    kept = keep(adapter, tokens[0], bench.at, None, own)
    changes = Changes(rows=bench.row_change(with_values=False))

    def run(*, late: bool) -> Tensor:
        return run_variants(adapter, tokens[0], bench.at, len(bench.layers), changes, kept, late=late)

    return kept is not None and largest([gap(run(late=True), run(late=False))]) <= limit


def ends_wider(adapter: InterceptableAdapter) -> bool:
    """Whether rows may be added behind the last layer: logits are those of rows that were there from the first.

    Measured once a model, on two random prompts, whose rows stay together, as those of the variants of a prompt do.
    """
    return once_a_model(_ends, adapter, _widens)


def _widens(adapter: InterceptableAdapter, limit: float) -> bool:
    length = min(TOKENS, adapter.shape.context or TOKENS)
    tokens = torch.randint(adapter.shape.vocab, (2, length), generator=torch.Generator().manual_seed(1))

    def run(edits: Edits) -> Tensor:
        return run_variants(adapter, tokens, length - 1, 1, Changes(edits=edits), None)

    twice = run({(adapter.shape.layers - 1, "hook_resid_post"): lambda x: x.repeat_interleave(2, 0)})
    return largest([gap(twice, run({}).repeat_interleave(2, 0))]) <= limit


def _known_of(adapter: InterceptableAdapter, name: str) -> Primitive:
    """What is known of one kind of change; what is refused is measured again the next time."""
    report = verify_model(adapter)
    if adapter.model not in _known or _known[adapter.model][0] is not report:
        _known[adapter.model] = report, {}
    known = _known[adapter.model][1]
    if name in known:
        return known[name]
    try:
        with without_hooks(modules_of(adapter.model)):
            found = _measured(adapter, name)
    except Exception as error:  # an unknown model's code may fail in any way
        if exhausted(error):
            raise
        why = error.message if isinstance(error, LensError) else f"{type(error).__name__}: {error}"
        why = f"a change must be seen to do what it says; {name} of {adapter.name} cannot be measured: {why}"
        return Primitive(name, WHOLE, float("nan"), why)
    if found.verdict == EXACT:
        known[name] = found
    return found


def _measured(adapter: InterceptableAdapter, name: str) -> Primitive:
    length = min(TOKENS, adapter.shape.context or TOKENS)
    tokens = torch.randint(adapter.shape.vocab, (2, length), generator=torch.Generator().manual_seed(1))
    bench = _Bench(adapter, tokens)
    own = own_tokens(adapter, length) if name in ROWS else None
    kept = keep(adapter, tokens[0], bench.at, None, own)
    route, residual = WHOLE, bench.residual(name, None)
    if kept is not None:
        route, residual = ALONE, largest([residual, bench.residual(name, kept)])
    limit = max(verify_model(adapter).limit, tolerance(adapter.dtype))
    if residual <= limit:
        return Primitive(name, route, residual)
    return Primitive(
        name,
        route,
        residual,
        f"a change must do in the layer what it says; {name} of {adapter.name} is off by {residual:.1e} of the size of "
        f"what it changes (limit {limit:.1e}). The layer does something between this activation and z that is not among "
        "the known rules; verify_interventions(model) lists the changes that are exact.",
    )


class _Bench:
    """Two random prompts; one variant a layer of the first, with what the second has there."""

    def __init__(self, adapter: InterceptableAdapter, tokens: Int[Tensor, "2 pos"]) -> None:
        self.adapter, self.tokens, self.at = adapter, tokens, tokens.shape[1] - 1
        self.layers = attention_layers(adapter)
        self.place = self.at // 2

    def looking(self, names: Sequence[str]) -> tuple[Activations, Any]:
        """What hook points will show, of each layer its own variant; and the hooks for it."""
        seen: Activations = {}

        def see(layer: int, name: str, variant: int, x: Tensor) -> None:
            seen[layer, name] = x.detach()[variant].float()

        variants = list(enumerate(self.layers))
        return seen, {(at, name): partial(see, at, name, row) for row, at in variants for name in names}

    def plain(self, names: Sequence[str], prompt: int, edits: Any = None) -> Activations:
        """What hook points show of variants run whole by the model's own code; all alike, without `edits`."""
        seen, hooks = self.looking(names)
        tokens = self.tokens[prompt].expand(len(self.layers), -1)
        length = torch.full((len(tokens),), self.at + 1)
        plain_logits(self.adapter, tokens, length, length[:, None] - 1, hooks | (edits or {}))
        return seen

    def run(self, changes: Changes, names: Sequence[str], prefix: Prefix | None = None) -> Activations:
        """What the hook points of a changed layer show, in its own variant."""
        seen, hooks = self.looking(names)
        changes = replace(changes, edits=hooks)
        run_variants(self.adapter, self.tokens[0], self.at, len(self.layers), changes, prefix)
        return seen

    def other(self, name: str) -> Float[Tensor, "layer *part 1 width"]:
        """What the second prompt has at the place where the first is changed."""
        place = torch.tensor([self.place])
        return look_at(self.adapter, self.tokens[1], self.at, place, [name], None).vectors[name]

    def residual(self, name: str, prefix: Prefix | None) -> float:
        if name in STREAMS:
            return self.streams(name)
        if name in ROWS:
            return self.rows(prefix, with_values=name == "attention_edge")
        return self.vectors(name)

    def rows(self, prefix: Prefix | None, *, with_values: bool) -> float:
        """z of the rows that `row_change` changes, against its own formula."""
        shape, at, place = self.adapter.shape, self.at, self.place
        found = self.run(Changes(rows=self.row_change(with_values=with_values)), ("z",), prefix)
        base, other = self.plain(("hook_pattern", "v"), 0), self.plain(("v",), 1)

        def expected(layer: int) -> Tensor:
            head, a = layer % shape.heads, base[layer, "hook_pattern"]
            a[head, at, place] *= 0.5
            z = self.mixed(a, base[layer, "v"])[at]
            if with_values:
                v = other[layer, "v"]
                z[head] += 0.25 * v[place, head * v.shape[1] // shape.heads]
            return z

        return largest(gap(z[-1], expected(layer)) for (layer, _), z in found.items())

    def row_change(self, *, with_values: bool) -> RowChange:
        """One key's weight is halved, and another's value added, in head `layer % heads` of each layer."""
        shape, place, count = self.adapter.shape, self.place, len(self.layers)
        heads = torch.zeros(count, shape.layers, shape.heads, dtype=torch.bool)
        heads[range(count), self.layers, [layer % shape.heads for layer in self.layers]] = True
        values = self.other("value") if with_values else torch.zeros(0)

        def change(row: Row) -> Float[Tensor, "row key"]:
            new = row.weights.clone()
            new[:, place] *= 0.5
            return new

        def added(row: Row) -> Float[Tensor, "row d_head"]:
            return 0.25 * values[row.layer].to(row.weights)[row.heads, 0]

        return RowChange(heads, torch.full((count, 1), self.at), change, added if with_values else None)

    def vectors(self, name: str) -> float:
        """One head's vector at one position, from the other prompt."""
        shape = self.adapter.shape
        groups = shape.kv_heads if name in ("key", "value") else shape.heads
        size = shape.heads // groups
        vectors = self.other(name)

        def edit(layer: int, x: Tensor) -> Tensor:
            first = layer % groups * size
            mine = slice(first, first + size)
            x = x.clone()
            x[self.layers.index(layer), mine, self.place] = vectors[layer].to(x)[mine, 0]
            return x

        found = self.run(Changes(vectors={name: edit}), ("z",))  # pyright: ignore[reportArgumentType]
        expected = self.expected(name, groups)
        return largest(gap(z, expected[key]) for key, z in found.items())

    def expected(self, name: str, groups: int) -> Activations:
        """z of each changed layer, without taking attention over."""
        hook = {"query": "hook_q", "key": "hook_k", "value": "v", "head_output": "z"}[name]
        other = self.plain((hook,), 1)

        def put(
            layer: int, variant: int, x: Float[Tensor, "variant pos group d_head"]
        ) -> Float[Tensor, "variant pos group d_head"]:
            x, size = x.clone(), x.shape[2] // groups
            part = slice(layer % groups * size, (layer % groups + 1) * size)
            x[variant, self.place, part] = other[layer, hook][self.place, part].to(x)
            return x

        if name in ("query", "key"):
            edits = {(layer, hook): partial(put, layer, row) for row, layer in enumerate(self.layers)}
            return self.plain(("z",), 0, edits)
        base = self.plain((hook, "hook_pattern"), 0)
        z = {layer: put(layer, 0, base[layer, hook][None])[0] for layer in self.layers}
        if name == "value":
            z = {layer: self.mixed(base[layer, "hook_pattern"], v) for layer, v in z.items()}
        return {(layer, "z"): x for layer, x in z.items()}

    def mixed(
        self, a: Float[Tensor, "head q k"], v: Float[Tensor, "k kv_head d"]
    ) -> Float[Tensor, "q head d"]:
        """z = A·V, each value read by the query heads of its group."""
        return einsum(a, v.repeat_interleave(len(a) // v.shape[1], 1), "h q k, k h d -> q h d")

    def streams(self, name: str) -> float:
        """resid_post = resid_pre + attention's output + MLP's output, with the new activation in its place."""
        vectors = self.other(name)
        put: dict[int, Tensor] = {}

        def edit(layer: int, x: Tensor) -> Tensor:
            variant = self.layers.index(layer)
            x = x.clone()
            x[variant, self.place] = vectors[layer].to(x)[0]
            put[layer] = x[variant].detach().float()
            return x

        names = tuple(hook for key, hook in STREAMS.items() if key != name)
        changes = Changes(streams={name: edit})  # pyright: ignore[reportArgumentType]
        found = self.run(changes, (*names, "hook_resid_post"))
        return largest(
            gap(found[layer, "hook_resid_post"], sum((found[layer, hook] for hook in names), new))
            for layer, new in put.items()
        )
