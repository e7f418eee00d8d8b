"""Where a number came from: model, prompts and versions, carried by every result."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from icl_kernel_lens.models import Lens, load_record, probe
from icl_kernel_lens.prompts import PromptInfo
from icl_kernel_lens.tasks.template import Template


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
    probe: str = ""
    reading: str = ""
    """How rows were come by, and how many tokens were run for it."""
    versions: Mapping[str, str] = field(default_factory=versions)

    @classmethod
    def of(cls, lens: Lens, prompts: PromptInfo, score_on: str, **more: Any) -> RunInfo:
        record = load_record(lens.model)
        return cls(
            model=lens.name,
            kind=lens.kind,
            source=record.source if record else None,
            revision=record.revision if record else None,
            loaded_because=record.why if record else None,
            dtype=str(lens.dtype).removeprefix("torch."),
            device=str(lens.device),
            layers=lens.shape.layers,
            heads=lens.shape.heads,
            prompts=prompts,
            score_on=score_on,
            probe=str(probe(lens)),
            **more,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"versions": dict(self.versions)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunInfo:
        fields: dict[str, Any] = data | {"prompts": prompt_info_from_json(data["prompts"])}
        return cls(**fields)


def prompt_info_from_json(data: dict[str, Any]) -> PromptInfo:
    """A `PromptInfo` from what `asdict` made of it."""
    template = data.get("template")
    fields: dict[str, Any] = data | {"template": Template(**template) if template else None}
    return PromptInfo(**fields)
