"""Operators of sequences, against listing every path."""

from __future__ import annotations

import pytest
import torch
from theory import enumerate as oracle
from theory.test_hmm import EXACT, f64
from theory.test_kernel import some_inputs

from icl_kernel_lens.theory.operators import (
    Inputs,
    enumerate_inputs,
    log_joint,
    log_start_rows,
    operator,
    sequence_index,
)


def test_operators_by_listing(world):
    listed = some_inputs(world)
    tokens = torch.tensor(listed)
    inputs = Inputs.of(world, tokens)
    full = operator(world.hmm, tokens)
    joint = log_joint(world, tokens).exp()
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
    rows = log_start_rows(world, tokens).exp()
    torch.testing.assert_close(rows, world.start @ operator(world.hmm, tokens))


def test_inputs_are_listed_in_order(world):
    inputs = enumerate_inputs(world)
    assert inputs.tokens.tolist() == [list(x) for x in oracle.sequences(world.symbols, world.input_length)]
    assert torch.equal(sequence_index(world.symbols, inputs.tokens), torch.arange(len(inputs.tokens)))
    assert float(inputs.log_pre.exp().sum()) == pytest.approx(1, abs=1e-12)
