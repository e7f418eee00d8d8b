"""Tasks merged into one hidden Markov model, and the prompts it is asked.

Han et al. (TMLR 2025), section 2, after Xie et al. (2022): task θ is a way to start, p_pre = Σ_θ p(θ) start_θ,
and a prompt is [x_1, y_1, delimiter, …, x_n, y_n, delimiter, x_test] with x of `input_length` symbols.

The paper leaves the delimiter open beyond A1 (after it, a new sequence starts). Here it is a token of its own,
with index m = `symbols`. At every step the state emits it with probability ε_r = `delimiter_rate` and then jumps
to the start of task θ' with probability `restart[s, θ']`; otherwise it emits a symbol by `hmm.emission` and
moves by `hmm.transition`. This *is* a hidden Markov model (`delimited_hmm`: each state split into one that
speaks and one that only emits the delimiter), and it satisfies A1 exactly. Because the rate is the
same in all states, the delimiter itself says nothing about the state; only where it restarts does.

    ε_r = delimiter_rate        ε_d = min over θ, and the states s in which an example of θ can end, of restart[s, θ]

so that staying in θ for n demonstrations has probability at least (ε_r ε_d)ⁿ Π P(x_i, y_i | θ): the form that
the proof of Theorem 1 needs. A restart that forgets the task (equal rows) would make demonstrations useless.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from icl_kernel_lens.theory.checks import at_least, probabilities, require, tokens_in_range
from icl_kernel_lens.theory.hmm import HMM, draw, log_matmul, make_generator


@dataclass(frozen=True)
class WorldInfo:
    """The sizes and constants of a world, carried by every result on it."""

    name: str
    tasks: int
    states: int
    symbols: int
    input_length: int
    eps_r: float
    eps_d: float

    @property
    def sizes(self) -> str:
        """In words."""
        return f"{self.tasks} tasks, {self.states} states, {self.symbols} symbols"


@dataclass(frozen=True, eq=False)
class Prompts:
    """Demonstrations and a test input each, as integers; `TaskMixture.tokens` lays them out in a row."""

    inputs: Int64[Tensor, "prompt demo position"]
    answers: Int64[Tensor, "prompt demo"]
    test_inputs: Int64[Tensor, "prompt position"]
    test_answers: Int64[Tensor, " prompt"] | None = None
    """A draw of the answer; not part of the prompt."""
    tasks: Int64[Tensor, " prompt"] | None = None
    """θ*: the task that all of the prompt was drawn from."""

    def __len__(self) -> int:
        return len(self.test_inputs)

    @property
    def demos(self) -> int:
        return self.inputs.shape[1]

    @property
    def true_tasks(self) -> Int64[Tensor, " prompt"]:
        """θ* of prompts of which it is known: those that a world drew."""
        assert self.tasks is not None
        return self.tasks


@dataclass(frozen=True, eq=False)
class TaskMixture:
    """A hidden Markov model that is a mixture of tasks, with a delimiter that restarts it.

    Raises: TheoryError: a field that is not probabilities, shapes that do not fit, a task of prior 0,
            an `hmm.initial` other than Σ_θ prior_θ start_θ, a delimiter rate outside (0, 1).
    """

    name: str
    hmm: HMM
    """The merged model over the m symbols, without the delimiter; its `initial` is p_pre."""
    start: Float64[Tensor, "task state"]
    """Row θ: where task θ starts; one-hot at s_θ in the paper."""
    prior: Float64[Tensor, " task"]
    restart: Float64[Tensor, "state task"]
    """Row s: the task that follows a delimiter emitted in state s."""
    delimiter_rate: float
    input_length: int
    """l: the symbols of an input x."""

    def __post_init__(self) -> None:
        for name, dims in (("start", 2), ("prior", 1), ("restart", 2)):
            object.__setattr__(self, name, probabilities(getattr(self, name), name, dims))
        at_least(self.input_length, 1, "input_length")
        tasks, states = len(self.prior), self.hmm.states
        require(
            self.start.shape == (tasks, states) and self.restart.shape == (states, tasks),
            f"start must be task × state and restart state × task; with {tasks} tasks in prior and {states} "
            f"states they are {tuple(self.start.shape)} and {tuple(self.restart.shape)}.",
            code="theory-world",
        )
        require(
            bool((self.prior > 0).all()),
            f"every task must have a prior above 0; task {int(self.prior.argmin())} has 0. Leave it out.",
            code="theory-world",
        )
        off = float((self.hmm.initial - self.prior @ self.start).abs().max())
        require(
            off <= 1e-12,
            f"hmm.initial must be the pre-training start p_pre = Σ_θ prior_θ start_θ; they differ by up to {off:.3g}. "
            "TaskMixture.merge does this.",
            code="theory-world",
        )
        require(
            0 < self.delimiter_rate < 1,
            f"delimiter_rate must lie strictly between 0 and 1; got {self.delimiter_rate}. At 0 no "
            "prompt with a demonstration is possible, at 1 none with an input.",
            code="number-range",
        )

    @classmethod
    def merge(
        cls,
        name: str,
        tasks: Sequence[HMM],
        *,
        input_length: int,
        prior: Float64[Tensor, " task"] | None = None,
        leak: float = 0.0,
        switch: float = 0.0,
        delimiter_rate: float = 0.1,
    ) -> TaskMixture:
        """Tasks side by side: block-diagonal transitions, each block with its task's start.

        `leak`: the chance that a move goes to any state of any task instead. `switch`: the chance that a
        delimiter is followed by a task drawn anew from the prior, instead of the task whose block the state is in.
        """
        require(
            len({task.symbols for task in tasks}) == 1,
            "tasks must be at least one hidden Markov model over the same symbols; their numbers of symbols "
            f"are {[task.symbols for task in tasks]}.",
            code="theory-world",
        )
        for what, value in (("leak", leak), ("switch", switch)):
            require(0 <= value <= 1, f"{what} must be a probability; got {value}.", code="theory-numbers")
        if prior is None:
            prior = torch.full((len(tasks),), 1 / len(tasks), dtype=torch.float64)
        block = torch.block_diag(*(task.transition for task in tasks))
        start = torch.block_diag(*(task.initial[None] for task in tasks))
        own = torch.block_diag(*(torch.ones(task.states, 1, dtype=torch.float64) for task in tasks))
        hmm = HMM(
            initial=prior @ start,
            transition=(1 - leak) * block + leak / len(block),
            emission=torch.cat([task.emission for task in tasks]),
            allow_unreachable=any(task.allow_unreachable for task in tasks),
        )
        return cls(
            name=name,
            hmm=hmm,
            start=start,
            prior=prior,
            restart=(1 - switch) * own + switch * prior,
            delimiter_rate=delimiter_rate,
            input_length=input_length,
        )

    @property
    def tasks(self) -> int:
        return len(self.prior)

    @property
    def symbols(self) -> int:
        """m: symbols of inputs and answers, the delimiter not counted."""
        return self.hmm.symbols

    @property
    def delimiter(self) -> int:
        """The delimiter's token: the number after the last symbol."""
        return self.symbols

    @property
    def eps_r(self) -> float:
        """ε_r: the least probability with which a state emits the delimiter."""
        return self.delimiter_rate

    @cached_property
    def eps_d(self) -> float:
        """ε_d: the least probability that the delimiter after an example of θ leads back to θ's start."""
        ends = self.start > 0
        moves = (self.hmm.transition > 0).double()
        for _ in range(self.input_length + 1):
            ends = ends.double() @ moves > 0
        return float(self.restart.T[ends].min())

    @property
    def kl_threshold(self) -> float:
        """ln(1 / (ε_r ε_d)): what A2 asks the tasks' divergence to exceed; inf where a task may be lost for good."""
        return math.inf if self.eps_d == 0 else -math.log(self.eps_r * self.eps_d)

    @cached_property
    def delimited_hmm(self) -> HMM:
        """The same world as one plain hidden Markov model over m + 1 tokens, each state split in two.

        State s speaks (emits a symbol, moves by T); state s + `states` only emits the delimiter and
        moves to a start, so A1 holds with probability 1. For checks: twice the states, nothing else gained.
        """
        rate = self.delimiter_rate

        def split(into: Tensor) -> Tensor:
            return torch.cat([(1 - rate) * into, rate * into], -1)

        return HMM(
            initial=split(self.hmm.initial),
            transition=torch.cat([split(self.hmm.transition), split(self.restart @ self.start)]),
            emission=torch.block_diag(self.hmm.emission, torch.ones(self.hmm.states, 1, dtype=torch.float64)),
            allow_unreachable=self.hmm.allow_unreachable,
        )

    def log_start_rows(self, tokens: Int64[Tensor, "input position"]) -> Float64[Tensor, "input task state"]:
        """log start_θᵀ T_x: log P(x, next state | θ). Equal prefixes are computed once.

        Nothing else is needed of the operators T_x (Eq. 4): task × state numbers instead of state × state.
        """
        tokens_in_range(tokens, self.symbols)
        log_emission = self.hmm.emission.log().T
        rows = self.start.log()[None]
        parent = torch.zeros(len(tokens), dtype=torch.int64)
        for token in tokens.T:
            step, parent_of = torch.unique(torch.stack([parent, token]), dim=1, return_inverse=True)
            rows = log_matmul(rows[step[0]] + log_emission[step[1]][:, None], self.hmm.transition)
            parent = parent_of
        return rows[parent]

    def log_joint(self, inputs: Int64[Tensor, "input position"]) -> Float64[Tensor, "input task symbol"]:
        """log P(x, Y | θ) = log start_θᵀ T_x B: the joint of input and answer."""
        return log_matmul(self.log_start_rows(inputs), self.hmm.emission)

    def sample_prompts(
        self, count: int, demos: int, *, seed: int | torch.Generator, task: int | None = None
    ) -> Prompts:
        """Prompts whose demonstrations and test input are independent draws from one task θ*.

        θ* comes from the prior, or is `task` in all. As in the paper's setting (Eq. 2) and unlike
        in a document of the world itself: the delimiter never loses the task here.
        """
        at_least(count, 1, "count")
        at_least(demos, 0, "demos")
        self.check_task(task)
        generator = make_generator(seed)
        law = self.prior if task is None else torch.eye(self.tasks, dtype=torch.float64)[task]
        tasks = draw(law.expand(count, -1), generator)
        inputs, answers = self.sample_demos(tasks, demos + 1, seed=generator)
        return Prompts(
            inputs=inputs[:, :demos],
            answers=answers[:, :demos],
            test_inputs=inputs[:, demos],
            test_answers=answers[:, demos],
            tasks=tasks,
        )

    def sample_demos(
        self, tasks: Int64[Tensor, " row"], count: int, *, seed: int | torch.Generator
    ) -> tuple[Int64[Tensor, "row demo position"], Int64[Tensor, "row demo"]]:
        """Independent demonstrations of each row's task: inputs and answers."""
        drawn, _ = self.hmm.sample_with_states(
            len(tasks) * count,
            self.input_length + 1,
            seed=seed,
            initial=self.start[tasks.repeat_interleave(count)],
        )
        drawn = drawn.reshape(len(tasks), count, -1)
        return drawn[..., :-1], drawn[..., -1]

    def check_task(self, task: int | None) -> None:
        """Raises: TheoryError: a number that no task has; None names none."""
        require(
            task is None or 0 <= task < self.tasks,
            f"task must lie between 0 and {self.tasks - 1}; got {task}.",
            code="number-range",
        )

    def check_prompts(self, prompts: Prompts) -> None:
        """Raises: TheoryError: no prompts, inputs of another length, or tokens out of range."""
        require(
            len(prompts) > 0 and prompts.test_inputs.shape[1] == self.input_length,
            f"prompts must hold test inputs of {self.input_length} symbols; theirs have shape "
            f"{tuple(prompts.test_inputs.shape)}. A prompt without a test input asks nothing.",
            code="theory-prompts",
        )
        tokens_in_range(prompts.test_inputs, self.symbols, "test inputs")
        if prompts.demos:
            tokens_in_range(prompts.inputs, self.symbols, "inputs of demonstrations")
            tokens_in_range(prompts.answers, self.symbols, "answers of demonstrations")

    def tokens(self, prompts: Prompts) -> Int64[Tensor, "prompt token"]:
        """[x_1, y_1, delimiter, …, x_n, y_n, delimiter, x_test], one row a prompt."""
        self.check_prompts(prompts)
        ends = torch.full_like(prompts.answers, self.delimiter)
        demos = torch.cat([prompts.inputs, prompts.answers[..., None], ends[..., None]], -1)
        return torch.cat([demos.flatten(1), prompts.test_inputs], 1)

    def read_tokens(self, tokens: Int64[Tensor, "prompt token"]) -> Prompts:
        """The prompts that `tokens` lays out as rows.

        Raises: TheoryError: rows that do not have that layout, or hold tokens that are no symbols.
        """
        step, length = self.input_length + 2, tokens.shape[1]
        demos, rest = divmod(length - self.input_length, step)
        require(
            len(tokens) > 0 and demos >= 0 and not rest,
            f"a prompt must have n·{step} + {self.input_length} tokens for some n ≥ 0; these rows have {length} "
            f"({len(tokens)} rows). Input, answer and delimiter of a demonstration are {step} tokens here.",
            code="theory-prompts",
        )
        split = tokens[:, : demos * step].reshape(len(tokens), demos, step)
        require(
            bool((split[..., -1] == self.delimiter).all()),
            f"every demonstration must end with the delimiter, token {self.delimiter}; some end with another. "
            f"Each takes {step} tokens: {self.input_length} of input, one answer, the delimiter.",
            code="theory-prompts",
        )
        found = Prompts(
            inputs=split[..., : self.input_length],
            answers=split[..., self.input_length],
            test_inputs=tokens[:, demos * step :],
        )
        self.check_prompts(found)
        return found

    def describe(self) -> WorldInfo:
        """The sizes and constants that results carry."""
        return WorldInfo(
            self.name,
            self.tasks,
            self.hmm.states,
            self.symbols,
            self.input_length,
            self.eps_r,
            self.eps_d,
        )
