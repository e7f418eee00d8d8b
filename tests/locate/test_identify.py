"""Identification by the model's own kernel: planted kernels and a pair that cancels, what both carry, who is looked at."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from worlds.planted.plans import best_kind, one

from icl_kernel_lens import Criteria, HeadRef, in_context_accuracy, read
from icl_kernel_lens.locate.conditions import MOST, Measurement
from icl_kernel_lens.locate.identify import (
    MOST_TOGETHER,
    Identification,
    candidates,
    expected_conditions,
    expected_kernel,
)
from icl_kernel_lens.numbers.influence import Estimate
from icl_kernel_lens.prompts.crossed import cross
from icl_kernel_lens.results.head_ranking import IDENTIFYING
from icl_kernel_lens.results.joint_effects import JointEffect
from icl_kernel_lens.worlds.planted.model import PlantedModel
from icl_kernel_lens.worlds.planted.roles import PlantedHead

KERNELS = {(1, 0): 2.0, (2, 1): 1.0}
OPPOSED, OPPOSING = HeadRef(1, 1), HeadRef(2, 0)


def planted():
    heads = [PlantedHead(*at, "kernel", gain=gain, bandwidth=0.4) for at, gain in KERNELS.items()]
    heads += [
        PlantedHead(*OPPOSED, "opposed_kernel", gain=1.5, bandwidth=0.4),
        PlantedHead(*OPPOSING, "opposing_kernel", gain=1.5, bandwidth=0.4),
    ]
    plan = one(*heads, labels=2, demos=6)
    return plan, PlantedModel.of(plan, best_kind()).model


def identification(plan, model, prompts, checkpoint=None):
    half = len(prompts) // 2
    evidence = read(model, prompts, keep=("label",), progress=False)
    return Identification.of(
        model,
        prompts,
        (torch.arange(half), torch.arange(half, len(prompts))),
        evidence,
        in_context_accuracy(model, prompts, evidence=evidence, progress=False),
        offsets=(0,),
        criteria=Criteria(),
        seed=0,
        checkpoint=checkpoint,
        progress=False,
    )


@pytest.fixture(scope="module")
def found():
    plan, model = planted()
    prompts = plan.prompts(count=32, tests_per_set=2)
    return plan, model, identification(plan, model, prompts)


def test_the_models_own_kernel_is_measured_on_prompts_of_both_halves(found):
    plan, _, own = found
    assert own.sample.rows is not None
    assert own.sample.rows.tolist() == list(range(32))
    assert own.influence.prompts is own.sample.prompts
    assert len(own.influence.places) == 2
    torch.testing.assert_close(
        own.influence.values.double(), plan.influence(own.sample.prompts), atol=1e-3, rtol=0
    )
    weights = plan.weights(own.sample.prompts)
    torch.testing.assert_close(own.measurement.weights.double(), weights, atol=1e-4, rtol=0)
    assert own.influence.has_kernel_part


def test_heads_that_follow_it_are_found_in_the_choosing_half(found):
    _, _, own = found
    fits, numbers = own.fitting()
    for at in (*KERNELS, tuple(OPPOSED), tuple(OPPOSING)):
        assert fits[at], at
        assert numbers["fit"][at] > 0.5
        assert numbers["fit_p"][at] < 0.05
    idle = ~numbers["fit"].isnan() & (numbers["fit"] < 0)
    assert not fits[idle].any()
    expected, _ = own.measurement.fits_of_all(own.sample.choosing)
    torch.testing.assert_close(numbers["fit"], expected, equal_nan=True)


def test_two_that_undo_one_another_are_named(found):
    _, _, own = found
    heads = [HeadRef(*at) for at in KERNELS] + [OPPOSED, OPPOSING]
    said = own.of_heads(heads)
    assert set(said.columns) == set(IDENTIFYING)
    assert said.cancelling == {OPPOSED, OPPOSING}
    assert float(said.columns["transports"][tuple(OPPOSED)]) == 1
    assert float(said.columns["transports"][tuple(OPPOSING)]) == -1
    for at in KERNELS:
        for name in ("fits", "looks", "transports", "carries_kernel", "needed"):
            assert float(said.columns[name][at]) == 1, (at, name)
    assert said.slope_of_model == pytest.approx(-1, abs=0.1)
    assert said.notes == ()
    assert float(said.columns["no_echo"][1, 0]) == 1
    fits = said.columns["fits"].clone()
    fits[tuple(OPPOSING)] = torch.nan
    assert own._undone({**said.columns, "fits": fits}) == frozenset(), "without the other, nothing undoes it"
    nothing = own.of_heads([])
    assert set(nothing.columns) == set(IDENTIFYING)
    assert all(values.isnan().all() for values in nothing.columns.values())
    assert nothing.cancelling == frozenset()


def test_where_labels_enter_elsewhere_no_echo_is_ruled_out(found, monkeypatch):
    _, _, own = found
    original = Measurement.of

    def half(self, heads, numbers):
        return replace(original(self, heads, numbers), labels_read=Estimate(0.5, 0.4, 0.6))

    monkeypatch.setattr(Measurement, "of", half)
    said = own.of_heads([HeadRef(1, 0)])
    assert said.columns["no_echo"][1, 0].isnan()
    (note,) = said.notes
    assert "hold 0.50 [0.40, 0.60] of the label part" in note
    assert "an echo of what enters there is not told from a kernel" in note


def test_the_share_of_the_kernel_is_measured_where_it_can_decide(found, monkeypatch):
    """Of heads of which no other condition surely fails."""
    _, _, own = found
    original, asked = Measurement.of, []

    def failing(self, heads, numbers):
        measured = original(self, heads, numbers)
        columns = {name: values.clone() for name, values in measured.columns.items()}
        for end in ("", "_low", "_high"):
            columns[f"input_shift{end}"][2, 1] = 0.0
        return replace(measured, columns=columns)

    shares = Measurement.kernel_shares
    monkeypatch.setattr(Measurement, "of", failing)
    monkeypatch.setattr(
        Measurement,
        "kernel_shares",
        lambda self, heads, *given: asked.append(heads) or shares(self, heads, *given),
    )
    said = own.of_heads([HeadRef(1, 0), HeadRef(2, 1)])
    assert asked == [[HeadRef(1, 0)]]
    assert float(said.columns["carries_kernel"][1, 0]) == 1
    assert said.columns["kernel_share"][2, 1].isnan()
    assert said.columns["carries_kernel"][2, 1].isnan()


def test_where_no_label_is_shown_twice_no_echo_is_ruled_out():
    plan, _ = planted()
    two = replace(plan, demos=2)
    prompts = two.prompts(count=64, tests_per_set=2)
    once = (prompts.demo_labels.diff(dim=-1) != 0).all(-1)
    prompts = prompts.select(once.nonzero()[:, 0].tolist())
    own = identification(two, PlantedModel.of(two, best_kind()).model, prompts)
    said = own.of_heads([HeadRef(1, 0)])
    assert float(said.columns["beyond_half_fit_low"][1, 0]) > 0
    assert said.columns["no_echo"][1, 0].isnan()
    assert [note for note in said.notes if note.startswith("no prompt shows two demonstrations of one label")]


def test_what_something_unseen_undoes_is_not_believed(found, monkeypatch):
    """More than all of the label part cannot be carried, unless a head that was measured carries the rest back."""
    _, _, own = found
    original = Measurement.of

    def more(self, heads, numbers):
        measured = original(self, heads, numbers)
        columns = {name: values.clone() for name, values in measured.columns.items()}
        for end, value in (("", 1.8), ("_low", 1.4), ("_high", 2.2)):
            columns[f"transport{end}"][1, 0] = value
        return replace(measured, columns=columns)

    monkeypatch.setattr(Measurement, "of", more)
    said = own.of_heads([HeadRef(1, 0), HeadRef(2, 1)])
    assert said.columns["transports"][1, 0].isnan()
    assert float(said.columns["transports"][2, 1]) == 1
    (note,) = said.notes
    assert note.startswith("L1H0: it carries more than all of the label part")
    seen = own.of_heads([HeadRef(1, 0), OPPOSING])
    assert float(seen.columns["transports"][1, 0]) == 1, "a head that was measured undoes it"
    assert seen.notes == ()


def test_joint_effects_are_of_every_set_and_in_closed_form(found):
    """Kernels' weights ignore labels, so that what sets carry is the sum of what their heads do."""
    plan, _, own = found
    heads = [HeadRef(1, 0), OPPOSING, HeadRef(2, 1)]
    joint = own.together(heads)
    sets = [set_ for size in (1, 2, 3) for set_ in combinations(heads, size)]
    assert [one.heads for one in joint] == sets
    prompts = own.sample.prompts.select(own.sample.reporting.tolist())
    part, votes = plan.label_part(prompts), torch.nn.functional.one_hot(prompts.demo_labels, 2).double()
    for one_set in joint:
        carried = torch.zeros_like(part)
        for ref in one_set.heads:
            head, weights = plan.all_heads[ref], plan.weights(prompts)[:, ref.layer, ref.head]
            sign = -1 if ref == OPPOSING else 1
            vote = sign * head.strength * (weights[..., None] * votes).sum(1)
            carried += vote - vote.mean(-1, keepdim=True)
        share = float((carried * part).sum() / part.square().sum())
        assert one_set.value == pytest.approx(share, abs=1e-3), one_set.heads
        assert one_set.low <= one_set.value <= one_set.high
    assert own.together([]) == ()


