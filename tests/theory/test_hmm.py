"""Every number of a hidden Markov model against the list of all its paths."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from theory import enumerate as oracle

from icl_kernel_lens.theory.checks import TheoryError
from icl_kernel_lens.theory.hmm import HMM, log_matmul
from icl_kernel_lens.theory.presets import random_world

EXACT = {"rtol": 1e-10, "atol": 1e-14}


def f64(rows):
    return torch.tensor(rows, dtype=torch.float64)


def unchecked(kind, **fields):
    """Build a frozen object past the tests' type checker, to meet its own checks."""
    made = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    made.__post_init__()
    return made


def chain():
    """0 emits a or b and stays or goes on; 1 emits b or c and is never left."""
    return HMM(f64([1.0, 0.0]), f64([[0.5, 0.5], [0.0, 1.0]]), f64([[0.75, 0.25, 0.0], [0.0, 0.5, 0.5]]))


def test_a_state_emits_and_then_moves():
    tokens = torch.tensor([[0, 1], [2, 2], [1, 0]])
    found = chain().log_probability(tokens).exp()
    torch.testing.assert_close(found, f64([0.75 * (0.5 * 0.25 + 0.5 * 0.5), 0.0, 0.25 * 0.5 * 0.75]))
    here = chain().filter(tokens[:1])[0]
    after = chain().filter(tokens[:1], next_state=True)[0]
    torch.testing.assert_close(here, f64([[1, 0], [1 / 3, 2 / 3]]))
    torch.testing.assert_close(after, f64([[0.5, 0.5], [1 / 6, 5 / 6]]))
    torch.testing.assert_close(chain().predict(tokens[:1]), after[None, 1] @ chain().emission)


