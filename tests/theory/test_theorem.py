"""Theorem 1 measured: every number of a trial by plain loops, the bound's terms by forming the moments."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from theory import enumerate as oracle
from theory.test_hmm import f64

from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.theory.bayes import bayesian_prediction
from icl_kernel_lens.theory.checks import TheoryError
from icl_kernel_lens.theory.kernel import Variant, fit_kernel
from icl_kernel_lens.theory.mixture import Prompts
from icl_kernel_lens.theory.regression import kernel_regression
from icl_kernel_lens.theory.theorem import TheoremResult, TheoremTerms, measure_theorem, theorem_terms


@pytest.fixture(scope="session")
def measured(world_of):
    return measure_theorem(world_of("sparse"), (1, 4, 16, 64), trials=120, seed=3)


@pytest.mark.parametrize("name", ["sparse", "block", "leaky"])
def test_each_trial_by_plain_loops(world_of, name):
    world = world_of(name)
    counts = (2, 5)
    found = measure_theorem(world, counts, trials=12, seed=1)
    prompts = world.sample_prompts(12, 5, seed=1)
    kernel = fit_kernel(world)
    bayes = bayesian_prediction(world, prompts, counts)
    assert torch.equal(found.tasks, prompts.tasks)
    for p in range(12):
        for i, n in enumerate(counts):
            phi = kernel.features(torch.cat([prompts.test_inputs[p : p + 1], prompts.inputs[p, :n]]))
            w = [float(phi[0] @ other) for other in phi[1:]]
            if sum(w) <= 1e-3 * sum(map(abs, w)):
                assert found.l1[p, i].isnan()
                assert found.agree[p, i].isnan()
                continue
            guess = f64(oracle.regression(w, prompts.answers[p, :n].tolist(), world.symbols))
            exact = bayes.prediction[p, i]
            known = f64(oracle.answers(world, prompts.test_inputs[p].tolist(), int(prompts.tasks[p])))
            assert float(found.l1[p, i]) == pytest.approx(float((guess - exact).abs().sum()), rel=1e-6)
            assert float(found.linf[p, i]) == pytest.approx(float((guess - exact).abs().max()), rel=1e-6)
            assert float(found.agree[p, i]) == float(guess.argmax() == exact.argmax())
            assert float(found.task_l1[p, i]) == pytest.approx(
                float((guess - known / known.sum()).abs().sum()), rel=1e-6
            )
            own = bayes.posterior_with_input[p, i, prompts.tasks[p]]
            assert float(found.posterior[p, i]) == float(own)


def test_distance_falls_and_agreement_rises(measured):
    assert measured.mean("l1").diff().lt(0).all()
    assert measured.agreement()[-1] > measured.agreement()[0] + 0.2
    rate = measured.rate()
    assert -0.65 < rate.slope < -0.35
    assert rate.low < rate.slope < rate.high
    assert measured.rate(level=0.5).high - measured.rate(level=0.5).low < rate.high - rate.low


def test_the_rate_is_the_slope_of_logarithms(measured):
    n = np.array(measured.counts)
    mean = np.nanmean(measured.l1.numpy(), 0)
    assert measured.rate().slope == pytest.approx(np.polyfit(np.log(n), np.log(mean), 1)[0])
    assert measured.rate("linf", least=4).slope == pytest.approx(
        np.polyfit(np.log(n[1:]), np.log(np.nanmean(measured.linf.numpy(), 0)[1:]), 1)[0]
    )
    exact = replace(measured, l1=torch.tensor(measured.counts).double().pow(-0.5).expand(120, -1))
    rate = exact.rate()
    assert (rate.low, rate.slope, rate.high) == pytest.approx((-0.5, -0.5, -0.5))
    with pytest.raises(
        ValueError, match="distances above 0 at two numbers of demonstrations; there are 1 from n = 64"
    ):
        measured.rate(least=64)
    with pytest.raises(ValueError, match="level must lie between 0 and 1; got 95"):
        measured.rate(level=95.0)


def test_refusals_are_counted_and_never_scored(world_of):
    world = world_of("leaky")
    found = measure_theorem(world, (1, 2), trials=60)
    letter = measure_theorem(world, (1, 2), trials=60, guard=0.0, negative="keep", floor=0.0)
    assert sum(found.reasons.values()) == int(found.l1.isnan().sum()) > 5
    assert letter.reasons == {}
    assert (letter.denominator < 0).any()
    assert (found.scored < letter.scored).all()
    both = ~found.l1.isnan()
    torch.testing.assert_close(found.l1[both], letter.l1[both])
    assert float(found.agreement()[0]) == pytest.approx(float(found.agree[:, 0].nansum()) / 60)


def test_a_variant_of_the_tasks_own(world_of):
    """Fitted to each trial's task; exact in the limit, as the default is, but only for one who knows θ*."""
    world = world_of("block")
    variant = Variant("task", "task")
    found = measure_theorem(world, (4, 256), trials=60, variant=variant)
    prompts = world.sample_prompts(60, 256, seed=0)
    p = int((~found.l1[:, 1].isnan()).nonzero()[-1])
    kernel = fit_kernel(world, variant, task=int(prompts.tasks[p]))
    weights = kernel.weights(prompts.test_inputs[p : p + 1], prompts.inputs[p : p + 1])
    guess = kernel_regression(weights, prompts.answers[p : p + 1], world.symbols, (4, 256)).prediction
    one = Prompts(prompts.inputs[p : p + 1], prompts.answers[p : p + 1], prompts.test_inputs[p : p + 1])
    exact = bayesian_prediction(world, one, (4, 256)).prediction
    torch.testing.assert_close(found.l1[p, 1], (guess - exact).abs().sum(-1)[0, 1])


