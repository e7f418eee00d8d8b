"""What Han et al. (2025, section 4.2) draw from Theorem 1, each as an experiment on a world.

    retrieve_similar         similar demonstrations: a smaller bandwidth, less bias, more variance
    output_format            labels from outside the label space
    representative           demonstrations near to pre-training, and far from it
    label_noise              wrong labels
    softmax_kernels          exp(⟨v, v'⟩ / τ) beside the dot product: which kernel would attention have?

Predictions are compared with exact ones: with P(Y | x, θ*), the answer of one who knows the task, or with exact
Bayes. Does not show: anything about a language model; and what holds in one world need not hold in the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from icl_kernel_lens.results.run_info import versions
from icl_kernel_lens.theory.bayes import (
    bayesian_prediction,
    task_prediction,
)
from icl_kernel_lens.theory.checks import TheoryError, at_least
from icl_kernel_lens.theory.experiment import Experiment, change
from icl_kernel_lens.theory.hmm import draw, log_matmul, make_generator
from icl_kernel_lens.theory.kernel import (
    fit_kernel,
    kernel_regression,
    operator_features,
)
from icl_kernel_lens.theory.mixture import Prompts, TaskMixture
from icl_kernel_lens.theory.operators import Inputs, enumerate_inputs, log_answers, log_start_rows
from icl_kernel_lens.theory.presets import han2025
from icl_kernel_lens.theory.theorem import COUNTS, LETTER, PAPER, measure_theorem

KERNEL, VOTE, BAYES = "kernel regression", "plain vote", "Bayes"


def _spread(values: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct sequences of the last axis, and where each one is."""
    each, where = values.flatten(0, -2).unique(dim=0, return_inverse=True)
    return each, where.reshape(values.shape[:-1])


def _draw_demos(
    world: TaskMixture, tasks: Int64[Tensor, " row"], count: int, generator: torch.Generator
) -> tuple[Int64[Tensor, "row demo position"], Int64[Tensor, "row demo"]]:
    """Independent demonstrations of each row's task."""
    drawn, _ = world.hmm.sample_with_states(
        len(tasks) * count,
        world.input_length + 1,
        seed=generator,
        initial=world.start[tasks.repeat_interleave(count)],
    )
    drawn = drawn.reshape(len(tasks), count, -1)
    return drawn[..., :-1], drawn[..., -1]


def _truth(
    world: TaskMixture, tests: Int64[Tensor, "row position"], tasks: Int64[Tensor, " row"]
) -> Float64[Tensor, "row symbol"]:
    """P(Y | x_test, θ*)."""
    each, where = _spread(tests)
    return task_prediction(world, each)[tasks, where]


def _agree(
    guess: Float64[Tensor, "*row symbol"], truth: Float64[Tensor, "*row symbol"]
) -> Float64[Tensor, "*row"]:
    """1 where both have the same first answer, NaN where there is no guess."""
    same = (guess.nan_to_num(0.0).argmax(-1) == truth.argmax(-1)).double()
    return same.masked_fill(guess.isnan().any(-1), float("nan"))


def _options(world: TaskMixture, **more: Any) -> dict[str, Any]:
    return {"world": world.describe(), **more}


Similarity = Literal["likelihood", "kernel"]


