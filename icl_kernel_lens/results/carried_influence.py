"""Holds which part of the label influence goes through each head, and through all label edges together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.axes import Head, HeadRef
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.fields import unit
from icl_kernel_lens.numbers.identification import share_interval
from icl_kernel_lens.numbers.influence import Estimate, pair_part
from icl_kernel_lens.results.base import Result, broken, first_rows, head_table
from icl_kernel_lens.results.run_info import RunInfo

Carrier = Literal["both", "values", "keys"]
"""What of a label edge comes from the replaced run."""
Of = Literal["influence", "pair"]
"""Shares of what: of the whole influence G, or of what belongs to pairs of test input and demonstration, I."""


@dataclass(frozen=True, eq=False, repr=False)
class CarriedInfluence(Result):
    """The part of each demonstration's influence that goes through single heads, and through all label edges patched together."""

    main = "values"

    values: Float[Tensor, "prompt layer head demo"] = field(metadata=unit("logits"))
    """NaN: the head was not asked for, or the demonstration's label could not be replaced."""
    gained: Float[Tensor, "prompt layer head demo"] = field(metadata=unit("logits"))
    """What of it the replacement labels gain, the rest being what the own label loses: half in a kernel regression."""
    together: Float[Tensor, "prompt demo"] = field(metadata=unit("logits"))
    """With the label edges of all heads patched at once, everything above recomputed."""
    influence: Float[Tensor, "prompt demo"] = field(metadata=unit("logits"))
    """G of the same prompts."""
    numbers: Int[Tensor, " prompt"]
    """Which of the influence's prompts these are."""
    demo_labels: Int[Tensor, "prompt demo"]
    demo_set: Int[Tensor, " prompt"]
    carrier: Carrier
    path: Literal["total", "direct"]
    offsets: tuple[int, ...]
    later: bool
    """Whether the label edges of later demonstrations were read from the replaced run, too."""
    run: RunInfo
    settings: Mapping[str, str] = field(default_factory=dict)

    def _problems(self) -> Iterator[str]:
        known = ~self.influence.isnan()
        return broken(
            {
                "what all edges carry must be known wherever the influence is": bool(
                    self.together[known].isfinite().all()
                ),
                "what new labels gain must be known wherever what is carried is": bool(
                    self.gained[self.values.isfinite()].isfinite().all()
                ),
                "a head must be there": bool(self.values.isfinite().any()),
                f"offsets must be some, each once and in ascending order; they are {self.offsets}": (
                    self.offsets != () and self.offsets == tuple(sorted(set(self.offsets)))
                ),
            }
        )

    def coords(self) -> Mapping[str, list[int]]:
        """The numbers of the prompts among the influence's."""
        return {"prompt": self.numbers.tolist()}

    @checked
    def coverage(self, of: Of = "influence") -> Estimate:
        """⟨together, G⟩ / ⟨G, G⟩: the share of the influence that all label edges carry, patched jointly; of I with its pair part."""
        part, whole = self._pair(of)
        return self._of_whole((part * whole).nansum(-1), whole)

    def _of_whole(self, part: Float[Tensor, " prompt"], whole: Float[Tensor, "prompt demo"]) -> Estimate:
        return Estimate(*map(float, share_interval(part, whole.square().nansum(-1), self.demo_set)))

    def _pair(self, of: Of) -> tuple[Tensor, Tensor]:
        together, whole = self.together.double(), self.influence.double()
        return (
            (together, whole)
            if of == "influence"
            else (
                pair_part(together, self.demo_set),
                pair_part(whole, self.demo_set),
            )
        )

    @checked
    def share(
        self, of: Of = "influence", *, level: float = 0.95
    ) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"], Float[Tensor, "layer head"]]:
        """⟨carried, G⟩ / ⟨G, G⟩ of every head, and its interval between demonstration sets; of I with pair parts.

        With everything above recomputed, shares of a head and of what echoes it overlap, and are not to be summed.
        """
        values, (_, whole) = self.values.double(), self._pair(of)
        if of == "pair":
            values = pair_part(values, self.demo_set)
        part = (values * whole[:, None, None]).nansum(-1).masked_fill(values.isnan().all(-1), torch.nan)
        share = share_interval(part, whole.square().nansum(-1)[:, None, None], self.demo_set, level)
        unknown = part.isnan().all(0)
        value, low, high = (x.masked_fill(unknown, torch.nan) for x in share)
        return value, low, high

    @checked
    def gained_share(
        self, *, level: float = 0.95
    ) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"], Float[Tensor, "layer head"]]:
        """⟨gained, I⟩ / ⟨carried, I⟩, of pair parts: what of the kernel in a head's values the new label gains; with intervals.

        ½ where values carry whatever label stands there; 0 where only the own label brings something, so that flipped labels
        silence the head and teach it nothing. Always ½ with two labels: there such a head adds the same to an answer as half a
        kernel regression and what the model would say of the inputs without their labels.
        """
        whole = self._pair("pair")[1][:, None, None]
        gained, carried = (pair_part(x.double(), self.demo_set) for x in (self.gained, self.values))
        unknown = self.values.isnan().all(-1)
        gained, carried = (
            ((x * whole).nansum(-1)).masked_fill(unknown, torch.nan) for x in (gained, carried)
        )
        value, low, high = share_interval(gained, carried, self.demo_set, level)
        return value, low, high

    @checked
    def others_share(
        self, later: CarriedInfluence, *, level: float = 0.95
    ) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"], Float[Tensor, "layer head"]]:
        """Σ R² / Σ (C² + R²), C what the own edge carries and R what later edges add to it; of every head, with intervals.

        `later`: the same measured with `later=True`. 0 where each label edge brings its own demonstration's label, as in a kernel
        regression; ½ where those of others count as much.

        Raises: ResultError: the other one is not the same with later edges.
        """
        same = ("carrier", "path", "offsets", "numbers", "values")
        if self.later or not later.later or any(_unlike(self, later, name) for name in same):
            raise ResultError(
                "what later edges add is told by the same carried influence measured with them; these differ in more, or not in "
                "that. Measure both: carried_influence(model, influence, heads=...) and the same with later=True.",
                code="not-comparable",
            )
        own, rest = self.values.double(), later.values.double() - self.values.double()
        unknown = self.values.isnan().all(-1)
        part, whole = (x.square().nansum(-1).masked_fill(unknown, torch.nan) for x in (rest, own))
        value, low, high = share_interval(part, part + whole, self.demo_set, level)
        return value, low, high

    def table(self) -> pd.DataFrame:
        """One row a head that was asked for: its shares of the influence and of its pair part with intervals, the largest first."""
        share, pair = self.share(), self.share("pair")
        names = ("share", "low", "high")
        columns = dict(zip(names, share, strict=True))
        columns |= {f"pair_{name}": x for name, x in zip(names, pair, strict=True)}
        columns["mean"] = self.values.double().nanmean((0, 3))
        frame = head_table(columns)
        frame = frame.assign(size=frame["share"].abs()).dropna(subset="size")
        frame = frame.sort_values("size", ascending=False, kind="stable", ignore_index=True)
        return frame.drop(columns="size")

    @checked
    def top(self, k: int = 10) -> pd.DataFrame:
        """The first `k` rows of `table()`."""
        return first_rows(self.table(), k)

    @checked
    def of(self, head: Head | str) -> Float[Tensor, "prompt demo"]:
        """What one head carries, in logits."""
        at = HeadRef.of(head)
        return self.values[:, at.layer, at.head]

    def __repr__(self) -> str:
        layers, heads = self.values.shape[1:3]
        asked = int(self.values.isfinite().any(-1).any(0).sum())
        lines = [
            f"CarriedInfluence({self.run.about}: {asked} of {layers} × {heads} heads, {len(self.values)} prompts; "
            f"{self.carrier} of label edges at offsets {self.offsets}{' and of later ones' * self.later}, {self.path})",
            f"  all label edges together carry {self.coverage()} of the influence",
            self.top(8).to_string(index=False, float_format=lambda x: f"{x:.3f}", na_rep="–"),
        ]
        if self.path == "direct":
            total, whole = self.values.double().nansum((1, 2)), self.influence.double()
            part = self._of_whole((total * whole).nansum(-1), whole)
            lines.insert(2, f"  direct parts of these heads sum to {part}")
        return "\n".join(lines)


def _unlike(one: CarriedInfluence, two: CarriedInfluence, name: str) -> bool:
    """Whether they differ in what must be the same; of values, in which there are."""
    a, b = getattr(one, name), getattr(two, name)
    if name == "values":
        a, b = a.isnan(), b.isnan()
    return not torch.equal(a, b) if isinstance(a, Tensor) else a != b
