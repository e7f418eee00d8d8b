"""What tells a kernel head from its impostors, in numbers: pure, on tensors.

Intervals are between demonstration sets throughout. These numbers are continuous: one that is the same in every prompt is what
the computation does, and no outcome that few sets share by chance; its interval is the number itself. (Of rates, where all of few
sets agree, nothing is known: see `numbers.intervals`.)
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from icl_kernel_lens.numbers.groups import numbered
from icl_kernel_lens.numbers.influence import ROUNDING as ALIKE
from icl_kernel_lens.numbers.influence import centred_over_set, pair_products
from icl_kernel_lens.numbers.intervals import cluster_t, ratio_interval

Ends = tuple[Tensor, Tensor, Tensor]
"""A number with the ends of its interval, cell by cell."""
LITTLE = 1e-3
"""Of the mean size of vectors, what is too little for their direction to say anything."""
ROUNDING = 1e-6
"""Of what a prompt has; a change below this share of it is rounding."""
SAME = 1e-9
"""Numbers of order 1 that differ by less are the same."""
ROUNDS = 30
"""Of alternating least squares, in which a fit of one ranking to few weights no longer moves."""
LEAST = 1e-12
"""A weight below this is taken for it where its logarithm is; so are squares that are divided by."""
FLAT = 1e-6
"""Squares of log ratios below this, on average, are rounding: weights that do not differ between demonstrations."""


def interval(
    values: Float[Tensor, "prompt *cell"], demo_set: Int[Tensor, " prompt"], level: float = 0.95
) -> Ends:
    """The mean over prompts with its interval."""
    mean = values.double().nanmean(0)
    off = (values.double() - mean).abs() <= SAME * mean.abs().clamp(min=1)
    return _sure(off | values.isnan(), (mean, *cluster_t(values, demo_set, level=level)))


def share_interval(
    part: Float[Tensor, "prompt *cell"],
    whole: Float[Tensor, "prompt *#cell"],
    demo_set: Int[Tensor, " prompt"],
    level: float = 0.95,
) -> Ends:
    """Σ part / Σ whole with its interval; the share itself where it is that of every prompt, up to rounding of the whole."""
    ends = ratio_interval(part, whole, demo_set, level=level)
    return _sure((part - ends[0] * whole).abs() <= ROUNDING * whole.abs(), ends)


def moved_apart(
    before: Float[Tensor, "prompt *cell demo"], after: Float[Tensor, "prompt *cell demo"]
) -> Float[Tensor, "prompt *cell"]:
    """½ Σ_i |a_i / Σ|a| − b_i / Σ|b||: how far the shares of demonstrations differ, whatever their size in one prompt; 0 to 1.

    Over demonstrations that are known in both; NaN with fewer than two, and where there is hardly anything to compare: of both
    together less than a thousandth of what there is on average. 1 where one of them is 0, or all signs are turned.
    """
    known = ~(before.isnan() | after.isnan())
    a, b = (x.double().masked_fill(~known, 0) for x in (before, after))
    sizes = [x.abs().sum(-1) for x in (a, b)]
    off = (a / sizes[0][..., None] - b / sizes[1][..., None]).abs().sum(-1) / 2
    both = sizes[0] + sizes[1]
    nothing = (known.sum(-1) < 2) | (both <= LITTLE * both.mean(0))
    return off.nan_to_num(1.0).masked_fill(nothing, torch.nan)


def share_removed(
    left: Float[Tensor, "prompt *cell label"],
    part: Float[Tensor, "prompt label"],
    demo_set: Int[Tensor, " prompt"],
    level: float = 0.95,
) -> Ends:
    """1 − Σ ⟨t', t⟩ / Σ ⟨t, t⟩: what of the label part t is gone in t', along t; 1 all, below 0 if it grew."""
    t = part.double().reshape(len(part), *[1] * (left.dim() - 2), part.shape[-1])
    product, whole = (left.double() * t).sum(-1), (t * t).sum(-1)
    share, low, high = share_interval(product, whole, demo_set, level)
    return 1 - share, 1 - high, 1 - low


def drop_share(
    scores: Float[Tensor, "prompt *cell label"],
    uncut: Float[Tensor, "prompt label"],
    demo_set: Int[Tensor, " prompt"],
    level: float = 0.95,
) -> Ends:
    """What of the answer's lead over the mean of the other labels is gone: Σ (d − d') / Σ d."""
    answer = uncut.argmax(-1)
    contrast = torch.nn.functional.one_hot(answer, uncut.shape[-1]).double()
    contrast -= (1 - contrast) / (uncut.shape[-1] - 1)
    whole = (uncut.double() * contrast).sum(-1)
    shaped = contrast.reshape(len(contrast), *[1] * (scores.dim() - 2), contrast.shape[-1])
    now = (scores.double() * shaped).sum(-1)
    before = whole.reshape(len(whole), *[1] * (now.dim() - 1))
    gone = before - now
    ends = ratio_interval(gone, before, demo_set, level=level)
    size = uncut.double().abs().amax(-1).reshape(before.shape)
    return _sure((gone - ends[0] * before).abs() <= ROUNDING * size, ends)


def _sure(alike: Bool[Tensor, "prompt *cell"], ends: Ends) -> Ends:
    """The number itself for an interval where every prompt has it."""
    value, *both = ends
    low, high = (torch.where(alike.all(0), value, x) for x in both)
    return value, low, high


def swap_slope(
    before: Float[Tensor, "prompt *cell demo"],
    after: Float[Tensor, "prompt *cell demo"],
    pairs: Int[Tensor, "prompt pair 2"],
    demo_set: Int[Tensor, " prompt"],
    *,
    behind: int = 0,
    level: float = 0.95,
) -> Ends:
    """Slope of the difference between the two of a pair after their inputs were swapped on that before: Σ d d' / Σ d².

    +1 where values stay with the place, −1 where they go with the input. What the place does alike in all prompts is taken off
    both: the mean at each place over prompts, before and after. `behind` compares the demonstrations so far behind the pairs
    instead, where there are such and neither is one of a pair. NaN where values do not differ.
    """
    usual = (before.double().nanmean(0) + after.double().nanmean(0)) / 2
    differ = []
    at = (pairs + behind).clamp(0, before.shape[-1] - 1)
    for values in (before, after):
        left = values.double() - usual
        index = at.flatten(1).reshape(len(at), *[1] * (left.dim() - 2), -1).expand(*left.shape[:-1], -1)
        one, two = left.gather(-1, index).unflatten(-1, (-1, 2)).unbind(-1)
        differ.append(one - two)
    there = (pairs >= 0).all(-1) & (pairs + behind < before.shape[-1]).all(-1)
    if behind:
        taken = ((pairs + behind)[:, :, :, None, None] == pairs[:, None, None]).any((2, 3, 4))
        there &= ~taken
    known = there.reshape(len(there), *[1] * (before.dim() - 2), -1).expand_as(differ[0])
    d, again = (torch.where(known, x, 0.0).nan_to_num() for x in differ)
    size = d.square().sum(-1)
    ends = share_interval((d * again).sum(-1), size, demo_set, level)
    flat = size.sum(0) <= FLAT * known.double().sum((0, -1)).clamp(min=1)
    slope, low, high = (x.masked_fill(flat, torch.nan) for x in ends)
    return slope, low, high


def total_variation(
    one: Float[Tensor, "prompt *cell demo"], two: Float[Tensor, "#prompt *cell demo"]
) -> Float[Tensor, "prompt *cell"]:
    """½ Σ_i |w_i − w'_i|."""
    return (one.double() - two.double()).abs().sum(-1) / 2


