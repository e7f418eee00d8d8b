"""Hidden Markov models in float64: sampling, probabilities, filtering.

    P(o[0:l] | p_0) = p_0ᵀ diag(b_{o_0}) T diag(b_{o_1}) T … diag(b_{o_{l-1}}) 1     Han et al. (2025), Eq. 3
                                                       (the operator identity of Jaeger, 2000)
    T_x = Π_k diag(b_{x_k}) T,        T_x[s, s'] = P(x, next state s' | s)          Eq. 4

State s_t emits o_t and *then* moves to s_{t+1}: T[s, s'] = P(s' | s), b_o[s] = B[s, o] = P(o | s).
Everything is summed in log space, so an impossible sequence has log-probability −inf and an improbable one
a finite number, however small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from icl_kernel_lens.theory.checks import at_least, probabilities, require, tokens_in_range

ENUMERATE_AT_MOST = 300_000
"""Sequences that are enumerated without being asked twice; beyond, sample."""
_SAFE = 1e-280
"""Products of scaled probabilities above this have lost nothing to underflow."""
_CHUNK = 4_000_000
"""Numbers held at once when rows are summed again the slow way."""


def log_matmul(
    log_left: Float64[Tensor, "*rows inner"], right: Float64[Tensor, "inner outer"]
) -> Float64[Tensor, "*rows outer"]:
    """log(exp(log_left) @ right), exact however far apart the terms are.

    Each row is scaled by its largest term and multiplied; entries that come out so small that a term may
    have been lost are summed again as log-sum-exp. −inf in, −inf out; never NaN.
    """
    flat = log_left.reshape(-1, log_left.shape[-1])
    shift = flat.max(-1, keepdim=True).values
    shift = shift.masked_fill(shift.isneginf(), 0.0)
    product = (flat - shift).exp() @ right
    out = product.log() + shift
    small = product < _SAFE
    if small.any():
        possible = (~flat.isneginf()).double() @ (right > 0).double() > 0
        again = (small & possible).any(-1).nonzero().flatten()
        log_right = right.log()
        for rows in again.split(max(1, _CHUNK // right.numel())):
            out[rows] = torch.logsumexp(flat[rows, :, None] + log_right, 1)
    return out.reshape(*log_left.shape[:-1], right.shape[-1])


def shares(log_weights: Float64[Tensor, "*row outcome"]) -> Float64[Tensor, "*row outcome"]:
    """Shares that weights, given by their logarithms, have of their sum; NaN where all weights are 0."""
    total = torch.logsumexp(log_weights, -1, keepdim=True)
    return (log_weights - total).exp().masked_fill(total.isneginf(), float("nan"))


def make_generator(seed: int | torch.Generator) -> torch.Generator:
    """A generator of our own; the global seed is never read or set."""
    return seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)


def draw(weights: Float64[Tensor, "row outcome"], generator: torch.Generator) -> Int64[Tensor, " row"]:
    """One outcome a row, by inverting the cumulative sum; outcomes of probability 0 are never drawn."""
    total = weights.cumsum(-1)
    uniform = torch.rand(len(weights), 1, generator=generator, dtype=torch.float64) * total[:, -1:]
    last = weights.shape[1] - 1 - (weights > 0).flip(-1).to(torch.int64).argmax(-1)
    return torch.minimum((total <= uniform).sum(-1), last)


def distinct(
    sequences: Int64[Tensor, "*row position"],
) -> tuple[Int64[Tensor, "sequence position"], Int64[Tensor, "*row"]]:
    """The distinct sequences, and the number of each row's own among them."""
    each, where = sequences.flatten(0, -2).unique(dim=0, return_inverse=True)
    return each, where.reshape(sequences.shape[:-1])


def of_each(function: Callable[[Tensor], Tensor], sequences: Int64[Tensor, "*row position"]) -> Tensor:
    """A function of every sequence (its first axis), computed once for equal ones."""
    each, where = distinct(sequences)
    return function(each)[where]


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
    return (tokens * symbols ** torch.arange(tokens.shape[1] - 1, -1, -1)).sum(-1)


