"""The tests of the tests: valid under every null, equal to enumeration and to scipy, and able to see a kernel."""

from __future__ import annotations

import math
from itertools import permutations, product

import pytest
import torch

from icl_kernel_lens.locate.measure import p_values
from icl_kernel_lens.numbers.permutations import (
    benjamini_hochberg,
    broken_ties,
    hardest,
    p_against,
    p_answers_permuted,
    p_labels_permuted,
    tie_noise,
)

PROMPTS, DEMOS, LABELS = 25, 6, 2


def world(generator, *, per_set, reps, prompts=PROMPTS):
    """Demonstration labels shared within sets, and answers that know nothing of the demonstrations."""
    sets = torch.arange(prompts) // per_set
    labels = torch.randint(LABELS, (int(sets.max()) + 1, DEMOS), generator=generator)[sets]
    answer = torch.randint(LABELS, (prompts, reps), generator=generator)
    return sets, labels, answer


def p_value(weights, permuted, labels, answer, sets, seed):
    shape = (len(labels), 1, -1, DEMOS)
    found = p_values(weights.reshape(shape), permuted.reshape(shape), labels, answer, sets, LABELS, seed)
    return hardest({name: p.flatten() for name, p in found.items()}), found


NULLS = ["inputs", "positions", "words", "echo"]


@pytest.mark.parametrize("per_set", [1, 5])
@pytest.mark.parametrize("null", NULLS)
def test_p_values_are_valid_under_nulls(null, per_set):
    """P(p ≤ α) ≤ α, for weights that know of inputs, positions, label words, or of an answer that is already there.

    An echo's answer owes nothing to the demonstrations; what it echoes is the answer that is tested, so that its
    agreement is perfect.
    """
    generator = torch.Generator().manual_seed(NULLS.index(null) + 10 * per_set)
    heads, repeats = 1, 100
    every = []
    for repeat in range(repeats):
        sets, labels, answers = world(generator, per_set=per_set, reps=1)
        answer = answers[:, 0]
        order = torch.rand(int(sets.max()) + 1, DEMOS, generator=generator).argsort(1)[sets]
        again = labels.gather(1, order)
        noise = torch.rand(PROMPTS, heads, DEMOS, generator=generator)
        if null == "inputs":
            weights = permuted = noise**4
        elif null == "positions":
            weights = permuted = (0.3 * noise + torch.rand(heads, DEMOS, generator=generator)) ** 3
        else:
            wanted = torch.randint(LABELS, (heads,), generator=generator).expand(PROMPTS, -1)
            if null == "echo":
                wanted = answer[:, None].expand(-1, heads)
            weights, permuted = (
                0.05 * noise + (y[:, None] == wanted[..., None]).float() for y in (labels, again)
            )
        p, parts = p_value(weights, permuted, labels, answer, sets, repeat)
        every.append(p)
        if null == "echo":
            assert (parts["labels_permuted"] < 0.05).all(), "fixed weights alone would believe an echo"
    p = torch.cat(every)
    # At every α at once: the one-sided Kolmogorov–Smirnov distance, and what it exceeds once in a thousand times.
    p = p.sort().values
    over = (torch.arange(1, len(p) + 1) / len(p) - p).max()
    assert float(over) < (-math.log(0.001) / 2 / len(p)) ** 0.5


def test_a_kernel_is_seen():
    """Weights on the demonstrations of the answer's class, from the inputs: every test is passed."""
    generator = torch.Generator().manual_seed(0)
    sets, labels, _ = world(generator, per_set=5, reps=1, prompts=60)
    nearest = torch.randint(DEMOS, (60,), generator=generator)
    answer = labels.gather(1, nearest[:, None])[:, 0]
    weights = torch.nn.functional.one_hot(nearest, DEMOS).float()[:, None] + 0.01
    p, parts = p_value(weights, weights, labels, answer, sets, 0)
    assert set(parts) == {
        "labels_permuted",
        "labels_reread",
        "answers_permuted",
        "label_prior",
        "last_label",
        "first_demo",
        "commonest_answer",
        "positions",
    }
    assert float(p) < 0.01, "twelve sets: signs can be 4,096"
    p, single = p_value(weights, weights, labels, answer, torch.arange(60), 0)
    assert float(p) < 1e-4
    assert "answers_permuted" not in single


