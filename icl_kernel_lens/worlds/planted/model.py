"""A planted model: its weights in a TransformerLens class, beside what is known of each of its heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from icl_kernel_lens.axes import HeadRef
from icl_kernel_lens.errors import ModelError
from icl_kernel_lens.models.planted_build import Form, Kind, build, default_kind
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.worlds.planted.closed_form import PlantedPlan
from icl_kernel_lens.worlds.planted.roles import PlantedClass, PlantedHead
from icl_kernel_lens.worlds.planted.write import written

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class PlantedModel:
    """A model of hand-written weights, and what is known of each of its heads."""

    model: Any
    """A HookedTransformer or a TransformerBridge, in float32 on the CPU."""
    plan: PlantedPlan
    kind: Kind

    @classmethod
    def of(cls, plan: PlantedPlan, kind: Kind | None = None) -> PlantedModel:
        """Write a plan's weights into a model; `None`: a HookedTransformer where TransformerLens has the class.

        Raises: ModelError: this TransformerLens has no HookedTransformer; no norm under the bridge.
        """
        kind = kind or default_kind(plan.norm)
        if kind not in get_args(Kind):
            raise ModelError(
                f"kind must be one of {', '.join(get_args(Kind))}; got {kind!r}.", code="unknown-choice"
            )
        return cls(build(written(plan), kind, f"planted-{plan.form}-{plan.seed}"), plan, kind)

    @property
    def heads(self) -> tuple[PlantedHead, ...]:
        """Every head of the model, carrier and idle heads too."""
        return tuple(self.plan.all_heads.values())

    @property
    def expected(self) -> Mapping[HeadRef, PlantedClass]:
        """What each head is, which a locator must say; where `clear` is False, either side of a threshold."""
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
        return f"PlantedModel({self.kind}, {self.plan.in_words()})"


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
    separator: bool = False,
    trailing: bool = False,
    mlp_noise: float = 0.0,
    loudness: float = 0.0,
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
        separator=separator,
        trailing=trailing,
        mlp_noise=mlp_noise,
        loudness=loudness,
        seed=seed,
    )
    return PlantedModel.of(plan, kind)
