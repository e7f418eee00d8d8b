"""The one place that runs a model to look.

One forward pass per prompt. In each attention layer's hook the answer position's row is taken, in
float32 and on the device where it lives, reduced to one weight per demonstration, and only that leaves
the hook; nothing of size position × position is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.axes import Pooling
from icl_kernel_lens.errors import EvidenceMissing, ModelError, PromptError
from icl_kernel_lens.evidence.evidence import Evidence
from icl_kernel_lens.evidence.pooling import POINTS, RowPlan, pool, resample, with_twins
from icl_kernel_lens.evidence.runner import run_batches
from icl_kernel_lens.models import Lens, as_lens, probe
from icl_kernel_lens.models.probe import check_fired
from icl_kernel_lens.prompts import PromptSet
from icl_kernel_lens.prompts.promptset import SHOWN
from icl_kernel_lens.results.run_info import RunInfo


def read(
    model: Any,
    prompts: PromptSet,
    *,
    keep: tuple[Pooling, ...] = ("label", "span_max"),
    template_tokens: bool = True,
    batch_size: int | None = None,
    progress: bool = True,
) -> Evidence:
    """Read every head's attention from the answer position, and the model's answers, in one pass.

    `keep` names the poolings (`axes.Pooling`); one over a span always brings its twin without position 0.
    `template_tokens=False` leaves the template's tokens (`Input:`) out of the spans. The result does not
    depend on `batch_size`: padding stands behind the answer, where causal attention cannot see it.
    The model, its hooks and its mode are left as they were, after an exception too.

    Raises: ModelError: attention cannot be read (see `models.probe`), or logits are not finite.
            PromptError: a prompt is longer than the context, or made for another vocabulary.
    """
    if not isinstance(prompts, PromptSet):
        raise PromptError(
            f"read(model, prompts) needs a PromptSet; got a {type(prompts).__name__}. Make one with "
            "task.prompts(model, ...) or PromptSet.from_tokens(...)."
        )
    lens = as_lens(model)
    report = probe(lens)
    reading = _Reading.empty(lens, prompts, with_twins(keep), template_tokens)
    layers = [layer for layer in range(lens.shape.layers) if layer not in report.missing]

    def step(numbers: list[int]) -> None:
        batch = prompts.select(numbers)
        width = int(batch.lengths.max())
        fired = dict.fromkeys(layers, 0)
        plan = RowPlan.of(batch, width, template_tokens=template_tokens)
        index = torch.tensor(numbers)

        def looker(layer: int):
            def look(pattern: Float[Tensor, "batch head query key"]) -> None:
                fired[layer] += 1
                rows = pattern[torch.arange(len(numbers)), :, batch.answer_pos.to(pattern.device)]
                reading.add(layer, index, rows.detach().float(), plan.to(rows.device))

            return look

        with lens.watching({(layer, "hook_pattern"): looker(layer) for layer in layers}):
            logits = lens.run(batch.tokens[:, :width], batch.lengths, batch.answer_pos[:, None])
        check_fired(fired, "hook_pattern", lens)
        reading.answers(index, logits[:, 0].cpu(), lens)
        if prompts.score_on == "sequence":
            reading.label_scores[index] = sequence_scores(lens, batch)

    run_batches(prompts, lens, step, batch_size=batch_size, progress=progress, name="reading attention")
    return reading.evidence(dict(report.missing))


def answer(
    model: Any, prompts: PromptSet, *, batch_size: int | None = None, progress: bool = True
) -> Float[Tensor, "prompt label"]:
    """The model's label scores alone, without looking inside: logits, or log-probabilities of sequences."""
    lens = as_lens(model)
    scores = torch.full((len(prompts), prompts.labels), float("nan"))

    def step(numbers: list[int]) -> None:
        batch = prompts.select(numbers)
        if prompts.score_on == "sequence":
            scores[numbers] = sequence_scores(lens, batch)
            return
        width = int(batch.lengths.max())
        logits = lens.run(batch.tokens[:, :width], batch.lengths, batch.answer_pos[:, None])[:, 0]
        check_finite(logits.cpu(), torch.tensor(numbers), lens)
        scores[numbers] = logits.cpu().gather(1, batch.label_tokens)

    run_batches(prompts, lens, step, batch_size=batch_size, progress=progress, name="answering")
    return scores