def within_labels(
    values: Float[Tensor, "prompt *cell demo"], demo_labels: Int[Tensor, "prompt demo"]
) -> Float[Tensor, "prompt *cell demo"]:
    """Values less their mean over the demonstrations of the same label in a prompt; NaN stays, and is left out of means.

    0 throughout where less than `SAME` of the squares is left: weights that are a function of test input and label alone.
    """
    alike = (demo_labels[:, :, None] == demo_labels[:, None]).double()
    known = (~values.isnan()).double()
    sums, counts = (torch.einsum("p...d,pde->p...e", x, alike) for x in (values.double().nan_to_num(), known))
    left = values.double() - sums / counts.clamp(min=1)
    size, whole = (x.square().nansum((0, -1)) for x in (left, values.double()))
    return torch.where((size <= SAME * whole)[..., None] & ~left.isnan(), 0.0, left)


def share_within(
    weights: Float[Tensor, "prompt *cell demo"],
    target: Float[Tensor, "prompt demo"],
    demo_labels: Int[Tensor, "prompt demo"],
    demo_set: Int[Tensor, " prompt"],
    level: float = 0.95,
) -> Ends:
    """How much of the fit of pair parts lies among demonstrations of the same label, against how much of the target itself.

        (Σ w_in I_in / Σ w I) / (Σ I_in² / Σ I²)        x_in: x less its mean over the demonstrations of the same label

    1 for weights that follow the target throughout, 0 for weights that are a function of test input and label alone: an echo, of
    whatever answer, and also where the target is one itself. NaN for other weights where the target has nothing among them.
    """
    inside, mine = (within_labels(x, demo_labels) for x in (target, weights))
    own = inside.square().nansum() / target.double().square().nansum()
    part = pair_products(mine, inside) / own
    whole = pair_products(weights, target)
    share, low, high = ratio_interval(part, whole, demo_set, level=level)
    ends = _sure((part - share * whole).abs() <= SAME * whole.abs().nanmean(0), (share, low, high))
    even = (mine.square().nansum((0, -1)) == 0) & ~whole.isnan().all(0)
    value, low, high = (torch.where(even, 0.0, x.masked_fill(own == 0, torch.nan)) for x in ends)
    return value, low, high


