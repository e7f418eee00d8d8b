"""Makes `Evidence` from activations that are there already, without running the model."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from icl_kernel_lens.axes import Pooling
from icl_kernel_lens.errors import EvidenceMissing, PromptError
from icl_kernel_lens.evidence.pooling import with_twins
from icl_kernel_lens.evidence.rows import AnswerRows, evidence_of, shown_shape
from icl_kernel_lens.models.adapter import as_adapter, attention_layers
from icl_kernel_lens.models.read_out import unembedded
from icl_kernel_lens.models.verify import verify_model
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.results.evidence import Evidence
from icl_kernel_lens.run.forward import check_finite


def evidence_from_cache(
    cache: Any,
    prompts: PromptSet,
    *,
    logits: Float[Tensor, "prompt pos vocab"] | None = None,
    keep: tuple[Pooling, ...] = ("label", "span_max"),
    template_tokens: bool = True,
) -> Evidence:
    """Makes `Evidence` from an `ActivationCache` of `model.run_with_cache(prompts.tokens)`.

    Without `logits`, the answers come from the cached final residual stream and the model's own final norm and
    unembedding. A cache does not say which tokens it was made from; give the prompts that it was.

    Raises: EvidenceMissing: the cache lacks a layer's `hook_pattern`, or is of another shape.
    """
    adapter = as_adapter(cache.model)
    verify_model(adapter)
    if prompts.score_on == "sequence":
        raise PromptError(
            'a cache holds one forward pass, and score_on="sequence" needs one for each label. Use '
            'read(model, prompts), or prompts with score_on="first_token".',
            code="whole-labels",
        )
    numbers, width = torch.arange(len(prompts)), int(prompts.lengths.max())
    names, shown = with_twins(keep), shown_shape(adapter, prompts)
    reading = AnswerRows(adapter, prompts, numbers.tolist(), names, shown, template_tokens=template_tokens)
    for layer in attention_layers(adapter):
        pattern = _cached(cache, f"blocks.{layer}.attn.hook_pattern")
        if pattern.dim() != 4 or pattern.shape[0] != len(prompts) or pattern.shape[2] < width:
            raise EvidenceMissing(
                f"the cache must hold the patterns of these {len(prompts)} prompts of up to {width} tokens; "
                f"blocks.{layer}.attn.hook_pattern has shape {tuple(pattern.shape)}. Cache with "
                "run_with_cache(prompts.tokens), keeping the batch dimension.",
                code="evidence-missing",
            )
        rows = pattern[numbers, :, prompts.answer_pos.to(pattern.device), :width].detach().float()
        reading.add(layer, rows)
    if logits is None:
        final = _cached(cache, f"blocks.{adapter.shape.layers - 1}.hook_resid_post")
        scores = unembedded(adapter, final[numbers, prompts.answer_pos.to(final.device)])
    else:
        scores = logits[numbers, prompts.answer_pos.to(logits.device)].detach().float()
    scores = scores.cpu()
    check_finite(scores, numbers, adapter)
    results = reading.results() | {
        "label_scores": scores.gather(1, prompts.label_tokens),
        "model_tokens": scores.argmax(1),
    }
    return evidence_of(adapter, prompts, names, results, template_tokens, "rows taken from a cache")


def _cached(cache: Any, name: str) -> Tensor:
    try:
        return cache[name]
    except KeyError as error:
        raise EvidenceMissing(
            f"the cache must hold {name}; it was left out. Cache it too: run_with_cache(prompts.tokens) "
            "without a names_filter, or with one that lets it through.",
            code="evidence-missing",
        ) from error