def retrieve_similar(
    world: TaskMixture,
    sizes: Sequence[int] = (64, 32, 16, 8, 4),
    *,
    trials: int = 60,
    draws: int = 40,
    by: Similarity = "likelihood",
    seed: int = 0,
    guard: float = 0.1,
) -> Experiment:
    """Keep the k demonstrations most like the test input, out of a pool: bandwidth, bias and variance.

    A trial is a task and a test input; `draws` pools of max(sizes) demonstrations are drawn for it, and

        mean ‖ŷ − p‖² = bias² + variance,    bias² = ‖mean ŷ − p‖² − variance / draws,    p = P(Y | x_test, θ*)

    over draws. *Similar* is the cosine of P(Y | x, p_pre) and P(Y | x', p_pre) (Eq. 9's similarity, which without the
    norms favours inputs with sure answers), or, by "kernel", of φ(x) and φ(x'). Random choices of as many demonstrations are the control. `bandwidth` is the weighted mean
    L1 distance of P(Y | x_i, θ*) from p; `effective`, (Σ|K|)² / ΣK², how many demonstrations have a say.
    `guard` is that of `kernel_regression`, wider than its default, because squares make much of single spikes.
    Does not show: retrieval in a world where similar inputs do not have similar answers.
    """
    at_least(min(sizes, default=0), 1, "sizes")
    at_least(trials, 1, "trials")
    at_least(draws, 2, "draws")
    if list(sizes) != sorted(set(sizes), reverse=True):
        raise TheoryError(f"sizes must fall, the first being the whole pool; got {tuple(sizes)}.")
    generator = make_generator(seed)
    asked = world.sample_prompts(trials, 0, seed=generator)
    tasks, pool = asked.tasks, sizes[0]
    assert tasks is not None
    inputs, answers = _draw_demos(world, tasks.repeat_interleave(draws), pool, generator)
    tests = asked.test_inputs.repeat_interleave(draws, 0)
    kernel = fit_kernel(world)
    weights = kernel.weights(tests, inputs)
    each, where = _spread(torch.cat([tests[:, None], inputs], 1))
    at_test, at_demo = where[:, 0], where[:, 1:]
    known = task_prediction(world, each).transpose(0, 1)
    far = torch.empty_like(weights)
    like = torch.empty_like(weights)
    features = _pre_prediction(world, each) if by == "likelihood" else kernel.features(each)
    features = features / features.norm(dim=-1, keepdim=True)
    for t in range(trials):
        rows = slice(t * draws, (t + 1) * draws)
        test = at_test[t * draws]
        far[rows] = (known[:, tasks[t]] - known[test, tasks[t]]).abs().sum(-1)[at_demo[rows]]
        like[rows] = (features @ features[test])[at_demo[rows]]
    order = like.nan_to_num(-math.inf).argsort(dim=1, descending=True, stable=True)
    truth = known[at_test[::draws], tasks]
    series = [(reader, choice) for reader in (KERNEL, VOTE) for choice in ("random", "similar")]
    names = {
        "bandwidth": "bandwidth (L1)",
        "bias": "bias² (L2²)",
        "variance": "variance (L2²)",
        "error": "mean squared error (L2²)",
        "effective": "demonstrations with a say",
    }
    values = {
        name: torch.full((trials, len(sizes), len(series)), math.nan, dtype=torch.float64) for name in names
    }
    for i, size in enumerate(sizes):
        for j, (reader, choice) in enumerate(series):
            picks = order[:, :size] if choice == "similar" else torch.arange(size).expand(len(order), -1)
            w = weights.gather(1, picks) if reader == KERNEL else torch.ones(len(order), size).double()
            found = kernel_regression(w, answers.gather(1, picks), world.symbols, [size], guard=guard)
            guess = found.prediction[:, 0].unflatten(0, (trials, draws))
            bias, variance, error = _decompose(guess, truth)
            share = w.abs() / w.abs().sum(-1, keepdim=True)
            made = ~guess.isnan().any(-1)
            wide = (share * far.gather(1, picks)).sum(-1).unflatten(0, (trials, draws))
            say = (1 / share.square().sum(-1)).unflatten(0, (trials, draws))
            values["bias"][:, i, j], values["variance"][:, i, j], values["error"][:, i, j] = (
                bias,
                variance,
                error,
            )
            values["bandwidth"][:, i, j] = wide.masked_fill(~made, math.nan).nanmean(1)
            values["effective"][:, i, j] = say.masked_fill(~made, math.nan).nanmean(1)
    findings = []
    for j, (reader, choice) in enumerate(series):
        if choice == "random":
            continue
        said = []
        for name in ("bandwidth", "bias", "variance", "error"):
            all_, few = values[name][:, 0, j], values[name][:, -1, j]
            both = ~(all_ + few).isnan()
            word, *_ = change(few, all_)
            said.append(f"{name} {word} ({float(all_[both].mean()):.3f} to {float(few[both].mean()):.3f})")
        findings.append(f"{reader}, {sizes[0]} to {sizes[-1]} most similar by {by}: {', '.join(said)}.")
    return Experiment(
        name="retrieve_similar",
        question="Does retrieving similar demonstrations trade bias for variance?",
        axis=f"demonstrations kept, out of {pool}",
        settings=tuple(float(size) for size in sizes),
        series=tuple(f"{reader}, {choice}" for reader, choice in series),
        measures=names,
        values=values,
        findings=tuple(findings),
        facts={},
        options=_options(world, trials=trials, draws=draws, by=by, seed=seed, guard=guard),
        versions=versions(),
    )


