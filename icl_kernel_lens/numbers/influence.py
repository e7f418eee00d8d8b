"""The model's own kernel in numbers: how far each demonstration pulls the answer, and what of that belongs to a pair.

    G_i = (s_{y_i} − s_c)(P) − (s_{y_i} − s_c)(P with y_i → c)        s: scores of the labels

A kernel regression over the labels, s_c = s⁰_c(x) + β Σ_i w_i [y_i = c] with weights that ignore labels, has G_i = 2 β w_i:
never negative, and additive. What of G belongs to the pair of test input x and demonstration i, and not to a place, to the
demonstration alone or to a gain of the test input, is the *pair part*

    I_i(x) = D_i(x) − g(x) Ḡ_i,  less its mean over i          D_i(x) = G_i(x) − Ḡ_i,  Ḡ_i: the mean over the set's x
    g(x)   = Σ_i D_i(x) Ḡ_i / Σ_i Ḡ_i²

Means over a set of k test inputs take 1/k of a pair part with them; nothing makes up for it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.numbers.draws import generator
from icl_kernel_lens.numbers.groups import group_sums, numbered
from icl_kernel_lens.numbers.intervals import ratio_interval

DRAWS = 2000
"""Exchanges of test inputs that a p-value rests on."""
ROUNDING = 1e-5
"""Weights in float32 that vary within sets by less than this share of their size do not vary."""


def label_pull(
    scores: Float[Tensor, "*prompt label"],
    replaced: Float[Tensor, "*prompt demo replacement label"],
    demo_labels: Int[Tensor, "*prompt demo"],
) -> Float[Tensor, "*prompt demo replacement"]:
    """G of every demonstration and replacement label c; NaN for its own label, and where no scores are."""
    own = demo_labels[..., None, None].expand(*replaced.shape[:-1], 1)

    def margins(x: Float[Tensor, "*prompt demo replacement label"]) -> Tensor:
        return x.gather(-1, own)[..., 0] - x.diagonal(dim1=-2, dim2=-1)

    before = scores[..., None, None, :].expand_as(replaced)
    found = margins(before) - margins(replaced)
    same = torch.nn.functional.one_hot(demo_labels, replaced.shape[-1]).bool()
    return found.masked_fill(same, torch.nan)


def label_gain(
    scores: Float[Tensor, "*prompt label"],
    replaced: Float[Tensor, "*prompt demo replacement label"],
    demo_labels: Int[Tensor, "*prompt demo"],
) -> Float[Tensor, "*prompt demo replacement"]:
    """The part of G that the replacement label gains: (s_c − s̄)(P with y_i → c) − (s_c − s̄)(P), s̄ the mean of all third labels.

    G/2 in a kernel regression: what the old label loses the new one gains. 0 where a label that is not the own brings nothing.
    With two labels there is no third one to measure from: G/2 throughout.
    """
    labels = replaced.shape[-1]
    pull = label_pull(scores, replaced, demo_labels)
    if labels == 2:
        return pull / 2
    moved = replaced - scores[..., None, None, :].expand_as(replaced)
    gained = moved.diagonal(dim1=-2, dim2=-1)
    own = demo_labels[..., None, None].expand(*replaced.shape[:-1], 1)
    third = (moved.sum(-1) - gained - moved.gather(-1, own)[..., 0]) / (labels - 2)
    return (gained - third).masked_fill(pull.isnan(), torch.nan)


def centred_over_set(
    values: Float[Tensor, "prompt *cell"], demo_set: Int[Tensor, " prompt"]
) -> tuple[Float[Tensor, "prompt *cell"], Float[Tensor, "prompt *cell"]]:
    """Values less their mean over the prompts of their set, and that mean; NaN in sets of one prompt."""
    member = numbered(demo_set)
    size = member.bincount().double()
    mean = group_sums(values.double(), member) / size.reshape(-1, *[1] * (values.dim() - 1))
    mean = mean[member]
    alone = (size < 2)[member].reshape(-1, *[1] * (values.dim() - 1))
    return (values.double() - mean).masked_fill(alone, torch.nan), mean


def pair_part(
    values: Float[Tensor, "prompt *cell demo"], demo_set: Int[Tensor, " prompt"]
) -> Float[Tensor, "prompt *cell demo"]:
    """I: what of the values belongs to the pair of test input and demonstration; NaN in sets of one prompt.

    A demonstration that is NaN is left out of sums and means over demonstrations.
    """
    moved, mean = centred_over_set(values, demo_set)
    gain = (moved * mean).nansum(-1, keepdim=True) / mean.square().nansum(-1, keepdim=True)
    left = moved - gain.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) * mean
    return left - left.nanmean(-1, keepdim=True)


def varying_part(
    weights: Float[Tensor, "prompt *cell demo"], demo_set: Int[Tensor, " prompt"]
) -> Float[Tensor, "prompt *cell demo"]:
    """The pair part of weights; NaN in cells where it is rounding, which may follow anything."""
    part = pair_part(weights, demo_set)
    size = weights.double().square().nanmean((0, -1))
    still = ~(part.square().nanmean((0, -1)) > ROUNDING**2 * size)
    return part.masked_fill(still[..., None], torch.nan)


def variance_whole(values: Float[Tensor, "prompt demo"]) -> Float[Tensor, " prompt"]:
    """Each prompt's part of Σ (G − Ḡ)², Ḡ the mean over all prompts and demonstrations."""
    return (values.double() - values.double().nanmean()).square().nansum(-1)


