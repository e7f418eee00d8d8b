"""Reads and edits attention in a plain Hugging Face model, by watching the functions that its own code calls.

Nothing is shared with the package, nor with TransformerLens. While a prompt runs, every call of a torch function within a
decoder layer passes through here. A softmax over keys gives attention weights; the product of these weights with another
tensor gives z, and shows the values. So two edits can be made wherever the model's code is written plainly:

    scores of some keys set to −∞ before softmax                    (a knock-out, renormalised)
    z at one position and head + Σ_p a*(p) v*(p) − a(p) v(p)        (an edge from another run)

`output_attentions`, where the model gives them, must equal what was watched. What this does not see is not compared: weights
that come from no softmax, several attentions in a layer, fused kernels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class NotSeen(Exception):
    """The model's attention is not computed in a way that can be watched."""


@dataclass
class Seen:
    """One run of one prompt."""

    logits: Tensor
    """(pos, vocab)"""
    weights: dict[int, list[Tensor]]
    """By layer, for each attention in it: (head, query, key)."""
    values: dict[int, list[Tensor]]
    """(head, key, d), repeated over the query heads of a group."""
    sinks: bool
    """Whether a softmax had a place more than there are keys."""
    attentions: tuple[Any, ...] | None
    """What the model itself returns."""


@dataclass(frozen=True)
class Cut:
    """These keys are hidden from this query, in this head."""

    layer: int
    head: int
    query: int
    keys: Sequence[int]


@dataclass(frozen=True)
class Edge:
    """This is added to z of this query, in this head."""

    layer: int
    head: int
    query: int
    added: Tensor


def decoder_layers(hf: nn.Module) -> nn.ModuleList:
    """The stack of layers."""
    count = hf.config.num_hidden_layers  # pyright: ignore[reportAttributeAccessIssue]
    found = [
        (name, module)
        for name, module in hf.named_modules()
        if isinstance(module, nn.ModuleList) and name.split(".")[-1] in ("layers", "h", "blocks", "layer")
    ]
    for _, module in found:
        if len(module) == count:
            return module
    raise NotSeen(f"no stack of {count} layers; there are {[(name, len(m)) for name, m in found]}")