def _pre_prediction(
    world: TaskMixture, inputs: Int64[Tensor, "input position"]
) -> Float64[Tensor, "input symbol"]:
    """P(Y | x, p_pre): what the world says of an input without a prompt."""
    joint = log_answers(world, log_start_rows(world, inputs)) + world.prior.log()[:, None]
    return torch.logsumexp(joint, 1).softmax(-1)


def _decompose(
    guess: Float64[Tensor, "trial draw symbol"], truth: Float64[Tensor, "trial symbol"]
) -> tuple[Float64[Tensor, " trial"], Float64[Tensor, " trial"], Float64[Tensor, " trial"]]:
    """bias² (corrected for the finite number of draws, so that it may be below 0), variance, and their sum."""
    made = (~guess.isnan().any(-1)).double()
    count = made.sum(1)
    count = count.masked_fill(count < 2, math.nan)
    known = guess.nan_to_num(0.0) * made[..., None]
    mean = known.sum(1) / count[:, None]
    variance = ((known - mean[:, None]).square().sum(-1) * made).sum(1) / (count - 1)
    bias = (mean - truth).square().sum(-1) - variance / count
    return bias, variance, bias + variance


def noisy_prediction(
    world: TaskMixture, prompts: Prompts, share: float, symbols: int | None = None
) -> tuple[Float64[Tensor, "prompt symbol"], Float64[Tensor, "prompt task"]]:
    """Bayes that allows for a `share` of labels drawn evenly from `symbols` (None: the world's own).

        M[θ, θ'] = (1 − share) P(x, y, next θ' | θ) + (share / symbols) P(x, next θ' | θ)

    in place of each demonstration's, all of them used. Returns P(Y | prompt), Y without noise, and the posterior
    over tasks. Labels from `world.symbols` on are outside the world: noise to it.
    """
    symbols = world.symbols if symbols is None else symbols
    if not 0 <= share <= 1:
        raise TheoryError(f"the share of noise must be a probability; got {share}.")
    count, demos = len(prompts), prompts.demos
    weights = world.prior.log().expand(count, -1)
    if demos:
        inputs, answers = prompts.inputs.flatten(0, 1), prompts.answers.flatten()
        inside = answers < world.symbols
        told = torch.cat([inputs, answers.clamp(max=world.symbols - 1)[:, None]], 1)
        each, where = told.unique(dim=0, return_inverse=True)
        clean = log_matmul(log_start_rows(world, each), world.restart)[where]
        clean = clean.masked_fill(~inside[:, None, None], -math.inf) + _log(1 - share)
        each, where = inputs.unique(dim=0, return_inverse=True)
        wrong = log_matmul(log_matmul(log_start_rows(world, each), world.hmm.transition), world.restart)
        steps = torch.logaddexp(clean, wrong[where] + _log(share) - math.log(symbols))
        for step in steps.unflatten(0, (count, demos)).unbind(1):
            weights = torch.logsumexp(weights[:, :, None] + step, 1)
    each, where = prompts.test_inputs.unique(dim=0, return_inverse=True)
    joint = log_answers(world, log_start_rows(world, each))
    seen = weights + torch.logsumexp(joint, -1)[where]
    answer = torch.logsumexp(weights[:, :, None] + joint[where], 1)
    total = torch.logsumexp(seen, -1, keepdim=True)
    impossible = total.isneginf()
    return (
        (answer - total).exp().masked_fill(impossible, math.nan),
        (seen - total).exp().masked_fill(impossible, math.nan),
    )


def _log(share: float) -> float:
    return math.log(share) if share > 0 else -math.inf


FORMATS = ("as pre-trained", "exchanged", "new symbols")


