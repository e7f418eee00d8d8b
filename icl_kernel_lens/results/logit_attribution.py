"""The logit difference toward one label, in parts: by head, by demonstration, by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.fields import unit
from icl_kernel_lens.numbers.correlation import Line, line_through
from icl_kernel_lens.numbers.intervals import cluster_bootstrap
from icl_kernel_lens.results.base import Result, head_table, long_form
from icl_kernel_lens.results.run_info import RunInfo


@dataclass(frozen=True, eq=False, repr=False)
class LogitAttribution(Result):
    """The logit difference toward one label, in parts that add up to it."""

    heads: Float[Tensor, "prompt layer head"] = field(metadata=unit("logits"))
    demos: Float[Tensor, "prompt layer head demo"] = field(metadata=unit("logits"))
    """The part of `heads` through each demonstration's first label token."""
    weights: Float[Tensor, "prompt layer head demo"] = field(metadata=unit("attention"))
    """The attention on these tokens, not renormalised."""
    read_outs: Float[Tensor, "prompt layer head demo"] = field(metadata=unit("logits"))
    """What the head would write if it read this token alone: ⟨J v W_O[h], δ_c⟩; `demos` is `weights` times it."""
    mlps: Float[Tensor, "prompt layer"] = field(metadata=unit("logits"))
    embedding: Float[Tensor, " prompt"] = field(metadata=unit("logits"))
    """Token and position embeddings, as the first layer gets them."""
    attention_biases: Float[Tensor, "prompt layer"] = field(metadata=unit("logits"))
    """Output biases of attention; values' biases are in `heads`, for attention weights sum to one."""
    biases: Float[Tensor, " prompt"] = field(metadata=unit("logits"))
    """Of the final norm and of the unembedding."""
    total: Float[Tensor, " prompt"] = field(metadata=unit("logits"))
    """The logit difference as the model gave it, before any soft cap."""
    residual: float
    """The largest |sum of all parts − total|."""
    toward: Int[Tensor, " prompt"]
    """The class that each difference is toward."""
    demo_labels: Int[Tensor, "prompt demo"]
    labels: int
    demo_set: Int[Tensor, " prompt"]
    run: RunInfo
    settings: Mapping[str, str] = field(default_factory=dict)

    def _problems(self) -> Iterator[str]:
        if self.labels < 2:
            yield f"there must be at least two labels; there are {self.labels}"
        for name, labels in (("toward", self.toward), ("demo_labels", self.demo_labels)):
            if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.labels:
                yield f"{name} must be among {self.labels} labels; found {int(labels.min())} to {int(labels.max())}"

    def mean(self) -> Float[Tensor, "layer head"]:
        """Of each head, over prompts."""
        return self.heads.mean(0)

    @checked
    def interval(
        self, level: float = 0.95, *, draws: int = 2000, seed: int = 0
    ) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"]]:
        """Bootstrap interval of the mean, demonstration sets drawn whole; per head and pointwise."""
        return cluster_bootstrap(self.heads, self.demo_set, level=level, draws=draws, seed=seed)

    def regression(self) -> Line:
        """Does a head write what kernel regression would: attention times label?

            demos_i ≈ intercept + slope · A_{r,p_i} ([y_i = c] − [y_i ≠ c] / (C − 1))

        by least squares over all prompts and demonstrations of each head, with c the class in `toward`; the slope is in
        logits per unit of attention on a demonstration of class c.
        Reads as: R² near 1, what the head writes for a demonstration is its weight times its label; near 0, it
        is something else, whatever its attention votes.
        Does not show: how much it writes (see the slope), nor intervals; prompts of one set are not independent.
        """
        right = (self.demo_labels == self.toward[:, None])[:, None, None].double()
        x = self.weights.double() * (right - (1 - right) / (self.labels - 1))
        x, y = (t.movedim(-1, 0).flatten(0, 1) for t in (x, self.demos))
        return Line(*(number.float() for number in line_through(x, y)))

    def table(self) -> pd.DataFrame:
        """One row per head, the largest mean first."""
        low, high = self.interval()
        columns = {
            "direct_logit_attribution": self.mean(),
            "low": low,
            "high": high,
            "through_labels": self.demos.sum(-1).mean(0),
            **self.regression()._asdict(),
        }
        return head_table(columns).sort_values(
            "direct_logit_attribution", ascending=False, kind="stable", ignore_index=True
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Long form: prompt, layer, head, value, and the part of it through label tokens."""
        return long_form(
            ("prompt", "layer", "head"), {"value": self.heads, "through_labels": self.demos.sum(-1)}
        )

    def __repr__(self) -> str:
        prompts, layers, heads = self.heads.shape
        mean = float(self.total.mean())
        parts = {
            "heads": self.heads.sum((1, 2)),
            "of these through label tokens": self.demos.sum((1, 2, 3)),
            "MLPs": self.mlps.sum(1),
            "embedding": self.embedding,
            "biases": self.attention_biases.sum(1) + self.biases,
        }
        return "\n".join(
            [
                f"LogitAttribution({prompts} prompts × {layers} layers × {heads} heads, toward "
                f"{self.settings.get('toward', '?')}; {self.run.about})",
                f"  mean logit difference {mean:.3f}: "
                + ", ".join(f"{name} {float(part.mean()):.3f}" for name, part in parts.items())
                + f"; parts add up within {self.residual:.1e}",
                self.table().head(5).to_string(float_format=lambda x: f"{x:.3f}"),
            ]
        )