def sequence_scores(lens: Lens, batch: PromptSet) -> Float[Tensor, "prompt label"]:
    """log P(label | prompt) = Σ_k log P(piece_k | prompt, pieces before), each label fed as it stands."""
    scores = torch.zeros(len(batch), batch.labels)
    most = batch.label_sequences.shape[2]
    steps = torch.arange(most)
    for label in range(batch.labels):
        pieces, lengths = batch.label_sequences[:, label], batch.label_lengths[:, label]
        width = int(batch.lengths.max()) + most - 1
        tokens = torch.zeros(len(batch), width, dtype=torch.long)
        tokens[:, : min(width, batch.tokens.shape[1])] = batch.tokens[:, :width]
        where = batch.answer_pos[:, None] + 1 + steps[: most - 1]
        tokens.scatter_(1, where, pieces[:, : most - 1])
        positions = torch.minimum(
            batch.answer_pos[:, None] + steps, batch.answer_pos[:, None] + lengths[:, None] - 1
        )
        logits = lens.run(tokens, batch.lengths + lengths - 1, positions).cpu()
        check_finite(logits, torch.arange(len(batch)), lens)
        logprob = logits.log_softmax(-1).gather(2, pieces[..., None]).squeeze(-1)
        scores[:, label] = (logprob * (steps < lengths[:, None])).sum(1)
    return scores


def check_finite(logits: Tensor, numbers: Int[Tensor, " prompt"], lens: Lens) -> None:
    """Refuse logits with infinities or NaN."""
    bad = ~torch.isfinite(logits).flatten(1).all(1)
    if bad.any():
        raise ModelError(
            f"logits must be finite; {lens.name} gave infinite or undefined ones for {int(bad.sum())} of "
            f"{len(numbers)} prompts (the first is prompt {int(numbers[bad][0])}). Weights in "
            f"{lens.dtype} may overflow: load the model in bfloat16 or float32, and check that its "
            "weights are finite."
        )


@dataclass
class _Reading:
    """What has been read so far."""

    lens: Lens
    prompts: PromptSet
    template_tokens: bool
    weights: dict[str, Tensor]
    sink: Tensor
    label_scores: Tensor
    model_tokens: Tensor
    profile: Tensor
    rows: Tensor
    layers_seen: set[int] = field(default_factory=set)

    @classmethod
    def empty(
        cls, lens: Lens, prompts: PromptSet, keep: tuple[Pooling, ...], template_tokens: bool
    ) -> _Reading:
        shape, count, shown = lens.shape, len(prompts), min(SHOWN, len(prompts))
        nan = float("nan")
        points = prompts.demos * (POINTS + 1) + POINTS
        each = (count, shape.layers, shape.heads)
        return cls(
            lens,
            prompts,
            template_tokens,
            weights={name: torch.full((*each, prompts.demos), nan) for name in keep},
            sink=torch.full(each, nan),
            label_scores=torch.full((count, prompts.labels), nan),
            model_tokens=torch.zeros(count, dtype=torch.long),
            profile=torch.zeros(shape.layers, shape.heads, points, dtype=torch.float64),
            rows=torch.full((shown, shape.layers, shape.heads, int(prompts.lengths[:shown].max())), nan),
        )

    def add(
        self,
        layer: int,
        numbers: Int[Tensor, " batch"],
        rows: Float[Tensor, "batch head pos"],
        plan: RowPlan,
    ) -> None:
        """Take in one layer's answer rows of one batch."""
        self.layers_seen.add(layer)
        for name, weights in self.weights.items():
            weights[numbers, layer] = pool(rows, plan, name).cpu()  # pyright: ignore[reportArgumentType]
        self.sink[numbers, layer] = rows[..., 0].cpu()
        self.profile[layer] += resample(rows, plan).sum(0).double().cpu()
        for at, number in enumerate(numbers.tolist()):
            if number < len(self.rows):
                end = min(rows.shape[2], self.rows.shape[3])
                self.rows[number, layer] = 0
                self.rows[number, layer, :, :end] = rows[at, :, :end].cpu()

    def answers(self, numbers: Int[Tensor, " batch"], logits: Tensor, lens: Lens) -> None:
        check_finite(logits, numbers, lens)
        self.model_tokens[numbers] = logits.argmax(1)
        self.label_scores[numbers] = logits.gather(1, self.prompts.label_tokens[numbers])

    def evidence(self, missing: dict[int, str]) -> Evidence:
        profile = self.profile / len(self.prompts)
        for layer in range(len(profile)):
            if layer not in self.layers_seen:
                profile[layer] = float("nan")
        return Evidence(
            prompts=self.prompts,
            weights=self.weights,
            sink=self.sink,
            label_scores=self.label_scores,
            model_tokens=self.model_tokens,
            profile=profile.float(),
            rows=self.rows,
            missing=missing,
            run=RunInfo.of(
                self.lens,
                self.prompts.info,
                self.prompts.score_on,
                template_tokens=self.template_tokens,
            ),
        )