def test_of_many_heads_each_alone_and_all_are_measured(found, monkeypatch):
    _, _, own = found
    asked = []

    def noted(self, sets, numbers, name):
        asked.extend(sets)
        assert torch.equal(numbers, own.sample.reporting)
        return [Estimate(float(at), 0.0, 9.0) for at in range(len(sets))]

    monkeypatch.setattr(Measurement, "together", noted)
    heads = [HeadRef(layer, head) for layer in range(3) for head in range(3)]
    every = own.together(heads[:MOST_TOGETHER])
    assert len(every) == 2**MOST_TOGETHER - 1
    asked.clear()
    joint = own.together(heads)
    assert len(heads) == MOST_TOGETHER + 1
    assert asked == [(head,) for head in heads] + [tuple(heads)]
    assert joint[-1] == JointEffect(tuple(heads), float(len(heads)), 0.0, 9.0)
    assert [one.heads for one in own.together(heads[:1])] == [(heads[0],)]


def test_independent_prompts_are_crossed_and_read_anew():
    plan, model = planted()
    prompts = plan.prompts(count=32)
    own = identification(plan, model, prompts)
    assert own.sample.rows is None
    assert own.sample.prompts.same_as(cross(prompts, 2, model=None))
    assert len(own.sample.prompts.demo_set.unique()) == 16
    weights = plan.weights(own.sample.prompts)
    torch.testing.assert_close(own.measurement.weights.double(), weights, atol=1e-4, rtol=0)
    expected = plan.influence(own.sample.prompts)
    torch.testing.assert_close(own.influence.values.double(), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        own.measurement.weights[0].double(), plan.weights(prompts)[0], atol=1e-4, rtol=0
    )
    assert (plan.weights(prompts)[1] - own.measurement.weights[1].double()).abs().max() > 1e-2


