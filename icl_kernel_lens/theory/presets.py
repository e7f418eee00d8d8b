"""Worlds with known parameters: the paper's size, and small ones to enumerate.

Worlds are drawn with a generator of their own; the same seed gives the same world.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from icl_kernel_lens.theory.checks import TheoryError, at_least
from icl_kernel_lens.theory.hmm import HMM
from icl_kernel_lens.theory.mixture import TaskMixture


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
    if name not in PRESETS:
        raise TheoryError(
            f"presets are {', '.join(PRESETS)}; there is none named {name!r}.", code="unknown-choice"
        )
    return PRESETS[name]()
