"""The one place that runs a model to look.

One forward pass per prompt, and one for all prompts that begin alike up to where they part. In each
attention layer the answer position's row is rebuilt from q and k (or, where that would not be exact, taken
from the pattern hook) in float32 and on the device where it lives, reduced to one weight per demonstration,
and only that is kept; nothing of size position × position is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.axes import Pooling
from icl_kernel_lens.errors import EvidenceMissing, ModelError, PromptError
from icl_kernel_lens.evidence.checkpoint import SUM
from icl_kernel_lens.evidence.evidence import Evidence
from icl_kernel_lens.evidence.pooling import POINTS, RowPlan, pool, resample, with_twins
from icl_kernel_lens.evidence.runner import BatchSize, run_prompts
from icl_kernel_lens.models import Lens, as_lens, probe
from icl_kernel_lens.models.fast import CannotIntercept, Prefix, read_logits, read_rows, reads_fast
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
    batch_size: BatchSize = "auto",
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Evidence:
    """Read every head's attention from the answer position, and the model's answers, in one pass.

    `keep` names the poolings (`axes.Pooling`); one over a span always brings its twin without position 0.
    `template_tokens=False` leaves the template's tokens (`Input:`) out of the spans.

    Leading tokens that prompts share (demonstrations, above all) are run once, and attention is not written
    out, wherever the model allows both exactly (`probe(model)` says so, with the differences measured). The
    result does not depend on that, nor on `batch_size`: padding stands behind the answer, where causal
    attention cannot see it. A batch that does not fit into memory is halved.

    `checkpoint` names a folder in which finished prompts are kept, every few seconds; the same call goes on
    from there (with another `batch_size`, if you like). It stays when the run has ended; delete it, or read it
    again in no time. The model, its hooks and its mode are left as they were, after an exception too.

    Raises: ModelError: attention cannot be read (see `models.probe`), or logits are not finite.
            PromptError: a prompt is longer than the context, or made for another vocabulary.
            RunError: the checkpoint is of another model, prompts or settings, or memory ran out.
    """
    if not isinstance(prompts, PromptSet):
        raise PromptError(
            f"read(model, prompts) needs a PromptSet; got a {type(prompts).__name__}. Make one with "
            "task.prompts(model, ...) or PromptSet.from_tokens(...)."
        )
    lens = as_lens(model)
    probe(lens)
    names = with_twins(keep)
    shown, fast = _shown_shape(lens, prompts), reads_fast(lens)

    def step(numbers: list[int], prefix: Prefix | None) -> dict[str, Tensor]:
        batch = prompts.select(numbers)
        width = int(batch.lengths.max())
        plan = RowPlan.of(batch, width, template_tokens=template_tokens)
        rows = _Rows(lens, batch, numbers, names, plan, shown)
        logits = _run_rows(lens, batch, rows.add, prefix, fast=fast)[:, 0].cpu()
        check_finite(logits, torch.tensor(numbers), lens)
        scores = logits.gather(1, batch.label_tokens)
        if batch.score_on == "sequence":
            scores = sequence_scores(lens, batch, prefix, fast=fast)
        return rows.results() | {"label_scores": scores, "model_tokens": logits.argmax(1)}

    results, how = run_prompts(
        prompts,
        lens,
        step,
        name="reading attention",
        settings={"keep": names, "template_tokens": template_tokens, "score_on": prompts.score_on},
        sums=_sums(lens, prompts),
        batch_size=batch_size,
        checkpoint=checkpoint,
        progress=progress,
    )
    way = "rows rebuilt from q and k" if fast else "rows taken from hook_pattern"
    return _evidence(lens, prompts, names, results, template_tokens, f"{way}; {how}")


def answer(
    model: Any,
    prompts: PromptSet,
    *,
    batch_size: BatchSize = "auto",
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Float[Tensor, "prompt label"]:
    """The model's label scores alone, without looking inside: logits, or log-probabilities of sequences.

    Shared leading tokens, memory and checkpoints are as for `read`.
    """
    lens = as_lens(model)
    fast = reads_fast(lens)

    def step(numbers: list[int], prefix: Prefix | None) -> dict[str, Tensor]:
        batch = prompts.select(numbers)
        if prompts.score_on == "sequence":
            return {"scores": sequence_scores(lens, batch, prefix, fast=fast)}
        width = int(batch.lengths.max())
        at = batch.answer_pos[:, None]
        logits = _run(lens, batch.tokens[:, :width], batch.lengths, at, prefix, fast=fast)[:, 0].cpu()
        check_finite(logits, torch.tensor(numbers), lens)
        return {"scores": logits.gather(1, batch.label_tokens)}

    results, _ = run_prompts(
        prompts,
        lens,
        step,
        name="answering",
        settings={"score_on": prompts.score_on},
        batch_size=batch_size,
        checkpoint=checkpoint,
        progress=progress,
    )
    return results["scores"]


def sequence_scores(
    lens: Lens, batch: PromptSet, prefix: Prefix | None = None, *, fast: bool = False
) -> Float[Tensor, "prompt label"]:
    """log P(label | prompt) = Σ_k log P(piece_k | prompt, pieces before), each label fed as it stands."""
    scores = torch.zeros(len(batch), batch.labels)
    for label in range(batch.labels):
        pieces, lengths = batch.label_sequences[:, label], batch.label_lengths[:, label]
        most = int(lengths.max())
        steps = torch.arange(most)
        width, longest = int(batch.lengths.max()), int((batch.lengths + lengths).max()) - 1
        tokens = torch.zeros(len(batch), width + most - 1, dtype=torch.long)
        tokens[:, :width] = batch.tokens[:, :width]
        where = batch.answer_pos[:, None] + 1 + steps[:-1]
        tokens = tokens.scatter(1, where, pieces[:, : most - 1])[:, :longest]
        positions = torch.minimum(
            batch.answer_pos[:, None] + steps, batch.answer_pos[:, None] + lengths[:, None] - 1
        )
        logits = _run(lens, tokens, batch.lengths + lengths - 1, positions, prefix, fast=fast).cpu()
        check_finite(logits, torch.arange(len(batch)), lens)
        logprob = logits.log_softmax(-1).gather(2, pieces[:, :most, None]).squeeze(-1)
        scores[:, label] = (logprob * (steps < lengths[:, None])).sum(1)
    return scores


def _run(
    lens: Lens, tokens: Tensor, lengths: Tensor, positions: Tensor, prefix: Prefix | None, *, fast: bool
) -> Float[Tensor, "batch read vocab"]:
    """Logits of whole prompts at some positions, the fast way where it is exact."""
    if fast:
        start = prefix.end if prefix else 0
        try:
            return read_logits(lens, tokens[:, start:], lengths, positions, prefix=prefix)
        except CannotIntercept as error:
            _warn(lens, error)
    return lens.run(tokens, lengths, positions)


def _run_rows(
    lens: Lens,
    batch: PromptSet,
    look: Callable[[int, Tensor], None],
    prefix: Prefix | None,
    *,
    fast: bool,
) -> Float[Tensor, "batch 1 vocab"]:
    """Answer logits of whole prompts; each layer's answer rows go to `look`."""
    width = int(batch.lengths.max())
    tokens, at = batch.tokens[:, :width], batch.answer_pos
    layers = [layer for layer in range(lens.shape.layers) if layer not in probe(lens).missing]
    fired = dict.fromkeys(layers, 0)

    def see(layer: int, rows: Float[Tensor, "batch head key"]) -> None:
        fired[layer] += 1
        look(layer, rows)

    if fast:
        start = prefix.end if prefix else 0
        try:
            logits = read_rows(lens, tokens[:, start:], batch.lengths, at, see, prefix=prefix)
            check_fired(fired, "hook_z", lens)
            return logits
        except CannotIntercept as error:
            fired = dict.fromkeys(layers, 0)
            _warn(lens, error)

    def looker(layer: int) -> Callable[[Float[Tensor, "batch head query key"]], None]:
        rows = torch.arange(len(batch))
        return lambda pattern: see(layer, pattern[rows, :, at.to(pattern.device)].detach().float())

    with lens.watching({(layer, "hook_pattern"): looker(layer) for layer in layers}):
        logits = lens.run(tokens, batch.lengths, at[:, None])
    check_fired(fired, "hook_pattern", lens)
    return logits


