"""The experiments: each number again by plain loops on a few trials, the laws they must obey, and there and back."""

from __future__ import annotations

import math

import pytest
import torch
from theory.test_hmm import f64


@pytest.fixture(scope="session")
def ran(world_of):
    """Each experiment once, small."""
    from icl_kernel_lens.theory import experiments as e

    world = world_of("sparse")
    return {
        "retrieve_similar": e.retrieve_similar(world, (8, 3), trials=6, draws=5, seed=1),
        "output_format": e.output_format(world, 6, trials=12, seed=1),
        "representative": e.representative(world, 6, trials=6, sets=4, seed=1),
        "label_noise": e.label_noise(world, (0.0, 0.5, 1.0), 6, trials=12, seed=1),
        "softmax_kernels": e.softmax_kernels(world, (2, 6), temperatures=(0.1, 1.0, 1e6), trials=12, seed=1),
    }


NAMES = ("retrieve_similar", "output_format", "representative", "label_noise", "softmax_kernels")


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back(ran, name, tmp_path):
    from icl_kernel_lens.errors import LoadError
    from icl_kernel_lens.results import store
    from icl_kernel_lens.theory import Experiment

    found = ran[name]
    again = Experiment.load(found.save(tmp_path / "e.safetensors"))
    for measure, values in found.values.items():
        assert values.shape == (found.trials, len(found.settings), len(found.series))
        assert torch.equal(again.values[measure].nan_to_num(-9), values.nan_to_num(-9))
    for field in (
        "name",
        "question",
        "axis",
        "settings",
        "series",
        "findings",
        "measures",
        "facts",
        "options",
        "versions",
    ):
        assert getattr(again, field) == getattr(found, field), field
    tensors, meta = store.read(tmp_path / "e.safetensors", "TheoryExperiment")
    meta.pop("axis")
    store.write(tmp_path / "cut", "TheoryExperiment", tensors, meta)
    with pytest.raises(LoadError, match="whole TheoryExperiment"):
        Experiment.load(tmp_path / "cut")


def test_tables(ran):
    found = ran["label_noise"]
    table, frame = found.table(), found.to_dataframe()
    assert len(table) == 3 * 3 * 3
    row = table[(table.setting == 0.5) & (table.series == "Bayes") & (table.measure == "l1")].iloc[0]
    assert row["mean"] == pytest.approx(float(found.mean("l1")[1, 1]))
    assert row.low <= row["mean"] <= row.high
    assert len(frame) == 12 * 9
    one = frame[(frame.trial == 7) & (frame.setting == 1.0) & (frame.series == "Bayes, told the share")].iloc[
        0
    ]
    assert one.l1 == float(found.values["l1"][7, 2, 2])
    assert found.findings[0] in repr(found)
    assert found.scored[0, 0] == pytest.approx(1 - float(found.values["l1"][:, 0, 0].isnan().double().mean()))


def test_changes_are_paired():
    from icl_kernel_lens.theory.experiment import change

    before = f64([1.0, 5.0, 9.0, math.nan])
    word, mean, low, high = change(before - 1, before)
    assert (word, mean) == ("falls", -1.0)
    assert low == high == -1.0
    assert change(before + 1, before)[0] == "rises"
    assert change(before + f64([1.0, -1.0, 0.0, 0.0]), before)[0] == "shows no change"


# --- retrieval ---


def test_bias_and_variance_are_the_error():
    from icl_kernel_lens.theory.experiments import _decompose

    generator = torch.Generator().manual_seed(0)
    guess = torch.rand(3, 7, 4, generator=generator, dtype=torch.float64)
    guess[1, 2] = math.nan
    guess[2, 1:] = math.nan
    truth = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    bias, variance, error = _decompose(guess, truth)
    for t in range(2):
        made = [g for g in guess[t] if not g.isnan().any()]
        mean = sum(made) / len(made)
        spread = sum(float((g - mean).square().sum()) for g in made) / (len(made) - 1)
        assert float(variance[t]) == pytest.approx(spread)
        assert float(bias[t]) == pytest.approx(float((mean - truth[t]).square().sum()) - spread / len(made))
        assert float(error[t]) == pytest.approx(
            sum(float((g - truth[t]).square().sum()) for g in made) / len(made)
        )
    assert bias[2].isnan()


def test_bias_is_unbiased():
    """Draws whose mean is the truth: bias² is 0 on average, however few the draws."""
    from icl_kernel_lens.theory.experiments import _decompose

    generator = torch.Generator().manual_seed(1)
    guess = torch.randn(4000, 3, 2, generator=generator, dtype=torch.float64)
    bias, variance, _ = _decompose(guess, torch.zeros(4000, 2).double())
    assert abs(float(bias.mean())) < 0.05
    assert float(variance.mean()) == pytest.approx(2, abs=0.1)


