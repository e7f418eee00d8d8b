"""How much the loss leans on three kinds of attention pairs: text to label word, label word to answer, all others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.numbers.intervals import cluster_bootstrap
from icl_kernel_lens.results.base import Result, broken, head_table
from icl_kernel_lens.results.run_info import RunInfo

FLOWS = ("wp", "pq", "ww")


@dataclass(frozen=True, eq=False, repr=False)
class Saliency(Result):
    """Mean |attention · gradient| of three kinds of pairs, per prompt and head."""

    wp: Float[Tensor, "prompt layer head"]
    """From text to label words; NaN where no label word has a token before it."""
    pq: Float[Tensor, "prompt layer head"]
    """From label words to the answer position."""
    ww: Float[Tensor, "prompt layer head"]
    """All other pairs; one that a sliding window hides counts, with 0."""
    layers: Float[Tensor, "prompt layer flow"]
    """S_wp, S_pq, S_ww of |Σ_h A_h · ∂L/∂A_h|, as in the paper."""
    demo_set: Int[Tensor, " prompt"]
    run: RunInfo
    settings: Mapping[str, str] = field(default_factory=dict)

    def _problems(self) -> Iterator[str]:
        return broken(
            {
                f"layers must hold {', '.join(FLOWS)}; there are {self.layers.shape[2]}": (
                    self.layers.shape[2] == len(FLOWS)
                )
            }
        )

    def coords(self) -> Mapping[str, Sequence[str]]:
        """The kinds of pairs."""
        return {"flow": FLOWS}

    def mean(self) -> dict[str, Float[Tensor, "layer head"]]:
        """Of each kind, over prompts."""
        return {name: getattr(self, name).nanmean(0) for name in FLOWS}

    @checked
    def interval(
        self, level: float = 0.95, *, draws: int = 2000, seed: int = 0
    ) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"]]:
        """Bootstrap interval of the mean of S_pq − S_ww, demonstration sets drawn whole."""
        return cluster_bootstrap(self.pq - self.ww, self.demo_set, level=level, draws=draws, seed=seed)

    def table(self) -> pd.DataFrame:
        """One row per head: the three means, and S_pq − S_ww with its interval; the largest of these first."""
        low, high = self.interval()
        columns = self.mean() | {"pq_above_ww": (self.pq - self.ww).nanmean(0), "low": low, "high": high}
        return head_table(columns).sort_values(
            "pq_above_ww", ascending=False, kind="stable", ignore_index=True
        )

    def __repr__(self) -> str:
        prompts, layers, heads = self.pq.shape
        return (
            f"Saliency({prompts} prompts × {layers} layers × {heads} heads, loss of "
            f"{self.settings.get('toward', '?')}; {self.run.about})\n"
            + self.table().head(5).to_string(float_format=lambda x: f"{x:.2e}")
        )
