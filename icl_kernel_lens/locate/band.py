"""This module finds the band: the smallest run of layers that holds a share of an effect."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.numbers.intervals import bootstrap_counts
from icl_kernel_lens.results.criteria import Band


def smallest_run(effect: Float[Tensor, "draw layer"], share: float) -> Int[Tensor, "draw 2"]:
    """First and last layer of the shortest run with Σ effect ≥ share × the whole; of equally short ones, the fullest.

    Negative layers (draws may have them) count against the run. −1 where the whole is not above 0.
    """
    layers = effect.shape[1]
    whole = effect.sum(1)
    total = torch.nn.functional.pad(effect.cumsum(1), (1, 0))
    found = torch.full((len(effect), 2), -1, dtype=torch.long)
    for length in range(layers, 0, -1):
        held = total[:, length:] - total[:, : layers + 1 - length]
        best, first = held.max(1)
        enough = (best >= share * whole - 1e-9 * whole.abs()) & (whole > 0)
        run = torch.stack([first, first + length - 1], 1)
        found = torch.where(enough[:, None], run, found)
    return found


def find_band(
    drop: Float[Tensor, "prompt layer"],
    base: Float[Tensor, " prompt"],
    demo_set: Int[Tensor, " prompt"],
    share: float,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Band | None:
    """Find the band of the confirmed heads' drops, summed over each layer, and its ends' intervals by demonstration sets.

    None where nothing drops. Does not show: that layers between the band's ends hold a head each.
    """
    _, member = demo_set.unique(return_inverse=True)
    count = int(member.max()) + 1
    sums = torch.zeros(count, drop.shape[1], dtype=torch.float64).index_add(0, member, drop.double())
    first, last = smallest_run(sums.sum(0, keepdim=True), share)[0].tolist()
    if first < 0:
        return None
    runs = smallest_run(bootstrap_counts(count, draws, seed) @ sums, share)
    runs = runs[runs[:, 0] >= 0].double()
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    ends = runs.quantile(edges, dim=0).round().long().tolist()
    by_layer = drop.double().mean(0) / base.double().mean()
    return Band(
        first=first,
        last=last,
        share=float(by_layer[first : last + 1].sum() / by_layer.sum()),
        wanted=share,
        first_interval=(ends[0][0], ends[1][0]),
        last_interval=(ends[0][1], ends[1][1]),
        layers=drop.shape[1],
        by_layer=tuple(by_layer.tolist()),
    )