@pytest.mark.parametrize("length", [1, 2, 4])
def test_every_sequence_has_the_probability_of_its_paths(world, length):
    hmm = world.hmm
    listed = oracle.sequences(hmm.symbols, length)
    if len(listed) > 50:
        listed = listed[7 :: len(listed) // 4]
    tokens = torch.tensor(listed)
    exact = f64([oracle.probability(hmm, x) for x in listed])
    torch.testing.assert_close(hmm.log_probability(tokens).exp(), exact, **EXACT)
    assert (hmm.log_probability(tokens).isneginf() == (exact == 0)).all()
    if len(listed) == hmm.symbols**length:
        assert float(exact.sum()) == pytest.approx(1, abs=1e-12)
    for next_state in (False, True):
        found = hmm.filter(tokens, next_state=next_state)[:, -1]
        for row, x, p in zip(found, listed, exact, strict=True):
            if p > 0:
                torch.testing.assert_close(row, f64(oracle.filtered(hmm, x, next_state=next_state)), **EXACT)
            else:
                assert row.isnan().all()


def test_a_start_of_ones_own_per_sequence(world):
    tokens = torch.tensor([[0, 1, 1], [1, 0, 2], [2, 2, 0]])
    starts = world.start[torch.tensor([0, 1, 0])]
    exact = [
        oracle.probability(world.hmm, x, s) for x, s in zip(tokens.tolist(), starts.tolist(), strict=True)
    ]
    torch.testing.assert_close(world.hmm.log_probability(tokens, starts).exp(), f64(exact), **EXACT)


def test_improbable_is_not_impossible():
    """Paths whose probabilities underflow alone, and one that overtakes the others only at the end."""
    rare = 1e-200
    hmm = HMM(f64([1 - rare, rare]), torch.eye(2).double(), f64([[1 - rare, rare, 0.0], [0.0, 0.0, 1.0]]))
    found = hmm.log_probability(torch.tensor([[1, 1, 1], [2, 2, 2], [1, 2, 2]]))
    torch.testing.assert_close(found, f64([3 * math.log(rare), math.log(rare), -math.inf]))
    late = HMM(
        f64([1.0, 0.0]), f64([[1 - rare, rare], [0.0, 1.0]]), f64([[1 - rare, rare, 0.0], [rare, 0.5, 0.5]])
    )
    # 0 → 1 at once (rare), then 1 emits the rare symbol (rare) before one that only 1 can emit
    exact = math.log(rare) + 2 * math.log(rare) + math.log(0.5)
    first = late.log_probability(torch.tensor([[1, 0, 2]]))
    torch.testing.assert_close(
        first, torch.logsumexp(f64([exact, 2 * math.log(rare) + math.log(0.5)]), 0)[None]
    )
    far = log_matmul(f64([[0.0, -2000.0]]), f64([[1.0, 0.0], [0.5, 0.5]]))
    torch.testing.assert_close(far, f64([[0.0, -2000 + math.log(0.5)]]))


def test_samples_follow_the_exact_probabilities(world):
    count, m = 4000, world.symbols
    tokens, states = world.hmm.sample_with_states(count, 3, seed=5)
    listed = oracle.sequences(m, 2)
    exact = f64([oracle.probability(world.hmm, x) for x in listed])
    seen = (tokens[:, :2] @ torch.tensor([m, 1])).bincount(minlength=len(listed)).double()
    assert (seen[exact == 0] == 0).all()
    assert fits(seen, count * exact)
    law = world.hmm.initial
    for t in (0, 1):
        pair = (states[:, t : t + 2] @ torch.tensor([world.hmm.states, 1])).bincount(
            minlength=world.hmm.states**2
        )
        assert fits(pair.double(), count * (law[:, None] * world.hmm.transition).flatten())
        law = law @ world.hmm.transition
    assert fits(tokens[:, 2].bincount(minlength=m).double(), count * (law @ world.hmm.emission))


def fits(seen, expected):
    """Chi-square, cells expected fewer than five times put together."""
    rare = expected < 5
    seen = torch.cat([seen[~rare], seen[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    seen, expected = seen[expected > 0], expected[expected > 0]
    return stats.chisquare(seen.numpy(), (expected * seen.sum() / expected.sum()).numpy()).pvalue > 1e-3


def test_sampling_has_its_own_generator():
    hmm = chain()
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, again = hmm.sample(5, 7, seed=3), hmm.sample(5, 7, seed=3)
    assert torch.equal(first, again)
    assert not torch.equal(first, hmm.sample(5, 7, seed=4))
    assert torch.equal(before, torch.random.get_rng_state())


def test_what_is_handed_in_is_copied():
    initial, moves, emits = f64([1.0, 0.0]), f64([[0.5, 0.5], [0.5, 0.5]]), torch.eye(2).double()
    hmm = HMM(initial, moves, emits)
    moves[0] = f64([0.0, 1.0])
    assert hmm.transition[0].tolist() == [0.5, 0.5]


GOOD = {"initial": [1.0, 0.0], "transition": [[0.5, 0.5], [0.5, 0.5]], "emission": [[1.0, 0.0], [0.0, 1.0]]}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("initial", [0.5, 0.4], "initial must sum to 1; it sums to 0.9"),
        ("initial", [[1.0, 0.0]], "initial must be a vector"),
        ("initial", [1.0], "same states; initial has 1"),
        ("transition", [[0.5, 0.5], [0.5, 0.6]], "rows of transition must sum to 1; row 1 sums to 1.1"),
        ("transition", [[1.5, -0.5], [0.5, 0.5]], r"transition must not be negative; at \(0, 1\) it is -0.5"),
        ("transition", [[0.5, 0.5]], "same states"),
        ("emission", [[1.0, 0.0], [math.nan, 1.0]], r"emission must be finite; 1 entries .* \(1, 0\)"),
        ("emission", [[], []], "emission must be a matrix with at least one entry"),
        ("transition", [[1.0, 0.0], [0.5, 0.5]], r"reachable from `initial`; \[1\] of 2 are not"),
    ],
)
def test_bad_models_are_refused(field, value, message):
    with pytest.raises(TheoryError, match=message):
        unchecked(HMM, **{name: f64(rows) for name, rows in (GOOD | {field: value}).items()})


def test_unreachable_states_may_be_kept_and_are_named():
    hmm = HMM(f64([1.0, 0.0]), f64([[1.0, 0.0], [0.5, 0.5]]), torch.eye(2).double(), allow_unreachable=True)
    assert hmm.unreachable == (1,)
    assert hmm.log_probability(torch.tensor([[1]])).isneginf().all()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.tensor([[0, 3]]), r"tokens must lie between 0 and 2; at \(0, 1\) stands 3"),
        (torch.tensor([[0, -1]]), "stands -1"),
        (torch.zeros(2, 0, dtype=torch.int64), "at least one token"),
        (torch.zeros(0, 3, dtype=torch.int64), "at least one sequence"),
    ],
)
def test_bad_tokens_are_refused(tokens, message):
    with pytest.raises(TheoryError, match=message):
        chain().log_probability(tokens)


@pytest.mark.parametrize(("count", "length"), [(0, 1), (1, 0)])
def test_nothing_cannot_be_sampled(count, length):
    with pytest.raises(TheoryError, match="must be at least 1; got 0"):
        chain().sample(count, length, seed=0)


def test_random_worlds_are_what_was_asked(world_of):
    assert (world_of("short").start > 0).sum(1).tolist() == [3, 3], "spread over the task's own states"
    assert (world_of("block").start == 1).sum(1).tolist() == [1, 1]
    one, two, again = (random_world("w", 2, 2, 4, 1, seed=seed) for seed in (1, 2, 1))
    assert torch.equal(one.hmm.emission, again.hmm.emission)
    assert not torch.equal(one.hmm.emission, two.hmm.emission)
