"""The closed form of everything that a planted model computes: attention weights, logits, effects, influence, classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.worlds.planted.check import check_plan
from icl_kernel_lens.worlds.planted.label_influence import Factor, carried, influence, label_part
from icl_kernel_lens.worlds.planted.layers import Change, forward
from icl_kernel_lens.worlds.planted.roles import (
    CLEAR,
    FINDABLE,
    KERNELS,
    MATTERS,
    OTHER_EDGES,
    PERMUTATIONS,
    ROLES,
    SAMPLE,
    HeadRole,
    PlantedClass,
    PlantedHead,
    PlantedKind,
)
from icl_kernel_lens.worlds.planted.view import View, view_of
from icl_kernel_lens.worlds.planted.world import PlantedWorld

if TYPE_CHECKING:
    import pandas as pd


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
    """The class that `locate_heads` must give a role at this effect, as a share of the clean logit difference."""
    if role == "echo":
        return "echo"
    if role == "word_preference":
        return "word preference"
    matters = abs(effect) >= MATTERS
    if role in KERNELS:
        return "kernel head" if matters else "shadow"
    return "driver" if matters else "neither"


def expected_kind(head: PlantedHead, effect: float) -> PlantedKind:
    """What a head is at this effect; without one, a kernel is a shadow and a head that only votes is nothing."""
    kind = "echo" if head.echo_share > 0.5 else ROLES[head.role].kind
    matters = abs(effect) >= MATTERS or (head.role in OTHER_EDGES and head.strength > 0)
    if matters or kind in ("echo", "word preference", "sink", "neither"):
        return kind
    return "shadow" if kind in ("kernel head", "pair kernel", "shadow") else "neither"


@dataclass(frozen=True, eq=False)
class PlantedPlan(PlantedWorld):
    """A planted model's heads and world with the closed form of what it computes; `PlantedModel.of` builds it."""

    def __post_init__(self) -> None:
        check_plan(self)

    def weights(self, prompts: PromptSet, *, offset: int = 0) -> Float[Tensor, "prompt layer head demo"]:
        """Every head's attention from the answer position to the labels, or to the tokens `offset` behind them."""
        found = forward(
            self, self._view(prompts, offset), self.sinks, Change(offset=offset), idle=True
        ).weights
        return torch.stack([found[ref] for ref in self.all_heads], 1).unflatten(
            1, (self.layers, self.heads_per_layer)
        )

    def logits(
        self,
        prompts: PromptSet,
        without: Sequence[HeadRef] = (),
        *,
        renormalised: bool = True,
        offset: int = 0,
    ) -> Float[Tensor, "prompt label"]:
        """The labels' logits, with the label edges of some heads cut and the rest renormalised, or left as it was."""
        change = Change(without, "renormalised" if renormalised else "zeroed", offset=offset)
        return forward(self, self._view(prompts, offset), self.sinks, change).votes

    def effects(
        self, prompts: PromptSet, *, renormalised: bool = True, offset: int = 0
    ) -> Float[Tensor, "prompt layer head"]:
        """Logit difference as each head's label edges are cut, minus the clean one."""
        clean = self.logits(prompts)
        answer = clean.argmax(1)
        cut = [
            self.logits(prompts, [ref], renormalised=renormalised, offset=offset) if head.strength else clean
            for ref, head in self.all_heads.items()
        ]
        effects = [difference(votes, answer) - difference(clean, answer) for votes in cut]
        return torch.stack(effects, 1).unflatten(1, (self.layers, self.heads_per_layer))

    def influence(self, prompts: PromptSet) -> Float[Tensor, "prompt demo"]:
        """How strongly each label pulls the answer to its own class, in logits (see `label_influence.py`)."""
        return influence(self, self._view(prompts), self.sinks)

    def label_part(self, prompts: PromptSet) -> Float[Tensor, "prompt label"]:
        """What of the logits goes with the demonstrations' labels (see `label_influence.py`)."""
        return label_part(self, self._view(prompts), self.sinks)

    def carried(
        self, prompts: PromptSet, factor: Factor = "both", *, offset: int = 0
    ) -> Float[Tensor, "prompt layer head demo"]:
        """The part of `influence` that goes through each head's own edge to the label, by its key, value or both."""
        return carried(self, self._view(prompts, offset), self.sinks, factor, offset)

    def facts(self, prompts: PromptSet | None = None) -> pd.DataFrame:
        """Of every head, by the closed form: effect, agreement, best simple explanation, class, and if it is clear.

        `effect` is the share of the mean clean logit difference that goes as the head's label edges are cut;
        `agreement` how often the head's vote is the model's answer; `control` the largest of the same for the
        label prior, the last label, the first demonstration, always the commonest answer, and the head's own
        weights on permuted labels. `clear`: no threshold is near, and echoes follow the answer. `findable`: see `FINDABLE`, effect ≥ `MATTERS`.
        """
        import pandas as pd

        view = self.samples[1] if prompts is None else view_of(self, prompts)
        return pd.DataFrame([asdict(judged) for judged in self.judged(view, tuple(self.all_heads))])

    def judged(self, view: View, refs: Sequence[HeadRef]) -> list[Judged]:
        """See `facts`."""
        clean = forward(self, view, self.sinks, idle=any(self.all_heads[ref].role == "idle" for ref in refs))
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
                cut = forward(self, view, self.sinks, Change((ref,))).votes
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
    def kinds(self) -> Mapping[HeadRef, PlantedKind]:
        """What every head is, by what its weights go with and what it writes."""
        effects = {ref: known.effect for ref, known in self._known.items()}
        return {ref: expected_kind(head, effects.get(ref, 0.0)) for ref, head in self.all_heads.items()}

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

        expected, kinds, clear = self.expected, self.kinds, self.clear
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
                "kind": kinds[ref],
                "clear": clear[ref],
                "why": f"{ROLES[head.role].does}; {losses.get(ref, 'no effect')}",
            }
            for ref, head in self.all_heads.items()
        ]
        return pd.DataFrame(rows)

    def _view(self, prompts: PromptSet, offset: int = 0) -> View:
        if offset not in (0, 1) or (offset and not self.separator):
            raise PromptError(
                "the closed form speaks of labels (offset 0), and of the tokens after them where these are separators "
                f"(offset 1, with separator=True); got offset={offset}.",
                code="prompts-differ",
            )
        return view_of(self, prompts)

    @cached_property
    def samples(self) -> tuple[View, View]:
        """What sinks are set by, and what classes are told by."""
        drawn = self.prompts(count=200, seed=123_456), self.prompts(count=SAMPLE, seed=987_654)
        return view_of(self, drawn[0]), view_of(self, drawn[1])

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
        forward(self, self.samples[0], sinks, calibrate=True)
        return sinks

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
