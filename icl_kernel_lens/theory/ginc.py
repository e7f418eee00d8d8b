"""The generator of GINC (Xie et al., ICLR 2022, arXiv 2111.02080), with its published parameters.

A hidden state is an entity (value v) and a property (slot s); it emits memory[v, s], always. A concept is a
hidden Markov model whose

    T = value matrix ⊗ slot matrix,      slot matrix = Σ_k softmax(u / 0.1)_k Π_k,   u uniform, Π_k random permutations

and the value matrix, 0.9 I + 0.1 × such a mix, is the same in all concepts. Slot 0 emits the delimiter "/", token 0.
The published generator draws from NumPy's global stream; the law here is its law, the draws are not.

Does not satisfy A1: in GINC the delimiter is an ordinary symbol after which the state goes on. For exact
prediction of a GINC document use the concepts' `HMM.log_probability` and `predict`; `mixture` is the
same concepts with this package's own delimiter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from icl_kernel_lens.theory.checks import TheoryError, at_least
from icl_kernel_lens.theory.hmm import HMM
from icl_kernel_lens.theory.mixture import TaskMixture

DELIMITER = 0
"""The token "/"."""


@dataclass(frozen=True, eq=False)
class Ginc:
    """A family of concepts over one memory."""

    concepts: tuple[HMM, ...]
    """In distribution first, then as many out of distribution."""
    memory: Int64[Tensor, "value slot"]
    """The token of each entity's property; column 0 is the delimiter."""
    slot_transitions: Float64[Tensor, "concept slot slot"]
    value_transition: Float64[Tensor, "value value"]

    @property
    def values(self) -> int:
        return len(self.memory)

    @property
    def slots(self) -> int:
        return self.memory.shape[1]

    @property
    def in_distribution(self) -> tuple[HMM, ...]:
        """The first half, which documents are made from."""
        return self.concepts[: len(self.concepts) // 2]

    @property
    def out_of_distribution(self) -> tuple[HMM, ...]:
        return self.concepts[len(self.concepts) // 2 :]

    def state(self, value: int, slot: int) -> int:
        """The hidden state of an entity's property."""
        return value * self.slots + slot

    def slot_start(self, slot: int) -> Float64[Tensor, " state"]:
        """The start of a published prompt's examples: one slot for all, any value."""
        start = torch.zeros(self.values, self.slots, dtype=torch.float64)
        start[:, slot] = 1 / self.values
        return start.flatten()

    def mixture(self, input_length: int, *, slot: int | None = None) -> TaskMixture:
        """The concepts in distribution as a task mixture, with a delimiter of its own (A1).

        `slot`: start every example in that slot; None: in the concept's own start.
        """
        tasks = self.in_distribution
        if slot is not None:
            if not 0 <= slot < self.slots:
                raise TheoryError(
                    f"slot must lie between 0 and {self.slots - 1}; got {slot}.", code="number-range"
                )
            tasks = tuple(
                HMM(self.slot_start(slot), task.transition, task.emission, allow_unreachable=True)
                for task in tasks
            )
        return TaskMixture.merge("ginc", tasks, input_length=input_length)


def draw_ginc(
    *,
    symbols: int = 50,
    values: int = 10,
    slots: int = 10,
    concepts: int = 10,
    transition_temperature: float = 0.1,
    start_temperature: float = 10.0,
    value_identity: float = 0.9,
    seed: int = 1111,
) -> Ginc:
    """GINC's generator. Published: 10 values, 10 slots, 10 concepts (5 + 5), 50, 100 or 150 symbols."""
    for name, number, least in (
        ("symbols", symbols, 2),
        ("values", values, 1),
        ("slots", slots, 1),
        ("concepts", concepts, 2),
    ):
        at_least(number, least, name)
    if min(transition_temperature, start_temperature) <= 0 or not 0 <= value_identity <= 1:
        raise TheoryError(
            "temperatures must be above 0 and value_identity between 0 and 1; got "
            f"{transition_temperature}, {start_temperature} and {value_identity}.",
            code="number-range",
        )
    rng = np.random.default_rng(seed)

    def softmax(count: int, temperature: float) -> Tensor:
        return torch.from_numpy(rng.random(count) / temperature).softmax(0)

    def mix(size: int) -> Tensor:
        """A softmax-weighted mix of `size` random permutation matrices: doubly stochastic."""
        moves = torch.stack(
            [torch.eye(size, dtype=torch.float64)[rng.permutation(size)] for _ in range(size)]
        )
        return torch.einsum("k,kij->ij", softmax(size, transition_temperature), moves)

    memory = torch.from_numpy(rng.integers(1, symbols, size=(values, slots)))
    memory[:, 0] = DELIMITER
    value_transition = value_identity * torch.eye(values, dtype=torch.float64) + (1 - value_identity) * mix(
        values
    )
    slot_transitions = torch.stack([mix(slots) for _ in range(concepts)])
    emission = torch.nn.functional.one_hot(memory.flatten(), symbols).double()
    made = tuple(
        HMM(
            initial=softmax(values * slots, start_temperature),
            transition=torch.kron(value_transition, slot),
            emission=emission,
        )
        for slot in slot_transitions
    )
    return Ginc(made, memory, slot_transitions, value_transition)