def masks(**chosen):
    empty = torch.zeros(3, 20, dtype=torch.bool)
    found = {name: empty.clone() for name in ("votes", "matters", "fit", "label_shift", "carries")}
    for name, heads in chosen.items():
        for head in heads:
            found[name][head] = True
    return found


def test_candidates_are_taken_in_turns():
    """Those that fit best, and those whose cuts cost most on either side; a head that shifts alone is none."""
    fit, drop = torch.full((3, 20), torch.nan), torch.zeros(3, 20)
    fit[0, :3] = torch.tensor([0.3, 0.9, 0.6])
    drop[1, :4] = torch.tensor([0.2, -0.8, 0.5, torch.nan])
    chosen = masks(
        fit=[(0, 0), (0, 1), (0, 2)], votes=[(1, 0), (1, 1)], matters=[(1, 2), (1, 3)], label_shift=[(2, 0)]
    )
    part = torch.zeros(3, 20)
    every = candidates(chosen, fit, drop, part)
    assert every == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3)]
    assert all(isinstance(head, HeadRef) for head in every)
    assert candidates(masks(), fit, drop, part) == []
    assert candidates(masks(carries=[(2, 5)]), fit, drop, part) == [(2, 5)]


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5])
def test_the_first_of_each_turn_stay_when_there_are_too_many(monkeypatch, most):
    from icl_kernel_lens.locate import identify

    monkeypatch.setattr(identify, "MOST", most)
    fit, drop = torch.full((3, 20), torch.nan), torch.zeros(3, 20)
    fit[0, :3] = torch.tensor([0.3, 0.9, 0.6])
    drop[1, :2], drop[0, 1] = torch.tensor([0.2, -0.8]), 0.5
    part = torch.zeros(3, 20)
    part[2, :2] = torch.tensor([-0.4, 0.1])
    chosen = masks(fit=[(0, 0), (0, 1), (0, 2)], matters=[(1, 0), (1, 1), (0, 1)], carries=[(2, 0), (2, 1)])
    turns = [(0, 1), (2, 0), (1, 1), (0, 2), (2, 1), (0, 0), (1, 0)]
    assert candidates(chosen, fit, drop, part) == sorted(turns[:most])


def test_no_more_than_32():
    assert MOST == 32
    fit, drop = torch.rand(3, 20), torch.rand(3, 20)
    heads = [(layer, head) for layer in range(3) for head in range(20)]
    some = candidates(masks(fit=heads[:40], votes=heads[20:]), fit, drop, torch.zeros(3, 20))
    assert len(some) == 32
    assert sorted(some) == some
    best = sorted(heads[:40], key=lambda h: -float(fit[h]))[:16]
    most = sorted(heads[20:], key=lambda h: -float(drop[h]))[:16]
    assert set(best) <= set(some)
    assert set(most) <= set(some)


def test_what_it_will_cost_grows_with_the_prompts(found):
    plan, _, _ = found
    few, many = (plan.prompts(count=n, tests_per_set=2) for n in (16, 64))
    for of in (expected_kernel, lambda prompts: sum(expected_conditions(prompts))):
        assert 0 < of(few) < of(many) < 5 * of(few)