class Watch(TorchFunctionMode):
    """What happens in the layers of one forward pass, with edits."""

    def __init__(self, hf: nn.Module, length: int, edits: Sequence[Cut | Edge]) -> None:
        super().__init__()
        self.layers, self.length, self.edits = decoder_layers(hf), length, edits
        self.layer: int | None = None
        self.kept: dict[int, Tensor] = {}
        self.weights: dict[int, list[Tensor]] = defaultdict(list)
        self.values: dict[int, list[Tensor]] = defaultdict(list)
        self.sinks = False
        self.done: set[int] = set()
        self.handles: list[Any] = []

    def __enter__(self) -> Any:
        for number, layer in enumerate(self.layers):

            def into(*_: Any, number: int = number) -> None:
                self.layer = number

            def out_of(*_: Any) -> None:
                self.layer = None

            self.handles += [layer.register_forward_pre_hook(into), layer.register_forward_hook(out_of)]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        for handle in self.handles:
            handle.remove()
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.layer is None:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "").strip("_")
        if name == "scaled_dot_product_attention":
            return self.fused(*args, **kwargs)
        if name == "softmax":
            scores = args[0] if args else kwargs["input"]
            if self.is_square(scores):
                out = func(self.hidden(scores), *args[1:], **kwargs)
                self.keep(out)
                return out
        first = next((a for a in args if isinstance(a, Tensor)), None)
        if first is not None and id(first) in self.kept:
            if name in ("matmul", "bmm", "einsum", "rmatmul"):
                tensors = [a for a in args if isinstance(a, Tensor)]
                if name != "einsum" and len(tensors) == 2:
                    return self.mixed(first, tensors[1], func(*args, **kwargs))
                raise NotSeen(f"weights meet values in {name}")
            out = func(*args, **kwargs)
            if isinstance(out, Tensor) and self.is_square(out):
                self.keep(out)
            return out
        return func(*args, **kwargs)

    def is_square(self, x: Any) -> bool:
        n = self.length
        return isinstance(x, Tensor) and x.dim() >= 3 and x.shape[-2] == n and x.shape[-1] in (n, n + 1)

    def keep(self, x: Tensor) -> None:
        self.sinks |= x.shape[-1] == self.length + 1
        self.kept[id(x)] = x  # held on to, so that the number stays its own

    def hidden(self, scores: Tensor) -> Tensor:
        """Scores without the keys that are cut."""
        cuts = [edit for edit in self.edits if isinstance(edit, Cut) and edit.layer == self.layer]
        if not cuts:
            return scores
        new = scores.clone()
        flat = new.view(-1, *new.shape[-2:])
        for cut in cuts:
            flat[cut.head, cut.query, list(cut.keys)] = -torch.inf
        return new

    def mixed(self, weights: Tensor, values: Tensor, z: Tensor) -> Tensor:
        """Note weights and values; z with what is added to it."""
        layer = self.layer
        assert layer is not None
        if weights.shape[-1] != self.length or weights.dim() != values.dim():
            raise NotSeen(f"weights {tuple(weights.shape)} meet values {tuple(values.shape)}")
        values = values.expand(*weights.shape[:-2], *values.shape[-2:])
        self.weights[layer].append(weights.detach().reshape(-1, *weights.shape[-2:]))
        self.values[layer].append(values.detach().reshape(-1, *values.shape[-2:]))
        edges = [edit for edit in self.edits if isinstance(edit, Edge) and edit.layer == layer]
        if not edges:
            return z
        z = z.clone()
        flat = z.view(-1, *z.shape[-2:])
        for edge in edges:
            flat[edge.head, edge.query] += edge.added.to(z)
        return z

    def fused(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: Any = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Written plainly, and watched."""
        if q.shape[-2] != self.length or dropout_p:
            raise NotSeen("a fused attention of another form")
        if enable_gqa:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            scores = scores + torch.full_like(scores[0, 0], -torch.inf).triu(1)
        elif attn_mask is not None:
            hides = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -torch.inf) if hides else scores + attn_mask
        weights = self.hidden(scores).softmax(-1)
        return self.mixed(weights, v, weights @ v)


def run(hf: nn.Module, tokens: Tensor, edits: Sequence[Cut | Edge] = (), *, ask: bool = False) -> Seen:
    """One prompt without padding; `ask` for the model's own attentions too."""
    watch = Watch(hf, len(tokens), edits)
    options = {"output_attentions": True} if ask else {}
    with torch.no_grad(), watch:
        out = hf(tokens[None], use_cache=False, **options)
    return Seen(
        out.logits[0].float(), watch.weights, watch.values, watch.sinks, getattr(out, "attentions", None)
    )


def _plainly(hf: nn.Module, tokens: Tensor) -> Seen:
    """Logits alone."""
    with torch.no_grad():
        out = hf(tokens[None], use_cache=False)
    return Seen(out.logits[0].float(), {}, {}, False, None)


@dataclass
class Reference:
    """Prompts as the model runs them alone, and what can be changed in them."""

    hf: nn.Module
    prompts: list[Tensor]
    seen: list[Seen]
    why: str | None
    """Why attention cannot be compared, if it cannot."""

    @classmethod
    def of(cls, hf: nn.Module, prompts: list[Tensor]) -> Reference:
        try:
            seen, why = [run(hf, tokens) for tokens in prompts], None
        except NotSeen as error:
            seen, why = [_plainly(hf, tokens) for tokens in prompts], str(error)
        several = sorted({n for one in seen for n, found in one.weights.items() if len(found) > 1})
        if several:
            why = f"layers {several} attend more than once in a forward pass"
        return cls(hf, prompts, seen, why)

    @property
    def found(self) -> list[int]:
        """Layers with an attention."""
        return [] if self.why else sorted({n for seen in self.seen for n in seen.weights})

    @property
    def layers(self) -> list[int]:
        """The same, which must be comparable."""
        if self.why:
            raise NotSeen(self.why)
        return self.found

    def facts(self) -> dict[str, Any]:
        """What is in this model."""
        count = getattr(self.hf.config, "num_hidden_layers", None)
        return {
            "layers": count,
            "attending": self.found,
            "sinks": any(seen.sinks for seen in self.seen),
            "why": self.why,
        }

    def answers(self) -> list[Tensor]:
        """Logits at the answer."""
        return [seen.logits[-1] for seen in self.seen]

    def row(self, number: int, layer: int) -> Tensor:
        """The answer position's row: (head, key)."""
        return self.seen[number].weights[layer][0][:, -1].float()

    def heads(self, layer: int) -> int:
        return len(self.seen[0].weights[layer][0])

    def own(self) -> str:
        """Where rows are from: the model's `output_attentions`, if they are what was watched, or the watched softmax."""
        worst, count = self._own()
        if count and worst > 1e-6:
            return f"its softmax; output_attentions differ by {worst:.0e}"
        return "output_attentions" if count else "its softmax"

    def _own(self) -> tuple[float, int]:
        tokens = self.prompts[0]
        try:
            theirs = run(self.hf, tokens, ask=True).attentions
        except (TypeError, ValueError, NotSeen):
            theirs = None
        given = [
            a for a in theirs or () if isinstance(a, Tensor) and a.dim() == 4 and a.shape[-2] == len(tokens)
        ]
        layers = self.layers
        if len(given) != len(layers):
            return 0.0, 0
        worst = 0.0
        for layer, a in zip(layers, given, strict=True):
            mine = self.seen[0].weights[layer][0]
            if a[0].shape[0] != mine.shape[0]:
                return 0.0, 0
            worst = max(worst, float((a[0][..., : len(tokens)].float() - mine.float()).abs().max()))
        return worst, len(given)

    def cut(self, number: int, layer: int, head: int, keys: Sequence[int]) -> Tensor:
        """Logits at the answer when a head's answer row no longer sees these keys."""
        tokens = self.prompts[number]
        return run(self.hf, tokens, [Cut(layer, head, len(tokens) - 1, keys)]).logits[-1]

    def edge(self, number: int, source: Reference, layer: int, head: int, keys: Sequence[int]) -> Tensor:
        """Logits at the answer when the head reads from these keys what it reads there in another run."""
        at = len(self.prompts[number]) - 1

        def moved(seen: Seen) -> Tensor:
            a, v = seen.weights[layer][0][head, at], seen.values[layer][0][head]
            return sum((a[p].float() * v[p].float() for p in keys), torch.zeros(v.shape[-1]))

        added = moved(source.seen[number]) - moved(self.seen[number])
        return run(self.hf, self.prompts[number], [Edge(layer, head, at, added)]).logits[-1]
