"""Does each intervention do what it says on this model? Measured on the model in hand, at first use.

On a few random tokens, one variant a layer, by the code that runs the real thing. What it leaves in the layer itself is
compared with a computation that shares nothing with it, so that a head whose output goes nowhere is measured as well:

    attention_edge, attention_rows   z against z + (A' − A)·V + added, from the plain run's hook_pattern and hook_v
    value                            z against A·V', from the same
    query, key                       z against that of the plain run with hook_q or hook_k edited
    head_output                      z against what was put there
    residual, attention_output,      resid_post against the sum of what came in and what attention and MLP added,
    mlp_output                       with the new activation in its place

What changes only the answer position is run there alone where that is exact, otherwise in the whole prompt.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from icl_kernel_lens.errors import LensError, ModelError
from icl_kernel_lens.interventions.variants import (
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
from icl_kernel_lens.models import probe
from icl_kernel_lens.models.fast import Prefix
from icl_kernel_lens.models.lens import InterceptableLens
from icl_kernel_lens.models.probe import tolerance

if TYPE_CHECKING:
    import pandas as pd

TOKENS = 9
PRIMITIVES = (
    "attention_edge",
    "attention_rows",
    "head_output",
    "query",
    "key",
    "value",
    "residual",
    "attention_output",
    "mlp_output",
)
ALONE, WHOLE = "answer position alone", "whole prompt"


@dataclass(frozen=True)
class Route:
    """How one kind of change is made, and how far it is from an independent computation."""

    way: str
    residual: float
    """The largest difference in any layer, relative to the largest number there."""

    def __str__(self) -> str:
        return f"{self.way}; within {self.residual:.0e} of an independent computation"


def routes(model: Any) -> pd.DataFrame:
    """One row per kind of change: the way it goes on this model, and its residual against an independent computation.

    Raises: ModelError: attention cannot be changed exactly on this model, or a residual is more than rounding.
    """
    import pandas as pd

    lens = editable(model)
    found = {name: check_route(lens, name) for name in PRIMITIVES}
    return pd.DataFrame(
        [{"change": name, "route": route.way, "residual": route.residual} for name, route in found.items()]
    )


_known: WeakKeyDictionary[Any, dict[str, Route]] = WeakKeyDictionary()


def check_route(lens: InterceptableLens, name: str) -> Route:
    """The route of one kind of change, measured once a model.

    Raises: ModelError: it is not exact.
    """
    known = _known.setdefault(lens.model, {})
    if name not in known:
        try:
            known[name] = _measured(lens, name)
        except LensError:
            raise
        except Exception as error:
            if not (hooks := lens.hooks_in_place()):
                raise
            raise ModelError(
                f"changes are measured on {TOKENS} random tokens at first use, which the hooks on this model must let "
                f"through; at {', '.join(hooks[:3])} came {type(error).__name__}: {error}. Call routes(model) once "
                "before adding hooks."
            ) from error
    return known[name]


def _measured(lens: InterceptableLens, name: str) -> Route:
    generator = torch.Generator().manual_seed(1)
    length = min(TOKENS, lens.shape.context or TOKENS)
    tokens = torch.randint(lens.shape.vocab, (2, length), generator=generator)
    at = length - 1
    bench = _Bench(lens, tokens, at)
    own = own_tokens(lens, length) if name in ("attention_edge", "attention_rows") else None
    kept = keep(lens, tokens[0], at, None, own)
    way, residual = WHOLE, bench.residual(name, None)
    if kept is not None:
        way, residual = ALONE, max(residual, bench.residual(name, kept))
    limit = tolerance(lens.dtype)
    if not residual <= limit:
        raise ModelError(
            f"a change must do in the layer what it says; {name} of {lens.name} is off by {residual:.1e} of the size of "
            f"what it changes (tolerance {limit:.0e} for {lens.dtype}). Remove hooks that edit the model, or load it anew."
        )
    return Route(way, residual)


class _Bench:
    """Two random prompts; one variant a layer of the first, with what the second has there."""

    def __init__(self, lens: InterceptableLens, tokens: Tensor, at: int) -> None:
        self.lens, self.tokens, self.at = lens, tokens, at
        missing = probe(lens).missing
        self.layers = [layer for layer in range(lens.shape.layers) if layer not in missing]
        self.place = at // 2
        self.count = len(self.layers)

    def plain(self, names: tuple[str, ...], row: int) -> dict[tuple[int, str], Tensor]:
        """What the hook points of one plain run show."""
        seen: dict[tuple[int, str], Tensor] = {}
        with ExitStack() as stack:
            for layer in self.layers:
                for name in names:

                    def see(x: Tensor, key: tuple[int, str] = (layer, name)) -> None:
                        seen[key] = x.detach()[0].float()

                    watch: Any = {(layer, name): see}
                    attention = name in ("hook_pattern", "hook_v", "hook_z")
                    stack.enter_context(self.lens.watching(watch) if attention else self.lens.editing(watch))
            length = torch.tensor([self.at + 1])
            self.lens.run(self.tokens[row : row + 1], length, length[:, None] - 1)
        return seen

    def run(
        self,
        changes: Changes,
        names: tuple[str, ...],
        prefix: Prefix | None = None,
    ) -> dict[tuple[int, str], Tensor]:
        """What the hook points of a changed layer show, in its own variant."""
        seen: dict[tuple[int, str], Tensor] = {}
        with ExitStack() as stack:
            for variant, layer in enumerate(self.layers):
                for name in names:

                    def see(x: Tensor, key: tuple[int, str] = (layer, name), variant: int = variant) -> None:
                        seen[key] = x.detach()[variant].float()

                    watch: Any = {(layer, name): see}
                    stack.enter_context(
                        self.lens.watching(watch) if name == "hook_z" else self.lens.editing(watch)
                    )
            run_variants(self.lens, self.tokens[0], self.at, self.count, changes, prefix)
        return seen

    def residual(self, name: str, prefix: Prefix | None) -> float:
        if name in STREAMS:
            return self.streams(name)
        if name in ("attention_edge", "attention_rows"):
            return self.rows(prefix, with_values=name == "attention_edge")
        return self.vectors(name)

    def rows(self, prefix: Prefix | None, *, with_values: bool) -> float:
        """One key's weight is halved, and another's value added, in head `layer % heads` of each layer."""
        shape, at, place = self.lens.shape, self.at, self.place
        heads = torch.zeros(self.count, shape.layers, shape.heads, dtype=torch.bool)
        for variant, layer in enumerate(self.layers):
            heads[variant, layer, layer % shape.heads] = True
        source = look_at(self.lens, self.tokens[1], at, torch.tensor([place]), ["value"], None)

        def change(row: Row) -> Float[Tensor, "row key"]:
            new = row.weights.clone()
            new[:, place] *= 0.5
            return new

        def added(row: Row) -> Float[Tensor, "row d_head"]:
            return 0.25 * source.vectors["value"][row.layer].to(row.weights)[row.heads, 0]

        answer = torch.full((self.count, 1), at)
        changes = Changes(rows=RowChange(heads, answer, change, added if with_values else None))
        found = self.run(changes, ("hook_z",), prefix)
        base, other = self.plain(("hook_pattern", "hook_v", "hook_z"), 0), self.plain(("hook_v",), 1)
        worst = 0.0
        for layer in self.layers:
            head, a = layer % shape.heads, base[layer, "hook_pattern"]
            group = shape.heads // base[layer, "hook_v"].shape[1]
            v, w = (seen[layer, "hook_v"][:, head // group] for seen in (base, other))
            expected = base[layer, "hook_z"][at].clone()
            expected[head] += -0.5 * a[head, at, place] * v[place]
            if with_values:
                expected[head] += 0.25 * w[place]
            worst = max(worst, _gap(found[layer, "hook_z"][-1], expected))
        return worst

    def vectors(self, name: str) -> float:
        """One head's vector at one position, from the other prompt."""
        shape, at, place = self.lens.shape, self.at, self.place
        groups = shape.kv_heads if name in ("key", "value") else shape.heads
        size = shape.heads // groups
        source = look_at(self.lens, self.tokens[1], at, torch.tensor([place]), [name], None)
        vectors = source.vectors[name]

        def edit(layer: int, x: Tensor) -> Tensor:
            if layer not in self.layers:
                return x
            part = layer % groups
            mine = slice(part * size, (part + 1) * size)
            x = x.clone()
            x[self.layers.index(layer), mine, place] = vectors[layer].to(x)[mine, 0]
            return x

        found = self.run(Changes(vectors={name: edit}), ("hook_z",))  # pyright: ignore[reportArgumentType]
        expected = self.expected(name, place, groups)
        return max(_gap(found[layer, "hook_z"], expected[layer]) for layer in self.layers)

    def expected(self, name: str, place: int, groups: int) -> dict[int, Tensor]:
        """z of each changed layer, without taking attention over."""
        if name == "head_output":
            base, other = self.plain(("hook_z",), 0), self.plain(("hook_z",), 1)
            for layer in self.layers:
                base[layer, "hook_z"][place, layer % groups] = other[layer, "hook_z"][place, layer % groups]
            return {layer: base[layer, "hook_z"] for layer in self.layers}
        if name == "value":
            base, other = self.plain(("hook_pattern", "hook_v"), 0), self.plain(("hook_v",), 1)
            z = {}
            for layer in self.layers:
                v = base[layer, "hook_v"].clone()
                v[place, layer % groups] = other[layer, "hook_v"][place, layer % groups]
                v = v.repeat_interleave(self.lens.shape.heads // v.shape[1], 1)
                z[layer] = einsum(base[layer, "hook_pattern"], v, "h q k, k h d -> q h d")
            return z
        hook = f"hook_{name[0]}"
        other = self.plain((hook,), 1)
        seen: dict[int, Tensor] = {}
        with ExitStack() as stack:
            for variant, layer in enumerate(self.layers):

                def edit(x: Tensor, layer: int = layer, variant: int = variant) -> Tensor:
                    x = x.clone()
                    x[variant, place, layer % groups] = other[layer, hook][place, layer % groups].to(x)
                    return x

                def see(x: Tensor, layer: int = layer, variant: int = variant) -> None:
                    seen[layer] = x.detach()[variant].float()

                edits: Any = {(layer, hook): edit}
                stack.enter_context(self.lens.editing(edits))
                stack.enter_context(self.lens.watching({(layer, "hook_z"): see}))
            length = torch.full((self.count,), self.at + 1)
            self.lens.run(self.tokens[:1].expand(self.count, -1), length, length[:, None] - 1)
        return seen

    def streams(self, name: str) -> float:
        """resid_post = resid_pre + attention's output + MLP's output, with the new activation in its place."""
        place = self.place
        source = look_at(self.lens, self.tokens[1], self.at, torch.tensor([place]), [name], None)
        vectors = source.vectors[name]
        put: dict[int, Tensor] = {}

        def edit(layer: int, x: Tensor) -> Tensor:
            variant = self.layers.index(layer)
            x = x.clone()
            x[variant, place] = vectors[layer].to(x)[0]
            put[layer] = x[variant].detach().float()
            return x

        names = tuple(hook for key, hook in STREAMS.items() if key != name)
        changes = Changes(streams={name: edit})  # pyright: ignore[reportArgumentType]
        found = self.run(changes, (*names, "hook_resid_post"))
        worst = 0.0
        for layer in self.layers:
            total = put[layer].to(found[layer, names[0]]) + sum(found[layer, hook] for hook in names)
            worst = max(worst, _gap(found[layer, "hook_resid_post"], total))
        return worst


def _gap(found: Tensor, expected: Tensor) -> float:
    expected = expected.to(found)
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
