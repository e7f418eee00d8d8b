"""The world of a planted model: the inputs of each class with their features, and the prompts made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.models.planted_build import Form
from icl_kernel_lens.prompts.promptset import PromptSet, TokenRole
from icl_kernel_lens.worlds.planted.roles import (
    BOS,
    FEATURES,
    FIRST_LABEL,
    SCRATCH,
    SPREAD,
    HeadRole,
    PlantedHead,
)
from icl_kernel_lens.worlds.planted.stream import Stream
from icl_kernel_lens.worlds.planted.wires import CARRIERS, NEEDS


@dataclass(frozen=True, eq=False)
class PlantedWorld:
    """The heads and the form of a planted model, its inputs and its prompts."""

    heads: tuple[PlantedHead, ...]
    layers: int
    heads_per_layer: int
    labels: int = 2
    form: Form = "plain"
    norm: bool = True
    direct: float = 0.0
    """Logits that a test input's own embedding adds to its class."""
    demos: int = 16
    """Demonstrations that the sinks and `expected` are computed for."""
    noise: float = 0.0
    """Share of demonstrations that show another class's label."""
    sink: float = 0.2
    """Share of attention on BOS, in the median prompt, of heads that attend to labels."""
    inputs: int = 48
    """Different inputs of each class."""
    context: int | None = None
    """Longest prompt in tokens; None: that of `demos` demonstrations."""
    d_head: int | None = None
    """None: the smallest even size that holds what is written."""
    separator: bool = False
    """Whether a token follows each label."""
    trailing: bool = False
    """Whether a token follows the test input; the answer is given there."""
    mlp_noise: float = 0.0
    """Size of what random MLPs write, into a subspace that nothing reads: the closed form stays as it is, and exact."""
    loudness: float = 0.0
    """How far the logarithms of inputs' sizes in the stream lie from 0, at most. A norm divides the size out: what an
    input's own token brings is read as it was, and what heads add to it counts the less the larger it is. The closed
    form counts it so, and stays exact; not with learned positions, which do not grow with the token."""
    seed: int = 0

    @property
    def stream(self) -> Stream:
        """The subspaces of the residual stream, with those that only some heads and tokens need."""
        roles = {*(head.role for head in self.heads), *self.missing_carriers}
        needed = {
            "before": "misbinder" in roles,
            "told_input": "input_carrier" in roles,
            "told_label": "label_carrier" in roles,
            "moved": "early_kernel" in roles,
            "hint": self.trailing,
            "is_separator": self.separator,
            "is_input": "harmful_key" in roles,
        }
        return Stream(self.labels, self.norm, tuple(name for name, wanted in needed.items() if wanted))

    @property
    def stride(self) -> int:
        """Tokens of a demonstration, its separator too."""
        return 2 + self.separator

    def length(self, demos: int) -> int:
        """Tokens of a prompt."""
        return 2 + self.stride * demos + self.trailing

    def label_positions(self, demos: int) -> Int[Tensor, " demo"]:
        """Where the labels stand."""
        return 2 + self.stride * torch.arange(demos)

    @property
    def longest(self) -> int:
        """The context in tokens."""
        return self.context or self.length(self.demos)

    @property
    def vocab(self) -> int:
        """BOS and padding, labels, inputs, and one token each that separates or trails where the world has them."""
        return self.after_inputs + self.separator + self.trailing

    @property
    def after_inputs(self) -> int:
        """The token behind the last input: the separator, or else the trailing one."""
        return FIRST_LABEL + self.labels + self.labels * self.inputs

    @property
    def missing_carriers(self) -> tuple[HeadRole, ...]:
        """Carriers that the heads given need, and that are not among them."""
        given: set[HeadRole] = {h.role for h in self.heads}
        needed = {"carrier", *(carrier for role in given for carrier in NEEDS.get(role, ()))}
        return tuple(role for role in CARRIERS if role in needed - given)

    @cached_property
    def all_heads(self) -> Mapping[HeadRef, PlantedHead]:
        """Every head of the model: those given, carriers in layer 0 and idle heads elsewhere."""
        given = {h.ref: h for h in self.heads}
        for role in self.missing_carriers:
            free = next(i for i in range(self.heads_per_layer) if HeadRef(0, i) not in given)
            given[HeadRef(0, free)] = PlantedHead(0, free, role)
        places = (HeadRef(i, j) for i in range(self.layers) for j in range(self.heads_per_layer))
        return {ref: given.get(ref, PlantedHead(*ref, role="idle")) for ref in places}

    @cached_property
    def _drawn(self) -> tuple[Tensor, Tensor]:
        """Orthogonal directions, and the inputs' own parts of φ."""
        g = torch.Generator().manual_seed(self.seed)
        frame = torch.linalg.qr(torch.randn(FEATURES, FEATURES, generator=g, dtype=torch.float64))[0]
        return frame, torch.randn(self.labels, self.inputs, FEATURES, generator=g, dtype=torch.float64)

    @property
    def frame(self) -> Float[Tensor, "feature feature"]:
        """Orthogonal directions of φ, of length 1; the first are the centres of classes."""
        return self._drawn[0]

    @property
    def centres(self) -> Float[Tensor, "label feature"]:
        """The centre of each class."""
        return self.frame[: self.labels]

    @cached_property
    def _directions(self) -> Float[Tensor, "direction feature"]:
        g = torch.Generator().manual_seed(self.seed + 3)
        drawn = torch.randn(2, FEATURES, generator=g, dtype=torch.float64)
        return drawn / drawn.norm(dim=-1, keepdim=True)

    @property
    def taste(self) -> Float[Tensor, " feature"]:
        """The direction of φ(x_i) that salience goes by, of length 1."""
        return self._directions[0]

    @property
    def mood(self) -> Float[Tensor, " feature"]:
        """The direction of φ(x) that a sink's score swings with, of length 1."""
        return self._directions[1]

    @property
    def words(self) -> Float[Tensor, " label"]:
        """c of every label, what a pair kernel adds to the scores of its word; evenly from −½ to ½."""
        return torch.linspace(-0.5, 0.5, self.labels, dtype=torch.float64)

    @cached_property
    def features(self) -> Float[Tensor, "vocab feature"]:
        """φ of every token, of length 1; 0 for tokens that are no input. In float64."""
        frame, own = self._drawn
        points = frame[: self.labels, None] + SPREAD * own / FEATURES**0.5
        points = points / points.norm(dim=-1, keepdim=True)
        # Rounded to what the model holds, so that the closed form speaks of the same points.
        points = points.float().double().flatten(0, 1)
        return torch.nn.functional.pad(
            points, (0, 0, FIRST_LABEL + self.labels, self.vocab - self.after_inputs)
        )

    @cached_property
    def sizes(self) -> Float[Tensor, " vocab"]:
        """How large each token's embedding is; 1 for tokens that are no input."""
        g = torch.Generator().manual_seed(self.seed + 6)
        drawn = 2 * torch.rand(self.vocab, generator=g, dtype=torch.float64) - 1
        return (self.loudness * drawn * (self.classes >= 0)).exp()

    @cached_property
    def classes(self) -> Int[Tensor, " vocab"]:
        """The class of every input token; −1 for tokens that are no input."""
        inputs = torch.arange(self.labels).repeat_interleave(self.inputs)
        return torch.nn.functional.pad(
            inputs, (FIRST_LABEL + self.labels, self.vocab - self.after_inputs), value=-1
        )

    @cached_property
    def scratch(self) -> Float[Tensor, "vocab scratch"]:
        """What idle heads read of every token; the same of all label words, or they would prefer some."""
        g = torch.Generator().manual_seed(self.seed + 1)
        drawn = torch.randn(self.vocab, SCRATCH, generator=g).double()
        drawn[FIRST_LABEL : FIRST_LABEL + self.labels] = drawn[FIRST_LABEL]
        return drawn

    @cached_property
    def idle_weights(self) -> Mapping[HeadRef, Float[Tensor, "which scratch scratch"]]:
        """Query, key, value and output weights of idle heads."""
        g = torch.Generator().manual_seed(self.seed + 2)
        drawn = (0.5 * torch.randn(len(self.all_heads), 4, SCRATCH, SCRATCH, generator=g)).double()
        return dict(zip(self.all_heads, drawn, strict=True))

    def prompts(
        self, demos: int | None = None, count: int = 400, *, tests_per_set: int = 1, seed: int = 0
    ) -> PromptSet:
        """Random prompts: labels drawn independently (at least two classes shown), no input twice.

        With `tests_per_set=k`, k prompts in a row share their demonstrations.

        Raises: PromptError: more demonstrations than the context or the inputs hold.
        """
        n = self.demos if demos is None else demos
        rules = {
            "number-range": (
                n >= 2 and count >= 1 and tests_per_set >= 1,
                "demos must be at least 2 (a prompt shows two classes), count and tests_per_set at least 1; got "
                f"{n}, {count} and {tests_per_set}.",
            ),
            "too-long": (
                self.length(n) <= self.longest,
                f"a prompt must fit into the model's context; {n} demonstrations make {self.length(n)} tokens, and the "
                f"context has {self.longest}. Plant the model with demos={n}, or draw fewer.",
            ),
            "task-pool": (
                n + tests_per_set <= self.inputs,
                "inputs must not repeat, even where all are of one class; a set needs "
                f"{n} + {tests_per_set} inputs a class, and the world has {self.inputs}. Plant the model with more "
                "inputs, or draw fewer.",
            ),
        }
        for code, (holds, message) in rules.items():
            if not holds:
                raise PromptError(message, code=code)
        first = (self.seed * 1_000_003 + seed) * 1_000_003
        sets = range(-(-count // tests_per_set))
        drawn = [self._draw_set(n, tests_per_set, torch.Generator().manual_seed(first + i)) for i in sets]
        tokens, labels, truth = (torch.cat(parts)[:count] for parts in zip(*drawn, strict=True))
        at = self.label_positions(n)
        spans = torch.stack([at - 1, at + 1], -1).expand(count, -1, -1)
        made = PromptSet.from_tokens(
            tokens,
            at.expand(count, -1),
            labels,
            FIRST_LABEL + torch.arange(self.labels),
            test_labels=truth,
            demo_spans=spans,
            demo_set=torch.tensor(sets).repeat_interleave(tests_per_set)[:count],
        )
        roles = made.roles.clone()
        roles[:, 0] = int(TokenRole.SPECIAL)
        roles[tokens >= self.after_inputs] = int(TokenRole.TEMPLATE)
        info = replace(
            made.info,
            task="planted",
            origin="generated",
            sets=len(sets),
            seed=seed,
            prepend_bos=True,
        )
        return replace(made, roles=roles, info=info)

    def _draw_set(
        self, demos: int, tests: int, generator: torch.Generator
    ) -> tuple[Int[Tensor, "test pos"], Int[Tensor, "test demo"], Int[Tensor, " test"]]:
        """One demonstration set with some test inputs, a row each: tokens, the labels shown, the true label."""
        labels = torch.randint(self.labels, (demos,), generator=generator)
        while len(labels.unique()) < 2:
            labels = torch.randint(self.labels, (demos,), generator=generator)
        truth = torch.randint(self.labels, (tests,), generator=generator)
        wrong = torch.rand(demos, generator=generator) < self.noise
        shift = torch.randint(1, self.labels, (demos,), generator=generator) * wrong
        order = torch.stack([torch.randperm(self.inputs, generator=generator) for _ in range(self.labels)])
        classes = torch.cat([(labels + shift) % self.labels, truth])
        rank = (classes[:, None] == classes).tril(-1).sum(1)  # how many of the class came before
        xs = FIRST_LABEL + self.labels + classes * self.inputs + order[classes, rank]
        shown = [xs[:demos], FIRST_LABEL + labels]
        if self.separator:
            shown.append(torch.full_like(labels, self.after_inputs))
        start = torch.cat([torch.tensor([BOS]), torch.stack(shown, 1).flatten()]).expand(tests, -1)
        tokens = torch.cat([start, xs[demos:, None]], 1)
        if self.trailing:
            tokens = torch.nn.functional.pad(tokens, (0, 1), value=self.vocab - 1)
        return tokens, labels.expand(tests, -1), truth
