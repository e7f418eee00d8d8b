"""GINC's structure, as published: what a state is, what is shared, what differs between concepts."""

from __future__ import annotations

import pytest
import torch

from icl_kernel_lens.theory.bayes import bayesian_prediction
from icl_kernel_lens.theory.checks import TheoryError
from icl_kernel_lens.theory.presets import DELIMITER, draw_ginc


@pytest.fixture(scope="module")
def made():
    return draw_ginc()


def test_sizes(made):
    assert (made.values, made.slots) == (10, 10)
    assert len(made.concepts) == 10
    assert len(made.in_distribution) == len(made.out_of_distribution) == 5
    assert {(c.states, c.symbols) for c in made.concepts} == {(100, 50)}


def test_a_state_emits_its_memory_and_slot_0_the_delimiter(made):
    for concept in made.concepts:
        for value, slot in ((0, 0), (3, 0), (9, 4), (2, 7)):
            emits = concept.emission[made.state(value, slot)]
            assert emits[made.memory[value, slot]] == 1
            assert emits.sum() == 1
    assert (made.memory[:, 0] == DELIMITER).all()
    assert (made.memory[:, 1:] != DELIMITER).all()
    assert made.memory.max() < 50
    assert made.memory.unique().numel() > 30


def test_transitions_are_a_product_with_a_shared_slow_part(made):
    """P(v, s → v', s') = V[v, v'] S_c[s, s'], V the same for all concepts."""
    for concept, slots in zip(made.concepts, made.slot_transitions, strict=True):
        for (v, s), (w, t) in (((0, 1), (0, 5)), ((3, 2), (7, 9)), ((9, 9), (9, 0))):
            exact = made.value_transition[v, w] * slots[s, t]
            assert float(concept.transition[made.state(v, s), made.state(w, t)]) == pytest.approx(
                float(exact)
            )
    values = made.value_transition
    assert (values.diagonal() >= 0.9).all()
    for matrix in (values, *made.slot_transitions):  # mixes of permutations
        torch.testing.assert_close(matrix.sum(0), torch.ones(10).double())
        torch.testing.assert_close(matrix.sum(1), torch.ones(10).double())
        assert ((matrix > 0).sum(1) <= 11).all()
    assert not torch.allclose(made.slot_transitions[0], made.slot_transitions[1])


def test_temperatures(made):
    """Starts are near uniform (softmax of uniforms over 10), slot moves are peaked (over 0.1)."""
    for concept in made.concepts:
        assert concept.initial.max() / concept.initial.min() < torch.tensor(0.1).exp() + 1e-3
    flat = draw_ginc(transition_temperature=100.0)
    peak = made.slot_transitions.max(-1).values.mean()
    assert peak > 1.5 * flat.slot_transitions.max(-1).values.mean()
    sharp = draw_ginc(start_temperature=0.01)
    assert sharp.concepts[0].initial.max() > 0.1


def test_options(made):
    other = draw_ginc(symbols=7, values=3, slots=4, concepts=2, value_identity=0.0, seed=5)
    assert other.memory.shape == (3, 4)
    assert other.memory.max() < 7
    assert other.concepts[0].transition.shape == (12, 12)
    assert len(other.in_distribution) == 1
    again, moved = draw_ginc(), draw_ginc(seed=2)
    assert torch.equal(again.concepts[3].transition, made.concepts[3].transition)
    assert not torch.equal(moved.memory, made.memory)


def test_as_a_mixture(made):
    world = made.mixture(4, slot=3)
    assert (world.tasks, world.hmm.states, world.input_length) == (5, 500, 4)
    assert (world.start > 0).sum(1).tolist() == [10] * 5
    prompts = world.sample_prompts(40, 8, seed=0)
    first = prompts.inputs[..., 0].flatten()
    assert set(first.tolist()) <= set(made.memory[:, 3].tolist())
    found = bayesian_prediction(world, prompts, (0, 8))
    own = found.posterior.gather(-1, prompts.tasks[:, None, None].expand(-1, 2, 1)).squeeze(-1).mean(0)
    assert own[0] == pytest.approx(0.2)
    assert own[1] > 0.9
    assert made.mixture(2).start[1, 100:200].allclose(made.concepts[1].initial)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"symbols": 1}, "symbols must be at least 2; got 1"),
        ({"concepts": 1}, "concepts must be at least 2; got 1"),
        ({"transition_temperature": 0.0}, "temperatures must be above 0"),
        ({"value_identity": 1.1}, "value_identity between 0 and 1"),
    ],
)
def test_bad_parameters_are_refused(change, message):
    with pytest.raises(TheoryError, match=message):
        draw_ginc(**change)


def test_a_slot_that_is_not_there(made):
    with pytest.raises(TheoryError, match="slot must lie between 0 and 9; got 10"):
        made.mixture(2, slot=10)
