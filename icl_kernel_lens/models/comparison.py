"""Compares a model's logits with those that Hugging Face's own code gives for the same weights.

    residual = max |ours − Hugging Face's| / std of Hugging Face's      on one row of random tokens, at up to 64 positions

A bridge rebuilds the Hugging Face model in place, so that the reference is taken before (`reference`). Of a bridge that
the user built, the class of the model under it is run again on the very tensors that it holds (`comparison_of`). The row is
long enough to leave the longest sliding window that 1,200 tokens leave, and the mask says that every token is text, as
when prompts are read. Does not show: what happens beyond the row's length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.errors import LoadError, without_code
from icl_kernel_lens.models.adapter import as_adapter
from icl_kernel_lens.models.transformer_lens_adapters import evaluating

SHORT, LONGEST, BEYOND = 32, 1200, 24
"""Tokens of a row without windows; of the longest row; how far a window is left."""
POSITIONS = 64
LOGIT_TOLERANCE = {torch.float16: 5e-2, torch.bfloat16: 2e-1}
"""Largest residual that rounding explains; 1e-3 in other types."""


@dataclass(frozen=True)
class Comparison:
    """How far a model's logits are from Hugging Face's, and in words."""

    residual: float | None
    """None: not compared."""
    says: str


@dataclass(frozen=True)
class Reference:
    """Hugging Face's logits on one row of tokens, with what cannot be said of it."""

    tokens: Int[Tensor, "1 pos"]
    positions: Int[Tensor, " read"]
    logits: Float[Tensor, "read vocab"] | None
    note: str
    """Why there are none, or what the row does not reach."""


def reference(
    hf: Any, run: Callable[..., Any] | None = None, device: torch.device | None = None
) -> Reference:
    """Hugging Face's logits; `run` is what to call instead of the model, `device` where tokens go in."""
    config = hf.config.get_text_config()
    longest = min(LONGEST, next((n for n in map(config.to_dict().get, _CONTEXT) if n), LONGEST))
    windows = {
        size
        for name, size in config.to_dict().items()
        if ("window" in name or "chunk" in name) and type(size) is int and size > 1
    }
    length = min(longest, max([SHORT, *(w + BEYOND for w in windows if w + BEYOND <= LONGEST)]))
    left = [w for w in windows if w >= length and w < (config.to_dict().get(_CONTEXT[0]) or w + 1)]
    note = f"; not compared beyond {length:,} tokens, while it has a window of {max(left):,}" if left else ""
    tokens = torch.randint(config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    positions = torch.linspace(0, length - 1, min(length, POSITIONS)).long()
    try:
        there = device or hf.get_input_embeddings().weight.device
        logits = _hugging_face(hf, run or hf, tokens.to(there), positions)
    except Exception as error:  # an unknown model's code may fail in any way
        return Reference(tokens, positions, None, f"{type(error).__name__}: {error}")
    if not bool(logits.isfinite().all()):
        return Reference(tokens, positions, None, "Hugging Face's own are infinite or undefined")
    return Reference(tokens, positions, logits, note)


_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx")


def _hugging_face(hf: Any, run: Callable[..., Any], tokens: Tensor, positions: Tensor) -> Tensor:
    """Logits at the positions, the only ones that go through the unembedding where it can be helped."""
    head = hf.get_output_embeddings()

    def keep(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][:, positions.to(args[0].device)], *args[1:]) if args else args

    handle = head.register_forward_pre_hook(keep) if head is not None else None
    try:
        with evaluating(hf), torch.no_grad():
            logits = run(tokens, attention_mask=torch.ones_like(tokens)).logits[0]
    finally:
        if handle is not None:
            handle.remove()
    return (logits if len(logits) == len(positions) else logits[positions.to(logits.device)]).float()


def compare(model: Any, theirs: Reference, name: str) -> Comparison:
    """A model beside the reference; what is found is kept with the model.

    Raises: LoadError: its logits are others, or it does not run.
    """
    found = Comparison(None, f"not compared with Hugging Face's logits: {theirs.note}")
    if theirs.logits is not None:
        residual = _residual(model, theirs, name)
        if not residual <= (limit := LOGIT_TOLERANCE.get(as_adapter(model).dtype, 1e-3)):
            raise LoadError(
                f"a model must give Hugging Face's logits; those of {name} differ by {residual:.1e} of their spread on "
                f"{theirs.tokens.shape[1]} random tokens (tolerance {limit:.0e}). {_cause(model, theirs)} Try another "
                "version of TransformerLens, or another model.",
                code="other-logits",
            )
        tokens = theirs.tokens.shape[1]
        found = Comparison(
            residual, f"logits equal Hugging Face's within {residual:.1e} on {tokens:,} tokens{theirs.note}"
        )
    _comparisons[model] = found
    return found


_comparisons: WeakKeyDictionary[Any, Comparison] = WeakKeyDictionary()


def _logits(model: Any, tokens: Tensor, positions: Tensor) -> Tensor:
    return as_adapter(model).forward(tokens, torch.tensor([tokens.shape[1]]), positions[None])[0]


def _residual(model: Any, theirs: Reference, name: str) -> float:
    assert theirs.logits is not None
    try:
        ours = _logits(model, theirs.tokens, theirs.positions)
    except Exception as error:
        raise LoadError(
            f"a model must run on tokens; {name} does not: {type(error).__name__}: {without_code(error)}. Try another "
            "version of TransformerLens, or another model.",
            code="model-backend",
        ) from error
    if ours.shape != theirs.logits.shape:
        return float("inf")
    return float((ours - theirs.logits.to(ours.device)).abs().max() / theirs.logits.std())


def _cause(model: Any, theirs: Reference) -> str:
    """Whether a position sees those behind it, which is the plainest way to be wrong."""
    half = theirs.tokens[:, : theirs.tokens.shape[1] // 2]
    last = torch.tensor([half.shape[1] - 1])
    whole, alone = (_logits(model, tokens, last) for tokens in (theirs.tokens, half))
    if not float((whole - alone).abs().max() / whole.std()) <= LOGIT_TOLERANCE.get(
        as_adapter(model).dtype, 1e-3
    ):
        return "A position's logits change with the tokens behind it: the causal mask was lost in conversion."
    return "TransformerLens converts this architecture wrongly."


def comparison_of(model: Any) -> Comparison:
    """What is known of a model's logits; a bridge that the user built is compared with what it wraps, once.

    Raises: LoadError: as `compare`.
    """
    if found := _comparisons.get(model) if isinstance(model, torch.nn.Module) else None:
        return found
    under = getattr(model, "original_model", None)
    if under is None or getattr(model, "compatibility_mode", False):
        why = "there is none under it" if under is None else "its weights were processed"
        return Comparison(None, f"not compared with Hugging Face's logits: {why}")
    theirs = _of_what_is_wrapped(under)
    return compare(model, theirs, str(getattr(model.cfg, "model_name", None) or type(under).__name__))


def _of_what_is_wrapped(under: Any) -> Reference:
    """The reference of the class that a bridge was built into, run again on the tensors that it holds, without a copy."""
    device = next(under.parameters()).device
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            again = type(under)(under.config)
        held = {name.replace("_original_component.", ""): tensor for name, tensor in _tensors(under)}
        held = {name: held[name] for name, _ in _tensors(again)}
    except Exception as error:  # an unknown model's code may fail in any way
        return Reference(
            torch.zeros(1, 1).long(), torch.zeros(1).long(), None, f"{type(error).__name__}: {error}"
        )
    return reference(
        again, lambda *args, **kwargs: torch.func.functional_call(again, held, args, kwargs), device
    )


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
