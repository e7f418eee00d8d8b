"""Which kernel would softmax attention on the operators' features have, and is it as good as Theorem 1's?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from icl_kernel_lens.theory.bayes import bayesian_prediction, same_first_answer
from icl_kernel_lens.theory.checks import at_least, require, rising
from icl_kernel_lens.theory.experiment import Experiment, change, collect, scored
from icl_kernel_lens.theory.hmm import distinct
from icl_kernel_lens.theory.kernel import Inputs, OperatorKernel, fit_kernel, operator_features
from icl_kernel_lens.theory.mixture import Prompts, TaskMixture
from icl_kernel_lens.theory.regression import prediction_from_all

TEMPERATURES = tuple(float(10 ** (i / 3)) for i in range(-9, 7))
SERIES = (
    "v·v' with Σ⁻¹ (Theorem 1)",
    "v·v' without Σ⁻¹",
    "exp(v·v' / τ)",
    "exp(v·v' / τ), unit length",
    "exp(v·v' / τ) with Σ⁻¹",
    "all alike",
)
EXPONENTIAL = tuple(j for j, name in enumerate(SERIES) if name.startswith("exp"))


def softmax_kernels(
    world: TaskMixture,
    counts: Sequence[int] = (8, 64),
    *,
    temperatures: Sequence[float] = TEMPERATURES,
    trials: int = 200,
    seed: int = 0,
) -> Experiment:
    """Which kernel would softmax attention on the operators' features have, and is it as good as Theorem 1's?

        K(x, x') = exp(⟨v, v'⟩ / τ),    v(x) = vec(T_x) / P(x | p_pre)

    as attention weighs keys, on the trials of the dot products ⟨v, v'⟩ and vᵀ Σ⁺ v'. The features are those of the
    theorem, or brought to unit length, or whitened by Σ. τ is in units of E‖v‖² under pre-training. The best τ is
    chosen on the even trials and its error told of the odd ones (`facts`).
    Does not show: what a trained head could do by learning other features.
    """
    at_least(min(counts, default=0), 1, "counts")
    require(
        rising(counts) and min(temperatures, default=0) > 0,
        f"counts must rise and temperatures be above 0; got {tuple(counts)} and {tuple(temperatures)}.",
        code="number-range",
    )
    at_least(trials, 4, "trials")
    prompts = world.sample_prompts(trials, max(counts), seed=seed)
    exact = bayesian_prediction(world, prompts, counts).prediction
    products = _products(world, fit_kernel(world), prompts)

    def cell(name: str, tau: float) -> dict[str, Tensor]:
        found = {}
        for n, truth in zip(counts, exact.unbind(1), strict=True):
            product = products[name][:, :n]
            weights = (product / tau).softmax(-1) if name.startswith("exp") else product
            guess = prediction_from_all(weights, prompts.answers[:, :n], world.symbols)
            found[f"l1_{n}"] = (guess - truth).abs().sum(-1)
            found[f"agree_{n}"] = same_first_answer(guess, truth)
        return found

    without = {name: cell(name, 1.0) for j, name in enumerate(SERIES) if j not in EXPONENTIAL}
    measures = {
        f"{name}_{n}": f"{title}, n = {n}"
        for name, title in (("l1", "L1 distance to Bayes"), ("agree", "same first answer as Bayes"))
        for n in counts
    }
    cells = [[without.get(name) or cell(name, tau) for name in SERIES] for tau in temperatures]
    values = collect(measures, cells)
    held_out = [_held_out(n, values[f"l1_{n}"], temperatures) for n in counts]
    return Experiment(
        name="softmax_kernels",
        question="Which kernel would softmax attention have?",
        axis="temperature τ, in units of E‖v‖²",
        settings=tuple(float(tau) for tau in temperatures),
        series=SERIES,
        measures=measures,
        values=values,
        findings=tuple(finding for _, findings in held_out for finding in findings),
        facts={name: number for facts, _ in held_out for name, number in facts.items()},
        world=world.describe(),
        options={"counts": tuple(counts), "trials": trials, "seed": seed},
    )


def _products(
    world: TaskMixture, kernel: OperatorKernel, prompts: Prompts
) -> Mapping[str, Float64[Tensor, "prompt demo"]]:
    """The dot products of each series' features, of test input and demonstrations."""
    each, where = distinct(torch.cat([prompts.test_inputs[:, None], prompts.inputs], 1))
    rows = operator_features(Inputs.of(world, each), "pre")
    plain = rows[:, (rows.nan_to_num(0.0) != 0).any(0)]
    size = float(kernel.singular_values.square().sum())

    def products(phi: Tensor, scale: float) -> Tensor:
        return torch.stack([phi[at[1:]] @ phi[at[0]] for at in where]) / scale

    dot = products(plain, size)
    found = (
        kernel.weights(prompts.test_inputs, prompts.inputs),
        dot,
        dot,
        products(plain / plain.norm(dim=-1, keepdim=True), 1.0),
        products(kernel.features(each), float(kernel.rank)),
        torch.ones_like(dot),
    )
    return dict(zip(SERIES, found, strict=True))


def _held_out(
    n: int, l1: Float64[Tensor, "trial setting series"], temperatures: Sequence[float]
) -> tuple[dict[str, float], list[str]]:
    """Facts and findings: each series at the τ that is best on the even trials, by its error on the odd ones."""
    facts, said = {}, []
    tuning = l1[::2].nanmean(0)
    best = tuning.argmin(0).tolist()
    for j, name in enumerate(SERIES):
        error = float(l1[1::2, best[j], j].nanmean())
        facts[f"l1, n = {n}, {name}"] = error
        text = f"{name} {error:.3f}"
        if j in EXPONENTIAL:
            facts[f"best τ, n = {n}, {name}"] = float(temperatures[best[j]])
            text += f" (τ = {temperatures[best[j]]:.2g})"
        made = float(scored(l1)[0, j])
        said.append(text + (f" ({made:.0%} of prompts predicted)" if made < 1 else ""))
    findings = [f"n = {n}, L1 distance to Bayes on the odd trials: {'; '.join(said)}."]
    j = min(EXPONENTIAL, key=lambda j: float(tuning[best[j], j]))
    for other in (0, len(SERIES) - 1):
        _, gap, low, high = change(l1[1::2, best[j], j], l1[1::2, 0, other])
        verdict = "better" if high < 0 else "worse" if low > 0 else "not told apart"
        findings.append(
            f"n = {n}, the exponential kernel best on the even trials, {SERIES[j]}, against {SERIES[other]}, "
            f"odd trials that both predict: {gap:+.3f} [{low:+.3f}, {high:+.3f}], {verdict}."
        )
    return facts, findings