def evidence_from_cache(
    cache: Any,
    prompts: PromptSet,
    logits: Float[Tensor, "prompt pos vocab"] | None,
    keep: tuple[Pooling, ...],
    template_tokens: bool,
) -> Evidence:
    """See `Evidence.from_cache`."""
    lens = as_lens(cache.model)
    report = probe(lens)
    if prompts.score_on == "sequence":
        raise PromptError(
            'a cache holds one forward pass, and score_on="sequence" needs one for each label. Use '
            'read(model, prompts), or prompts with score_on="first_token".'
        )
    reading = _Reading.empty(lens, prompts, with_twins(keep), template_tokens)
    numbers, width = torch.arange(len(prompts)), int(prompts.lengths.max())
    plan = RowPlan.of(prompts, width, template_tokens=template_tokens)
    for layer in range(lens.shape.layers):
        if layer in report.missing:
            continue
        pattern = _cached(cache, f"blocks.{layer}.attn.hook_pattern")
        if pattern.dim() != 4 or pattern.shape[0] != len(prompts) or pattern.shape[2] < width:
            raise EvidenceMissing(
                f"the cache must hold the patterns of these {len(prompts)} prompts of up to {width} tokens; "
                f"blocks.{layer}.attn.hook_pattern has shape {tuple(pattern.shape)}. Cache with "
                "run_with_cache(prompts.tokens), keeping the batch dimension."
            )
        rows = pattern[numbers, :, prompts.answer_pos.to(pattern.device), :width].detach().float()
        reading.add(layer, numbers, rows, plan.to(rows.device))
    if logits is None:
        final = _cached(cache, f"blocks.{lens.shape.layers - 1}.hook_resid_post")
        answer_residual = final[numbers, prompts.answer_pos.to(final.device)][:, None]
        with torch.no_grad():
            model = lens.model
            normed = model.ln_final(answer_residual) if hasattr(model, "ln_final") else answer_residual
            scores = model.unembed(normed)[:, 0].float()
            cap = getattr(model.cfg, "output_logits_soft_cap", None) or 0
            scores = cap * torch.tanh(scores / cap) if cap > 0 else scores
    else:
        scores = logits[numbers, prompts.answer_pos.to(logits.device)].detach().float()
    reading.answers(numbers, scores.cpu(), lens)
    return reading.evidence(dict(report.missing))


def _cached(cache: Any, name: str) -> Tensor:
    try:
        return cache[name]
    except KeyError as error:
        raise EvidenceMissing(
            f"the cache must hold {name}; it was left out. Cache it too: run_with_cache(prompts.tokens) "
            "without a names_filter, or with one that lets it through."
        ) from error