def test_labels_permuted_equals_enumeration():
    """Two sets of two prompts with three demonstrations: every pair of permutations, one by one."""
    generator = torch.Generator().manual_seed(3)
    sets = torch.tensor([0, 0, 1, 1])
    labels = torch.tensor([[0, 1, 2], [0, 1, 2], [1, 1, 2], [1, 1, 2]])
    answer = torch.tensor([0, 2, 1, 1])
    weights = torch.rand(4, 5, 3, generator=generator)
    noise = tie_noise(4, 3, generator)
    found = p_labels_permuted(weights, labels, answer, sets, noise)
    counts = []
    for a, b in product(permutations(range(3)), repeat=2):
        order = torch.tensor([a, a, b, b])
        vote = broken_ties(weights, labels.gather(1, order), noise)
        counts.append((vote == answer[:, None]).sum(0))
    counts = torch.stack(counts)
    torch.testing.assert_close(found, (counts >= counts[0]).double().mean(0))


def test_poisson_binomial_has_no_floor():
    """200 prompts of their own, all agreeing: p is the product of the prompts' chances, far below 1 / draws."""
    labels = torch.tensor([[0, 1, 2, 3]]).expand(200, -1)
    weights = torch.tensor([0.9, 0.05, 0.03, 0.02]).expand(200, 1, -1)
    noise = tie_noise(200, 4, torch.Generator().manual_seed(0))
    p = p_labels_permuted(weights, labels, torch.zeros(200, dtype=torch.long), torch.arange(200), noise)
    assert float(p.log()) == pytest.approx(200 * torch.tensor(0.25).log().item(), rel=1e-6)


def test_answers_permuted_equals_enumeration():
    vote = torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0], [1, 1]])
    answer, sets = torch.tensor([0, 1, 0, 1, 0]), torch.tensor([0, 0, 0, 1, 1])
    found = p_answers_permuted(vote, answer, sets)
    counts = torch.stack(
        [
            (vote == torch.cat([answer[:3][list(a)], answer[3:][list(b)]])[:, None]).sum(0)
            for a, b in product(permutations(range(3)), permutations(range(2)))
        ]
    )
    torch.testing.assert_close(found, (counts >= counts[0]).double().mean(0))


def test_against_a_control_is_the_exact_mcnemar_test():
    from scipy.stats import binomtest

    generator = torch.Generator().manual_seed(0)
    agree = torch.rand(80, 3, generator=generator) < torch.tensor([0.5, 0.7, 0.9])
    control = torch.rand(80, generator=generator) < 0.5
    found = p_against(agree, control[:, None], torch.arange(80))
    for head in range(3):
        better = int((agree[:, head] & ~control).sum())
        differ = int((agree[:, head] != control).sum())
        expected = binomtest(better, differ, alternative="greater").pvalue
        assert float(found[head]) == pytest.approx(expected, rel=1e-9)
    # Sets whole: signs of the sets' sums, enumerated.
    sets = torch.arange(80) // 10
    found = p_against(agree, control[:, None], sets)
    sums = torch.zeros(8, 3).index_add(0, sets, agree.float() - control[:, None].float())
    signs = torch.tensor(list(product((-1.0, 1.0), repeat=8)))
    expected = ((signs @ sums.abs()) >= sums.sum(0) - 1e-6).double().mean(0)
    torch.testing.assert_close(found, expected)


def test_adjusted_p_values_skip_what_was_not_tested():
    p = torch.tensor([0.01, float("nan"), 0.04, 0.03], dtype=torch.float64)
    expected = torch.tensor([0.03, float("nan"), 0.04, 0.04], dtype=torch.float64)
    torch.testing.assert_close(benjamini_hochberg(p), expected, equal_nan=True)
    assert benjamini_hochberg(torch.full((2,), float("nan"))).isnan().all()


def test_a_head_without_weights_has_no_vote():
    weights = torch.tensor([[[0.0, 0.0], [0.5, 0.1]]])
    vote = broken_ties(weights, torch.tensor([[1, 0]]), torch.zeros(1, 2))
    assert vote.tolist() == [[-1, 1]]


def test_a_place_in_the_prompt_is_no_kernel():
    """The answer is the second-to-last label, and so is the vote: only the head's own places say so."""
    generator = torch.Generator().manual_seed(0)
    sets, labels, _ = world(generator, per_set=1, reps=1, prompts=60)
    answer = labels[:, -2]
    weights = 0.01 * torch.rand(60, 1, DEMOS, generator=generator)
    weights[..., -2] = 1
    p, parts = p_value(weights, weights, labels, answer, sets, 0)
    assert float(p) == float(parts["positions"]) == 1
    assert max(float(value) for name, value in parts.items() if name != "positions") < 0.01