def one_ranking(
    weights: Float[Tensor, "prompt *cell demo"], demo_set: Int[Tensor, " prompt"]
) -> Float[Tensor, "prompt *cell demo"]:
    """Weights of a head that ranks the demonstrations of a set the same for all test inputs, each more or less sharply.

        softmax_i(β(x) s_i), β(x) ≥ 0        β and s by alternating least squares on the log weights, each less its mean over i

    A kernel that two test inputs rank in opposite ways has no such weights, with one feature either. NaN in sets of one prompt.
    """
    found, member = torch.full_like(weights, torch.nan), numbered(demo_set)
    for group in range(int(member.max()) + 1):
        at = (member == group).nonzero()[:, 0]
        if len(at) < 2:
            continue
        logs = weights[at].clamp(min=LEAST).log()
        logs = (logs - logs.mean(-1, keepdim=True)).movedim(0, -2)
        sharpness, ranking = torch.ones_like(logs[..., :1]), logs.mean(-2, keepdim=True)
        for _ in range(ROUNDS):
            size = sharpness.square().sum(-2, keepdim=True).clamp(min=LEAST)
            ranking = (sharpness * logs).sum(-2, keepdim=True) / size
            size = ranking.square().sum(-1, keepdim=True).clamp(min=LEAST)
            sharpness = ((ranking * logs).sum(-1, keepdim=True) / size).clamp(min=0)
        found[at] = (sharpness * ranking).softmax(-1).movedim(-2, 0)
    return found


def beyond_one_ranking(
    weights: Float[Tensor, "prompt *cell demo"], demo_set: Int[Tensor, " prompt"]
) -> Float[Tensor, "prompt *cell demo"]:
    """Weights less those of `one_ranking`, less their mean over the set; NaN in cells where that is rounding, and in sets of one."""
    left, _ = centred_over_set(weights - one_ranking(weights, demo_set), demo_set)
    size = weights.double().square().nanmean((0, -1))
    still = ~(left.square().nanmean((0, -1)) > ALIKE**2 * size)
    return left.masked_fill(still[..., None], torch.nan)


def next_of_set(demo_set: Int[Tensor, " prompt"]) -> Int[Tensor, " prompt"]:
    """The next prompt of each prompt's set, the first one after the last."""
    found = torch.arange(len(demo_set))
    for group in range(int(numbered(demo_set).max()) + 1):
        members = (numbered(demo_set) == group).nonzero()[:, 0]
        found[members] = members.roll(-1)
    return found
