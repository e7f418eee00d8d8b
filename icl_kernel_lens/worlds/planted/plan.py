"""A planted model's plan: its world, its prompts, and the closed form of everything it computes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.errors import ModelError, PromptError
from icl_kernel_lens.models.planted_build import Form, Kind, build, default_kind
from icl_kernel_lens.prompts import PromptSet
from icl_kernel_lens.prompts.promptset import Role as TokenRole
from icl_kernel_lens.worlds.planted.check import check_plan
from icl_kernel_lens.worlds.planted.closed_form import (
    Judged,
    Run,
    View,
    agreement_with,
    difference,
    echoes,
    expected_class,
    label_scores,
    simple_explanations,
)
from icl_kernel_lens.worlds.planted.roles import (
    ABOVE,
    BOS,
    CLEAR,
    FEATURES,
    FINDABLE,
    FIRST_LABEL,
    KERNELS,
    MATTERS,
    PERMUTATIONS,
    ROLES,
    SAMPLE,
    SCRATCH,
    SPREAD,
    SUNK,
    PlantedClass,
    PlantedHead,
)

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class PlantedPlan:
    """The heads, the world and the form of a planted model, and its closed form; `build()` makes the model."""

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

    def __post_init__(self) -> None:
        check_plan(self)

    # ------------------------------------------------------------------ the world

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
        carrier = next((h.ref for h in self.heads if h.role == "carrier"), None)
        if carrier is None:
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
        if n < 2 or count < 1 or tests_per_set < 1:
            raise PromptError(
                "demos must be at least 2 (a prompt shows two classes), count and tests_per_set at least 1; got "
                f"{n}, {count} and {tests_per_set}."
            )
        if 2 * n + 2 > self.longest:
            raise PromptError(
                f"a prompt must fit into the model's context; {n} demonstrations make {2 * n + 2} tokens, and the "
                f"context has {self.longest}. Plant the model with demos={n}, or draw fewer."
            )
        if n + tests_per_set > self.inputs:
            raise PromptError(
                "inputs must not repeat, even where all are of one class; a set needs "
                f"{n} + {tests_per_set} inputs a class, and the world has {self.inputs}. Plant the model with more "
                "inputs, or draw fewer."
            )
        first = FIRST_LABEL + self.labels
        rows, labels, truth, sets = [], [], [], []
        for group in range(-(-count // tests_per_set)):
            g = torch.Generator().manual_seed((self.seed * 1_000_003 + seed) * 1_000_003 + group)
            shown = torch.randint(self.labels, (n,), generator=g)
            while len(shown.unique()) < 2:
                shown = torch.randint(self.labels, (n,), generator=g)
            tests = torch.randint(self.labels, (tests_per_set,), generator=g)
            wrong = torch.rand(n, generator=g) < self.noise
            shift = torch.randint(1, self.labels, (n,), generator=g) * wrong
            order = torch.stack([torch.randperm(self.inputs, generator=g) for _ in range(self.labels)])
            classes = torch.cat([(shown + shift) % self.labels, tests])
            rank = (classes[:, None] == classes).tril(-1).sum(1)  # how many of the class came before
            xs = first + classes * self.inputs + order[classes, rank]
            pairs = torch.stack([xs[:n], FIRST_LABEL + shown], 1).flatten()
            for x, y in zip(xs[n:], tests, strict=True):
                rows.append(torch.cat([torch.tensor([BOS]), pairs, x[None]]))
                labels.append(shown)
                truth.append(y)
                sets.append(group)
        demo = torch.arange(n)
        spans = torch.stack([1 + 2 * demo, 3 + 2 * demo], -1).expand(count, -1, -1)
        made = PromptSet.from_tokens(
            torch.stack(rows[:count]),
            (2 + 2 * demo).expand(count, -1),
            torch.stack(labels[:count]),
            FIRST_LABEL + torch.arange(self.labels),
            test_labels=torch.stack(truth[:count]),
            demo_spans=spans,
            demo_set=torch.tensor(sets[:count]),
        )
        roles = made.roles.clone()
        roles[:, 0] = int(TokenRole.SPECIAL)
        info = replace(
            made.info,
            task="planted",
            origin="generated",
            sets=sets[count - 1] + 1,
            seed=seed,
            prepend_bos=True,
        )
        return replace(made, roles=roles, info=info)

    # ------------------------------------------------------------------ the closed form

    def weights(self, prompts: PromptSet) -> Float[Tensor, "prompt layer head demo"]:
        """Every head's attention from the answer position to the label positions, in closed form."""
        found = self._run(prompts, idle=True).weights
        rows = [found[ref] for ref in self.all_heads]
        return torch.stack(rows, 1).unflatten(1, (self.layers, self.heads_per_layer))

    def logits(self, prompts: PromptSet, without: Sequence[HeadRef] = ()) -> Float[Tensor, "prompt label"]:
        """The labels' logits, with the label edges of some heads cut and the rest renormalised."""
        return self._run(prompts, without=without).votes

    def kernel(self, prompts: PromptSet, bandwidth: float) -> Float[Tensor, "prompt demo"]:
        """The Gaussian kernel's weights of the demonstrations, which sum to 1."""
        return (self._view(prompts).alike / bandwidth**2).softmax(-1)

    def effects(self, prompts: PromptSet) -> Float[Tensor, "prompt layer head"]:
        """Logit difference as each head's label edges are cut, minus the clean one."""
        clean = self.logits(prompts)
        answer = clean.argmax(1)
        effect = clean.new_zeros(len(prompts), self.layers, self.heads_per_layer)
        for ref, head in self.all_heads.items():
            if head.strength:
                cut = self.logits(prompts, [ref])
                effect[:, ref.layer, ref.head] = difference(cut, answer) - difference(clean, answer)
        return effect

    def facts(self, prompts: PromptSet | None = None) -> pd.DataFrame:
        """Of every head, by the closed form: effect, agreement, best simple explanation, class, and if it is clear.

        `effect` is the share of the mean clean logit difference that goes as the head's label edges are cut;
        `agreement` how often the head's vote is the model's answer; `control` the largest of the same for the
        label prior, the last label, the first demonstration, always the commonest answer, and the head's own
        weights on permuted labels. `clear`: no threshold is near, and echoes follow the answer. `findable`: see `FINDABLE`, effect ≥ `MATTERS`.
        """
        import pandas as pd

        view = self.samples[1] if prompts is None else self._view(prompts)
        rows = self.judged(view, tuple(self.all_heads))
        return pd.DataFrame([asdict(judged) for judged in rows])

    def judged(self, view: View, refs: Sequence[HeadRef]) -> list[Judged]:
        """See `facts`."""
        clean = self.forward(view, self.sinks, idle=any(self.all_heads[ref].role == "idle" for ref in refs))
        answer = clean.votes.argmax(1)
        whole = float(difference(clean.votes, answer).mean()) or 1.0
        weights = torch.stack([clean.weights[ref] for ref in refs], 1)
        agreement = agreement_with(weights, view.shown, answer)
        g = torch.Generator().manual_seed(0)
        chance = torch.zeros_like(agreement)
        for _ in range(PERMUTATIONS):
            order = torch.rand(view.shown.shape[:2], generator=g).argsort(-1)
            permuted = view.shown.gather(1, order[..., None].expand_as(view.shown))
            chance += agreement_with(weights, permuted, answer) / PERMUTATIONS
        control = chance.clamp(min=simple_explanations(view.shown, answer))
        rows = []
        for i, ref in enumerate(refs):
            head, effect = self.all_heads[ref], 0.0
            if head.strength:
                cut = self.forward(view, self.sinks, without=[ref]).votes
                effect = 1 - float(difference(cut, answer).mean()) / whole
            votes = bool(agreement[i] - control[i] >= FINDABLE)
            clear = not CLEAR[0] < abs(effect) < CLEAR[1] or head.role == "word_preference"
            if head.role == "echo":
                clear = echoes(weights[:, i], view.shown, answer)
            rows.append(
                Judged(
                    head=str(ref),
                    layer=ref.layer,
                    index=ref.head,
                    role=head.role,
                    gain=head.strength,
                    bandwidth=head.width,
                    effect=effect,
                    agreement=float(agreement[i]),
                    control=float(control[i]),
                    findable=votes and effect >= MATTERS and head.role == "kernel",
                    expected=expected_class(head.role, effect),
                    clear=clear and (votes or head.role not in KERNELS),
                )
            )
        return rows

    @cached_property
    def _known(self) -> Mapping[HeadRef, Judged]:
        """`facts` of the heads that do anything."""
        refs = [ref for ref, head in self.all_heads.items() if head.role != "idle"]
        return dict(zip(refs, self.judged(self.samples[1], refs), strict=True))

    @property
    def expected(self) -> Mapping[HeadRef, PlantedClass]:
        """The class of every head."""
        known = self._known
        return {ref: known[ref].expected if ref in known else "neither" for ref in self.all_heads}

    @property
    def clear(self) -> Mapping[HeadRef, bool]:
        """Whether a head's class is clear of every threshold (see `facts`)."""
        return {ref: ref not in self._known or self._known[ref].clear for ref in self.all_heads}

    @property
    def findable(self) -> tuple[HeadRef, ...]:
        """Kernel heads that a locator must find."""
        return tuple(ref for ref, known in self._known.items() if known.findable)

    def table(self) -> pd.DataFrame:
        """One row a head: what it does, the class that a locator must give it, and why."""
        import pandas as pd

        expected, clear = self.expected, self.clear
        rows = []
        for ref, head in self.all_heads.items():
            effect = self._known[ref].effect if head.strength else 0.0
            loss = f"without its label edges {effect:.0%} of the logit difference goes"
            rows.append(
                {
                    "head": str(ref),
                    "role": head.role,
                    "gain": head.strength,
                    "bandwidth": head.width,
                    "effect": effect,
                    "expected": expected[ref],
                    "clear": clear[ref],
                    "why": f"{ROLES[head.role].does}; {loss if head.strength else 'no effect'}",
                }
            )
        return pd.DataFrame(rows)

    # ------------------------------------------------------------------ what the closed form is made of

    def _view(self, prompts: PromptSet) -> View:
        if prompts.tokens.shape[1] < 2 * prompts.demos + 2 or int(prompts.tokens.max()) >= self.vocab:
            raise PromptError(
                "the closed form speaks of a planted model's own prompts; draw them with .prompts()."
            )
        width = 2 * prompts.demos + 2
        tokens = prompts.tokens[:, :width]
        phi = self.features[tokens]
        alike = (phi[:, 1:-1:2] @ phi[:, -1, :, None]).squeeze(-1)
        shown = torch.nn.functional.one_hot(prompts.demo_labels, self.labels).double()
        return View(tokens, alike, shown, self.classes[tokens[:, -1]])

    def _run(self, prompts: PromptSet, *, without: Sequence[HeadRef] = (), idle: bool = False) -> Run:
        return self.forward(self._view(prompts), self.sinks, without=without, idle=idle)

    @cached_property
    def samples(self) -> tuple[View, View]:
        """What sinks are set by, and what classes are told by."""
        return self._view(self.prompts(count=200, seed=123_456)), self._view(
            self.prompts(count=SAMPLE, seed=987_654)
        )

    def with_heads(self, *more: PlantedHead) -> PlantedPlan:
        """The same plan with more heads; what depends on the world alone is not computed again."""
        longer = replace(self, heads=(*self.heads, *more))
        for name in ("features", "classes", "samples"):
            longer.__dict__[name] = getattr(self, name)
        return longer

    @cached_property
    def sinks(self) -> Mapping[HeadRef, float]:
        """BOS's score in each head that leaves a share there, above the labels' common score."""
        sinks: dict[HeadRef, float] = {}
        self.forward(self.samples[0], sinks, calibrate=True)
        return sinks

    def forward(
        self,
        view: View,
        sinks: Mapping[HeadRef, float],
        *,
        without: Sequence[HeadRef] = (),
        idle: bool = False,
        calibrate: bool = False,
    ) -> Run:
        """The answer position's own computation, layer after layer."""
        count, demos = view.alike.shape
        formed = torch.zeros(count, self.labels, dtype=torch.float64)
        formed[torch.arange(count), view.test] = self.direct
        taken_back = torch.zeros_like(formed)
        nothing = torch.zeros_like(view.alike)
        last = nothing.clone()
        last[:, -1] = 1.0
        weights: dict[HeadRef, Tensor] = {}
        for layer in range(self.layers):
            before, kept = formed, taken_back
            for ref in (HeadRef(layer, i) for i in range(self.heads_per_layer)):
                head = self.all_heads[ref]
                if head.role in SUNK:
                    scores = label_scores(head, view, before)
                    if calibrate:
                        share = math.log(self.sink / (1 - self.sink)) if self.sink else -math.inf
                        assert isinstance(sinks, dict)
                        sinks[ref] = max(float(scores.logsumexp(-1).median()) + share, -self.above(head))
                    others = torch.tensor([sinks[ref], math.log(demos + 1) - self.above(head)]).double()
                    row = torch.cat([scores, others.expand(count, -1)], -1).softmax(-1)[:, :demos]
                elif head.role == "uniform":
                    row = nothing + 1 / (2 * demos + 2)
                elif head.role in ("last_label", "carrier"):
                    row = last
                elif head.role == "idle" and idle:
                    query, key = self.idle_weights[ref][:2]
                    seen = self.scratch[view.tokens]
                    row = (seen @ key @ (seen[:, -1] @ query)[..., None]).squeeze(-1).softmax(-1)[:, 2::2]
                else:
                    row = nothing
                weights[ref] = row
                if head.role == "canceller":
                    taken_back = taken_back - kept
                elif head.strength and ref not in without:
                    vote = head.strength * (row[..., None] * view.shown).sum(1)
                    if head.role == "cancelled_kernel":
                        taken_back = taken_back + vote
                    else:
                        formed = formed - vote if head.role == "anti_kernel" else formed + vote
        return Run(weights, formed + taken_back)

    def above(self, head: PlantedHead) -> float:
        """How far a head's label positions stand above positions that are neither label nor BOS."""
        kernel = head.role in (*KERNELS, "anti_kernel")
        return ABOVE + (head.width**-2 if kernel else 0.0)

    # ------------------------------------------------------------------ the model

    def build(self, kind: Kind | None = None) -> PlantedModel:
        """Write the weights into a model; `None`: a HookedTransformer where TransformerLens has the class.

        Raises: ModelError: this TransformerLens has no HookedTransformer; no norm under the bridge.
        """
        name = f"planted-{self.form}-{self.seed}"
        kind = kind or default_kind(self.norm)
        if kind not in get_args(Kind):
            raise ModelError(f"kind must be one of {', '.join(get_args(Kind))}; got {kind!r}.")
        from icl_kernel_lens.worlds.planted.write import written  # which needs this module

        return PlantedModel(build(written(self), kind, name), self, kind)

    def __repr__(self) -> str:
        return f"PlantedPlan({_describe(self)})"


