"""The closed form of everything that a planted model computes: attention weights, logits, effects, classes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.worlds.planted.check import check_plan
from icl_kernel_lens.worlds.planted.roles import (
    ABOVE,
    CLEAR,
    FINDABLE,
    KERNELS,
    MATTERS,
    PERMUTATIONS,
    ROLES,
    SAMPLE,
    SUNK,
    HeadRole,
    PlantedClass,
    PlantedHead,
)
from icl_kernel_lens.worlds.planted.world import PlantedWorld

if TYPE_CHECKING:
    import pandas as pd


class View(NamedTuple):
    """What the answer position has to do with: tokens, kernel exponents at h = 1, one-hot labels, the test's class."""

    tokens: Tensor
    alike: Tensor
    labels: Tensor
    test: Tensor


@dataclass(frozen=True)
class Judged:
    """A row of `facts`."""

    head: str
    layer: int
    index: int
    role: str
    gain: float
    bandwidth: float
    effect: float
    agreement: float
    control: float
    findable: bool
    expected: PlantedClass
    clear: bool


class Run(NamedTuple):
    weights: Mapping[HeadRef, Tensor]
    votes: Tensor


def label_scores(head: PlantedHead, view: View, formed: Tensor) -> Tensor:
    """Scores of the label positions, above their common score."""
    match head.role:
        case "driver":
            return torch.zeros_like(view.alike)
        case "anti_kernel":
            return -view.alike / head.width**2
        case "echo":
            centred = formed - formed.mean(-1, keepdim=True)
            return (view.labels * centred[:, None]).sum(-1) / head.width
        case "word_preference":
            assert head.label is not None
            return view.labels[..., head.label] / head.width**2
    return view.alike / head.width**2


def difference(scores: Tensor, answer: Tensor) -> Tensor:
    """The answer's logit minus the mean of the others'."""
    own = scores.gather(1, answer[:, None]).squeeze(1)
    return own - (scores.sum(1) - own) / (scores.shape[1] - 1)


def agreement_with(weights: Tensor, labels: Tensor, answer: Tensor) -> Tensor:
    """How often each head's vote is the answer; ties count in part. Weights are (prompt, head, demo)."""
    votes = weights @ labels
    tops = (votes >= votes.amax(-1, keepdim=True) - 1e-9).double()
    hit = tops.gather(-1, answer[:, None, None].expand(-1, tops.shape[1], 1)).squeeze(-1)
    return (hit / tops.sum(-1)).mean(0)


def echoes(weights: Tensor, labels: Tensor, answer: Tensor) -> bool:
    """Whether labels that equal the answer have at least twice the weight of any other, in nine prompts of ten."""
    same = labels.gather(-1, answer[:, None, None].expand(-1, labels.shape[1], 1)).squeeze(-1) > 0
    told = same.any(1) & ~same.all(1)
    least = weights.masked_fill(~same, torch.inf).amin(1)[told]
    most = weights.masked_fill(same, 0.0).amax(1)[told]
    return bool((least >= 2 * most).double().mean() >= 0.9)


def simple_explanations(labels: Tensor, answer: Tensor) -> float:
    """The best agreement with the answer of anything that looks at no input."""
    alone = torch.zeros(len(labels), 3, labels.shape[1], dtype=torch.float64)
    alone[:, 0], alone[:, 1, 0], alone[:, 2, -1] = 1.0, 1.0, 1.0  # label prior, first and last label
    commonest = float(answer.bincount().max() / len(answer))
    return max(commonest, float(agreement_with(alone, labels, answer).max()))


def expected_class(role: HeadRole, effect: float) -> PlantedClass:
    """The class that a role has at this effect, as a share of the clean logit difference."""
    if role == "echo":
        return "echo"
    if role == "word_preference":
        return "word preference"
    matters = abs(effect) >= MATTERS
    if role in KERNELS:
        return "kernel head" if matters else "shadow"
    return "driver" if matters else "neither"


