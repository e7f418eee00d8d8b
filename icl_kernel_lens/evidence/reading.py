"""Reads every head's attention from the answer position, and the model's answers.

One forward pass per prompt, and one for all prompts that begin alike up to where they part. In each attention layer
the answer position's row is reduced to one weight per demonstration, in float32 and on the device where it lives, and
only that is kept; nothing of size position × position is. `evidence_from_cache` takes the rows from activations that
are there already, without running the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.axes import Pooling
from icl_kernel_lens.errors import EvidenceMissing, PromptError
from icl_kernel_lens.evidence.rows import AnswerRows, evidence_of, poolings, shown_shape, sums
from icl_kernel_lens.models.adapter import as_adapter, attention_layers
from icl_kernel_lens.models.attention_passes import Prefix
from icl_kernel_lens.models.read_out import unembedded
from icl_kernel_lens.models.unembedding import places_among
from icl_kernel_lens.models.verify import reads_fast, tolerance, verify_model
from icl_kernel_lens.prompts.fit import check_fits, check_same_tokenizer
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.results.evidence import Evidence
from icl_kernel_lens.run.facts import narrows
from icl_kernel_lens.run.forward import answer_logits, check_finite, sequence_scores
from icl_kernel_lens.run.processes import here
from icl_kernel_lens.run.runner import BatchSize, run_prompts

SEEN_AGAIN = 4
"""Prompts that are run again to see whether evidence is of this model."""


@checked
def read(
    model: Any,
    prompts: PromptSet,
    *,
    keep: tuple[Pooling, ...] = ("label", "span_max"),
    offsets: Sequence[int] = (),
    template_tokens: bool = True,
    batch_size: BatchSize = "auto",
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Evidence:
    """Reads every head's attention from the answer position, and the model's answers, in one pass.

    `keep` names the poolings (`axes.Pooling`); one over a span always brings its twin without position 0.
    `offsets` adds the pooling `edges`: the attention on the tokens so far from a demonstration's label, summed, as
    `label_coverage` finds where labels are read (0: all tokens of the label). `template_tokens=False` leaves the template's tokens
    (`Input:`) out of the spans.

    Leading tokens that prompts share (demonstrations, above all) are run once, and attention is not written
    out, wherever the model allows both exactly (`verify_model(model)` says so, with the differences measured). The
    result does not depend on that, nor on `batch_size`: padding stands behind the answer, where causal
    attention cannot see it. A batch that does not fit into memory is halved.

    `checkpoint` names a folder in which finished prompts are kept, every few seconds; the same call goes on
    from there (with another `batch_size`, if you like). It stays when the run has ended; delete it, or read it
    again in no time. The model, its hooks and its mode are left as they were, after an exception too.

    Raises: ModelError: attention cannot be read (see `models.verify`), or logits are not finite.
            PromptError: a prompt is longer than the context, or made for another vocabulary.
            RunError: the checkpoint is of another model, prompts or settings, or memory ran out.
    """
    adapter = as_adapter(model)
    verify_model(adapter)
    names, edges = poolings(prompts, keep, offsets), tuple(sorted(offsets))
    shown, fast = shown_shape(adapter, prompts), reads_fast(adapter)

    def step(numbers: list[int], prefix: Prefix | None) -> dict[str, Tensor]:
        batch = prompts.select(numbers)
        rows = AnswerRows(
            adapter, batch, numbers, names, shown, offsets=edges, template_tokens=template_tokens
        )
        logits = answer_logits(adapter, batch, prefix, fast=fast, look=rows.add).cpu()
        check_finite(logits, torch.tensor(numbers), adapter)
        scores = logits.gather(1, batch.label_tokens)
        if batch.score_on == "sequence":
            scores = sequence_scores(adapter, batch, prefix, fast=fast)
        return rows.results() | {"label_scores": scores, "model_tokens": logits.argmax(1)}

    results, how = run_prompts(
        prompts,
        adapter,
        step,
        name="reading attention",
        settings={"keep": names, "template_tokens": template_tokens, "score_on": prompts.score_on}
        | ({"offsets": edges} if edges else {}),
        sums=sums(adapter, prompts),
        batch_size=batch_size,
        checkpoint=checkpoint,
        progress=progress,
        together=True,
    )
    way = "rows rebuilt from q and k" if fast else "rows taken from hook_pattern"
    return evidence_of(
        adapter, prompts, names, results, f"{way}; {how}", offsets=edges, template_tokens=template_tokens
    )


@checked
def answer(
    model: Any,
    prompts: PromptSet,
    *,
    batch_size: BatchSize = "auto",
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Float[Tensor, "prompt label"]:
    """Runs the model to its label scores alone, without looking inside: logits, or log-probabilities of sequences.

    Shared leading tokens, memory and checkpoints are as for `read`.
    """
    adapter = as_adapter(model)
    fast = reads_fast(adapter)
    narrow = fast and prompts.score_on == "first_token" and narrows(adapter)
    columns = prompts.label_tokens.unique() if narrow else None

    def step(numbers: list[int], prefix: Prefix | None) -> dict[str, Tensor]:
        batch = prompts.select(numbers)
        if prompts.score_on == "sequence":
            return {"scores": sequence_scores(adapter, batch, prefix, fast=fast)}
        logits = answer_logits(adapter, batch, prefix, fast=fast, columns=columns).cpu()
        check_finite(logits, torch.tensor(numbers), adapter)
        return {"scores": logits.gather(1, places_among(batch.label_tokens, columns))}

    results, _ = run_prompts(
        prompts,
        adapter,
        step,
        name="answering",
        settings={"score_on": prompts.score_on},
        batch_size=batch_size,
        checkpoint=checkpoint,
        progress=progress,
        together=True,
    )
    return results["scores"]


@checked
def check_reading(evidence: Evidence, model: Any, prompts: PromptSet) -> None:
    """Refuse evidence that is not a reading of this model and these prompts; a few of them are run to see.

    Raises: ResultError: of other prompts, another model, or other weights under the same name.
    """
    evidence.check_of(as_adapter(model), prompts)
    few = torch.arange(min(len(prompts), max(SEEN_AGAIN, here().size)))
    evidence.check_scores(few, answer(model, prompts.select(few.tolist()), progress=False))


def evidence_from_cache(
    cache: Any,
    prompts: PromptSet,
    *,
    logits: Float[Tensor, "prompt pos vocab"] | None = None,
    keep: tuple[Pooling, ...] = ("label", "span_max"),
    offsets: Sequence[int] = (),
    template_tokens: bool = True,
) -> Evidence:
    """Makes `Evidence` from an `ActivationCache` of `model.run_with_cache(prompts.tokens)`.

    Without `logits`, the answers come from the cached final residual stream and the model's own final norm and
    unembedding. A cache does not say which tokens it was made from; give the prompts that it was.

    Raises: EvidenceMissing: the cache lacks a layer's `hook_pattern`, or is of another shape.
    """
    if not hasattr(cache, "model"):
        raise EvidenceMissing(
            "a cache must be what model.run_with_cache(prompts.tokens) returns, an ActivationCache with its model; it is a "
            f"{type(cache).__name__}. Without return_cache_object=False, and without cache_to_dict().",
            code="evidence-missing",
        )
    adapter = as_adapter(cache.model)
    verify_model(adapter)
    check_fits(prompts, adapter)
    check_same_tokenizer(prompts, adapter)
    if prompts.score_on == "sequence":
        raise PromptError(
            'a cache holds one forward pass, and score_on="sequence" needs one for each label. Use '
            'read(model, prompts), or prompts with score_on="first_token".',
            code="whole-labels",
        )
    numbers, width = torch.arange(len(prompts)), int(prompts.lengths.max())
    names, shown, edges = (
        poolings(prompts, keep, offsets),
        shown_shape(adapter, prompts),
        tuple(sorted(offsets)),
    )
    reading = AnswerRows(
        adapter, prompts, numbers.tolist(), names, shown, offsets=edges, template_tokens=template_tokens
    )
    for layer in attention_layers(adapter):
        name = f"blocks.{layer}.attn.hook_pattern"
        pattern = _shaped(cache, name, (len(prompts), adapter.shape.heads, width, width))
        rows = pattern[numbers, :, prompts.answer_pos.to(pattern.device), :width].detach().float()
        _check_rows(rows, name, tolerance(adapter.dtype))
        reading.add(layer, rows)
    if logits is None:
        name = f"blocks.{adapter.shape.layers - 1}.hook_resid_post"
        final = _shaped(cache, name, (len(prompts), width, None))
        scores = unembedded(adapter, final[numbers, prompts.answer_pos.to(final.device)])
    else:
        logits = _shaped(
            {"logits": logits}, "logits", (len(prompts), width, int(prompts.label_tokens.max()) + 1)
        )
        scores = logits[numbers, prompts.answer_pos.to(logits.device)].detach().float()
    scores = scores.cpu()
    check_finite(scores, numbers, adapter)
    results = reading.results() | {
        "label_scores": scores.gather(1, prompts.label_tokens),
        "model_tokens": scores.argmax(1),
    }
    return evidence_of(
        adapter,
        prompts,
        names,
        results,
        "rows taken from a cache",
        offsets=edges,
        template_tokens=template_tokens,
    )


def _check_rows(rows: Float[Tensor, "prompt head key"], name: str, limit: float) -> None:
    """Refuse what is no attention: rows are at least 0 and sum to 1, or less where there is a sink."""
    least, most = float(rows.min()), float(rows.sum(-1).max())  # NaN fails both
    if not (least >= -limit and most <= 1 + limit):
        raise EvidenceMissing(
            f"attention rows must be at least 0 and sum to at most 1; those of {name} in the cache have a least weight of "
            f"{least:.3g} and sums up to {most:.3g}. Was the cache edited, or filled under hooks? Cache anew with "
            "run_with_cache(prompts.tokens).",
            code="evidence-missing",
        )


def _shaped(cache: Any, name: str, shape: tuple[int | None, ...]) -> Tensor:
    """A cached activation over these prompts, heads and positions (of which there may be more), whatever its width."""
    try:
        found = cache[name]
    except KeyError as error:
        raise EvidenceMissing(
            f"the cache must hold {name}; it was left out. Cache it too: run_with_cache(prompts.tokens) "
            "without a names_filter, or with one that lets it through.",
            code="evidence-missing",
        ) from error
    exact = (0, 1) if len(shape) == 4 else (0,)
    if found.dim() != len(shape) or any(
        size is not None and (have != size if at in exact else have < size)
        for at, (have, size) in enumerate(zip(found.shape, shape, strict=True))
    ):
        raise EvidenceMissing(
            f"the cache must hold the activations of these {shape[0]} prompts, every head and every token, as {shape}; "
            f"{name} has shape {tuple(found.shape)}. Cache with run_with_cache(prompts.tokens), keeping the batch dimension.",
            code="evidence-missing",
        )
    return found
