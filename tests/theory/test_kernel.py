"""Operators by listing; the kernel against 60-digit arithmetic; the identity of Theorem 1, and what breaks it."""

from __future__ import annotations

import itertools
import math

import mpmath
import pytest
import torch
from theory import enumerate as oracle
from theory.test_hmm import EXACT, f64

from icl_kernel_lens.theory.checks import TheoryError
from icl_kernel_lens.theory.hmm import HMM, sequence_index
from icl_kernel_lens.theory.kernel import Inputs, Variant, enumerate_inputs, fit_kernel, operator_features
from icl_kernel_lens.theory.mixture import TaskMixture
from icl_kernel_lens.theory.regression import kernel_regression, population_regression


def some_inputs(world, count=6):
    listed = oracle.sequences(world.symbols, world.input_length)
    return listed[:: max(1, len(listed) // count)]


@pytest.mark.parametrize(("divide", "task"), [("no", None), ("pre", None), ("task", 0), ("task", 1)])
def test_features_by_listing(world, divide, task):
    listed = some_inputs(world)
    inputs = Inputs.of(world, torch.tensor(listed))
    found = operator_features(inputs, divide, task)
    possible = inputs.log_pre if divide != "task" else inputs.log_given_task[:, task]
    for i, x in enumerate(listed):
        if possible[i] == -math.inf and divide != "no":
            assert found[i].isnan().all()
        else:
            torch.testing.assert_close(found[i], f64(oracle.features(world, x, divide, task)), **EXACT)


def test_a_rare_input_keeps_its_features():
    """P(x) = 1e-400 is 0 in float64; T_x / P(x) is not."""
    rare = 1e-200
    emit = f64([[1 - rare, rare], [1 - rare, rare]])
    task = HMM(f64([1.0, 0.0]), f64([[0.25, 0.75], [0.5, 0.5]]), emit)
    world = TaskMixture.merge("rare", [task], input_length=2)
    found = operator_features(Inputs.of(world, torch.tensor([[1, 1], [0, 0]])))
    torch.testing.assert_close(found, (task.initial @ task.transition @ task.transition).expand(2, -1))


def exact_kernel(world, variant, task):
    """K of all inputs that can occur, in 60 digits: the moment formed, and its pseudo-inverse taken."""
    with mpmath.workdps(60):
        listed, rows, chances = [], [], []
        for x in oracle.sequences(world.symbols, world.input_length):
            given = [math.fsum(row) for row in oracle.start_rows(world, x)]
            pre = math.fsum(p * g for p, g in zip(world.prior.tolist(), given, strict=True))
            if (given[task] if variant.divide == "task" else pre) == 0:
                continue
            listed.append(x)
            chances.append(pre if variant.moment == "pre" else given[task])
            rows.append(oracle.features(world, x, variant.divide, task))
        v = mpmath.matrix(rows)
        used = [i for i, row in enumerate(zip(*rows, strict=True)) if any(row)]
        v = mpmath.matrix([[v[x, i] for i in used] for x in range(len(listed))])
        centre = mpmath.matrix(1, len(used))
        if variant.centred:
            total = mpmath.fsum(chances)
            for i in range(len(used)):
                centre[i] = mpmath.fsum(p * v[x, i] for x, p in enumerate(chances)) / total
        moment = mpmath.matrix(len(used))
        for i, j in itertools.product(range(len(used)), repeat=2):
            moment[i, j] = mpmath.fsum(
                p * (v[x, i] - centre[i]) * (v[x, j] - centre[j]) for x, p in enumerate(chances)
            )
        values, vectors = mpmath.eigsy(moment)
        largest = max(values)
        kept = [i for i in range(len(used)) if values[i] > largest * mpmath.mpf(10) ** -24]
        phi = v * vectors
        features = [[phi[x, i] / mpmath.sqrt(values[i]) for i in kept] for x in range(len(listed))]
        kernel = [
            [float(mpmath.fsum(a * b for a, b in zip(one, two, strict=True))) for two in features]
            for one in features
        ]
        kept_values = sorted((float(mpmath.sqrt(values[i])) for i in kept), reverse=True)
    return torch.tensor(listed), f64(kernel), f64(kept_values)


@pytest.mark.parametrize("name", ["block", "short", "sparse"])
@pytest.mark.parametrize(
    "choice", ["pre pre", "no pre", "task pre", "pre task", "no task", "task task", "pre pre centred"]
)
def test_the_kernel_in_sixty_digits(world_of, name, choice):
    world = world_of(name)
    divide, moment, *centred = choice.split()
    variant = Variant(divide, moment, centred=bool(centred))
    kernel = fit_kernel(world, variant, task=1)
    inputs, exact, singular = exact_kernel(world, variant, 1)
    phi = kernel.features(inputs)
    inside = ~phi.isnan().any(-1)
    scale = exact.diagonal().sqrt()
    error = ((phi @ phi.T - exact) / scale / scale[:, None])[inside][:, inside].abs()
    assert inside.sum() >= 4
    assert error.max() < 1e-10
    torch.testing.assert_close(kernel.singular_values, singular, rtol=1e-10, atol=0)
    assert kernel.rank == len(singular)
    assert kernel.condition == pytest.approx(float(singular[0] / singular[-1]))


def test_the_kernel_is_the_projection_onto_the_design(world):
    """√P K √P is symmetric, idempotent, of trace rank; and E[K(x, X)²] = K(x, x)."""
    kernel, inputs = fit_kernel(world), enumerate_inputs(world)
    inside = ~kernel.table.isnan().any(-1)
    hat = kernel.table[inside] * inputs.log_pre[inside].div(2).exp()[:, None]
    hat = hat @ hat.T
    torch.testing.assert_close(hat @ hat, hat, rtol=0, atol=1e-10)
    assert float(hat.trace()) == pytest.approx(kernel.rank, abs=1e-9)


def test_weights_are_the_kernel(world):
    kernel = fit_kernel(world)
    prompts = world.sample_prompts(7, 5, seed=1)
    found = kernel.weights(prompts.test_inputs, prompts.inputs, floor=0.0)
    for p, i in itertools.product(range(7), range(5)):
        one, two = kernel.features(torch.stack([prompts.test_inputs[p], prompts.inputs[p, i]]))
        assert float(found[p, i]) == pytest.approx(float(one @ two), abs=1e-9)


@pytest.fixture(scope="module")
def apart():
    """Two tasks that share no symbol."""

    def task(first):
        emit = torch.zeros(2, 4, dtype=torch.float64)
        emit[:, first : first + 2] = f64([[0.3, 0.7], [0.6, 0.4]])
        return HMM(f64([0.9, 0.1]), f64([[0.2, 0.8], [0.7, 0.3]]), emit)

    return TaskMixture.merge("apart", [task(0), task(2)], input_length=2)


def test_rounding_errors_are_not_weights(apart):
    """With tasks that share no input, K between them is 0, not 1e-17."""
    kernel = fit_kernel(apart)
    tests, demos = torch.tensor([[0, 1], [0, 0]]), torch.tensor([[[2, 3], [0, 1]], [[3, 3], [1, 1]]])
    assert (kernel.weights(tests, demos)[:, 0] == 0).all()
    assert (kernel.weights(tests, demos)[:, 1] != 0).all()


def test_an_impossible_input_has_no_features(world_of):
    kernel = fit_kernel(world_of("sparse"))
    found = kernel.weights(torch.tensor([[0, 1], [2, 0]]), torch.tensor([[[2, 0], [0, 1]], [[0, 1], [0, 1]]]))
    assert found.isnan().tolist() == [[True, False], [True, True]]


def test_inputs_outside_a_tasks_design_are_refused(apart):
    """The second task's own moment says nothing about an input that only the first can give."""
    x = torch.tensor([[0, 1]])
    own = fit_kernel(apart, Variant("pre", "task"), task=1)
    assert own.features(x).isnan().all()
    assert not fit_kernel(apart, Variant("pre", "task"), task=0).features(x).isnan().any()
    other = population_regression(own, 0)
    assert other.unseen == pytest.approx(1)
    assert other.refused == pytest.approx(1)
    assert math.isnan(other.mean_distance)


def test_a_sampled_moment_comes_near_and_says_how_near(world_of):
    world = world_of("block")
    exact, inputs = fit_kernel(world), enumerate_inputs(world)
    few, many = (fit_kernel(world, samples=n, seed=2) for n in (400, 40_000))
    assert exact.sampling_error == 0
    assert not many.enumerated
    assert many.rank == exact.rank
    assert 5 < few.sampling_error / many.sampling_error < 20
    for kernel in (few, many):  # the estimate against the error itself
        phi = kernel.features(inputs.tokens) * inputs.log_pre.div(2).exp()[:, None]
        off = torch.linalg.matrix_norm(phi.T @ phi - torch.eye(kernel.rank).double(), 2)
        assert 1 / 4 < float(off) / kernel.sampling_error < 4
    again = fit_kernel(world, samples=400, seed=2)
    assert torch.equal(few.singular_values, again.singular_values)


@pytest.mark.parametrize("moment", ["pre", "task"])
def test_a_sampled_moment_is_of_all_that_was_drawn(world_of, moment):
    world = world_of("block")
    kernel = fit_kernel(world, Variant("pre", moment), task=1, samples=50, seed=3)
    start = world.hmm.initial if moment == "pre" else world.start[1]
    drawn, _ = world.hmm.sample_with_states(50, 2, seed=3, initial=start.expand(50, -1))
    v = operator_features(Inputs.of(world, drawn))
    singular = torch.linalg.svdvals(v) / math.sqrt(50)
    torch.testing.assert_close(kernel.singular_values, singular[: kernel.rank], rtol=1e-9, atol=1e-12)


def test_a_sampled_moment_refuses_directions_never_drawn(world_of):
    world = world_of("sparse")
    kernel = fit_kernel(world, samples=2, seed=0)
    assert kernel.rank <= 2
    found = kernel.features(enumerate_inputs(world).tokens)
    assert found.isnan().any(-1).sum() > 5


def test_bad_requests_are_refused(world_of):
    world = world_of("block")
    with pytest.raises(TheoryError, match="one task; pass task="):
        fit_kernel(world, Variant("task"))
    with pytest.raises(TheoryError, match="task must lie between 0 and 1; got 5"):
        fit_kernel(world, Variant("pre", "task"), task=5)
    with pytest.raises(TheoryError, match="25 inputs of length 2, more than the 20 that are enumerated"):
        enumerate_inputs(world, at_most=20)
    kernel = fit_kernel(world)
    with pytest.raises(TheoryError, match="inputs must have 2 symbols, as those of the design; these have 3"):
        kernel.features(torch.tensor([[0, 1, 2]]))
    with pytest.raises(TheoryError, match="inputs must lie between 0 and 4"):
        kernel.features(torch.tensor([[0, 5]]))
    with pytest.raises(TheoryError, match="fit the kernel without samples"):
        population_regression(fit_kernel(world, samples=10), 0)
    with pytest.raises(TheoryError, match="task must lie between 0 and 1; got 2"):
        population_regression(kernel, 2)
    with pytest.raises(TheoryError, match="answers must lie between 0 and 1"):
        kernel_regression(torch.ones(1, 1).double(), torch.tensor([[2]]), 2)
    one = HMM(f64([1.0]), f64([[1.0]]), f64([[0.5, 0.5]]))
    same = TaskMixture.merge("same", [one], input_length=1)
    with pytest.raises(TheoryError, match="the moment must not be zero"):
        fit_kernel(same, Variant(centred=True))


def test_operators_by_listing(world):
    listed = some_inputs(world)
    tokens = torch.tensor(listed)
    inputs = Inputs.of(world, tokens)
    full = world.hmm.operator(tokens)
    joint = world.log_joint(tokens).exp()
    for i, x in enumerate(listed):
        torch.testing.assert_close(full[i], f64(oracle.operator(world.hmm, x)), **EXACT)
        rows = f64(oracle.start_rows(world, x))
        torch.testing.assert_close(inputs.log_rows[i].exp(), rows, **EXACT)
        torch.testing.assert_close(inputs.log_given_task[i].exp(), rows.sum(-1), **EXACT)
        assert float(inputs.log_pre[i].exp()) == pytest.approx(
            oracle.probability(world.hmm, x), rel=1e-10, abs=1e-300
        )
        answers = f64([oracle.answers(world, x, task) for task in range(world.tasks)])
        torch.testing.assert_close(joint[i], answers, **EXACT)


def test_only_rows_at_starts_are_kept(world):
    tokens = torch.tensor(some_inputs(world))
    rows = world.log_start_rows(tokens).exp()
    torch.testing.assert_close(rows, world.start @ world.hmm.operator(tokens))


def test_inputs_are_listed_in_order(world):
    inputs = enumerate_inputs(world)
    assert inputs.tokens.tolist() == [list(x) for x in oracle.sequences(world.symbols, world.input_length)]
    assert torch.equal(sequence_index(world.symbols, inputs.tokens), torch.arange(len(inputs.tokens)))
    assert float(inputs.log_pre.exp().sum()) == pytest.approx(1, abs=1e-12)
