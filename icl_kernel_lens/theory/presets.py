"""Worlds with known parameters: the paper's size, small ones to enumerate, and GINC.

Worlds are drawn with a generator of their own; the same seed gives the same world.

GINC (Xie et al., ICLR 2022, arXiv 2111.02080), with its published parameters: a hidden state is an entity (value v)
and a property (slot s); it emits memory[v, s], always. A concept is a hidden Markov model whose

    T = value matrix ⊗ slot matrix,      slot matrix = Σ_k softmax(u / 0.1)_k Π_k,   u uniform, Π_k random permutations

and the value matrix, 0.9 I + 0.1 × such a mix, is the same in all concepts. Slot 0 emits the delimiter "/", token 0.
The published generator draws from NumPy's global stream; the law here is its law, the draws are not.

It does not satisfy A1: in GINC the delimiter is an ordinary symbol after which the state goes on. For exact
prediction of a GINC document use the concepts' `HMM.log_probability` and `predict`; `Ginc.mixture` is the
same concepts with this package's own delimiter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from icl_kernel_lens.theory.checks import at_least, require
from icl_kernel_lens.theory.hmm import HMM
from icl_kernel_lens.theory.mixture import TaskMixture

DELIMITER = 0
"""The token "/"."""


def random_tasks(
    tasks: int,
    states: int,
    symbols: int,
    *,
    transition_concentration: float,
    emission_concentration: float,
    seed: int,
    spread_start: bool = False,
) -> list[HMM]:
    """Tasks with Dirichlet rows that each start in their first state, or (`spread_start`) in any."""
    for name, value in (("tasks", tasks), ("states", states), ("symbols", symbols)):
        at_least(value, 1, name)
    rng = np.random.default_rng(seed)

    def rows(count: int, concentration: float) -> Tensor:
        drawn = rng.dirichlet(np.full(count, concentration), size=states)
        return torch.from_numpy(drawn / drawn.sum(-1, keepdims=True))

    return [
        HMM(
            initial=rows(states, 1.0)[0] if spread_start else torch.eye(states, dtype=torch.float64)[0],
            transition=rows(states, transition_concentration),
            emission=rows(symbols, emission_concentration),
            allow_unreachable=True,
        )
        for _ in range(tasks)
    ]


def han2025(
    seed: int = 0,
    *,
    tasks: int = 8,
    states_per_task: int = 10,
    symbols: int = 100,
    input_length: int = 2,
    transition_concentration: float = 0.05,
    emission_concentration: float = 0.003,
) -> TaskMixture:
    """The paper's synthetic world: 8 tasks, 80 states, 100 observations (Appendix C).

    Departs from the paper where it is silent: the law of the parameters (Dirichlet here), l (2 here)
    and the delimiter (see `mixture`) are ours.
    """
    return TaskMixture.merge(
        "han2025",
        random_tasks(
            tasks,
            states_per_task,
            symbols,
            transition_concentration=transition_concentration,
            emission_concentration=emission_concentration,
            seed=seed,
        ),
        input_length=input_length,
    )


def random_world(
    name: str,
    tasks: int,
    states: int,
    symbols: int,
    length: int,
    *,
    seed: int,
    leak: float = 0.0,
    switch: float = 0.0,
    concentration: float = 1.0,
    prior: tuple[float, ...] | None = None,
    spread_start: bool = False,
) -> TaskMixture:
    """A small world: tasks with Dirichlet(`concentration`) rows, merged as `TaskMixture.merge` does.

    For the kernel to be more than a look-up, give it more symbols than a task has states.
    """
    return TaskMixture.merge(
        name,
        random_tasks(
            tasks,
            states,
            symbols,
            transition_concentration=concentration,
            emission_concentration=concentration,
            seed=seed,
            spread_start=spread_start,
        ),
        input_length=length,
        leak=leak,
        switch=switch,
        prior=None if prior is None else _exact(list(prior)),
    )


def _exact(rows: list) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def sparse() -> TaskMixture:
    """Two tasks with zeros: many inputs are impossible, some under one task only."""
    first = HMM(
        _exact([1.0, 0.0]),
        _exact([[0.0, 1.0], [0.6, 0.4]]),
        _exact([[0.5, 0.5, 0.0, 0.0], [0.0, 0.3, 0.7, 0.0]]),
    )
    second = HMM(
        _exact([0.2, 0.8, 0.0]),
        _exact([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.9, 0.1, 0.0]]),
        _exact([[0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 0.0, 0.5], [0.0, 1.0, 0.0, 0.0]]),
    )
    return TaskMixture.merge(
        "sparse",
        [first, second],
        input_length=2,
        switch=0.3,
        delimiter_rate=0.25,
        prior=_exact([0.3, 0.7]),
    )


PRESETS: Mapping[str, Callable[[], TaskMixture]] = {
    "han2025": han2025,
    "block": lambda: random_world("block", 2, 2, 5, 2, seed=1),
    "leaky": lambda: random_world("leaky", 3, 2, 7, 2, seed=2, leak=0.15, switch=0.2, prior=(0.5, 0.3, 0.2)),
    "short": lambda: random_world("short", 2, 3, 9, 1, seed=4, leak=0.3, prior=(0.6, 0.4), spread_start=True),
    "long": lambda: random_world("long", 2, 2, 3, 4, seed=3, leak=0.05, switch=0.1),
    "wide": lambda: random_world("wide", 2, 3, 20, 2, seed=0, concentration=0.5),
    "sparse": sparse,
}
"""`han2025`; then small worlds: `block` and `wide` (tasks never mix), `leaky`, `short` and `long` (they do), `sparse`."""


def preset(name: str) -> TaskMixture:
    """A world by name.

    Raises: TheoryError: no preset of that name.

    Example:

    >>> preset("block").describe().sizes
    '2 tasks, 4 states, 5 symbols'
    """
    require(
        name in PRESETS,
        f"presets are {', '.join(PRESETS)}; there is none named {name!r}.",
        code="unknown-choice",
    )
    return PRESETS[name]()


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
            require(
                0 <= slot < self.slots,
                f"slot must lie between 0 and {self.slots - 1}; got {slot}.",
                code="number-range",
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
    require(
        min(transition_temperature, start_temperature) > 0 and 0 <= value_identity <= 1,
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