@dataclass(frozen=True, eq=False, repr=False)
class PlantedModel:
    """A model of hand-written weights, and what is known of each of its heads."""

    model: Any
    """A HookedTransformer or a TransformerBridge, in float32 on the CPU."""
    plan: PlantedPlan
    kind: Kind

    @property
    def heads(self) -> tuple[PlantedHead, ...]:
        """Every head of the model, carrier and idle heads too."""
        return tuple(self.plan.all_heads.values())

    @property
    def expected(self) -> Mapping[HeadRef, PlantedClass]:
        """The class that a locator must give each head; where `clear` is False, either side of a threshold."""
        return self.plan.expected

    @property
    def clear(self) -> Mapping[HeadRef, bool]:
        """Whether a head's class is clear of every threshold (see `PlantedPlan.facts`)."""
        return self.plan.clear

    @property
    def findable(self) -> tuple[HeadRef, ...]:
        """Kernel heads that a locator must find."""
        return self.plan.findable

    def table(self) -> pd.DataFrame:
        """One row a head: what it does, the class that a locator must give it, and why."""
        return self.plan.table()

    def prompts(
        self, demos: int | None = None, count: int = 400, *, tests_per_set: int = 1, seed: int = 0
    ) -> PromptSet:
        """See `PlantedPlan.prompts`."""
        return self.plan.prompts(demos, count, tests_per_set=tests_per_set, seed=seed)

    def __repr__(self) -> str:
        return f"PlantedModel({self.kind}, {_describe(self.plan)})"


