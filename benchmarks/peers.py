"""The ways of reading attention that are compared, and the passes that read nothing: each a small function.

A reader returns every head's attention from the answer position to the label positions, which is checked
against ours before anything is timed. Each peer is used as its documentation shows, with the options that
make it cheapest: no gradients, only the patterns kept, no key-value cache and, in Hugging Face, no logits but
the last position's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

import icl_kernel_lens as ikl
from benchmarks.setup import BATCH, Kind
from icl_kernel_lens import PromptSet

Weights = Float[Tensor, "prompt layer head demo"]

ATTENTION = {
    "GPTNeoXForCausalLM": "gpt_neox.layers.{}.attention",
    "LlamaForCausalLM": "model.layers.{}.self_attn",
    "GPT2LMHeadModel": "transformer.h.{}.attn",
    "GPTJForCausalLM": "transformer.h.{}.attn",
}
"""Where Hugging Face keeps a layer's attention, whose second output is the pattern."""


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    title: str
    kind: Kind
    role: Literal["ours", "peer", "forward"]
    shared: bool
    """Whether its prompts share their demonstrations. Only ours and the floor can make use of it."""
    run: Callable[[Any, PromptSet], Weights | None]


def ours(batch_size: int | Literal["auto"] = "auto") -> Callable[[Any, PromptSet], Weights]:
    """`icl_kernel_lens.read`."""

    def run(model: Any, prompts: PromptSet) -> Weights:
        evidence = ikl.read(model, prompts, batch_size=batch_size, progress=False)
        return evidence.weights["label"]

    return run


def cached(model: Any, prompts: PromptSet) -> Weights:
    """TransformerLens: `run_with_cache`, one prompt at a time, keeping the patterns alone."""
    extra = {} if _is_hooked(model) else {"use_cache": False}
    found = []
    for part in batches(prompts, 1):
        _, cache = model.run_with_cache(
            _tokens(model, part), names_filter=lambda name: name.endswith("attn.hook_pattern"), **extra
        )
        rows = [cache[f"blocks.{layer}.attn.hook_pattern"][:, :, -1] for layer in range(model.cfg.n_layers)]
        found.append(at_labels(rows, part))
    return torch.cat(found)


def hooked(model: Any, prompts: PromptSet) -> Weights:
    """TransformerLens: a hook on every `hook_pattern` that keeps the answer row, in batches."""
    found = []
    for part in batches(prompts, BATCH):
        rows: list[Tensor] = []

        def keep(pattern: Tensor, hook: Any, rows: list[Tensor] = rows) -> None:
            rows.append(pattern[:, :, -1].clone())

        hooks = [(f"blocks.{layer}.attn.hook_pattern", keep) for layer in range(model.cfg.n_layers)]
        model.run_with_hooks(_tokens(model, part), fwd_hooks=hooks)
        found.append(at_labels(rows, part))
    return torch.cat(found)


def eager(size: int) -> Callable[[Any, PromptSet], Weights]:
    """Hugging Face: `output_attentions=True` with eager attention, in batches of `size`."""

    def run(model: Any, prompts: PromptSet) -> Weights:
        found = []
        for part in batches(prompts, size):
            tokens = _tokens(model, part)
            output = model(tokens, output_attentions=True, use_cache=False, logits_to_keep=1)
            found.append(at_labels([pattern[:, :, -1] for pattern in output.attentions], part))
        return torch.cat(found)

    return run


def traced(size: int) -> Callable[[Any, PromptSet], Weights]:
    """nnsight: a trace of the Hugging Face model that saves each layer's answer row, in batches of `size`."""

    def run(model: Any, prompts: PromptSet) -> Weights:
        from nnsight import NNsight  # pyright: ignore[reportMissingImports]

        traceable = NNsight(model)
        path, layers = ATTENTION[type(model).__name__], model.config.num_hidden_layers
        modules = [traceable.get(path.format(layer)) for layer in range(layers)]
        found = []
        for part in batches(prompts, size):
            tokens = _tokens(model, part)
            rows: list[Any] = []
            with traceable.trace(tokens, use_cache=False, logits_to_keep=1):
                for module in modules:
                    rows.append(module.output[1][:, :, -1].save())
            found.append(at_labels(rows, part))
        return torch.cat(found)

    return run


