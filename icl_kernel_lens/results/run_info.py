"""Where a number came from: model, prompts and versions, carried by every result."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from icl_kernel_lens.models.adapter import ModelAdapter
from icl_kernel_lens.models.load import load_record
from icl_kernel_lens.models.verify import stated
from icl_kernel_lens.prompts.promptset import PromptInfo


def versions() -> dict[str, str]:
    """The versions a result depends on."""
    names = ("icl-kernel-lens", "torch", "transformer-lens", "transformers")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


@dataclass(frozen=True)
class RunInfo:
    """The provenance of a result."""

    model: str
    kind: str
    """`HookedTransformer` or `TransformerBridge`."""
    source: str | None
    """What `load_model` was given; None for a model made by the user."""
    revision: str | None
    loaded_because: str | None
    """Why this model class was taken."""
    dtype: str
    device: str
    layers: int
    heads: int
    prompts: PromptInfo
    score_on: str
    template_tokens: bool = True
    """Whether span poolings count template tokens of the demonstration."""
    verification: str = ""
    reading: str = ""
    """How attention rows were obtained, and how many tokens were run for them."""
    quantisation: str | None = None
    """What the weights were stored in before they were read, in words; None: in floats, or not known."""
    versions: Mapping[str, str] = field(default_factory=versions)

    @property
    def about(self) -> str:
        """The model and the task, as titles name them."""
        return f"{self.model} on {self.prompts.task}"

    @classmethod
    def of(cls, adapter: ModelAdapter, prompts: PromptInfo, score_on: str, **more: Any) -> RunInfo:
        record = load_record(adapter.model)
        return cls(
            model=adapter.name,
            kind=adapter.kind,
            source=record.source if record else None,
            revision=record.revision if record else None,
            loaded_because=record.why if record else None,
            dtype=str(adapter.dtype).removeprefix("torch."),
            device=str(adapter.device),
            layers=adapter.shape.layers,
            heads=adapter.shape.heads,
            prompts=prompts,
            score_on=score_on,
            quantisation=record.quantisation if record else None,
            verification=stated(adapter),
            **more,
        )