def planted_model(
    heads: Sequence[PlantedHead],
    *,
    layers: int,
    heads_per_layer: int,
    labels: int = 2,
    form: Form = "plain",
    norm: bool = True,
    kind: Kind | None = None,
    direct: float = 0.0,
    demos: int = 16,
    noise: float = 0.0,
    sink: float = 0.2,
    inputs: int = 48,
    context: int | None = None,
    d_head: int | None = None,
    seed: int = 0,
) -> PlantedModel:
    """A transformer of hand-written weights with known kernel-regression heads and decoys.

    `heads` names what is planted; layer 0 gets a carrier, everything else idles. `form` is GPT-2's ("plain"),
    sequential GPT-NeoX's ("rotary") or GPT-J's ("parallel"); `kind` the class that holds it, by default a
    HookedTransformer where this TransformerLens has one. The other settings are `PlantedPlan`'s fields.

    Raises:   ModelError: heads that cannot be planted so; a form that the class cannot hold.
    Example:

    >>> planted = planted_model([PlantedHead(1, 0, "kernel")], layers=2, heads_per_layer=2)
    >>> [ref for ref, kind in planted.expected.items() if kind == "kernel head"]
    [L1H0]
    """
    plan = PlantedPlan(
        tuple(heads),
        layers=layers,
        heads_per_layer=heads_per_layer,
        labels=labels,
        form=form,
        norm=norm,
        direct=direct,
        demos=demos,
        noise=noise,
        sink=sink,
        inputs=inputs,
        context=context,
        d_head=d_head,
        seed=seed,
    )
    return plan.build(kind)


def _describe(plan: PlantedPlan) -> str:
    counts: dict[str, int] = {}
    for head in plan.all_heads.values():
        counts[head.role] = counts.get(head.role, 0) + 1
    roles = ", ".join(f"{n} {role}" for role, n in counts.items() if role != "idle")
    return (
        f"{plan.form}, norm {'on' if plan.norm else 'off'}, {plan.layers} layers × {plan.heads_per_layer} heads, "
        f"{plan.labels} labels, {plan.demos} demonstrations: {roles}"
    )