def pair_products(
    one: Float[Tensor, "prompt *cell demo"], two: Float[Tensor, "prompt demo"]
) -> Float[Tensor, "prompt *cell"]:
    """Σ_i I_i I′_i of every prompt; NaN where all demonstrations are."""
    two = two.reshape(len(two), *[1] * (one.dim() - 2), two.shape[-1])
    product = one * two
    return product.nansum(-1).masked_fill(product.isnan().all(-1), torch.nan)


def exchanged(
    one: Float[Tensor, "prompt *cell demo"],
    two: Float[Tensor, "prompt demo"],
    demo_set: Int[Tensor, " prompt"],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Float[Tensor, "draw *cell"]:
    """Σ_p Σ_i I_i(p) I′_i(π p), π exchanging the test inputs of each set at random; the first draw exchanges none.

    The same exchanges for all cells, so that their maximum is that of one draw. Sets of one prompt are left out.
    """
    total = torch.zeros(draws, *one.shape[1:-1], dtype=torch.float64)
    source = generator(seed)
    for group in demo_set.unique():
        members = (demo_set == group).nonzero()[:, 0]
        if len(members) < 2:
            continue
        order = torch.rand(draws, len(members), generator=source).argsort(1)
        order[0] = torch.arange(len(members))
        a, b = one[members].double().nan_to_num(), two[members].double().nan_to_num()
        products = torch.einsum("p...i,qi->pq...", a, b)
        for at in range(len(members)):
            total += products[at][order[:, at]]
    return total


def exchanged_demos(
    one: Float[Tensor, "prompt demo"],
    two: Float[Tensor, "prompt demo"],
    demo_set: Int[Tensor, " prompt"],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Float[Tensor, " draw"]:
    """Σ_p Σ_i I_i(p) I′_{π i}(p), π exchanging the demonstrations of each set at random, the same for all its test inputs.

    The first draw exchanges none. Where orders are drawn at random, this is exact for what hangs on the place and the test
    input alone, which exchanging test inputs is not.
    """
    total = torch.zeros(draws, dtype=torch.float64)
    source = generator(seed)
    for group in demo_set.unique():
        members = (demo_set == group).nonzero()[:, 0]
        a, b = one[members].double().nan_to_num(), two[members].double().nan_to_num()
        known = (~one[members].isnan()).any(0).nonzero()[:, 0]
        products = (a.T @ b)[known][:, known]
        order = torch.rand(draws, len(known), generator=source).argsort(1)
        order[0] = torch.arange(len(known))
        total += products[torch.arange(len(known)), order].sum(1)
    return total


def tail(draws: Float[Tensor, "draw *cell"], *, together: bool = False) -> Float[Tensor, "*cell"]:
    """P(a draw ≥ the first), which counts as one of them; `together`: the largest of all cells of a draw ≥ a cell's first."""
    first, rest = draws[0], draws
    slack = 1e-9 * draws.abs().amax(0)
    if together:
        rest = draws.flatten(1).amax(1).reshape(-1, *[1] * (draws.dim() - 1)).expand_as(draws)
    return (rest >= first - slack).double().mean(0)


class Estimate(NamedTuple):
    """A number with its interval between demonstration sets."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 4 if abs(self.value) < 0.02 else 3 if abs(self.value) < 0.1 else 2
        if self.low != self.low:
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def ratio_estimate(
    part: Float[Tensor, " prompt"],
    whole: Float[Tensor, " prompt"],
    demo_set: Int[Tensor, " prompt"],
    *,
    level: float = 0.95,
) -> Estimate:
    """Σ part / Σ whole with its jackknife interval between demonstration sets (`ratio_interval`)."""
    return Estimate(*map(float, ratio_interval(part, whole, demo_set, level=level)))


class Additivity(NamedTuple):
    """How well joint effects of replaced labels are the sums of single ones."""

    r2: Estimate
    """1 − Σ |observed − sum|² / Σ |observed|², about 0 and not about a mean."""
    slope: Estimate
    """Σ observed · sum / Σ |sum|²."""


def additivity(
    observed: Float[Tensor, "pattern prompt label"],
    summed: Float[Tensor, "pattern prompt label"],
    demo_set: Int[Tensor, " prompt"],
) -> Additivity:
    """Of vectors of label scores, centred over labels; patterns and prompts that are NaN are left out, and all NaN give NaN."""
    observed, summed = (x.double() - x.double().mean(-1, keepdim=True) for x in (observed, summed))
    known = ~(observed + summed).isnan().any(-1)
    sums = {
        "left": (observed - summed).square(),
        "observed": observed.square(),
        "product": observed * summed,
        "summed": summed.square(),
    }
    kept = known.any(0)
    if not kept.any():
        nothing = Estimate(*[float("nan")] * 3)
        return Additivity(nothing, nothing)
    by_prompt = {name: x.sum(-1).masked_fill(~known, 0).sum(0)[kept] for name, x in sums.items()}
    if not by_prompt["observed"].any() and by_prompt["left"].any():
        return Additivity(Estimate(*[-torch.inf] * 3), Estimate(0.0, 0.0, 0.0))
    left = ratio_estimate(by_prompt["left"], by_prompt["observed"], demo_set[kept])
    return Additivity(
        Estimate(1 - left.value, 1 - left.high, 1 - left.low),
        ratio_estimate(by_prompt["product"], by_prompt["summed"], demo_set[kept]),
    )


def negative_share(values: Float[Tensor, "prompt demo"], demo_set: Int[Tensor, " prompt"]) -> Estimate:
    """Σ max(−G, 0) / Σ |G|."""
    return ratio_estimate((-values).clamp(min=0).nansum(-1), values.abs().nansum(-1), demo_set)


def negative_again(
    one: Float[Tensor, "prompt demo"], two: Float[Tensor, "prompt demo"], demo_set: Int[Tensor, " prompt"]
) -> Estimate:
    """Σ −G [G′ < 0] / Σ |G|, the mean of both ways round: what is negative where another order says so, too.

    With G = μ + noise, the noise of two orders independent and μ ≥ 0, its expectation is at most 0.
    """
    parts = [(-a * (b < 0)).nansum(-1) for a, b in ((one, two), (two, one))]
    wholes = [a.abs().nansum(-1) for a in (one, two)]
    return ratio_estimate(parts[0] + parts[1], wholes[0] + wholes[1], demo_set)


class Fit(NamedTuple):
    """How far weights follow the model's kernel, per head."""

    correlation: Float[Tensor, "*cell"]
    slope: Float[Tensor, "*cell"]
    by_prompt: Float[Tensor, "prompt *cell"]
    """Linearised: its mean over prompts is the correlation, its spread between sets that of the correlation."""


def fit(x: Float[Tensor, "prompt *cell demo"], y: Float[Tensor, "prompt demo"]) -> Fit:
    """Pooled correlation of what is centred already, r = Σ x y / √(Σ x² Σ y²), and the slope Σ x y / Σ x² of y on x.

    by_prompt = r + P xy_p / √(Σ x² Σ y²) − ½ r P (x²_p / Σ x² + y²_p / Σ y²), P prompts
    """
    xy = pair_products(x, y)
    there = ~xy.isnan()
    squares = x.double().square().nansum(-1), y.double().square().nansum(-1)
    xx = squares[0].masked_fill(~there, torch.nan)
    yy = squares[1].reshape(-1, *[1] * (xy.dim() - 1)).expand_as(xy).masked_fill(~there, torch.nan)
    mean_xx, mean_yy, mean_xy = xx.nanmean(0), yy.nanmean(0), xy.nanmean(0)
    flat = (mean_xx <= 1e-24) | (mean_yy <= 1e-24)
    norm = (mean_xx * mean_yy).sqrt().masked_fill(flat, torch.nan)
    r = mean_xy / norm
    by_prompt = r + xy / norm - 0.5 * r * (xx / mean_xx + yy / mean_yy)
    return Fit(r, (mean_xy / mean_xx).masked_fill(flat, torch.nan), by_prompt)
