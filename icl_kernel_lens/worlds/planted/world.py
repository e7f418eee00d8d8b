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
from icl_kernel_lens.worlds.planted.roles import BOS, FEATURES, FIRST_LABEL, SCRATCH, SPREAD, PlantedHead


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
    seed: int = 0

    @property
    def longest(self) -> int:
        """The context in tokens."""
        return self.context or 2 * self.demos + 2

    @property
    def vocab(self) -> int:
        return FIRST_LABEL + self.labels + self.labels * self.inputs

    @cached_property
    def all_heads(self) -> Mapping[HeadRef, PlantedHead]:
        """Every head of the model: those given, carriers in layer 0 and idle heads elsewhere."""
        given = {h.ref: h for h in self.heads}
        if not any(h.role == "carrier" for h in self.heads):
            free = next(i for i in range(self.heads_per_layer) if HeadRef(0, i) not in given)
            given[HeadRef(0, free)] = PlantedHead(0, free, "carrier")
        places = (HeadRef(i, j) for i in range(self.layers) for j in range(self.heads_per_layer))
        return {ref: given.get(ref, PlantedHead(*ref, role="idle")) for ref in places}

    @cached_property
    def features(self) -> Float[Tensor, "vocab feature"]:
        """φ of every token, of length 1; 0 for tokens that are no input. In float64."""
        g = torch.Generator().manual_seed(self.seed)
        frame = torch.linalg.qr(torch.randn(FEATURES, FEATURES, generator=g, dtype=torch.float64))[0]
        own = torch.randn(self.labels, self.inputs, FEATURES, generator=g, dtype=torch.float64)
        points = frame[: self.labels, None] + SPREAD * own / FEATURES**0.5
        points = points / points.norm(dim=-1, keepdim=True)
        # Rounded to what the model holds, so that the closed form speaks of the same points.
        points = points.float().double().flatten(0, 1)
        return torch.cat([points.new_zeros(FIRST_LABEL + self.labels, FEATURES), points])

    @cached_property
    def classes(self) -> Int[Tensor, " vocab"]:
        """The class of every input token; −1 for tokens that are no input."""
        inputs = torch.arange(self.labels).repeat_interleave(self.inputs)
        return torch.cat([torch.full((FIRST_LABEL + self.labels,), -1), inputs])

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
                2 * n + 2 <= self.longest,
                f"a prompt must fit into the model's context; {n} demonstrations make {2 * n + 2} tokens, and the "
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
        demo = torch.arange(n)
        spans = torch.stack([1 + 2 * demo, 3 + 2 * demo], -1).expand(count, -1, -1)
        made = PromptSet.from_tokens(
            tokens,
            (2 + 2 * demo).expand(count, -1),
            labels,
            FIRST_LABEL + torch.arange(self.labels),
            test_labels=truth,
            demo_spans=spans,
            demo_set=torch.tensor(sets).repeat_interleave(tests_per_set)[:count],
        )
        roles = made.roles.clone()
        roles[:, 0] = int(TokenRole.SPECIAL)
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
        pairs = torch.stack([xs[:demos], FIRST_LABEL + labels], 1).flatten()
        start = torch.cat([torch.tensor([BOS]), pairs]).expand(tests, -1)
        return torch.cat([start, xs[demos:, None]], 1), labels.expand(tests, -1), truth
