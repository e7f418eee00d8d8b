"""Is there in-context learning at all? The task accuracy beside what needs no demonstrations; rules that give the answers.

Whatever is said of heads begins with it (`TaskAccuracy.opening`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.arguments import checked
from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.fields import unit
from icl_kernel_lens.numbers.intervals import RATE, interval_of, sets_for
from icl_kernel_lens.prompts.promptset import PromptSet
from icl_kernel_lens.reasons import Reason
from icl_kernel_lens.results.base import Result, broken
from icl_kernel_lens.results.run_info import RunInfo

CONDITIONS = {
    "demonstrations": "with demonstrations",
    "permuted_labels": "with permuted labels",
    "no_demonstrations": "without demonstrations",
    "majority": "of the majority class",
}
"""Where the accuracy is measured, in words."""
RULES = {"last_label": "the last label", "commonest_answer": "the commonest answer"}
"""What may give the model's answer without looking at the inputs, in words."""
NEARLY_ALL = 0.75
"""A rule explains nearly all of the answers if it surely gives more of them than this. Between two labels a coin gives
half: beyond three quarters, less than half of what a coin leaves is left for anything else in the model to explain."""


@dataclass(frozen=True, eq=False, repr=False)
class TaskAccuracy(Result):
    """The model's accuracy among the labels, prompt by prompt, under four conditions; and two rules that may give its answers.

    demonstrations      the prompts as they are
    permuted_labels     the same prompts, the labels dealt out anew among the demonstrations
    no_demonstrations   the test input alone
    majority            always the commonest true label (no model)

    last_label          the last demonstration's label is the model's answer, the prompts as they are
    commonest_answer    that answer is the one it gives most often over these prompts

    Does not show: that the model follows a rule which gives its answers, nor that no other rule does as well. The
    commonest answer is chosen on the prompts it is counted on.
    """

    correct: Mapping[str, Float[Tensor, " prompt"]] = field(metadata=unit(RATE))
    """Whether the answer is the true label: 1 or 0."""
    rules: Mapping[str, Float[Tensor, " prompt"]] = field(metadata=unit(RATE))
    """Whether the rule gives the model's answer: 1 or 0."""
    demo_set: Int[Tensor, " prompt"]
    run: RunInfo
    digest: str
    """Of the prompts (`PromptSet.digest`)."""
    reasons: Mapping[str, Reason]
    """Conditions that could not be measured, and why."""

    def _problems(self) -> Iterator[str]:
        unknown = {*self.correct, *self.reasons} - set(CONDITIONS)
        both = set(self.correct) & set(self.reasons)
        numbers = (*self.correct.values(), *self.rules.values())
        return broken(
            {
                "correct must hold demonstrations and majority, or reasons say why it holds nothing; it holds "
                f"{', '.join(self.correct) or 'nothing'}": (
                    {"demonstrations", "majority"} <= set(self.correct)
                    or (not self.correct and set(self.reasons) == set(CONDITIONS))
                ),
                f"rules must be {', '.join(RULES)}; they are {', '.join(self.rules)}": set(self.rules)
                == set(RULES),
                f"conditions are {', '.join(CONDITIONS)}; not {', '.join(sorted(unknown))}": not unknown,
                f"a condition is measured or has a reason; {', '.join(both)} has both": not both,
                "an answer is right, and given by a rule, (1) or not (0)": all(
                    bool(((one == 0) | (one == 1)).all()) for one in numbers
                ),
            }
        )

    def check_of(self, run: RunInfo, prompts: PromptSet) -> None:
        """Refuse to stand for another model or other prompts than those of a run.

        Raises: ResultError.
        """
        mine, theirs = ((one.model, one.kind, one.revision) for one in (self.run, run))
        if self.digest != prompts.digest() or mine != theirs:
            raise ResultError(
                f"accuracy must be of these {len(prompts)} prompts and of this model, {run.model} ({run.kind}); it is of "
                f"{len(self.demo_set)} prompts and of {self.run.model} ({self.run.kind}). Was it measured earlier, on other "
                "prompts? Leave accuracy= out, or measure it with in_context_accuracy(model, prompts).",
                code="accuracy-of-others",
            )

    def of_some(self, numbers: Int[Tensor, " some"], prompts: PromptSet) -> TaskAccuracy:
        """The accuracy on some of the prompts: those `numbers`, which are `prompts`."""
        return replace(
            self,
            correct={name: right[numbers] for name, right in self.correct.items()},
            rules={name: given[numbers] for name, given in self.rules.items()},
            demo_set=self.demo_set[numbers],
            digest=prompts.digest(),
            run=replace(self.run, prompts=prompts.info),
        )

    def mean(self) -> dict[str, float]:
        """Accuracy under each condition."""
        return {name: right.mean().item() for name, right in self.correct.items()}

    @checked
    def interval(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Intervals of the accuracies, between demonstration sets."""
        return {name: self._interval(right, level) for name, right in self.correct.items()}

    def explained(self) -> dict[str, tuple[float, float, float]]:
        """The share of the model's answers that each rule gives, and its 95 % interval."""
        return {name: (given.mean().item(), *self._interval(given)) for name, given in self.rules.items()}

    def best_without(self) -> str:
        """The best of the conditions that the demonstrations' labels cannot help.

        Raises: ResultError: no accuracy was measured.
        """
        mean = self.mean()
        if not mean:
            raise ResultError(
                f"an accuracy must be measured to be compared; none was ({self.reasons['demonstrations']}). Give the prompts "
                "true labels, as test_labels.",
                code="no-truth",
            )
        return max((name for name in mean if name != "demonstrations"), key=lambda name: mean[name])

    def gain(self) -> tuple[float, float, float]:
        """Accuracy with demonstrations minus that of `best_without()`, and its 95 % interval.

        The difference is taken prompt by prompt, so that easy test inputs cancel.
        """
        return self._over(self.best_without())

    def helps(self) -> bool:
        """Whether demonstrations surely help: the interval of `gain()` lies above 0, and accuracy without any was measured."""
        return "no_demonstrations" in self.correct and self.gain()[1] > 0

    def hurts(self) -> bool:
        """Whether they surely hurt: the interval of the accuracy with them minus that without any lies below 0."""
        return "no_demonstrations" in self.correct and self._over("no_demonstrations")[2] < 0

    def _over(self, other: str) -> tuple[float, float, float]:
        difference = self.correct["demonstrations"] - self.correct[other]
        return difference.mean().item(), *self._interval(difference, difference=True)

    def _interval(
        self, values: Float[Tensor, " prompt"], level: float = 0.95, *, difference: bool = False
    ) -> tuple[float, float]:
        low, high = interval_of(RATE, values, self.demo_set, difference=difference, level=level)
        return low.item(), high.item()

    def verdict(self) -> str:
        """One sentence: is there in-context learning to explain, and does a simple rule give the answers?

        It is sure of what the ends of the 95 % intervals say, never of a mean alone:

            the demonstrations hurt             accuracy with them − accuracy without any    lies below 0
            they help                           `gain()`                                     lies above 0
            no in-context learning shown        neither
            a rule explains nearly all          the share of the answers that it gives       lies above `NEARLY_ALL`
            a rule may explain nearly all       the share is above it, the interval is not

        A rule that surely explains nearly all is said before the help of demonstrations.
        """
        clauses = [self._learning(), *self._unmeasured(), *self._rule()]
        if self.helps() and clauses[-1].startswith("one rule explains"):
            clauses.insert(0, clauses.pop())
        text = "; ".join(clauses)
        return f"{text[0].upper()}{text[1:]}."

    def _learning(self) -> str:
        """What the demonstrations do to the accuracy."""
        mean = self.mean()
        if not mean:
            return f"accuracy not measured ({self.reasons['demonstrations']})"
        if self.hurts():
            before, after = mean["no_demonstrations"], mean["demonstrations"]
            span = _points(*self._over("no_demonstrations"))
            return (
                f"the demonstrations hurt: accuracy falls from {before:.1%} to {after:.1%} with them, {span}"
            )
        gain, low, _ = self.gain()
        span = f"{_points(*self.gain(), unit=' percentage points over ' + self.best_without().replace('_', ' '))}"
        if low != low:
            return f"undetermined: {span}, as a single demonstration set gives none"
        if self.helps():
            return f"the demonstrations help: {span}"
        if low > 0:
            return (
                f"accuracy is {mean['demonstrations']:.1%}, {span}, not shown to be the demonstrations' doing"
            )
        if gain > 0:
            sets = len(self.demo_set.unique())
            wanted = sets_for(gain - low, sets, gain)
            span += f", of {sets} demonstration sets, where about {wanted} would show a gain as large as this"
        return f"no in-context learning shown: {span}"

    def _unmeasured(self) -> Iterator[str]:
        """The conditions that were not measured, with the reason; none where no accuracy was."""
        for why in dict.fromkeys(self.reasons.values()) if self.correct else ():
            names = [name.replace("_", " ") for name, reason in self.reasons.items() if reason == why]
            yield f"{' and '.join(names)} not measured ({why})"

    def _rule(self) -> Iterator[str]:
        """The rule that gives most of the answers, where these are nearly all."""
        name, (share, low, high) = max(self.explained().items(), key=lambda item: item[1][0])
        if share > NEARLY_ALL:
            sure = "explains" if low > NEARLY_ALL else "may explain"
            interval = f"95 % interval {low:.1%} to {high:.1%}" if low == low else "no interval"
            yield f"one rule {sure} nearly all of the answers: {RULES[name]} gives {share:.1%} of them ({interval})"

    def opening(self) -> str:
        """The verdict, and every share in one line: what stands first wherever something is said of heads."""
        right = ", ".join(f"{mean:.1%} {CONDITIONS[name]}" for name, mean in self.mean().items())
        given = ", ".join(f"{RULES[name]} {share:.1%}" for name, (share, *_) in self.explained().items())
        accuracy = f"accuracy {right}; " if right else ""
        return f"{self.verdict()}\n  {accuracy}share of the model's answers that a rule gives: {given}"

    def to_dataframe(self) -> pd.DataFrame:
        """One row a condition, its accuracy, and one a rule, the share of the answers that it gives; with intervals."""
        intervals = self.interval()
        rows = [(name, "accuracy", mean, *intervals[name]) for name, mean in self.mean().items()]
        rows += [(name, "share of the answers", *shares) for name, shares in self.explained().items()]
        return pd.DataFrame(rows, columns=["name", "what", "mean", "low", "high"])

    def __repr__(self) -> str:
        lines = [self.verdict(), f"TaskAccuracy({self.run.about}, {len(self.demo_set)} prompts)"]
        for name, what, mean, low, high in self.to_dataframe().itertuples(index=False):
            interval = f"95 % interval {low:.1%} to {high:.1%}" if low == low else "no interval"
            lines.append(f"  {name:<18} {mean:6.1%}  ({interval}; {what})")
        lines += [f"  {name:<18} not measured: {why}" for name, why in self.reasons.items()]
        return "\n".join(lines)


def rules_of(
    demo_labels: Int[Tensor, "prompt demo"], answers: Int[Tensor, " prompt"]
) -> dict[str, Float[Tensor, " prompt"]]:
    """Whether each of `RULES` gives a prompt's answer."""
    commonest = answers.bincount().argmax()
    given = {"last_label": demo_labels[:, -1], "commonest_answer": commonest.expand(len(answers))}
    return {name: (said == answers).to(torch.float32) for name, said in given.items()}


def _points(gain: float, low: float, high: float, *, unit: str = " percentage points") -> str:
    interval = f"95 % interval {100 * low:+.1f} to {100 * high:+.1f}" if low == low else "no interval"
    return f"{100 * gain:+.1f}{unit} ({interval})"
