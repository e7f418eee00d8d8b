"""What one reading of a model leaves behind: answer rows reduced to demonstration weights, and answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int
from torch import Tensor

from icl_kernel_lens.axes import Pooling, check_pooling
from icl_kernel_lens.errors import EvidenceMissing, ResultError
from icl_kernel_lens.prompts import PromptSet
from icl_kernel_lens.results import store
from icl_kernel_lens.results.run_info import RunInfo, prompt_info_from_json

if TYPE_CHECKING:
    from icl_kernel_lens.plots.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Evidence:
    """Per prompt and head, the answer position's attention on the demonstrations; and the answers.

    Weights are attention after softmax, between 0 and 1, float32, not renormalised. Layers without
    attention are NaN, and `missing` says why.
    """

    prompts: PromptSet
    weights: Mapping[str, Float[Tensor, "prompt layer head demo"]]
    """One entry a pooling (see `axes.Pooling`)."""
    sink: Float[Tensor, "prompt layer head"]
    """The mass on position 0, where many heads park their attention."""
    label_scores: Float[Tensor, "prompt label"]
    """Logits of the first label tokens; with `score_on="sequence"`, log-probabilities of whole labels."""
    model_tokens: Int[Tensor, " prompt"]
    """The model's answer over the whole vocabulary: its likeliest next token."""
    profile: Float[Tensor, "layer head point"]
    """The whole row, each text resampled to 30 points and each label one, the mean over prompts
    (Han et al. 2025, Figure 2). The last 30 points are the test input."""
    rows: Float[Tensor, "shown layer head pos"]
    """Whole rows of the first prompts, to look at; 0 beyond the prompt's length."""
    missing: Mapping[int, str]
    run: RunInfo

    def __post_init__(self) -> None:
        p, shape = self.prompts, (len(self.prompts), self.run.layers, self.run.heads)
        expected = {f"weights[{name!r}]": (w, (*shape, p.demos)) for name, w in self.weights.items()}
        expected |= {"sink": (self.sink, shape), "label_scores": (self.label_scores, (len(p), p.labels))}
        for name, (tensor, must) in expected.items():
            if tuple(tensor.shape) != must:
                raise ResultError(
                    f"{name} must have shape {must} for these prompts; it has {tuple(tensor.shape)}."
                )

    @property
    def answers(self) -> Int[Tensor, " prompt"]:
        """The model's own answer among the labels."""
        return self.label_scores.argmax(1)

    @property
    def label_probabilities(self) -> Float[Tensor, "prompt label"]:
        """The model's distribution over the labels alone."""
        return self.label_scores.softmax(1)

    def pooled(self, pooling: Pooling) -> Float[Tensor, "prompt layer head demo"]:
        """The weights under one pooling.

        Raises: EvidenceMissing: it was not asked for when reading.
        """
        check_pooling(pooling)
        if pooling not in self.weights:
            keep = tuple(n for n in self.weights if not n.endswith("_without_first"))
            raise EvidenceMissing(
                f"evidence must be read with the pooling it is scored on; {pooling!r} was asked for and "
                f"{sorted(self.weights)} are there. Read again with "
                f"read(..., keep={(*keep, pooling.removesuffix('_without_first'))})."
            )
        return self.weights[pooling]

    @classmethod
    def from_cache(
        cls,
        cache: Any,
        prompts: PromptSet,
        *,
        logits: Float[Tensor, "prompt pos vocab"] | None = None,
        keep: tuple[Pooling, ...] = ("label", "span_max"),
        template_tokens: bool = True,
    ) -> Evidence:
        """Evidence from an `ActivationCache` of `model.run_with_cache(prompts.tokens)`.

        Without `logits`, the answers come from the cached final residual stream and the model's own
        final norm and unembedding.

        A cache does not say which tokens it was made from; give the prompts that it was.

        Raises: EvidenceMissing: the cache lacks a layer's `hook_pattern`, or is of another shape.
        """
        from icl_kernel_lens.evidence.read import evidence_from_cache

        return evidence_from_cache(cache, prompts, logits, keep, template_tokens)

    def save(self, path: str | Path) -> Path:
        """Write everything but the texts the prompts were made of; `load` reads it back."""
        p = self.prompts
        tensors = {f"weights.{name}": w for name, w in self.weights.items()}
        tensors |= {name: getattr(self, name) for name in _TENSORS}
        tensors |= {f"prompts.{name}": getattr(p, name) for name in _PROMPT_TENSORS}
        if p.test_labels is not None:
            tensors["prompts.test_labels"] = p.test_labels
        meta = {
            "run": self.run.to_json(),
            "missing": {str(layer): why for layer, why in self.missing.items()},
            "prompts": {
                "score_on": p.score_on,
                "label_words": p.label_words,
                "classes": p.classes,
                "strings": p.strings,
                "info": asdict(p.info),
            },
        }
        return store.write(path, "Evidence", tensors, meta)

    @classmethod
    def load(cls, path: str | Path) -> Evidence:
        """Read what `save` wrote.

        Raises: LoadError: another kind of file, another format version, or a damaged one.
        """
        tensors, meta = store.read(path, "Evidence")
        try:
            kept = meta["prompts"]
            fields: dict[str, Any] = {name: tensors[f"prompts.{name}"] for name in _PROMPT_TENSORS}
            prompts = PromptSet(
                **fields,
                test_labels=tensors.get("prompts.test_labels"),
                score_on=kept["score_on"],
                label_words=tuple(tuple(row) for row in kept["label_words"]),
                classes=tuple(kept["classes"]),
                strings=tuple(tuple(row) for row in kept["strings"]),
                info=prompt_info_from_json(kept["info"]),
            )
            return cls(
                prompts=prompts,
                weights={
                    name.removeprefix("weights."): tensor
                    for name, tensor in tensors.items()
                    if name.startswith("weights.")
                },
                **{name: tensors[name] for name in _TENSORS},
                missing={int(layer): why for layer, why in meta["missing"].items()},
                run=RunInfo.from_json(meta["run"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise store.missing_field(path, "Evidence", error) from error

    def figure(self) -> Figure:
        """The averaged attention map (Han et al. 2025, Figure 2)."""
        from icl_kernel_lens.plots.profile import profile_map

        return profile_map(self)

    def __repr__(self) -> str:
        run = self.run
        lines = [
            f"Evidence({run.model}, {run.kind}, {run.dtype}: {len(self.prompts)} prompts × {run.layers} "
            f"layers × {run.heads} heads; poolings {', '.join(self.weights)})",
            f"  {run.probe}",
            *([f"  {run.reading}"] if run.reading else []),
        ]
        if self.prompts.test_labels is not None:
            right = (self.answers == self.prompts.test_labels).float().mean().item()
            lines.append(f"  the model answers {right:.1%} of the test inputs right among the labels")
        said = (self.model_tokens[:, None] == self.prompts.label_tokens).any(1).float().mean().item()
        lines.append(f"  its likeliest next token is the beginning of a label word in {said:.1%}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>{self.figure()._repr_html_()}"


_TENSORS = ("sink", "label_scores", "model_tokens", "profile", "rows")
_PROMPT_TENSORS = (
    "tokens",
    "lengths",
    "roles",
    "answer_pos",
    "demo_spans",
    "label_spans",
    "demo_labels",
    "label_sequences",
    "label_lengths",
    "demo_set",
)
