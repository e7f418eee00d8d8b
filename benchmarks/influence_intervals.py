"""How often do the intervals and p-values of label influence hold what they say? Simulated, where the truth is known.

    python -m benchmarks.influence_intervals [--trials 1000] [--out FOLDER]

Influence of simulated models: a profile by place, salience of demonstrations, a gain of the test input, a kernel of pairs and
noise in each order, in doses from none to most of it; heavy-tailed, as real influence is. A trial has 32 demonstration sets of
8 test inputs and 8 demonstrations. The truth of each number is its value on 20,000 sets.

    coverage   share of trials whose 95 % interval holds the truth; one that is not known holds nothing, and no width is given
    p ≤ α      share of trials without a pair kernel in which the best of `HEADS` heads is called at α
    power      share of trials in which a head of correlation 0.3 within sets is called at 0.05, alone
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from icl_kernel_lens.numbers.influence import (
    Estimate,
    additivity,
    exchanged,
    exchanged_demos,
    fit,
    negative_again,
    negative_share,
    pair_part,
    pair_products,
    ratio_estimate,
    tail,
    variance_whole,
)
from icl_kernel_lens.numbers.intervals import cluster_t

SETS, EACH, DEMOS, HEADS = 32, 8, 8, 20
TRUTH = 20_000
SATURATES = 12.0
"""Joint effects of this many logits are three quarters of the sum."""
MODELS = {
    "last label, no kernel": {"place": 2.0, "salience": 0.3, "kernel": 0.0, "noise": 0.3},
    "last label, tiny kernel": {"place": 2.0, "salience": 0.3, "kernel": 0.2, "noise": 0.3},
    "even, some kernel": {"place": 0.0, "salience": 0.5, "kernel": 0.5, "noise": 0.3},
    "kernel": {"place": 0.5, "salience": 0.3, "kernel": 2.0, "noise": 0.1},
}
ALPHAS = (0.01, 0.05, 0.1, 0.2)


def simulate(sets: int, model: dict[str, float], source: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """G in two orders of the same demonstrations (prompt, demo), and the set of each prompt."""
    member = torch.arange(sets).repeat_interleave(EACH)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    profile = model["place"] * torch.linspace(-2, 0.5, DEMOS, dtype=torch.float64).exp()
    salience = (model["salience"] * normal(sets, DEMOS)).exp()[member] - 1
    gain = (0.4 * normal(len(member), 1)).exp()
    kernel = model["kernel"] * (0.5 * normal(len(member), DEMOS)).exp()
    orders = []
    for _ in range(2):
        place = torch.rand(sets, DEMOS, generator=source).argsort(1)[member]
        heard = gain * (0.3 + profile[place] + 0.3 * salience) + kernel * (0.3 + 0.5 * profile[place])
        orders.append(heard + model["noise"] * normal(len(member), DEMOS))
    return orders[0], orders[1], member


def numbers(one: Tensor, two: Tensor, member: Tensor, source: torch.Generator) -> dict[str, Estimate]:
    """The numbers of the summary that rest on ratios or means between sets, of one sample."""
    a, b = pair_part(one, member), pair_part(two, member)
    whole = (variance_whole(one) + variance_whole(two)) / 2
    within = (pair_products(a, a) + pair_products(b, b)) / 2
    low, high = cluster_t(one.sum(1), member)
    # Joint effects of two patterns in every set: sums that saturate.
    chosen = torch.rand(2, int(member.max()) + 1, DEMOS, generator=source)[:, member] < 0.5
    summed = (one * chosen).sum(-1)
    observed = SATURATES * torch.tanh(summed / SATURATES)
    vectors = [torch.stack([x, -x], -1) for x in (observed, summed)]
    added = additivity(vectors[0], vectors[1], member)
    share = (one[:, -1], (one * one.mean(0).sign()).sum(1))
    return {
        "label part": Estimate(float(one.sum(1).mean()), float(low), float(high)),
        "kernel part within an order": ratio_estimate(within, whole, member),
        "kernel part across orders": ratio_estimate(pair_products(a, b), whole, member),
        "negative share": negative_share(one, member),
        "negative in both orders": negative_again(one, two, member),
        "additivity R²": added.r2,
        "additivity slope": added.slope,
        "influence at the last place": ratio_estimate(*share, member),
    }


def coverage(trials: int) -> pd.DataFrame:
    """How often each interval holds the truth, by model."""
    rows = []
    for name, model in MODELS.items():
        source = torch.Generator().manual_seed(0)
        truth = numbers(*simulate(TRUTH, model, source), source)
        held = dict.fromkeys(truth, 0)
        width = dict.fromkeys(truth, 0.0)
        for _ in range(trials):
            for key, found in numbers(*simulate(SETS, model, source), source).items():
                held[key] += found.low <= truth[key].value <= found.high
                width[key] += (found.high - found.low) / trials
        rows += [
            {
                "model": name,
                "number": key,
                "truth": truth[key].value,
                "coverage": held[key] / trials,
                "width": width[key],
            }
            for key in truth
        ]
    return pd.DataFrame(rows)


def rejected(trials: int, p_value: Callable[[torch.Generator, int], float]) -> dict[str, float]:
    source = torch.Generator().manual_seed(1)
    p = [p_value(source, trial) for trial in range(trials)]
    return {f"p ≤ {alpha}": sum(x <= alpha for x in p) / trials for alpha in ALPHAS}


def best_of_heads(source: torch.Generator, trial: int) -> float:
    """The family-wise p of the best of heads that follow all but the pair."""
    one, _, member = simulate(SETS, MODELS["last label, no kernel"], source)
    weights = torch.stack(
        [simulate(SETS, MODELS["last label, no kernel"], source)[0] for _ in range(HEADS)], 1
    )
    mine, theirs = pair_part(weights, member), pair_part(one, member)
    null = exchanged(mine, theirs, member, draws=500, seed=trial)
    return float(tail(null / mine.square().sum((0, -1)).sqrt(), together=True).min())


def kernel_p(one: Tensor, two: Tensor, member: Tensor, trial: int) -> float:
    """As `LabelInfluence.kernel_part` has it: the larger p of test inputs and of demonstrations exchanged."""
    a, b = pair_part(one, member), pair_part(two, member)
    return max(float(tail(way(a, b, member, draws=500, seed=trial))) for way in (exchanged, exchanged_demos))


def of_the_kernel_part(source: torch.Generator, trial: int) -> float:
    return kernel_p(*simulate(SETS, MODELS["last label, no kernel"], source), trial)


def of_places_that_inputs_lean_to(source: torch.Generator, trial: int) -> float:
    """Some test inputs lean on late places, others on early ones; nothing hangs on the demonstration."""
    member = torch.arange(SETS).repeat_interleave(EACH)
    lean = torch.randn(len(member), 1, generator=source, dtype=torch.float64)
    slope = torch.linspace(-1, 1, DEMOS, dtype=torch.float64)
    orders = []
    for _ in range(2):
        place = torch.rand(SETS, DEMOS, generator=source).argsort(1)[member]
        noise = torch.randn(len(member), DEMOS, generator=source, dtype=torch.float64)
        orders.append(1 + lean * slope[place] + 0.3 * noise)
    return kernel_p(orders[0], orders[1], member, trial)


def of_a_small_kernel(source: torch.Generator, trial: int) -> float:
    return kernel_p(*simulate(SETS, MODELS["last label, tiny kernel"], source), trial)


def of_one_head(source: torch.Generator, trial: int) -> float:
    """A head whose pair part has correlation 0.3 with that of the influence."""
    one, _, member = simulate(SETS, MODELS["even, some kernel"], source)
    theirs = pair_part(one, member)
    noise = pair_part(torch.randn(one.shape, generator=source, dtype=torch.float64), member)
    scale = theirs.std() / noise.std()
    mine = pair_part(0.3 * theirs + (1 - 0.09) ** 0.5 * scale * noise, member)
    assert abs(float(fit(mine, theirs).correlation) - 0.3) < 0.2
    return float(tail(exchanged(mine, theirs, member, draws=500, seed=trial)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    held = coverage(options.trials)
    tests = pd.DataFrame(
        {
            "best of 20 heads, no kernel": rejected(options.trials, best_of_heads),
            "kernel part across orders, no kernel": rejected(options.trials, of_the_kernel_part),
            "the same, inputs that lean to places": rejected(options.trials, of_places_that_inputs_lean_to),
            "kernel part across orders, tiny kernel": rejected(options.trials, of_a_small_kernel),
            "one head, correlation 0.3": rejected(options.trials, of_one_head),
        }
    ).T.rename_axis("test")
    for name, table in {"influence_intervals": held, "influence_tests": tests.reset_index()}.items():
        print(table.to_string(index=False, float_format=lambda x: f"{x:.4f}"), end="\n\n")
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            table.to_csv(options.out / f"{name}.csv", index=False, float_format="%.4f")


if __name__ == "__main__":
    main()