def test_retrieval_keeps_the_most_similar(world_of):
    """The whole pool is the same however it is chosen; fewer have a smaller bandwidth when chosen, and chance leaves it."""
    from icl_kernel_lens.theory import retrieve_similar

    world = world_of("wide")
    for by in ("likelihood", "kernel"):
        found = retrieve_similar(world, (24, 6, 2), trials=12, draws=12, by=by)
        bandwidth = found.mean("bandwidth")
        for measure in found.measures:
            values = found.values[measure]
            torch.testing.assert_close(values[:, 0, 0], values[:, 0, 1], equal_nan=True)
            torch.testing.assert_close(values[:, 0, 2], values[:, 0, 3], equal_nan=True)
        assert bandwidth[:, 3].diff().lt(0).all()
        assert float(bandwidth[2, 3]) < 0.6 * float(bandwidth[2, 2])
        assert found.values["effective"][:, :, 2:] == pytest.approx(
            f64([24, 6, 2]).expand(12, -1)[..., None].expand(-1, -1, 2)
        )
        assert found.mean("variance")[:, 3].diff().gt(0).all()
        assert float(found.values["effective"][:, 1, 0].nanmean()) < 6


# --- labels ---


def test_noisy_prediction_by_listing(world_of):
    """Without noise it is exact Bayes; with noise, each demonstration's matrix by plain products."""
    from icl_kernel_lens.theory import bayesian_prediction
    from icl_kernel_lens.theory.experiments import noisy_prediction

    for name in ("leaky", "sparse"):
        world = world_of(name)
        prompts = world.sample_prompts(5, 2, seed=4)
        clean, posterior = noisy_prediction(world, prompts, 0.0)
        exact = bayesian_prediction(world, prompts, [2])
        torch.testing.assert_close(clean, exact.prediction[:, 0])
        torch.testing.assert_close(posterior, exact.posterior_with_input[:, 0])
        share, m = 0.3, world.symbols
        rows = world.start
        for p in range(5):
            weights = world.prior
            for x, y in zip(prompts.inputs[p], prompts.answers[p], strict=True):
                step = rows
                for token in x:
                    step = step * world.hmm.emission[:, token] @ world.hmm.transition
                with_y = step * world.hmm.emission[:, y] @ world.hmm.transition @ world.restart
                without = step @ world.hmm.transition @ world.restart
                weights = weights @ ((1 - share) * with_y + share / m * without)
            test = rows
            for token in prompts.test_inputs[p]:
                test = test * world.hmm.emission[:, token] @ world.hmm.transition
            answer = weights @ (test @ world.hmm.emission)
            found, posterior = noisy_prediction(world, prompts, share)
            torch.testing.assert_close(found[p], answer / answer.sum())
            seen = weights * test.sum(-1)
            torch.testing.assert_close(posterior[p], seen / seen.sum())


def test_labels_outside_the_world_are_noise(world_of):
    """They say of the task what their input says; it does not matter which they are."""
    from dataclasses import replace

    from icl_kernel_lens.theory.experiments import noisy_prediction

    world = world_of("leaky")
    prompts = world.sample_prompts(6, 4, seed=2)
    outside = replace(prompts, answers=prompts.answers + world.symbols)
    for one, two in zip(
        noisy_prediction(world, outside, 0.1, 2 * world.symbols),
        noisy_prediction(world, prompts, 1.0, 2 * world.symbols),
        strict=True,
    ):
        torch.testing.assert_close(one, two)


def test_noise_cannot_be_more_than_all(world_of):
    from icl_kernel_lens.theory import TheoryError
    from icl_kernel_lens.theory.experiments import noisy_prediction

    world = world_of("block")
    with pytest.raises(TheoryError, match="share of noise must be a probability; got 1.5"):
        noisy_prediction(world, world.sample_prompts(1, 1, seed=0), 1.5)


def test_renaming(ran):
    from icl_kernel_lens.theory.experiments import _derangement

    found = ran["output_format"]
    follows, keeps, mass = (found.values[name] for name in ("follows", "keeps", "mass"))
    # a regression follows any renaming as often as it was right; all it can give are labels shown
    for i in (1, 2):
        torch.testing.assert_close(follows[:, i, 0], follows[:, 0, 0], equal_nan=True)
    assert (mass[:, :, 0].nan_to_num(1) - 1).abs().max() < 1e-9
    torch.testing.assert_close(follows[:, 0], keeps[:, 0], equal_nan=True)
    # exact Bayes finds symbols that the world never emits impossible, and in doubt does not use them
    assert follows[:, 2, 1].isnan().all()
    assert not follows[:, 2, 2].isnan().any()
    assert float(mass[:, 2, 2].max()) < 0.02
    assert float(keeps[:, 2, 2].mean()) > float(keeps[:, 2, 0].nanmean())
    for count in (2, 5, 9):
        moved = _derangement(count, torch.Generator().manual_seed(count))
        assert sorted(moved.tolist()) == list(range(count))
        assert (moved != torch.arange(count)).all()