@dataclass(frozen=True, eq=False)
class HMM:
    """A hidden Markov model whose state emits, then moves.

    Raises: TheoryError: not probabilities, shapes that do not fit, or states that no path from
            `initial` reaches (pass `allow_unreachable=True` to keep them; `unreachable` names them).

    Example:

    >>> moves = torch.tensor([[0.5, 0.5], [0.0, 1.0]]).double()
    >>> coin = HMM(torch.tensor([1.0, 0.0]).double(), moves, torch.eye(2).double())
    >>> coin.log_probability(torch.tensor([[0, 1], [1, 1]])).exp()
    tensor([0.5000, 0.0000], dtype=torch.float64)
    """

    initial: Float64[Tensor, " state"]
    transition: Float64[Tensor, "state state"]
    """Row s: where state s goes."""
    emission: Float64[Tensor, "state symbol"]
    """Row s: what state s emits."""
    allow_unreachable: bool = False

    def __post_init__(self) -> None:
        for name, dims in (("initial", 1), ("transition", 2), ("emission", 2)):
            object.__setattr__(self, name, probabilities(getattr(self, name), name, dims))
        states = len(self.initial)
        require(
            self.transition.shape == (states, states) and len(self.emission) == states,
            f"initial, transition and emission must speak of the same states; initial has {states}, transition "
            f"is {tuple(self.transition.shape)}, emission {tuple(self.emission.shape)}.",
            code="theory-world",
        )
        require(
            self.allow_unreachable or not self.unreachable,
            f"every state must be reachable from `initial`; {list(self.unreachable)} of {states} are not. They "
            "cannot change any probability: remove them, or pass allow_unreachable=True to keep them.",
            code="theory-world",
        )

    @property
    def states(self) -> int:
        return len(self.initial)

    @property
    def symbols(self) -> int:
        return self.emission.shape[1]

    @cached_property
    def unreachable(self) -> tuple[int, ...]:
        """States that no path of positive probability from `initial` reaches."""
        seen = self.initial > 0
        moves = (self.transition > 0).double()
        for _ in range(self.states):
            seen = seen | (seen.double() @ moves > 0)
        return tuple((~seen).nonzero().flatten().tolist())

    def sample_with_states(
        self,
        count: int,
        length: int,
        *,
        seed: int | torch.Generator,
        initial: Float64[Tensor, "count state"] | None = None,
    ) -> tuple[Int64[Tensor, "count length"], Int64[Tensor, "count length"]]:
        """`count` sequences, and the states that emitted them; `initial` gives each its own start."""
        at_least(count, 1, "count")
        at_least(length, 1, "length")
        generator = make_generator(seed)
        state = draw(self.initial.expand(count, -1) if initial is None else initial, generator)
        tokens, states = [], []
        for t in range(length):
            if t:
                state = draw(self.transition[state], generator)
            states.append(state)
            tokens.append(draw(self.emission[state], generator))
        return torch.stack(tokens, 1), torch.stack(states, 1)

    def sample(
        self, count: int, length: int, *, seed: int | torch.Generator
    ) -> Int64[Tensor, "count length"]:
        """`count` sequences of `length` symbols from a generator of their own."""
        return self.sample_with_states(count, length, seed=seed)[0]

    def log_forward(
        self,
        tokens: Int64[Tensor, "sequence length"],
        initial: Float64[Tensor, "sequence state"] | None = None,
    ) -> Float64[Tensor, "sequence length state"]:
        """log P(o_0 … o_t, s_t) at every t: α_t = (α_{t-1} T) ∘ b_{o_t}."""
        tokens_in_range(tokens, self.symbols)
        log_emission = self.emission.log().T[tokens]
        start = (self.initial if initial is None else initial).log()
        alpha = [start + log_emission[:, 0]]
        for t in range(1, tokens.shape[1]):
            alpha.append(log_matmul(alpha[-1], self.transition) + log_emission[:, t])
        return torch.stack(alpha, 1)

    def log_probability(
        self,
        tokens: Int64[Tensor, "sequence length"],
        initial: Float64[Tensor, "sequence state"] | None = None,
    ) -> Float64[Tensor, " sequence"]:
        """log P(o) of each sequence (Eq. 3); −inf where it is impossible."""
        return torch.logsumexp(self.log_forward(tokens, initial)[:, -1], -1)

    def filter(
        self, tokens: Int64[Tensor, "sequence length"], *, next_state: bool = False
    ) -> Float64[Tensor, "sequence length state"]:
        """P(s_t | o_0 … o_t): the state that emitted o_t, given all up to it.

        `next_state=True`: P(s_{t+1} | o_0 … o_t), the state after the move. NaN from the token on that
        makes the sequence impossible: there is nothing to condition on.
        """
        found = normalised(self.log_forward(tokens))
        return found @ self.transition if next_state else found

    def predict(self, tokens: Int64[Tensor, "sequence length"]) -> Float64[Tensor, "sequence symbol"]:
        """P(o_l | o[0:l]): the next symbol. NaN for an impossible sequence."""
        return self.filter(tokens, next_state=True)[:, -1] @ self.emission

    def operator(self, tokens: Int64[Tensor, "input position"]) -> Float64[Tensor, "input state state"]:
        """T_x in full (Eq. 4). For small models; `TaskMixture.log_start_rows` is what everything else uses."""
        tokens_in_range(tokens, self.symbols)
        found = torch.eye(self.states, dtype=torch.float64).expand(len(tokens), -1, -1)
        for token in tokens.T:
            found = (found * self.emission.T[token][:, None]) @ self.transition
        return found
