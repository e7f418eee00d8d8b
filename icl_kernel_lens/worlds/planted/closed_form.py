"""The closed form of everything that a planted model computes: attention weights, logits, effects, influence, classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.errors import PromptError
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.results.criteria import KERNEL_CLASSES
from icl_kernel_lens.worlds.planted.check import check_plan
from icl_kernel_lens.worlds.planted.label_influence import (
    Factor,
    carried,
    influence,
    kernel_shares,
    label_part,
    label_shares,
)
from icl_kernel_lens.worlds.planted.layers import Change, forward
from icl_kernel_lens.worlds.planted.roles import (
    CLEAR,
    EACH,
    FOLLOWS,
    KERNEL_LIKE,
    MATTERS,
    OTHER_EDGES,
    RELABELLED,
    ROLES,
    ROWS,
    SAMPLE,
    PlantedClass,
    PlantedHead,
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
    label_share: float
    kernel_share: float
    fit: float
    findable: bool
    expected: PlantedClass
    clear: bool


def difference(scores: Tensor, answer: Tensor) -> Tensor:
    """The answer's logit minus the mean of the others'."""
    own = scores.gather(1, answer[:, None]).squeeze(1)
    return own - (scores.sum(1) - own) / (scores.shape[1] - 1)


def echoes(weights: Tensor, labels: Tensor, answer: Tensor) -> bool:
    """Whether labels that equal the answer have at least twice the weight of any other, in nine prompts of ten."""
    same = labels.gather(-1, answer[:, None, None].expand(-1, labels.shape[1], 1)).squeeze(-1) > 0
    told = same.any(1) & ~same.all(1)
    least = weights.masked_fill(~same, torch.inf).amin(1)[told]
    most = weights.masked_fill(same, 0.0).amax(1)[told]
    return bool((least >= 2 * most).double().mean() >= 0.9)


def expected_class(head: PlantedHead, label_share: float, effect: float, kernel_share: float) -> PlantedClass:
    """What a head is that carries these shares of the label part and of the model's own kernel, and costs this share of the lead.

    A kernel that carries nothing is a shadow, whatever it would have written; any other head that carries nothing is neither.
    One that carries labels, and next to nothing of the model's own kernel, is a driver.
    """
    what = "echo" if head.echo_share > 0.5 else ROLES[head.role].what
    if what in ("echo", "word preference", "neither"):
        return what
    share = effect if what in ("label-blind", "sink") else label_share
    if head.role in OTHER_EDGES and head.strength > 0:
        return what
    if abs(share) >= MATTERS:
        return "driver" if what in KERNEL_CLASSES and kernel_share < MATTERS else what
    return "shadow" if what in KERNEL_LIKE else "neither"


def _clear(
    head: PlantedHead, expected: PlantedClass, label_share: float, effect: float, kernel: tuple[float, float]
) -> bool:
    """Whether no threshold is near: of what matters, and of following and carrying the model's own kernel, where there is one."""
    follows, carries = kernel
    if expected in ("word preference", "echo"):
        return True
    near = effect if expected in ("label-blind", "sink") else label_share
    if ROLES[head.role].what in KERNEL_CLASSES and CLEAR[0] < carries < CLEAR[1]:
        return False
    return not CLEAR[0] < abs(near) < CLEAR[1] and not (expected in KERNEL_LIKE and follows < FOLLOWS)


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

    def facts(self) -> pd.DataFrame:
        """Of every head, by the closed form: what it carries, its class, and whether that is clear.

        `effect`: the share of the mean clean logit difference that goes as the head's label edges are cut; `label_share`: of the
        label part, as its values are averaged over relabellings; `kernel_share`: of the pair part of label influence that it
        carries; `fit`: correlation of its weights with that pair part. `clear`: no threshold is near, and echoes follow the
        answer. `findable`: a kernel head or pair kernel with both shares at least `MATTERS`.
        """
        import pandas as pd

        return pd.DataFrame([asdict(judged) for judged in self.judged(tuple(self.all_heads))])

    def judged(self, refs: Sequence[HeadRef]) -> list[Judged]:
        """See `facts`."""
        view, sinks = self.samples[1], self.sinks
        clean = forward(self, view, sinks)
        answer = clean.votes.argmax(1)
        whole = float(difference(clean.votes, answer).mean()) or 1.0
        labels = label_shares(self, View(*(x[:RELABELLED] for x in view)), sinks, refs).tolist()
        shown, demo_set = self.sets
        kernel = kernel_shares(self, shown, sinks, refs, demo_set)
        rows = []
        for i, ref in enumerate(refs):
            head, effect = self.all_heads[ref], 0.0
            if head.strength:
                cut = forward(self, view, sinks, Change((ref,))).votes
                effect = 1 - float(difference(cut, answer).mean()) / whole
            follows, carries = float(kernel.fit[i]), float(kernel.share[i])
            expected = expected_class(head, labels[i], effect, carries)
            rows.append(
                Judged(
                    head=str(ref),
                    layer=ref.layer,
                    index=ref.head,
                    role=head.role,
                    gain=head.strength,
                    bandwidth=head.width,
                    effect=effect,
                    label_share=labels[i],
                    kernel_share=carries,
                    fit=follows,
                    findable=expected in KERNEL_CLASSES and labels[i] >= MATTERS and carries >= MATTERS,
                    expected=expected,
                    clear=_clear(head, expected, labels[i], effect, (follows, carries))
                    and (head.role != "echo" or echoes(clean.weights[ref], view.labels, answer)),
                )
            )
        return rows

    @cached_property
    def _known(self) -> Mapping[HeadRef, Judged]:
        """`facts` of the heads that do anything."""
        refs = [ref for ref, head in self.all_heads.items() if head.role != "idle"]
        return dict(zip(refs, self.judged(refs), strict=True))

    @property
    def expected(self) -> Mapping[HeadRef, PlantedClass]:
        """What every head is, by what its weights go with and what it writes."""
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

    def _view(self, prompts: PromptSet, offset: int = 0) -> View:
        if offset not in (0, 1) or (offset and not self.separator):
            raise PromptError(
                "the closed form speaks of labels (offset 0), and of the tokens after them where these are separators "
                f"(offset 1, with separator=True); got offset={offset}.",
                code="prompts-differ",
            )
        return view_of(self, prompts)

    @cached_property
    def sets(self) -> tuple[View, Int[Tensor, " prompt"]]:
        """What shares of the kernel part are told by: test inputs that share demonstrations, and which do."""
        count = ROWS // (self.demos * (self.labels - 1)) // EACH * EACH
        drawn = self.prompts(count=min(256, max(8 * EACH, count)), tests_per_set=EACH, seed=246_802)
        return view_of(self, drawn), drawn.demo_set

    @cached_property
    def samples(self) -> tuple[View, View]:
        """What sinks are set by, and what classes are told by."""
        drawn = self.prompts(count=200, seed=123_456), self.prompts(count=SAMPLE, seed=987_654)
        return view_of(self, drawn[0]), view_of(self, drawn[1])

    def with_heads(self, *more: PlantedHead) -> PlantedPlan:
        """The same plan with more heads; what depends on the world alone is not computed again."""
        longer = replace(self, heads=(*self.heads, *more))
        for name in ("features", "classes", "samples", "sets"):
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