def output_format(
    world: TaskMixture, n: int = 32, *, trials: int = 200, seed: int = 0, doubt: float = 0.01
) -> Experiment:
    """Labels written in another alphabet: who follows the demonstrations?

    Every label y becomes π(y): itself; another symbol of the world (a random permutation without fixed points); or a symbol that the
    world never emits. `follows` and `keeps` are agreement with the first answer of P(Y | x_test, θ*), renamed by π or not;
    `mass` is the probability on labels that demonstrations show. Exact Bayes has no prediction where
    the prompt has become impossible; Bayes *in doubt* thinks each label random with probability `doubt`.
    A regression ŷ = Σ y_i K_i / Σ K_i commutes with any renaming: it follows as often as it was right before.
    """
    prompts = world.sample_prompts(trials, n, seed=seed)
    assert prompts.tasks is not None
    symbols = 2 * world.symbols
    generator = make_generator(seed + 1)
    kernel = fit_kernel(world)
    weights = kernel.weights(prompts.test_inputs, prompts.inputs)
    truth = _truth(world, prompts.test_inputs, prompts.tasks)
    plain = torch.arange(world.symbols)
    renamings = dict(
        zip(FORMATS, (plain, _derangement(world.symbols, generator), plain + world.symbols), strict=True)
    )
    series = (KERNEL, BAYES, f"{BAYES}, in doubt")
    names = {
        "follows": "follows the renamed labels",
        "keeps": "keeps the old labels",
        "mass": "probability on labels shown",
    }
    values = {
        name: torch.full((trials, len(FORMATS), len(series)), math.nan, dtype=torch.float64) for name in names
    }
    for i, renamed in enumerate(renamings.values()):
        labels = renamed[prompts.answers]
        shown = torch.zeros(trials, symbols, dtype=torch.float64).scatter_(1, labels, 1.0)
        follow = torch.zeros(trials, symbols, dtype=torch.float64).index_copy(1, renamed, truth)
        keep = torch.cat([truth, torch.zeros_like(truth)], 1)
        rest = torch.ones(symbols, dtype=torch.bool).index_fill(0, renamed, False)
        order = torch.cat([renamed, rest.nonzero().flatten()])
        changed = Prompts(prompts.inputs, labels, prompts.test_inputs, tasks=prompts.tasks)
        doubting, _ = noisy_prediction(world, changed, doubt, symbols)
        exact = (
            bayesian_prediction(world, changed, [n]).prediction[:, 0]
            if int(labels.max()) < world.symbols
            else torch.full((trials, world.symbols), math.nan, dtype=torch.float64)
        )
        guesses = (
            kernel_regression(weights, labels, symbols, [n]).prediction[:, 0],
            torch.cat([exact, torch.zeros_like(exact)], 1),
            (1 - doubt) * torch.cat([doubting, torch.zeros_like(doubting)], 1) + doubt / symbols,
        )
        for j, guess in enumerate(guesses):
            # The renamed in the order of the old, so that ties are broken alike.
            values["follows"][:, i, j] = _agree(guess[:, order], follow[:, order])
            values["keeps"][:, i, j] = _agree(guess, keep)
            values["mass"][:, i, j] = (guess * shown).sum(-1)
    findings = []
    for j, name in enumerate(series):
        for i, label in enumerate(FORMATS):
            column = values["follows"][:, i, j]
            made = float((~column.isnan()).double().mean())
            findings.append(
                f"{name}, labels {label}: "
                + (
                    f"follows in {float(column.nanmean()):.1%}, keeps the old in "
                    f"{float(values['keeps'][:, i, j].nanmean()):.1%} ({made:.0%} of prompts have a prediction)."
                    if made
                    else "no prediction, every prompt is impossible."
                )
            )
    return Experiment(
        name="output_format",
        question="Which labels does the prediction use when the demonstrations' are renamed?",
        axis="labels",
        settings=FORMATS,
        series=series,
        measures=names,
        values=values,
        findings=tuple(findings),
        facts={},
        options=_options(world, n=n, trials=trials, seed=seed, doubt=doubt),
        versions=versions(),
    )


def _derangement(count: int, generator: torch.Generator) -> Int64[Tensor, " symbol"]:
    """A cycle through all symbols in random order: nothing stays where it is (unless there is one symbol)."""
    order = torch.randperm(count, generator=generator)
    found = torch.empty_like(order)
    found[order] = order.roll(1)
    return found


SOURCES = ("task", "half pre-training", "pre-training", "half flat", "flat")