def forward(model: Any, prompts: PromptSet) -> None:
    """A plain TransformerLens forward pass in batches."""
    extra = {} if _is_hooked(model) else {"use_cache": False, "output_attentions": False}
    for part in batches(prompts, BATCH):
        model(_tokens(model, part), **extra)


def last_logits(model: Any, prompts: PromptSet) -> None:
    """A plain Hugging Face forward pass in batches, logits of the last position alone."""
    for part in batches(prompts, BATCH):
        model(_tokens(model, part), use_cache=False, logits_to_keep=1)


def floor(model: Any, prompts: PromptSet) -> None:
    """Hugging Face over each different token once: a row of the demonstrations, and a batch of test inputs.

    It is not a way of answering: the test inputs do not see the demonstrations. No exact way that runs the
    model over these tokens can be expected to be much cheaper.
    """
    tokens, start = _tokens(model, prompts), int(prompts.label_pos[0, -1]) + 1
    model(tokens[:1, :start], use_cache=False, logits_to_keep=1)
    model(tokens[:, start:], use_cache=False, logits_to_keep=1)


CASES: dict[str, Case] = {
    "shared-hooked": Case("ours, HookedTransformer", "hooked", "ours", True, ours()),
    "shared-bridge": Case("ours, TransformerBridge", "bridge", "ours", True, ours()),
    "fresh-hooked": Case("ours, HookedTransformer", "hooked", "ours", False, ours(BATCH)),
    "fresh-bridge": Case("ours, TransformerBridge", "bridge", "ours", False, ours(BATCH)),
    "cache-hooked": Case("run_with_cache, HookedTransformer, per prompt", "hooked", "peer", True, cached),
    "cache-bridge": Case("run_with_cache, TransformerBridge, per prompt", "bridge", "peer", True, cached),
    "hooks-hooked": Case(
        "hook_pattern hooks, HookedTransformer, batches of 8", "hooked", "peer", True, hooked
    ),
    "eager-1": Case("Hugging Face output_attentions, per prompt", "eager", "peer", True, eager(1)),
    "eager-8": Case("Hugging Face output_attentions, batches of 8", "eager", "peer", True, eager(BATCH)),
    "nnsight-1": Case("nnsight, per prompt", "nnsight", "peer", True, traced(1)),
    "nnsight-8": Case("nnsight, batches of 8", "nnsight", "peer", True, traced(BATCH)),
    "forward-hooked": Case("HookedTransformer forward", "hooked", "forward", False, forward),
    "forward-bridge": Case("TransformerBridge forward", "bridge", "forward", False, forward),
    "forward-sdpa": Case("Hugging Face sdpa forward", "sdpa", "forward", False, last_logits),
    "floor": Case("floor: Hugging Face sdpa forward of the different tokens", "sdpa", "forward", True, floor),
}


def batches(prompts: PromptSet, size: int) -> Iterator[PromptSet]:
    """Prompts in order, `size` at a time."""
    for start in range(0, len(prompts), size):
        yield prompts.select(range(start, min(start + size, len(prompts))))


def at_labels(rows: list[Float[Tensor, "prompt head key"]], prompts: PromptSet) -> Weights:
    """Each layer's answer rows at the label positions."""
    stacked = torch.stack([row.cpu().float() for row in rows], 1)
    where = prompts.label_pos[:, None, None].expand(-1, *stacked.shape[1:3], -1)
    return stacked.gather(3, where)


def _tokens(model: Any, prompts: PromptSet) -> Tensor:
    return prompts.tokens.to(next(model.parameters()).device)


def _is_hooked(model: Any) -> bool:
    return type(model).__name__ == "HookedTransformer"
