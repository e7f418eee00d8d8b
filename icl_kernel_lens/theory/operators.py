"""The operators T_x of hidden Markov sequences, and what is predicted from them.

    T_x = Π_k diag(b_{x_k}) T                 Han et al. (2025), Eq. 4: T_x[s, s'] = P(x, next state s' | s)
    P(x | p) = pᵀ T_x 1        P(x, Y | p) = pᵀ T_x B

Only the rows at the tasks' starts are ever needed, start_θᵀ T_x: task × state numbers instead of state ×
state. They are kept as logarithms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from icl_kernel_lens.theory.checks import at_least, require, tokens_in_range
from icl_kernel_lens.theory.hmm import HMM, log_matmul
from icl_kernel_lens.theory.mixture import TaskMixture

ENUMERATE_AT_MOST = 300_000
"""Inputs that are enumerated without being asked twice; beyond, sample."""


def operator(hmm: HMM, tokens: Int64[Tensor, "input position"]) -> Float64[Tensor, "input state state"]:
    """T_x in full (Eq. 4). For small models; `log_start_rows` is what everything else uses."""
    tokens_in_range(tokens, hmm.symbols)
    found = torch.eye(hmm.states, dtype=torch.float64).expand(len(tokens), -1, -1)
    for token in tokens.T:
        found = (found * hmm.emission.T[token][:, None]) @ hmm.transition
    return found


def log_start_rows(
    world: TaskMixture, tokens: Int64[Tensor, "input position"]
) -> Float64[Tensor, "input task state"]:
    """log start_θᵀ T_x: log P(x, next state | θ). Equal prefixes are computed once."""
    tokens_in_range(tokens, world.symbols)
    log_emission = world.hmm.emission.log().T
    rows = world.start.log()[None]
    parent = torch.zeros(len(tokens), dtype=torch.int64)
    for token in tokens.T:
        step, parent_of = torch.unique(torch.stack([parent, token]), dim=1, return_inverse=True)
        rows = log_matmul(rows[step[0]] + log_emission[step[1]][:, None], world.hmm.transition)
        parent = parent_of
    return rows[parent]


def log_joint(
    world: TaskMixture, inputs: Int64[Tensor, "input position"]
) -> Float64[Tensor, "input task symbol"]:
    """log P(x, Y | θ) = log start_θᵀ T_x B: the joint of input and answer."""
    return log_matmul(log_start_rows(world, inputs), world.hmm.emission)


def all_sequences(
    symbols: int, length: int, *, at_most: int = ENUMERATE_AT_MOST
) -> Int64[Tensor, "input position"]:
    """Every sequence, in lexicographic order: sequence i spells i in base `symbols`.

    Raises: TheoryError: more than `at_most` of them.
    """
    at_least(length, 1, "length")
    count = symbols**length
    require(
        count <= at_most,
        f"{symbols} symbols make {count:,} inputs of length {length}, more than the {at_most:,} that are "
        "enumerated. Sample them (samples=…), shorten input_length, or raise the limit.",
        code="theory-too-many",
    )
    place = symbols ** torch.arange(length - 1, -1, -1)
    return torch.arange(count)[:, None] // place % symbols


def sequence_index(symbols: int, tokens: Int64[Tensor, "input position"]) -> Int64[Tensor, " input"]:
    """The row of `all_sequences` that each sequence is."""
    place = symbols ** torch.arange(tokens.shape[1] - 1, -1, -1)
    return (tokens * place).sum(-1)


@dataclass(frozen=True, eq=False)
class Inputs:
    """Inputs with their operators' start rows: computed once, used by kernels of several variants and tasks."""

    tokens: Int64[Tensor, "input position"]
    log_rows: Float64[Tensor, "input task state"]
    log_given_task: Float64[Tensor, "input task"]
    """log P(x | θ) = log start_θᵀ T_x 1."""
    log_pre: Float64[Tensor, " input"]
    """log P(x | p_pre) = log Σ_θ p(θ) P(x | θ)."""

    @classmethod
    def of(cls, world: TaskMixture, tokens: Int64[Tensor, "input position"]) -> Inputs:
        rows = log_start_rows(world, tokens)
        given = torch.logsumexp(rows, -1)
        return cls(tokens, rows, given, torch.logsumexp(given + world.prior.log(), -1))


def enumerate_inputs(world: TaskMixture, *, at_most: int = ENUMERATE_AT_MOST) -> Inputs:
    """Every input of the world's length, in the order of `all_sequences`.

    Raises: TheoryError: more than `at_most` of them.
    """
    return Inputs.of(world, all_sequences(world.symbols, world.input_length, at_most=at_most))