@pytest.mark.parametrize("divide", ["pre", "task"])
def test_the_floor_is_passed_on(world_of, divide):
    """Half of the largest kernel there could be: few demonstrations are left, and prompts without any are refused."""
    found, plain = (
        measure_theorem(world_of("block"), (1, 4), trials=30, variant=Variant(divide), floor=floor)
        for floor in (0.9, None)
    )
    assert found.reasons[Reason.NO_WEIGHT] > plain.reasons.get(Reason.NO_WEIGHT, 0) + 5
    assert found.settings.floor == 0.9


def test_a_sampled_moment_is_said_to_be_one(world_of):
    found = measure_theorem(world_of("block"), (8,), trials=10, samples=3000)
    assert 0 < found.settings.sampling_error < 0.3
    assert measure_theorem(world_of("block"), (8,), trials=10).settings.sampling_error == 0


def test_the_papers_world_in_small(han):
    """Table 3 in kind: distance falls, agreement rises, the posterior is sharp from the first demonstration on."""
    found = measure_theorem(han, (1, 8, 32), trials=60)
    assert found.mean("l1").diff().lt(0).all()
    assert float(found.mean("l1")[0]) > 0.5
    assert float(found.agreement()[-1]) > 0.7
    assert found.posterior.min() > 0.9
    assert found.condition > 1e9
    assert "80 states, 100 symbols; 60 trials" in repr(found)


def test_there_and_back(measured, tmp_path):
    again = TheoremResult.load(measured.save(tmp_path / "t.safetensors"))
    for name in (
        "l1",
        "linf",
        "agree",
        "task_l1",
        "posterior",
        "denominator",
        "amplification",
        "negative_share",
    ):
        assert torch.equal(getattr(again, name).nan_to_num(-1), getattr(measured, name).nan_to_num(-1))
    assert torch.equal(again.tasks, measured.tasks)
    for name in ("counts", "reasons", "condition", "rank", "world", "settings", "versions"):
        assert getattr(again, name) == getattr(measured, name)


def test_tables(measured):
    frame = measured.to_dataframe()
    assert len(frame) == 120 * 4
    row = frame[(frame.trial == 7) & (frame.n == 16)].iloc[0]
    assert row.l1 == float(measured.l1[7, 2])
    assert row.task == int(measured.tasks[7])
    table = measured.table()
    assert table.n.tolist() == [1, 4, 16, 64]
    assert table.l1.tolist() == pytest.approx(measured.mean().tolist())
    assert table.scored.tolist() == pytest.approx(
        [1 - float(c.isnan().double().mean()) for c in measured.l1.T]
    )


