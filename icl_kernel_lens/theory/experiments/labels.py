"""What predictions make of demonstrations' labels: of another alphabet, and wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from icl_kernel_lens.theory.bayes import (
    answered,
    bayesian_prediction,
    log_carried,
    same_first_answer,
    true_prediction,
)
from icl_kernel_lens.theory.checks import require, rising
from icl_kernel_lens.theory.experiment import BAYES, KERNEL, Experiment, collect, scored
from icl_kernel_lens.theory.hmm import log_matmul, make_generator, of_each
from icl_kernel_lens.theory.kernel import fit_kernel
from icl_kernel_lens.theory.mixture import Prompts, TaskMixture
from icl_kernel_lens.theory.regression import prediction_from_all

FORMATS = ("as pre-trained", "exchanged", "new symbols")
FORMAT_MEASURES = {
    "follows": "follows the renamed labels",
    "keeps": "keeps the old labels",
    "mass": "probability on labels shown",
}
NOISE_MEASURES = {
    "l1": "L1 distance to P(Y | x, θ*)",
    "agree": "same first answer",
    "posterior": "posterior of the true task",
}


def noisy_prediction(
    world: TaskMixture, prompts: Prompts, share: float, symbols: int | None = None
) -> tuple[Float64[Tensor, "prompt symbol"], Float64[Tensor, "prompt task"]]:
    """Bayes that allows for a `share` of labels drawn evenly from `symbols` (None: the world's own).

        M[θ, θ'] = (1 − share) P(x, y, next θ' | θ) + (share / symbols) P(x, next θ' | θ)

    in place of each demonstration's, all of them used. Returns P(Y | prompt), Y without noise, and the posterior
    over tasks. Labels from `world.symbols` on are outside the world: noise to it.
    """
    size = world.symbols if symbols is None else symbols
    require(0 <= share <= 1, f"the share of noise must be a probability; got {share}.", code="theory-numbers")
    log_clean, log_noise = torch.tensor([1 - share, share / size], dtype=torch.float64).log()

    def log_steps(world: TaskMixture, inputs: Tensor, answers: Tensor) -> Tensor:
        outside = answers >= world.symbols
        told = torch.cat([inputs, answers.clamp(max=world.symbols - 1)[:, None]], 1)
        clean = of_each(lambda each: log_matmul(world.log_start_rows(each), world.restart), told)
        after = world.hmm.transition @ world.restart
        wrong = of_each(lambda each: log_matmul(world.log_start_rows(each), after), inputs)
        clean = clean.masked_fill(outside[:, None, None], -math.inf)
        return torch.logaddexp(clean + log_clean, wrong + log_noise)

    weights = log_carried(world, prompts, log_steps)[:, -1:]
    prediction, posterior, _ = answered(world, weights, prompts.test_inputs)
    return prediction[:, 0], posterior[:, 0]


def output_format(
    world: TaskMixture, n: int = 32, *, trials: int = 200, seed: int = 0, doubt: float = 0.01
) -> Experiment:
    """Labels written in another alphabet: who follows the demonstrations?

    Every label y becomes π(y): itself; another symbol of the world (a random permutation without fixed points); or a
    symbol that the world never emits. `follows` and `keeps` are agreement with the first answer of P(Y | x_test, θ*),
    renamed by π or not; `mass` is the probability on labels that demonstrations show. Exact Bayes has no prediction
    where the prompt has become impossible; Bayes *in doubt* thinks each label random with probability `doubt`.
    A regression ŷ = Σ y_i K_i / Σ K_i commutes with any renaming: it follows as often as it was right before.
    """
    prompts = world.sample_prompts(trials, n, seed=seed)
    weights = fit_kernel(world).weights(prompts.test_inputs, prompts.inputs)
    truth = true_prediction(world, prompts)
    own = torch.arange(world.symbols)
    renamings = own, derangement(world.symbols, make_generator(seed + 1)), own + world.symbols
    series = (KERNEL, BAYES, f"{BAYES}, in doubt")
    cells = [_format_cells(world, prompts, weights, truth, renamed, doubt) for renamed in renamings]
    values = collect(FORMAT_MEASURES, cells)
    made = scored(values["follows"])
    follows, keeps = (values[name].nanmean(0) for name in ("follows", "keeps"))
    findings = [
        f"{name}, labels {label}: "
        + (
            f"follows in {float(follows[i, j]):.1%}, keeps the old in {float(keeps[i, j]):.1%} "
            f"({float(made[i, j]):.0%} of prompts have a prediction)."
            if made[i, j] > 0
            else "no prediction, every prompt is impossible."
        )
        for (j, name), (i, label) in product(enumerate(series), enumerate(FORMATS))
    ]
    return Experiment(
        name="output_format",
        question="Which labels does the prediction use when the demonstrations' are renamed?",
        axis="labels",
        settings=FORMATS,
        series=series,
        measures=FORMAT_MEASURES,
        values=values,
        findings=tuple(findings),
        world=world.describe(),
        options={"n": n, "trials": trials, "seed": seed, "doubt": doubt},
    )


def _format_cells(
    world: TaskMixture,
    prompts: Prompts,
    weights: Float64[Tensor, "prompt demo"],
    truth: Float64[Tensor, "prompt symbol"],
    renamed: Int64[Tensor, " symbol"],
    doubt: float,
) -> list[dict[str, Float64[Tensor, " prompt"]]]:
    """The measures of every way to predict from demonstrations with renamed labels, over twice as many symbols."""
    prompts = replace(prompts, answers=renamed[prompts.answers])
    symbols, zeros = 2 * world.symbols, torch.zeros_like(truth)
    on_labels = torch.zeros(len(prompts), symbols, dtype=torch.float64).scatter_(1, prompts.answers, 1.0)
    rest = torch.ones(symbols, dtype=torch.bool).index_fill(0, renamed, False)
    order = torch.cat([renamed, rest.nonzero().flatten()])
    exact = torch.full_like(truth, math.nan)
    if int(prompts.answers.max()) < world.symbols:
        exact = bayesian_prediction(world, prompts, [prompts.demos]).prediction[:, 0]
    doubting, _ = noisy_prediction(world, prompts, doubt, symbols)
    guesses = (
        prediction_from_all(weights, prompts.answers, symbols),
        torch.cat([exact, zeros], 1),
        (1 - doubt) * torch.cat([doubting, zeros], 1) + doubt / symbols,
    )
    kept = torch.cat([truth, zeros], 1)
    return [
        {
            # The renamed in the order of the old, so that ties are broken alike.
            "follows": same_first_answer(guess[:, order], kept),
            "keeps": same_first_answer(guess, kept),
            "mass": (guess * on_labels).sum(-1),
        }
        for guess in guesses
    ]


def derangement(count: int, generator: torch.Generator) -> Int64[Tensor, " symbol"]:
    """A cycle through all symbols in random order: nothing stays where it is (unless there is one symbol)."""
    order = torch.randperm(count, generator=generator)
    found = torch.empty_like(order)
    found[order] = order.roll(1)
    return found


def label_noise(
    world: TaskMixture,
    shares: Sequence[float] = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0),
    n: int = 32,
    *,
    trials: int = 200,
    seed: int = 0,
) -> Experiment:
    """Wrong labels in a share of the demonstrations: error of kernel regression and of Bayes.

    A wrong label is any other symbol, evenly. Bayes does not know of wrong labels; *told* Bayes knows their share.
    Kernel regression cannot know: in expectation it moves by the share towards the labels' mean, whose first answer is
    the same until noise outweighs it.
    """
    require(
        len(shares) > 0 and all(0 <= share <= 1 for share in shares) and rising(shares),
        f"shares must rise within 0 and 1; got {tuple(shares)}.",
        code="number-range",
    )
    prompts = world.sample_prompts(trials, n, seed=seed)
    generator = make_generator(seed + 1)
    weights = fit_kernel(world).weights(prompts.test_inputs, prompts.inputs)
    truth = true_prediction(world, prompts)
    # One draw for all shares, so that they are nested: what is wrong at 0.1 is wrong at 0.25 too.
    chance = torch.rand(prompts.answers.shape, generator=generator, dtype=torch.float64)
    shift = torch.randint(1, max(2, world.symbols), prompts.answers.shape, generator=generator)
    wrong = (prompts.answers + shift) % world.symbols
    series = (KERNEL, BAYES, f"{BAYES}, told the share")
    no_posterior = torch.full((trials, world.tasks), math.nan, dtype=torch.float64)
    cells = []
    for share in shares:
        changed = replace(prompts, answers=torch.where(chance < share, wrong, prompts.answers))
        bayes = bayesian_prediction(world, changed, [n])
        # Wrong labels differ from the true one: evenly random ones, of which 1/m are right, in proportion.
        even = min(1.0, share * world.symbols / max(1, world.symbols - 1))
        guesses = (
            (prediction_from_all(weights, changed.answers, world.symbols), no_posterior),
            (bayes.prediction[:, 0], bayes.posterior_with_input[:, 0]),
            noisy_prediction(world, changed, even),
        )
        cells.append(
            [
                {
                    "l1": (guess - truth).abs().sum(-1),
                    "agree": same_first_answer(guess, truth),
                    "posterior": posterior.gather(1, prompts.true_tasks[:, None])[:, 0],
                }
                for guess, posterior in guesses
            ]
        )
    values = collect(NOISE_MEASURES, cells)
    made = scored(values["l1"])
    l1, agree = (values[name].nanmean(0) for name in ("l1", "agree"))
    findings = [
        f"{name}, by share of wrong labels: "
        + "; ".join(
            f"{share:.0%}: L1 {float(l1[i, j]):.3f}, agrees {float(agree[i, j]):.1%}, {float(made[i, j]):.0%} predicted"
            for i, share in enumerate(shares)
        )
        + "."
        for j, name in enumerate(series)
    ]
    return Experiment(
        name="label_noise",
        question="How much label noise do kernel regression and Bayes bear?",
        axis="share of wrong labels",
        settings=tuple(float(share) for share in shares),
        series=series,
        measures=NOISE_MEASURES,
        values=values,
        findings=tuple(findings),
        world=world.describe(),
        options={"n": n, "trials": trials, "seed": seed},
    )
