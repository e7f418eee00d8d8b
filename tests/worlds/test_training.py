"""The training loop: a model learns what its loss asks, and the record says when it was measured."""

from __future__ import annotations

import pytest
import torch

from icl_kernel_lens.worlds.training import Training, train


def fit_a_line(**settings):
    """A line through y = 3x, and its record."""
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1, bias=False)
    asked = {"steps": 200, "batch_size": 8, "learning_rate": 0.1, "warmup": 5, "weight_decay": 0.0}
    how = Training(**(asked | {"measure_every": 50} | settings))
    generator = torch.Generator().manual_seed(how.seed)

    def losses():
        x = torch.randn(how.batch_size, 1, generator=generator)
        loss = (model(x) - 3 * x).square().mean()
        return 2 * loss, loss

    record = train(model, how, losses, lambda: {"slope": model.weight.item()}, progress=False)
    return model, record


def test_a_model_learns_and_the_curve_is_of_it():
    model, record = fit_a_line()
    assert model.weight.item() == pytest.approx(3, abs=0.01)
    assert [point["step"] for point in record["curve"]] == [1, 50, 100, 150, 200]
    assert record["curve"][-1]["slope"] == model.weight.item()
    assert record["curve"][0]["loss"] > 100 * record["curve"][-1]["loss"]
    assert (record["plan"]["steps"], record["plan"]["warmup"], record["parameters"]) == (200, 5, 1)


def test_the_rate_rises_and_falls():
    """The first of 5 steps of warm-up moves a fifth as far; a step of the last tenth hardly moves."""
    start = fit_a_line(steps=1, warmup=1, measure_every=1)[1]["curve"][0]["slope"]
    slow = fit_a_line(steps=1, measure_every=1)[1]["curve"][0]["slope"]
    torch.manual_seed(0)
    before = torch.nn.Linear(1, 1, bias=False).weight.item()
    assert slow - before == pytest.approx((start - before) / 5, rel=1e-3)


def test_threads_are_as_before():
    before = torch.get_num_threads()
    fit_a_line(steps=1, threads=before + 1)
    assert torch.get_num_threads() == before
