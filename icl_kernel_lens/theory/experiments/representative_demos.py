"""Are demonstrations better for looking like pre-training? Moment distance against error."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from icl_kernel_lens.numbers.correlation import spearman
from icl_kernel_lens.theory.bayes import bayesian_prediction, task_prediction, true_prediction
from icl_kernel_lens.theory.checks import at_least
from icl_kernel_lens.theory.experiment import BAYES, KERNEL, VOTE, Experiment, change, collect
from icl_kernel_lens.theory.hmm import draw, make_generator
from icl_kernel_lens.theory.kernel import fit_kernel, operator_features
from icl_kernel_lens.theory.mixture import Prompts, TaskMixture
from icl_kernel_lens.theory.operators import Inputs, enumerate_inputs
from icl_kernel_lens.theory.regression import prediction_from_all

SOURCES = ("task", "half pre-training", "pre-training", "half flat", "flat")
SERIES = (KERNEL, VOTE, BAYES)
MEASURES = {
    "l1": "L1 distance to P(Y | x, θ*)",
    "moment": "distance of the moment (same for all)",
    "rank_correlation": "rank correlation",
}


def representative(
    world: TaskMixture, n: int = 32, *, trials: int = 60, sets: int = 12, seed: int = 0
) -> Experiment:
    """Does it help when demonstrations look like pre-training? Moment distance against error.

    A trial is a task and a test input; `sets` prompts of n demonstrations are drawn for it, their inputs from
    P(x | θ*) ("task"), from P(x | p_pre), or evenly from all inputs ("flat"), or half so; answers are always from
    P(Y | x, θ*).

        moment = ‖(1/n) Σ v(x_i) v(x_i)ᵀ − Σ_pre‖_F / ‖Σ_pre‖_F

    and `rank_correlation`, within a trial, is Spearman's of moment with error over its sets: above 0, nearer sets do
    better. Sources that draw inputs impossible under θ* leave these out: they have no answer.
    """
    at_least(sets, 3, "sets")
    at_least(n, 1, "n")
    inputs = enumerate_inputs(world)
    kernel = fit_kernel(world, inputs=inputs)
    generator = make_generator(seed)
    asked = world.sample_prompts(trials, 0, seed=generator)
    assert asked.tasks is not None
    rows = asked.tasks.repeat_interleave(sets)
    truth = true_prediction(world, asked).repeat_interleave(sets, 0)
    known = task_prediction(world, inputs.tokens)
    seen = operator_features(inputs) @ kernel.directions
    whole = torch.diag(kernel.singular_values.square())
    cells, made = [], {}
    for source in SOURCES:
        demos = draw_inputs(inputs, asked.tasks, source, sets * n, generator).reshape(trials * sets, n)
        answers = draw(known[rows.repeat_interleave(n), demos.flatten()], generator).reshape(-1, n)
        tests = asked.test_inputs.repeat_interleave(sets, 0)
        prompts = Prompts(inputs.tokens[demos], answers, tests, tasks=rows)
        weights = kernel.weights(prompts.test_inputs, prompts.inputs)
        moment = moment_distance(seen, demos, whole).unflatten(0, (trials, sets))
        guesses = (
            prediction_from_all(weights, answers, world.symbols),
            prediction_from_all(torch.ones_like(weights), answers, world.symbols),
            bayesian_prediction(world, prompts, [n]).prediction[:, 0],
        )
        made[source] = float((~guesses[0].isnan().any(-1)).double().mean())
        errors = [(guess - truth).abs().sum(-1).unflatten(0, (trials, sets)) for guess in guesses]
        cells.append(
            [
                {"l1": error.nanmean(1), "rank_correlation": rank_correlation(moment, error)}
                for error in errors
            ]
        )
        cells[-1][0]["moment"] = moment.mean(1)
    values = collect(MEASURES, cells)
    return Experiment(
        name="representative",
        question="Are demonstrations better for looking like pre-training?",
        axis="where inputs of demonstrations come from",
        settings=SOURCES,
        series=SERIES,
        measures=MEASURES,
        values=values,
        findings=_findings(values, made),
        facts={f"predicted, {source}": share for source, share in made.items()},
        world=world.describe(),
        options={"n": n, "trials": trials, "sets": sets, "seed": seed},
    )


def _findings(
    values: dict[str, Float64[Tensor, "trial setting series"]], made: dict[str, float]
) -> tuple[str, ...]:
    l1, moment = values["l1"].nanmean(0), values["moment"].nanmean(0)[:, 0]
    said = [
        f"{source}: moment distance {float(moment[i]):.2f}; L1 error "
        + ", ".join(f"{name} {float(l1[i, j]):.3f}" for j, name in enumerate(SERIES))
        + (f" ({KERNEL} predicted {made[source]:.0%})." if made[source] < 0.99 else ".")
        for i, source in enumerate(SOURCES)
    ]
    own = values["rank_correlation"][:, 0, 0]
    _, mean, low, high = change(own, torch.zeros_like(own))
    verdict = (
        ": nearer sets do better."
        if low > 0
        else ": nearer sets do worse."
        if high < 0
        else ", not told from 0."
    )
    said.append(
        "within trials, the task's own inputs: rank correlation of moment distance with the kernel's error "
        f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]{verdict}"
    )
    return tuple(said)


def draw_inputs(
    inputs: Inputs,
    tasks: Int64[Tensor, " trial"],
    source: str,
    count: int,
    generator: torch.Generator,
) -> Int64[Tensor, "trial draw"]:
    """Rows of `inputs`, of which those from another source than the task are possible under it."""
    found = torch.empty(len(tasks), count, dtype=torch.int64)
    for task in tasks.unique().tolist():
        mine = (tasks == task).nonzero().flatten()
        given = inputs.log_given_task[:, task]
        own = given.exp()
        possible = ~given.isneginf()
        other = (inputs.log_pre.exp() if "pre-training" in source else torch.ones_like(own)) * possible
        law = own if source == "task" else other / other.sum()
        if source.startswith("half"):
            law = (own / own.sum() + law) / 2
        total = law.cumsum(0)
        uniform = torch.rand(len(mine) * count, generator=generator, dtype=torch.float64) * total[-1]
        last = int(law.nonzero()[-1])
        found[mine] = torch.searchsorted(total, uniform, right=True).clamp(max=last).reshape(len(mine), count)
    return found


def moment_distance(
    seen: Float64[Tensor, "input direction"],
    demos: Int64[Tensor, "row demo"],
    moment: Float64[Tensor, "direction direction"],
) -> Float64[Tensor, " row"]:
    """‖(1/n) Σ v vᵀ − Σ_pre‖_F / ‖Σ_pre‖_F, in the directions of the design."""
    out = []
    for rows in demos.split(64):
        v = seen[rows]
        out.append(torch.linalg.matrix_norm(v.transpose(1, 2) @ v / demos.shape[1] - moment))
    return torch.cat(out) / torch.linalg.matrix_norm(moment)


def rank_correlation(
    left: Float64[Tensor, "trial set"], right: Float64[Tensor, "trial set"]
) -> Float64[Tensor, " trial"]:
    """Spearman's, row by row, over sets where both are numbers; NaN with less than half of them, or without differences."""
    least = max(6, left.shape[1]) / 2
    both = ~(left.isnan() | right.isnan())
    found = [
        spearman(one, two) if int(known.sum()) >= least else math.nan
        for one, two, known in zip(left, right, both, strict=True)
    ]
    return torch.tensor(found, dtype=torch.float64)
