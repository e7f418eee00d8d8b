"""Exact prediction on prompts, and the divergence of tasks, against the list of all histories of tasks and states."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from theory import enumerate as oracle
from theory.test_hmm import EXACT, f64

from icl_kernel_lens.theory.bayes import (
    Concentration,
    bayesian_prediction,
    divergences_from,
    posterior_concentration,
    task_divergences,
    task_prediction,
)
from icl_kernel_lens.theory.checks import TheoryError
from icl_kernel_lens.theory.mixture import Prompts, TaskMixture
from icl_kernel_lens.theory.presets import preset

DEMOS = {"block": 1, "leaky": 0, "short": 1, "long": 0, "sparse": 2}


@pytest.fixture(scope="session")
def asked(world_of):
    """Per world: prompts, and every number about them by listing."""
    made = {}

    def ask(name):
        if name not in made:
            world = world_of(name)
            prompts = world.sample_prompts(2, DEMOS[name], seed=1)
            rows = []
            for tokens in world.tokens(prompts).tolist():
                cut = [tokens[(DEMOS[name] - n) * (world.input_length + 2) :] for n in range(DEMOS[name] + 1)]
                rows.append(
                    [
                        (
                            oracle.prompt_probability(world, x),
                            oracle.task_posterior(world, x),
                            oracle.prediction(world, x),
                        )
                        for x in cut
                    ]
                )
            made[name] = world, prompts, rows
        return made[name]

    return ask


def test_predictions_posteriors_and_marginals(world, asked):
    world, prompts, rows = asked(world.name)
    for n in range(prompts.demos + 1):
        # the listing keeps the last n demonstrations, so that the test input is the same
        kept = replace(
            prompts,
            inputs=prompts.inputs[:, prompts.demos - n :],
            answers=prompts.answers[:, prompts.demos - n :],
        )
        found = bayesian_prediction(world, kept, [n])
        for i, row in enumerate(rows):
            marginal, posterior, prediction = row[n]
            assert float(found.log_marginal[i, 0].exp()) == pytest.approx(marginal, rel=1e-10)
            torch.testing.assert_close(found.posterior_with_input[i, 0], f64(posterior), **EXACT)
            torch.testing.assert_close(found.prediction[i, 0], f64(prediction), **EXACT)


def test_the_world_is_a_plain_hidden_markov_model(world):
    """The delimited model with its states split in two gives prompts the same probability."""
    prompts = world.sample_prompts(20, 6, seed=2)
    tokens = world.tokens(prompts)
    found = bayesian_prediction(world, prompts, [6])
    hmm = world.delimited_hmm
    torch.testing.assert_close(found.log_marginal[:, 0], hmm.log_probability(tokens), **EXACT)
    following = hmm.predict(tokens)
    assert following[:, -1].allclose(f64(world.delimiter_rate), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        found.prediction[:, 0], following[:, :-1] / (1 - world.delimiter_rate), **EXACT
    )


def test_all_counts_in_one_pass(world):
    prompts = world.sample_prompts(4, 5, seed=3)
    whole = bayesian_prediction(world, prompts)
    assert whole.counts == (0, 1, 2, 3, 4, 5)
    for n in range(6):
        cut = replace(prompts, inputs=prompts.inputs[:, :n], answers=prompts.answers[:, :n])
        alone = bayesian_prediction(world, cut, [n])
        for name in ("prediction", "posterior", "posterior_with_input", "log_marginal"):
            torch.testing.assert_close(getattr(whole, name)[:, n], getattr(alone, name)[:, 0])
    torch.testing.assert_close(whole.posterior[:, 0], world.prior.expand(4, -1))
    torch.testing.assert_close(whole.prediction.sum(-1), torch.ones(4, 6).double())


def test_order_of_demonstrations_matters_only_where_tasks_can_switch(world_of):
    for name, same in (("block", True), ("long", False)):
        world = world_of(name)
        prompts = world.sample_prompts(30, 4, seed=4)
        turned = replace(prompts, inputs=prompts.inputs.flip(1), answers=prompts.answers.flip(1))
        one, two = (bayesian_prediction(world, p, [4]).prediction for p in (prompts, turned))
        assert torch.allclose(one, two, atol=1e-12) == same


def test_impossible_prompts_are_minus_infinity_and_never_a_prediction(world_of):
    world = world_of("sparse")
    demo = torch.tensor([[[2, 0]]])  # neither task emits 0 after 2
    prompts = Prompts(demo, torch.tensor([[0]]), torch.tensor([[0, 1]]))
    found = bayesian_prediction(world, prompts)
    assert found.log_marginal[0, 0].isfinite()
    assert found.log_marginal[0, 1] == -math.inf
    assert found.prediction[0, 1].isnan().all()
    assert found.posterior[0, 1].isnan().all()
    assert not found.prediction[0, 0].isnan().any()


def test_one_task_only_can_have_given_this(world_of):
    """An input that only the second task emits settles it; P(Y | x, θ) is NaN for the other."""
    world = world_of("sparse")
    x = torch.tensor([[3, 3]])
    none = Prompts(torch.zeros(1, 0, 2, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.int64), x)
    found = bayesian_prediction(world, none)
    assert found.posterior_with_input[0, 0].tolist() == [0.0, 1.0]
    known = task_prediction(world, x)
    assert known[0].isnan().all()
    torch.testing.assert_close(known[1, 0], found.prediction[0, 0])


def test_task_prediction_by_listing(world):
    prompts = world.sample_prompts(6, 0, seed=6)
    found = task_prediction(world, prompts.test_inputs)
    for task in range(world.tasks):
        for i, x in enumerate(prompts.test_inputs.tolist()):
            joint = f64(oracle.answers(world, x, task))
            if joint.sum() > 0:
                torch.testing.assert_close(found[task, i], joint / joint.sum(), **EXACT)


def test_a_switching_delimiter_leaves_doubt(world_of):
    world = world_of("sparse")
    found = posterior_concentration(world, (0, 8, 32), trials=50)
    stays = (1 - 0.3) + 0.3 * world.prior
    assert (found.posterior <= stays[found.tasks][:, None] + 1e-9).all()


@pytest.mark.parametrize("counts", [(), (2, 1), (1, 1), (-1, 0), (0, 4)])
def test_counts_must_rise_and_be_there(world_of, counts):
    world = world_of("block")
    with pytest.raises(TheoryError, match="must rise from 0 or more to at most the 3 of the prompts"):
        bayesian_prediction(world, world.sample_prompts(2, 3, seed=0), counts)


def test_bad_requests_are_refused(world_of):
    world = world_of("block")
    with pytest.raises(TheoryError, match="task must lie between 0 and 1; got 2"):
        world.sample_prompts(1, 1, seed=0, task=2)
    with pytest.raises(TheoryError, match="demos must be at least 0; got -1"):
        world.sample_prompts(1, -1, seed=0)
    with pytest.raises(TheoryError, match=r"numbers of symbols are \[5, 7\]"):
        TaskMixture.merge("w", [world.hmm, world_of("leaky").hmm], input_length=1)
    with pytest.raises(TheoryError, match="leak must be a probability; got 1.5"):
        TaskMixture.merge("w", [world.hmm], input_length=1, leak=1.5)
    with pytest.raises(TheoryError, match="none named 'nowhere'"):
        preset("nowhere")
    with pytest.raises(TheoryError, match="length must be at least 1"):
        task_divergences(world, 0)


@pytest.mark.parametrize("length", [1, 2])
def test_divergences_by_listing(world, length):
    found = task_divergences(world, length)
    for a, b in {(0, 1), (world.tasks - 1, 0)}:
        exact = f64(oracle.divergence(world, a, b, length))
        torch.testing.assert_close(found.values[a, b], exact, rtol=1e-10, atol=1e-12)
    assert found.values.diagonal().abs().max() < 1e-12
    apart = found.values[~torch.eye(world.tasks, dtype=torch.bool)]
    assert found.eps_kl == float(apart.min())
    assert found.threshold == -math.log(world.eps_r * world.eps_d) if world.eps_d else math.inf
    assert found.holds == (found.eps_kl > found.threshold)


def test_divergences_grow_with_length_and_may_be_infinite(world_of):
    grown = [task_divergences(world_of("long"), length).eps_kl for length in range(1, 7)]
    assert grown == sorted(grown)
    assert task_divergences(world_of("sparse")).values[0, 1] == math.inf


def test_sampled_divergences_agree_within_their_error(world_of):
    world = world_of("leaky")
    exact, drawn = task_divergences(world, 3), task_divergences(world, 3, samples=4000)
    apart = ~torch.eye(3, dtype=torch.bool)
    z = (drawn.values - exact.values)[apart] / drawn.standard_error[apart]
    assert z.abs().max() < 4
    assert (drawn.standard_error[apart] > 0).all()
    assert (drawn.values.diagonal() == 0).all()


def test_an_impossible_outcome_is_infinitely_far_however_rare():
    """P = e^-800 is 0 in float64, and 0 × ∞ is not a number."""
    assert float(divergences_from(f64([-800.0, 0.0]), f64([[-math.inf, 0.0]]))) == math.inf
    assert float(divergences_from(f64([-math.inf, 0.0]), f64([[-3.0, 0.0]]))) == 0


def test_the_standard_error_falls_with_the_samples(world_of):
    few, many = (
        task_divergences(world_of("block"), samples=n, seed=1).standard_error[0, 1] for n in (500, 8000)
    )
    assert 3 < float(few / many) < 5.3


def test_the_posterior_concentrates_at_least_as_the_bound_says(world_of):
    """Where tasks never mix, log-odds grow by the divergence per demonstration on average."""
    world = world_of("block")
    found = posterior_concentration(world, (0, 1, 4, 16), trials=400, seed=1)
    own = found.divergences.values[found.tasks, 1 - found.tasks]
    growth = (found.log_odds[:, 3] - found.log_odds[:, 0]) / 16
    error = growth.std() / 20
    assert abs(float(growth.mean() - own.mean())) < 4 * float(error)
    assert (found.bound <= found.log_odds.mean(0)).all()
    assert found.posterior.mean(0).diff().gt(0).all()
    torch.testing.assert_close(found.posterior, found.log_odds.sigmoid())


def test_concentration_there_and_back(world_of, tmp_path):
    found = posterior_concentration(world_of("sparse"), (0, 1, 8), trials=30)
    again = Concentration.load(found.save(tmp_path / "c.safetensors"))
    for name in ("posterior", "log_odds", "tasks", "bound"):
        assert torch.equal(getattr(again, name), getattr(found, name))
    assert repr(again) == repr(found)
    table = found.table()
    ordered = sorted(found.log_odds[:, 2].tolist())
    assert table["log_odds_10"].iloc[2] == ordered[3]
    assert table["log_odds_90"].iloc[2] == ordered[26]
    assert table["ruled_out"].tolist() == found.log_odds.isposinf().double().mean(0).tolist()
    frame = found.to_dataframe()
    assert frame[(frame.trial == 4) & (frame.n == 8)].posterior.item() == float(found.posterior[4, 2])


def test_the_bound_grows_by_what_divergence_exceeds_the_threshold(world_of):
    found = posterior_concentration(world_of("wide"), (0, 3), trials=5)
    slope = found.divergences.eps_kl - world_of("wide").kl_threshold
    assert found.bound.tolist() == pytest.approx([0, 3 * slope])
    assert 0 < slope < found.divergences.eps_kl - 1