def _warn(lens: Lens, error: CannotIntercept) -> None:
    warnings.warn(
        f"{lens.name} is read through hook_pattern, which is slower, because {error}.", stacklevel=4
    )


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


class _Rows:
    """One batch's answer rows, reduced layer by layer; they stay where they live until the batch is done."""

    def __init__(
        self,
        lens: Lens,
        batch: PromptSet,
        numbers: list[int],
        names: tuple[Pooling, ...],
        plan: RowPlan,
        shown: tuple[int, ...],
    ) -> None:
        self.lens, self.batch, self.numbers, self.names, self.plan = lens, batch, numbers, names, plan
        self.shown_shape = shown
        self.plans = {torch.device("cpu"): plan}
        self.layers: dict[int, dict[str, Tensor]] = {}

    def add(self, layer: int, rows: Float[Tensor, "batch head pos"]) -> None:
        """Take in one layer's answer rows."""
        if rows.device not in self.plans:
            self.plans[rows.device] = self.plan.to(rows.device)
        plan = self.plans[rows.device]
        reduced = {f"weights.{name}": pool(rows, plan, name) for name in self.names}
        reduced |= {"sink": rows[..., 0], "profile": resample(rows, plan).sum(0)}
        shown = [at for at, number in enumerate(self.numbers) if number < SHOWN]
        self.layers[layer] = reduced | ({"rows": rows[shown].clone()} if shown else {})

    def results(self) -> dict[str, Tensor]:
        """Weights and sinks (prompt, layer, …), NaN where a layer was not seen; sums over the batch."""
        seen = {layer: {k: v.cpu() for k, v in parts.items()} for layer, parts in self.layers.items()}
        some = next(iter(seen.values()))
        layers = range(self.lens.shape.layers)

        def stacked(name: str) -> Tensor:
            absent = torch.full_like(some[name], float("nan"))
            return torch.stack([seen[layer][name] if layer in seen else absent for layer in layers], 1)

        found = {name: stacked(name) for name in some if name not in ("profile", "rows")}
        profile = torch.full((len(layers), *some["profile"].shape), float("nan"), dtype=torch.float64)
        for layer, parts in seen.items():
            profile[layer] = parts["profile"].double()
        found[f"{SUM}profile"] = profile
        if "rows" in some:
            found[f"{SUM}rows"] = self._shown(stacked("rows"))
        return found

    def _shown(self, rows: Float[Tensor, "some layer head pos"]) -> Float[Tensor, "shown layer head whole"]:
        """Whole rows in their places among the shown prompts; 0 beyond a prompt's length."""
        shown = [at for at, number in enumerate(self.numbers) if number < SHOWN]
        whole = torch.zeros(self.shown_shape)
        for row, at in zip(rows, shown, strict=True):
            end = int(self.batch.lengths[at])
            whole[self.numbers[at], ..., :end] = row[..., :end]
        return whole