@pytest.mark.parametrize("name", ["sparse", "block", "short"])
@pytest.mark.parametrize("divide", ["no", "pre", "task"])
def test_terms_by_forming_the_moments(world_of, name, divide):
    world = world_of(name)
    terms = theorem_terms(world, Variant(divide), delta=0.1)
    largest = 0.0
    for task in range(world.tasks):
        moments = torch.zeros(2, world.tasks * world.hmm.states, world.tasks * world.hmm.states).double()
        for x in oracle.sequences(world.symbols, world.input_length):
            given = [math.fsum(row) for row in oracle.start_rows(world, x)]
            pre = math.fsum(p * g for p, g in zip(world.prior.tolist(), given, strict=True))
            if (given[task] if divide == "task" else pre) == 0:
                continue
            v = f64(oracle.features(world, x, divide, task))
            largest = max(largest, float(v.norm()))
            moments += f64([pre, given[task]])[:, None, None] * torch.outer(v, v)
        pre_inverse, own_inverse = (torch.linalg.pinv(m, hermitian=True, rtol=1e-12) for m in moments)
        exact = torch.linalg.matrix_norm(pre_inverse - own_inverse, 2)
        torch.testing.assert_close(terms.eps_theta[task], exact, rtol=1e-6, atol=1e-8)
    assert terms.eta == pytest.approx(largest, rel=1e-10)
    torch.testing.assert_close(terms.bias, largest**2 * terms.eps_theta)
    assert terms.sampling(50) == pytest.approx(math.sqrt(math.log(4 * world.symbols / 0.1) / 50))
    torch.testing.assert_close(terms.bound(50), terms.bias + terms.sampling(50))


def test_a_bound_that_says_nothing_says_so(world_of):
    terms = theorem_terms(world_of("block"))
    assert terms.vacuous(10**9)
    assert "says nothing whatever n is, for 2 of 2 tasks" in str(terms)
    tight = replace(terms, eps_theta=f64([0.0, 1.0]))
    assert tight.vacuous(2)
    assert not tight.vacuous(100)
    with pytest.raises(TheoryError, match="n must be at least 1"):
        terms.sampling(0)
    with pytest.raises(TheoryError, match="delta must lie between 0 and 1; got 95"):
        theorem_terms(world_of("block"), delta=95.0)


@pytest.mark.parametrize(
    ("n", "trials", "message"),
    [
        ((), 5, "at least one demonstration; got ()"),
        ((0, 1), 5, "at least one demonstration; got (0, 1)"),
        ((4, 2), 5, "must rise"),
        ((1,), 0, "trials must be at least 1; got 0"),
    ],
)
def test_bad_requests_are_refused(world_of, n, trials, message):
    with pytest.raises(TheoryError) as error:
        measure_theorem(world_of("block"), n, trials)
    assert message in str(error.value)


def test_terms_there_and_back(world_of, tmp_path):
    found = theorem_terms(world_of("block"), Variant("no"))
    again = TheoremTerms.load(found.save(tmp_path / "t.safetensors"))
    assert torch.equal(again.bound(5), found.bound(5))
    assert again.variant == found.variant


def test_a_kernel_fitted_before(world_of):
    world = world_of("block")
    kernel = fit_kernel(world)
    one, two = (measure_theorem(world, (4,), trials=9, kernel=k) for k in (kernel, None))
    assert torch.equal(one.l1.nan_to_num(-1), two.l1.nan_to_num(-1))
    with pytest.raises(TheoryError, match="of this very world and variant"):
        measure_theorem(world, (4,), trials=9, kernel=kernel, variant=Variant("no"))
    with pytest.raises(TheoryError, match="of this very world and variant"):
        measure_theorem(world_of("leaky"), (4,), trials=9, kernel=kernel)