def test_wrong_labels(ran, world_of):
    from icl_kernel_lens.theory import TheoryError, label_noise, measure_theorem

    found = ran["label_noise"]
    same = measure_theorem(world_of("sparse"), (6,), trials=12, seed=1)
    torch.testing.assert_close(found.values["l1"][:, 0, 0], same.task_l1[:, 0], equal_nan=True)
    # with no noise, told Bayes is Bayes
    torch.testing.assert_close(found.values["l1"][:, 0, 1], found.values["l1"][:, 0, 2], equal_nan=True)
    l1 = found.mean("l1")
    assert l1[0, 0] < l1[1, 0] < l1[2, 0]
    assert found.values["posterior"][:, :, 0].isnan().all()
    with pytest.raises(TheoryError, match=r"shares must rise within 0 and 1; got \(0.5, 0.1\)"):
        label_noise(world_of("block"), (0.5, 0.1))


def test_told_bayes_gains_where_labels_matter(world_of):
    from icl_kernel_lens.theory import label_noise

    found = label_noise(world_of("sparse"), (0.0, 0.4), 24, trials=80)
    l1, made = found.mean("l1"), found.scored
    assert float(made[1, 2]) == 1
    assert float(made[1, 1]) < 1  # a wrong label can make the prompt impossible
    assert float(l1[1, 2]) < 0.1
    assert float(l1[1, 0]) > float(l1[0, 0]) + 0.1


# --- representative inputs ---


def test_inputs_come_from_their_source(world_of):
    from icl_kernel_lens.theory import enumerate_inputs
    from icl_kernel_lens.theory.experiments import _draw_inputs

    world = world_of("sparse")
    inputs = enumerate_inputs(world)
    tasks = torch.tensor([0, 1])
    own = inputs.log_given_task.exp().T
    possible = own > 0
    laws = {
        "task": own,
        "pre-training": inputs.log_pre.exp() * possible,
        "flat": possible.double(),
    }
    laws = {name: law / law.sum(-1, keepdim=True) for name, law in laws.items()}
    laws |= {f"half {name}": (own + laws[name]) / 2 for name in ("pre-training", "flat")}
    for name, law in laws.items():
        drawn = _draw_inputs(world, inputs, tasks, name, 20_000, torch.Generator().manual_seed(0))
        for t in range(2):
            share = drawn[t].bincount(minlength=len(inputs.tokens)).double() / 20_000
            assert (share - law[t]).abs().max() < 0.015, name
            assert (share[law[t] == 0] == 0).all()


def test_moment_distance_by_forming_the_moments(world_of):
    from icl_kernel_lens.theory import enumerate_inputs, fit_kernel, operator_features
    from icl_kernel_lens.theory.experiments import _moment_distance

    world = world_of("block")
    inputs, kernel = enumerate_inputs(world), fit_kernel(world)
    v = operator_features(inputs)
    demos = torch.randint(25, (3, 7), generator=torch.Generator().manual_seed(0))
    found = _moment_distance(v @ kernel.directions, demos, torch.diag(kernel.singular_values.square()))
    whole = (inputs.log_pre.exp()[:, None] * v).T @ v
    for row, at in zip(found, demos, strict=True):
        own = v[at].T @ v[at] / 7
        assert float(row) == pytest.approx(float((own - whole).norm() / whole.norm()), rel=1e-9)


def test_rank_correlation_is_spearmans():
    from scipy.stats import spearmanr

    from icl_kernel_lens.theory.experiments import _rank_correlation

    generator = torch.Generator().manual_seed(0)
    one, two = torch.rand(2, 4, 8, generator=generator, dtype=torch.float64)
    two[1, 3] = math.nan
    two[2] = 1.0
    two[3, 2:] = math.nan
    found = _rank_correlation(one, two)
    assert float(found[0]) == pytest.approx(float(spearmanr(one[0], two[0]).statistic))
    kept = ~two[1].isnan()
    assert float(found[1]) == pytest.approx(float(spearmanr(one[1][kept], two[1][kept]).statistic))
    assert found[2:].isnan().all()


def test_own_inputs_are_the_nearest_in_error(ran):
    found = ran["representative"]
    l1 = found.mean("l1")
    assert l1[0, 0] < l1[4, 0]
    assert found.values["moment"][:, :, 1:].isnan().all()
    assert set(found.facts) == {f"predicted, {source}" for source in found.settings}


# --- softmax ---