def _sums(lens: Lens, prompts: PromptSet) -> dict[str, Tensor]:
    """Zeros for what is added up over prompts."""
    points = prompts.demos * (POINTS + 1) + POINTS
    return {
        "profile": torch.zeros(lens.shape.layers, lens.shape.heads, points, dtype=torch.float64),
        "rows": torch.zeros(_shown_shape(lens, prompts)),
    }


def _shown_shape(lens: Lens, prompts: PromptSet) -> tuple[int, ...]:
    shown = min(SHOWN, len(prompts))
    return shown, lens.shape.layers, lens.shape.heads, int(prompts.lengths[:shown].max())


def _evidence(
    lens: Lens,
    prompts: PromptSet,
    names: tuple[Pooling, ...],
    results: dict[str, Tensor],
    template_tokens: bool,
    reading: str,
) -> Evidence:
    return Evidence(
        prompts=prompts,
        weights={name: results[f"weights.{name}"] for name in names},
        sink=results["sink"],
        label_scores=results["label_scores"],
        model_tokens=results["model_tokens"],
        profile=(results[f"{SUM}profile"] / len(prompts)).float(),
        rows=results[f"{SUM}rows"],
        missing=dict(probe(lens).missing),
        run=RunInfo.of(
            lens, prompts.info, prompts.score_on, template_tokens=template_tokens, reading=reading
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
    numbers, width = torch.arange(len(prompts)), int(prompts.lengths.max())
    plan = RowPlan.of(prompts, width, template_tokens=template_tokens)
    reading = _Rows(lens, prompts, numbers.tolist(), with_twins(keep), plan, _shown_shape(lens, prompts))
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
        reading.add(layer, rows)
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
    scores = scores.cpu()
    check_finite(scores, numbers, lens)
    results = reading.results() | {
        "label_scores": scores.gather(1, prompts.label_tokens),
        "model_tokens": scores.argmax(1),
    }
    return _evidence(lens, prompts, reading.names, results, template_tokens, "rows taken from a cache")


def _cached(cache: Any, name: str) -> Tensor:
    try:
        return cache[name]
    except KeyError as error:
        raise EvidenceMissing(
            f"the cache must hold {name}; it was left out. Cache it too: run_with_cache(prompts.tokens) "
            "without a names_filter, or with one that lets it through."
        ) from error