@dataclass(frozen=True, eq=False)
class PlantedPlan(PlantedWorld):
    """A planted model's heads and world with the closed form of what it computes; `PlantedModel.of` builds it."""

    def __post_init__(self) -> None:
        check_plan(self)

    def weights(self, prompts: PromptSet) -> Float[Tensor, "prompt layer head demo"]:
        """Every head's attention from the answer position to the label positions, in closed form."""
        found = self._run(prompts, idle=True).weights
        return torch.stack([found[ref] for ref in self.all_heads], 1).unflatten(
            1, (self.layers, self.heads_per_layer)
        )

    def logits(self, prompts: PromptSet, without: Sequence[HeadRef] = ()) -> Float[Tensor, "prompt label"]:
        """The labels' logits, with the label edges of some heads cut and the rest renormalised."""
        return self._run(prompts, without=without).votes

    def effects(self, prompts: PromptSet) -> Float[Tensor, "prompt layer head"]:
        """Logit difference as each head's label edges are cut, minus the clean one."""
        clean = self.logits(prompts)
        answer = clean.argmax(1)
        cut = [
            self.logits(prompts, [ref]) if head.strength else clean for ref, head in self.all_heads.items()
        ]
        effects = [difference(votes, answer) - difference(clean, answer) for votes in cut]
        return torch.stack(effects, 1).unflatten(1, (self.layers, self.heads_per_layer))

    def facts(self, prompts: PromptSet | None = None) -> pd.DataFrame:
        """Of every head, by the closed form: effect, agreement, best simple explanation, class, and if it is clear.

        `effect` is the share of the mean clean logit difference that goes as the head's label edges are cut;
        `agreement` how often the head's vote is the model's answer; `control` the largest of the same for the
        label prior, the last label, the first demonstration, always the commonest answer, and the head's own
        weights on permuted labels. `clear`: no threshold is near, and echoes follow the answer. `findable`: see `FINDABLE`, effect ≥ `MATTERS`.
        """
        import pandas as pd

        view = self.samples[1] if prompts is None else self._view(prompts)
        return pd.DataFrame([asdict(judged) for judged in self.judged(view, tuple(self.all_heads))])

    def judged(self, view: View, refs: Sequence[HeadRef]) -> list[Judged]:
        """See `facts`."""
        clean = self.forward(view, self.sinks, idle=any(self.all_heads[ref].role == "idle" for ref in refs))
        answer = clean.votes.argmax(1)
        whole = float(difference(clean.votes, answer).mean()) or 1.0
        weights = torch.stack([clean.weights[ref] for ref in refs], 1)
        agreement = agreement_with(weights, view.labels, answer)
        g = torch.Generator().manual_seed(0)
        chance = torch.zeros_like(agreement)
        for _ in range(PERMUTATIONS):
            order = torch.rand(view.labels.shape[:2], generator=g).argsort(-1)
            permuted = view.labels.take_along_dim(order[..., None], 1)
            chance += agreement_with(weights, permuted, answer) / PERMUTATIONS
        control = chance.clamp(min=simple_explanations(view.labels, answer))
        rows = []
        for i, ref in enumerate(refs):
            head, effect = self.all_heads[ref], 0.0
            if head.strength:
                cut = self.forward(view, self.sinks, without=[ref]).votes
                effect = 1 - float(difference(cut, answer).mean()) / whole
            votes = bool(agreement[i] - control[i] >= FINDABLE)
            clear = not CLEAR[0] < abs(effect) < CLEAR[1] or head.role == "word_preference"
            if head.role == "echo":
                clear = echoes(weights[:, i], view.labels, answer)
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
        effects = {ref: self._known[ref].effect for ref, head in self.all_heads.items() if head.strength}
        losses = {
            ref: f"without its label edges {e:.0%} of the logit difference goes" for ref, e in effects.items()
        }
        rows = [
            {
                "head": str(ref),
                "role": head.role,
                "gain": head.strength,
                "bandwidth": head.width,
                "effect": effects.get(ref, 0.0),
                "expected": expected[ref],
                "clear": clear[ref],
                "why": f"{ROLES[head.role].does}; {losses.get(ref, 'no effect')}",
            }
            for ref, head in self.all_heads.items()
        ]
        return pd.DataFrame(rows)

    def _view(self, prompts: PromptSet) -> View:
        if prompts.tokens.shape[1] < 2 * prompts.demos + 2 or int(prompts.tokens.max()) >= self.vocab:
            raise PromptError(
                "the closed form speaks of a planted model's own prompts; draw them with .prompts().",
                code="prompts-differ",
            )
        width = 2 * prompts.demos + 2
        tokens = prompts.tokens[:, :width]
        phi = self.features[tokens]
        alike = (phi[:, 1:-1:2] @ phi[:, -1, :, None]).squeeze(-1)
        labels = torch.nn.functional.one_hot(prompts.demo_labels, self.labels).double()
        return View(tokens, alike, labels, self.classes[tokens[:, -1]])

    def _run(self, prompts: PromptSet, *, without: Sequence[HeadRef] = (), idle: bool = False) -> Run:
        return self.forward(self._view(prompts), self.sinks, without=without, idle=idle)

    @cached_property
    def samples(self) -> tuple[View, View]:
        """What sinks are set by, and what classes are told by."""
        drawn = self.prompts(count=200, seed=123_456), self.prompts(count=SAMPLE, seed=987_654)
        return self._view(drawn[0]), self._view(drawn[1])

    def with_heads(self, *more: PlantedHead) -> PlantedPlan:
        """The same plan with more heads; what depends on the world alone is not computed again."""
        longer = replace(self, heads=(*self.heads, *more))
        for name in ("features", "classes", "samples"):
            longer.__dict__[name] = getattr(self, name)
        return longer

    @cached_property
    def sinks(self) -> dict[HeadRef, float]:
        """BOS's score in each head that leaves a share there, above the labels' common score."""
        sinks: dict[HeadRef, float] = {}
        self.forward(self.samples[0], sinks, calibrate=True)
        return sinks

    def forward(
        self,
        view: View,
        sinks: dict[HeadRef, float],
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
        last = torch.eye(demos, dtype=torch.float64)[-1].expand(count, -1)
        weights: dict[HeadRef, Tensor] = {}
        for layer in range(self.layers):
            before, kept = formed, taken_back
            for ref in (HeadRef(layer, i) for i in range(self.heads_per_layer)):
                head = self.all_heads[ref]
                if head.role in SUNK:
                    scores = label_scores(head, view, before)
                    if calibrate:
                        share = math.log(self.sink / (1 - self.sink)) if self.sink else -math.inf
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
                    vote = head.strength * (row[..., None] * view.labels).sum(1)
                    if head.role == "cancelled_kernel":
                        taken_back = taken_back + vote
                    else:
                        formed = formed - vote if head.role == "anti_kernel" else formed + vote
        return Run(weights, formed + taken_back)

    def above(self, head: PlantedHead) -> float:
        """How far a head's label positions stand above positions that are neither label nor BOS."""
        kernel = head.role in (*KERNELS, "anti_kernel")
        return ABOVE + (head.width**-2 if kernel else 0.0)

    def in_words(self) -> str:
        """Its form, sizes and roles."""
        roles = Counter(head.role for head in self.all_heads.values() if head.role != "idle")
        return (
            f"{self.form}, norm {'on' if self.norm else 'off'}, {self.layers} layers × {self.heads_per_layer} heads, "
            f"{self.labels} labels, {self.demos} demonstrations: "
            + ", ".join(f"{count} {role}" for role, count in roles.items())
        )

    def __repr__(self) -> str:
        return f"PlantedPlan({self.in_words()})"