def test_softmax_kernels_by_plain_loops(ran, world_of):
    from icl_kernel_lens.theory import (
        Inputs,
        bayesian_prediction,
        enumerate_inputs,
        fit_kernel,
        operator_features,
    )

    found, world = ran["softmax_kernels"], world_of("sparse")
    prompts = world.sample_prompts(12, 6, seed=1)
    exact = bayesian_prediction(world, prompts, [6]).prediction[:, 0]
    every = enumerate_inputs(world)
    rows = operator_features(every)
    chance = every.log_pre.exp()
    size = float((chance[chance > 0] * rows[chance > 0].square().sum(-1)).sum())
    kernel = fit_kernel(world)
    for p in range(12):
        tokens = torch.cat([prompts.test_inputs[p : p + 1], prompts.inputs[p]])
        v = operator_features(Inputs.of(world, tokens))
        unit = v / v.norm(dim=-1, keepdim=True)
        phi = kernel.features(tokens)
        weights = {
            1: v[1:] @ v[0],
            2: (v[1:] @ v[0] / size / 0.1).exp(),
            3: (unit[1:] @ unit[0] / 0.1).exp(),
            4: (phi[1:] @ phi[0] / kernel.rank / 0.1).exp(),
            5: torch.ones(6).double(),
        }
        for j, w in weights.items():
            guess = torch.zeros(world.symbols).double()
            for share, y in zip(w / w.sum(), prompts.answers[p], strict=True):
                guess[y] += share
            assert float(found.values["l1_6"][p, 0, j]) == pytest.approx(
                float((guess - exact[p]).abs().sum()), rel=1e-9
            ), j
    # hot: all alike; the dot products do not have a temperature
    for j in (2, 3, 4):
        torch.testing.assert_close(
            found.values["l1_2"][:, 2, j], found.values["l1_2"][:, 2, 5], atol=1e-4, rtol=0
        )
    assert torch.equal(
        found.values["l1_2"][:, 0, 0].nan_to_num(-1), found.values["l1_2"][:, 2, 0].nan_to_num(-1)
    )


def test_the_best_temperature_is_chosen_on_other_trials(world_of):
    from icl_kernel_lens.theory import softmax_kernels

    differs = 0
    for seed in range(4):
        found = softmax_kernels(
            world_of("sparse"), (6,), temperatures=(0.03, 0.1, 0.3, 1.0, 3.0), trials=10, seed=seed
        )
        values = found.values["l1_6"]
        best = int(values[::2, :, 2].nanmean(0).argmin())
        differs += best != int(values[:, :, 2].nanmean(0).argmin())
        assert found.facts["best τ, n = 6, exp(v·v' / τ)"] == found.settings[best]
        assert found.facts["l1, n = 6, exp(v·v' / τ)"] == float(values[1::2, best, 2].nanmean())
    assert differs, "or the test could not tell"


def test_the_theorems_kernel_is_measured_the_same_way(ran, world_of):
    from icl_kernel_lens.theory import measure_theorem

    same = measure_theorem(world_of("sparse"), (2, 6), trials=12, seed=1)
    found = ran["softmax_kernels"]
    torch.testing.assert_close(found.values["l1_6"][:, 0, 0], same.l1[:, 1], equal_nan=True)
    torch.testing.assert_close(found.values["agree_2"][:, 0, 0], same.agree[:, 0], equal_nan=True)


def test_worlds(monkeypatch):
    from icl_kernel_lens.theory import experiments, measure_theorem, random_world

    def small(seed):
        return random_world("small", 2, 3, 6, 2, seed=seed)

    monkeypatch.setattr(experiments, "han2025", small)
    found = experiments.worlds_of_the_paper((3, 4), (1, 8), trials=12)
    assert found.trials == 2
    for j, options in enumerate(({}, experiments.LETTER)):
        same = measure_theorem(small(4), (1, 8), trials=12, **options)
        torch.testing.assert_close(found.values["l1"][1, :, j], same.mean("l1"))
        torch.testing.assert_close(found.values["agree"][1, :, j], same.agreement())
    assert "the paper's 1.322 lies" in found.findings[0]
    assert "2 worlds" in repr(found)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("retrieve_similar", {"sizes": (2, 4)}, "sizes must fall"),
        ("retrieve_similar", {"draws": 1}, "draws must be at least 2"),
        ("representative", {"sets": 2}, "sets must be at least 3"),
        ("softmax_kernels", {"temperatures": (0.0,)}, "temperatures be above 0"),
        ("softmax_kernels", {"counts": (4, 2)}, "counts must rise"),
        ("worlds_of_the_paper", {"seeds": (1,)}, "worlds must be at least 2"),
    ],
)
def test_bad_requests_are_refused(world_of, name, options, message):
    from icl_kernel_lens import theory

    world = () if name == "worlds_of_the_paper" else (world_of("block"),)
    with pytest.raises(theory.TheoryError, match=message):
        getattr(theory, name)(*world, **options)
