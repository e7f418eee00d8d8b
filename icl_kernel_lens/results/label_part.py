"""Says what shares of the answer's label part are lost and kept under cuts, and which smallest set of offsets covers it.

    lost(O) = 1 − Σ t_cut(O) / Σ t,      kept(O) = Σ t_keep(O) / Σ t        sums over prompts; t: `interventions/coverage.py`

Does not show: anything of a cut that was not made; where the interval of the mean of t reaches 0, there are no shares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.numbers.groups import first_half
from icl_kernel_lens.numbers.intervals import cluster_t, ratio_mean, student_quantile
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.results.ablation_curves import Side

Offsets = tuple[int, ...]
"""Offsets that are cut, or alone kept, together."""


def name_of(offsets: Offsets) -> str:
    """A set of offsets as it is printed: "0, +1"."""
    return ", ".join(f"{offset:+d}" if offset else "0" for offset in offsets)


def check_shares(lose: float, keep: float) -> None:
    """Refuse what the smallest set cannot be asked to lose and keep.

    Raises: ResultError: a number that is no share.
    """
    if not (0 < lose <= 1 and 0 < keep <= 1):
        raise ResultError(
            f"lose and keep must be shares, above 0 and at most 1; got {lose} and {keep}. For 80 %, pass 0.8.",
            code="number-range",
        )


class Share(NamedTuple):
    """A share of the label part, and its interval between demonstration sets."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class SmallestSet:
    """The smallest set of offsets that covers the labels, or why there is none."""

    offsets: Offsets | None
    """None: there is none, and `why` says so."""
    confirmed: bool
    """Whether on the other half, too, the intervals of both shares lie above what is asked."""
    lost: Share | None
    """With its edges cut, on the half that it was not found on; None without a set."""
    kept: Share | None
    """With its edges alone."""
    why: str


@dataclass(frozen=True, eq=False)
class LabelPart:
    """The label part t of each prompt's answer with nothing cut, of which shares are taken."""

    whole: Float[Tensor, " prompt"]
    demo_set: Int[Tensor, " prompt"]

    def mean(self, level: float = 0.95) -> Share:
        """The mean of t in logits, and its interval between demonstration sets."""
        low, high = cluster_t(self.whole, self.demo_set, level=level)
        return Share(*map(float, (self.whole.double().mean(), low, high)))

    @property
    def undefined(self) -> Reason | None:
        """Why there are no shares; None: there are."""
        value, low, high = self.mean()
        if low != low and value != 0:
            return Reason.NO_LABEL_INTERVAL
        return None if low > 0 or high < 0 else Reason.NO_LABEL_PART

    def share(
        self,
        side: Side,
        left: Float[Tensor, "prompt *cell"],
        level: float = 0.95,
        half: Bool[Tensor, " prompt"] | None = None,
    ) -> tuple[Float[Tensor, "*cell"], Float[Tensor, "*cell"], Float[Tensor, "*cell"]]:
        """What is lost with edges cut, or kept of them alone: ratios of means with linearised intervals; NaN: `undefined`.

        `left` is t under the cuts of this side.
        """
        some = torch.ones_like(self.whole, dtype=torch.bool) if half is None else half
        whole, changed = self.whole[some].double(), left[some].double()
        over = whole.reshape(-1, *[1] * (changed.dim() - 1))
        part = over - changed if side == "necessity" else changed
        value, error, used = ratio_mean(part, whole, self.demo_set[some])
        reach = error * student_quantile(level, used - 1)
        if self.undefined is not None:
            value = torch.full_like(value, torch.nan)
        return value, value - reach, value + reach

    def smallest_set(
        self,
        left: Mapping[Side, Float[Tensor, "prompt edges"]],
        sets: Sequence[Offsets],
        *,
        lose: float,
        keep: float,
        seed: int,
    ) -> SmallestSet:
        """The smallest of these sets whose cut loses at least `lose`, and which alone keeps at least `keep`.

        Found on one half of the demonstration sets and told from the other: see `LabelCoverage.smallest_set`. `left` is t
        with each set's edges cut (necessity), and with them alone (sufficiency).

        Raises: ResultError: `lose` or `keep` is no share.
        """
        check_shares(lose, keep)
        if self.undefined is not None:
            return SmallestSet(None, False, None, None, f"shares are undefined, as {self.undefined}")
        asked = f"loses at least {lose:.0%} when cut and alone keeps at least {keep:.0%}"
        half = first_half(self.demo_set, seed=seed)
        at = self._chosen(left, sets, lose, keep, half)
        if at is None:
            lost, kept = (self.share(side, left[side])[0] for side in get_args(Side))
            best = int(_gain(lost, kept).argmax())
            offsets = name_of(tuple(sorted({offset for one in sets for offset in one})))
            return SmallestSet(
                None,
                False,
                None,
                None,
                f"no set of the offsets {offsets} {asked}; offset {name_of(sets[best])} loses "
                f"{float(lost[best]):.2f} and keeps {float(kept[best]):.2f}",
            )
        lost, kept = (
            Share(*(float(x[at]) for x in self.share(side, left[side], half=~half)))
            for side in get_args(Side)
        )
        numbers = f"on the other half it loses {lost} and keeps {kept}"
        name = f"offset {name_of(sets[at])} {asked}"
        if not (lost.value >= lose and kept.value >= keep):
            why = f"{name} on the half of the sets that it was found on; {numbers}"
            return SmallestSet(None, False, None, None, why)
        sure = lost.low >= lose and kept.low >= keep
        more = "" if sure else "; for intervals above what is asked, draw more demonstration sets"
        return SmallestSet(sets[at], sure, lost, kept, f"{name}: {numbers}{more}")

    def _chosen(
        self,
        left: Mapping[Side, Tensor],
        sets: Sequence[Offsets],
        lose: float,
        keep: float,
        half: Bool[Tensor, " prompt"],
    ) -> int | None:
        """Which set is the smallest that does on one half; of equally small ones the one that helps most."""
        if not float(self.whole[half].double().mean()) * self.mean().value > 0:
            return None
        lost, kept = (self.share(side, left[side], half=half)[0] for side in get_args(Side))
        good = ((lost >= lose) & (kept >= keep)).nonzero()[:, 0].tolist()
        gain = _gain(lost, kept).tolist()
        return min(good, key=lambda at: (len(sets[at]), -gain[at]), default=None)


def _gain(lost: Float[Tensor, " edges"], kept: Float[Tensor, " edges"]) -> Float[Tensor, " edges"]:
    """How much each set helps: what it loses and keeps, each at most 1."""
    return (lost.clamp(max=1) + kept.clamp(max=1)).nan_to_num(-torch.inf)
