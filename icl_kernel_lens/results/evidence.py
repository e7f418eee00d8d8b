"""What one reading of a model leaves behind: answer rows reduced to demonstration weights, and answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.axes import Head, HeadRef, Pooling, check_pooling
from icl_kernel_lens.charts.figure import Figure
from icl_kernel_lens.charts.profile import profile_figure
from icl_kernel_lens.charts.token_view import MOST_HEADS, TokenView, positions_worth_showing
from icl_kernel_lens.errors import EvidenceMissing, ResultError
from icl_kernel_lens.models.adapter import ModelAdapter
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.results.base import Result, broken
from icl_kernel_lens.results.run_info import RunInfo

SLACK = 0.05
"""By which half precision's rounding may leave attention's range."""


def other_weights(
    known: Float[Tensor, "prompt label"],
    numbers: Int[Tensor, " some"],
    found: Float[Tensor, "some label"],
    run: RunInfo,
) -> float | None:
    """How far label scores of some prompts are from those known, over the spread of these; None: no further than rounding."""
    spread = known.std() if known.numel() > 1 else known.abs().max()
    off = float((known[numbers] - found).abs().mean() / spread.clamp(min=1e-12))
    return off if off > (0.01 if run.dtype == "float32" else 0.1) else None


@dataclass(frozen=True, eq=False, repr=False)
class Evidence(Result):
    """Per prompt and head, the answer position's attention on the demonstrations; and the answers.

    Weights are attention after softmax, between 0 and 1, float32, not renormalised. Layers without
    attention are NaN, and `missing` says why.
    """

    main: ClassVar[str] = "weights"
    made_by: ClassVar[str] = "Read the model first: read(model, prompts)."

    prompts: PromptSet
    weights: Mapping[str, Float[Tensor, "prompt layer head demo"]]
    """One entry a pooling (see `axes.Pooling`)."""
    sink: Float[Tensor, "prompt layer head"]
    """The mass on position 0, where many heads park their attention."""
    label_scores: Float[Tensor, "prompt label"]
    """Logits of the first label tokens; with `score_on="sequence"`, log-probabilities of whole labels."""
    model_tokens: Int[Tensor, " prompt"]
    """The model's answer over the whole vocabulary: its likeliest next token."""
    profile: Float[Tensor, "layer head point"]
    """The whole row, each text resampled to 30 points and each label one, the mean over prompts
    (Han et al. 2025, Figure 2). The last 30 points are the test input."""
    rows: Float[Tensor, "shown layer head shown_pos"]
    """Whole rows of the first prompts, to look at; 0 beyond the prompt's length."""
    missing: Mapping[int, str]
    run: RunInfo
    offsets: tuple[int, ...] = ()
    """What the pooling `edges` sums over, where it is there."""

    def _problems(self) -> Iterator[str]:
        shape, prompts, rows = (self.run.layers, self.run.heads), self.prompts, self.rows
        unknown = sorted(set(self.weights) - set(get_args(Pooling)))
        points = self.profile.shape[2] - prompts.demos
        least, most = self._extremes()
        there = [layer for layer in range(self.sink.shape[1]) if layer not in self.missing]
        return broken(
            {
                f"its heads are {tuple(self.sink.shape[1:])} (layers, heads), and the run's {shape}": (
                    self.sink.shape[1:] == shape
                ),
                "weights must hold a pooling": len(self.weights) > 0,
                f"offsets belong to the pooling edges; they are {self.offsets}": (
                    bool(self.offsets) == ("edges" in self.weights)
                ),
                f"weights hold {unknown}, which are no poolings": not unknown,
                f"layers without attention lie in 0…{shape[0] - 1}; they are {sorted(self.missing)}": all(
                    0 <= layer < shape[0] for layer in self.missing
                ),
                "profile must have as many points for every text, and one for every label": (
                    points > 0 and points % (prompts.demos + 1) == 0
                ),
                f"rows must be of the first prompts; they have shape {tuple(rows.shape)}": (
                    len(rows) <= len(prompts) and rows.shape[3] <= prompts.tokens.shape[1]
                ),
                "rows must reach as far as their prompts' token strings": all(
                    len(strings) <= rows.shape[3] for strings in prompts.strings[: len(rows)]
                ),
                f"there are {prompts.labels} labels, and scores of {self.label_scores.shape[1]}": (
                    self.label_scores.shape[1] == prompts.labels
                ),
                "label scores must be finite": bool(self.label_scores.isfinite().all()),
                "model tokens are token ids, at least 0": int(self.model_tokens.min()) >= 0,
                f"weights and sinks must lie between 0 and 1; they reach from {least:.3g} to {most:.3g}": (
                    least >= -SLACK and most <= 1 + SLACK
                ),
                "only layers without attention, named in missing, may have an undefined sink, profile or rows": not any(
                    part[..., there, :, :].isnan().any()
                    for part in (self.sink[..., None], self.profile, self.rows)
                ),
            }
        )

    def _extremes(self) -> tuple[float, float]:
        """The least and the largest of all that is attention, NaN left out."""
        found = [part[~part.isnan()] for part in (*self.weights.values(), self.sink, self.rows)]
        whole = torch.cat([part.flatten().float() for part in found])
        return (float(whole.min()), float(whole.max())) if len(whole) else (0.0, 0.0)

    def check_of(self, adapter: ModelAdapter, prompts: PromptSet) -> None:
        """Refuse to stand for a reading of another model or of other prompts.

        Raises: ResultError.
        """
        again = "Read them anew with read(model, prompts), or leave evidence= out where it can be."
        if not prompts.same_as(self.prompts):
            raise ResultError(
                f"evidence must be a reading of these {len(prompts)} prompts; it is of {len(self.prompts)} others. {again}",
                code="evidence-of-others",
            )
        run, shape = self.run, adapter.shape
        theirs = (adapter.name, adapter.kind, shape.layers, shape.heads)
        if (run.model, run.kind, run.layers, run.heads) != theirs:
            raise ResultError(
                f"evidence must be a reading of this model; it was read from {run.model} ({run.kind}, {run.layers} × "
                f"{run.heads} heads), and the model is {adapter.name} ({adapter.kind}, {shape.layers} × {shape.heads} "
                f"heads). {again}",
                code="evidence-of-others",
            )

    def check_scores(self, numbers: Int[Tensor, " some"], found: Float[Tensor, "some label"]) -> None:
        """Refuse to stand for a model that gives other label scores: other weights under the same name.

        Raises: ResultError.
        """
        off = other_weights(self.label_scores, numbers, found, self.run)
        if off is not None:
            raise ResultError(
                f"evidence must be a reading of this model; its label scores differ from the model's by {off:.0%} of "
                "their spread. Is it of another checkpoint, or of other settings? Leave evidence= out, or read these "
                "prompts anew.",
                code="evidence-of-others",
            )

    @property
    def answers(self) -> Int[Tensor, " prompt"]:
        """The model's own answer among the labels."""
        return self.label_scores.argmax(1)

    @property
    def label_probabilities(self) -> Float[Tensor, "prompt label"]:
        """The model's distribution over the labels alone."""
        return self.label_scores.softmax(1)

    def pooled(self, pooling: Pooling) -> Float[Tensor, "prompt layer head demo"]:
        """The weights under one pooling.

        Raises: EvidenceMissing: it was not asked for when reading.
        """
        check_pooling(pooling)
        if pooling not in self.weights:
            asked = (*self.weights, pooling.removesuffix("_without_first"))
            keep = tuple(name for name in asked if not name.endswith("_without_first") and name != "edges")
            offsets = f", offsets={self.offsets or (0, 1)}" if "edges" in asked else ""
            raise EvidenceMissing(
                f"evidence must be read with the pooling it is scored on; {pooling!r} was asked for and "
                f"{sorted(self.weights)} are there. Read again with read(..., keep={keep}{offsets}).",
                code="evidence-missing",
            )
        return self.weights[pooling]

    def on_labels(self) -> Float[Tensor, " layer"]:
        """What share of its attention the answer position gives to the labels' first tokens, layer by layer.

        The mean over prompts and over the heads of a layer; NaN without attention. It shows where the answer position looks,
        not what the answer needs (`knock_out`).
        """
        demos = self.prompts.demos
        points = (self.profile.shape[-1] - demos) // (demos + 1)
        return self.profile[..., points + (points + 1) * torch.arange(demos)].sum(-1).mean(1)

    def figure(self) -> Figure:
        """The averaged attention map (Han et al. 2025, Figure 2)."""
        return profile_figure(
            self.profile,
            demos=self.prompts.demos,
            of=self.run.about,
            prompts=len(self.prompts),
        )

    @checked
    def token_view(self, heads: Sequence[Head | str], prompt: int = 0) -> TokenView:
        """Colour the tokens of one of the first prompts by the answer position's attention, for up to four heads.

        Prompts of more than 128 tokens are cropped: position 0, the label tokens and the test input stay, then the
        tokens before each label as far as there is room; `…` marks a gap. It shows where the row looks, not what the
        head brings from there.

        Raises: ResultError: a prompt whose rows were not kept, too many heads, no such head.
        """
        refs = HeadRef.each(heads)
        layers, total = self.rows.shape[1:3]
        shown = min(len(self.rows), len(self.prompts.strings))
        if not 0 <= prompt < shown:
            raise ResultError(
                f"rows and token strings are kept for the first {shown} prompts; got prompt {prompt}.",
                code="not-kept",
            )
        if not 0 < len(refs) <= MOST_HEADS:
            raise ResultError(
                f"a token view shows 1 to {MOST_HEADS} heads; got {len(refs)}.", code="number-range"
            )
        for ref in refs:
            if not (0 <= ref.layer < layers and 0 <= ref.head < total):
                raise ResultError(
                    f"there is no head {ref}; layers run to {layers - 1}, heads to {total - 1}.",
                    code="head-outside",
                )
        prompts, strings = self.prompts, self.prompts.strings[prompt]
        test = int(prompts.demo_spans[prompt, -1, 1]) if prompts.demos else 0
        kept = positions_worth_showing(len(strings), prompts.label_spans[prompt].tolist(), test)
        cropped = " (position 0, labels, what stands before them, and the test input; … marks gaps)"
        return TokenView.cropped(
            strings,
            self.rows[prompt][[ref.layer for ref in refs], [ref.head for ref in refs]],
            kept,
            labels=[str(ref) for ref in refs],
            caption=f"Attention from the answer position (the last token) of prompt {prompt}, {self.run.model} on "
            f"{self.run.prompts.task}: {len(kept)} of {len(strings)} tokens{cropped * (len(kept) < len(strings))}. "
            "Hover or click a head's name to colour by it.",
        )

    def __repr__(self) -> str:
        run = self.run
        lines = [
            f"Evidence({run.model}, {run.kind}, {run.dtype}: {len(self.prompts)} prompts × {run.layers} "
            f"layers × {run.heads} heads; poolings {', '.join(self.weights)})",
            f"  {run.verification}",
            *([f"  {run.reading}"] if run.reading else []),
        ]
        if self.prompts.test_labels is not None:
            right = (self.answers == self.prompts.test_labels).float().mean().item()
            lines.append(f"  the model answers {right:.1%} of the test inputs right among the labels")
        said = (self.model_tokens[:, None] == self.prompts.label_tokens).any(1).float().mean().item()
        lines.append(f"  its likeliest next token is the beginning of a label word in {said:.1%}")
        return "\n".join(lines)