def representative(
    world: TaskMixture, n: int = 32, *, trials: int = 60, sets: int = 12, seed: int = 0
) -> Experiment:
    """Does it help when demonstrations look like pre-training? Moment distance against error.

    A trial is a task and a test input; `sets` prompts of n demonstrations are drawn for it, their inputs from P(x | θ*) ("task"),
    from P(x | p_pre), or evenly from all inputs ("flat"), or half so; answers are always from P(Y | x, θ*).

        moment = ‖(1/n) Σ v(x_i) v(x_i)ᵀ − Σ_pre‖_F / ‖Σ_pre‖_F

    and `rank_correlation`, within a trial, is Spearman's of moment with error over its sets: above 0, nearer sets do better.
    Sources that draw inputs impossible under θ* leave these out: they have no answer.
    """
    at_least(sets, 3, "sets")
    at_least(n, 1, "n")
    inputs = enumerate_inputs(world)
    kernel = fit_kernel(world, inputs=inputs)
    generator = make_generator(seed)
    asked = world.sample_prompts(trials, 0, seed=generator)
    tasks = asked.tasks
    assert tasks is not None
    truth = _truth(world, asked.test_inputs, tasks)
    answers_given = task_prediction(world, inputs.tokens)
    seen = operator_features(inputs) @ kernel.directions
    moment_of_all = torch.diag(kernel.singular_values.square())
    series = (KERNEL, VOTE, BAYES)
    names = {
        "l1": "L1 distance to P(Y | x, θ*)",
        "moment": "distance of the moment (same for all)",
        "rank_correlation": "rank correlation",
    }
    shape = (trials, len(SOURCES), len(series))
    values = {name: torch.full(shape, math.nan, dtype=torch.float64) for name in names}
    made = torch.zeros(len(SOURCES), dtype=torch.float64)
    for i, source in enumerate(SOURCES):
        rows = tasks.repeat_interleave(sets)
        demos = _draw_inputs(world, inputs, tasks, source, sets * n, generator).reshape(trials * sets, n)
        answers = draw(answers_given[rows.repeat_interleave(n), demos.flatten()], generator).reshape(-1, n)
        prompts = Prompts(
            inputs.tokens[demos], answers, asked.test_inputs.repeat_interleave(sets, 0), tasks=rows
        )
        weights = kernel.weights(prompts.test_inputs, prompts.inputs)
        moment = _moment_distance(seen, demos, moment_of_all)
        guesses = (
            kernel_regression(weights, answers, world.symbols, [n]).prediction[:, 0],
            kernel_regression(torch.ones_like(weights), answers, world.symbols, [n]).prediction[:, 0],
            bayesian_prediction(world, prompts, [n]).prediction[:, 0],
        )
        made[i] = (~guesses[0].isnan().any(-1)).double().mean()
        for j, guess in enumerate(guesses):
            error = (guess - truth.repeat_interleave(sets, 0)).abs().sum(-1).unflatten(0, (trials, sets))
            values["l1"][:, i, j] = error.nanmean(1)
            if j == 0:  # the same for all readers
                values["moment"][:, i, j] = moment.unflatten(0, (trials, sets)).mean(1)
            values["rank_correlation"][:, i, j] = _rank_correlation(
                moment.unflatten(0, (trials, sets)), error
            )
    found = values["l1"].nanmean(0), values["moment"].nanmean(0)[:, 0]
    findings = [
        f"{source}: moment distance {float(found[1][i]):.2f}; L1 error "
        + ", ".join(f"{name} {float(found[0][i, j]):.3f}" for j, name in enumerate(series))
        + (f" ({KERNEL} predicted {float(made[i]):.0%})." if float(made[i]) < 0.99 else ".")
        for i, source in enumerate(SOURCES)
    ]
    low, high = _interval(values["rank_correlation"][:, 0, 0])
    own = float(values["rank_correlation"][:, 0, 0].nanmean())
    findings.append(
        f"within trials, the task's own inputs: rank correlation of moment distance with the kernel's error {own:+.2f} "
        f"[{low:+.2f}, {high:+.2f}]"
        + (
            ": nearer sets do better."
            if low > 0
            else ": nearer sets do worse."
            if high < 0
            else ", not told from 0."
        )
    )
    return Experiment(
        name="representative",
        question="Are demonstrations better for looking like pre-training?",
        axis="where inputs of demonstrations come from",
        settings=SOURCES,
        series=series,
        measures=names,
        values=values,
        findings=tuple(findings),
        facts={f"predicted, {source}": float(made[i]) for i, source in enumerate(SOURCES)},
        options=_options(world, n=n, trials=trials, sets=sets, seed=seed),
        versions=versions(),
    )


