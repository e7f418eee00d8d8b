"""Tasks merged into one world: its constants, its prompts, their layout."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from theory import enumerate as oracle
from theory.test_hmm import f64, fits, unchecked

from icl_kernel_lens.theory.bayes import bayesian_prediction
from icl_kernel_lens.theory.checks import TheoryError
from icl_kernel_lens.theory.mixture import Prompts, TaskMixture
from icl_kernel_lens.theory.presets import random_tasks


def test_constants_of_regularity(world_of):
    block, leaky = world_of("block"), world_of("leaky")
    assert (block.eps_r, block.eps_d) == (0.1, 1.0)
    assert leaky.eps_d == pytest.approx(
        0.2 * 0.2
    )  # ends in another's block, and is redrawn to the rarest task
    assert block.kl_threshold == pytest.approx(math.log(10))
    assert world_of("short").eps_d == 0
    assert world_of("short").kl_threshold == math.inf


def test_after_the_delimiter_comes_a_start(world):
    """A1, in the plain model: a state that emits the delimiter moves to starts only."""
    hmm, states = world.delimited_hmm, world.hmm.states
    assert (hmm.emission[states:, world.delimiter] == 1).all()
    assert (hmm.emission[:states, world.delimiter] == 0).all()
    starts = (world.hmm.initial > 0).repeat(2)
    assert (hmm.transition[states:][:, ~starts] == 0).all()


def test_merging_puts_tasks_side_by_side(world_of):
    tasks = random_tasks(2, 2, 3, transition_concentration=1.0, emission_concentration=1.0, seed=0)
    world = TaskMixture.merge("w", tasks, input_length=1, leak=0.2, switch=0.5)
    torch.testing.assert_close(world.hmm.transition[:2, :2], 0.8 * tasks[0].transition + 0.05)
    torch.testing.assert_close(world.hmm.transition[:2, 2:], torch.full((2, 2), 0.05).double())
    torch.testing.assert_close(world.hmm.emission[2:], tasks[1].emission)
    assert world.restart.tolist() == [[0.75, 0.25]] * 2 + [[0.25, 0.75]] * 2
    assert world.hmm.initial.tolist() == [0.5, 0, 0.5, 0]


def test_prompts_are_independent_draws_from_one_task(world):
    if world.name == "long":
        world = replace(world, input_length=2)
    prompts = world.sample_prompts(400, 9, seed=7, task=1)
    assert (prompts.tasks == 1).all()
    drawn = torch.cat([prompts.inputs, prompts.answers[..., None]], -1).flatten(0, 1)
    test = torch.cat([prompts.test_inputs, prompts.test_answers[:, None]], -1)
    place = world.symbols ** torch.arange(world.input_length, -1, -1)
    exact = f64(
        [p for x in oracle.sequences(world.symbols, world.input_length) for p in oracle.answers(world, x, 1)]
    )
    for seen, count in ((drawn, 3600), (test, 400)):
        assert fits((seen @ place).bincount(minlength=len(exact)).double(), count * exact)


def test_tasks_come_from_the_prior(world_of):
    world = world_of("leaky")
    tasks = world.sample_prompts(2000, 1, seed=8).tasks
    assert fits(tasks.bincount(minlength=3).double(), 2000 * world.prior)


def test_tokens_there_and_back(world):
    prompts = world.sample_prompts(3, 2, seed=9)
    tokens = world.tokens(prompts)
    length = world.input_length
    assert tokens.shape == (3, 2 * (length + 2) + length)
    assert (tokens[:, [length + 1, 2 * length + 3]] == world.delimiter).all()
    again = world.read_tokens(tokens)
    for name in ("inputs", "answers", "test_inputs"):
        assert torch.equal(getattr(again, name), getattr(prompts, name))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[0, 1, 2]], r"n·4 \+ 2 tokens for some n ≥ 0; these rows have 3"),
        ([[0]], "these rows have 1"),
        ([[0, 1, 2, 3, 0, 1]], "must end with the delimiter, token 5"),
        ([[0, 5]], "test inputs must lie between 0 and 4"),
        ([[0, 1, 5, 5, 0, 1]], "answers of demonstrations must lie between 0 and 4"),
        ([[0, 6, 1, 5, 0, 1]], "inputs of demonstrations must lie between 0 and 4; at (0, 0, 1) stands 6"),
    ],
)
def test_other_layouts_are_refused(world_of, tokens, message):
    with pytest.raises(TheoryError) as error:
        world_of("block").read_tokens(torch.tensor(tokens))
    assert message.replace("\\", "") in str(error.value)


def test_empty_prompts_are_refused(world_of):
    world = world_of("block")
    for prompts, length in ((1, 0), (0, 2), (1, 3)):
        prompts = Prompts(
            torch.zeros(prompts, 0, length, dtype=torch.int64),
            torch.zeros(prompts, 0, dtype=torch.int64),
            torch.zeros(prompts, length, dtype=torch.int64),
        )
        with pytest.raises(TheoryError, match="test inputs of 2 symbols"):
            bayesian_prediction(world, prompts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delimiter_rate": 0.0}, "delimiter_rate must lie strictly between 0 and 1; got 0.0"),
        ({"delimiter_rate": 1.0}, "got 1.0"),
        ({"input_length": 0}, "input_length must be at least 1; got 0"),
        ({"prior": f64([1.0, 0.0])}, "prior above 0; task 1 has 0"),
        ({"prior": f64([0.25, 0.75])}, "pre-training start p_pre"),
        ({"restart": f64([[1.0, 0.0]])}, r"state × task; with 2 tasks in prior and 4 states"),
        ({"restart": f64([[0.9, 0.0]] * 4)}, "rows of restart must sum to 1; row 0 sums to 0.9"),
        ({"start": f64([[1.0, 0, 0, 0]])}, r"are \(1, 4\) and"),
    ],
)
def test_bad_mixtures_are_refused(world_of, change, message):
    with pytest.raises(TheoryError, match=message):
        unchecked(TaskMixture, **(vars(replace(world_of("block"))) | change))
