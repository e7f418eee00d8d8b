"""Is there in-context learning at all? The task accuracy beside what needs no demonstrations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.fields import unit
from icl_kernel_lens.numbers.intervals import RATE, interval_of, sets_for
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.results.base import Result, broken
from icl_kernel_lens.results.run_info import RunInfo

CONDITIONS = ("demonstrations", "permuted_labels", "no_demonstrations", "majority")


@dataclass(frozen=True, eq=False, repr=False)
class TaskAccuracy(Result):
    """The model's accuracy among the labels, prompt by prompt, under four conditions.

    demonstrations      the prompts as they are
    permuted_labels     the same prompts, the labels dealt out anew among the demonstrations
    no_demonstrations   the test input alone
    majority            always the commonest true label (no model)
    """

    correct: Mapping[str, Float[Tensor, " prompt"]] = field(metadata=unit(RATE))
    demo_set: Int[Tensor, " prompt"]
    run: RunInfo
    reasons: Mapping[str, Reason]
    """Conditions that could not be measured, and why."""

    def _problems(self) -> Iterator[str]:
        unknown = {*self.correct, *self.reasons} - set(CONDITIONS)
        both = set(self.correct) & set(self.reasons)
        return broken(
            {
                f"correct must hold demonstrations and majority; it holds {', '.join(self.correct)}": (
                    {"demonstrations", "majority"} <= set(self.correct)
                ),
                f"conditions are {', '.join(CONDITIONS)}; not {', '.join(sorted(unknown))}": not unknown,
                f"a condition is measured or has a reason; {', '.join(both)} has both": not both,
                "an answer is right (1) or wrong (0)": all(
                    bool(((right == 0) | (right == 1)).all()) for right in self.correct.values()
                ),
            }
        )

    def mean(self) -> dict[str, float]:
        """Accuracy under each condition."""
        return {name: right.mean().item() for name, right in self.correct.items()}

    @checked
    def interval(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Intervals of the accuracies, between demonstration sets."""
        return {name: self._interval(right, level) for name, right in self.correct.items()}

    def best_without(self) -> str:
        """The best of the conditions that the demonstrations' labels cannot help."""
        mean = self.mean()
        return max((name for name in mean if name != "demonstrations"), key=lambda name: mean[name])

    def gain(self) -> tuple[float, float, float]:
        """Accuracy with demonstrations minus that of `best_without()`, and its 95 % interval.

        The difference is taken prompt by prompt, so that easy test inputs cancel.
        """
        difference = self.correct["demonstrations"] - self.correct[self.best_without()]
        return difference.mean().item(), *self._interval(difference, difference=True)

    def _interval(
        self, values: Float[Tensor, " prompt"], level: float = 0.95, *, difference: bool = False
    ) -> tuple[float, float]:
        low, high = interval_of(RATE, values, self.demo_set, difference=difference, level=level)
        return low.item(), high.item()

    def verdict(self) -> str:
        """One sentence: is there in-context learning to explain?"""
        gain, low, high = self.gain()
        other = self.best_without().replace("_", " ")
        interval = f"95 % interval {100 * low:+.1f} to {100 * high:+.1f}" if low == low else "no interval"
        span = f"{100 * gain:+.1f} percentage points over {other} ({interval})"
        if self.reasons:
            span += f"; {', '.join(self.reasons).replace('_', ' ')} not measured"
        if low != low:
            return f"Undetermined: {span}. A single demonstration set gives no interval; draw several."
        if low > 0:
            return f"The demonstrations help: {span}."
        if gain > 0:
            sets = len(self.demo_set.unique())
            wanted = sets_for(gain - low, sets, gain)
            return (
                f"No in-context learning shown: {span}. There are {sets} demonstration sets; were the gain as large as "
                f"this, about {wanted} would show it."
            )
        return (
            f"No in-context learning shown: {span}. What heads agree with here is not learned from the "
            "demonstrations."
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a condition: accuracy and interval."""
        intervals = self.interval()
        rows = [(name, mean, *intervals[name]) for name, mean in self.mean().items()]
        return pd.DataFrame(rows, columns=["condition", "accuracy", "low", "high"])

    def __repr__(self) -> str:
        lines = [f"TaskAccuracy({self.run.about}, {len(self.demo_set)} prompts)"]
        for name, mean, low, high in self.to_dataframe().itertuples(index=False):
            interval = f"95 % interval {low:.1%} to {high:.1%}" if low == low else "no interval"
            lines.append(f"  {name:<18} {mean:6.1%}  ({interval})")
        lines += [f"  {name:<18} not measured: {why}" for name, why in self.reasons.items()]
        return "\n".join([*lines, f"  {self.verdict()}"])
