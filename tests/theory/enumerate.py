"""The oracle: every number again, by listing all state paths and all sequences in plain Python.

Nothing here is shared with the code it checks: no tensors, no logarithms, no matrix products, no delimiters
turned into operators. Exponential in the length; for worlds of a few states.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

from icl_kernel_lens.theory.hmm import HMM
from icl_kernel_lens.theory.mixture import TaskMixture

Tokens = Sequence[int]


def sequences(symbols: int, length: int) -> list[tuple[int, ...]]:
    """All of them, in lexicographic order."""
    return list(itertools.product(range(symbols), repeat=length))


def state_paths(
    hmm: HMM, tokens: Tokens, initial: Sequence[float] | None = None
) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every path s_0 … s_l of possible states, and P(tokens, path): l emissions, l moves."""
    start = hmm.initial.tolist() if initial is None else list(initial)
    moves, emits = hmm.transition.tolist(), hmm.emission.tolist()
    states = range(hmm.states)

    def walk(path: tuple[int, ...], chance: float) -> Iterator[tuple[tuple[int, ...], float]]:
        if chance == 0:
            return
        if len(path) == len(tokens) + 1:
            yield path, chance
            return
        here = path[-1]
        for after in states:
            yield from walk((*path, after), chance * emits[here][tokens[len(path) - 1]] * moves[here][after])

    for first in states:
        yield from walk((first,), start[first])


def probability(hmm: HMM, tokens: Tokens, initial: Sequence[float] | None = None) -> float:
    """P(tokens)."""
    return math.fsum(chance for _, chance in state_paths(hmm, tokens, initial))


def filtered(hmm: HMM, tokens: Tokens, *, next_state: bool = False) -> list[float]:
    """P(last state that emitted | tokens), or of the state after it."""
    by_state = defaultdict(list)
    for path, chance in state_paths(hmm, tokens):
        by_state[path[-1 if next_state else -2]].append(chance)
    total = math.fsum(itertools.chain.from_iterable(by_state.values()))
    return [math.fsum(by_state[s]) / total for s in range(hmm.states)]


def operator(hmm: HMM, tokens: Tokens) -> list[list[float]]:
    """T_x[s][s'] = P(tokens, next state s' | first state s)."""
    rows = []
    for first in range(hmm.states):
        by_last = defaultdict(list)
        one = [float(s == first) for s in range(hmm.states)]
        for path, chance in state_paths(hmm, tokens, one):
            by_last[path[-1]].append(chance)
        rows.append([math.fsum(by_last[s]) for s in range(hmm.states)])
    return rows


def start_rows(world: TaskMixture, tokens: Tokens) -> list[list[float]]:
    """P(tokens, next state | task), one row a task."""
    rows = []
    for start in world.start.tolist():
        by_last = defaultdict(list)
        for path, chance in state_paths(world.hmm, tokens, start):
            by_last[path[-1]].append(chance)
        rows.append([math.fsum(by_last[s]) for s in range(world.hmm.states)])
    return rows


def answers(world: TaskMixture, tokens: Tokens, task: int) -> list[float]:
    """P(tokens, then symbol y | task) for every y."""
    start = world.start[task].tolist()
    return [probability(world.hmm, (*tokens, y), start) for y in range(world.symbols)]


def prompt_paths(world: TaskMixture, tokens: Tokens) -> Iterator[tuple[int, float]]:
    """Every history of tasks and states behind a token sequence: (its last task, its probability).

    Token `world.delimiter` ends an example wherever it stands; the state after the last token is not chosen.
    """
    moves, emits = world.hmm.transition.tolist(), world.hmm.emission.tolist()
    starts, restart = world.start.tolist(), world.restart.tolist()
    rate, end = world.delimiter_rate, world.delimiter

    def walk(at: int, task: int, state: int, chance: float) -> Iterator[tuple[int, float]]:
        token, last = tokens[at], at == len(tokens) - 1
        chance *= rate if token == end else (1 - rate) * emits[state][token]
        if chance == 0:
            return
        if last:
            yield task, chance
        elif token == end:
            for after, again in enumerate(restart[state]):
                for first, begin in enumerate(starts[after]):
                    if again * begin:
                        yield from walk(at + 1, after, first, chance * again * begin)
        else:
            for after, move in enumerate(moves[state]):
                if move:
                    yield from walk(at + 1, task, after, chance * move)

    for task, prior in enumerate(world.prior.tolist()):
        for first, begin in enumerate(starts[task]):
            if begin:
                yield from walk(0, task, first, prior * begin)


def prompt_probability(world: TaskMixture, tokens: Tokens) -> float:
    """P(tokens), delimiters included."""
    return math.fsum(chance for _, chance in prompt_paths(world, tokens))


def task_posterior(world: TaskMixture, tokens: Tokens) -> list[float]:
    """P(task behind the last token | tokens)."""
    by_task = defaultdict(list)
    for task, chance in prompt_paths(world, tokens):
        by_task[task].append(chance)
    total = math.fsum(itertools.chain.from_iterable(by_task.values()))
    return [math.fsum(by_task[t]) / total for t in range(world.tasks)]


def prediction(world: TaskMixture, tokens: Tokens) -> list[float]:
    """P(next token | tokens, it is a symbol)."""
    joint = [prompt_probability(world, (*tokens, y)) for y in range(world.symbols)]
    return [p / math.fsum(joint) for p in joint]


def divergence(world: TaskMixture, first: int, second: int, length: int) -> float:
    """KL(P(o | first) ‖ P(o | second)) over all sequences of `length`."""
    terms = []
    for tokens in sequences(world.symbols, length):
        p = probability(world.hmm, tokens, world.start[first].tolist())
        q = probability(world.hmm, tokens, world.start[second].tolist())
        if p > 0:
            terms.append(math.inf if q == 0 else p * math.log(p / q))
    return math.fsum(terms)


def features(world: TaskMixture, tokens: Tokens, divide: str = "pre", task: int | None = None) -> list[float]:
    """v(x) of an input that can occur."""
    rows = start_rows(world, tokens)
    given = [math.fsum(row) for row in rows]
    if divide == "no":
        by = 1.0
    elif divide == "pre":
        by = math.fsum(p * g for p, g in zip(world.prior.tolist(), given, strict=True))
    else:
        assert task is not None
        by = given[task]
    return [value / by for row in rows for value in row]


def regression(weights: Sequence[float], labels: Tokens, symbols: int) -> list[float]:
    """Σ_i e(y_i) K_i / Σ_i K_i."""
    total = math.fsum(weights)
    return [
        math.fsum(w for w, label in zip(weights, labels, strict=True) if label == y) / total
        for y in range(symbols)
    ]
