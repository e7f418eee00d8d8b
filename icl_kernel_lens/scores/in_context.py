"""Is there in-context learning at all? The task accuracy beside what needs no demonstrations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.errors import ResultError
from icl_kernel_lens.evidence import Evidence, answer
from icl_kernel_lens.evidence.runner import BatchSize
from icl_kernel_lens.models import as_lens
from icl_kernel_lens.prompts import PromptSet, rebuilt
from icl_kernel_lens.results import store
from icl_kernel_lens.results.resample import cluster_bootstrap
from icl_kernel_lens.results.run_info import RunInfo

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class TaskAccuracy:
    """The model's accuracy among the labels, prompt by prompt, under four conditions.

    demonstrations      the prompts as they are
    permuted_labels     the same prompts, the labels dealt out anew among the demonstrations
    no_demonstrations   the test input alone
    majority            always the commonest true label (no model)
    """

    correct: Mapping[str, Float[Tensor, " prompt"]]
    demo_set: Int[Tensor, " prompt"]
    run: RunInfo
    reasons: Mapping[str, str]
    """Conditions that could not be measured, and why."""

    def mean(self) -> dict[str, float]:
        """Accuracy under each condition."""
        return {name: right.mean().item() for name, right in self.correct.items()}

    def interval(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Bootstrap intervals, demonstration sets drawn whole."""
        found = {}
        for name, right in self.correct.items():
            low, high = cluster_bootstrap(right[:, None], self.demo_set, level=level)
            found[name] = low.item(), high.item()
        return found

    def best_without(self) -> str:
        """The best of the conditions that the demonstrations' labels cannot help."""
        mean = self.mean()
        return max((name for name in mean if name != "demonstrations"), key=lambda name: mean[name])

    def gain(self) -> tuple[float, float, float]:
        """Accuracy with demonstrations minus that of `best_without()`, and its 95 % interval.

        The difference is taken prompt by prompt, so that easy test inputs cancel.
        """
        difference = self.correct["demonstrations"] - self.correct[self.best_without()]
        low, high = cluster_bootstrap(difference[:, None], self.demo_set)
        return difference.mean().item(), low.item(), high.item()

    def verdict(self) -> str:
        """One sentence: is there in-context learning to explain?"""
        gain, low, high = self.gain()
        points = [f"{100 * x:+.1f}" for x in (gain, low, high)]
        other = self.best_without().replace("_", " ")
        interval = f"95 % interval {points[1]} to {points[2]}" if low == low else "no interval"
        span = f"{points[0]} percentage points over {other} ({interval})"
        if self.reasons:
            span += f"; {', '.join(self.reasons).replace('_', ' ')} not measured"
        if low != low:
            return f"Undetermined: {span}. A single demonstration set gives no interval; draw several."
        if low > 0:
            return f"The demonstrations help: {span}."
        return (
            f"No in-context learning shown: {span}. What heads agree with here is not learned from the "
            "demonstrations."
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a condition: accuracy and interval."""
        import pandas as pd

        intervals = self.interval()
        return pd.DataFrame(
            [
                {"condition": name, "accuracy": mean, "low": intervals[name][0], "high": intervals[name][1]}
                for name, mean in self.mean().items()
            ]
        )

    def save(self, path: str | Path) -> Path:
        """Write the result; `load` reads it back."""
        tensors = {f"correct.{name}": right for name, right in self.correct.items()}
        meta = {"run": self.run.to_json(), "reasons": dict(self.reasons), "order": list(self.correct)}
        return store.write(path, "TaskAccuracy", tensors | {"demo_set": self.demo_set}, meta)

    @classmethod
    def load(cls, path: str | Path) -> TaskAccuracy:
        """Read what `save` wrote. Raises: LoadError: another kind of file, or a damaged one."""
        tensors, meta = store.read(path, "TaskAccuracy")
        try:
            return cls(
                {name: tensors[f"correct.{name}"] for name in meta["order"]},
                tensors["demo_set"],
                RunInfo.from_json(meta["run"]),
                meta["reasons"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise store.missing_field(path, "TaskAccuracy", error) from error

    def __repr__(self) -> str:
        lines = [f"TaskAccuracy({self.run.model} on {self.run.prompts.task}, {len(self.demo_set)} prompts)"]
        intervals = self.interval()
        for name, mean in self.mean().items():
            low, high = intervals[name]
            interval = f"95 % interval {low:.1%} to {high:.1%}" if low == low else "no interval"
            lines.append(f"  {name:<18} {mean:6.1%}  ({interval})")
        lines += [f"  {name:<18} not measured: {why}" for name, why in self.reasons.items()]
        return "\n".join([*lines, f"  {self.verdict()}"])

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>"


def in_context_accuracy(
    model: Any,
    prompts: PromptSet,
    *,
    evidence: Evidence | None = None,
    batch_size: BatchSize = "auto",
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> TaskAccuracy:
    """The accuracy with demonstrations beside no demonstrations, permuted labels and the majority class.

    `evidence` of the same prompts saves one of the three runs. Prompts made from token ids cannot be written
    anew: for them only the accuracy and the majority class are measured, and `reasons` says so. `checkpoint`
    names a folder in which finished prompts are kept, a folder inside for each run; see `read`.

    Raises: ResultError: the prompts have no true labels, or no demonstrations.
    """
    truth = prompts.test_labels
    if truth is None:
        raise ResultError(
            "accuracy needs true labels; these prompts have none. Pass test_labels to PromptSet.from_tokens."
        )
    if prompts.demos == 0:
        raise ResultError("in-context learning needs demonstrations; these prompts have none.")
    if evidence is not None and not (
        torch.equal(evidence.prompts.tokens, prompts.tokens) and evidence.prompts.score_on == prompts.score_on
    ):
        raise ResultError("the evidence must be of these prompts; it was read from others.")

    lens = as_lens(model)
    if evidence is not None and (evidence.run.model, evidence.run.kind) != (lens.name, lens.kind):
        raise ResultError(
            f"the evidence must be of this model; it was read from {evidence.run.model} ({evidence.run.kind}) and the "
            f"model is {lens.name} ({lens.kind})."
        )

    def correct(scores: Float[Tensor, "prompt label"]) -> Float[Tensor, " prompt"]:
        return (scores.argmax(1) == truth).float()

    def ask(which: PromptSet, name: str) -> Float[Tensor, " prompt"]:
        folder = Path(checkpoint) / name if checkpoint is not None else None
        scores = answer(model, which, batch_size=batch_size, checkpoint=folder, progress=progress)
        return correct(scores)

    found = {"demonstrations": correct(evidence.label_scores) if evidence else ask(prompts, "demonstrations")}
    reasons: dict[str, str] = {}
    if prompts.episodes is not None:
        permuted = rebuilt(model, prompts, labels="permuted")
        if torch.equal(permuted.demo_labels, prompts.demo_labels):
            reasons["permuted_labels"] = (
                "permuting changes no label: too few demonstrations, or all of one class"
            )
        else:
            found["permuted_labels"] = ask(permuted, "permuted_labels")
        found["no_demonstrations"] = ask(rebuilt(model, prompts, labels="none"), "no_demonstrations")
    else:
        reasons = dict.fromkeys(
            ("permuted_labels", "no_demonstrations"), "the prompts were made from token ids or loaded"
        )
    majority = truth.bincount(minlength=prompts.labels).argmax()
    found["majority"] = (truth == majority).float()
    run = evidence.run if evidence else RunInfo.of(lens, prompts.info, prompts.score_on)
    return TaskAccuracy(found, prompts.demo_set, run, reasons)