def _draw_inputs(
    world: TaskMixture,
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


def _moment_distance(
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


def _rank_correlation(
    left: Float64[Tensor, "trial set"], right: Float64[Tensor, "trial set"]
) -> Float64[Tensor, " trial"]:
    """Spearman's, row by row, over sets where both are numbers; NaN with less than half of them, or without differences."""
    from scipy.stats import rankdata

    found = []
    for one, two in zip(left, right, strict=True):
        both = ~(one.isnan() | two.isnan())
        if 2 * int(both.sum()) < max(6, len(one)):
            found.append(math.nan)
            continue
        a, b = (torch.from_numpy(rankdata(x[both].numpy())) for x in (one, two))
        a, b = a - a.mean(), b - b.mean()
        size = float(a.norm() * b.norm())
        found.append(float(a @ b) / size if size > 0 else math.nan)
    return torch.tensor(found, dtype=torch.float64)


def _interval(values: Float64[Tensor, " trial"]) -> tuple[float, float]:
    _, _, low, high = change(values, torch.zeros_like(values))
    return low, high


def label_noise(
    world: TaskMixture,
    shares: Sequence[float] = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0),
    n: int = 32,
    *,
    trials: int = 200,
    seed: int = 0,
) -> Experiment:
    """Wrong labels in a share of the demonstrations: error of kernel regression and of Bayes.

    A wrong label is any other symbol, evenly. Bayes does not know of wrong labels; *told* Bayes knows their share. Kernel regression
    cannot know: in expectation it moves by the share towards the labels' mean, whose first answer is the same until noise outweighs it.
    """
    if any(not 0 <= share <= 1 for share in shares) or list(shares) != sorted(set(shares)) or not shares:
        raise TheoryError(f"shares must rise within 0 and 1; got {tuple(shares)}.")
    prompts = world.sample_prompts(trials, n, seed=seed)
    assert prompts.tasks is not None
    generator = make_generator(seed + 1)
    weights = fit_kernel(world).weights(prompts.test_inputs, prompts.inputs)
    truth = _truth(world, prompts.test_inputs, prompts.tasks)
    # One draw for all shares, so that they are nested: what is wrong at 0.1 is wrong at 0.25 too.
    chance = torch.rand(prompts.answers.shape, generator=generator, dtype=torch.float64)
    shift = torch.randint(1, max(2, world.symbols), prompts.answers.shape, generator=generator)
    wrong = (prompts.answers + shift) % world.symbols
    series = (KERNEL, BAYES, f"{BAYES}, told the share")
    names = {
        "l1": "L1 distance to P(Y | x, θ*)",
        "agree": "same first answer",
        "posterior": "posterior of the true task",
    }
    shape = (trials, len(shares), len(series))
    values = {name: torch.full(shape, math.nan, dtype=torch.float64) for name in names}
    for i, share in enumerate(shares):
        labels = torch.where(chance < share, wrong, prompts.answers)
        changed = Prompts(prompts.inputs, labels, prompts.test_inputs, tasks=prompts.tasks)
        bayes = bayesian_prediction(world, changed, [n])
        # Wrong labels differ from the true one: evenly random ones, of which 1/m are right, in proportion.
        even = min(1.0, share * world.symbols / max(1, world.symbols - 1))
        told, told_posterior = noisy_prediction(world, changed, even)
        guesses = (
            (kernel_regression(weights, labels, world.symbols, [n]).prediction[:, 0], None),
            (bayes.prediction[:, 0], bayes.posterior_with_input[:, 0]),
            (told, told_posterior),
        )
        for j, (guess, posterior) in enumerate(guesses):
            values["l1"][:, i, j] = (guess - truth).abs().sum(-1)
            values["agree"][:, i, j] = _agree(guess, truth)
            if posterior is not None:
                values["posterior"][:, i, j] = posterior.gather(1, prompts.tasks[:, None])[:, 0]
    findings = []
    for j, name in enumerate(series):
        said = [
            f"{share:.0%}: L1 {float(values['l1'][:, i, j].nanmean()):.3f}, agrees "
            f"{float(values['agree'][:, i, j].nanmean()):.1%}, {float((~values['l1'][:, i, j].isnan()).double().mean()):.0%} predicted"
            for i, share in enumerate(shares)
        ]
        findings.append(f"{name}, by share of wrong labels: {'; '.join(said)}.")
    return Experiment(
        name="label_noise",
        question="How much label noise do kernel regression and Bayes bear?",
        axis="share of wrong labels",
        settings=tuple(float(share) for share in shares),
        series=series,
        measures=names,
        values=values,
        findings=tuple(findings),
        facts={},
        options=_options(world, n=n, trials=trials, seed=seed),
        versions=versions(),
    )


TEMPERATURES = tuple(float(10 ** (i / 3)) for i in range(-9, 7))

SOFTMAX_SERIES = (
    "v·v' with Σ⁻¹ (Theorem 1)",
    "v·v' without Σ⁻¹",
    "exp(v·v' / τ)",
    "exp(v·v' / τ), unit length",
    "exp(v·v' / τ) with Σ⁻¹",
    "all alike",
)


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

    as attention weighs keys, on the trials of the dot products ⟨v, v'⟩ and vᵀ Σ⁺ v'. The features are
    those of the theorem, or brought to unit length, or whitened by Σ. τ is in units of E‖v‖² under pre-training. The best τ is chosen on
    the even trials and its error told of the odd ones (`facts`).
    Does not show: what a trained head could do by learning other features.
    """
    at_least(min(counts, default=0), 1, "counts")
    if list(counts) != sorted(set(counts)) or not temperatures or min(temperatures) <= 0:
        raise TheoryError(
            f"counts must rise and temperatures be above 0; got {tuple(counts)} and {tuple(temperatures)}."
        )
    at_least(trials, 4, "trials")
    prompts = world.sample_prompts(trials, max(counts), seed=seed)
    kernel = fit_kernel(world)
    exact = bayesian_prediction(world, prompts, counts).prediction
    each, where = _spread(torch.cat([prompts.test_inputs[:, None], prompts.inputs], 1))
    rows = operator_features(Inputs.of(world, each), "pre")
    used = (rows.nan_to_num(0.0) != 0).any(0)
    size = float(kernel.singular_values.square().sum())
    plain = rows[:, used]
    products = {
        SOFTMAX_SERIES[1]: (plain, size),
        SOFTMAX_SERIES[2]: (plain, size),
        SOFTMAX_SERIES[3]: (plain / plain.norm(dim=-1, keepdim=True), 1.0),
        SOFTMAX_SERIES[4]: (kernel.features(each), float(kernel.rank)),
    }
    scores = {
        name: torch.stack([phi[at[1:]] @ phi[at[0]] for at in where]) / scale
        for name, (phi, scale) in products.items()
    }
    names = {f"l1_{n}": f"L1 distance to Bayes, n = {n}" for n in counts}
    names |= {f"agree_{n}": f"same first answer as Bayes, n = {n}" for n in counts}
    shape = (trials, len(temperatures), len(SOFTMAX_SERIES))
    values = {name: torch.full(shape, math.nan, dtype=torch.float64) for name in names}
    for j, name in enumerate(SOFTMAX_SERIES):
        for i, tau in enumerate(temperatures):
            if i and not name.startswith("exp"):
                for column in values.values():
                    column[:, i, j] = column[:, 0, j]
                continue
            for k, n in enumerate(counts):
                if name == SOFTMAX_SERIES[0]:
                    weights = kernel.weights(prompts.test_inputs, prompts.inputs[:, :n])
                elif name.startswith("exp"):
                    weights = (scores[name][:, :n] / tau).softmax(-1)
                else:
                    weights = scores[name][:, :n] if name in scores else torch.ones(trials, n).double()
                guess = kernel_regression(weights, prompts.answers[:, :n], world.symbols, [n]).prediction[
                    :, 0
                ]
                values[f"l1_{n}"][:, i, j] = (guess - exact[:, k]).abs().sum(-1)
                values[f"agree_{n}"][:, i, j] = _agree(guess, exact[:, k])
    facts, findings = {}, []
    for n in counts:
        l1, said = values[f"l1_{n}"], []
        for j, name in enumerate(SOFTMAX_SERIES):
            best = int(l1[::2, :, j].nanmean(0).argmin())
            held_out = float(l1[1::2, best, j].nanmean())
            facts[f"l1, n = {n}, {name}"] = held_out
            text = f"{name} {held_out:.3f}"
            if name.startswith("exp"):
                facts[f"best τ, n = {n}, {name}"] = float(temperatures[best])
                text += f" (τ = {temperatures[best]:.2g})"
            made = float((~l1[:, 0, j].isnan()).double().mean())
            said.append(text + (f" ({made:.0%} of prompts predicted)" if made < 1 else ""))
        findings.append(f"n = {n}, L1 distance to Bayes on the odd trials: {'; '.join(said)}.")
        exponential = [j for j, name in enumerate(SOFTMAX_SERIES) if name.startswith("exp")]
        tuned = [int(l1[::2, :, j].nanmean(0).argmin()) for j in exponential]
        errors = [float(l1[::2, i, j].nanmean()) for i, j in zip(tuned, exponential, strict=True)]
        pick = errors.index(min(errors))
        i, j = tuned[pick], exponential[pick]
        for other in (0, len(SOFTMAX_SERIES) - 1):
            _, gap, low, high = change(l1[1::2, i, j], l1[1::2, 0, other])
            verdict = "better" if high < 0 else "worse" if low > 0 else "not told apart"
            findings.append(
                f"n = {n}, the exponential kernel best on the even trials, {SOFTMAX_SERIES[j]}, against {SOFTMAX_SERIES[other]}, "
                f"odd trials that both predict: {gap:+.3f} [{low:+.3f}, {high:+.3f}], {verdict}."
            )
    return Experiment(
        name="softmax_kernels",
        question="Which kernel would softmax attention have?",
        axis="temperature τ, in units of E‖v‖²",
        settings=tuple(float(tau) for tau in temperatures),
        series=SOFTMAX_SERIES,
        measures=names,
        values=values,
        findings=tuple(findings),
        facts=facts,
        options=_options(world, counts=list(counts), trials=trials, seed=seed),
        versions=versions(),
    )


def worlds_of_the_paper(
    seeds: Sequence[int] = range(6), counts: Sequence[int] = COUNTS, *, trials: int = 100, seed: int = 0
) -> Experiment:
    """Table 3 again in other worlds of the same law: how much of it is the world's draw? A trial is a world."""
    seeds = tuple(seeds)
    at_least(len(seeds), 2, "worlds")
    series = ("refusing noise", "nothing refused")
    names = {
        "l1": "L1 distance to exact Bayes",
        "agree": "same first answer",
        "linf": "L∞ distance to exact Bayes",
    }
    values = {name: torch.full((len(seeds), len(counts), 2), math.nan, dtype=torch.float64) for name in names}
    for i, world_seed in enumerate(seeds):
        world = han2025(world_seed)
        kernel = fit_kernel(world)
        for j, options in enumerate(({}, LETTER)):
            found = measure_theorem(world, counts, trials, seed, kernel=kernel, **options)
            values["l1"][i, :, j] = found.mean("l1")
            values["agree"][i, :, j] = found.agreement()
            values["linf"][i, :, j] = found.mean("linf")
    findings = []
    for name, row in (("l1", PAPER["distance"]), ("agree", PAPER["accuracy"])):
        for k in (0, len(counts) - 1):
            column = values[name][:, k, 1]
            low, high = float(column.min()), float(column.max())
            text = f"n = {counts[k]}, {names[name]}, nothing refused: {low:.3f} to {high:.3f} over {len(seeds)} worlds"
            if counts[k] in COUNTS:
                paper = row[COUNTS.index(counts[k])]
                side = "below" if paper < low else "above" if paper > high else "within"
                text += f"; the paper's {paper:.3f} lies {side}"
            findings.append(text + ".")
    return Experiment(
        name="worlds_of_the_paper",
        question="How much of Table 3 is the draw of the world?",
        axis="demonstrations n",
        settings=tuple(float(n) for n in counts),
        series=series,
        measures=names,
        values=values,
        findings=tuple(findings),
        facts={},
        options=_options(han2025(seeds[0]), seeds=list(seeds), trials=trials, seed=seed, unit="worlds"),
        versions=versions(),
    )


EXPERIMENTS = {
    "retrieve_similar": retrieve_similar,
    "output_format": output_format,
    "representative": representative,
    "label_noise": label_noise,
    "softmax_kernels": softmax_kernels,
}
"""All of them, by name, each with settings that take seconds."""
